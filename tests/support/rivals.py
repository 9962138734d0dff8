"""Detectors of other projects on one curve, in this process or in an interpreter of their own.

Run as a script it answers each line of JSON on its standard input: it needs none of our packages.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from unittest import mock


def river(kind: str) -> Callable[..., Iterator[bool]]:
    """A drift detector of river."""

    def run(values: Sequence[float], **settings) -> Iterator[bool]:
        from river import drift

        detector = getattr(drift, kind)(**settings)
        for value in values:
            detector.update(value)
            yield detector.drift_detected

    return run


def trainscope(module: str, kind: str) -> Callable[..., Iterator[bool]]:
    """An anomaly detector of trainscope."""

    def run(values: Sequence[float], **settings) -> Iterator[bool]:
        detector = getattr(importlib.import_module(f"trainscope.core.detectors.{module}"), kind)(
            **settings
        )
        for value in values:
            yield detector.update(value) is not None

    return run


def trainpulse(kind: str) -> Callable[..., Iterator[bool]]:
    """A detector of trainpulse."""

    def run(values: Sequence[float], **settings) -> Iterator[bool]:
        detector = getattr(importlib.import_module("trainpulse.detectors"), kind)(**settings)
        for step, value in enumerate(values):
            yield detector.check(step, value) is not None

    return run


def lightning_spikes(values: Sequence[float], **settings) -> Iterator[bool]:
    """Lightning's SpikeDetection; training would stop at each alarm, here it goes on."""
    import torch
    from lightning.fabric.utilities.spike import SpikeDetection, TrainingSpikeException

    fabric = mock.MagicMock(global_rank=1)
    fabric.strategy.root_device = torch.device("cpu")
    fabric.strategy.reduce_boolean_decision = lambda decision, **_: decision
    detector = SpikeDetection(**settings)
    for point, value in enumerate(values):
        try:
            detector.on_train_batch_end(fabric, torch.tensor(value), None, point)
        except TrainingSpikeException:
            yield True
        else:
            yield False


RIVALS: dict[str, tuple[str, Callable[..., Iterator[bool]]]] = {
    "river PageHinkley": ("river", river("PageHinkley")),
    "river ADWIN": ("river", river("ADWIN")),
    "river KSWIN": ("river", river("KSWIN")),
    "trainscope changepoint": ("trainscope", trainscope("changepoint", "ChangePointDetector")),
    "trainscope z-score": ("trainscope", trainscope("z_score", "ZScoreDetector")),
    "trainpulse spike": ("trainpulse", trainpulse("LossSpikeDetector")),
    "trainpulse plateau": ("trainpulse", trainpulse("PlateauDetector")),
    "Lightning SpikeDetection": ("lightning", lightning_spikes),
}
"""By name: the package that is needed, and how to get one flag a point."""


def is_installed(name: str) -> bool:
    """Whether this interpreter has the package of a rival."""
    return importlib.util.find_spec(RIVALS[name][0]) is not None


def alarms(name: str, values: Sequence[float], settings: dict) -> tuple[list[int], float]:
    """Points of its alarms, and the processor time it took, in seconds."""
    next(RIVALS[name][1](values, **settings))  # imports are no part of the time
    start = time.process_time()
    points = [i for i, flag in enumerate(RIVALS[name][1](values, **settings)) if flag]
    return points, time.process_time() - start


def main() -> None:
    """Answer `{"name": …}` with whether it is there, and with `values` by its alarms."""
    for line in sys.stdin:
        question = json.loads(line)
        answer: dict = {"installed": is_installed(question["name"])}
        if "values" in question:
            points, seconds = alarms(question["name"], question["values"], question["settings"])
            answer |= {"alarms": points, "seconds": seconds}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
