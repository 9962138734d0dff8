"""What the monitor truly costs on eight models, by length of run, and what it gives for that.

Everything is CPU time on one thread: each run is a process of its own in which the clocks that the
monitor looks at are CPU clocks, so that it finds a quiet machine on a busy one. A run without the
monitor trains until it has used the wanted seconds; the run with it takes the same number of steps.
The difference is the true overhead, the monitor's start, end, threads and children included. That
spent inside its hooks is measured in the same run, and says where the rest comes from: what the
monitor costs training in caches and memory. Long runs without the monitor are not trained to their
end unless `--full-bare` is given: the cost of a step is known after a minute. A run that takes over
`PATIENCE` times its length and a minute is ended, and its row says so.

One JSON object a run goes to standard output, a table at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

MODELS = (
    "tutorial-10k", "bert-107k", "lm-4.6M", "one-layer", "moco-resnet18", "ddpm-unet", "mingpt-1M",
    "transformer-10M",
)  # fmt: skip
QUICK = ("tutorial-10k", "bert-107k", "mingpt-1M")
SECONDS = (15.0, 60.0, 600.0)
KNOWN_SECONDS = 60.0
BUDGET = 0.05
PATIENCE = 3


def trained(
    model: str, seconds: float, steps: int, observables: str = "none"
) -> dict[str, Any] | None:
    """One run, in a process of its own; see `support/overhead_run.py`. None if it does not end.

    Args:
        model: Its name.
        seconds: CPU seconds after which to stop, when `steps` is 0.
        steps: Steps to train.
        observables: "default" or "all"; "none" trains without a monitor.
    """
    worker = Path(__file__).parents[1] / "support" / "overhead_run.py"
    limit = round(PATIENCE * seconds + KNOWN_SECONDS)
    arguments = [model, str(seconds), str(steps), observables, str(limit)]
    done = subprocess.run(
        [sys.executable, str(worker), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode == -signal.SIGXCPU:
        return None
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def bare(model: str, seconds: float, full: bool) -> dict[str, Any]:
    """A run without the monitor, carried on to `seconds` by the cost of its steps."""
    found = trained(model, seconds if full else min(seconds, KNOWN_SECONDS), 0)
    if found is None:
        raise SystemExit(f"{model} does not end without a monitor")
    further = max(0.0, seconds - found["cpu_seconds"])
    more = 0 if full else round(further / found["step_seconds"])
    found["steps"] += more
    found["cpu_seconds"] += more * found["step_seconds"]
    return found


def judged(
    without: dict[str, Any], seconds: float, observables: str, with_it: dict[str, Any] | None
) -> dict[str, Any]:
    """One row: a run with the monitor against the one without."""
    if with_it is None:
        return {
            "model": without["model"],
            "length": seconds,
            "observables": observables,
            "steps": without["steps"],
            "bare_seconds": round(without["cpu_seconds"], 2),
            "monitored_seconds": "endless",
        }
    extra = with_it["cpu_seconds"] - without["cpu_seconds"]
    in_hooks = with_it["monitor_seconds"]
    total = with_it["cpu_seconds"]
    reported = with_it["reported_ratio"]
    return {
        "model": with_it["model"],
        "parameters": with_it["parameters"],
        "length": seconds,
        "observables": observables,
        "steps": with_it["steps"],
        "bare_seconds": round(without["cpu_seconds"], 2),
        "monitored_seconds": round(total, 2),
        "true_percent": round(100 * extra / without["cpu_seconds"], 2),
        "over_budget_seconds": round(extra - BUDGET * total, 2),
        "hooks_percent": round(100 * in_hooks / (total - in_hooks), 2),
        "hooks_over_budget_seconds": round(in_hooks - BUDGET * total, 2),
        "reported_percent": round(100 * reported, 2),
        "reported_minus_hooks": round(100 * (reported - in_hooks / total), 2),
        "rss_ratio": round(with_it["peak_mib"] / without["peak_mib"], 2),
        "llc": with_it["llc"],
        "llc_ok": with_it["llc_ok"],
        "first_llc_step": with_it["first_llc_step"],
        "table_seconds": with_it["table_seconds"],
    } | {
        name: with_it[name]
        for name in ("side_seconds", "import_seconds", "measured", "skipped", "peak_mib")
    }  # fmt: skip


COLUMNS = {
    "model": "model", "observables": "what", "length": "s", "steps": "steps",
    "bare_seconds": "bare", "monitored_seconds": "with", "true_percent": "true %",
    "over_budget_seconds": "s > 5%", "hooks_percent": "hooks %",
    "hooks_over_budget_seconds": "s > 5%", "reported_percent": "told %",
    "reported_minus_hooks": "diff", "rss_ratio": "rss x", "llc": "llc", "llc_ok": "ok",
    "table_seconds": "table s",
}  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """The rows beneath each other."""
    lines = [list(COLUMNS.values())]
    for row in rows:
        values = [row.get(key) for key in COLUMNS]
        lines.append(["-" if v is None else f"{v:g}" if isinstance(v, (int, float)) else v
                      for v in values])  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


def main() -> None:
    """Run one after another, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="which")
    parser.add_argument("--seconds", nargs="+", type=float, default=SECONDS[:2], help="run lengths")
    parser.add_argument("--observables", nargs="+", choices=("default", "all"),
                        default=("default", "all"), help="what is measured")  # fmt: skip
    parser.add_argument("--all", action="store_true", help="also the ten-minute runs")
    parser.add_argument("--quick", action="store_true", help="15 s of three models, defaults")
    parser.add_argument("--full-bare", action="store_true", help="train bare runs to their end")
    arguments = parser.parse_args()
    models, lengths, settings = arguments.models, arguments.seconds, arguments.observables
    if arguments.quick:
        models, lengths, settings = QUICK, (15.0,), ("default",)
    if arguments.all:
        models, lengths, settings = MODELS, SECONDS, ("default", "all")
    rows = []
    for seconds in lengths:
        for model in models:
            without = bare(model, seconds, arguments.full_bare)
            for observables in settings:
                found = trained(model, seconds, without["steps"], observables)
                rows.append(judged(without, seconds, observables, found))
                print(json.dumps(rows[-1]), flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
