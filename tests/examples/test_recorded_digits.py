"""The edge of stability in three recorded runs of `examples/digits.py`."""

import numpy as np
import pytest

from phasewatch.monitor.core.transitions import TransitionKind
from support.recorded import GOLDEN, read, transitions_of

SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])
EDGE = 2 / 0.15


def history(seed, name):
    seen = [o for o in read(GOLDEN / f"digits_{seed}.npz") if o.name == name]
    return np.array([o.step for o in seen]), np.array([o.value for o in seen])


@SEEDS
def test_the_sharpness_rises_to_two_over_the_learning_rate_and_stays_there(seed):
    steps, sharpness = history(seed, "hessian_top")
    reached = steps[np.argmax(sharpness > EDGE)]
    assert sharpness[0] < 0.8 * EDGE
    assert 150 < reached < 600
    sharpening = (steps >= 100) & (steps <= reached)  # before, it may fall a little
    assert (np.diff(sharpness[sharpening]) > 0).all()
    later = sharpness[steps > reached] / EDGE
    assert np.median(later) == pytest.approx(1.0, abs=0.03)
    assert later.max() < 1.25
    assert (np.abs(sharpness[steps > 1500] / EDGE - 1) < 0.1).all()


@SEEDS
def test_the_loss_falls_at_every_step_before_the_edge_and_not_after_it(seed):
    steps, sharpness = history(seed, "hessian_top")
    reached = steps[np.argmax(sharpness > EDGE)]
    at, loss = history(seed, "train_loss")
    rises = np.diff(loss) > 0
    assert not rises[at[1:] < reached].any()
    assert rises[at[1:] >= reached].mean() > 0.05
    assert loss[-1] < 0.4 * loss[at == reached]  # in the long run it falls on


@SEEDS
def test_the_gradient_noise_no_longer_matters_at_the_edge(seed):
    # The full gradient grows along the sharpest direction, in which descent now oscillates.
    steps, scale = history(seed, "gradient_noise_scale")
    assert np.median(scale[steps <= 200]) > 5 * np.median(scale[steps >= 600])


@SEEDS
def test_it_is_told_as_unstable_where_the_sharpness_first_overshoots(seed):
    # The loss spikes once there, and falls in steps afterwards.
    steps, sharpness = history(seed, "hessian_top")
    reached = steps[np.argmax(sharpness > EDGE)]
    found = transitions_of(GOLDEN / f"digits_{seed}.npz")
    first = next(t for t in found if t.kind is TransitionKind.INSTABILITY)
    assert reached <= first.detected_step <= reached + 200
    assert "train_loss" in first.evidence
    assert all(t.detected_step >= reached for t in found)
