"""λ̂ under SGD and Entropy-SGD at equal training loss, in three recorded runs of each."""

import math

import numpy as np
import pytest

from support.recorded import GOLDEN, read

SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])


def at_loss(run, seed, stream, target):
    """A stream between its measurements, by the logarithm of the training loss there."""
    seen = read(GOLDEN / f"{run}_{seed}.npz")
    losses = {o.step: math.log(o.value) for o in seen if o.name == "train_loss"}
    at_llc = {o.step for o in seen if o.name == "llc"}
    rows = sorted((losses[o.step], o.value) for o in seen if o.name == stream and o.step in at_llc)
    places, values = np.array(rows).T
    assert places[0] <= math.log(target) <= places[-1], "the run never was at this loss"
    return float(np.interp(math.log(target), places, values))


@SEEDS
@pytest.mark.parametrize("target", [0.07, 0.02, 0.01])
def test_at_the_papers_noise_entropy_sgd_finds_the_same_llc(seed, target):
    plain, entropic = (at_loss(run, seed, "llc", target) for run in ("sgd", "entropy_sgd"))
    assert entropic == pytest.approx(plain, rel=0.12)


@SEEDS
def test_at_the_temperature_of_the_posterior_the_llc_is_far_lower_and_so_is_the_accuracy(seed):
    plain, hot = (at_loss(run, seed, "llc", 0.07) for run in ("sgd", "hot_entropy_sgd"))
    assert hot < 0.6 * plain
    plain, hot = (at_loss(run, seed, "val_loss", 0.07) for run in ("sgd", "hot_entropy_sgd"))
    assert hot > plain


@SEEDS
@pytest.mark.parametrize("target", [0.02, 0.01])
def test_the_llc_stays_lower_when_plain_sgd_has_taken_the_noise_away(seed, target):
    plain, cooled = (at_loss(run, seed, "llc", target) for run in ("sgd", "cooled_entropy_sgd"))
    assert 0.5 * plain < cooled < 0.8 * plain


@SEEDS
def test_nearly_all_estimates_may_be_trusted(seed):
    for run in ("sgd", "entropy_sgd", "hot_entropy_sgd", "cooled_entropy_sgd"):
        good = [o.status == "ok" for o in read(GOLDEN / f"{run}_{seed}.npz") if o.name == "llc"]
        assert len(good) == 12
        assert sum(good) >= 10
