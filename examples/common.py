"""What the examples share: their options, what they draw and what they say at the end."""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from terminal import transition_table

from phasewatch.monitor import Watch
from phasewatch.monitor.core.transitions import Transition, TransitionStatus
from phasewatch.monitor.reports.run_page import write_report
from phasewatch.monitor.store.store import Store


@dataclass(frozen=True)
class Panel:
    """One part of a picture.

    Attributes:
        title: What its curves are, with their unit.
        streams: Label of each curve, by the name of its stream.
        log: Whether the axis is logarithmic.
    """

    title: str
    streams: Mapping[str, str]
    log: bool = False


def read_options(
    description: str, name: str, arguments: list[str] | None = None
) -> argparse.Namespace:
    """Read the command line that all examples have, and make the output folder.

    Args:
        description: The example's docstring; its first line is shown.
        name: The default output folder is phasewatch-<name>.
        arguments: In place of the command line.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(f"phasewatch-{name}"), help="folder")
    parser.add_argument("--fast", action="store_true", help="a few seconds: shows no transition")
    parser.add_argument("--json", action="store_true", help="print a summary as JSON, alone")
    chosen = parser.parse_args(arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    return chosen


def quieten() -> None:
    """Keep Lightning's advice out of the demonstration, and small networks on one thread."""
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    torch.set_num_threads(1)


def standing(transitions: Iterable[Transition]) -> list[Transition]:
    """Those that were confirmed and not withdrawn, in the order of their onset."""
    good = (TransitionStatus.CONFIRMED, TransitionStatus.ENDED)
    return sorted((t for t in transitions if t.status in good), key=lambda t: t.onset_step)


def first_crossing(watch: Watch, stream: str, level: float, *, rising: bool = True) -> int | None:
    """First step at which a stream is beyond a level; None if it never is."""
    steps, values, _ = watch.history(stream)
    beyond = np.flatnonzero(values > level if rising else values < level)
    return int(steps[beyond[0]]) if len(beyond) else None


def draw(watch: Watch, panels: Sequence[Panel], path: Path, title: str) -> None:
    """Draw streams over the steps, with an error band where they have one, and the transitions."""
    figure = Figure(figsize=(9.0, 0.6 + 2.1 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    figure.suptitle(title, x=0.02, ha="left")
    for axis, panel in zip(axes, panels, strict=True):
        for name, label in panel.streams.items():
            steps, values, errors = watch.history(name)
            (line,) = axis.plot(steps, values, label=label, linewidth=1.3)
            if np.isfinite(errors).any():
                low, high = values - 2 * errors, values + 2 * errors
                axis.fill_between(steps, low, high, color=line.get_color(), alpha=0.2)
        for transition in standing(watch.transitions):
            end = transition.end_step or transition.detected_step
            axis.axvspan(transition.onset_step, end, color="0.85", zorder=0)
            axis.axvline(transition.onset_step, color="0.6", linewidth=0.8, zorder=0.5)
            if axis is axes[0]:
                where = (transition.onset_step, 1.0)
                axis.annotate(
                    str(transition.kind).replace("_", " "),
                    where,
                    xycoords=("data", "axes fraction"),
                    fontsize=8,
                    va="bottom",
                )
        axis.set_title(panel.title, loc="left", fontsize=9, y=1.06 if axis is axes[0] else 1.0)
        axis.set_yscale("log" if panel.log else "linear")
        axis.legend(fontsize=8, frameon=False, ncols=min(len(panel.streams), 6))
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("optimizer step")
    figure.savefig(path, dpi=110)


def conclude(
    watch: Watch,
    options: argparse.Namespace,
    panels: Sequence[Panel],
    facts: Mapping[str, Any],
    title: str,
) -> None:
    """Write report.html and figure.png, and say what was found.

    Args:
        watch: The run, ended.
        options: What `read_options` gave.
        panels: What the picture shows.
        facts: What this example is about, as plain numbers, by what they are.
        title: Title of the picture.
    """
    out: Path = options.out
    with Store(out / "phasewatch.db", create=False) as store:
        write_report(store, watch.run_id, out / "report.html")
    draw(watch, panels, out / "figure.png", title)
    if options.json:
        transitions = [
            {
                "kind": str(t.kind),
                "onset_step": t.onset_step,
                "detected_step": t.detected_step,
                "end_step": t.end_step,
                "severity": t.severity,
                "evidence": {name: alarm.onset_step for name, alarm in t.evidence.items()},
            }
            for t in standing(watch.transitions)
        ]
        print(json.dumps({"seed": options.seed, "transitions": transitions, "facts": dict(facts)}))
        return
    console = Console()
    console.print(transition_table(watch.transitions))
    for what, value in facts.items():
        console.print(f"{what}: {value}", soft_wrap=True, highlight=False)
    console.print(f"\nreport   {out / 'report.html'}", soft_wrap=True)
    console.print(f"picture  {out / 'figure.png'}", soft_wrap=True)
    store_path = out / "phasewatch.db"
    console.print(f"more     phasewatch show {watch.run_name} --store {store_path}", soft_wrap=True)
