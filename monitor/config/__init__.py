"""What a run is told: every default lives here."""

from __future__ import annotations

from phasewatch.monitor.config.alerts import AlertsConfig
from phasewatch.monitor.config.monitor import (
    DetectorConfig,
    ExporterConfig,
    GrafanaConfig,
    MonitorConfig,
    ObservableConfig,
    ProbeConfig,
    PushgatewayConfig,
    SamplerConfig,
)
from phasewatch.monitor.config.schedule import Cadence, EveryNSteps, LogSpaced

__all__ = [
    "AlertsConfig",
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
