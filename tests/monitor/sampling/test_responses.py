"""Susceptibilities and influences against closed forms, quadrature and retrained nets."""

import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from phasewatch.monitor.core.errors import MeasurementError, RefusedError
from phasewatch.monitor.core.estimates import EstimateStatus
from phasewatch.monitor.sampling import (
    SamplerConfig,
    estimate_influence,
    estimate_llc,
    estimate_refined_llc,
    estimate_susceptibility,
    witness,
)
from support.gaussian_posterior import PARTS, Regression, half_square, ranks, scaled

CASE = Regression.make()
TIMES = {"n_beta": CASE.n_beta, "localization": CASE.localization}
LONG = {"num_draws": 512, "max_draws": 0}
SHORT = {"num_draws": 64, "max_draws": 0}


def influence(cuts=(), loss_fn=half_square, queries=None, **changes):
    return estimate_influence(
        CASE.model,
        CASE.cut(CASE.probe, *cuts),
        loss_fn,
        [CASE.second] if queries is None else queries,
        n_samples=len(CASE.probe[0]),
        config=SamplerConfig(**TIMES | LONG | changes),
    )


def susceptibility(
    components=None, model=None, cuts=(), loss_fn=half_square, second=None, **changes
):
    return estimate_susceptibility(
        model or CASE.model,
        CASE.cut(CASE.probe, *cuts),
        loss_fn,
        [CASE.second] if second is None else second,
        components or {"first": "first", "second": "second"},
        n_samples=len(CASE.probe[0]),
        config=SamplerConfig(**TIMES | LONG | changes),
    )


# -- exact values ----------------------------------------------------------------------------------

WAYS = [
    {"engine": "vmap"},
    {"engine": "loop"},
    {"engine": "inplace"},
    {"scheme": "lm", "batch_size": 1, "num_draws": 1024},
]


@pytest.mark.parametrize("changes", WAYS, ids=lambda way: "-".join(map(str, way.values())))
def test_influences_are_the_closed_form_in_value_sign_and_error(changes):
    found, truth = influence(cuts=(25,), **changes), CASE.influence()
    assert found.status is EstimateStatus.OK
    assert found.values.shape == found.stderr.shape == truth.shape == (60, 12)
    off = scaled(found.values, truth, found.stderr)
    assert np.sqrt(np.mean(off**2)) < 1.3
    assert np.mean(np.abs(off) < 1.96) > 0.9
    assert np.corrcoef(found.values.ravel(), truth.ravel())[0, 1] > 0.95
    clear = np.abs(truth) > 4 * found.stderr
    assert clear.sum() > 20
    assert (np.sign(found.values) == np.sign(truth))[clear].all()


@pytest.mark.parametrize(
    "changes",
    [{"engine": "vmap"}, WAYS[-1], {"max_bytes": 6000}],
    ids=["side by side", "minibatches", "one component after another"],
)
def test_susceptibilities_are_the_closed_form_in_value_sign_and_error(changes):
    found = susceptibility(cuts=(25,), **changes)
    assert list(found) == ["first", "second"]
    for name, one in found.items():
        truth, held = CASE.susceptibility(PARTS[name])
        assert one.status is EstimateStatus.OK
        assert abs(one.value - truth.mean()) < 3 * one.stderr
        assert abs(one.held - held.mean()) < 3 * one.held_stderr
        assert np.sqrt(np.mean(scaled(one.terms, truth, one.terms_stderr) ** 2)) < 1.5
        assert one.terms.mean() == pytest.approx(one.value)
        # What is believed of its sign is right.
        assert one.held < -2 * one.held_stderr


def test_the_whole_model_answers_by_its_plain_covariance():
    found = susceptibility({"all": None, "first": "first"})
    truth, held = CASE.susceptibility(slice(None))
    assert truth == pytest.approx(held)
    assert (found["all"].value, found["all"].stderr) == (
        found["all"].held,
        found["all"].held_stderr,
    )
    assert abs(found["all"].value - truth.mean()) < 3 * found["all"].stderr
    assert list(found) == ["all", "first"]


def test_data_that_are_the_probe_again_are_no_shift():
    for one in susceptibility(second=[CASE.probe], **SHORT).values():
        assert abs(one.value) < 1e-7
        assert abs(one.held) < 1e-7
        assert one.stderr < 1e-7
        assert np.abs(one.terms).max() > 1e-3  # single samples differ from their mean


class Quartic(nn.Module):
    """ℓ = w⁴ − w³/2 + a w² for a sample a: no Gaussian posterior."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, a):
        return self.w**4 - self.w**3 / 2 + a * self.w**2


def test_a_posterior_that_is_not_gaussian_agrees_with_quadrature():
    probe, second = torch.tensor([0.2, 0.3, 0.4, 0.7]), torch.tensor([0.1, 2.0])
    config = SamplerConfig(n_beta=8.0, localization=0.5, num_draws=2048, max_draws=0)
    arguments = (Quartic(), [probe], lambda model, batch: model(batch))
    found = estimate_influence(*arguments, [second], n_samples=100, config=config)
    shift = estimate_susceptibility(
        *arguments, [second], {"w": "w", "all": None}, n_samples=100, config=config
    )
    w = np.linspace(-4.0, 4.0, 40_001)

    def loss(a):
        return w**4 - w**3 / 2 + a * w**2

    density = np.exp(-8.0 * loss(0.4) - 0.25 * w**2)
    density /= density.sum()

    def covariance(left, right):
        return (density * left * right).sum() - (density * left).sum() * (density * right).sum()

    truth = [[-covariance(loss(a), loss(b)) for b in second.tolist()] for a in probe.tolist()]
    assert (np.abs(scaled(found.values, truth, found.stderr)) < 3.0).all()
    assert (found.stderr < 0.4 * np.abs(truth)).all()
    wanted = -covariance(loss(0.4), loss(1.05) - loss(0.4))
    for one in shift.values():
        assert abs(one.value - wanted) < 3 * one.stderr
        assert one.stderr < 0.4 * abs(wanted)


# -- what they are for -----------------------------------------------------------------------------


def test_influence_tells_what_leaving_a_sample_out_does_to_the_posterior():
    found = influence(num_draws=2048)
    rise = -CASE.n_beta / 60 * found.values
    exact = np.array([CASE.without(index) for index in range(60)])
    assert np.corrcoef(rise.ravel(), exact.ravel())[0, 1] > 0.9
    large = np.abs(exact) > 0.02
    assert large.sum() > 20
    assert (np.sign(rise) == np.sign(exact))[large].mean() > 0.95


def small_net():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def decayed(model, batch):
    """With weight decay, which makes the minimum one point."""
    decay = 1e-3 * sum(p.square().sum() for p in model.parameters())
    return 0.5 * (model(batch[0]) - batch[1]).square().sum(dim=1) + decay


def trained(start, data, keep):
    """The minimum of the loss of the samples that are kept, from the weights of `start`."""
    net = small_net()
    net.load_state_dict(start.state_dict())
    optimizer = torch.optim.LBFGS(
        net.parameters(), max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        total = (decayed(net, data) * keep).mean()
        total.backward()
        return total

    optimizer.step(closure)
    return net


def test_influence_ranks_samples_as_training_without_them_does():
    generator = torch.Generator().manual_seed(3)
    x = torch.linspace(-2, 2, 24)[:, None].double()
    data = (x, torch.sin(1.5 * x) + 0.2 * torch.randn(24, 1, generator=generator))
    query = (torch.tensor([[0.9]]).double(), torch.tensor([[1.4]]).double())
    net = trained(small_net(), data, torch.ones(24))
    before = decayed(net, query).item()
    changes = [
        decayed(trained(net, data, torch.arange(24) != index), query).item() - before
        for index in range(24)
    ]
    config = SamplerConfig(n_beta=500.0, num_draws=2048, max_draws=0)
    found = estimate_influence(net, [data], decayed, [query], n_samples=24, config=config)
    predicted = -500.0 / 24 * found.values[:, 0]
    assert found.status is EstimateStatus.OK
    assert np.corrcoef(ranks(predicted), ranks(changes))[0, 1] > 0.8
    assert np.corrcoef(predicted, changes)[0, 1] > 0.93
    assert 0.7 < np.polyfit(predicted, changes, 1)[0] < 1.4


# -- the chains are those of λ̂ --------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["vmap", "loop", "inplace"])
def test_looking_on_changes_nothing_of_the_chains(engine):
    settings = TIMES | SHORT | {"engine": engine}
    arguments = (CASE.model, [CASE.probe], half_square)
    alone = estimate_llc(*arguments, n_samples=60, config=SamplerConfig(**settings))
    found = influence(**SHORT, engine=engine).estimate
    assert np.array_equal(found.chain_loss, alone.chain_loss)
    assert found.lambda_hat == alone.lambda_hat
    parts = {"": None, "first": "first"}
    refined = estimate_refined_llc(
        *arguments, parts, n_samples=60, config=SamplerConfig(**settings)
    )
    one = susceptibility({"first": "first"}, **SHORT, engine=engine)["first"]
    assert one.estimate.lambda_hat == refined["first"].lambda_hat


def test_the_seed_decides():
    first, again, other = (influence(**SHORT, engine="loop", seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.values, again.values)
    assert np.array_equal(first.stderr, again.stderr)
    assert not np.array_equal(first.values, other.values)


def test_how_data_are_cut_changes_nothing():
    whole = influence(**SHORT, engine="loop")
    cut = influence(cuts=(10, 25), queries=CASE.cut(CASE.second, 1, 7), **SHORT, engine="loop")
    assert cut.values == pytest.approx(whole.values, rel=1e-2, abs=1e-5)
    one = susceptibility(**SHORT, engine="loop")["first"]
    other = susceptibility(
        cuts=(10, 25), second=CASE.cut(CASE.second, 1, 7), **SHORT, engine="loop"
    )
    assert other["first"].value == pytest.approx(one.value, rel=1e-2)
    assert other["first"].terms == pytest.approx(one.terms, rel=1e-2, abs=1e-5)


def test_means_of_batches_are_weighted_by_their_samples():
    def mean(model, batch):
        return half_square(model, batch).mean()

    single = susceptibility(second=CASE.cut(CASE.second, 3), **SHORT, engine="loop")["first"]
    means = susceptibility(second=CASE.cut(CASE.second, 3), loss_fn=mean, **SHORT, engine="loop")
    assert means["first"].value == pytest.approx(single.value, rel=1e-2)
    assert means["first"].terms == pytest.approx(
        [single.terms[:3].mean(), single.terms[3:].mean()], rel=2e-2
    )


def test_the_model_and_the_global_generators_are_left_alone():
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))
    x, y = CASE.probe
    model(x).sum().backward()

    def losses(model, batch):
        return 0.5 * (model(batch[0])[:, 0] - batch[1]).square()

    def picture():
        tensors = [*model.state_dict().values(), *(p.grad for p in model.parameters())]
        bits = [tensor.clone() for tensor in tensors]
        return bits, [m.training for m in model.modules()], random.getstate(), torch.get_rng_state()

    for engine in ("auto", "loop", "inplace"):
        before = picture()
        config = SamplerConfig(**SHORT, engine=engine)
        arguments = {"n_samples": 60, "config": config}
        estimate_influence(model, [(x, y)], losses, [CASE.second], **arguments)
        estimate_susceptibility(model, [(x, y)], losses, [CASE.second], {"a": "0.*"}, **arguments)
        after = picture()
        assert all(map(torch.equal, before[0], after[0]))
        assert before[1:3] == after[1:3]
        assert torch.equal(before[3], after[3])


# -- memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["loop", "inplace"])
def test_records_beyond_the_memory_are_thinned_evenly(monkeypatch, engine):
    row = (60 + 12) * 4 * 4
    monkeypatch.setattr(witness, "MAX_BYTES", 70 * row)
    found, truth = influence(num_draws=1024, engine=engine), CASE.influence()
    assert 35 <= found.num_looks <= 70
    assert found.num_looks == pytest.approx(found.estimate.num_draws / 16, abs=1)
    assert np.sqrt(np.mean(scaled(found.values, truth, found.stderr) ** 2)) < 1.3


def test_losses_that_do_not_fit_are_refused(monkeypatch):
    monkeypatch.setattr(witness, "MAX_BYTES", 63 * (60 + 12) * 4 * 4)
    with pytest.raises(
        RefusedError, match=r"queries: the losses of one draw of 4 chains take 0\.0"
    ):
        influence()


# -- status ----------------------------------------------------------------------------------------


def test_too_few_draws_give_no_number_and_say_so():
    found = influence(num_draws=16, max_draws=0)
    assert found.status is EstimateStatus.UNCONVERGED
    assert np.isnan(found.values).all()
    assert "raise num_draws" in found.reason
    one = susceptibility(num_draws=16, max_draws=0)["first"]
    assert one.status is EstimateStatus.UNCONVERGED
    assert math.isnan(one.value)
    assert math.isnan(one.stderr)


def test_the_status_is_the_gravest_of_the_chains_and_the_reason_names_them():
    found = susceptibility(**SHORT, seed=1)
    for name, one in found.items():
        assert one.status is EstimateStatus.UNCONVERGED
        assert "those of the whole model: relative standard error" in one.reason
        assert (f"the chains of {name!r}" in one.reason) == (one.estimate.reason != "")


def test_a_saddle_is_told_with_the_status_of_the_chains():
    found = influence(loss_fn=lambda model, batch: -half_square(model, batch), localization=400.0)
    assert found.status is EstimateStatus.NEGATIVE
    assert "below zero" in found.reason
    assert np.isfinite(found.values).all()


def test_losses_that_are_not_finite_beside_the_weights_are_no_number():
    def brittle(model, batch):
        losses = half_square(model, batch)
        if len(batch[0]) == 60:
            return losses
        moved = (model.first - CASE.weight[:2].float()).abs().max() > 0.1
        return losses + torch.where(moved, math.inf, 0.0)

    found = influence(loss_fn=brittle)
    assert found.estimate.status is EstimateStatus.OK
    assert found.status is EstimateStatus.DIVERGED
    assert "12 losses that are finite at w* are not at all draws" in found.reason
    one = susceptibility(loss_fn=brittle)["first"]
    assert one.status is EstimateStatus.DIVERGED
    assert math.isnan(one.value)


def test_a_component_that_the_second_loss_does_not_see_is_measured():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.seen, self.unseen = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))

        def forward(self, x):
            return (x[:, :1] * self.seen.square() + x[:, 1:] * self.unseen.square()).sum(dim=1)

    found = estimate_susceptibility(
        Two(),
        [torch.ones(50, 2)],
        lambda model, batch: model(batch),
        [torch.tensor([[2.0, 0.0]])],
        {"seen": "seen", "unseen": "unseen"},
        n_samples=50,
        config=SamplerConfig(**LONG, engine="loop"),
    )
    # ΔL is +1 of the loss of the one part and −1 of the other.
    assert found["seen"].held < -2 * found["seen"].held_stderr
    assert found["unseen"].held > 2 * found["unseen"].held_stderr


def test_correlations_are_scaled_by_both_deviations():
    found = influence(queries=[CASE.probe])
    assert np.abs(found.correlation).max() <= 1 + 1e-9
    assert np.diag(found.correlation) == pytest.approx(-1.0)
    assert found.correlation[3, 7] == pytest.approx(
        found.values[3, 7] / (found.sample_sd[3] * found.query_sd[7])
    )
    assert found.sample_sd == pytest.approx(found.query_sd, rel=1e-4)


def test_words_hold_the_value_its_error_and_what_it_was_measured_at():
    one = susceptibility(**SHORT)["first"]
    assert str(one).startswith(
        f"χ = {one.value:.4g} ± {one.stderr:.2g} nats² of 'first' (n = 60, nβ = 20"
    )
    assert str(influence(**SHORT)).startswith("influence of 60 samples on 12 queries (n = 60, nβ")


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("components", [{}, ["first"], {"": "first"}])
def test_components_without_names_are_refused(components):
    with pytest.raises(RefusedError, match=r"components is .*; it must map at least one name"):
        estimate_susceptibility(
            CASE.model, [CASE.probe], half_square, [CASE.second], components, n_samples=60
        )


def test_unknown_components_are_refused_with_those_there_are():
    with pytest.raises(RefusedError, match="'third', which matches none of first, second"):
        susceptibility({"head": "third"})


def test_losses_of_whole_batches_have_no_influence_of_samples():
    with pytest.raises(RefusedError, match="return the loss of each sample"):
        influence(loss_fn=lambda model, batch: half_square(model, batch).mean())


@pytest.mark.parametrize(
    ("further", "match"),
    [
        ([], "the probe has no batches"),
        ([torch.zeros(3, 5)], "cannot take probe batch 0"),
        ([(torch.full((2, 6), math.nan), torch.zeros(2))], "is nan on batch 0"),
    ],
)
def test_further_data_that_cannot_be_measured_are_named(further, match):
    with pytest.raises(MeasurementError, match=f"queries: .*{match}"):
        influence(queries=further)
    with pytest.raises(MeasurementError, match=f"second_batches: .*{match}"):
        susceptibility(second=further)


def test_losses_that_are_averaged_over_noise_are_refused_and_one_draw_is_measured():
    def noisy(model, batch):
        return half_square(model, batch) * (1.0 + 0.1 * torch.rand(len(batch[0])))

    with pytest.raises(RefusedError, match="noise='frozen'"):
        influence(loss_fn=noisy)
    found = influence(loss_fn=noisy, noise="frozen", **SHORT)
    assert found.estimate.noise == "frozen"
    assert np.corrcoef(found.values.ravel(), CASE.influence().ravel())[0, 1] > 0.6


def test_spread_weights_are_refused(monkeypatch):
    from phasewatch.monitor.sampling import estimate

    monkeypatch.setattr(estimate, "shards_of", lambda model: object())
    with pytest.raises(RefusedError, match="spread over processes"):
        influence()
