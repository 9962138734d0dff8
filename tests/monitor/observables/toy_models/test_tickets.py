"""Magnitude masks and what they keep, against loops over single weights."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from phasewatch.monitor.core.errors import ConfigError, MeasurementError, RefusedError
from phasewatch.monitor.isolation import measure_context
from phasewatch.monitor.observables.toy_models import magnitude_masks, mask_overlap
from phasewatch.monitor.observables.toy_models.kept_weights import KeptWeights
from phasewatch.monitor.observables.toy_models.magnitude_masks import magnitude_mask
from phasewatch.monitor.observables.toy_models.mask_overlap import (
    MaskOverlap,
    chance_level,
    jaccard,
)


def network(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 9), nn.LayerNorm(9), nn.Linear(9, 5)).to(
        dtype
    )


def values_of(observable, model: nn.Module, step: int = 1) -> dict[str, float]:
    found = observable.measure(measure_context(model, step=step))
    assert all(o.status == "ok" and o.stderr is None and o.step == step for o in found)
    return {o.name: o.value for o in found}


def kept_by_hand(model: nn.Module, keep: float) -> list[bool]:
    """Sort all weights of all matrices; keep those above the k-th smallest."""
    sizes = [
        abs(weight)
        for parameter in model.parameters()
        if parameter.dim() >= 2
        for weight in parameter.detach().reshape(-1).tolist()
    ]
    pruned = int((1 - keep) * len(sizes) + 1e-9)
    edge = sorted(sizes)[pruned - 1] if pruned else -1.0
    return [size > edge for size in sizes]


def overlap_by_hand(first: nn.Module, second: nn.Module, keep: float) -> float:
    ones, twos = kept_by_hand(first, keep), kept_by_hand(second, keep)
    both = sum(a and b for a, b in zip(ones, twos, strict=True))
    either = sum(a or b for a, b in zip(ones, twos, strict=True))
    return both / either


@pytest.mark.parametrize("keep", [0.02, 0.4, 0.9, 0.999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_overlap_is_that_of_sorted_weights(keep, dtype) -> None:
    first, second, third = (network(seed, dtype) for seed in range(3))
    observable = MaskOverlap(keep)
    chance = pytest.approx(keep / (2 - keep))
    assert values_of(observable, first, 1) == {"mask_overlap/chance": chance}
    assert values_of(observable, second, 2) == {
        "mask_overlap": pytest.approx(overlap_by_hand(first, second, keep)),
        "mask_overlap/reference": pytest.approx(overlap_by_hand(first, second, keep)),
        "mask_overlap/chance": chance,
    }
    assert values_of(observable, third, 3) == {
        "mask_overlap": pytest.approx(overlap_by_hand(second, third, keep)),
        "mask_overlap/reference": pytest.approx(overlap_by_hand(first, third, keep)),
        "mask_overlap/chance": chance,
    }


def test_the_reference_is_the_first_measurement_at_its_step_or_later() -> None:
    models = {step: network(step) for step in (1, 4, 6, 9)}
    observable = MaskOverlap(0.3, reference=5)
    seen = {step: values_of(observable, model, step) for step, model in models.items()}
    assert [step for step in seen if "mask_overlap/reference" in seen[step]] == [9]
    expected = overlap_by_hand(models[6], models[9], 0.3)
    assert seen[9]["mask_overlap/reference"] == pytest.approx(expected)


def test_a_mask_is_not_compared_with_one_of_the_same_step() -> None:
    observable = MaskOverlap()
    values_of(observable, network(), 3)
    assert set(values_of(observable, network(), 3)) == {"mask_overlap/chance"}


def test_random_masks_overlap_by_chance() -> None:
    random = torch.Generator().manual_seed(0)
    for keep in (0.1, 0.4, 0.8):
        first, second = (
            magnitude_mask(torch.rand(40_000, generator=random), keep).numpy() for _ in range(2)
        )
        assert jaccard(first, second) == pytest.approx(chance_level(keep), abs=0.01)


def test_of_weights_as_large_as_the_edge_none_is_kept() -> None:
    sizes = torch.tensor([3.0, 1.0, 2.0, 2.0, 2.0])
    assert magnitude_mask(sizes, 0.6).tolist() == [True, False, False, False, False]
    assert magnitude_mask(sizes, 0.999).tolist() == [True] * 5
    assert magnitude_mask(torch.arange(10.0), 0.9).sum() == 9  # (1 - 0.9) * 10 rounds to below 1


def test_pruned_networks_have_no_mask_in_common() -> None:
    empty = np.zeros(4, dtype=bool)
    assert math.isnan(jaccard(empty, empty))


@pytest.mark.parametrize("keep", [0.05, 0.4])
def test_kept_weights_are_sums_over_single_weights(keep) -> None:
    model = network(3)
    weights = [
        weight
        for parameter in model.parameters()
        if parameter.dim() >= 2
        for weight in parameter.detach().reshape(-1).tolist()
    ]
    kept = kept_by_hand(model, keep)

    def norms(chosen: list[float]) -> tuple[float, float]:
        return sum(map(abs, chosen)), math.sqrt(sum(w * w for w in chosen))

    l1, l2 = norms(weights)
    l1_kept, l2_kept = norms([w for w, k in zip(weights, kept, strict=True) if k])
    l1_pruned, l2_pruned = norms([w for w, k in zip(weights, kept, strict=True) if not k])
    assert values_of(KeptWeights(keep), model) == {
        "kept_weights": pytest.approx(l2_kept),
        "kept_weights/l1_kept": pytest.approx(l1_kept),
        "kept_weights/l2_pruned": pytest.approx(l2_pruned),
        "kept_weights/l1_pruned": pytest.approx(l1_pruned),
        "kept_weights/l2": pytest.approx(l2),
        "kept_weights/l1": pytest.approx(l1),
        "kept_weights/sparsity": pytest.approx(1 - sum(kept) / len(kept)),
    }


def test_the_size_of_a_complex_weight_is_its_modulus() -> None:
    model = nn.Module()
    model.weight = nn.Parameter(torch.tensor([[3 + 4j, 1j], [-2 + 0j, 0.6 - 0.8j]]))
    values = values_of(KeptWeights(0.5), model)
    assert values["kept_weights"] == pytest.approx(math.sqrt(25 + 4))
    assert values["kept_weights/l1_pruned"] == pytest.approx(2.0)


def test_only_the_named_matrices_are_ranked() -> None:
    model = network()
    values = values_of(KeptWeights(parameters=["1.*"]), model)
    assert values["kept_weights/l2"] == pytest.approx(float(model[1].weight.detach().norm()))


@pytest.mark.parametrize("keep", [0.0, 1.0, 40, math.nan])
def test_a_share_that_is_none_is_refused(keep) -> None:
    with pytest.raises(ConfigError, match="must be a share of the weights, in"):
        MaskOverlap(keep)


def test_a_model_without_matrices_is_refused() -> None:
    context = measure_context(nn.LayerNorm(4), step=0)
    with pytest.raises(RefusedError, match="two or more dimensions; the model has none"):
        KeptWeights().check(context)
    with pytest.raises(RefusedError, match=r"'head\.\*', which matches none of 0.weight, 1.weight"):
        MaskOverlap(parameters="head.*").check(measure_context(network(), step=0))


def test_weights_that_are_not_finite_are_said() -> None:
    model = network()
    with torch.no_grad():
        model[1].weight[0, 0] = math.nan
    with pytest.raises(MeasurementError, match="a weight is not finite"):
        KeptWeights().measure(measure_context(model, step=1))


def test_a_resumed_run_compares_with_the_masks_it_had() -> None:
    first, second, third = (network(seed) for seed in range(3))
    whole = MaskOverlap(0.3)
    values_of(whole, first, 1), values_of(whole, second, 2)
    state = json.loads(json.dumps(whole.state_dict()))
    given = copy.deepcopy(state)
    resumed, other = MaskOverlap(0.3), MaskOverlap(0.5)
    for observable in (resumed, other):
        observable.load_state_dict(state)
    assert state == given
    assert resumed.state_dict() == whole.state_dict()
    assert set(values_of(other, third, 3)) == {"mask_overlap/chance"}
    assert values_of(resumed, third, 3) == values_of(whole, third, 3)
    num_weights = sum(p.numel() for p in first.parameters() if p.dim() >= 2)
    assert len(json.dumps(state)) < 2 * num_weights / 6 + 200  # base64: six bits in each byte


def test_a_network_of_another_size_starts_afresh() -> None:
    observable = MaskOverlap()
    values_of(observable, network(), 1)
    assert set(values_of(observable, nn.Linear(3, 4), 2)) == {"mask_overlap/chance"}
    again = values_of(observable, nn.Linear(3, 4), 3)
    assert set(again) == {"mask_overlap", "mask_overlap/reference", "mask_overlap/chance"}


def test_of_a_large_network_a_sample_is_ranked_with_its_error(monkeypatch) -> None:
    random = torch.Generator().manual_seed(0)
    errors = {"mask_overlap": [], "kept_weights": [], "kept_weights/l1_pruned": []}
    stated: dict[str, list[float]] = {name: [] for name in errors}
    for _ in range(30):
        first, second = nn.Linear(120, 90), nn.Linear(120, 90)
        with torch.no_grad():
            first.weight.copy_(torch.randn(90, 120, generator=random))
            second.weight.copy_(first.weight + 0.3 * torch.randn(90, 120, generator=random))
        exact, rough = {}, {}
        for limit, into in ((2**23, exact), (1000, rough)):
            monkeypatch.setattr(magnitude_masks, "LARGEST", limit)
            overlap, kept = MaskOverlap(), KeptWeights()
            overlap.measure(measure_context(first, step=1))
            for observable in (overlap, kept):
                found = observable.measure(measure_context(second, step=2))
                into.update({o.name: o for o in found})
        for name in errors:
            assert exact[name].stderr is None
            errors[name].append(rough[name].value - exact[name].value)
            stated[name].append(rough[name].stderr)
    for name, seen in errors.items():
        typical = float(np.mean(stated[name]))
        assert abs(np.mean(seen)) < 4 * typical / math.sqrt(30), name
        assert 0.5 < float(np.std(seen)) / typical < 1.5, name


def test_the_sample_walks_over_all_columns(monkeypatch) -> None:
    monkeypatch.setattr(magnitude_masks, "LARGEST", 16 * 64 // 4)
    assert magnitude_masks.stride_of(16 * 64) == 5  # 4 would see every fourth column only
    assert magnitude_masks.stride_of(256) == 1
    seen = []
    look = lambda sizes, _: seen.append(sizes) or sizes > 0  # noqa: E731
    monkeypatch.setattr(mask_overlap, "magnitude_mask", look)
    model = nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 64))
    with torch.no_grad():
        model[0].weight.copy_(1.0 + torch.arange(512.0).reshape(8, 64))
        model[1].weight.copy_(513.0 + torch.arange(512.0).reshape(64, 8))
    MaskOverlap().measure(measure_context(model, step=1))
    assert seen[0].tolist() == list(np.arange(1.0, 1025.0, 5.0))
