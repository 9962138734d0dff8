"""The table of exported metrics. Exporter, alert rules and dashboards are held to it by tests.

Names start with `phasewatch_` and end in their unit; counters end in `_total` and count this
process. Labels take values from closed sets, or name what the configuration names; every series
of a run carries its name for people, `run`, and its identity, `run_id`, by which rules tell runs
apart. A step, a chain or a message is never a label.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.estimates import EstimateStatus
from phasewatch.monitor.core.transitions import TransitionKind

MAX_SERIES = 5_000
"""Series of one run in one scrape; what goes beyond is left out and counted."""

MAX_LABEL = 200
"""Letters of a label's value."""

MAX_LEADS = 50
"""Observables with transitions of their own name; those of the others are counted together."""

OTHER = "other"
"""What the observables beyond are called."""

MEASUREMENT_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""Upper bounds of the buckets of `phasewatch_measurement_seconds`, in seconds."""

_DIGEST = 8


class MetricType(StrEnum):
    """How Prometheus is to read a metric."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"
    INFO = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One exported metric.

    Attributes:
        name: Full name, with its suffix.
        type: Gauge, counter, histogram, or info (always 1, it speaks by its labels).
        unit: Base unit, which the name carries; empty for plain counts.
        labels: Names of its labels.
        help: What it is, in a sentence.
    """

    name: str
    type: MetricType
    unit: str = ""
    labels: tuple[str, ...] = ("run", "run_id")
    help: str


def _gauge(name: str, help_: str, *labels: str, unit: str = "") -> Metric:
    return Metric(
        name=f"phasewatch_{name}",
        type=MetricType.GAUGE,
        unit=unit,
        labels=("run", "run_id", *labels),
        help=help_,
    )


def _counter(name: str, help_: str, *labels: str, unit: str = "") -> Metric:
    return Metric(
        name=f"phasewatch_{name}_total",
        type=MetricType.COUNTER,
        unit=unit,
        labels=("run", "run_id", *labels),
        help=help_,
    )


BUILD = Metric(
    name="phasewatch_build_info",
    type=MetricType.INFO,
    labels=("version", "python"),
    help="The phasewatch and Python that serve this page.",
)
RUN = Metric(
    name="phasewatch_run_info",
    type=MetricType.INFO,
    labels=("run", "run_id", "attempt", "experiment", "host", "pid"),
    help="The process that trains, and the experiment the run belongs to.",
)

RUNBOOK = Metric(
    name="phasewatch_runbook_info",
    type=MetricType.INFO,
    labels=("run", "run_id", "url"),
    help="Where the page lies that says what to do about an alert.",
)

RUN_STATE = _gauge("run_state", "1 for the state the run is in, 0 for the others.", "state")
RUN_STEP = _gauge("run_step", "Optimizer steps completed.")
RUN_EPOCH = _gauge("run_epoch", "Epoch the run is in.")
LAST_STEP_TIMESTAMP = _gauge(
    "last_step_timestamp_seconds", "Unix time at which the latest step was seen.", unit="seconds"
)
STEPS_PER_SECOND = _gauge("steps_per_second", "Optimizer steps a second, over the last drain.")

OVERHEAD = _gauge("overhead_ratio", "Share of wall time that monitoring takes.", unit="ratio")
OVERHEAD_BUDGET = _gauge(
    "overhead_budget_ratio", "Share of wall time that monitoring may take.", unit="ratio"
)
MONITOR_SECONDS = _counter(
    "monitor_seconds", "Time the training thread has spent in monitoring.", unit="seconds"
)
BESIDE_SECONDS = _counter(
    "beside_seconds",
    "Processor time of the monitor's own threads, which detect and store beside training.",
    unit="seconds",
)
THINNED = _counter(
    "thinned_points",
    "Logged points that are stored but were not looked at by detectors, to keep to their share.",
)
DENSE_WINDOWS = _counter(
    "dense_windows",
    "Windows in which measurements came more often, because a transition was suspected.",
)
CHECKPOINTS = _counter(
    "checkpoints_written", "Checkpoints that were written for what may be suspected."
)
CHECKPOINT_BYTES = _gauge(
    "checkpoint_bytes",
    "What the checkpoints that are kept for transitions take on disk.",
    unit="bytes",
)

MEASUREMENTS = _counter("measurements", "Measurements that succeeded.", "observable")
MEASUREMENT_SECONDS = Metric(
    name="phasewatch_measurement_seconds",
    type=MetricType.HISTOGRAM,
    unit="seconds",
    labels=("run", "run_id", "observable"),
    help="Time that measurements took.",
)
MEASUREMENT_FAILURES = _counter(
    "measurement_failures", "Measurements that raised an error.", "observable"
)
UNFINISHED = _counter(
    "unfinished_measurements",
    "Measurements that were left before their end: the run had ended, or was asked to stop.",
    "observable",
)
SKIPS = _counter(
    "skips",
    "Times something was left out: an observable this model cannot have, a store, an exporter.",
    "what",
)
ESTIMATES = _counter("estimates", "Estimates of the learning coefficient by status.", "status")
NONFINITE = _counter("nonfinite_values", "Values that were NaN or infinite.", "observable")
REPAIRS = _counter("repairs", "Parts of the live module put back after a measurement changed them.")

LOSS = _gauge("loss_nats", "Latest loss, in nats per sample.", "split", unit="nats")
GRADIENT_NORM = _gauge("gradient_norm", "Latest norm of the gradient.", "observable")
WEIGHT_NORM = _gauge("weight_norm", "Latest norm of the weights.", "observable")
UPDATE_RATIO = _gauge(
    "update_ratio",
    "Latest norm of an optimizer step over that of the weights.",
    "observable",
    unit="ratio",
)
OBSERVABLE_VALUE = _gauge(
    "observable_value", "Latest value of an observable, in the unit named.", "observable", "unit"
)
OBSERVABLE_STDERR = _gauge(
    "observable_stderr", "Standard error of the latest value.", "observable", "unit"
)
OBSERVABLE_OK = _gauge(
    "observable_ok",
    "1 if the latest value of a measured observable passed its checks, else 0.",
    "observable",
    "unit",
)
LAMBDA_HAT = _gauge(
    "lambda_hat", "Latest estimate of the local learning coefficient.", "observable"
)
LAMBDA_STDERR = _gauge("lambda_stderr", "Standard error of the latest estimate.", "observable")
LLC_STATUS = _gauge(
    "llc_status",
    "1 for the status of the latest estimate, 0 for the others.",
    "observable",
    "status",
)
LLC_RHAT = _gauge("llc_rhat", "R-hat of the chains of the latest estimate.", "observable")
LLC_ESS = _gauge("llc_ess", "Effective sample size of the latest estimate.", "observable")

DETECTOR_SCORE = _gauge(
    "detector_score_ratio",
    "Statistic of the detector over its threshold; 1 is an alarm.",
    "observable",
    unit="ratio",
)
TRANSITIONS = _counter(
    "transitions",
    "Confirmed transitions, by the kind they were told as and the observable that saw them first.",
    "kind",
    "observable",
)
CORRECTED = _counter(
    "transitions_corrected",
    "Transitions told as this kind that turned out to be of another, and were told again as that.",
    "kind",
)
LAST_TRANSITION_STEP = _gauge(
    "last_transition_step", "Step at which the latest transition was detected."
)
LAST_TRANSITION_ONSET_STEP = _gauge(
    "last_transition_onset_step", "Step at which the latest transition began."
)
LAST_TRANSITION_TIMESTAMP = _gauge(
    "last_transition_timestamp_seconds",
    "Unix time at which the latest transition was detected.",
    unit="seconds",
)

LAST_TRANSITION_SEVERITY = _gauge(
    "last_transition_severity", "Effect size of the latest transition; 1 is tenfold."
)

ALERT_QUEUE = _gauge("alert_queue_messages", "Alerts waiting to be sent.", unit="messages")
ALERT_SENT = _counter("alert_sent_messages", "Alerts delivered.", unit="messages")
ALERT_FAILURES = _counter("alert_failures", "Tries to deliver an alert that failed.")
SINK_FAILURES = _counter("sink_failures", "Exceptions that a sink has raised.", "sink")
STORE_QUEUE = _gauge("store_queue_rows", "Rows waiting to be written to the store.", unit="rows")
STORE_DROPPED = _counter("store_dropped_rows", "Rows the store has lost.", unit="rows")
STORE_FAILURES = _counter("store_failures", "Writes to the store that failed.")
EXPORTER_REFUSED = _counter(
    "exporter_refused_values", "Values of streams beyond the budget of series, not exported."
)
EXPORTER_OMITTED = _gauge(
    "exporter_omitted_series", "Series left out of this scrape, beyond the budget.", unit="series"
)

METRICS: tuple[Metric, ...] = (
    BUILD,
    RUN,
    RUNBOOK,
    RUN_STATE,
    RUN_STEP,
    RUN_EPOCH,
    LAST_STEP_TIMESTAMP,
    STEPS_PER_SECOND,
    OVERHEAD,
    OVERHEAD_BUDGET,
    MONITOR_SECONDS,
    BESIDE_SECONDS,
    THINNED,
    DENSE_WINDOWS,
    CHECKPOINTS,
    CHECKPOINT_BYTES,
    TRANSITIONS,
    CORRECTED,
    LAST_TRANSITION_STEP,
    LAST_TRANSITION_ONSET_STEP,
    LAST_TRANSITION_TIMESTAMP,
    LAST_TRANSITION_SEVERITY,
    ESTIMATES,
    REPAIRS,
    ALERT_QUEUE,
    ALERT_SENT,
    ALERT_FAILURES,
    STORE_QUEUE,
    STORE_DROPPED,
    STORE_FAILURES,
    EXPORTER_REFUSED,
    LOSS,
    LAMBDA_HAT,
    LAMBDA_STDERR,
    LLC_STATUS,
    LLC_RHAT,
    LLC_ESS,
    GRADIENT_NORM,
    WEIGHT_NORM,
    UPDATE_RATIO,
    OBSERVABLE_VALUE,
    OBSERVABLE_STDERR,
    OBSERVABLE_OK,
    MEASUREMENTS,
    MEASUREMENT_SECONDS,
    MEASUREMENT_FAILURES,
    UNFINISHED,
    SKIPS,
    NONFINITE,
    DETECTOR_SCORE,
    SINK_FAILURES,
    EXPORTER_OMITTED,
)
"""All of them, in the order in which they are served."""

LOSS_SPLITS = {"train_loss": "train", "val_loss": "val", "test_loss": "test"}
"""Streams served as `phasewatch_loss_nats`, and their label `split`."""

BY_NAME = {metric.name: metric for metric in (GRADIENT_NORM, WEIGHT_NORM, UPDATE_RATIO)}
"""Metrics that a stream may be served under, with its parts ("weight_norm/block.1")."""

CLOSED_LABELS: dict[str, tuple[str, ...]] = {
    "state": tuple(RunState),
    "status": tuple(EstimateStatus),
    "kind": tuple(TransitionKind),
    "split": tuple(LOSS_SPLITS.values()),
}
"""Labels whose values are known beforehand."""


@dataclass(frozen=True, slots=True)
class RunLabels:
    """What every series of a run says of it.

    Attributes:
        run: Its name.
        run_id: Its identity; a series of a run without one does not carry the label.
    """

    run: str
    run_id: str = ""

    def of(self, metric: Metric, values: Iterable[str]) -> dict[str, str]:
        """The labels of a series.

        Args:
            metric: The metric.
            values: Values of its labels, without those of this record.
        """
        own = (self.run, self.run_id) if metric.labels[0] == "run" else ()
        pairs = dict(zip(metric.labels, map(label_value, (*own, *values)), strict=True))
        return {name: value for name, value in pairs.items() if value or name not in _IDENTITY}


_IDENTITY = ("run_id", "attempt")


def label_value(text: str) -> str:
    """A label's value that every parser can read, different for different texts.

    Control characters and what is not Unicode are replaced, and what is too long is cut; a digest
    of the whole is then added, lest two texts become one.
    """
    clean = "".join(c if c.isprintable() else "\ufffd" for c in text)
    clean = clean.encode("utf-8", "replace").decode("utf-8")
    if clean == text and len(text) <= MAX_LABEL:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST]
    return f"{clean[: MAX_LABEL - _DIGEST - 1]}~{digest}"
