"""Spectral norms against decompositions, dead units against a look at each of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from phasewatch.monitor.core.errors import MeasurementError, RefusedError
from phasewatch.monitor.core.estimates import EstimateStatus
from phasewatch.monitor.isolation import measure_context
from phasewatch.monitor.observables.weights import spectral_norm
from phasewatch.monitor.observables.weights.dead_units import DeadUnits
from phasewatch.monitor.observables.weights.norms import MAX_GROUPS
from phasewatch.monitor.observables.weights.spectral_norm import SpectralNorm


def with_spectrum(rows: int, columns: int, *values: float) -> torch.Tensor:
    """A random matrix with these singular values, all others far below."""
    random = torch.Generator().manual_seed(rows)
    left, _ = torch.linalg.qr(torch.randn(rows, len(values), generator=random))
    right, _ = torch.linalg.qr(torch.randn(columns, len(values), generator=random))
    return left @ torch.diag(torch.tensor(values)) @ right.T


def linear(weight: torch.Tensor) -> nn.Module:
    layer = nn.Linear(*reversed(weight.shape))
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def norms_of(observable: SpectralNorm, model: nn.Module, step: int = 1) -> dict[str, float]:
    found = observable.measure(measure_context(model, step=step, seed=step))
    assert all(o.status == "ok" and o.unit == "weight" for o in found)
    return {o.name: o.value for o in found}


def test_small_matrices_are_decomposed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LayerNorm(4), nn.Linear(40, 200), nn.Linear(9, 9))
    kernel, _, wide, square = (layer.weight.detach().double() for layer in model)
    expected = {
        f"spectral_norm/{i}": float(torch.linalg.svdvals(matrix)[0])
        for i, matrix in ((0, kernel.reshape(8, 27)), (2, wide), (3, square))
    }
    expected["spectral_norm"] = max(expected.values())
    assert norms_of(SpectralNorm(), model) == pytest.approx(expected, rel=1e-5)


def test_a_group_has_the_norm_of_its_largest_matrix() -> None:
    model = nn.ModuleDict({"block": nn.ModuleDict({"attention": nn.MultiheadAttention(6, 2)})})
    matrices = [p.detach() for p in model.parameters() if p.dim() == 2]
    assert len(matrices) == 2
    largest = max(float(torch.linalg.svdvals(m)[0]) for m in matrices)
    assert norms_of(SpectralNorm(), model)["spectral_norm/block.attention"] == pytest.approx(
        largest, rel=1e-5
    )


@pytest.mark.parametrize("shape", [(150, 400), (400, 150), (300, 300)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_large_random_matrices_are_within_half_the_tolerance(shape, dtype) -> None:
    torch.manual_seed(1)
    model = nn.Linear(*shape).to(dtype)
    exact = float(torch.linalg.svdvals(model.weight.detach().double())[0])
    found = norms_of(SpectralNorm(), model)["spectral_norm"]
    assert found <= exact * (1 + 1e-5)
    assert found == pytest.approx(exact, rel=spectral_norm.TOLERANCE / 2)


def test_a_complex_matrix_has_its_spectral_norm() -> None:
    torch.manual_seed(0)
    model = nn.Module()
    model.weight = nn.Parameter(torch.randn(150, 140, dtype=torch.complex64))
    exact = float(torch.linalg.svdvals(model.weight.detach())[0])
    assert norms_of(SpectralNorm(), model)["spectral_norm"] == pytest.approx(exact, rel=5e-4)


def test_the_next_measurement_goes_on_where_the_last_stood(monkeypatch) -> None:
    torch.manual_seed(0)
    model = nn.Linear(300, 300)
    observable = SpectralNorm()
    norms_of(observable, model)
    with torch.no_grad():
        model.weight += 1e-4 * torch.randn(300, 300)
    exact = float(torch.linalg.svdvals(model.weight.detach().double())[0])
    monkeypatch.setattr(spectral_norm, "ROUNDS", 1)
    (cold, _) = SpectralNorm().measure(measure_context(model, step=1))
    assert cold.status is EstimateStatus.UNCONVERGED
    assert norms_of(observable, model)["spectral_norm"] == pytest.approx(exact, rel=5e-4)


def test_what_does_not_converge_is_marked(monkeypatch) -> None:
    monkeypatch.setattr(spectral_norm, "SEARCHED", 2)
    monkeypatch.setattr(spectral_norm, "ROUNDS", 2)
    model = linear(with_spectrum(200, 150, 3.0, 2.9, 1.0))
    total, group = SpectralNorm().measure(measure_context(model, step=1))
    assert total.status is group.status is EstimateStatus.UNCONVERGED
    assert "residual of 0." in total.reason
    assert "after 2 rounds" in total.reason


def test_a_singular_value_that_outgrows_the_largest_is_followed() -> None:
    observable = SpectralNorm()
    first, second = with_spectrum(200, 150, 3.0, 0.0), with_spectrum(200, 150, 0.0, 1.0)
    norms_of(observable, linear(first))
    for step in range(20):
        found = norms_of(observable, linear(first + (2.0 + 0.1 * step) * second), step)
    assert found["spectral_norm"] == pytest.approx(3.9, rel=5e-4)


def test_a_matrix_of_zeros_has_no_norm_and_may_grow_one() -> None:
    observable = SpectralNorm()
    assert norms_of(observable, linear(torch.zeros(200, 150)))["spectral_norm"] == 0.0
    grown = linear(with_spectrum(200, 150, 2.0, 1.0))
    assert norms_of(observable, grown)["spectral_norm"] == pytest.approx(2.0, rel=5e-4)


def test_spectral_norms_are_bounded_in_number_and_refused_without_matrices() -> None:
    many = nn.ModuleList(nn.Linear(2, 2) for _ in range(MAX_GROUPS + 5))
    assert len(norms_of(SpectralNorm(), many)) == MAX_GROUPS + 2
    with pytest.raises(RefusedError, match="two or more dimensions; the model has weight, bias"):
        SpectralNorm().check(measure_context(nn.LayerNorm(3), step=0))
    broken = linear(torch.full((3, 3), math.nan))
    with pytest.raises(MeasurementError, match="a weight of weight is not finite"):
        SpectralNorm().measure(measure_context(broken, step=0))


# ---- dead units


class Convolutional(nn.Module):
    """Images in, two scores out; the same rectifier is used twice, and one is a function."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.act = nn.ReLU()
        self.wide = nn.Linear(6, 9)
        self.line = nn.Conv1d(1, 4, 2)
        self.smooth = nn.GELU()
        self.head = nn.Linear(8, 2)
        self.last = nn.ReLU6()

    def forward(self, x):
        self.first = self.act(self.conv(x))
        self.second = self.act(self.wide(self.first.mean(dim=(2, 3))))
        self.third = self.smooth(self.line(self.second[:, None]))
        self.fourth = self.last(self.head(torch.relu(self.third[:, 0])))
        return self.fourth


def loss_fn(model, batch):
    return model(batch).sum(dim=-1)


def dead_by_hand(model: nn.Module, batches) -> dict[str, tuple[int, int]]:
    """Dead units and all units, by activation: a look at every unit, place and sample."""
    axes = {"first": 1, "second": 1, "third": 1, "fourth": 1}
    largest: dict[str, list[float]] = {}
    for batch in batches:
        with torch.no_grad():
            model(batch)
        for name, axis in axes.items():
            output = getattr(model, name)
            units = [float(output.select(axis, i).max()) for i in range(output.shape[axis])]
            before = largest.get(name, [-math.inf] * len(units))
            largest[name] = [max(a, b) for a, b in zip(units, before, strict=True)]
    return {name: (sum(m <= 0 for m in units), len(units)) for name, units in largest.items()}


@pytest.mark.parametrize("seed", range(4))
def test_a_dead_unit_is_never_positive_on_the_probe(seed) -> None:
    torch.manual_seed(seed)
    model = Convolutional().eval()
    with torch.no_grad():
        for layer in (model.conv, model.wide, model.line, model.head):
            layer.bias -= 0.6 * torch.rand_like(layer.bias)
    batches = [torch.randn(2, 1, 5, 5) for _ in range(3)]
    by_hand = dead_by_hand(model, batches)
    assert sum(dead for dead, _ in by_hand.values()) > 0
    context = measure_context(model, step=1, loss_fn=loss_fn, batches=batches, n_samples=6)
    observable = DeadUnits()
    observable.check(context)
    found = {o.name: o.value for o in observable.measure(context)}

    def share(*names: str) -> float:
        return sum(by_hand[n][0] for n in names) / sum(by_hand[n][1] for n in names)

    assert found == {
        "dead_units": pytest.approx(share(*by_hand)),
        "dead_units/act": pytest.approx(share("first", "second")),
        "dead_units/smooth": pytest.approx(share("third")),
        "dead_units/last": pytest.approx(share("fourth")),
    }
    assert not any(module._forward_hooks for module in context.model.modules())


def test_in_a_sequence_the_units_are_features() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.SiLU(), nn.Linear(5, 2))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([1.0, -1.0, 1.0, -1.0, -1.0]))
    batch = torch.randn(2, 7, 3)
    context = measure_context(model, step=1, loss_fn=loss_fn, batches=[batch], n_samples=2)
    assert [o.value for o in DeadUnits().measure(context)] == pytest.approx([0.6, 0.6])


def test_hooks_are_removed_where_the_loss_fails() -> None:
    def broken(model, batch):
        model(batch)
        raise ValueError("on purpose")

    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU())
    context = measure_context(model, step=1, loss_fn=broken, batches=[torch.ones(2, 3)])
    with pytest.raises(ValueError, match="on purpose"):
        DeadUnits().measure(context)
    assert not any(module._forward_hooks for module in context.model.modules())


def test_what_lacks_rectifiers_or_a_probe_is_refused() -> None:
    batches = [torch.ones(2, 3)]
    smooth = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    context = measure_context(smooth, step=0, loss_fn=loss_fn, batches=batches)
    words = "type ReLU, ReLU6, GELU, SiLU; the model has Sequential, Linear, Tanh"
    with pytest.raises(RefusedError, match=words):
        DeadUnits().check(context)
    rectified = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    with pytest.raises(RefusedError, match="needs a probe and a loss"):
        DeadUnits().check(measure_context(rectified, step=0))

    def around(model, batch):
        return model[0](batch).sum(dim=1)

    context = measure_context(rectified, step=0, loss_fn=around, batches=batches)
    DeadUnits().check(context)
    with pytest.raises(RefusedError, match="the probe loss calls no rectifier"):
        DeadUnits().measure(context)
