"""Streams without a transition: what each class promises."""

import numpy as np
import pytest

from phasewatch.detectors.evaluation import null_streams
from phasewatch.detectors.evaluation.scoring import null_points

POINTS = 4000


def log_loss(name, num_points=POINTS, seed=0):
    return np.log10(null_streams.values(name, num_points, seed))


def largest_fall(log_values, points, window=9):
    """Largest fall of a running mean over so many points."""
    smooth = np.convolve(log_values, np.ones(window) / window, mode="valid")
    return float(np.max(smooth[:-points] - smooth[points:]))


@pytest.mark.parametrize("name", null_streams.names())
def test_every_class_is_a_positive_loss_and_the_same_for_the_same_seed(name):
    values = null_streams.values(name, POINTS, seed=3)
    assert values.shape == (POINTS,)
    assert np.all(np.isfinite(values))
    assert np.all(values > 0.0)
    assert np.array_equal(values, null_streams.values(name, POINTS, seed=3))
    if "constant" not in name:
        assert not np.allclose(values, null_streams.values(name, POINTS, seed=4))


@pytest.mark.parametrize("name", null_streams.names())
def test_every_point_of_a_curve_is_a_null_point(name):
    curve = null_streams.curve(name, 200)
    assert len(null_points(curve)) == 200
    assert curve.source == name


@pytest.mark.parametrize(("name", "phi"), [("white", 0.0), ("AR(0.6)", 0.6), ("AR(0.9)", 0.9)])
def test_the_autocorrelation_is_the_stated_one(name, phi):
    x = log_loss(name, 40_000)
    x = x - x.mean()
    assert float(x[1:] @ x[:-1]) / float(x @ x) == pytest.approx(phi, abs=0.03)


def test_autoregressive_noise_is_stationary_from_its_first_point():
    rng = np.random.default_rng(0)
    first = [null_streams.autoregressive(rng, 2, 0.9, 1.0)[0] for _ in range(2000)]
    assert np.std(first) == pytest.approx(1.0, abs=0.06)


def test_t_tails_are_heavy():
    x = log_loss("t3 tails", 40_000)
    far = np.mean(np.abs(x - np.median(x)) > 5.0 * np.median(np.abs(x - np.median(x))) / 0.6745)
    assert far > 1e-3  # of a Gaussian: 6e-7


def test_heteroscedastic_noise_swings_by_a_factor_of_more_than_three():
    parts = np.split(log_loss("heteroscedastic"), 80)
    spread = [np.std(part) for part in parts]
    assert max(spread) > 3.0 * min(spread)


@pytest.mark.parametrize("name", [n for n in null_streams.names() if "no noise" in n])
def test_streams_without_noise_have_exactly_none(name):
    x = log_loss(name)
    assert np.all(np.diff(x) <= 0.0)
    assert np.max(np.abs(np.diff(x, 2))[5:]) < 0.01


@pytest.mark.parametrize("seed", range(10))
def test_a_step_of_the_learning_rate_takes_less_than_a_transition(seed):
    x = null_streams._steps(np.random.default_rng(seed), POINTS)  # before the noise
    for at in (POINTS // 2, 3 * POINTS // 4):
        assert 0.015 < x[at - 1] - x[at + 50] < 0.08


@pytest.mark.parametrize("seed", range(5))
def test_warm_restarts_rise_at_once_and_fall_slowly(seed):
    x = log_loss("warm restarts", seed=seed)[POINTS // 20 :]
    assert largest_fall(-x, 15) > 0.03
    assert largest_fall(x, 15) < 0.03 + 0.1  # noise of up to .05 dex, in means of 9


def test_spikes_go_up_and_come_back():
    x = log_loss("spikes", 20_000, seed=1)[1000:]
    assert np.max(x) - np.median(x) > 0.5
    assert np.median(x) - np.min(x) < 0.5


def test_a_seed_gives_each_class_its_own_noise():
    white, other = (log_loss(name)[:100] for name in ("white", "AR(0.6)"))
    assert abs(np.corrcoef(white, other)[0, 1]) < 0.4


def test_curves_gives_every_class_for_every_seed():
    curves = list(null_streams.curves(50, seeds=(7, 8), classes=("white", "spikes")))
    assert [curve.name for curve in curves] == [
        "white, seed 7", "spikes, seed 7", "white, seed 8", "spikes, seed 8",
    ]  # fmt: skip
    assert len(list(null_streams.curves(50))) == len(null_streams.names())


def test_a_class_nobody_wrote_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"'pink'.*AR\(0.6\)"):
        null_streams.values("pink", 100)
    with pytest.raises(ValueError, match="num_points is 1"):
        null_streams.values("white", 1)
