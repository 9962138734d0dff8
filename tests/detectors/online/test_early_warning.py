"""Critical slowing down: seen where it is, and seldom where it is not."""

from __future__ import annotations

import numpy as np
import pytest

from phasewatch.detectors import AlarmKind
from phasewatch.detectors.online.early_warning import Precursor
from support.curves import autoregressive, feed, power_law


def slowing(num: int, seed: int, until: float = 0.95):
    """An AR(1) stream whose memory goes from 0 to `until`, with unit shocks, about 10."""
    shocks = 0.01 * np.random.default_rng(seed).standard_normal(num)
    x, values = 0.0, []
    for i, shock in enumerate(shocks):
        x = until * i / num * x + (1.0 + 2.0 * i / num) * shock
        values.append(10.0 + x)
    return values


def test_a_stream_that_slows_down_is_suspected_once_or_twice() -> None:
    found = [feed(Precursor(), slowing(400, seed)) for seed in range(20)]
    assert sum(bool(alarms) for alarms in found) >= 8  # 11 of 20
    assert max(map(len, found)) <= 2
    (alarm, *_) = next(alarms for alarms in found if alarms)
    assert alarm.kind is AlarmKind.PRECURSOR
    assert alarm.detected_step - alarm.onset_step == 12 * 16 - 1
    assert alarm.score >= 1.0


@pytest.mark.parametrize("phi", [0.0, 0.6, 0.9])
def test_noise_that_stays_as_it_is_is_seldom_suspected(phi) -> None:
    loss = power_law(20_000) * 10.0 ** autoregressive(20_000, phi, 0.03, 7)
    assert len(feed(Precursor(), loss)) <= 4  # blocks: 1250


def test_fluctuations_that_grow_without_slowing_down_are_no_precursor() -> None:
    alarms = 0
    for seed in range(20):
        noise = np.random.default_rng(seed).standard_normal(400)
        alarms += len(feed(Precursor(), 10.0 + 0.01 * noise * np.linspace(1.0, 1.3, 400)))
    assert alarms == 0


def test_a_smooth_curve_and_a_constant_one_are_not_suspected() -> None:
    assert feed(Precursor(), power_law(2000)) == []
    assert feed(Precursor(), np.ones(2000)) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("block", 5), ("blocks", 5), ("threshold", 0.0), ("growth", 0.9)],
)
def test_a_parameter_out_of_its_range_is_refused(name, value) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value!r}, but must be"):
        Precursor(**{name: value})
