"""Broadness against closed forms: quadratics, and singular minima whose λ is known."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from phasewatch.monitor.core.errors import ConfigError, MeasurementError, RefusedError
from phasewatch.monitor.core.estimates import EstimateStatus
from phasewatch.monitor.isolation import measure_context
from phasewatch.monitor.observables.curvature.basin import BasinBroadness, crossing
from phasewatch.monitor.sampling.closed_forms import Monomial, Quadratic, plain_loss, squared_error

DATA = (torch.zeros(4, 1, dtype=torch.float64), torch.zeros(4, 1, dtype=torch.float64))


def measured(observable, model, batch=DATA[0], loss_fn=plain_loss, **fields):
    context = measure_context(model.double(), step=3, loss_fn=loss_fn, batches=[batch], seed=1)
    return {one.name: one for one in observable.measure(replace(context, **fields))}


def test_the_rise_on_a_round_quadratic_is_half_its_curvature_times_the_radius_squared():
    found = measured(BasinBroadness(radius=0.5), Quadratic([3.0] * 5))["basin_broadness"]
    assert found.value == pytest.approx(0.5 * 3.0 * 0.25)
    assert found.stderr == pytest.approx(0.0, abs=1e-9)
    assert (found.unit, found.status) == ("nats", EstimateStatus.OK)


def test_the_mean_rise_on_a_quadratic_is_the_trace_over_d():
    curvatures = [8.0, 4.0, 2.0, 1.0, 0.0]
    found = measured(BasinBroadness(radius=0.5, num_rays=64), Quadratic(curvatures))
    rise = found["basin_broadness"]
    assert rise.value == pytest.approx(0.125 * sum(curvatures) / 5, abs=3 * rise.stderr)
    assert 0 < rise.stderr < 0.2 * rise.value


def test_the_volume_of_a_round_quadratic_is_that_of_its_ball():
    # K < c inside the radius √(2c/h) = 0.2: (0.2/0.5)⁴ of the ball of radius 0.5.
    observable = BasinBroadness(radius=0.5, threshold=0.04)
    found = measured(observable, Quadratic([2.0] * 4))
    assert found["basin_broadness/log_volume"].value == pytest.approx(4 * math.log(0.4))
    assert found["basin_broadness/slope"].value == pytest.approx(2.0)  # d/2
    assert found["basin_broadness/slope"].status is EstimateStatus.OK


def volume_by_darts(loss, radius, threshold, num=400_000):
    """Share of uniform points of the disc at which the loss is below the threshold."""
    random = np.random.default_rng(5)
    points = random.uniform(-radius, radius, (num, 2))
    points = points[(points**2).sum(axis=1) < radius**2]
    return (loss(points) < threshold).mean()


@pytest.mark.parametrize(
    ("exponents", "loss"),
    [((1, 0), lambda w: w[:, 0] ** 2), ((1, 1), lambda w: (w[:, 0] * w[:, 1]) ** 2),
     ((2, 1), lambda w: w[:, 0] ** 4 * w[:, 1] ** 2)],
)  # fmt: skip
def test_volume_and_slope_of_singular_minima_are_those_of_darts(exponents, loss):
    radius, threshold = 1.0, 0.01
    found = measured(
        BasinBroadness(radius=radius, threshold=threshold, num_rays=64),
        Monomial(exponents), DATA, squared_error,
    )  # fmt: skip
    low, mid, high = (volume_by_darts(loss, radius, c * threshold) for c in (0.5, 1.0, 2.0))
    volume, slope = found["basin_broadness/log_volume"], found["basin_broadness/slope"]
    assert volume.status is EstimateStatus.OK
    assert volume.value == pytest.approx(math.log(mid), abs=3 * volume.stderr)
    assert slope.value == pytest.approx(math.log(high / low) / math.log(4), abs=3 * slope.stderr)
    assert slope.stderr < 0.2


def test_many_uneven_dimensions_are_marked_for_rays_miss_the_broadest():
    found = measured(BasinBroadness(radius=1.0), Quadratic(list(np.geomspace(1, 1e4, 300))))
    assert found["basin_broadness"].status is EstimateStatus.OK
    for part in ("log_volume", "slope"):
        one = found[f"basin_broadness/{part}"]
        assert one.status is EstimateStatus.UNCONVERGED
        assert "of 16 rays" in one.reason


def test_a_loss_that_hardly_rises_asks_for_a_larger_radius():
    found = measured(BasinBroadness(radius=0.001), Quadratic([1.0, 1.0]))
    assert "raise radius=" in found["basin_broadness/slope"].reason


def test_the_radius_is_a_tenth_of_the_norm_where_none_is_given():
    found = measured(BasinBroadness(), Quadratic([2.0] * 4, center=1.0))
    model = Quadratic([2.0] * 4, center=1.0).double()
    given = measured(BasinBroadness(radius=0.1 * math.sqrt(4)), model)
    assert found["basin_broadness"].value == given["basin_broadness"].value


def test_weights_that_are_all_zero_need_a_radius():
    with pytest.raises(MeasurementError, match="give radius="):
        measured(BasinBroadness(), Quadratic([1.0]))


def test_the_deadline_leaves_rays_out():
    found = measured(BasinBroadness(radius=0.5), Quadratic([1.0, 4.0]), deadline_seconds=0.0)
    assert found["basin_broadness"].stderr > 0  # of two rays


def test_no_gradient_is_taken(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError

    monkeypatch.setattr(torch.autograd, "grad", refuse)
    monkeypatch.setattr(torch.Tensor, "backward", refuse)
    measured(BasinBroadness(radius=0.5), Quadratic([1.0, 4.0]))


@pytest.mark.parametrize(
    ("rises", "expected"),
    [
        ([4.0, 1.0, 0.25], math.log(0.5)),  # the rise is the radius squared times 4
        ([0.5, 0.1, 0.0], 0.0),  # never that high
        ([math.nan, 4.0, 0.25], math.log(0.5**1.5)),  # beyond a cliff: power law inside it
        ([4.0, -1.0, -2.0], 0.5 * math.log(0.5)),  # not a minimum: between the two
    ],
)
def test_a_crossing_is_interpolated_as_a_power(rises, expected):
    radii = np.array([1.0, 0.5, 0.25])
    level = 1.0 if rises[0] != 0.5 else 2.0
    assert crossing(np.array(rises), radii, level) == pytest.approx(expected)


def test_without_a_loss_there_is_no_basin():
    context = measure_context(nn.Linear(2, 1), step=0, batches=[torch.zeros(3, 2)])
    with pytest.raises(RefusedError, match="loss_fn="):
        BasinBroadness().check(context)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"radius": 0.0}, "radius is 0.0; give a number above 0"),
        ({"threshold": -1.0}, "threshold is -1.0; give a number above 0"),
        ({"num_rays": 1}, "num_rays is 1; give 2 to 64"),
    ],
)
def test_wrong_arguments_are_said(options, said):
    with pytest.raises(ConfigError, match=said):
        BasinBroadness(**options)
