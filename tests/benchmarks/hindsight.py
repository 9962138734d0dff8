"""The streamed verdict and the second one, on recorded training curves with known transitions.

Each curve of `training_curves.json` in the folder PHASEWATCH_TEST_DATA names is fed as a validation
loss to the default detector; what stands at the end is scored, as streamed and as hindsight has it.
A transition counts as found if its span overlaps a known one. Errors of onset and end are medians
and means over what was found, in widths of the known transition.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from phasewatch.detectors.evaluation.scoring import Curve, load_curves
from phasewatch.monitor.core.columns import Column
from phasewatch.monitor.core.transitions import Transition, TransitionKind, TransitionStatus
from phasewatch.monitor.replay.recorded import detect

Span = tuple[int, int]


def variants(curves: Sequence[Curve]) -> Iterator[tuple[str, list[Curve]]]:
    """The curves as they are, logged less often, and under added noise."""
    for every in (1, 2, 4, 8):
        yield f"every {every}. point", [curve.every(every) for curve in curves]
    for noise in (0.03, 0.1):
        yield f"noise of {noise} dex", [noisy(curve, noise) for curve in curves]


def noisy(curve: Curve, noise: float) -> Curve:
    """The curve under Gaussian noise in log10."""
    added = noise * np.random.default_rng(1).standard_normal(len(curve.values))
    return replace(curve, values=tuple((np.array(curve.values) * 10.0**added).tolist()))


def transitions_of(curve: Curve) -> tuple[Transition, ...]:
    """What a live run would have said of it, looked at again at its end."""
    count = len(curve.steps)
    column = Column(list(curve.steps), list(curve.values), [None] * count, [0.0] * count)
    return detect([{"val_loss": column}], run=curve.name).transitions


def streamed(transition: Transition, last: int) -> Span | None:
    """Where the stream said it was; None where that said nothing, or took it back."""
    seen = transition.hindsight
    status = transition.status if seen is None else seen.streamed
    unstable = transition.kind is TransitionKind.INSTABILITY
    if unstable or status is None or status is TransitionStatus.WITHDRAWN:
        return None
    return transition.onset_step, transition.end_step or last


def standing(transition: Transition, last: int) -> Span | None:
    """Where it stands after hindsight."""
    seen = transition.hindsight
    if seen is None:
        return streamed(transition, last)
    return None if seen.onset_step is None else (seen.onset_step, seen.end_step or last)


def score(
    curves: Sequence[Curve],
    found: Sequence[Sequence[Transition]],
    span_of: Callable[[Transition, int], Span | None],
) -> list[str]:
    """F1, false ones, and errors of onset and end."""
    onsets, ends = [], []
    num_false = num_known = 0
    for curve, transitions in zip(curves, found, strict=True):
        known = [(curve.steps[t.start], curve.steps[t.end]) for t in curve.transitions]
        ignored = [(curve.steps[z.start], curve.steps[z.end]) for z in curve.ignore]
        num_known += len(known)
        left = list(known)
        for transition in transitions:
            span = span_of(transition, curve.steps[-1])
            if span is None:
                continue
            if not any(overlap(span, zone) for zone in (*known, *ignored)):
                num_false += 1
            hit = next((one for one in left if overlap(span, one)), None)
            if hit is not None:
                left.remove(hit)
                width = max(hit[1] - hit[0], 1)
                onsets.append(abs(span[0] - hit[0]) / width)
                ends.append(abs(span[1] - hit[1]) / width)
    f1 = 2 * len(onsets) / (len(onsets) + num_false + num_known)
    errors = (f"{np.median(errors):.3f} / {np.mean(errors):.2f}" for errors in (onsets, ends))
    return [f"{f1:.3f}", str(num_false), *errors]


def overlap(one: Span, other: Span) -> bool:
    """Whether two spans share a step."""
    return one[0] <= other[1] and other[0] <= one[1]


def main() -> None:
    """Print the table."""
    folder = os.environ.get("PHASEWATCH_TEST_DATA")
    if folder is None:
        raise SystemExit("set PHASEWATCH_TEST_DATA to the folder that holds training_curves.json")
    curves = load_curves(Path(folder) / "training_curves.json")
    table = Table(title=f"{len(curves)} recorded curves; errors are median / mean, in widths")
    for head in ("curves", "verdict", "F1", "false", "onset error", "end error", "second verdicts"):
        table.add_column(head)
    for name, altered in variants(curves):
        found = [transitions_of(curve) for curve in altered]
        verdicts = Counter(
            t.hindsight.verdict.value if t.hindsight else "none" for each in found for t in each
        )
        said = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
        table.add_row(name, "streamed", *score(altered, found, streamed), "")
        table.add_row("", "in hindsight", *score(altered, found, standing), said)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
