"""`estimate_llc` as users call it: right numbers, clear refusals, and a model left alone."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from phasewatch.monitor.core.errors import MeasurementError, RefusedError
from phasewatch.monitor.core.estimates import EstimateStatus
from phasewatch.monitor.sampling import SamplerConfig, estimate_llc, measure_llc
from phasewatch.monitor.sampling.closed_forms import Quadratic, plain_loss


def fingerprint(model):
    tensors = {name: t.clone() for name, t in model.state_dict().items()}
    grads = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    flags = [m.training for m in model.modules()]
    trains = [p.requires_grad for p in model.parameters()]
    return tensors, grads, flags, trains


def assert_same(before, after):
    for left, right in zip(before[:2], after[:2], strict=True):
        assert left.keys() == right.keys()
        for name in left:
            if left[name] is None:
                assert right[name] is None
            else:
                assert torch.equal(left[name], right[name]), name
    assert before[2:] == after[2:]


def global_state():
    return torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002


def assert_same_global_state(before, after):
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


@pytest.fixture
def noisy_model():
    """BatchNorm and dropout, in train mode, with gradients: much that could be disturbed."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 2)
    )
    model[0].weight.requires_grad_(False)
    model(torch.randn(8, 3)).sum().backward()
    return model


def test_the_model_and_the_global_generators_are_left_alone(noisy_model, data, loss, quick):
    before, world = fingerprint(noisy_model), global_state()
    estimate = estimate_llc(noisy_model, [data], loss, n_samples=200, config=quick())
    assert np.isfinite(estimate.lambda_hat)
    assert_same(before, fingerprint(noisy_model))
    assert_same_global_state(world, global_state())


def test_they_are_left_alone_when_the_loss_raises_in_the_middle(noisy_model, data, loss, quick):
    calls = []

    def failing(model, batch):
        calls.append(1)
        if len(calls) > 30:
            raise RuntimeError("boom")
        return loss(model, batch)

    before, world = fingerprint(noisy_model), global_state()
    with pytest.raises(RuntimeError, match="boom"):
        estimate_llc(noisy_model, [data], failing, n_samples=200, config=quick(engine="loop"))
    assert_same(before, fingerprint(noisy_model))
    assert_same_global_state(world, global_state())


def test_nothing_is_drawn_from_a_global_generator(context_of, model, data, quick):
    context = context_of(model, [data])
    world = global_state()
    for config in (quick(), quick(scheme="sgld"), quick(engine="loop")):
        measure_llc(context, config)
    assert_same_global_state(world, global_state())


def test_the_same_seed_gives_the_same_number(model, data, loss, quick):
    def value(seed):
        config = quick(seed=seed, engine="vmap")
        return estimate_llc(model, [data], loss, n_samples=200, config=config).lambda_hat

    assert value(1) == value(1)
    assert value(1) != value(2)


@pytest.mark.parametrize("scheme", ["baoab", "sgld"])
@pytest.mark.parametrize("reduce", [False, True])
def test_how_the_probe_is_cut_does_not_matter(scheme, reduce, model, data, loss, quick):
    def loss_fn(model, batch):
        losses = loss(model, batch)
        return losses.mean() if reduce else losses

    def value(*sizes):
        batches = list(zip(*(part.split(sizes) for part in data), strict=True))
        config = quick(scheme=scheme, engine="loop")
        return estimate_llc(model, batches, loss_fn, n_samples=200, config=config)

    whole, cut = value(200), value(90, 80, 30)
    assert cut.init_loss == pytest.approx(whole.init_loss, rel=1e-6)
    assert cut.lambda_hat == pytest.approx(whole.lambda_hat, rel=1e-3)


def test_minibatch_sgld_pairs_the_baseline(data, quick):
    """The batches' losses at w* differ a hundredfold more than λ̂; none of it gets through."""
    model = Quadratic([1.0] * 2000)

    def loss_fn(model, batch):
        return plain_loss(model, batch) + batch[:, 0]

    batches = [torch.full((10, 1), float(level)) for level in (0, 100, 500, 1000)]
    config = SamplerConfig(
        scheme="sgld", batch_size=1, n_beta=50.0, num_draws=400, max_draws=0, step_size=0.002
    )
    estimate = estimate_llc(model, batches, loss_fn, n_samples=40, config=config)
    assert estimate.init_loss == pytest.approx(400.0)
    kappa = 51.0
    truth = 2000 * 50.0 / (2 * kappa * (1 - 0.002 * kappa / 4))
    assert estimate.lambda_hat == pytest.approx(truth, rel=0.02)


def test_parameters_restricts_sampling(quick):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Parameter(torch.zeros(3000))
            self.second = nn.Parameter(torch.zeros(1000))

    def loss_fn(model, batch):
        total = 0.5 * (model.first.square().sum() + model.second.square().sum())
        return total.expand(len(batch))

    config = SamplerConfig(n_beta=100.0, num_draws=128, max_draws=0)
    values = {
        pattern: estimate_llc(
            Two(), [torch.zeros(4)], loss_fn, n_samples=500, config=config, parameters=[pattern]
        ).lambda_hat
        for pattern in ("first", "sec*", "*")
    }
    share = 100.0 / 101.0 / 2
    assert values["first"] == pytest.approx(3000 * share, rel=0.03)
    assert values["sec*"] == pytest.approx(1000 * share, rel=0.03)
    assert values["*"] == pytest.approx(4000 * share, rel=0.03)
    with pytest.raises(RefusedError, match=r"third.*first, second"):
        estimate_llc(Two(), [torch.zeros(4)], loss_fn, n_samples=500, parameters=["third"])


def test_regular_model_with_noise_has_lambda_and_nu_of_half_d(loss):
    """Centred on the empirical minimum; ν̂ counts the noise that the centre has absorbed."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 10, generator=generator)
    y = torch.randn(2000, 1, generator=generator)
    model = nn.Linear(10, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
    estimate = estimate_llc(model, [(x, y)], loss, n_samples=2000, config=SamplerConfig())
    assert estimate.status is EstimateStatus.OK
    assert estimate.lambda_hat == pytest.approx(5.0, abs=3 * estimate.lambda_stderr)
    assert estimate.lambda_hat == pytest.approx(5.0, rel=0.15)
    assert estimate.nu_hat == pytest.approx(5.0, rel=0.2)
    assert estimate.wbic == pytest.approx(2000 * estimate.chain_loss.mean(), rel=1e-6)
    assert estimate.chain_loss.shape == (4, estimate.num_draws)
    assert estimate.n_beta == pytest.approx(2000 / np.log(2000))
    other = estimate_llc(model, [(x, y)], loss, n_samples=2000, config=SamplerConfig(n_beta=100.0))
    assert other.wbic is None
    averaged = estimate_llc(
        model, [(x, y)], lambda m, b: loss(m, b).mean(), n_samples=2000, config=SamplerConfig()
    )
    assert averaged.nu_hat is None


def test_weights_that_are_no_minimum_are_negative_and_say_so(data, loss):
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.fill_(5.0)
    estimate = estimate_llc(model, [data], loss, n_samples=200)
    assert estimate.lambda_hat < 0
    assert estimate.status is EstimateStatus.NEGATIVE
    assert "not a local minimum" in estimate.reason


def test_a_step_that_is_far_too_long_is_marked_diverged(model, data, loss):
    config = SamplerConfig(scheme="sgld", step_size=1e3)
    estimate = estimate_llc(model, [data], loss, n_samples=200, config=config)
    assert estimate.status is EstimateStatus.DIVERGED
    assert estimate.num_diverged == estimate.num_chains == 4
    assert np.isnan(estimate.lambda_hat)
    assert "step_size" in estimate.reason


def test_one_diverged_chain_is_excluded_and_the_estimate_is_marked(context_of, model, data, quick):
    from phasewatch.monitor.sampling import chains

    original = chains.ChainGroup.receive

    def poisoned(run, found, *arguments):
        if len(run.record) == 20:
            found.loss[1] = float("nan")
        yield from original(run, found, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chains.ChainGroup, "receive", poisoned)
        estimate = measure_llc(context_of(model, [data]), quick(step_size=1e-4))
    assert estimate.num_diverged == 1
    assert estimate.chain_loss.shape[0] == 3
    assert np.isfinite(estimate.lambda_hat)
    assert estimate.status is EstimateStatus.UNCONVERGED
    assert "1 of 4 chains diverged" in estimate.reason


def test_a_blow_up_restarts_with_a_shorter_step(context_of, model, data, quick):
    from phasewatch.monitor.sampling import chains

    original, poison = chains.ChainGroup.receive, [True]

    def poisoned(run, found, *arguments):
        if len(run.record) == 20 and poison:
            poison.pop()
            found.loss[1] = float("inf")
        yield from original(run, found, *arguments)

    calm = measure_llc(context_of(model, [data]), quick())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chains.ChainGroup, "receive", poisoned)
        estimate = measure_llc(context_of(model, [data]), quick())
    assert estimate.num_resets == 1
    assert estimate.num_diverged == 0
    assert len(calm.chain_loss[0]) == calm.num_draws
    assert estimate.num_draws + estimate.num_burnin == calm.num_draws + calm.num_burnin
    assert estimate.step_size == pytest.approx(calm.step_size / 4, rel=0.5)


def test_a_deadline_shortens_the_chains(context_of, model, data):
    estimate = measure_llc(
        context_of(model, [data], deadline_seconds=0.0), SamplerConfig(num_draws=4096)
    )
    assert estimate.num_draws + estimate.num_burnin == 32
    assert estimate.num_burnin % 4 == 0
    assert estimate.num_burnin <= 16


def test_chains_go_on_until_the_error_is_small(context_of, data):
    model = Quadratic([1.0])
    context = context_of(model, [torch.zeros(4, 1)], plain_loss)
    short = measure_llc(context, SamplerConfig(num_draws=32, max_draws=32))
    long = measure_llc(context, SamplerConfig(num_draws=32))
    assert short.status is EstimateStatus.UNCONVERGED
    assert "standard error" in short.reason
    assert long.status is EstimateStatus.OK
    assert long.num_draws > 4 * short.num_draws


def test_a_probe_that_is_too_small_is_marked(loss, model, data):
    few = tuple(part[:20] for part in data)
    estimate = estimate_llc(
        Quadratic([1.0] * 200),
        [torch.zeros(4, 1)],
        plain_loss,
        n_samples=200,
        config=SamplerConfig(),
    )
    assert estimate.status is EstimateStatus.UNCONVERGED
    assert "probe too small" in estimate.reason
    assert len(few[0]) == 20


class TestRefusals:
    def test_a_closure_over_the_live_model(self, context_of, data, quick):
        live = nn.Linear(3, 2)

        def closure(_model, batch):
            return (live(batch[0]) - batch[1]).square().sum(-1)

        with pytest.raises(RefusedError, match="loss_fn="):
            estimate_llc(live, [data], closure, n_samples=200, config=quick())
        assert live.weight.grad is None

    def test_a_loss_that_does_not_depend_on_the_weights(self, model, data, quick):
        with pytest.raises(RefusedError, match="does not react"):
            estimate_llc(
                model, [data], lambda m, b: 0.0 * m(b[0]).sum(-1), n_samples=200, config=quick()
            )

    def test_a_loss_under_no_grad(self, model, data, loss, quick):
        with pytest.raises(RefusedError, match="no_grad"):
            estimate_llc(model, [data], torch.no_grad()(loss), n_samples=200, config=quick())

    def test_a_model_without_trainable_parameters(self, data, loss, quick):
        model = nn.Linear(3, 2).requires_grad_(False)
        with pytest.raises(RefusedError, match="requires_grad"):
            estimate_llc(model, [data], loss, n_samples=200, config=quick())

    def test_no_batches(self, model, loss, quick):
        with pytest.raises(RefusedError, match="at least one"):
            estimate_llc(model, [], loss, n_samples=200, config=quick())

    def test_an_empty_batch(self, model, data, loss, quick):
        empty = tuple(part[:0] for part in data)
        with pytest.raises(RefusedError, match="empty"):
            estimate_llc(model, [empty], loss, n_samples=200, config=quick())

    def test_a_batch_that_the_loss_cannot_take(self, model, data, loss, quick):
        with pytest.raises(RefusedError, match=r"batch 1 \(tuple: \(200, 2\), \(200, 3\)\)"):
            estimate_llc(model, [data, data[::-1]], loss, n_samples=200, config=quick())

    def test_a_loss_that_is_no_tensor(self, model, data, quick):
        with pytest.raises(RefusedError, match="returned dict"):
            estimate_llc(model, [data], lambda m, b: {"loss": 1}, n_samples=200, config=quick())

    def test_too_few_terms(self, model, data, loss, quick):
        with pytest.raises(RefusedError, match="n_samples is 1"):
            estimate_llc(model, [data], loss, n_samples=1, config=quick())

    def test_minibatches_with_underdamped_chains(self, model, data, loss, quick):
        halves = list(zip(*(part.split(100) for part in data), strict=True))
        with pytest.raises(RefusedError, match="scheme='lm'"):
            estimate_llc(model, halves, loss, n_samples=200, config=quick(batch_size=1))

    def test_too_little_memory(self, model, data, loss, quick):
        with pytest.raises(RefusedError, match="max_bytes"):
            estimate_llc(model, [data], loss, n_samples=200, config=quick(max_bytes=1000))

    def test_a_loss_that_is_not_finite_may_be_so_later(self, model, data, loss, quick):
        with pytest.raises(MeasurementError, match="is nan") as caught:
            estimate_llc(
                model, [data], lambda m, b: loss(m, b) * float("nan"), n_samples=200, config=quick()
            )
        assert not isinstance(caught.value, RefusedError)
