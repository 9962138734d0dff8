"""Kills trainings at random moments, resumes them, and counts what was lost: `make chaos`.

python tests/chaos/kills.py --kills 200 --seed 0 [--lane plain] [--json FILE]
python tests/chaos/kills.py --seed 0 --case 70 --keep FOLDER    # one case again, with what it said

A case is one run with one planted fall of its loss and one web hook. It is killed twice, at random,
half of the time within 0.3 s after a checkpoint. In half of the lives the store is harmed shortly
before the kill: locked, full or out of reach for five seconds, or deleted. The web hook behaves
badly at first in most cases. At the end every step must be stored once, or be marked as a hole
where somebody deleted the store, and the alert be delivered once.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import logging
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from faults import STORE_FAULTS, Hook, mend

HERE = Path(__file__).parent
STEPS = 420
KILLS_PER_RUN = 2
FAULT_SECONDS = 5.0
HARM = ("locked", "locked", "full", "away", "deleted")
"""What is done to the store in half of the lives."""


def one_case(rng: random.Random, lane: str, folder: Path) -> Counter[str]:
    """Run, kill, resume, finish; what was counted."""
    counted: Counter[str] = Counter()
    kind = rng.choice(Hook.KINDS)
    counted[f"runs with a target that is {kind}"] += 1
    hook = Hook(kind)
    fall = rng.randrange(150, 260)
    store = folder / "store" / "runs.db"
    config = {
        "run_name": "chaos",
        "store": str(store),
        "exporter": {"enabled": False},
        "observables": {},
        "alerts": {
            "targets": [f"json://127.0.0.1:{hook.port}/hook"],
            "picture": False,
            "grace_seconds": 60,
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
    last, deleted = 0, False
    for number in range(KILLS_PER_RUN + 1):
        life = dict(job)
        if number < KILLS_PER_RUN:
            low = min(max(last, fall - 40) if rng.random() < 0.6 else last, STEPS - 100)
            life["dies_at"] = 10 * (rng.randrange(low, min(low + 120, STEPS - 40)) // 10 + 1)
            life["delay"] = rng.uniform(0.0, 0.3) if rng.random() < 0.5 else rng.uniform(0.3, 1.5)
            if rng.random() < 0.5:
                life["fault"] = rng.choice(HARM)
                life["fault_at"] = max(life["dies_at"] - rng.randrange(5, 40), last + 1)
                life["fault_seconds"] = FAULT_SECONDS
        file = folder / "job.json"
        file.write_text(json.dumps(life))
        done = subprocess.run(
            [sys.executable, str(HERE / "victim.py"), str(file)],
            capture_output=True,
            text=True,
            timeout=300,
        )
        (folder / f"life-{number}.txt").write_text(
            f"{json.dumps(life)}\nended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        said = [x.split() for x in done.stdout.splitlines()]  # a kill may cut the last one
        saved = [int(x[1]) for x in said if x[:1] == ["checkpoint"] and len(x) == 2]
        last = max([last, *saved])
        harmed = life.get("fault") if "fault" in done.stdout.split() else None
        deleted = deleted or harmed == "deleted"
        mend(store)
        if number < KILLS_PER_RUN:
            if done.returncode == -9:
                counted["kills"] += 1
                counted["kills within 0.3 s of a checkpoint"] += life["delay"] <= 0.3
                if harmed:
                    counted[f"kills with a store {harmed}"] += 1
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
    judge(store, counted, deleted=deleted)
    counted["alerts doubled"] += sum(count - 1 for count in hook.taken.values())
    counted["alerts lost"] += not any("generalisation" in key for key in hook.taken)
    counted["alerts withdrawn"] += sum("withdrawn" in key for key in hook.taken)
    counted["alerts sent elsewhere"] += hook.strayed
    return counted


@contextlib.contextmanager
def folder_of(number: int, keep: Path | None) -> Iterator[Path]:
    """Where a case runs: removed after it, unless it is to be kept."""
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
            yield Path(folder)
    else:
        folder = keep / f"case-{number}"
        folder.mkdir(parents=True)
        yield folder


def judge(store: Path, counted: Counter[str], *, deleted: bool) -> None:
    """Count steps that are missing, doubled, or missing and not marked as a hole."""
    from phasewatch.monitor.store.store import Store

    with Store(store, create=False) as history:
        runs = history.runs()
        counted["runs"] += 1
        counted["runs too many"] += len(runs) - 1
        steps = Counter(history.history(runs[-1].id, "val_loss")[0].tolist())
        missing = sum(step not in steps for step in range(1, STEPS + 1))
        holes = history.holes(runs[-1].id)
        marked = sum(hole.num_rows for hole in holes if hole.stream == "val_loss")
        counted["rows doubled"] += sum(count - 1 for count in steps.values())
        counted["rows not as marked"] += abs(missing - marked)
        counted["rows deleted by somebody, and marked" if deleted else "rows lost"] += missing


FAULTS = (
    *("not finished", "runs too many", "rows lost", "rows doubled", "rows not as marked"),
    *("alerts lost", "alerts doubled", "alerts withdrawn", "alerts sent elsewhere"),
)
LINES = (
    *("runs", "kills", "kills within 0.3 s of a checkpoint"),
    *(f"kills with a store {harm}" for harm in STORE_FAULTS),
    *(f"runs with a target that is {kind}" for kind in Hook.KINDS),
    *("not killed", "rows deleted by somebody, and marked"),
    *FAULTS,
)


def main() -> int:
    """Run cases until there were enough kills; exit code 1 if anything was lost or doubled."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lane", choices=("plain", "lightning"), action="append")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", type=int, action="append", help="only this one; may be repeated")
    parser.add_argument("--keep", type=Path, help="keep folders of cases here, with what was said")
    options = parser.parse_args()
    logging.getLogger("phasewatch").setLevel(logging.ERROR)
    lanes = options.lane or ["plain", "lightning"]
    totals = {lane: Counter[str]() for lane in lanes}
    for number in options.case or itertools.count():
        if options.case is None and sum(x["kills"] for x in totals.values()) >= options.kills:
            break
        lane = lanes[number % len(lanes)]
        rng = random.Random(f"{options.seed}/{number}")
        with folder_of(number, options.keep) as folder:
            counted = one_case(rng, lane, folder)
        totals[lane] += counted
        faults = {name: counted[name] for name in FAULTS if counted[name]}
        print(f"case {number} ({lane}): {faults or 'nothing lost'}", flush=True)
        if options.json:
            options.json.write_text(json.dumps(totals, indent=1))
    print(f"\n{'':40s}" + "".join(f"{lane:>12s}" for lane in lanes))
    for name in LINES:
        print(f"{name:40s}" + "".join(f"{totals[lane][name]:12d}" for lane in lanes))
    return int(any(totals[lane][name] for lane in lanes for name in FAULTS))


if __name__ == "__main__":
    sys.exit(main())
