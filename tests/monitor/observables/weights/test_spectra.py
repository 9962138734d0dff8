"""Singular values and effective rank."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from phasewatch.detectors.types import Direction
from phasewatch.monitor.core.errors import ConfigError, MeasurementError, RefusedError
from phasewatch.monitor.core.work import Cost
from phasewatch.monitor.isolation.context import measure_context
from phasewatch.monitor.observables.weights.effective_rank import EffectiveRank
from phasewatch.monitor.observables.weights.singular_values import SingularValues
from phasewatch.monitor.transitions.streams import Streams


def measured(observable, model):
    context = measure_context(model, step=3)
    observable.check(context)
    return {o.name: o.value for o in observable.measure(context)}


def deep(*widths, bias=False, dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Linear(a, b, bias, dtype=dtype) for a, b in itertools.pairwise(widths))
    )


def product(model):
    result = np.eye(model[0].in_features)
    for layer in model:
        result = layer.weight.detach().to(torch.complex128).numpy() @ result
    return result


def streams(values, suffix=""):
    return {f"singular_value_{i}{suffix}": v for i, v in enumerate(values, start=1)}


def close(expected, rel=1e-9):
    return {name: pytest.approx(value, rel=rel, abs=1e-12) for name, value in expected.items()}


@pytest.mark.parametrize("bias", [False, True])
def test_a_deep_linear_network_is_found_and_its_product_measured(bias) -> None:
    model = deep(7, 4, 6, 5, bias=bias)
    expected = np.linalg.svd(product(model), compute_uv=False)[:4]
    assert expected[-1] > 1e-3
    found = measured(SingularValues(top=4), model)
    assert found == close(streams(expected))
    assert measured(SingularValues(["0", "1.weight", "2"], top=4), model) == close(found)
    numeric = SingularValues(input_size=7, top=4)
    assert measured(numeric, model) == close(found, rel=1e-4)
    assert (numeric.cost, SingularValues().cost) == (Cost.FORWARD, Cost.WEIGHTS)


def test_the_map_of_a_convolution_is_measured_by_sending_unit_vectors_through_it() -> None:
    model = nn.Sequential(nn.Unflatten(1, (1, 20)), nn.Conv1d(1, 1, 3, bias=True))
    kernel = model[1].weight.detach().flatten().double().tolist()
    toeplitz = np.zeros((18, 20))
    for row in range(18):
        toeplitz[row, row : row + 3] = kernel
    expected = np.linalg.svd(toeplitz, compute_uv=False)[:5]
    assert measured(SingularValues(input_size=20), model) == close(streams(expected), rel=1e-5)


def test_more_unit_vectors_than_go_in_one_batch() -> None:
    model = deep(600, 3)
    expected = np.linalg.svd(product(model), compute_uv=False)
    found = measured(SingularValues(input_size=600), model)
    assert found == close(streams(expected), rel=1e-4)


def test_chosen_matrices_have_streams_of_their_own() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    model[0].weight.data = torch.diag(torch.tensor([3.0, 1.0, 2.0, 0.0]))[:, :3]
    expected = streams([3.0, 2.0], "_of_0") | streams(
        np.linalg.svd(model[2].weight.detach().double().numpy(), compute_uv=False), "_of_2.weight"
    )
    assert measured(SingularValues(weights=["0", "2.weight"], top=2), model) == close(expected)
    both = measured(SingularValues(["0"], weights=["0"], top=1), model)
    assert both == {"singular_value_1": 3.0, "singular_value_1_of_0": 3.0}


def test_a_resolution_is_the_standard_error_of_each_value() -> None:
    context = measure_context(deep(3, 3, 3), step=0)
    for resolution in (None, 0.03):
        found = SingularValues(resolution=resolution).measure(context)
        assert [o.stderr for o in found] == [resolution] * 3


def learnt(step, rate, delay):
    """Singular value of a two-layer network at step: an S-curve from 1e-8 to 1."""
    return 1.0 / (1.0 + 1e8 * math.exp(-rate * (step - delay)))


def test_each_singular_value_has_a_detector_that_finds_its_s_curve() -> None:
    streams = Streams({})
    alarms = []
    for step in range(5, 1001, 5):
        values = [learnt(step, 0.08, 0), learnt(step, 0.06, 300), 1e-9 * step]
        for i, value in enumerate(values, start=1):
            name = f"singular_value_{i}"
            stream = streams.get(name, 0.03, measured=True)
            alarm = stream.update(step, value, 0.03)
            if alarm is not None:
                alarms.append((name, alarm.onset_step, alarm.direction))
    (first, begin, up), (second, later, again) = alarms
    assert (first, second, up, again) == (
        "singular_value_1",
        "singular_value_2",
        *[Direction.UP] * 2,
    )
    half = math.log(1e8) / 0.08, 300 + math.log(1e8) / 0.06  # steps 230 and 607
    assert half[0] - 60 < begin < half[0]
    assert half[1] - 80 < later < half[1]


def slow_effective_rank(weight):
    values = np.linalg.svd(np.asarray(weight, dtype=np.complex128), compute_uv=False)
    entropy = 0.0
    for value in values:
        p = value / values.sum()
        entropy -= p * math.log(p) if p > 0 else 0.0
    return math.exp(entropy)


def test_effective_rank_of_each_matrix_and_of_the_whole() -> None:
    model = deep(7, 4, 6, 5)
    each = {
        f"effective_rank/{i}.weight": slow_effective_rank(model[i].weight.detach())
        for i in range(3)
    }
    found = measured(EffectiveRank(), model)
    assert found == close(
        {
            "effective_rank": np.mean(list(each.values())),
            "effective_rank_end_to_end": slow_effective_rank(product(model)),
        }
        | each
    )


@pytest.mark.parametrize(
    ("values", "rank"),
    [([2.0, 0.0, 0.0], 1.0), ([0.3] * 3, 3.0), ([0.0] * 3, 0.0), ([1.0, 1.0, 0.0], 2.0)],
)
def test_effective_rank_counts_equal_singular_values(values, rank) -> None:
    model = nn.Linear(3, 3)
    model.weight.data = torch.diag(torch.tensor(values))
    assert measured(EffectiveRank(), model) == close(
        {"effective_rank": rank, "effective_rank/weight": rank}
    )


def test_a_convolution_counts_as_a_matrix_of_its_outputs() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 2), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(20, 1))
    found = measured(EffectiveRank(), model)
    kernel = model[0].weight.detach().reshape(5, 12)
    assert found["effective_rank/0.weight"] == pytest.approx(slow_effective_rank(kernel))
    assert set(found) == {"effective_rank", "effective_rank/0.weight"}


def test_of_many_matrices_the_largest_are_measured() -> None:
    model = nn.ModuleList(nn.Linear(2, width) for width in range(2, 30))
    found = measured(EffectiveRank(), model)
    assert set(found) - {"effective_rank"} == {f"effective_rank/{i}.weight" for i in range(12, 28)}
    chosen = measured(EffectiveRank(weights=["0"]), model)
    assert set(chosen) == {"effective_rank", "effective_rank/0"}


def test_a_chain_is_only_what_has_nothing_but_linear_layers() -> None:
    plain = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Identity(), nn.Linear(4, 3))
    assert "effective_rank_end_to_end" in measured(EffectiveRank(), plain)
    curved = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    assert "effective_rank_end_to_end" not in measured(EffectiveRank(), curved)
    shared = nn.Linear(4, 4)
    assert "effective_rank_end_to_end" not in measured(
        EffectiveRank(), nn.Sequential(shared, shared, nn.Linear(4, 4))
    )
    two = nn.ModuleList([deep(3, 3, 3), deep(3, 3, 3)])
    with pytest.raises(RefusedError, match="the model has none"):
        SingularValues().check(measure_context(two, step=0))


MLP = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize(
    ("observable", "words"),
    [
        (SingularValues(), r"nothing but linear layers; .* it has 0.weight \(8, 4\), 2.weight"),
        (SingularValues(["0", "3"]), r"looked for the parameter '3'; the model has 0.weight"),
        (SingularValues(["2", "0"]), r"0.weight \(8, 4\) cannot follow .* takes 4 .* is given 3"),
        (SingularValues(["0.bias"]), r"'0.bias' has the shape \(8,\); needed is a matrix"),
        (SingularValues(weights=["1"]), "looked for the parameter '1'"),
        (SingularValues(input_size=4), "the model is not linear: of a random input it makes"),
        (SingularValues(input_size=5), r"cannot be called with inputs of shape \(batch, 5\)"),
        (EffectiveRank(["0", "0"]), "cannot follow"),
    ],
)
def test_what_the_model_lacks_is_said_before_the_first_step(observable, words) -> None:
    with pytest.raises(RefusedError, match=words):
        observable.check(measure_context(MLP, step=0))


def test_a_model_without_matrices_has_no_rank() -> None:
    with pytest.raises(RefusedError, match=r"two or more dimensions; the model has weight \(4,\)"):
        EffectiveRank().check(measure_context(nn.BatchNorm1d(4), step=0))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layers": ["0"], "input_size": 3}, "give layers or input_size"),
        ({"layers": "net.0"}, "layers is 'net.0'; it must be a list"),
        ({"layers": []}, "must be a list of names"),
        ({"input_size": 0}, "input_size is 0"),
        ({"weights": "net.0"}, "weights is 'net.0'; it must be a list"),
    ],
)
def test_wrong_arguments_are_refused(arguments, words) -> None:
    for make in (SingularValues, EffectiveRank):
        with pytest.raises(ConfigError, match=words):
            make(**arguments)
    with pytest.raises(ConfigError, match="top is 0"):
        SingularValues(top=0)
    with pytest.raises(ConfigError, match="resolution is -1"):
        SingularValues(resolution=-1.0)


def test_weights_that_are_not_finite_are_no_number() -> None:
    model = deep(3, 3, 3)
    model[1].weight.data[0, 0] = math.inf
    for observable in (SingularValues(), SingularValues(input_size=3), EffectiveRank()):
        with pytest.raises(MeasurementError, match="is not finite"):
            measured(observable, model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64])
def test_narrow_and_complex_models_are_measured_in_double_precision(dtype) -> None:
    model = deep(6, 4, 5, dtype=dtype)
    expected = np.linalg.svd(product(model), compute_uv=False)[:4]
    assert measured(SingularValues(top=4), model) == close(streams(expected))
    numeric = measured(SingularValues(input_size=6, top=4), model)
    assert list(numeric.values()) == pytest.approx(list(expected), rel=0.05)
    assert measured(EffectiveRank(), model)["effective_rank_end_to_end"] == pytest.approx(
        slow_effective_rank(product(model))
    )
    model.requires_grad_(False)
    assert measured(SingularValues(top=4), model) == close(streams(expected))


def test_dropout_and_batch_statistics_do_not_disturb_a_measured_map() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.9), nn.BatchNorm1d(4))
    before = model[2].running_mean.clone()
    found = measured(SingularValues(input_size=4), model)
    expected = np.linalg.svd(product(model[:1]), compute_uv=False) / math.sqrt(1 + 1e-5)
    assert found == close(streams(expected), rel=1e-4)
    assert torch.equal(model[2].running_mean, before)
    assert model.training
