"""Entropy of the spectra of effective matrices, against a DFT written out."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from torch import nn

from phasewatch.monitor.core.errors import ConfigError, RefusedError
from phasewatch.monitor.isolation import measure_context
from phasewatch.monitor.observables.toy_models import frequency_entropy
from phasewatch.monitor.observables.toy_models.frequency_entropy import (
    FrequencyEntropy,
    spectral_entropy,
)

P, WIDTH, UNITS = 7, 4, 5
SIMPLE = ("embed.weight", "hidden.weight", "unembed.weight")


def network(seed: int = 0, *, joined: int = 2, rows: int = P, out: int | None = None) -> nn.Module:
    torch.manual_seed(seed)
    parts = {
        "embed": nn.Embedding(rows, WIDTH),
        "hidden": nn.Linear(joined * WIDTH, UNITS),
        "unembed": nn.Linear(out or UNITS, P),
    }
    if out is not None:
        parts["out"] = nn.Linear(UNITS, out)
    with torch.no_grad():
        parts["embed"].weight.mul_(0.3)  # as large as the rest: a mask leaves some of each
    return nn.ModuleDict(parts)


def entropy_by_hand(rows: list[list[float]]) -> float:
    entropies = []
    for row in rows:
        p = len(row)
        amplitudes = [
            abs(sum(x * cmath.exp(-2j * math.pi * f * a / p) for a, x in enumerate(row)))
            for f in range(1, (p - 1) // 2 + 1)
        ]
        total = sum(amplitudes)
        if total > 0:
            entropies.append(-sum(a / total * math.log(a / total) for a in amplitudes if a))
    return sum(entropies) / len(entropies)


def product(left: list[list[float]], right: list[list[float]]) -> list[list[float]]:
    """left · right, entry by entry."""
    return [
        [
            sum(a * b for a, b in zip(row, column, strict=True))
            for column in zip(*right, strict=True)
        ]
        for row in left
    ]


def by_hand(model: nn.Module, joined: int, keep: float | None) -> tuple[float, float]:
    """Entropies of the in- and out-matrix from nested lists."""
    matrices = {name: layer.weight.double().tolist() for name, layer in model.items()}
    if keep is not None:
        sizes = sorted(abs(w) for m in matrices.values() for row in m for w in row)
        pruned = int((1 - keep) * len(sizes) + 1e-9)
        matrices = {
            name: [[w if abs(w) > sizes[pruned - 1] else 0.0 for w in row] for row in m]
            for name, m in matrices.items()
        }
    embed = [list(column) for column in zip(*matrices["embed"][:P], strict=True)]
    inward = [
        product([row[part * WIDTH : (part + 1) * WIDTH]], embed)[0]
        for row in matrices["hidden"]
        for part in range(joined)
    ]
    logits = matrices["unembed"]
    if "out" in matrices:
        logits = product(logits, matrices["out"])
    return entropy_by_hand(inward), entropy_by_hand([list(c) for c in zip(*logits, strict=True)])


@pytest.mark.parametrize("keep", [None, 0.4, 0.25])
@pytest.mark.parametrize("joined", [1, 2])
@pytest.mark.parametrize("out", [None, 3])
def test_it_is_the_entropy_of_a_dft_written_out(keep, joined, out) -> None:
    model = network(1, joined=joined, rows=P + 1, out=out)
    observable = FrequencyEntropy(*SIMPLE, out="out.weight" if out else None, keep=keep)
    context = measure_context(model, step=3)
    observable.check(context)
    total, inward, outward = observable.measure(context)
    expected = by_hand(model, joined, keep)
    assert (inward.value, outward.value) == pytest.approx(expected, rel=1e-5)
    assert total.value == pytest.approx(sum(expected) / 2, rel=1e-5)
    assert [o.name.rpartition("/")[2] for o in (total, inward, outward)] == [
        "frequency_entropy",
        "in",
        "out",
    ]


def test_one_frequency_has_no_entropy_and_all_frequencies_the_most() -> None:
    angles = 2 * math.pi * torch.arange(31.0) / 31
    assert spectral_entropy(torch.stack([torch.cos(4 * angles), 3 * torch.sin(9 * angles)])) < 1e-4
    impulse = torch.eye(31)[:4]
    assert spectral_entropy(impulse) == pytest.approx(math.log(15))
    # Two equal frequencies in an even number of tokens, whose highest frequency does not count.
    angles = 2 * math.pi * torch.arange(10.0) / 10
    two = torch.cos(angles) + torch.sin(3 * angles) + 5 * torch.cos(5 * angles) + 7
    assert spectral_entropy(two[None]) == pytest.approx(math.log(2), rel=1e-4)


def test_rows_without_a_weight_are_left_out() -> None:
    rows = torch.zeros(3, 11)
    rows[1, 0] = 1.0
    assert spectral_entropy(rows) == pytest.approx(math.log(5))
    assert math.isnan(spectral_entropy(torch.zeros(3, 11)))


def test_fewer_tokens_than_rows_are_said() -> None:
    model = network(rows=P + 1)
    wide = nn.ModuleDict({**model, "unembed": nn.Linear(UNITS, P + 1)})
    with torch.no_grad():
        wide["unembed"].weight[:P] = model["unembed"].weight
    context, told = measure_context(wide, step=0), FrequencyEntropy(*SIMPLE, tokens=P)
    values = [o.value for o in told.measure(context)]
    plain = FrequencyEntropy(*SIMPLE)
    assert values == [o.value for o in plain.measure(measure_context(model, step=0))]
    assert values != [o.value for o in plain.measure(context)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("wte", *SIMPLE[1:]),
            "embed=: looked for the parameter 'wte'; the model has",
        ),
        (("embed.weight", "hidden.bias", "unembed.weight"), r"real matrices; found .*\(5,\)"),
        (("hidden.weight", "embed.weight", "unembed.weight"), "do not fit together"),
        ((*SIMPLE, None, 20), r"3 or more tokens .* took, 20"),
    ],
)
def test_matrices_that_do_not_fit_are_refused(arguments, words) -> None:
    with pytest.raises(RefusedError, match=words):
        FrequencyEntropy(*arguments).check(measure_context(network(), step=0))


def test_matrices_that_are_too_large_are_refused(monkeypatch) -> None:
    monkeypatch.setattr(frequency_entropy, "MAX_ENTRIES", 2 * UNITS * P - 1)
    with pytest.raises(RefusedError, match="meant for small networks"):
        FrequencyEntropy(*SIMPLE).check(measure_context(network(), step=0))
    FrequencyEntropy(*SIMPLE).check(measure_context(network(joined=1), step=0))


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="tokens is 2; a spectrum needs three or more"):
        FrequencyEntropy(*SIMPLE, tokens=2)
    with pytest.raises(ConfigError, match=r"keep is 1\.5"):
        FrequencyEntropy(*SIMPLE, keep=1.5)
