"""Kills trainings at random moments, resumes them, and counts what was lost: `make chaos`.

python tests/chaos/kills.py --kills 200 --seed 0 [--lane plain] [--json FILE]

A case is one run with one planted fall of its loss and one webhook. It is killed twice, at random,
half of the time within 0.3 s after a checkpoint, and a quarter of the kills meet a store that is
locked for five seconds; the webhook is down, slow or refusing for a while in some. At the end every
step must be stored once, and the alert delivered once.
"""

from __future__ import annotations

import argparse
import http.server
import json
import logging
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STEPS = 420
KILLS_PER_RUN = 2
TARGETS = ("healthy", "healthy", "healthy", "down", "refusing", "hanging")


class Hook:
    """A webhook that counts, and behaves badly for its first seconds."""

    def __init__(self, kind: str) -> None:
        self.taken: Counter[str] = Counter()
        self._good_at = time.monotonic() + (0.0 if kind == "healthy" else 4.0)
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if time.monotonic() < outer._good_at:
                    if kind == "hanging":
                        time.sleep(3.0)
                    self.send_response(503)
                    self.end_headers()
                    return
                (key,) = (x for x in body["message"].splitlines() if x.startswith("Id:"))
                outer.taken[f"{key} {body['title'].split(':')[1]}"] += 1
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def one_case(rng: random.Random, lane: str, folder: Path) -> Counter[str]:
    """Run, kill, resume, finish; what was counted."""
    counted: Counter[str] = Counter()
    hook = Hook(rng.choice(TARGETS))
    fall = rng.randrange(150, 260)
    config = {
        "run_name": "chaos",
        "store": str(folder / "runs.db"),
        "exporter": {"enabled": False},
        "observables": {},
        "alerts": {
            "targets": [f"json://127.0.0.1:{hook.port}/hook"],
            "picture": False,
            "grace_seconds": 40,
        },
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    job: dict[str, Any] = {
        "lane": lane,
        "config": config,
        "config_file": str(folder / "config.yaml"),
        "checkpoint": str(folder / "last.ckpt"),
        "steps": STEPS,
        "fall": fall,
    }
    last = 0
    for number in range(KILLS_PER_RUN + 1):
        life = dict(job)
        if number < KILLS_PER_RUN:
            low = min(max(last, fall - 40) if rng.random() < 0.6 else last, STEPS - 100)
            life["dies_at"] = 10 * (rng.randrange(low, min(low + 120, STEPS - 40)) // 10 + 1)
            life["delay"] = rng.uniform(0.0, 0.3) if rng.random() < 0.5 else rng.uniform(0.3, 1.5)
            counted["kills within 0.3 s"] += life["delay"] <= 0.3
            if rng.random() < 0.25:
                life["locks_at"] = max(life["dies_at"] - rng.randrange(5, 40), last + 1)
                life["locked_seconds"] = 5.0
                counted["kills with a locked store"] += 1
        file = folder / "job.json"
        file.write_text(json.dumps(life))
        done = subprocess.run(
            [sys.executable, str(HERE / "victim.py"), str(file)],
            capture_output=True,
            text=True,
            timeout=240,
        )
        saved = [int(x.split()[1]) for x in done.stdout.splitlines() if x.startswith("checkpoint")]
        last = max([last, *saved])
        if number < KILLS_PER_RUN:
            if done.returncode == -9:
                counted["kills"] += 1
            else:
                counted["not killed"] += 1
                if done.returncode:
                    print(done.stderr[-2000:], file=sys.stderr)
                elif "finished" in done.stdout:
                    break  # it came to its end first: to resume it again would be a branch
        elif "finished" not in done.stdout:
            counted["not finished"] += 1
            print(done.stderr[-2000:], file=sys.stderr)
    hook.close()
    judge(folder / "runs.db", counted)
    counted["alerts doubled"] += sum(count - 1 for count in hook.taken.values())
    counted["alerts lost"] += not any("generalisation" in key for key in hook.taken)
    return counted


def judge(store: Path, counted: Counter[str]) -> None:
    """Count steps that are missing or doubled, and holes that are marked."""
    from phasewatch.monitor.store.store import Store

    with Store(store, create=False) as history:
        runs = history.runs()
        counted["runs"] += 1
        counted["runs too many"] += len(runs) - 1
        steps = Counter(history.history(runs[-1].id, "val_loss")[0].tolist())
        counted["rows lost"] += sum(step not in steps for step in range(1, STEPS + 1))
        counted["rows doubled"] += sum(count - 1 for count in steps.values())
        counted["holes marked"] += len(history.holes(runs[-1].id))


LINES = (
    *("runs", "kills", "kills within 0.3 s", "kills with a locked store", "not killed"),
    *("not finished", "runs too many", "rows lost", "rows doubled", "holes marked"),
    *("alerts lost", "alerts doubled"),
)
FAULTS = LINES[5:]


def main() -> int:
    """Run cases until there were enough kills; exit code 1 if anything was lost or doubled."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lane", choices=("plain", "lightning"), action="append")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.getLogger("phasewatch").setLevel(logging.ERROR)
    lanes = options.lane or ["plain", "lightning"]
    totals = {lane: Counter[str]() for lane in lanes}
    number = 0
    while sum(total["kills"] for total in totals.values()) < options.kills:
        lane = lanes[number % len(lanes)]
        rng = random.Random(f"{options.seed}/{number}")
        with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
            counted = one_case(rng, lane, Path(folder))
        totals[lane] += counted
        faults = {name: counted[name] for name in FAULTS if counted[name]}
        print(f"case {number} ({lane}): {faults or 'nothing lost'}", flush=True)
        number += 1
    print(f"\n{'':28s}" + "".join(f"{lane:>12s}" for lane in lanes))
    for name in LINES:
        print(f"{name:28s}" + "".join(f"{totals[lane][name]:12d}" for lane in lanes))
    if options.json:
        options.json.write_text(json.dumps(totals, indent=1))
    return int(any(totals[lane][name] for lane in lanes for name in FAULTS))


if __name__ == "__main__":
    sys.exit(main())
