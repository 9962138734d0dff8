"""Every detector that the benchmarks judge, ours and others', each with a grid of settings."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from phasewatch import detectors
from phasewatch.detectors.evaluation.scoring import Curve, detect
from phasewatch.detectors.statistics.detrend import Detrend
from support import peers, rivals

Settings = Mapping[str, Any]
Answer = tuple[list[int], float]
"""Points of the alarms, and processor seconds."""

RESIDUAL_GRID: list[Settings] = [
    {}, {"gate": 0.15}, {"gate": 0.4}, {"trend": 20}, {"trend": 45},
]  # fmt: skip

GRIDS: dict[str, list[Settings]] = {
    "slope_shift": [
        {}, {"strictness": 0.7}, {"strictness": 1.5}, {"gate": 0.07}, {"gate": 0.15},
    ],
    "level_shift": [{}, {"threshold": 40.0}, {"effect": 0.3}],
    "ruptures_window": [{}, {"penalty": 40.0}, {"penalty": 120.0}, {"effect": 0.25}],
    "cusum": RESIDUAL_GRID,
    "page_hinkley": RESIDUAL_GRID,
    "focus": RESIDUAL_GRID,
    "bocpd": RESIDUAL_GRID,
    "river PageHinkley": [{}, {"threshold": 20.0}, {"threshold": 100.0}, {"delta": 0.05}],
    "river ADWIN": [{}, {"delta": 2e-4}, {"delta": 2e-6}],
    "river KSWIN": [{"seed": 0}, {"seed": 0, "alpha": 5e-4}, {"seed": 0, "alpha": 5e-6}],
    "river PageHinkley, detrended": [
        {"threshold": 20.0}, {"threshold": 10.0}, {"threshold": 40.0},
    ],
    "trainscope changepoint": [{}, {"threshold": 20.0}, {"threshold": 60.0}],
    "trainscope z-score": [{}, {"threshold": 6.0}, {"threshold": 12.0}],
    "trainpulse spike": [{}, {"threshold": 2.0}],
    "trainpulse plateau": [{}, {"patience": 300}],
    "Lightning SpikeDetection": [{}],
}  # fmt: skip
"""Settings of each to choose from; the first is its default."""


@dataclass(frozen=True)
class Candidate:
    """A detector to be judged.

    Attributes:
        name: Its name.
        given: What it is fed: "nats", "log10" or "detrended".
        ours: Whether it is one of ours.
        answer: Its alarms on values that are fed so, with those settings.
    """

    name: str
    given: str
    ours: bool
    answer: Callable[[Curve, Settings], Answer]

    @property
    def grid(self) -> list[Settings]:
        """Settings to choose from, the default first."""
        return GRIDS.get(self.name, [{}])

    def run(self, curve: Curve, settings: Settings | None = None) -> Answer:
        """Alarms on a curve in nats, and processor seconds of the detector alone."""
        return self.answer(
            PREPARE[self.given](curve), self.grid[0] if settings is None else settings
        )


def detrended(curve: Curve) -> Curve:
    """The residuals of its log10 against the local line; 0 where there are none yet."""
    detrend = Detrend()
    points = zip(curve.steps, logarithmic(curve).values, strict=True)
    values = tuple(detrend.update(step, y, 1.0) or 0.0 for step, y in points)
    return replace(curve, values=values)


def logarithmic(curve: Curve) -> Curve:
    """The same curve in log10."""
    values = np.log10(np.maximum(curve.values, 1e-12))
    return replace(curve, values=tuple(values.tolist()))


PREPARE = {"nats": lambda curve: curve, "log10": logarithmic, "detrended": detrended}


def our_candidates() -> Iterator[Candidate]:
    """Every registered detector."""
    for name in detectors.names():

        def answer(curve: Curve, settings: Settings, name: str = name) -> Answer:
            start = time.process_time()
            points = detect(curve, detectors.create(name, **settings))
            return points, time.process_time() - start

        given = "log10" if name == "ruptures_window" else "nats"
        yield Candidate(name, given, True, answer)


class Rivals:
    """The detectors of others: in this process where they are installed, else in the peers'."""

    def __init__(self) -> None:
        self.missing: list[str] = []
        self._server: peers.Server | None = None

    def candidates(self) -> list[Candidate]:
        """Those that are installed; the names of the others go to `missing`."""
        found = []
        for name in (*rivals.RIVALS, "river PageHinkley, detrended"):
            base, _, detrend = name.partition(", ")
            answer = self._answer(base)
            if answer is None:
                self.missing.append(name)
                continue
            given = detrend or ("log10" if base.startswith("river") else "nats")
            found.append(Candidate(name, given, False, answer))
        return found

    def _answer(self, name: str) -> Callable[[Curve, Settings], Answer] | None:
        if rivals.is_installed(name):
            return lambda curve, settings: rivals.alarms(name, curve.values, dict(settings))
        server = self._peer()
        if server is None or not server.ask(name=name)["installed"]:
            return None

        def answer(curve: Curve, settings: Settings) -> Answer:
            said = server.ask(name=name, values=list(curve.values), settings=dict(settings))
            return said["alarms"], said["seconds"]

        return answer

    def _peer(self) -> peers.Server | None:
        if self._server is None:
            python = peers.interpreter("what is not installed here")
            if python is None or python == sys.executable:
                return None
            self._server = peers.Server(python, str(Path(rivals.__file__)))
        return self._server

    def close(self) -> None:
        """End the peers' process."""
        if self._server is not None:
            self._server.close()
