"""How far parameter groups moved, from sketches of them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from phasewatch.monitor.observables.weights.displacement import (
    CHUNK,
    RECORDS,
    Displacements,
    sketch,
)
from phasewatch.monitor.observables.weights.weight_norm import WeightNorm

STANDARD_ERROR = 1.0 / math.sqrt(512.0)

SIZE = 128 * 400
INDEX = torch.arange(SIZE)
SHAPES = {
    "everything": lambda seed: torch.randn(SIZE, generator=torch.Generator().manual_seed(seed)),
    "one column": lambda seed: (seed == INDEX % 128).float(),
    "one row": lambda seed: (seed == INDEX // 128).float(),
    "a block": lambda seed: (seed == INDEX // 1000).float(),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_distance_is_right_within_its_stated_error_whatever_moved(shape) -> None:
    errors = []
    for seed in range(40):
        before = torch.randn(SIZE, generator=torch.Generator().manual_seed(1000 + seed))
        step = 0.01 * SHAPES[shape](seed)
        moved = float((sketch([before + step]) - sketch([before])).norm())
        errors.append(moved / float(step.norm()) - 1.0)
    assert abs(np.mean(errors)) < 4.0 * STANDARD_ERROR / math.sqrt(40)
    assert np.std(errors) < 1.5 * STANDARD_ERROR


def test_a_sketch_is_linear_and_knows_tensors_and_chunks_apart() -> None:
    large = torch.ones(CHUNK + 5)
    torch.testing.assert_close(sketch([2.0 * large]), 2.0 * sketch([large]))
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0])
    assert not torch.equal(sketch([first, second]), sketch([second, first]))
    edge = torch.zeros(CHUNK + 5)
    edge[CHUNK] = 1.0
    start = torch.zeros(CHUNK + 5)
    start[0] = 1.0
    assert not torch.equal(sketch([edge]), sketch([start]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_are_only_read_and_nothing_is_drawn(dtype) -> None:
    weights = torch.randn(1000).to(dtype).requires_grad_()
    kept, random = weights.detach().clone(), torch.get_rng_state()
    assert sketch([weights]).requires_grad is False
    assert torch.equal(weights, kept)
    assert torch.equal(torch.get_rng_state(), random)


def walk(steps, speeds):
    """Records of groups that move along a random direction at given speeds a step."""
    generator = torch.Generator().manual_seed(3)
    start = {name: torch.randn(4000, generator=generator) for name in speeds}
    way = {name: torch.randn(4000, generator=generator) for name in speeds}
    far = dict.fromkeys(speeds, 0.0)
    result = Displacements()
    last = steps[0]
    for step in steps:
        for name, speed in speeds.items():
            far[name] += speed(step) * (step - last)
        last = step
        result.record(step, {name: [start[name] + far[name] * way[name]] for name in speeds})
    return result


def test_groups_are_ranked_by_how_much_faster_they_moved_than_before() -> None:
    moved = walk(
        range(0, 2001, 100),
        {
            "always fast": lambda step: 1e-3,
            "woke up": lambda step: 2e-4 if step > 1000 else 2e-5,
            "calmed down": lambda step: 1e-4 if step > 1000 else 2e-4,
            "hardly moves": lambda step: 1e-8 if step > 1000 else 1e-10,
        },
    )
    located = dict(moved.locate(1000, 1500))
    assert list(located) == ["woke up", "always fast", "calmed down", "hardly moves"]
    assert located["woke up"] == pytest.approx(10.0, rel=0.2)
    assert located["calmed down"] == pytest.approx(0.5, rel=0.2)
    assert located["hardly moves"] == pytest.approx(1.0, abs=1.0)


def test_a_short_past_counts_as_if_it_had_gone_on_like_that() -> None:
    moved = walk(range(0, 2001, 100), {"steady": lambda step: 1e-5})
    assert dict(moved.locate(300, 1500))["steady"] == pytest.approx(1.0, rel=0.15)


def test_nothing_is_said_without_records_before_the_onset_and_after_it() -> None:
    moved = walk(range(100, 501, 100), {"net": lambda step: 1e-4})
    assert moved.locate(150, 400) == ()  # nothing before its first record
    assert moved.locate(500, 600) == ()  # nothing after it
    assert len(moved.locate(200, 300)) == 1
    assert Displacements().locate(10, 20) == ()


def test_weights_that_are_not_finite_are_left_out() -> None:
    moved = walk(range(0, 501, 100), {"net": lambda step: 1e-4})
    before = moved.locate(200, 500)
    moved.record(600, {"net": [torch.full((4000,), math.nan)]})
    assert moved.locate(200, 600) == before != ()


def test_memory_is_bounded_and_reaches_back_to_the_beginning() -> None:
    moved = walk(range(20 * RECORDS), {"net": lambda step: 1e-5 if step > 600 else 1e-6})
    steps = moved.state_dict()["steps"]
    assert len(steps) == RECORDS
    assert steps[0] == 0
    ages = steps[-1] - np.array(steps)
    assert (np.diff(steps)[1:-4] <= 0.4 * ages[1:-5]).all()
    assert dict(moved.locate(600, steps[-1]))["net"] == pytest.approx(10.0, rel=0.4)


def test_the_state_goes_through_json_and_answers_as_before() -> None:
    moved = walk(range(0, 501, 100), {"a": lambda step: 1e-4, "b": lambda step: 1e-5})
    again = Displacements()
    again.load_state_dict(json.loads(json.dumps(moved.state_dict())))
    assert again.locate(200, 500) == moved.locate(200, 500)
    assert again.state_dict() == moved.state_dict()


def test_the_weight_norm_records_where_the_groups_are() -> None:
    norm = WeightNorm()
    assert norm.locate(10, 20) == ()
    fresh = WeightNorm()
    fresh.load_state_dict(norm.state_dict())
    assert fresh.state_dict() == norm.state_dict()
