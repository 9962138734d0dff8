"""Values of streams from a number for each head."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.observables.weights.norms import MAX_GROUPS, observed

ELHAGE = "Elhage et al. 2021, transformer-circuits.pub/2021/framework"


def by_head(
    context: MeasureContext,
    name: str,
    unit: str,
    values: Sequence[Tensor],
    stderrs: Sequence[Tensor] | None = None,
) -> list[Observation]:
    """The maximum over all heads as the total, then each head as "<name>/L0H0".

    With more heads than `MAX_GROUPS` the parts are the maxima of the layers, "<name>/L0". A head
    without a finite value is not the maximum, unless none has one.

    Args:
        context: The measurement's context.
        name: Name of the stream.
        unit: Unit of the values.
        values: One tensor a layer, shape (heads,).
        stderrs: Standard errors of the same shapes; None where values are exact.
    """
    tables = [layer.tolist() for layer in values]
    errors = [layer.tolist() for layer in stderrs] if stderrs else [[None] * len(t) for t in tables]
    rows = [
        (f"L{layer}H{head}", layer, value, errors[layer][head])
        for layer, table in enumerate(tables)
        for head, value in enumerate(table)
    ]

    def best(some: Sequence[tuple[str, int, float, float | None]]) -> tuple[float, float | None]:
        return max(((v, e) for _, _, v, e in some), key=lambda one: (one[0] == one[0], one[0]))

    parts = {label: (value, error) for label, _, value, error in rows}
    if len(rows) > MAX_GROUPS:
        layers = range(min(len(tables), MAX_GROUPS))
        parts = {f"L{layer}": best([row for row in rows if row[1] == layer]) for layer in layers}
    result = [observed(context, name, unit, *best(rows))]
    for label, (value, error) in parts.items():
        result.append(observed(context, f"{name}/{label}", unit, value, error))
    return result
