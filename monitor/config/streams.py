"""Settings of streams: what they mean, and what watches them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from phasewatch.detectors.types import Direction
from phasewatch.monitor.config.base import Settings
from phasewatch.monitor.core.meaning import DetectorKind, Panel, Role, Tells


class DetectorConfig(Settings):
    """A detector by name, with its parameters.

    Attributes:
        name: Registered name, for example "slope_shift"; "none" watches the stream without one.
        parameters: Keyword arguments of the detector.
    """

    name: str
    parameters: Mapping[str, Any] = Field(default_factory=dict)


class StreamConfig(Settings):
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
