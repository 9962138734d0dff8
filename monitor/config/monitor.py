"""The configuration: every default lives here, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from phasewatch.detectors.types import Direction
from phasewatch.monitor.config.alerts import AlertsConfig
from phasewatch.monitor.config.schedule import Cadence, EveryNSteps
from phasewatch.monitor.core.errors import ConfigError, did_you_mean
from phasewatch.monitor.core.meaning import DetectorKind, Panel, Role, Tells
from phasewatch.monitor.core.redaction import redact
from phasewatch.monitor.core.urls import web_address

DEFAULT_OVERHEAD = 0.05
"""Share of wall time that measuring may take when no cadence is given."""

DEFAULT_OBSERVABLES = ("gradient_norm", "weight_norm", "update_ratio", "llc")
"""Measured by default. Losses and logged metrics are always observed."""


"""User and password in a URL: never printed."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class SamplerConfig(_Model):
    """How the local posterior is sampled. The defaults need no tuning.

    The target density is p(w) ∝ exp(−nβ L_n(w) − γ/2 ‖w − w*‖²).

    Attributes:
        scheme: "baoab": underdamped Langevin on the whole fixed probe with adaptive sharpness.
            "lm": Leimkuhler–Matthews, overdamped, with a control variate on minibatches: for
            probes too large to be used whole at each step.
            "sgld": overdamped steps w ← w − (ε/2)[nβ ĝ + γ(w−w*)] + √ε ξ (Lau et al. 2023).
            "rmsprop_sgld": the same, preconditioned by the running size of ĝ (Li et al. 2016).
        num_chains: Chains, run side by side.
        num_draws: Steps of each chain, burn-in included.
        max_draws: Chains go on beyond `num_draws`, up to this, while more draws can bring the
            error or the checks within bounds and time is left. At most `num_draws`: never.
        max_seconds: Seconds after which no draws beyond `num_draws` are begun.
        target_error: Draws go on until two standard errors of λ̂ are at most this share of it. In
            a live run they go on only until the checks pass: the next measurement goes on.
        burnin_fraction: Share of the draws dropped at the start; None finds where the plateau
            begins.
        warm_start: Chains of a live run go on from where they stood at the measurement before.
        noise: Of a loss that draws random numbers: "average" measures the expected loss, over
            `noise_draws` draws; "frozen" one draw of it, which is another quantity.
        noise_draws: Draws that are averaged.
        n_beta: nβ; None takes n / log n from the probe's n.
        localization: γ, the strength of the pull back to w*. It is part of the number: keep it
            fixed through a run.
        step_size: ε in Lau's convention; None sets it from the measured sharpness.
        batch_size: Probe batches drawn for each step, for all schemes but "baoab"; None uses every
            probe batch at each step.
        engine: "auto" takes what fits and is faster: one vmap over all chains or over some at a
            time, or a "loop" over chains; "inplace", one chain after another in the memory of the
            weights, where nothing else fits.
        max_bytes: Memory that chains and their gradients may take; None is a quarter of what is
            free.
        seed: Seed of the chains' own generators.

    Example:
        >>> SamplerConfig(num_chains=4, num_draws=200).num_chains
        4
    """

    scheme: Literal["baoab", "lm", "sgld", "rmsprop_sgld"] = "baoab"
    num_chains: PositiveInt = 4
    num_draws: Annotated[int, Field(ge=8)] = 256
    max_draws: NonNegativeInt = 16_384
    max_seconds: NonNegativeFloat = 60.0
    target_error: PositiveFloat = 0.1
    burnin_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    warm_start: bool = True
    noise: Literal["average", "frozen"] = "average"
    noise_draws: Annotated[int, Field(ge=2)] = 16
    n_beta: PositiveFloat | None = None
    localization: NonNegativeFloat = 1.0
    step_size: PositiveFloat | None = None
    batch_size: PositiveInt | None = None
    engine: Literal["auto", "vmap", "loop", "inplace"] = "auto"
    max_bytes: PositiveInt | None = None
    seed: NonNegativeInt = 0


class ProbeConfig(_Model):
    """The fixed data on which the model is measured.

    Attributes:
        num_samples: Samples drawn once from the training data.
        batch_size: Samples a batch; None uses one batch for all of them.
        mode: "eval" runs the copy in eval mode; "train" in train mode (marked on each estimate).
        max_bytes: Largest probe kept on the device; a larger one is shrunk, and that is told.
    """

    num_samples: PositiveInt = 1024
    batch_size: PositiveInt | None = None
    mode: Literal["eval", "train"] = "eval"
    max_bytes: PositiveInt = 256 * 2**20


class ExporterConfig(_Model):
    """The Prometheus endpoint.

    Attributes:
        enabled: Serve metrics at all.
        host: Address to bind; loopback unless told otherwise.
        port: First port to try; the next free one is taken when it is in use.
        num_ports: How many ports to try, one after another, before any free one is taken.
        targets_dir: Folder for a Prometheus file_sd target file; None writes none.
        linger_seconds: How long to go on serving after the run ended, for the last scrape. None
            waits until a Prometheus that has come before has seen the end: at most two of its
            intervals and 75 seconds, and not at all where none has come.
        certfile: Certificate chain (PEM) to serve HTTPS with; None serves HTTP.
        keyfile: Its private key (PEM, not encrypted); None where the certificate's file holds it.
        client_cafile: Certificates (PEM) that sign those of the clients; who has none is refused.
    """

    enabled: bool = True
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 9877
    num_ports: PositiveInt = 50
    targets_dir: Path | None = None
    linger_seconds: NonNegativeFloat | None = None
    certfile: Path | None = None
    keyfile: Path | None = None
    client_cafile: Path | None = None

    @model_validator(mode="after")
    def _certificate_first(self) -> ExporterConfig:
        if self.certfile is None and (self.keyfile or self.client_cafile):
            raise ValueError("keyfile and client_cafile need certfile, the server's certificate")
        return self

    @property
    def scheme(self) -> str:
        """How the metrics are served."""
        return "http" if self.certfile is None else "https"


class PushgatewayConfig(_Model):
    """A Pushgateway to push to, where no Prometheus can reach the run.

    Attributes:
        url: Its address, without user and password.
        job: Label `job` of what is pushed.
        interval_seconds: Time between two pushes.
        timeout_seconds: How long the gateway may keep silent.
        linger_seconds: How long the end of the run stays at the gateway before it is deleted: at
            least two scrapes of Prometheus. Training's end waits for it.
        username: User, where the gateway asks for one.
        password_env: Environment variable that holds the password.
        password_file: File that holds the password.
    """

    url: str
    job: Annotated[str, Field(min_length=1, max_length=200)] = "phasewatch"
    interval_seconds: PositiveFloat = 30.0
    timeout_seconds: PositiveFloat = 5.0
    linger_seconds: NonNegativeFloat = 30.0
    username: Annotated[str, Field(min_length=1)] | None = None
    password_env: Annotated[str, Field(min_length=1)] | None = None
    password_file: Path | None = None

    @field_validator("url")
    @classmethod
    def _no_secret(cls, url: str) -> str:
        if "@" in url:  # anywhere: a password may hold a slash
            raise ValueError("give user and password as username and password_env or password_file")
        web_address(url)
        return url

    @model_validator(mode="after")
    def _one_password(self) -> PushgatewayConfig:
        given = (self.password_env is not None) + (self.password_file is not None)
        if given != (self.username is not None):
            raise ValueError("give username with one of password_env and password_file, or none")
        return self


class GrafanaConfig(_Model):
    """A Grafana that transitions are written into as annotations.

    The token is read from `token_file` or from PHASEWATCH_GRAFANA_TOKEN: a configuration is kept
    with the run, so it holds no secret.

    Attributes:
        url: Its address, for example "http://localhost:3000".
        token_file: File that holds a service account's token; None reads the environment.
        timeout_seconds: How long one answer may take.
    """

    url: str
    token_file: Path | None = None
    timeout_seconds: PositiveFloat = 5.0

    @field_validator("url")
    @classmethod
    def _no_secret(cls, url: str) -> str:
        return web_address(url)


class ObservableConfig(_Model):
    """Settings of one observable.

    Attributes:
        every_n_steps: Its own cadence in optimizer steps.
        schedule: Its own cadence, in full.
        parameters: Keyword arguments it is made with.
    """

    every_n_steps: PositiveInt | None = None
    schedule: Cadence | None = None
    parameters: Mapping[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_cadence(self) -> ObservableConfig:
        if self.every_n_steps is not None and self.schedule is not None:
            raise ValueError("give every_n_steps or schedule, not both")
        return self

    @property
    def cadence(self) -> Cadence | None:
        """The cadence these settings ask for; None takes the run's."""
        return EveryNSteps(n=self.every_n_steps) if self.every_n_steps else self.schedule


class DetectorConfig(_Model):
    """A detector by name, with its parameters.

    Attributes:
        name: Registered name, for example "slope_shift"; "none" watches the stream without one.
        parameters: Keyword arguments of the detector.
    """

    name: str
    parameters: Mapping[str, Any] = Field(default_factory=dict)


class StreamConfig(_Model):
    """What a stream means, where its name or its observable says it wrong or not at all.

    Attributes:
        role: What an alarm on it may do: "leading" opens a transition, "supporting" adds evidence
            to one, "diagnostic" is not watched.
        better: Which way is better, "up" or "down".
        held_out: Whether it says how well the model does on held-out data.
        tells: What a move of it says: "quality", "llc", "formation", "restricted_loss",
            "excluded_loss" or "nothing".
        unit: Unit of its values.
        panel: Where it is drawn: "losses", "llc", "norms", "fractions" or "own".
        metric: The exported metric that shows it.
        detector: Its default detector: that of a "loss", of a "measured" or of a "scalar" stream.
    """

    role: Role = Role.LEADING
    better: Direction | None = None
    held_out: bool = False
    tells: Tells = Tells.NOTHING
    unit: str = "1"
    panel: Panel = Panel.OWN
    metric: str | None = None
    detector: DetectorKind = "scalar"


class SinkConfig(_Model):
    """Settings of an installed sink.

    Attributes:
        parameters: Keyword arguments it is made with.
    """

    parameters: Mapping[str, Any] = Field(default_factory=dict)


class MonitorConfig(_Model):
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
        alerts: Direct alerts. A list of URLs will do.
        sampler: How the LLC is sampled.
        probe: The data on which the model is measured.
        precursors: Detector by stream name whose alarms only make a coming transition suspected:
            "precursor", or one that sees a supporting stream move early. None by default.
        streams: What streams mean, by name or pattern ("head_*"), where that is not as guessed.
        better: "up" or "down", by stream name; short for `streams: {name: {better: …}}`.
        false_alarms_per_run: Expected false alarms of a whole run, over all its streams.
        stop_exceptions: Names of exceptions by which you end training on purpose, besides those of
            tuners and of early stopping: the run is then stopped, and not failed.
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
    alerts: AlertsConfig = AlertsConfig()
    sampler: SamplerConfig = SamplerConfig()
    probe: ProbeConfig = ProbeConfig()
    precursors: Mapping[str, DetectorConfig] = Field(default_factory=dict)
    streams: Mapping[str, StreamConfig] = Field(default_factory=dict)
    better: Mapping[str, Direction] = Field(default_factory=dict)
    false_alarms_per_run: PositiveFloat = 0.1
    stop_exceptions: tuple[str, ...] = ()
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
            source = _read_yaml(Path(source))
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


def _read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"configuration file {str(path)!r} cannot be read ({error.strerror}); "
            "give the path of a YAML file"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"configuration file {str(path)!r} is not text ({error.reason}); it must be "
            "YAML in UTF-8"
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"configuration file {str(path)!r} is not YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise ConfigError(
            f"configuration file {str(path)!r} holds a {type(content).__name__}; "
            "it must hold `key: value` lines"
        )
    return content


def describe(error: ValidationError, where: str, model: type[BaseModel]) -> str:
    """Say each wrong key, the value received and what is allowed.

    Args:
        error: What pydantic found.
        where: Name of the configuration, for the first line.
        model: The model that was validated.
    """
    lines = [f"{where} is wrong:"]
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "(whole)"
        if item["type"] == "extra_forbidden":
            known = sorted(_fields_at(model, item["loc"][:-1]))
            hint = did_you_mean(item["loc"][-1], known)
            lines.append(f"  {key}: unknown key{hint}; known here: {', '.join(known) or 'none'}")
        elif item["loc"][:1] == ("alerts",):  # its URLs are secrets
            lines.append(f"  {key}: {item['msg']}")
        else:
            shown = redact(repr(item["input"]))
            lines.append(f"  {key}: got {shown}; {item['msg']}")
    return "\n".join(lines)


def _fields_at(model: type[BaseModel], path: tuple[int | str, ...]) -> set[str]:
    """Field names of the model that sits at `path`."""
    current: Any = model
    for part in path:
        field = getattr(current, "model_fields", {}).get(part)
        if field is None:  # inside a mapping: its values are all of one model
            continue
        current = field.annotation
        for candidate in getattr(current, "__args__", ()):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                current = candidate
    return set(getattr(current, "model_fields", {}))
