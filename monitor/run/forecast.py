"""What a run will see: one table when it starts, in the log, the store and the report."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from phasewatch.monitor.run.budget import GRACE_SECONDS

if TYPE_CHECKING:
    from phasewatch.monitor.core.types import MeasureContext
    from phasewatch.monitor.sampling.evaluation_cost import EvaluationCost


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastRow:
    """What is expected of one observable.

    Attributes:
        name: Its name.
        seconds: What one measurement should take; None where that is not known.
        first: When the first comes, in words.
        count: How many this run will see; None where its end is not known.
        note: Why it is skipped or waits, and how to get it; empty otherwise.
    """

    name: str
    seconds: float | None
    first: str
    count: int | None
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def count_in_words(count: int | None) -> str:
    """How many, in words."""
    if count is None:
        return "as the budget allows"
    return str(count)


def duration_in_words(seconds: float | None) -> str:
    """Seconds in two figures and a unit.

    Example:
        >>> duration_in_words(0.0123), duration_in_words(75.0), duration_in_words(None)
        ('12 ms', '75 s', '?')
    """
    if seconds is None or math.isnan(seconds):
        return "?"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            number = seconds / size
            return f"{number:.2g} {unit}" if number < 9.95 else f"{number:.0f} {unit}"
    return f"{seconds * 1e6:.0f} µs"


def headline_of(
    run_name: str,
    context: MeasureContext,
    loss: str,
    cost: EvaluationCost | None,
    budget: float,
) -> str:
    """On what loss and data is measured, and within which budget.

    Args:
        run_name: Name of the run.
        context: What was checked.
        loss: Where the loss comes from.
        cost: What one evaluation takes, if there is one.
        budget: Share of wall time; 1 is no budget.
    """
    limit = "no budget" if budget >= 1.0 else f"{budget:.0%} of the time and {GRACE_SECONDS:.0f} s"
    if cost is None:
        return f"phasewatch, run {run_name}: no loss to measure on; {limit}"
    batches = len(context.batches)
    return (
        f"phasewatch, run {run_name}: loss of {loss} on {context.n_samples} {context.sample_unit}s "
        f"in {batches} batch{'es' if batches > 1 else ''}, one gradient "
        f"{duration_in_words(cost.gradient_seconds)}; {limit}"
    )


def table_of(headline: str, rows: Sequence[ForecastRow], skipped: Iterable[tuple[str, str]]) -> str:
    """The table as text, as it is logged.

    Args:
        headline: Loss, data and budget, in one or two lines.
        rows: What is measured.
        skipped: What is not, each with its reason.
    """
    table = Table(box=None, pad_edge=False, show_edge=False)
    for column, right in (("observable", False), ("each", True), ("first", False)):
        table.add_column(column, justify="right" if right else "left", no_wrap=True)
    table.add_column("in this run", no_wrap=True)
    table.add_column("", overflow="fold")
    for row in rows:
        table.add_row(
            row.name, duration_in_words(row.seconds), row.first, count_in_words(row.count), row.note
        )
    for name, reason in skipped:
        table.add_row(name, "–", "–", "–", f"not measured: {reason}")
    out = io.StringIO()
    Console(file=out, width=110, color_system=None).print(table)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    return "\n".join([headline, *(f"  {line}" for line in lines)])
