"""The two text formats, byte for byte as prometheus_client writes them, in a tenth of the time.

It escapes and sorts every label of every series at every scrape; training waits meanwhile for the
interpreter. What stands before a value does not change: here it is made once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import NamedTuple

from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from phasewatch.monitor import metrics as m
from phasewatch.monitor.health import Durations

BOUNDS = (*map(str, m.MEASUREMENT_BUCKETS), "+Inf")
"""Values of the label `le`."""

NUM_BUCKET_SERIES = len(BOUNDS) + 2
"""Series of one histogram: its buckets, sum and count."""


class Reading(NamedTuple):
    """A metric, values of its labels after those of the run, its value, and an example of it."""

    metric: m.Metric
    labels: tuple[str, ...]
    value: float | Durations
    exemplar: Exemplar | None = None


class Text:
    """Writes pages of one run.

    Args:
        run: What every series says of the run.
    """

    def __init__(self, run: m.RunLabels) -> None:
        self._run = run
        self._heads: dict[tuple[str, tuple[str, ...]], tuple[str, ...]] = {}

    def page(self, families: Iterable[tuple[m.Metric, list[Reading]]], *, openmetrics: bool) -> str:
        """The whole page, in OpenMetrics or in the classic format."""
        lines = [*self._lines(families, openmetrics)]
        if openmetrics:
            lines.append("# EOF\n")
        return "".join(lines)

    def _lines(
        self, families: Iterable[tuple[m.Metric, list[Reading]]], openmetrics: bool
    ) -> Iterator[str]:
        if len(self._heads) > 4 * m.MAX_SERIES:  # names come and go
            self._heads.clear()
        for metric, readings in families:
            yield preamble(metric, openmetrics=openmetrics)
            for _, labels, value, exemplar in readings:
                heads = self._heads.get((metric.name, labels))
                if heads is None:
                    heads = self._heads[metric.name, labels] = self._make_heads(metric, labels)
                if isinstance(value, Durations):
                    yield from _histogram(heads, value, exemplar if openmetrics else None)
                else:
                    example = _example(exemplar) if exemplar and openmetrics else ""
                    yield f"{heads[0]}{number(value)}{example}\n"

    def _make_heads(self, metric: m.Metric, labels: tuple[str, ...]) -> tuple[str, ...]:
        """What stands before each value of a reading."""
        pairs = self._run.of(metric, labels)
        if metric.type is not m.MetricType.HISTOGRAM:
            return (head(metric.name, pairs),)
        buckets = (head(f"{metric.name}_bucket", pairs | {"le": bound}) for bound in BOUNDS)
        ends = (head(f"{metric.name}_{end}", pairs) for end in ("count", "sum"))
        return (*buckets, *ends)


def head(name: str, labels: dict[str, str]) -> str:
    """Name and labels of a series, and the space before its value."""
    pairs = ",".join(f'{label}="{_escaped(labels[label])}"' for label in sorted(labels))
    return f"{name}{{{pairs}}} "


def number(value: float) -> str:
    """A value, as Prometheus writes it."""
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]


def preamble(metric: m.Metric, *, openmetrics: bool) -> str:
    """What stands before the series of a metric."""
    if not openmetrics:
        kind = m.MetricType.GAUGE if metric.type is m.MetricType.INFO else metric.type
        return f"# HELP {metric.name} {metric.help}\n# TYPE {metric.name} {kind}\n"
    name = metric.name.removesuffix("_total").removesuffix("_info")
    unit = f"# UNIT {name} {metric.unit}\n" if metric.unit else ""
    return f"# HELP {name} {metric.help}\n# TYPE {name} {metric.type}\n{unit}"


def _histogram(
    heads: tuple[str, ...], durations: Durations, exemplar: Exemplar | None
) -> Iterator[str]:
    for index, count in enumerate(accumulate(durations.counts)):
        example = _example(exemplar) if exemplar and index == durations.latest_bucket else ""
        yield f"{heads[index]}{number(count)}{example}\n"
    yield f"{heads[-2]}{number(sum(durations.counts))}\n"
    yield f"{heads[-1]}{number(durations.sum_seconds)}\n"


def _example(exemplar: Exemplar) -> str:
    pairs = ",".join(f'{k}="{_escaped(v)}"' for k, v in sorted(exemplar.labels.items()))
    return f" # {{{pairs}}} {number(exemplar.value)} {exemplar.timestamp}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
