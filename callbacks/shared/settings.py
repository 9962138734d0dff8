"""From the arguments of the callback to one checked configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from phasewatch.detectors.base import Detector
from phasewatch.monitor.config.exports import ExporterConfig
from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.core.contracts import Observable
from phasewatch.monitor.core.errors import ConfigError


def settle_config(
    config: MonitorConfig | Mapping[str, Any] | str | Path | None,
    *,
    observables: Literal["all"] | Sequence[str | Observable] | Mapping[str, Any] | None,
    detectors: Mapping[str, Detector | str | dict[str, Any]] | None,
    exporter: ExporterConfig | bool | int | None,
    **given: Any,
) -> tuple[MonitorConfig, list[str | Observable] | None, dict[str, Detector | str] | None]:
    """Lay what was given over the configuration; what was given wins.

    Args:
        config: The configuration, or the path of a YAML file.
        observables: Names, settings by name, or objects; "all" for everything that fits.
        detectors: Detectors or names by stream.
        exporter: Settings; False for none; a number for the port.
        **given: Further fields of `MonitorConfig`; None is not given.

    Returns:
        The configuration; observables and detectors that hold objects, which no file can.

    Raises:
        ConfigError: A value is wrong.
    """
    changes = {name: value for name, value in given.items() if value is not None}
    if "store" in changes:
        changes["store"] = str(changes["store"])
    base = MonitorConfig.load(config)
    if exporter is not None:
        changes["exporter"] = _exporter(exporter, base.exporter)
    if isinstance(observables, str):
        if observables != "all":
            raise ConfigError(f'observables: got {observables!r}; give a list of names, or "all"')
        observables = ["all"]
    own: list[str | Observable] | None = None
    if observables is not None:
        names = [o for o in observables if isinstance(o, str)]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ConfigError(f"observables: {sorted(twice)} given twice; give each name once")
        if isinstance(observables, Mapping) or len(names) == len(observables):
            changes["observables"] = observables
        else:
            own = list(observables)
            changes["observables"] = {name: base.observables.get(name, {}) for name in names}
    objects: dict[str, Detector | str] = {}
    if detectors is not None:
        named = {k: v for k, v in detectors.items() if isinstance(v, (str, Mapping))}
        objects = {k: v for k, v in detectors.items() if not isinstance(v, (str, Mapping))}
        changes["detectors"] = {**base.detectors, **named}
    if {"every_n_steps", "schedule"} & changes.keys() == {"every_n_steps"}:
        changes.setdefault("schedule", None)  # what is given here wins over the file's cadence
    elif "schedule" in changes:
        changes.setdefault("every_n_steps", None)
    return (base.replace(**changes) if changes else base), own, objects or None


def _exporter(given: ExporterConfig | bool | int | Mapping[str, Any], base: ExporterConfig) -> Any:
    if isinstance(given, bool):
        return base.model_copy(update={"enabled": given})
    if isinstance(given, int):
        return {**base.model_dump(), "port": given}
    return given
