"""The Fourier basis mod p, spectra and the Gini coefficient."""

from __future__ import annotations

import math

import pytest
import torch

from phasewatch.monitor.observables.toy_models.fourier import (
    basis,
    by_frequency,
    component,
    diagonal_means,
    gini,
    rows_of,
    spectrum,
)

MODULI = [3, 4, 5, 6, 53, 113]


@pytest.mark.parametrize("p", MODULI)
def test_the_basis_is_orthonormal_and_complete(p) -> None:
    rows = basis(p)
    assert rows.shape == (p, p)
    assert torch.allclose(rows @ rows.T, torch.eye(p, dtype=torch.float64), atol=1e-13)


def test_the_rows_are_the_constant_cosines_and_sines() -> None:
    rows = basis(6)
    assert rows[0].tolist() == pytest.approx([6**-0.5] * 6)
    for k in (1, 2):
        for x in range(6):
            angle = 2 * math.pi * k * x / 6
            assert float(rows[2 * k - 1, x]) == pytest.approx(math.cos(angle) / 3**0.5)
            assert float(rows[2 * k, x]) == pytest.approx(math.sin(angle) / 3**0.5)
    assert rows[5].tolist() == pytest.approx([(-1) ** x / 6**0.5 for x in range(6)])
    assert rows[rows_of(3)].shape == (1, 6)


@pytest.mark.parametrize("p", MODULI)
def test_the_components_of_all_frequencies_and_the_constant_add_up(p) -> None:
    values = torch.randn(p, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(p))
    parts = [component(values, k, basis(p)) for k in range(1, p // 2 + 1)]
    assert torch.allclose(sum(parts) + values.mean(dim=0), values, atol=1e-12)


@pytest.mark.parametrize("p", MODULI)
def test_spectra_hold_the_whole_norm_but_that_of_the_constant(p) -> None:
    values = torch.randn(p, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(p))
    norms = spectrum(values, basis(p))
    centred = values - values.mean(dim=0)
    assert norms.shape == (p - 1,)
    assert float(norms.square().sum()) == pytest.approx(float(centred.square().sum()))
    together = by_frequency(norms)
    assert together.shape == (p // 2,)
    for k in range(1, p // 2 + 1):
        expected = torch.linalg.vector_norm(component(values, k, basis(p)))
        assert float(together[k - 1]) == pytest.approx(float(expected))


def test_a_shifted_wave_is_one_frequency_of_two_components() -> None:
    wave = torch.cos(2 * math.pi * 2 / 7 * torch.arange(7, dtype=torch.float64) + 0.5)[:, None]
    norms = spectrum(wave, basis(7))
    assert norms.tolist() == pytest.approx(
        [0, 0, 3.5**0.5 * math.cos(0.5), 3.5**0.5 * math.sin(0.5), 0, 0], abs=1e-12
    )
    assert by_frequency(norms).tolist() == pytest.approx([0, 3.5**0.5, 0], abs=1e-12)


@pytest.mark.parametrize("count", [1, 2, 7, 112])
def test_gini_of_one_hot_is_one_less_one_over_n_and_of_equals_zero(count) -> None:
    one_hot = torch.zeros(count)
    one_hot[count // 2] = 3.0
    assert gini(one_hot) == pytest.approx(1 - 1 / count)
    assert gini(torch.full((count,), 2.5)) == pytest.approx(0.0, abs=1e-15)


def test_gini_is_half_the_relative_mean_difference_of_all_pairs() -> None:
    values = torch.rand(17, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    differences = sum(abs(float(x - y)) for x in values for y in values)
    expected = differences / (2 * 17**2 * float(values.mean()))
    assert gini(values) == pytest.approx(expected)
    assert gini(7 * values.flip(0)) == pytest.approx(expected), "neither order nor scale matters"
    assert gini(torch.tensor([1.0, 2.0, 3.0, 4.0])) == pytest.approx(0.25)


def test_gini_of_nothing_is_not_a_number() -> None:
    assert math.isnan(gini(torch.zeros(5)))


def test_means_over_the_pairs_of_one_sum() -> None:
    p = 4
    values = torch.arange(p * p * 2, dtype=torch.float64).reshape(p * p, 2) ** 2
    index = torch.tensor([(a + b) % p for a in range(p) for b in range(p)])
    means = diagonal_means(values, index, p)
    for s in range(p):
        rows = [values[a * p + (s - a) % p] for a in range(p)]
        assert means[s].tolist() == (sum(rows) / p).tolist()
