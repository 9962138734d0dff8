"""Write docs/metrics.md from the table of exported metrics: `make docs`."""

from __future__ import annotations

from pathlib import Path

from phasewatch.monitor.core import metrics as m
from phasewatch.monitor.core.meaning import builtin

PAGE = Path(__file__).with_name("metrics.md")


def render() -> str:
    """The whole page."""
    lines = [
        "# Exported metrics",
        "",
        "This page is made from `monitor/core/metrics.py` by `make docs`. Change it there.",
        "",
        "| Metric | Type | Unit | Labels | What it is |",
        "| --- | --- | --- | --- | --- |",
    ]
    for metric in m.METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        cells = (f"`{metric.name}`", metric.type, metric.unit or "–", labels, metric.help)
        lines.append(f"| {' | '.join(cells)} |")
    bounds = ", ".join(f"{bound:g}" for bound in m.MEASUREMENT_BUCKETS)
    lines += [
        "",
        "Counters count this process. They start at 0 again when a run is resumed.",
        f"The buckets of `{m.MEASUREMENT_SECONDS.name}` end at {bounds} seconds.",
        "",
        "## Labels",
        "",
        "| Label | Values |",
        "| --- | --- |",
        *(
            f"| `{label}` | {', '.join(f'`{value}`' for value in values)} |"
            for label, values in m.CLOSED_LABELS.items()
        ),
        "| `run` | Name of the run. |",
        "| `experiment` | Name of the experiment, from the configuration. |",
        "| `observable` | Name of the stream, as it was logged or measured. |",
        "| `unit` | Unit of its values. |",
        "| `sink` | Class of the sink. |",
        "| `what` | What was left out: an observable, `store`, `exporter`. |",
        "",
        f"A value has at most {m.MAX_LABEL} letters. What is longer, or cannot be printed, is cut "
        "or replaced, and a digest of the whole is added.",
        "",
        "## Names of streams",
        "",
        "| Stream | Metric |",
        "| --- | --- |",
        *(
            f'| `{name}` | `{m.LOSS.name}{{split="{split}"}}` |'
            for name, split in m.LOSS_SPLITS.items()
        ),
        f"| `llc`, `llc/…` | `{m.LAMBDA_HAT.name}` and the metrics after it |",
        *(
            f"| `{name}`, `{name}/…` | `{meaning.metric}` |"
            for name, meaning in builtin().items()
            if meaning.metric
        ),
        f"| every other one | `{m.OBSERVABLE_VALUE.name}` |",
        "",
        "## Limits",
        "",
        f"- A scrape has at most {m.MAX_SERIES:,} series. What is beyond is left out and",
        f"  counted in `{m.EXPORTER_OMITTED.name}` and",
        f"  `{m.EXPORTER_REFUSED.name}`. The log says so once.",
        "- Transitions are counted by the observable that saw them first. Beyond "
        f"{m.MAX_LEADS} such",
        f'  observables they are counted together as `observable="{m.OTHER}"`.',
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
