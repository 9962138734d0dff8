"""The configuration of one watched run.

The default of every setting lives in this room, and nowhere else. Which detector watches a stream
for which nothing is set, says `detectors/registry.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from phasewatch.detectors.types import Direction
from phasewatch.monitor.config.alerts import AlertsConfig
from phasewatch.monitor.config.base import Settings, describe, read_yaml
from phasewatch.monitor.config.exports import (
    ExporterConfig,
    GrafanaConfig,
    PushgatewayConfig,
    SinkConfig,
)
from phasewatch.monitor.config.measuring import (
    AroundConfig,
    ObservableConfig,
    ProbeConfig,
    SamplerConfig,
)
from phasewatch.monitor.config.schedule import Cadence, EveryNSteps
from phasewatch.monitor.config.streams import DetectorConfig, StreamConfig
from phasewatch.monitor.core.errors import ConfigError

DEFAULT_OVERHEAD = 0.05
"""Share of wall time that measuring may take when no cadence is given."""


DEFAULT_OBSERVABLES = ("gradient_norm", "weight_norm", "update_ratio", "llc")
"""Measured by default. Losses and logged metrics are always observed."""


class MonitorConfig(Settings):
    """What one watched run is told. Unknown keys are an error.

    Attributes:
        run_name: Name of the run; None makes one from the date and a random word.
        experiment: Name of what the run is a part of; a label of its target.
        observables: What is measured, by name, with settings where wanted. A list of names will do.
            "all" stands for every observable that needs no arguments; those that do not fit the
            model are left out.
        detectors: Detector by stream name, overriding `detectors.default`.
        every_n_steps: Cadence of every observable without its own.
        schedule: The same, in full.
        overhead: Share of wall time that measuring may take, 0 < overhead ≤ 1; 1 is no budget.
            None is 0.05, or no budget when `every_n_steps` or `schedule` is given.
        store: SQLAlchemy URL, or path of an SQLite file.
        exporter: The Prometheus endpoint.
        grafana: A Grafana that transitions are written into; None writes into none.
        pushgateway: A Pushgateway to push to; None pushes nowhere.
        sinks: Further places that results go to, installed by other packages, by name.
        loggers: Whether λ̂ and transitions go into the loggers of Lightning's Trainer and the
            TensorBoard of Hugging Face's, too, as `phasewatch/…`.
        notebook: Whether a run in a Jupyter notebook shows a table of its latest values and
            transitions there while it trains.
        alerts: Direct alerts. A list of URLs will do.
        sampler: How the LLC is sampled.
        probe: The data on which the model is measured.
        around: What is done around a suspected transition: measured more densely, checkpoints kept.
        checkpoint_on: "suspected" keeps the trainer's own checkpoints from before and after each
            suspicion, as `around` says. None writes none.
        precursors: Detector by stream name whose alarms only make a coming transition suspected:
            "precursor", or one that sees a supporting stream move early. None by default.
        streams: What streams mean, by name or pattern ("head_*"), where that is not as guessed.
        better: "up" or "down", by stream name; short for `streams: {name: {better: …}}`.
        false_alarms_per_run: Expected false alarms of a whole run, over all its streams.
        stop_exceptions: Names of exceptions by which you end training on purpose, besides those of
            tuners and of early stopping: the run is then stopped, and not failed.
        patience_seconds: How long a call of your own observable or sink may stand still before it
            is ended, where that is safe; one that works has ten times as long.
        seed: Seed of everything random in the monitor.
    """

    run_name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    experiment: Annotated[str, Field(max_length=200)] = ""
    observables: Mapping[str, ObservableConfig] = Field(
        default_factory=lambda: {name: ObservableConfig() for name in DEFAULT_OBSERVABLES}
    )
    detectors: Mapping[str, DetectorConfig] = Field(default_factory=dict)
    every_n_steps: PositiveInt | None = None
    schedule: Cadence | None = None
    overhead: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    store: str = "phasewatch.db"
    exporter: ExporterConfig = ExporterConfig()
    grafana: GrafanaConfig | None = None
    pushgateway: PushgatewayConfig | None = None
    sinks: Mapping[str, SinkConfig] = Field(default_factory=dict)
    loggers: bool = True
    notebook: bool = True
    alerts: AlertsConfig = AlertsConfig()
    sampler: SamplerConfig = SamplerConfig()
    probe: ProbeConfig = ProbeConfig()
    around: AroundConfig = AroundConfig()
    checkpoint_on: Literal["suspected"] | None = None
    precursors: Mapping[str, DetectorConfig] = Field(default_factory=dict)
    streams: Mapping[str, StreamConfig] = Field(default_factory=dict)
    better: Mapping[str, Direction] = Field(default_factory=dict)
    false_alarms_per_run: PositiveFloat = 0.1
    stop_exceptions: tuple[str, ...] = ()
    patience_seconds: PositiveFloat = 60.0
    seed: NonNegativeInt = 0

    @field_validator("observables", mode="before")
    @classmethod
    def _names_to_settings(cls, value: Any) -> Any:
        if isinstance(value, str):
            if value == "all":
                return {"all": {}}
            raise ValueError('give a list of names, a mapping from name to settings, or "all"')
        if isinstance(value, Mapping):
            return {name: settings or {} for name, settings in value.items()}
        if isinstance(value, (list, tuple)):
            if not all(isinstance(name, str) for name in value):
                raise ValueError("give a list of names; settings of one go into a mapping")
            return {name: {} for name in value}
        return value

    @field_validator("sinks", mode="before")
    @classmethod
    def _sink_names(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: settings or {} for name, settings in value.items()}
        names = isinstance(value, (list, tuple)) and all(isinstance(n, str) for n in value)
        return {name: {} for name in value} if names else value

    @field_validator("alerts", mode="before")
    @classmethod
    def _urls_to_settings(cls, value: Any) -> Any:
        return {"targets": value} if isinstance(value, (str, list, tuple)) else value

    @field_validator("detectors", "precursors", mode="before")
    @classmethod
    def _detector_names(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {
                stream: {"name": chosen} if isinstance(chosen, str) else chosen
                for stream, chosen in value.items()
            }
        return value

    @model_validator(mode="after")
    def _one_cadence(self) -> MonitorConfig:
        if self.every_n_steps is not None and self.schedule is not None:
            raise ValueError("give every_n_steps or schedule, not both")
        return self

    @property
    def cadence(self) -> Cadence | None:
        """Cadence of observables without one of their own; None is "as the budget allows"."""
        return EveryNSteps(n=self.every_n_steps) if self.every_n_steps else self.schedule

    @property
    def stream_settings(self) -> dict[str, dict[str, Any]]:
        """What is said of streams, by name: only what was given."""
        said: dict[str, dict[str, Any]] = {name: {"better": b} for name, b in self.better.items()}
        for name, given in self.streams.items():
            said[name] = said.get(name, {}) | given.model_dump(exclude_unset=True)
        return said

    @property
    def budget(self) -> float:
        """Share of wall time for measuring; 1 is no budget."""
        if self.overhead is not None:
            return self.overhead
        return DEFAULT_OVERHEAD if self.cadence is None else 1.0

    @classmethod
    def load(cls, source: MonitorConfig | Mapping[str, Any] | str | Path | None) -> MonitorConfig:
        """Make a configuration from one, a mapping, the path of a YAML file, or nothing.

        Raises:
            ConfigError: The file cannot be read, or a value is wrong: names the key, the value
                received and what is allowed.
        """
        if isinstance(source, MonitorConfig):
            return source
        where = "configuration"
        if isinstance(source, (str, Path)):
            where = str(source)
            source = read_yaml(Path(source))
        if source is not None and not isinstance(source, Mapping):
            raise ConfigError(
                f"config: got {source!r}; give a MonitorConfig, a mapping, or the path of a YAML "
                "file"
            )
        try:
            return cls.model_validate(dict(source or {}))
        except ValidationError as error:
            raise ConfigError(describe(error, where, cls)) from None

    def replace(self, **changes: Any) -> MonitorConfig:
        """This configuration with some values changed, and checked again.

        Raises:
            ConfigError: A new value is wrong.
        """
        values = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self).load(values | changes)
