"""Distances and angles of weights, against loops over single weights; sketches by their error."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from phasewatch.monitor.core.errors import MeasurementError, RefusedError
from phasewatch.monitor.core.estimates import EstimateStatus
from phasewatch.monitor.isolation import measure_context
from phasewatch.monitor.observables.weights import positions
from phasewatch.monitor.observables.weights.distance_from_init import DistanceFromInit
from phasewatch.monitor.observables.weights.distance_moved import DistanceMoved
from phasewatch.monitor.observables.weights.norms import MAX_GROUPS
from phasewatch.monitor.observables.weights.update_angle import UpdateAngle

EVERY = (DistanceFromInit, DistanceMoved, UpdateAngle)


def network(seed: int = 0, size: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, size), nn.Linear(size, 2))


def measured(observable, model: nn.Module, step: int):
    return {o.name: o for o in observable.measure(measure_context(model, step=step))}


def weights_of(model: nn.Module) -> dict[str, list[float]]:
    """Single weights by group, and all of them under the empty name."""
    groups: dict[str, list[float]] = {"": []}
    for name, parameter in model.named_parameters():
        entries = parameter.detach().double().reshape(-1).tolist()
        groups.setdefault(name.partition(".")[0], []).extend(entries)
        groups[""].extend(entries)
    return groups


def length(vector: list[float]) -> float:
    return math.sqrt(sum(x * x for x in vector))


def differences(first: list[float], second: list[float]) -> list[float]:
    return [b - a for a, b in zip(first, second, strict=True)]


def test_the_distance_from_init_is_summed_over_single_weights() -> None:
    start, now = network(0), network(1)
    observable = DistanceFromInit()
    observable.check(measure_context(start, step=0))
    found = measured(observable, now, 5)
    before, after = weights_of(start), weights_of(now)
    assert len(found) == 2 * len(before)
    for group, vector in before.items():
        name = f"/{group}" if group else ""
        moved = length(differences(vector, after[group]))
        total, relative = (found[f"distance_from_init{kind}{name}"] for kind in ("", "_relative"))
        assert (total.value, total.unit) == (pytest.approx(moved), "weight")
        assert (relative.value, relative.unit) == (pytest.approx(moved / length(vector)), "1")
        assert total.stderr is None is relative.stderr
        assert total.status == relative.status == "ok"


def test_where_nothing_was_checked_the_start_is_the_first_measurement() -> None:
    observable = DistanceFromInit()
    assert measured(observable, network(0), 7)["distance_from_init"].value == 0.0
    assert measured(observable, network(1), 8)["distance_from_init"].value > 1.0


def test_what_began_at_zero_has_no_relative_distance() -> None:
    model = network()
    nn.init.zeros_(model[1].weight), nn.init.zeros_(model[1].bias)
    observable = DistanceFromInit()
    observable.check(measure_context(model, step=0))
    found = measured(observable, network(1), 1)["distance_from_init_relative/1"]
    assert (found.status, found.value) == (EstimateStatus.DIVERGED, math.inf)
    assert found.reason == "its weights began at zero"


def test_the_distance_moved_is_that_from_the_last_measurement() -> None:
    models = [network(seed) for seed in range(3)]
    observable = DistanceMoved()
    observable.check(measure_context(models[0], step=0))
    for step in (1, 2):
        found = measured(observable, models[step], step)
        before, after = weights_of(models[step - 1]), weights_of(models[step])
        assert {name: o.value for name, o in found.items()} == {
            f"distance_moved/{group}".rstrip("/"): pytest.approx(
                length(differences(before[group], after[group]))
            )
            for group in before
        }
    assert measured(observable, models[1], 2) == {}  # no step, no distance


def angle_by_hand(first: list[float], second: list[float]) -> float:
    dot = sum(a * b for a, b in zip(first, second, strict=True))
    return math.acos(dot / (length(first) * length(second)))


def test_the_angle_is_that_between_successive_displacements() -> None:
    models = [network(seed) for seed in range(4)]
    observable = UpdateAngle()
    observable.check(measure_context(models[0], step=0))
    assert measured(observable, models[1], 1) == {}
    for step in (2, 3):
        found = measured(observable, models[step], step)
        old, last, now = (weights_of(models[step - back]) for back in (2, 1, 0))
        for group in old:
            expected = angle_by_hand(
                differences(old[group], last[group]), differences(last[group], now[group])
            )
            one = found[f"update_angle/{group}".rstrip("/")]
            assert (one.value, one.unit, one.stderr) == (pytest.approx(expected), "rad", None)


@pytest.mark.parametrize(("turn", "angle"), [(1.0, 0.0), (-0.5, math.pi)])
def test_straight_on_is_no_angle_and_back_is_half_a_turn(turn, angle) -> None:
    model, observable = network(), UpdateAngle()
    step = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    for at, length_ in enumerate((0.0, 1.0, turn)):
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.add_(length_ * step[name])
        found = measured(observable, model, at)
    # Rounding of the weights in float32 turns the displacement by about 1e-7.
    assert found["update_angle"].value == pytest.approx(angle, abs=1e-5)


def test_what_stood_still_has_no_angle() -> None:
    model, observable = network(), UpdateAngle()
    for step in range(3):
        with torch.no_grad():
            model[0].weight += step * torch.ones_like(model[0].weight)
        found = measured(observable, model, step)
    assert found["update_angle/0"].value == pytest.approx(0.0, abs=1e-3)
    still = found["update_angle/1"]
    assert math.isnan(still.value)
    assert (still.status, still.reason) == (EstimateStatus.DIVERGED, "the weights did not move")


@pytest.mark.parametrize("kind", EVERY)
def test_a_model_that_is_not_trained_is_refused(kind) -> None:
    with pytest.raises(RefusedError, match="trainable parameters; the model has none"):
        kind().check(measure_context(network().requires_grad_(False), step=0))


@pytest.mark.parametrize("kind", EVERY)
def test_weights_that_are_not_finite_are_said(kind) -> None:
    model = network()
    with torch.no_grad():
        model[1].bias[0] = math.inf
    with pytest.raises(MeasurementError, match="a weight of 1 is not finite"):
        kind().measure(measure_context(model, step=1))


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kind", EVERY)
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(kind, exact, monkeypatch) -> None:
    monkeypatch.setattr(positions, "EXACT", 10**6 if exact else 1)
    models = [network(seed).double() for seed in range(4)]
    whole, resumed = kind(), kind()
    for step in range(3):
        measured(whole, models[step], step)
    state = json.loads(json.dumps(whole.state_dict()))
    given = copy.deepcopy(state)
    resumed.load_state_dict(state)
    assert state == given
    assert resumed.state_dict() == given
    resumed.check(measure_context(models[3], step=2))  # brings nothing of its own
    found = measured(resumed, models[3], 3)
    assert found == measured(whole, models[3], 3)
    assert found


@pytest.mark.parametrize("kind", EVERY)
def test_a_model_of_other_groups_starts_afresh(kind) -> None:
    observable = kind()
    for step in range(3):
        measured(observable, network(), step)
    found = measured(observable, nn.Linear(3, 3), 3)
    assert {o.value for o in found.values()} <= {0.0}


def test_positions_are_bounded_in_number_and_size() -> None:
    many = nn.ModuleList(nn.Linear(2, 2) for _ in range(MAX_GROUPS + 9))
    observable = DistanceMoved()
    measured(observable, many, 1)
    assert len(measured(observable, many, 2)) == MAX_GROUPS + 2  # and the rest, and the total
    large = nn.Linear(1024, 512)
    for step in range(3):
        measured(observable, large, 3 + step)
    assert len(json.dumps(observable.state_dict())) < 5 * 2 * positions.WIDTH * 4


def test_sketches_are_right_within_their_stated_errors(monkeypatch) -> None:
    """For each stream, the errors of a dozen runs are as large as their standard errors say."""
    off: dict[str, list[float]] = {}
    for seed in range(12):
        models = [network(1000 + seed, 3000)]
        for turn in range(2):
            torch.manual_seed(100 * seed + turn)
            models.append(copy.deepcopy(models[-1]))
            with torch.no_grad():
                for p in models[-1].parameters():
                    p.add_(0.01 * (torch.randn_like(p) + 0.5))
        found = []
        for limit in (2**18, 1):
            monkeypatch.setattr(positions, "EXACT", limit)
            observables = [kind() for kind in EVERY]
            seen = {}
            for step, model in enumerate(models):
                for observable in observables:
                    seen |= measured(observable, model, step)
            found.append(seen)
        exact, rough = found
        for name, one in rough.items():
            assert exact[name].stderr is None
            assert one.stderr is not None
            assert 0.0 < one.stderr < 0.03 * max(one.value, 1.0)
            off.setdefault(name, []).append((one.value - exact[name].value) / one.stderr)
    assert len(off) == 4 * 3
    for name, errors in off.items():
        assert abs(np.mean(errors)) < 5 / math.sqrt(12), name
        assert np.std(errors) < 1.6, name
    every = np.concatenate(list(off.values()))
    assert 0.5 < np.std(every) < 1.2
