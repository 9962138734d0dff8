"""Superposition: dimensionality, represented features and polygons."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from phasewatch.monitor.core.errors import ConfigError, MeasurementError, RefusedError
from phasewatch.monitor.isolation.context import measure_context
from phasewatch.monitor.observables.toy_models.feature_dimensionality import FeatureDimensionality
from phasewatch.monitor.observables.toy_models.polygon import Polygon, polygon_lambda, polygon_name
from phasewatch.monitor.observables.toy_models.represented_features import RepresentedFeatures
from phasewatch.monitor.sampling.closed_forms import (
    POLYGONS,
    Superposition,
    superposition_case,
)


def ngon(corners, length=1.0, features=None, dtype=torch.float32):
    angles = torch.arange(corners).double() * (2 * math.pi / corners)
    weight = torch.zeros(2, features or corners, dtype=dtype)
    weight[:, :corners] = length * torch.stack([angles.cos(), angles.sin()])
    return weight


def measured(observable, model):
    context = measure_context(model, step=3)
    observable.check(context)
    found = observable.measure(context)
    assert {o.step for o in found} == {3}
    return {o.name: o.value for o in found}


def slow_dimensionality(weight):
    """The definition as it is written, in loops over columns."""
    columns = weight.double().T.tolist()
    result = []
    for one in columns:
        square = sum(v * v for v in one)
        if square == 0:
            result.append(0.0)
            continue
        length = math.sqrt(square)
        overlap = sum(
            sum(v / length * u for v, u in zip(one, other, strict=True)) ** 2 for other in columns
        )
        result.append(square / overlap)
    return result


def test_a_pentagon_is_two_dimensions_shared_by_five() -> None:
    model = Superposition(ngon(5), torch.zeros(5))
    found = measured(FeatureDimensionality(), model)
    parts = [found.pop(f"feature_dimensionality/{i}") for i in range(5)]
    assert parts == pytest.approx([0.4] * 5, abs=1e-6)
    assert found == {"feature_dimensionality": pytest.approx(2.0, abs=1e-6)}
    represented = measured(RepresentedFeatures(), model)
    assert represented["represented_features"] == pytest.approx(5.0, abs=1e-6)
    assert represented["represented_features/count"] == 5


@pytest.mark.parametrize("shape", [(2, 6), (5, 20), (12, 3)])
def test_dimensionality_agrees_with_its_definition_in_loops(shape) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    weight.select(int(shape[0] < shape[1]), 1).zero_()  # a feature that is not represented
    columns = weight if shape[0] < shape[1] else weight.T
    expected = slow_dimensionality(columns)
    model = nn.Linear(shape[1], shape[0], bias=False)
    model.weight.data = weight
    found = measured(FeatureDimensionality(), model)
    assert found.pop("feature_dimensionality") == pytest.approx(sum(expected), rel=1e-9)
    assert list(found.values()) == pytest.approx(expected, rel=1e-9)
    assert sum(expected) <= min(shape) + 1e-9


def test_beyond_32_features_the_rest_is_one_part() -> None:
    model = nn.Linear(40, 3, bias=False)
    found = measured(FeatureDimensionality(), model)
    total = found.pop("feature_dimensionality")
    assert len(found) == 33
    assert sum(found.values()) == pytest.approx(total, rel=1e-12)
    rest = slow_dimensionality(model.weight.detach())[32:]
    assert found["feature_dimensionality/other"] == pytest.approx(sum(rest), rel=1e-9)


def test_nothing_is_represented_by_zeros() -> None:
    model = Superposition(torch.zeros(2, 6), torch.zeros(6))
    assert set(measured(FeatureDimensionality(), model).values()) == {0.0}
    assert set(measured(RepresentedFeatures(), model).values()) == {0.0}
    assert measured(Polygon(), model)["polygon"] == 0


def test_represented_features_count_lengths_above_one_half() -> None:
    weight = torch.diag(torch.tensor([0.49, 0.51, 2.0]))
    model = nn.Linear(3, 3, bias=False)
    model.weight.data = weight
    found = measured(RepresentedFeatures(features="rows"), model)
    assert found["represented_features/count"] == 2
    assert found["represented_features"] == pytest.approx(0.49**2 + 0.51**2 + 4.0, rel=1e-6)


@pytest.mark.parametrize("corners", [3, 4, 5, 6, 9])
def test_polygons_are_recognised_whatever_their_turn_and_order(corners) -> None:
    turn = torch.linalg.qr(torch.randn(2, 2, generator=torch.Generator().manual_seed(1))).Q
    weight = turn @ ngon(corners, 1.3, features=corners + 2)
    weight = weight[:, torch.randperm(corners + 2, generator=torch.Generator().manual_seed(2))]
    assert (
        measured(Polygon(), Superposition(weight, torch.zeros(corners + 2)))["polygon"] == corners
    )


@pytest.mark.parametrize(
    "spoil",
    [
        lambda w: w[:, 0].mul_(1.3),  # a longer corner
        lambda w: w[:, 0].mul_(0.45),  # a corner fewer: the gap is too wide
        lambda w: w[:, 0].copy_(0.5 * (w[:, 0] + w[:, 1])),  # a corner out of its place
        lambda w: w[1].zero_(),  # all on a line
    ],
)
def test_what_is_no_regular_polygon_is_none(spoil) -> None:
    weight = ngon(5)
    spoil(weight)
    assert measured(Polygon(), Superposition(weight, torch.zeros(5)))["polygon"] == 0


def test_an_uneven_polygon_is_recognised_within_the_tolerance() -> None:
    weight = ngon(5)
    weight[:, 0] *= 1.05
    model = Superposition(weight, torch.zeros(5))
    assert measured(Polygon(), model)["polygon"] == 5
    assert measured(Polygon(tolerance=0.03), model)["polygon"] == 0


@pytest.mark.parametrize("known", POLYGONS, ids=lambda p: p.name)
def test_the_polygons_of_the_paper_carry_their_closed_form(known) -> None:
    found = measured(Polygon(), superposition_case(known).model)
    positive = int(known.corners < 6 and known.other_bias > 0)
    assert found == {
        "polygon": known.corners,
        "polygon/positive": positive,
        "polygon/negative": 6 - known.corners - positive,
        "polygon/llc": known.truth,
    }
    assert polygon_name(known.corners, positive) == known.name.replace("-gon", "").replace("+", "⁺")


def critical_point(corners, positive, dead):
    """Regular k-gon of least loss among those of its symmetry, float64; and its inputs."""
    features = corners + positive + dead
    values = (torch.arange(60, dtype=torch.float64) + 0.5) / 60
    x = torch.kron(torch.eye(features, dtype=torch.float64), values[:, None])
    left = torch.tensor([values.mean() / features] * positive + [-5.0] * dead).double()

    def at(shape):
        weight = ngon(corners, shape[0], features, torch.float64)
        return weight, torch.cat([torch.full((corners,), shape[1]).double(), left])

    found = minimize(
        lambda shape: float(loss(x, *at(shape))), (1.2, -0.5), method="Nelder-Mead", tol=1e-10
    )
    return x, *at(found.x)


def loss(x, weight, bias):
    return (torch.relu(x @ weight.T @ weight + bias) - x).square().sum(dim=1).mean()


@pytest.mark.parametrize(
    ("corners", "positive", "dead"), [(5, 0, 0), (5, 0, 1), (5, 1, 0), (6, 0, 0), (7, 0, 0)]
)
def test_the_closed_form_is_half_the_rank_of_the_hessian(corners, positive, dead) -> None:
    x, weight, bias = critical_point(corners, positive, dead)
    num = weight.numel()

    def of(flat):
        return loss(x, flat[:num].reshape(weight.shape), flat[num:])

    flat = torch.cat([weight.reshape(-1), bias]).requires_grad_()
    gradient = torch.autograd.functional.jacobian(of, flat)
    assert float(gradient.abs().max()) < 1e-6
    curvature = torch.linalg.eigvalsh(torch.autograd.functional.hessian(of, flat))
    assert polygon_lambda(corners, positive) == int((curvature > 1e-5).sum()) / 2
    assert float(curvature.min()) > -1e-5  # a minimum


def test_squares_have_no_closed_form() -> None:
    found = measured(Polygon(), Superposition(ngon(4, features=6), torch.full((6,), -1.0)))
    assert found == {"polygon": 4, "polygon/positive": 0, "polygon/negative": 2}


def test_a_left_over_feature_that_is_not_dead_has_no_closed_form() -> None:
    weight = ngon(5, 1.17, features=6)
    weight[0, 5] = 0.4
    bias = torch.full((6,), -0.28)
    assert "polygon/llc" not in measured(Polygon(), Superposition(weight, bias))
    bias[5] = -0.4 * 1.17 - 0.01
    assert measured(Polygon(), Superposition(weight, bias))["polygon/llc"] == 7.0


def test_without_biases_only_the_corners_are_told() -> None:
    model = nn.Linear(6, 2, bias=False)
    model.weight.data = ngon(6)
    assert measured(Polygon(), model) == {"polygon": 6}


class Tied(nn.Module):
    """Two matrices, and a bias that is not trained."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(5, 2, bias=False)
        self.encode.weight.data = ngon(5)
        self.other = nn.Linear(4, 4)
        self.bias = nn.Parameter(torch.zeros(5), requires_grad=False)


@pytest.mark.parametrize("name", ["encode", "encode.weight"])
def test_a_matrix_is_found_by_name_and_a_frozen_bias_too(name) -> None:
    model = Tied()
    assert measured(Polygon(name, "bias"), model)["polygon"] == 5
    model.requires_grad_(False)
    assert measured(FeatureDimensionality(name), model)["feature_dimensionality"] == (
        pytest.approx(2.0)
    )


@pytest.mark.parametrize(
    ("observable", "words"),
    [
        (Polygon(), r"polygon: looked for the one weight matrix .* has 2: encode.weight \(2, 5\)"),
        (Polygon("coder"), r"looked for the parameter 'coder'; the model has encode.weight"),
        (Polygon("other.bias"), r"'other.bias' has the shape \(4,\); needed is a matrix"),
        (Polygon("other", features="rows"), "two real hidden dimensions; 4 are there"),
        (Polygon("encode", "other.bias"), "needed is one bias for each of 5 features"),
        (FeatureDimensionality("other"), 'is square, .* say features="rows" or'),
    ],
)
def test_what_the_model_lacks_is_said_before_the_first_step(observable, words) -> None:
    with pytest.raises(RefusedError, match=words):
        observable.check(measure_context(Tied(), step=0))


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match='features is \'both\'; it must be "rows" or "columns"'):
        FeatureDimensionality(features="both")
    with pytest.raises(ConfigError, match="tolerance is 0"):
        Polygon(tolerance=0)


@pytest.mark.parametrize("make", [FeatureDimensionality, RepresentedFeatures, Polygon])
def test_weights_that_are_not_finite_are_no_number(make) -> None:
    weight = ngon(5)
    weight[0, 0] = math.nan
    with pytest.raises(MeasurementError, match="is not finite"):
        measured(make(), Superposition(weight, torch.zeros(5)))


def test_bf16_is_measured_in_float64_and_complex_by_its_modulus() -> None:
    model = Superposition(ngon(5), torch.zeros(5)).bfloat16()
    assert measured(Polygon(), model)["polygon"] == 5
    assert measured(FeatureDimensionality(), model)["feature_dimensionality"] == pytest.approx(
        sum(slow_dimensionality(model.weight.detach())), rel=1e-12
    )
    model = nn.Linear(4, 2, bias=False, dtype=torch.complex64)
    found = measured(FeatureDimensionality(), model)
    weight = model.weight.detach().to(torch.complex128)
    for i, j in itertools.product(range(4), repeat=2):
        assert i == j or abs(torch.vdot(weight[:, i], weight[:, j])) > 0
    gram = (weight.mH @ weight).abs()
    expected = gram.diagonal().square() / gram.square().sum(dim=1)
    assert found["feature_dimensionality"] == pytest.approx(float(expected.sum()), rel=1e-9)
    with pytest.raises(RefusedError, match="they are complex"):
        Polygon().check(measure_context(model, step=0))
