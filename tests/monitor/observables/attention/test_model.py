"""Attention found by structure: the same patterns, the same maps, and the model undisturbed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.isolation import measure_context
from phasewatch.monitor.observables.attention.found import FoundAttention, logits_of, written_by
from phasewatch.monitor.observables.attention.layers import heads_of
from phasewatch.monitor.observables.attention.looking import (
    attention_of,
    forward,
    token_batches,
    try_forward,
)
from phasewatch.monitor.observables.attention.model import Pass
from phasewatch.monitor.observables.attention.watching import watched
from support.attention_models import (
    HEADS,
    LENGTH,
    MODELS,
    VOCABULARY,
    WIDTH,
    LanguageModel,
    Lens,
    SplitMaps,
    encoder,
    encoder_layer,
    make,
    multihead,
    some_tokens,
    torch_attention,
)

FOUND = FoundAttention()
TOKENS = some_tokens()
every = pytest.mark.parametrize("kind", MODELS)


def without_gradients(function, *arguments):
    with torch.no_grad():
        return function(*arguments)


def seen(model, tokens=TOKENS):
    """Heads of each layer, and what went in and out of it."""
    layers = FOUND.heads(model)
    with torch.no_grad(), watched(model, {h.module: len(h.w_o) for h in layers}) as calls:
        model(tokens)
    return [(heads, *calls[heads.module]) for heads in layers]


@every
def test_the_model_computes_the_same_while_it_is_watched(kind):
    model = make(kind)
    plain = without_gradients(model, TOKENS)
    found = without_gradients(FOUND.forward, model, TOKENS)
    # The fast path of an encoder layer rounds otherwise than the path that shows its attention.
    torch.testing.assert_close(found.logits, plain, rtol=1e-5, atol=2e-6)
    assert torch.equal(without_gradients(model, TOKENS), plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@every
def test_patterns_are_causal_and_rows_sum_to_one(kind):
    for pattern in without_gradients(FOUND.forward, make(kind), TOKENS).patterns:
        assert pattern.shape == (len(TOKENS), HEADS, LENGTH, LENGTH)
        torch.testing.assert_close(pattern.sum(dim=-1), torch.ones(pattern.shape[:3]))
        assert not pattern.triu(1).any()
        assert pattern.std() > 0.05, "an even pattern would hide a mistake"


@every
def test_what_the_heads_write_is_the_output_of_their_layer_but_for_the_biases(kind):
    model = make(kind).requires_grad_(False)
    for heads, call in seen(model):
        written = written_by(heads, call.pattern, call.value)
        assert written.shape == (len(TOKENS), HEADS, LENGTH, WIDTH)
        constant = call.output - written.sum(dim=1)
        assert float(call.output.std(dim=(0, 1)).min()) > 1e-3
        assert float(constant.std(dim=(0, 1)).max()) < 1e-6


@every
def test_the_parameter_of_the_output_map_is_cut_where_it_is_said(kind):
    model = make(kind)
    parameters = dict(model.named_parameters())
    for heads in FOUND.heads(model):
        blocks = parameters[heads.output].chunk(HEADS, dim=heads.output_axis)
        for block, w_o in zip(blocks, heads.w_o, strict=True):
            flat = block.reshape(-1, block.shape[-1])
            assert torch.equal(flat if heads.output_axis == 1 else flat.T, w_o)


# The layers below have neither biases nor rotary positions: their scores are those of W_Q and W_K.
PLAIN = {
    "torch": (lambda: multihead(True, bias=False), torch_attention),
    "encoder": (
        lambda: nn.TransformerEncoderLayer(WIDTH, HEADS, 8, batch_first=True, bias=False),
        encoder,
    ),
    "TransformerLens": (Lens, MODELS["TransformerLens"]().call),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_queries_and_keys_give_the_pattern(kind):
    torch.manual_seed(3)
    layer, call = PLAIN[kind]
    model = LanguageModel([layer()], call).eval()
    for name, parameter in model.named_parameters():
        if ".b_" in name:
            nn.init.zeros_(parameter)
    ((heads, one),) = seen(model)
    queries = torch.einsum("hed,bld->bhle", heads.w_q, one.value)
    keys = torch.einsum("hed,bld->bhle", heads.w_k, one.value)
    scores = queries @ keys.mT / (WIDTH // HEADS) ** 0.5
    future = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    expected = scores.masked_fill(future, -torch.inf).softmax(dim=-1)
    torch.testing.assert_close(one.pattern, expected.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["TransformerLens", "GPT-2", "Llama, written out"])
def test_a_pattern_is_that_of_the_model_s_own_computation(kind):
    model = make(kind)
    for (_, call), layer in zip(seen(model), model.layers, strict=True):
        assert torch.equal(call.pattern, layer.pattern)


@pytest.mark.parametrize(("fused", "plain"), [("GPT-2, fused", "GPT-2"), ("Llama", None)])
def test_the_pattern_of_a_fused_kernel_is_that_of_the_layer_written_out(fused, plain):
    model = make(fused)
    other = make(plain) if plain else copy.deepcopy(model)
    for layer in other.layers:
        layer.fused = False
    for (_, a), (_, b) in zip(seen(model), seen(other), strict=True):
        torch.testing.assert_close(a.pattern, b.pattern)


@pytest.mark.parametrize(
    "options",
    [
        {"is_causal": True},
        {"attn_mask": torch.ones(6, 6, dtype=torch.bool).tril()},
        {"attn_mask": torch.randn(6, 6), "scale": 0.3},
        {"dropout_p": 0.0},
    ],
    ids=["causal", "boolean mask", "added mask and scale", "none"],
)
@pytest.mark.parametrize("key_heads", [4, 2])
def test_what_the_fused_kernel_attends_to_gives_what_it_returns(options, key_heads):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, n, 6, 3) for n in (4, key_heads, key_heads))

    class Layer(SplitMaps):
        def forward(self, x):
            return F.scaled_dot_product_attention(query, key, value, **options, enable_gqa=True)

    model = nn.ModuleDict({"layer": Layer()})
    with watched(model, {"layer": 4}) as calls:
        out = model["layer"](torch.zeros(2, 6, WIDTH))
    pattern = calls["layer"][0].pattern
    expected = pattern @ value.repeat_interleave(4 // key_heads, dim=1)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("averaged", [True, False])
def test_a_caller_that_asks_for_the_weights_of_torch_s_attention_gets_what_it_asked_for(averaged):
    torch.manual_seed(0)
    layer, x = multihead(True), torch.randn(2, 5, WIDTH)
    options = {"need_weights": True, "average_attn_weights": averaged}
    plain = layer(x, x, x, **options)[1]
    with watched(layer, {"": HEADS}):
        assert torch.equal(layer(x, x, x, **options)[1], plain)


def test_the_embeddings_are_those_of_the_tokens_not_of_the_positions():
    model = make("torch")
    assert torch.equal(FOUND.embedding(model), model.tokens.weight.T)
    assert torch.equal(FOUND.unembedding(model), model.unembed.weight)


def test_embeddings_named_as_in_transformerlens_are_taken():
    model = make("TransformerLens")
    model.W_E = nn.Parameter(torch.randn(7, WIDTH))
    model.W_U = nn.Parameter(torch.randn(WIDTH, 7))
    assert torch.equal(FOUND.embedding(model), model.W_E.T)
    assert torch.equal(FOUND.unembedding(model), model.W_U.T)


def test_a_model_without_unembedding_is_told_what_was_looked_for():
    model = make("torch")
    model.unembed = nn.Linear(WIDTH, VOCABULARY + 1)
    with pytest.raises(
        RefusedError, match=f"nn.Embedding is of width {WIDTH}.*as many outputs as that has tokens"
    ):
        FOUND.unembedding(model)


class Gated(SplitMaps):
    """Scales a head: not what its maps say."""

    def forward(self, hidden_states):
        written, pattern = super().forward(hidden_states)
        return written * torch.sigmoid(hidden_states[..., :1]), pattern


class Unseen(SplitMaps):
    """Attends in a way that nobody can see."""

    def forward(self, hidden_states):
        return self.o_proj(self.q_proj(hidden_states))


class Twice(LanguageModel):
    def forward(self, tokens):
        x = self.tokens(tokens)
        return self.unembed(self.layers[0](x)[0] + self.layers[0](2 * x)[0])


class Silent(LanguageModel):
    def forward(self, tokens):
        return self.tokens(tokens).sum()


REFUSED = {
    "no attention": (
        lambda: nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5)),
        "looked for attention layers: nn.MultiheadAttention.*Sequential, Embedding, Linear.*"
        "give attention=",
    ),
    "gated": (lambda: LanguageModel([Gated()]), "'layers.0' writes something else"),
    "unseen": (lambda: LanguageModel([Unseen()]), "cannot be seen.*attn_implementation"),
    "twice": (lambda: Twice([SplitMaps()]), "'layers.0' is called 2 times"),
    "no logits": (lambda: Silent([SplitMaps()]), "gave no logits"),
    "not tokens": (
        lambda: nn.Sequential(nn.Linear(4, 4), SplitMaps()),
        r"calling the model on tokens of shape \(4, 12\) failed \(RuntimeError",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_understood_is_refused_by_name(kind):
    torch.manual_seed(0)
    build, words = REFUSED[kind]
    context = measure_context(build(), step=0)
    with pytest.raises(RefusedError, match=words):
        try_forward(context, attention_of(context), TOKENS)


def test_attention_with_learnt_extra_keys_is_not_taken_for_ours():
    assert heads_of("a", multihead(True, add_bias_kv=True)) is None
    assert heads_of("a", multihead(True, add_zero_attn=True)) is None


def test_layers_are_told_from_others_that_only_look_alike():
    layer = SplitMaps()
    layer.config.num_attention_heads = 5  # does not divide the width
    assert heads_of("a", layer) is None
    layer.config = None
    assert heads_of("a", layer) is None
    layer.head_dim = 4
    assert len(heads_of("a", layer).w_q) == 4
    layer.v_proj = nn.Identity()
    assert heads_of("a", layer) is None


class Own:
    """A user's own adapter."""

    def heads(self, model):
        return FOUND.heads(model)

    def forward(self, model, tokens):
        return Pass(logits=model(tokens), patterns=[])

    embedding = unembedding = heads


def test_the_user_s_own_comes_first_then_the_model_s_method_then_what_is_found():
    model, own, other = make("torch"), Own(), Own()
    context = measure_context(model, step=0)
    assert isinstance(attention_of(context), FoundAttention)
    context.model.attention_heads = lambda: own
    assert attention_of(context) is own
    assert attention_of(context, other) is other
    try_forward(context, own, TOKENS)


def test_an_object_that_lacks_a_method_is_refused():
    with pytest.raises(RefusedError, match=r"object lacks one of heads\(model\)"):
        attention_of(measure_context(make("torch"), step=0), object())


def test_a_copy_that_is_measured_shows_the_weights_it_is_given():
    model = make("encoder")
    context = measure_context(model, step=0)
    try_forward(context, attention_of(context), TOKENS)
    expected = without_gradients(FOUND.forward, model, TOKENS).patterns[1]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    found = forward(context, attention_of(context), TOKENS).patterns[1]
    torch.testing.assert_close(found, expected)


def test_tokens_are_found_in_batches_of_any_nesting():
    mask, floats = torch.ones(2, 5, dtype=torch.bool), torch.ones(2, 5)
    ids, labels = torch.arange(10).view(2, 5), torch.zeros(2, dtype=torch.int64)
    batches = [
        {"mask": mask, "input_ids": ids},
        [floats, (labels, ids)],
        ids.int(),
        (floats, "words", 3),
    ]
    context = measure_context(make("torch"), step=0, batches=batches)
    found = list(token_batches(context))
    assert len(found) == 3
    assert all(torch.equal(tokens.long(), ids) for tokens in found)


def test_logits_are_found_in_what_libraries_return():
    logits = torch.zeros(2, 5, 7)

    class Output:
        pass

    output = Output()
    output.logits = logits
    for given in (logits, (logits, None), [logits], output):
        assert logits_of(given) is logits
    with pytest.raises(RefusedError, match="Output"):
        logits_of(Output())


def test_low_precision_is_measured_too():
    model = make("GPT-2, fused").bfloat16()
    found = without_gradients(FOUND.forward, model, TOKENS)
    assert found.patterns[0].dtype is torch.bfloat16
    without_gradients(FOUND.verify, model, TOKENS)


def test_an_encoder_layer_without_gradients_shows_its_attention_though_it_has_a_fast_path():
    layer = encoder_layer(True).eval()
    called = []
    real = torch._transformer_encoder_layer_fwd
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(
            torch, "_transformer_encoder_layer_fwd", lambda *a: called.append(1) or real(*a)
        )
        x = torch.randn(2, 5, WIDTH)
        layer(x)
        assert called, "the fast path is what is tested here"
        called.clear()
        with watched(layer, {"self_attn": HEADS}) as calls:
            layer(x)
        assert not called
    assert calls["self_attn"][0].pattern.shape == (2, HEADS, 5, 5)
