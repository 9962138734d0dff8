"""What a run is told: every default lives here."""

from __future__ import annotations

from phasewatch.monitor.config.alerts import AlertsConfig
from phasewatch.monitor.config.exports import ExporterConfig, GrafanaConfig, PushgatewayConfig
from phasewatch.monitor.config.measuring import (
    AroundConfig,
    ObservableConfig,
    ProbeConfig,
    SamplerConfig,
)
from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.config.schedule import Cadence, EveryNSteps, LogSpaced
from phasewatch.monitor.config.streams import DetectorConfig

__all__ = [
    "AlertsConfig",
    "AroundConfig",
    "Cadence",
    "DetectorConfig",
    "EveryNSteps",
    "ExporterConfig",
    "GrafanaConfig",
    "LogSpaced",
    "MonitorConfig",
    "ObservableConfig",
    "ProbeConfig",
    "PushgatewayConfig",
    "SamplerConfig",
]
