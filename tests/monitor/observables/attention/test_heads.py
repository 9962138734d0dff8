"""Scores of attention heads: against loops, explicit matrices and circuits made by hand."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from phasewatch.monitor.core.context import SharedWork
from phasewatch.monitor.core.errors import ConfigError, RefusedError
from phasewatch.monitor.core.estimates import EstimateStatus
from phasewatch.monitor.isolation import measure_context
from phasewatch.monitor.observables.attention.ablation import HeadAblation
from phasewatch.monitor.observables.attention.composition import Composition
from phasewatch.monitor.observables.attention.copying_score import CopyingScore
from phasewatch.monitor.observables.attention.layers import Heads
from phasewatch.monitor.observables.attention.prefix_matching import PrefixMatching
from phasewatch.monitor.observables.attention.previous_token import PreviousToken
from phasewatch.monitor.observables.attention.scores import (
    compositions,
    copying_scores,
    prefix_matching_scores,
    previous_token_scores,
)
from support.attention_models import (
    HEADS,
    LENGTH,
    VOCABULARY,
    WIDTH,
    LanguageModel,
    SplitMaps,
    make,
    some_tokens,
)

T = 7


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def repeated(rows, tokens, seed=0):
    """[BOS] and a block of T random tokens, twice."""
    block = torch.randint(1, tokens, (rows, T), generator=generator(seed))
    return torch.cat([torch.zeros(rows, 1, dtype=torch.long), block, block], dim=1)


def causal(rows, heads, length, seed=0):
    scores = torch.randn(rows, heads, length, length, generator=generator(seed)).double()
    return scores.masked_fill(torch.ones(length, length).triu(1) > 0, -torch.inf).softmax(-1)


def some_heads(count, d_head, d_model, seed=0, module="a"):
    random = generator(seed)
    reads = [torch.randn(count, d_head, d_model, generator=random) for _ in "qkv"]
    w_o = torch.randn(count, d_model, d_head, generator=random)
    return Heads(
        module=module, w_q=reads[0], w_k=reads[1], w_v=reads[2], w_o=w_o, output="o", output_axis=1
    )


# Patterns


@pytest.mark.parametrize("vocabulary", [4, 1000], ids=["tokens come again", "tokens differ"])
def test_prefix_matching_is_that_of_plain_loops(vocabulary):
    tokens, pattern = repeated(3, vocabulary), causal(3, 2, 2 * T + 1)
    expected = torch.zeros(3, 2, dtype=torch.float64)
    for b in range(3):
        for h in range(2):
            for i in range(T + 1, 2 * T + 1):
                for j in range(1, i + 1):
                    if tokens[b, j - 1] == tokens[b, i]:
                        expected[b, h] += pattern[b, h, i, j] / T
    torch.testing.assert_close(prefix_matching_scores(pattern, tokens), expected)
    if vocabulary == 1000:
        rows = torch.arange(T + 1, 2 * T + 1)
        torch.testing.assert_close(expected, pattern[:, :, rows, rows - T + 1].mean(dim=-1))


def test_previous_token_is_that_of_plain_loops():
    pattern = causal(3, 2, 2 * T + 1)
    expected = torch.zeros(3, 2, dtype=torch.float64)
    for i in range(1, 2 * T + 1):
        expected += pattern[:, :, i, i - 1] / (2 * T)
    torch.testing.assert_close(previous_token_scores(pattern), expected)


def hand_built(offset, length=2 * T + 1):
    """Attends to the token `offset` places before, or to the first one where there is none."""
    pattern = torch.zeros(1, 1, length, length)
    for i in range(length):
        pattern[0, 0, i, max(i - offset, 0)] = 1.0
    return pattern


def test_heads_made_by_hand_have_the_scores_they_are_made_for():
    tokens = torch.tensor([[0, *range(1, T + 1), *range(1, T + 1)]])
    assert prefix_matching_scores(hand_built(T - 1), tokens).item() == 1.0
    assert previous_token_scores(hand_built(1)).item() == 1.0
    assert prefix_matching_scores(hand_built(1), tokens).item() == 0.0
    assert prefix_matching_scores(hand_built(T), tokens).item() == 0.0
    found = previous_token_scores(hand_built(T - 1)).item()
    assert found == pytest.approx(1 / (2 * T))  # the first token finds BOS
    even = torch.ones(1, 1, 2 * T + 1, 2 * T + 1).tril()
    even /= even.sum(dim=-1, keepdim=True)
    expected = sum(1 / (i + 1) for i in range(T + 1, 2 * T + 1)) / T
    assert prefix_matching_scores(even, tokens).item() == pytest.approx(expected)


def test_the_row_of_bos_does_not_count():
    tokens, pattern = repeated(3, 5), causal(3, 2, 2 * T + 1)
    changed = pattern.clone()
    changed[:, :, 0] = 100.0
    assert torch.equal(previous_token_scores(changed), previous_token_scores(pattern))
    changed[:, :, : T + 1] = 100.0
    scores = prefix_matching_scores(changed, tokens), prefix_matching_scores(pattern, tokens)
    assert torch.equal(*scores)


# Weights


def test_copying_is_that_of_the_eigenvalues_of_the_whole_product():
    heads = some_heads(3, 4, 8)
    w_e = torch.randn(8, 11, generator=generator(1)).double()
    w_u = torch.randn(11, 8, generator=generator(2)).double()
    for score, w_o, w_v in zip(copying_scores(heads, w_e, w_u), heads.w_o, heads.w_v, strict=True):
        whole = w_u @ w_o.double() @ w_v.double() @ w_e
        values = torch.linalg.eigvals(whole)
        expected = values.sum() / values.abs().sum()
        assert abs(expected.imag) < 1e-10
        assert score.item() == pytest.approx(expected.real.item(), abs=1e-9)
        assert abs(score) < 1


def test_a_head_that_copies_scores_one_and_one_that_suppresses_minus_one():
    heads = some_heads(2, 6, 6)
    heads.w_v[:], heads.w_o[0], heads.w_o[1] = torch.eye(6), torch.eye(6), -torch.eye(6)
    w_e = torch.linalg.qr(torch.randn(6, 6, generator=generator()))[0]
    assert copying_scores(heads, w_e, w_e.T).tolist() == pytest.approx([1.0, -1.0])


def test_compositions_are_those_of_the_whole_matrices():
    earlier, later = some_heads(2, 3, 8, 1), some_heads(4, 3, 8, 2)
    found = compositions(earlier, later)
    for two in range(4):
        for one in range(2):
            w_ov = (earlier.w_o[one] @ earlier.w_v[one]).double()
            w_qk = (later.w_q[two].T @ later.w_k[two]).double()
            w_ov2 = (later.w_o[two] @ later.w_v[two]).double()
            for kind, reads in (("q", w_qk.T), ("k", w_qk), ("v", w_ov2)):
                expected = (reads @ w_ov).norm() / (reads.norm() * w_ov.norm())
                assert found[kind][two, one].item() == pytest.approx(expected.item(), rel=1e-5)


def test_random_matrices_compose_as_one_over_the_root_of_the_width():
    found = compositions(some_heads(16, 32, 256, 1), some_heads(16, 32, 256, 2))
    for kind in "qkv":
        assert found[kind].mean().item() == pytest.approx(256**-0.5, abs=4e-4)
        assert found[kind].std().item() == pytest.approx(0.0014, abs=3e-4)  # 0.0633 is one of them


# A model made by hand, whose second layer completes repeated blocks

SIZE = 16
"""Tokens of the model made by hand; its stream holds the token, its place, the token before, and
the token that is foretold."""
PLACES = 40


class Exact(nn.Module):
    """One head of attention with four maps."""

    def __init__(self, width):
        super().__init__()
        self.head_dim = width
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, nn.Linear(width, width, bias=False))
            nn.init.zeros_(getattr(self, name).weight)

    def forward(self, x):
        scores = self.q_proj(x) @ self.k_proj(x).mT
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        pattern = scores.masked_fill(future, -torch.inf).unsqueeze(1).softmax(dim=-1)
        return self.o_proj((pattern.squeeze(1)) @ self.v_proj(x))


class Induction(nn.Module):
    """An induction circuit, written down."""

    def __init__(self):
        super().__init__()
        width = 3 * SIZE + PLACES
        token, place = slice(0, SIZE), slice(SIZE, SIZE + PLACES)
        before = slice(SIZE + PLACES, 2 * SIZE + PLACES)
        foretold = slice(2 * SIZE + PLACES, width)
        self.embed = nn.Embedding(SIZE, width)
        self.places = nn.Parameter(torch.zeros(PLACES, width))
        self.layers = nn.ModuleList([Exact(width), Exact(width)])
        self.unembed = nn.Linear(width, SIZE, bias=False)
        for parameter in (self.embed.weight, self.unembed.weight):
            nn.init.zeros_(parameter)
        sharp, eye = 30.0, torch.eye(SIZE)
        first, second = self.layers
        with torch.no_grad():
            self.embed.weight[:, token] = eye
            self.places[:, place] = torch.eye(PLACES)
            self.unembed.weight[:, foretold] = 10.0 * eye
            # Place i asks for place i − 1, and notes which token is there.
            first.q_proj.weight[place, place] = sharp * torch.diag(torch.ones(PLACES - 1), -1).T
            first.k_proj.weight[place, place] = torch.eye(PLACES)
            first.v_proj.weight[token, token] = eye
            first.o_proj.weight[before, token] = eye
            # The current token asks for where it was the token before, and foretells what is there.
            second.q_proj.weight[token, token] = sharp * eye
            second.k_proj.weight[token, before] = eye
            second.v_proj.weight[token, token] = eye
            second.o_proj.weight[foretold, token] = eye

    def forward(self, tokens):
        x = self.embed(tokens) + self.places[: tokens.shape[1]]
        for layer in self.layers:
            x = x + layer(x)
        return self.unembed(x)


def next_token_loss(model, batch):
    """The loss of each token of the second block."""
    logits = model(batch)[:, :-1].transpose(1, 2)
    losses = nn.functional.cross_entropy(logits, batch[:, 1:], reduction="none")
    return losses[:, batch.shape[1] // 2 + 1 :].flatten()


def induction_context(**options):
    length = 12
    block = torch.stack(
        [torch.randperm(SIZE - 1, generator=generator(i))[:length] for i in range(8)]
    )
    data = nn.functional.pad(torch.cat([block, block], dim=1) + 1, (1, 0))
    options = {"loss_fn": next_token_loss, "batches": [data[:4], data[4:]]} | options
    return measure_context(Induction(), step=5, **options)


def measured(observable, context):
    observable.check(context)
    return {o.name: o for o in observable.measure(context)}


def test_the_circuit_made_by_hand_is_seen_by_every_score():
    context = induction_context()
    assert next_token_loss(Induction(), context.batches[0]).max() < 0.05

    # Distinct tokens: with equal ones in a block its heads would rightly look at several places.
    prefix = measured(PrefixMatching(length=3, sequences=64), context)
    assert prefix["prefix_matching/L1H0"].value > 0.99
    assert prefix["prefix_matching/L0H0"].value < 0.35
    assert prefix["prefix_matching"].value == prefix["prefix_matching/L1H0"].value

    previous = measured(PreviousToken(), context)
    assert previous["previous_token"].value == previous["previous_token/L0H0"].value > 0.99
    assert previous["previous_token/L1H0"].value < 0.3

    copying = measured(CopyingScore(), context)
    assert copying["copying_score/L1H0"].value == pytest.approx(1.0)
    assert copying["copying_score/L0H0"].status is EstimateStatus.DIVERGED  # it writes no logit
    assert "nan" in copying["copying_score/L0H0"].reason
    assert copying["copying_score"].value == pytest.approx(1.0)

    composed = measured(Composition(), context)
    random = (3 * SIZE + PLACES) ** -0.5
    # All that the second head's keys read is what the first head wrote: I·I over |I||I|.
    assert composed["composition/k"].value == pytest.approx(SIZE**-0.5 - random)
    assert composed["composition/q"].value == pytest.approx(-random)
    assert composed["composition"].value == composed["composition/k"].value

    ablation = measured(HeadAblation(), context)
    for head in ("L0H0", "L1H0"):
        assert ablation[f"head_ablation/{head}"].value > 2.0
    without_second = math.log(SIZE)  # no logit is left
    assert ablation["head_ablation/L1H0"].value == pytest.approx(without_second, abs=0.01)


# Ablation


class Replaced(SplitMaps):
    """What a head mixes can be replaced: an ablation of another making."""

    chosen = None
    becomes = None

    def forward(self, hidden_states):
        written = []
        hook = self.o_proj.register_forward_pre_hook(lambda _, args: written.append(args[0]))
        super().forward(hidden_states)
        hook.remove()
        mixed = written[0].unflatten(-1, (HEADS, -1)).clone()
        self.mixed = mixed.detach()
        if self.chosen is not None:
            mixed[:, :, self.chosen] = self.becomes
        return self.o_proj(mixed.flatten(-2)), None


@pytest.mark.parametrize("replacement", ["zero", "mean"])
def test_ablation_is_that_of_a_head_replaced_within_the_layer(replacement):
    torch.manual_seed(0)
    model = LanguageModel([Replaced(fused=False), Replaced(fused=False)]).eval()
    batches = [some_tokens(4, 1), some_tokens(6, 2)]

    def loss_fn(net, batch):
        logits = net(batch)[:, :-1].transpose(1, 2)
        return nn.functional.cross_entropy(logits, batch[:, 1:], reduction="none").mean(dim=1)

    def loss():
        with torch.no_grad():
            return torch.cat([loss_fn(model, batch).double() for batch in batches]).mean().item()

    context = measure_context(model, step=3, loss_fn=loss_fn, batches=batches)
    found = measured(HeadAblation(replacement=replacement), context)
    plain, expected = loss(), {}
    for number, layer in enumerate(model.layers):
        seen = []
        for batch in batches:
            with torch.no_grad():
                model(batch)
            seen.append(layer.mixed.flatten(0, 1))
        means = torch.cat(seen).mean(dim=0)
        for head in range(HEADS):
            layer.chosen = head
            layer.becomes = 0.0 if replacement == "zero" else means[head]
            expected[f"head_ablation/L{number}H{head}"] = loss() - plain
        layer.chosen = None
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, abs=2e-7)
        assert abs(value) > 1e-5
    assert found["head_ablation"].value == max(found[name].value for name in expected)


@pytest.mark.parametrize("kind", ["torch", "torch, length first", "TransformerLens", "GPT-2"])
@pytest.mark.parametrize("replacement", ["zero", "mean"])
def test_without_any_of_its_heads_a_layer_writes_its_bias(kind, replacement):
    """Every head of a layer but one is removed by hand; the last one by the ablation."""
    model = make(kind)
    layer = model.layers[1]
    weight = layer.W_O if kind == "TransformerLens" else (
        layer.c_proj.weight if kind == "GPT-2" else layer.out_proj.weight
    )  # fmt: skip
    axis = {"TransformerLens": 0, "GPT-2": 0}.get(kind, 1)
    size = weight.shape[axis] // HEADS
    with torch.no_grad():
        weight.narrow(axis, 0, (HEADS - 1) * size).zero_()
    tokens = some_tokens()

    def loss_fn(net, batch):
        return net(batch).square().mean()

    context = measure_context(model, step=0, loss_fn=loss_fn, batches=[tokens])
    found = measured(HeadAblation(replacement=replacement), context)
    written = []

    def note(_, __, out):
        written.append(out[0] if isinstance(out, tuple) else out)

    layer.register_forward_hook(note)
    with torch.no_grad():
        plain = loss_fn(model, tokens)
        if replacement == "zero":
            weight.zero_()
            expected = loss_fn(model, tokens)
        else:
            length_first = kind == "torch, length first"
            mean = written[0].mean(dim=(0, 1))

            def constant(_, __, out):
                first = out[0] if isinstance(out, tuple) else out
                even = mean.expand_as(first)
                return (even, *out[1:]) if isinstance(out, tuple) else even

            layer.register_forward_hook(constant)
            expected = loss_fn(model, tokens)
            assert length_first == (written[0].shape[0] == LENGTH)
    value = found[f"head_ablation/L1H{HEADS - 1}"].value
    assert value == pytest.approx((expected - plain).item(), abs=2e-6)
    assert abs(value) > 1e-5
    assert found["head_ablation/L1H0"].value == pytest.approx(0.0, abs=1e-6)


def test_an_ablation_leaves_the_measured_weights_as_they_were():
    context = induction_context()
    before = {name: value.clone() for name, value in context.params.items()}
    measured(HeadAblation(replacement="mean"), context)
    assert all(torch.equal(value, before[name]) for name, value in context.params.items())
    assert not any(module._forward_hooks for module in context.model.modules())


def test_frozen_heads_are_ablated_too():
    model = make("torch").requires_grad_(False)
    model.unembed.requires_grad_(True)
    tokens = some_tokens()
    context = measure_context(
        model, step=0, loss_fn=lambda net, batch: net(batch).square().mean(), batches=[tokens]
    )
    assert abs(measured(HeadAblation(), context)["head_ablation"].value) > 0


# How they report, and what they refuse


def language_context(**options):
    options = {"batches": [some_tokens()]} | options
    return measure_context(make("torch"), step=2, **options)


@pytest.mark.parametrize("kind", [PrefixMatching, PreviousToken])
def test_each_head_is_a_part_and_their_maximum_the_total(kind):
    found = measured(kind(sequences=8), language_context())
    name = kind.name
    parts = [f"{name}/L{layer}H{head}" for layer in range(2) for head in range(HEADS)]
    assert list(found) == [name, *parts]
    best = max((found[part] for part in parts), key=lambda one: one.value)
    assert (found[name].value, found[name].stderr) == (best.value, best.stderr)
    assert all(0 < one.value < 1 and 0 < one.stderr < 0.1 for one in found.values())


def test_the_stated_error_is_that_of_the_random_sequences():
    values, errors = [], []
    context = language_context()
    for seed in range(60):
        turn = replace(context, shared=SharedWork(seed))
        found = {o.name: o for o in PrefixMatching(sequences=8).measure(turn)}
        values.append(found["prefix_matching/L0H0"].value)
        errors.append(found["prefix_matching/L0H0"].stderr)
    spread = torch.tensor(values).std().item()
    assert spread == pytest.approx(torch.tensor(errors).square().mean().sqrt().item(), rel=0.3)


def test_many_heads_are_reported_by_layer():
    torch.manual_seed(0)
    layers = [nn.MultiheadAttention(WIDTH, 8, batch_first=True) for _ in range(5)]
    model = LanguageModel(layers, lambda layer, x: layer(x, x, x))
    found = measured(PreviousToken(), measure_context(model, step=0, batches=[some_tokens()]))
    assert list(found) == ["previous_token", *(f"previous_token/L{i}" for i in range(5))]
    assert found["previous_token"].value == max(
        found[f"previous_token/L{i}"].value for i in range(5)
    )


class Listening(nn.Module):
    """Keeps the tokens it is called with."""

    def __init__(self):
        super().__init__()
        self.inner, self.heard = make("torch"), []

    def forward(self, tokens):
        self.heard.append(tokens)
        return self.inner(tokens)


@pytest.mark.parametrize("starts_alike", [True, False])
def test_sequences_are_a_block_twice_of_tokens_that_the_probe_holds(starts_alike):
    probe = some_tokens().clamp(3, 9)
    probe[:, 0] = 1 if starts_alike else torch.arange(3, 7)
    context = measure_context(Listening(), step=0, batches=[probe])
    PrefixMatching(sequences=40).measure(context)
    (tokens,) = context.model.heard
    length = (LENGTH - 1) // 2
    assert tokens.shape == (40, 2 * length + 1)
    assert torch.equal(tokens[:, 1 : length + 1], tokens[:, length + 1 :])
    held = set(probe.unique().tolist()) - {1}
    assert set(tokens[:, 1:].unique().tolist()) == held
    assert set(tokens[:, 0].tolist()) == ({1} if starts_alike else held)


def test_length_and_first_token_can_be_given():
    context = measure_context(Listening(), step=0, batches=[some_tokens()])
    PreviousToken(length=4, bos=2, sequences=5).measure(context)
    (tokens,) = context.model.heard
    assert tokens.shape == (5, 9)
    assert set(tokens[:, 0].tolist()) == {2}
    assert 2 not in tokens[:, 1:]


def no_tokens():
    return language_context(batches=[torch.randn(3, 4)])


def other_vocabulary():
    model = make("TransformerLens")
    model.W_E = nn.Parameter(torch.zeros(VOCABULARY + 1, WIDTH))
    model.W_U = nn.Parameter(torch.zeros(WIDTH, VOCABULARY))
    return measure_context(model, step=0)


def one_layer():
    return measure_context(LanguageModel([SplitMaps()]), step=0)


def no_attention(**options):
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9))
    return measure_context(model, step=0, batches=[torch.ones(2, 8, dtype=torch.long)], **options)


def failing_loss():
    return language_context(loss_fn=lambda model, batch: model(batch) @ torch.ones(1, 1))


REFUSED = {
    "no tokens": (PrefixMatching, no_tokens, "looked for tokens in the probe.*give a probe="),
    "no probe": (PreviousToken, lambda: language_context(batches=[]), "looked for tokens"),
    "one token": (
        PreviousToken,
        lambda: language_context(batches=[torch.ones(2, 9, dtype=torch.long)]),
        "hold 0 tokens",
    ),
    "short": (PreviousToken, lambda: language_context(batches=[some_tokens()[:, :4]]), "of 1;"),
    "too long": (
        lambda: PrefixMatching(length=LENGTH),
        language_context,
        r"tokens of shape \(16, 25\) failed",
    ),
    "vocabularies": (CopyingScore, other_vocabulary, r"found \(16, 14\) and \(13, 16\)"),
    "one layer": (Composition, one_layer, "two attention layers.*has layers.0,"),
    "no loss": (HeadAblation, language_context, "looked for a probe loss"),
    "loss fails": (HeadAblation, failing_loss, "RuntimeError"),
    **{
        f"no attention for {kind.name}": (
            kind,
            lambda: no_attention(loss_fn=lambda model, batch: model(batch).mean()),
            "looked for attention layers.*Embedding",
        )
        for kind in (PrefixMatching, PreviousToken, CopyingScore, Composition, HeadAblation)
    },
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_model_lacks_is_refused_before_the_first_step(what):
    build, context, words = REFUSED[what]
    with pytest.raises(RefusedError, match=words):
        build().check(context())


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: PrefixMatching(length=1), "length is 1; it must be at least 2"),
        (lambda: PreviousToken(sequences=0), "sequences is 0"),
        (lambda: HeadAblation(replacement="noise"), "replacement is 'noise'"),
    ],
)
def test_wrong_arguments_are_said(build, words):
    with pytest.raises(ConfigError, match=words):
        build()


def test_the_mean_cannot_replace_a_head_that_the_loss_does_not_run():
    model = make("torch")
    context = measure_context(
        model,
        step=0,
        loss_fn=lambda net, batch: net.unembed(net.tokens(batch)).square().mean(),
        batches=[some_tokens()],
    )
    with pytest.raises(RefusedError, match=r"does not call 'layers\.0'"):
        HeadAblation(replacement="mean").check(context)


def test_heads_without_a_number_are_marked_and_do_not_lead():
    model = make("torch")
    with torch.no_grad():
        model.layers[0].out_proj.weight.zero_()
    found = measured(CopyingScore(), measure_context(model, step=0))
    assert found["copying_score/L0H0"].status is EstimateStatus.DIVERGED
    assert found["copying_score"].status is EstimateStatus.OK
    assert found["copying_score"].value == max(
        found[f"copying_score/L1H{head}"].value for head in range(HEADS)
    )


def test_weights_in_low_precision_are_measured_in_double():
    model = make("torch")
    rounded = copy.deepcopy(model).bfloat16()
    wide = copy.deepcopy(rounded).float()
    for kind in (CopyingScore, Composition):
        low, high = (measured(kind(), measure_context(m, step=0)) for m in (rounded, wide))
        for name, one in low.items():
            assert one.value == pytest.approx(high[name].value, rel=1e-4, abs=1e-6)
