"""What a run will see: one table when it starts, in the log, the store and the report."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from phasewatch.monitor.core.forecast import COLUMNS, ForecastRow, duration_in_words
from phasewatch.monitor.run.budget import GRACE_SECONDS

if TYPE_CHECKING:
    from phasewatch.monitor.core.context import MeasureContext
    from phasewatch.monitor.sampling.evaluation_cost import EvaluationCost


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


def table_of(
    headline: str,
    rows: Sequence[ForecastRow],
    skipped: Iterable[tuple[str, str]],
    around: str = "",
) -> str:
    """The table as text, as it is logged.

    Args:
        headline: Loss, data and budget, in one or two lines.
        rows: What is measured.
        skipped: What is not, each with its reason.
        around: What is done around a suspected transition; a line of its own.
    """
    table = Table(box=None, pad_edge=False, show_edge=False)
    for column in COLUMNS[:-1]:
        table.add_column(column, justify="right" if column == "each" else "left", no_wrap=True)
    table.add_column(COLUMNS[-1], overflow="fold")
    for row in rows:
        table.add_row(*row.cells)
    for name, reason in skipped:
        table.add_row(name, "–", "–", "–", f"not measured: {reason}")
    out = io.StringIO()
    Console(file=out, width=110, color_system=None).print(table)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    lines += [around] if around else []
    return "\n".join([headline, *(f"  {line}" for line in lines)])
