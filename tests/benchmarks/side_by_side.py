"""What phasewatch's page, trainscope's and TensorBoard show of one change, and how soon.

    PHASEWATCH_PEER_PYTHON=.venv-peers/bin/python python tests/benchmarks/side_by_side.py

The same training (a network that groks modular addition) is run with each of them, with its
defaults, and its page is asked every quarter of a second for what it draws from. Without trainscope
in the interpreter that `PHASEWATCH_PEER_PYTHON` names, its column is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.scraping import free_port

TRAINING = Path(__file__).parents[1] / "support" / "watched_by.py"
PEER = os.environ.get("PHASEWATCH_PEER_PYTHON", "")
POLL_SECONDS = 0.25
WAIT_SECONDS = 15.0
"""How long a page is still asked after the training's end."""


class Page:
    """The server of a page, and what it is asked.

    Args:
        folder: Where the training leaves its traces.
        command: Starts the server, once the folder has what it needs.
        ready: A file or folder that it needs.
    """

    def __init__(self, folder: Path, command: list[str], ready: Path, url: str) -> None:
        self.folder, self.command, self.ready, self.url = folder, command, ready, url
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, path: str) -> Any:
        """The answer of the page; None where there is none yet."""
        if self.process is None:
            if not self.ready.exists():
                return None
            quiet = subprocess.DEVNULL
            self.process = subprocess.Popen(self.command, stdout=quiet, stderr=quiet)
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as answer:
                return json.load(answer)
        except (OSError, urllib.error.URLError, json.JSONDecodeError):
            return None

    def close(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(timeout=20)


def phasewatch_page(folder: Path) -> Page:
    port = free_port()
    code = "from phasewatch.monitor.cli.main import main; main()"
    store = folder / "phasewatch.db"
    command = [sys.executable, "-c", code, "serve", str(store), "--port", str(port), "--no-open"]
    return Page(folder, command, store, f"http://127.0.0.1:{port}")


def trainscope_page(folder: Path) -> Page:
    port = free_port()
    command = [PEER, "-m", "trainscope", "ui", "--run", str(folder / "run"), "--port", str(port)]
    return Page(folder, command, folder / "run", f"http://127.0.0.1:{port}")


def tensorboard_page(folder: Path) -> Page:
    port = free_port()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port"]
    return Page(folder, [*command, str(port)], folder / "run", f"http://127.0.0.1:{port}")


def look_at_phasewatch(page: Page) -> dict[str, Any]:
    runs = page.ask("/api/runs")
    rows = (runs or {}).get("runs", [])
    if not rows:
        return {}
    key = rows[0]["key"]
    head = page.ask(f"/api/run/{key}") or {}
    named = urllib.parse.urlencode({"name": "val_accuracy"})
    series = page.ask(f"/api/run/{key}/series?{named}") or {}
    values = [v for one in series.get("series", []) for v in one["y"] if v is not None]
    told = [t for t in head.get("transitions", []) if t["status"] != "suspected"]
    return {
        "curve": len(values) > 1,
        "seen": any(value > 0.5 for value in values),
        "said": [(t["onset"], t["title"]) for t in told],
    }


def look_at_trainscope(page: Page) -> dict[str, Any]:
    rows = page.ask("/api/global") or []
    spikes = page.ask("/api/spikes") or []
    rows = rows if isinstance(rows, list) else [*rows.values()]
    said = [(spike["step"], f"spike at step {spike['step']}") for spike in spikes]
    return {"curve": len(rows) > 1, "seen": False, "said": said}


def look_at_tensorboard(page: Page) -> dict[str, Any]:
    named = urllib.parse.urlencode({"run": "run", "tag": "val_accuracy"})
    points = page.ask(f"/data/plugin/scalars/scalars?{named}") or []
    return {
        "curve": len(points) > 1,
        "seen": any(value > 0.5 for _, _, value in points),
        "said": [],
    }


TOOLS: dict[str, tuple[str, Callable[[Path], Page], Callable[[Page], dict[str, Any]]]] = {
    "phasewatch": (sys.executable, phasewatch_page, look_at_phasewatch),
    "trainscope": (PEER, trainscope_page, look_at_trainscope),
    "tensorboard": (sys.executable, tensorboard_page, look_at_tensorboard),
}


def start(python: str, tool: str, folder: Path, seed: int) -> tuple[subprocess.Popen[str], list]:
    """A training, and what it says as it goes."""
    process = subprocess.Popen(
        [python, str(TRAINING), tool, str(folder), str(seed)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    said: list[dict[str, Any]] = []

    def hear() -> None:
        assert process.stdout is not None
        said.extend(json.loads(line) for line in process.stdout if line.startswith("{"))

    threading.Thread(target=hear, daemon=True).start()
    return process, said


def watched(tool: str, seed: int) -> dict[str, Any]:
    """Seconds since the start of the process at which each thing could be seen, and what it was."""
    python, make_page, look = TOOLS[tool]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begin = time.time()
        process, said = start(python, tool, folder, seed)
        page = make_page(folder)
        first: dict[str, float] = {}
        heard: dict[int, tuple[float, str]] = {}
        over = None
        try:
            while over is None or time.time() < over + WAIT_SECONDS:
                if process.poll() is not None and over is None:
                    over = time.time()
                    assert process.returncode == 0, f"{tool}: the training failed"
                found = look(page)
                for what in ("curve", "seen"):
                    if found.get(what):
                        first.setdefault(what, time.time() - begin)
                for step, text in found.get("said", []):
                    heard.setdefault(step, (time.time() - begin, text))
                time.sleep(POLL_SECONDS)
        finally:
            page.close()
        marks = {mark["what"]: mark for mark in said}
        end = marks["end"]
        change = range(end["begins"], end["perfect"] + 1)
        of_it = [heard[step] for step in heard if step in change]
        return {
            "tool": tool,
            "seed": seed,
            "begins": end["begins"],
            "understood_step": marks["understood"]["step"],
            "perfect": end["perfect"],
            "understood": marks["understood"]["at"] - begin,
            "training": marks["trained"]["at"] - marks["begin"]["at"],
            "weights": end["weights"],
            "curve": first.get("curve"),
            "seen": first.get("seen"),
            "said": min(of_it)[0] if of_it else None,
            "of_it": [text for _, text in sorted(of_it)],
            "besides": sorted(
                step for step in heard if not end["begins"] <= step <= end["perfect"]
            ),
            "megabytes": sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 2**20,
        }


def alone(python: str, seed: int) -> dict[str, Any]:
    """The same training with nobody watching."""
    with tempfile.TemporaryDirectory() as name:
        process, said = start(python, "nobody", Path(name), seed)
        process.wait()
        time.sleep(0.5)
    marks = {mark["what"]: mark for mark in said}
    return {
        "training": marks["trained"]["at"] - marks["begin"]["at"],
        "weights": marks["end"]["weights"],
    }


def have(tool: str) -> bool:
    """Whether there is an interpreter with the tool."""
    python = TOOLS[tool][0]
    if not python:
        return False
    command = [python, "-c", f"import {tool}"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def in_words(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.1f}"


def main() -> None:
    """Train with each, and print a row for each."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--tools", nargs="+", default=[*TOOLS], choices=[*TOOLS])
    parser.add_argument("--json", type=Path, help="where all that was found is written")
    given = parser.parse_args()
    rows = []
    for tool in given.tools:
        if not have(tool):
            print(f"{tool}: not installed, left out")
            continue
        for seed in given.seeds:
            row = watched(tool, seed)
            bare = alone(TOOLS[tool][0], seed)
            row["alone"] = bare["training"]
            row["same_weights"] = bare["weights"] == row["weights"]
            rows.append(row)
            print(
                f"{tool}, seed {seed}: held-out loss falls from step {row['begins']}, half is "
                f"right at {row['understood_step']} ({row['understood']:.1f} s), all at "
                f"{row['perfect']}. First curve {in_words(row['curve'])}, the change in the data "
                f"{in_words(row['seen'])}, said {in_words(row['said'])}: {row['of_it']}; besides "
                f"{len(row['besides'])} at steps {row['besides']}. Training {row['training']:.1f} "
                f"s, alone {row['alone']:.1f} s, same weights {row['same_weights']}; "
                f"{row['megabytes']:.1f} MB",
                flush=True,
            )
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
