"""Progress measures of grokking, against explicit loops over cosines and sines."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from phasewatch.monitor.core.errors import ConfigError, RefusedError
from phasewatch.monitor.core.estimates import EstimateStatus
from phasewatch.monitor.isolation.context import measure_context
from phasewatch.monitor.observables.toy_models.fourier import basis, gini, spectrum
from phasewatch.monitor.observables.toy_models.grokking import GrokkingProgress
from phasewatch.monitor.observables.weights.squared_weights import SquaredWeights


class Table(nn.Module):
    """Logits from a table: row a·p + b; its embedding and its linear layers are for show."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.p = round(len(logits) ** 0.5)
        self.table = nn.Parameter(logits)
        self.embed = nn.Embedding(self.p + 1, 3)
        self.inner = nn.Linear(4, 6)
        self.unembed = nn.Linear(4, self.p, bias=False)

    def forward(self, pairs):
        return self.table[pairs[:, 0] * self.p + pairs[:, 1]]


def table(p: int, seed: int = 0, classes: int | None = None) -> Table:
    torch.manual_seed(seed)
    return Table(2 * torch.randn(p * p, classes or p, dtype=torch.float64))


def some_pairs(p: int, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Train pairs; p − 1 is among the numbers."""
    pairs = torch.cartesian_prod(torch.arange(p), torch.arange(p))
    order = torch.randperm(p * p - 1, generator=torch.Generator().manual_seed(seed))
    pairs = pairs[torch.cat([torch.tensor([p * p - 1]), order[: count - 1]])]
    return pairs, pairs.sum(dim=1) % p


def seen(observable, model, batches):
    context = measure_context(model, step=3, batches=batches)
    return {o.name: o for o in observable.measure(context)}


def values(observable, model, batches):
    return {name: o.value for name, o in seen(observable, model, batches).items()}


def cross_entropy(logits, label) -> float:
    top = max(logits)
    return top + math.log(sum(math.exp(x - top) for x in logits)) - logits[label]


def direction(p, wave) -> dict:
    """A function of (a, b) of unit norm; zeros where it vanishes."""
    raw = {(a, b): wave(a, b) for a in range(p) for b in range(p)}
    norm = math.sqrt(sum(x * x for x in raw.values()))
    return {ab: x / norm if norm > 1e-9 else 0.0 for ab, x in raw.items()}


def projections(logits, p, k, sign=1):
    """[(a, b)][c]: the part of the logits along cos and sin of w_k (a ± b), pair by pair."""
    w = 2 * math.pi * k / p
    total = {ab: [0.0] * p for ab in logits}
    for f in (math.cos, math.sin):
        unit = direction(p, lambda a, b, f=f: f(w * (a + sign * b)))
        for c in range(p):
            inner = sum(unit[ab] * logits[ab][c] for ab in logits)
            for ab in logits:
                total[ab][c] += inner * unit[ab]
    return total


def slowly(model, train, key, *, block=False) -> dict[str, float]:
    """Restricted and excluded losses from the definitions alone."""
    p = model.p
    rows = model.table.detach().double()[:, :p].tolist()
    logits = {(a, b): rows[a * p + b] for a in range(p) for b in range(p)}
    parts = {k: projections(logits, p, k) for k in range(1, p // 2 + 1)}
    bias = [sum(logits[ab][c] for ab in logits) / p**2 for c in range(p)]
    kept = [parts[k] for k in key]
    if block:
        kept += [projections(logits, p, k, sign=-1) for k in key if 2 * k != p]
    result = {
        "restricted_loss": sum(
            cross_entropy(
                [bias[c] + sum(part[a, b][c] for part in kept) for c in range(p)], (a + b) % p
            )
            for a, b in logits
        )
        / p**2
    }

    def excluded(some):
        return sum(
            cross_entropy(
                [logits[a, b][c] - sum(parts[k][a, b][c] for k in some) for c in range(p)],
                (a + b) % p,
            )
            for a, b in train
        ) / len(train)

    each = {k: excluded([k]) for k in parts}
    result |= {f"excluded_loss/{k}": loss for k, loss in each.items()}
    return result | {"excluded_loss": excluded(key), "excluded_loss_max": max(each.values())}


@pytest.mark.parametrize("p", [5, 6, 7])
@pytest.mark.parametrize("block", [False, True])
def test_losses_are_those_of_the_definitions(p, block) -> None:
    model, batch = table(p, seed=p), some_pairs(p, 11)
    for key in itertools.chain([[]], itertools.combinations(range(1, p // 2 + 1), 2)):
        found = values(GrokkingProgress(frequencies=key, block=block), model, [batch])
        for name, loss in slowly(model, batch[0].tolist(), key, block=block).items():
            assert found[name] == pytest.approx(loss, rel=1e-12), (key, name)
        assert found["key_frequencies"] == len(key)


def wave(p: int, k: int, size: float) -> torch.Tensor:
    """Logits size · cos(w_k (a + b − c)): the trigonometric solution at one frequency."""
    a, b, c = torch.meshgrid(*3 * [torch.arange(p, dtype=torch.float64)], indexing="ij")
    return (size * torch.cos(2 * math.pi * k / p * (a + b - c))).reshape(p * p, p)


def test_a_network_of_one_frequency_is_all_that_frequency() -> None:
    p, k, size = 11, 3, 6.0
    found = values(GrokkingProgress(), Table(wave(p, k, size)), [some_pairs(p, 30)])
    angles = [size * math.cos(2 * math.pi * k / p * s) for s in range(p)]
    assert found["restricted_loss"] == pytest.approx(cross_entropy(angles, 0), rel=1e-12)
    assert found["excluded_loss"] == pytest.approx(math.log(p), rel=1e-12)
    assert found["excluded_loss_max"] == pytest.approx(math.log(p), rel=1e-12)
    assert found["key_frequencies"] == 1
    assert found["key_frequencies/3"] == pytest.approx(1.0)
    assert found["key_frequencies/2"] == pytest.approx(0.0, abs=1e-12)
    whole = cross_entropy(angles, 0)
    assert found["excluded_loss/2"] == pytest.approx(whole, rel=1e-12), "nothing to exclude"


def test_what_is_learnt_by_heart_is_neither_restricted_nor_excluded() -> None:
    p = 13
    pairs, labels = batch = some_pairs(p, 40)
    memory = torch.zeros(p * p, p, dtype=torch.float64)
    memory[pairs[:, 0] * p + pairs[:, 1], labels] = 50.0
    found = values(GrokkingProgress(frequencies=[2]), Table(memory), [batch])
    assert found["excluded_loss"] < 1e-6
    assert found["restricted_loss"] > 1.0


@pytest.mark.parametrize(("share", "number"), [(0.251, 2), (0.249, 1)])
def test_a_frequency_above_a_quarter_of_the_largest_is_key(share, number) -> None:
    p, batch = 11, some_pairs(11, 30)
    model = Table(wave(p, 3, 1.0) + wave(p, 5, share))
    found = values(GrokkingProgress(), model, [batch])
    assert found["key_frequencies"] == number
    assert found["key_frequencies/5"] == pytest.approx(share)

    with torch.no_grad():  # W_L says the same of its own frequencies
        angle = 2 * math.pi / p * torch.arange(p, dtype=torch.float64)
        columns = [torch.cos(2 * angle + n) + share * torch.cos(4 * angle - n) for n in range(4)]
        model.unembed.weight.copy_(torch.stack(columns, dim=1))
    found = values(GrokkingProgress(key_from="unembedding"), model, [batch])
    assert found["key_frequencies"] == number
    assert found["key_frequencies/2"] == pytest.approx(1.0)
    assert found["key_frequencies/4"] == pytest.approx(share, rel=1e-6)


def test_gini_is_taken_of_the_first_p_rows_without_the_constant() -> None:
    p = 7
    model, batch = table(p), some_pairs(p, 20)
    found = values(GrokkingProgress(), model, [batch])
    for name, weight in (("embedding", model.embed.weight), ("unembedding", model.unembed.weight)):
        rows = weight.detach().double().tolist()[:p]
        norms = []
        for k in range(1, p // 2 + 1):
            for f in (math.cos, math.sin):
                unit = [f(2 * math.pi * k * x / p) / math.sqrt(p / 2) for x in range(p)]
                inner = [sum(u * row[d] for u, row in zip(unit, rows, strict=True))
                         for d in range(len(rows[0]))]  # fmt: skip
                norms.append(math.sqrt(sum(i * i for i in inner)))
        differences = sum(abs(x - y) for x in norms for y in norms)
        assert found[f"gini_{name}"] == pytest.approx(
            differences / (2 * len(norms) * sum(norms)), rel=1e-6
        )
    with torch.no_grad():
        column = torch.sin(2 * math.pi * 2 / p * torch.arange(p))
        model.embed.weight[:p] = column[:, None] + 5.0
        model.embed.weight[p] = 1e3
    one_hot = values(GrokkingProgress(), model, [batch])["gini_embedding"]
    assert one_hot == pytest.approx(1 - 1 / (p - 1), abs=1e-5)


def test_weights_are_read_by_name_transposed_and_multiplied() -> None:
    p = 5
    model, batch = table(p), some_pairs(p, 12)
    model.w_out = nn.Parameter(torch.randn(4, 9))
    model.w_in = nn.Parameter(torch.randn(3, p + 2))
    chosen = GrokkingProgress(embedding="w_in.T", unembedding=["unembed.weight", "w_out"])
    found = values(chosen, model, [batch])
    w_l = (model.unembed.weight.double() @ model.w_out.double()).detach()
    assert found["gini_unembedding"] == pytest.approx(gini(spectrum(w_l, basis(p))))
    w_e = model.w_in.detach().double().T[:p]
    assert found["gini_embedding"] == pytest.approx(gini(spectrum(w_e, basis(p))))


def test_without_weights_their_streams_are_left_out() -> None:
    found = values(GrokkingProgress(embedding=None, unembedding=None), table(5), [some_pairs(5, 9)])
    assert {name for name in found if "/" not in name} == {
        "restricted_loss",
        "excluded_loss",
        "excluded_loss_max",
        "key_frequencies",
    }


class Sequence(nn.Module):
    """a, b and "=" in, logits at every position out, "=" among the classes; half precision."""

    def __init__(self, p: int) -> None:
        super().__init__()
        self.p = p
        self.embed = nn.Embedding(p + 1, 8)
        self.unembed = nn.Linear(8, p + 1)
        self.to(torch.bfloat16)

    def forward(self, tokens):
        assert tokens.shape[1] == 3
        assert (tokens[:, 2] == self.p).all()
        return self.unembed(self.embed(tokens).cumsum(dim=1).square())


def test_tokens_behind_the_pair_are_kept_and_the_last_position_is_taken() -> None:
    p = 5
    torch.manual_seed(0)
    model, (pairs, labels) = Sequence(p), some_pairs(p, 12)
    tokens = torch.cat([pairs, torch.full((12, 1), p)], dim=1)
    found = values(GrokkingProgress(), model, [(tokens[:7], labels[:7]), (tokens[7:], labels[7:])])
    grid = torch.cartesian_prod(torch.arange(p), torch.arange(p))
    with torch.no_grad():
        logits = model(torch.cat([grid, torch.full((p * p, 1), p)], dim=1))[:, -1, :p]
    expected = values(GrokkingProgress(), Table(logits.double()), [(pairs, labels)])
    for name in ("restricted_loss", "excluded_loss", "excluded_loss_max", "key_frequencies"):
        assert found[name] == pytest.approx(expected[name], rel=1e-12), name


def test_other_inputs_are_made_by_a_function() -> None:
    p = 5
    model, (pairs, labels) = table(p), some_pairs(p, 12)
    one_hot = nn.functional.one_hot(pairs, p).float()
    chosen = GrokkingProgress(logits=lambda model, pairs: model(pairs), train_pairs=pairs.tolist())
    found = values(chosen, model, [(one_hot, labels)])
    assert found == values(GrokkingProgress(), model, [(pairs, labels)])


def test_parts_are_at_most_thirty_two_the_largest() -> None:
    p = 71
    model = Table(wave(p, 35, 1.0) + 0.1 * wave(p, 2, 1.0))
    found = values(GrokkingProgress(), model, [some_pairs(p, 30)])
    for name in ("key_frequencies", "excluded_loss"):
        parts = [n for n in found if n.startswith(f"{name}/")]
        assert len(parts) == 32
        assert {f"{name}/2", f"{name}/35"} <= set(parts)


def test_late_in_training_losses_are_not_rounded_to_noise() -> None:
    found = values(GrokkingProgress(), Table(wave(7, 2, 60.0)), [some_pairs(7, 20)])
    assert 0 < found["restricted_loss"] < 1e-9


def test_what_is_not_finite_is_marked() -> None:
    model = Table(torch.full((25, 5), math.nan))
    found = seen(GrokkingProgress(), model, [some_pairs(5, 9)])
    assert found["restricted_loss"].status is EstimateStatus.DIVERGED
    assert "restricted_loss is nan" in found["restricted_loss"].reason
    assert found["gini_embedding"].status is EstimateStatus.OK


PAIRS, LABELS = some_pairs(5, 12)


@pytest.mark.parametrize(
    ("options", "batches", "words"),
    [
        ({}, [], "no probe to read the train pairs from"),
        (
            {},
            [(PAIRS.float(), LABELS)],
            r"the probe has \(12, 2\) torch.float32, \(12,\) torch.int",
        ),
        ({}, [{"x": PAIRS, "y": LABELS}], "the probe has dict"),
        ({}, [(PAIRS, (LABELS + 1) % 5)], r"labels of the probe are not \(a \+ b\) mod 5"),
        ({}, [(torch.cat([PAIRS, PAIRS], 1), LABELS)], "differs from pair to pair"),
        ({"p": 4}, [(PAIRS, LABELS)], "integers from 0 to p − 1 = 3.* there are some from 0 to 4"),
        ({"p": 9}, [(PAIRS, PAIRS.sum(1) % 9)], "cannot be called on all pairs mod 9 .IndexError"),
        ({"train_pairs": [[1.0, 2.0]]}, [], "must be .N, 2. integers"),
        ({"embedding": "emb"}, [(PAIRS, LABELS)], "embedding=emb: .*the model has table, embed.w"),
        ({"embedding": "inner.weight.T"}, [(PAIRS, LABELS)], r"has shape \(4, 6\).* p = 5 rows"),
        ({"unembedding": ["inner.weight", "table"]}, [(PAIRS, LABELS)], "inner.weight @ table"),
        ({"frequencies": [1, 3]}, [(PAIRS, LABELS)], r"no frequencies \[3\]; they run from 1 to 2"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(options, batches, words) -> None:
    context = measure_context(table(5), step=0, batches=batches)
    with pytest.raises(RefusedError, match=words):
        GrokkingProgress(**options).check(context)


def test_a_model_without_the_layers_is_told_what_was_looked_for() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(25, 5))
            self.small = nn.Linear(3, 4)

        def forward(self, pairs):
            return self.table[pairs[:, 0] * 5 + pairs[:, 1]]

    context = measure_context(Bare(), step=0, batches=[(PAIRS, LABELS)])
    with pytest.raises(RefusedError, match=r"first nn.Embedding .* p = 5 .*; the model has none"):
        GrokkingProgress().check(context)
    with pytest.raises(RefusedError, match=r"last nn.Linear .* has small: Linear\(in_features=3"):
        GrokkingProgress(embedding=None).check(context)
    GrokkingProgress(embedding=None, unembedding=None).check(context)


def test_too_few_classes_are_refused() -> None:
    context = measure_context(table(5, classes=4), step=0, batches=[(PAIRS, LABELS)])
    with pytest.raises(RefusedError, match=r"logits of shape \(25, 5 or more\).* gives \(25, 4\)"):
        GrokkingProgress().check(context)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"p": 2}, "p is 2"),
        ({"key_from": "weights"}, "key_from is 'weights'; it must be \"logits\""),
        ({"key_from": "unembedding", "unembedding": None}, "needs W_L"),
    ],
)
def test_wrong_arguments_are_refused_at_once(options, words) -> None:
    with pytest.raises(ConfigError, match=words):
        GrokkingProgress(**options)


def test_squared_weights_are_those_of_all_parameters_frozen_and_tied_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2))
    with torch.no_grad():
        model[0].weight.fill_(2.0)
        model[0].bias.copy_(torch.tensor([3.0, 4.0]))
    model[1].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    model[2].running_var.fill_(100.0)
    found = SquaredWeights().measure(measure_context(model, step=0))
    assert found.value == pytest.approx(4 * 4.0 + 9.0 + 16.0 + 2.0)
    assert found.unit == "weight²"


def test_squared_weights_of_complex_and_half_precision() -> None:
    model = nn.Module()
    model.z = nn.Parameter(torch.tensor([3.0 + 4.0j]))
    model.h = nn.Parameter(torch.full((4096,), 1.0, dtype=torch.bfloat16))
    found = SquaredWeights().measure(measure_context(model, step=0))
    assert found.value == pytest.approx(25.0 + 4096.0)
