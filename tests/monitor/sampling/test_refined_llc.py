"""Learning coefficients of parts of a model."""

import pytest
import torch
from torch import nn

from phasewatch.monitor.config.measuring import SamplerConfig
from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.sampling import attention_heads, estimate_llc, estimate_refined_llc
from phasewatch.monitor.sampling.closed_forms import plain_loss

N_BETA, GAMMA = 50.0, 1.0
CONFIG = {"n_beta": N_BETA, "localization": GAMMA, "num_draws": 256, "max_draws": 0}


class TwoParts(nn.Module):
    """K = ½ Σ h_i w_i² over two vectors of unlike sharpness."""

    def __init__(self):
        super().__init__()
        self.soft = nn.Parameter(torch.zeros(3000))
        self.hard = nn.Parameter(torch.zeros(1000))

    def forward(self, x):
        value = 0.05 * self.soft.square().sum() + 5.0 * self.hard.square().sum()
        return value.expand(len(x))


def truth(curvature, count):
    return count * N_BETA * curvature / (2 * (N_BETA * curvature + GAMMA))


SOFT, HARD = truth(0.1, 3000), truth(10.0, 1000)


def refined(restrictions, model=None, **changes):
    return estimate_refined_llc(
        model or TwoParts(),
        [torch.zeros(4, 1)],
        plain_loss,
        restrictions,
        n_samples=8000,
        config=SamplerConfig(**CONFIG | changes),
    )


def test_parts_measured_together_are_what_each_is_alone():
    model = TwoParts()
    mask = torch.arange(3000) < 600
    found = refined(
        {
            "whole": None,
            "by name": "hard",
            "by pattern": ["so*"],
            "by mask": {"soft": mask},
            "mask and all": {"soft": mask, "hard": torch.ones(1)},
        },
        model,
        engine="vmap",
    )
    wanted = {
        "whole": SOFT + HARD,
        "by name": HARD,
        "by pattern": SOFT,
        "by mask": SOFT / 5,
        "mask and all": SOFT / 5 + HARD,
    }
    assert {name: e.lambda_hat for name, e in found.items()} == pytest.approx(wanted, rel=0.02)
    assert all(abs(e.virial - 1.0) < 0.05 for e in found.values())
    # Each part has the step that its own sharpness allows.
    assert found["by pattern"].step_size > 20 * found["by name"].step_size


@pytest.mark.parametrize("changes", [{"engine": "inplace"}, {"max_bytes": 2**19}])
def test_parts_that_do_not_fit_together_are_measured_one_after_another(changes):
    found = refined({"soft": "soft", "hard": "hard"}, **changes)
    assert found["soft"].lambda_hat == pytest.approx(SOFT, rel=0.03)
    assert found["hard"].lambda_hat == pytest.approx(HARD, rel=0.03)


def test_one_gradient_call_serves_all_parts(monkeypatch):
    from phasewatch.monitor.sampling.engine import VmapEngine

    rows, original = [], VmapEngine.batch

    def counted(engine, x, index):
        rows.append(len(x))
        return original(engine, x, index)

    monkeypatch.setattr(VmapEngine, "batch", counted)
    refined({"soft": "soft", "hard": "hard", "all": None}, engine="vmap")
    assert rows.count(12) >= 250
    assert len([row for row in rows if row != 12]) < 300  # each side's start is its own


def test_the_coordinates_outside_stay_where_they_are(monkeypatch):
    from phasewatch.monitor.sampling import chains

    ended, original = [], chains.ChainGroup.receive

    def watched(run, *arguments):
        yield from original(run, *arguments)
        ended.append(run.chains)

    monkeypatch.setattr(chains.ChainGroup, "receive", watched)
    mask = torch.arange(3000) % 2 == 0
    refined({"": {"soft": mask}}, num_draws=16)
    assert not ended[-1].x[:, ~mask].any()
    assert ended[-1].x[:, mask].all()


def test_a_module_stands_for_its_parameters():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x = torch.randn(100, 3)
    data = (x, model(x).detach())

    def loss(model, batch):
        return 0.5 * (model(batch[0]) - batch[1]).square().sum(dim=1)

    config = SamplerConfig(num_draws=32, max_draws=0)
    by_module, by_name, both = (
        estimate_llc(model, [data], loss, n_samples=100, config=config, parameters=part)
        for part in (model[2], "2.*", [model[2], "0.bias"])
    )
    assert by_module.lambda_hat == by_name.lambda_hat
    assert both.lambda_hat != by_name.lambda_hat


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("third", "'third', which matches none of soft, hard"),
        ([], "parameters= is empty"),
        (nn.Linear(2, 2), "Linear none of whose parameters belong"),
        ({"soft": torch.ones(7)}, r"mask of 'soft' has shape \(7,\); .* shape \(3000,\)"),
        ({"soft": [1, 0]}, "mask of 'soft' has list"),
        ({"soft": torch.zeros(3000)}, "nothing is left to sample"),
    ],
)
def test_what_cannot_be_a_part_is_refused(part, message):
    with pytest.raises(RefusedError, match=message):
        refined({"part": part})


def test_without_parts_there_is_nothing_to_measure():
    with pytest.raises(RefusedError, match="at least one part"):
        refined({})


class Split(nn.Module):
    """Queries of four heads; keys and values that pairs of heads share."""

    def __init__(self):
        super().__init__()
        self.attn = nn.ModuleDict(
            {"q": nn.Linear(8, 8), "k": nn.Linear(8, 4), "v": nn.Linear(8, 4), "o": nn.Linear(8, 8)}
        )


def covered(model, heads):
    """How many heads own each coordinate, by parameter."""
    params = dict(model.named_parameters())
    names = {name for masks in heads.values() for name in masks}
    return {
        name: sum(masks[name].expand(params[name].shape).int() for masks in heads.values())
        for name in names
    }


def test_heads_share_out_an_attention_layer():
    model = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2)})
    heads = attention_heads(model, "attn")
    assert set(heads) == {"attn.head0", "attn.head1"}
    counts = covered(model, heads)
    assert set(counts) == {"attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight"}
    assert all(bool((count == 1).all()) for count in counts.values())
    rows = heads["attn.head1"]["attn.in_proj_weight"].flatten().nonzero().flatten().tolist()
    assert rows == [4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23]
    assert (
        heads["attn.head1"]["attn.out_proj.weight"].flatten().tolist() == [False] * 4 + [True] * 4
    )


def test_heads_of_separate_maps_and_of_groups():
    model = Split()
    heads = attention_heads(model, "attn", 4, reads=["q", "k", "v"], writes="o")
    counts = covered(model, heads)
    assert bool((counts["attn.q.weight"] == 1).all())
    assert bool((counts["attn.k.weight"] == 2).all())
    assert heads["attn.head3"]["attn.k.bias"].tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mlp", {}, "no module 'mlp'; it has attn"),
        ("attn", {}, "only nn.MultiheadAttention is known"),
        ("attn", {"num_heads": 3, "reads": ["q"], "writes": "o"}, "cannot be cut into 3 heads"),
        ("attn", {"num_heads": 4, "reads": ["q"], "writes": "out"}, "no parameter 'out.weight'"),
    ],
)
def test_what_cannot_be_cut_into_heads_is_refused(name, options, message):
    with pytest.raises(RefusedError, match=message):
        attention_heads(Split(), name, **options)


def test_heads_of_a_real_layer_can_be_measured():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    x = torch.randn(64, 5, 8)
    data = (x, model.eval()(x).detach())

    def loss(model, batch):
        return 0.5 * (model(batch[0]) - batch[1]).square().sum(dim=(1, 2))

    found = estimate_refined_llc(
        model,
        [data],
        loss,
        attention_heads(model, "self_attn"),
        n_samples=64,
        config=SamplerConfig(num_draws=32, max_draws=0),
    )
    assert set(found) == {"self_attn.head0", "self_attn.head1"}
    assert all(estimate.lambda_hat > 0.0 for estimate in found.values())
