"""Chains that go on from where those of an earlier measurement stood."""

import gc

import numpy as np
import pytest
import torch

from phasewatch.monitor.config.measuring import SamplerConfig
from phasewatch.monitor.sampling import Memory, measure_llc
from phasewatch.monitor.sampling.closed_forms import Quadratic, plain_loss

SPECTRUM = np.geomspace(0.01, 30.0, 24)
N_BETA = 200.0
SETTINGS = {"n_beta": N_BETA, "localization": 1.0, "num_draws": 64, "max_draws": 0}


def truth(spectrum=SPECTRUM, localization=1.0):
    """λ̂ of K = ½ Σ h_i w_i² in equilibrium: ½ Σ nβ h_i / (nβ h_i + γ)."""
    return 0.5 * float(np.sum(N_BETA * spectrum / (N_BETA * spectrum + localization)))


@pytest.fixture
def measure(context_of):
    def one(memory, spectrum=SPECTRUM, seed=0, **changes):
        context = context_of(Quadratic(spectrum.tolist()), [torch.zeros(8, 1)], plain_loss)
        context.generator.manual_seed(seed)
        config = SamplerConfig(**SETTINGS | changes)
        return measure_llc(context, config, memory=memory)

    return one


def rms(errors):
    return float(np.sqrt(np.mean(np.square(errors))))


@pytest.mark.slow
def test_warm_chains_agree_with_the_truth_at_half_the_draws(measure):
    memory = Memory()
    first = measure(memory)
    later = [measure(memory, seed=seed) for seed in range(1, 25)]
    cold = [measure(Memory(), seed=seed) for seed in range(1, 25)]
    assert not first.warm
    assert all(estimate.warm for estimate in later)
    assert not any(estimate.warm for estimate in cold)
    drawn = [estimate.num_draws + estimate.num_burnin for estimate in later]
    assert drawn == [32] * 24
    warm_error = rms([e.lambda_hat - truth() for e in later])
    cold_error = rms([e.lambda_hat - truth() for e in cold])
    assert warm_error < 1.2 * cold_error
    assert abs(np.mean([e.lambda_hat for e in later]) - truth()) < 0.06 * truth()


def test_chains_follow_a_curvature_that_changes(measure):
    memory = Memory()
    measure(memory, num_draws=128)
    sharper = [measure(memory, SPECTRUM * 2.0, seed=seed, num_draws=128) for seed in range(1, 7)]
    assert all(estimate.warm for estimate in sharper)
    assert np.mean([e.lambda_hat for e in sharper]) == pytest.approx(
        truth(SPECTRUM * 2.0), rel=0.08
    )


@pytest.mark.parametrize("factor", [100.0, 0.001])
def test_a_landscape_that_changed_too_much_is_started_cold(measure, factor):
    memory = Memory()
    measure(memory)
    estimate = measure(memory, SPECTRUM * factor)
    assert not estimate.warm
    assert estimate.num_draws + estimate.num_burnin == 64


def test_chains_of_another_size_are_started_cold(measure):
    memory = Memory()
    measure(memory)
    assert not measure(memory, SPECTRUM[:5]).warm


def test_diverged_chains_are_not_kept(measure):
    memory = Memory()
    measure(memory)
    assert memory.displacement is not None
    lost = measure(memory, step_size=100.0)
    assert lost.num_diverged == 4
    assert memory.displacement is None


def test_it_can_be_switched_off(measure):
    memory = Memory()
    measure(memory, warm_start=False)
    assert memory.displacement is None
    assert not measure(memory, warm_start=False).warm


def test_a_blow_up_of_warm_chains_starts_them_cold(measure, monkeypatch):
    from phasewatch.monitor.sampling import chains

    memory = Memory()
    measure(memory)
    whole, poison = chains.ChainGroup.receive, [True] * 2

    def poisoned(self, found, *arguments):
        if self.warm and len(self.record) == 5 and poison:
            poison.pop()
            found.loss[1] = float("inf")
        yield from whole(self, found, *arguments)

    monkeypatch.setattr(chains.ChainGroup, "receive", poisoned)
    estimate = measure(memory)
    assert (estimate.warm, estimate.num_resets, estimate.num_diverged) == (False, 1, 0)
    assert estimate.num_draws + estimate.num_burnin == 64


@pytest.mark.parametrize(
    "engine", ["vmap", "loop", pytest.param("inplace", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("scheme", ["baoab", "lm"])
def test_a_measurement_is_freed_without_the_cycle_collector(measure, engine, scheme):
    """Cycles wait for the collector, which counts objects, not the gigabytes they hold."""

    def alive():
        return sum(type(found) is torch.Tensor for found in gc.get_objects())

    memory = Memory()
    measure(memory, engine=engine, scheme=scheme)
    gc.collect()
    gc.disable()
    try:
        before = alive()
        for seed in range(3):
            measure(memory, seed=seed, engine=engine, scheme=scheme)
        assert alive() <= before
    finally:
        gc.enable()
