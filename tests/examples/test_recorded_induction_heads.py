"""The recorded runs of `examples/induction_heads.py`: one acquisition, where everything moves.

Made by

    python examples/induction_heads.py --seed N --out demo
    python tests/support/recorded.py demo/phasewatch.db induction-heads-seedN \
        tests/golden/induction_heads_N.npz
"""

from __future__ import annotations

import functools

import numpy as np
import pytest

from phasewatch.monitor.core.transitions import TransitionKind
from support.recorded import GOLDEN, read, transitions_of

STEPS, PLATEAU = 1200, 300
SCORE = "icl_score_7_49"
TOGETHER = 120
"""Steps within which all measures are half of their way: a tenth of the run."""

seeds = pytest.mark.parametrize("seed", [0, 1, 2])


@functools.cache
def streams(seed):
    """Steps and values of each stream."""
    found = {}
    for one in read(GOLDEN / f"induction_heads_{seed}.npz"):
        found.setdefault(one.name, []).append((one.step, one.value))
    return {name: np.array(rows).T for name, rows in found.items()}


def halfway(seed, name):
    steps, values = (row[streams(seed)[name][0] >= PLATEAU] for row in streams(seed)[name])
    way = (values - values[0]) / (values[-1] - values[0])
    return int(steps[np.flatnonzero(way >= 0.5)[0]])


@seeds
def test_in_context_learning_prefix_matching_and_the_fall_of_the_loss_coincide(seed):
    middles = [
        halfway(seed, name) for name in ("val_loss", SCORE, "prefix_matching", "previous_token")
    ]
    assert max(middles) - min(middles) <= TOGETHER
    assert STEPS / 2 < min(middles) < 3 * STEPS / 4


@seeds
def test_prefix_matching_jumps_from_chance_and_in_context_learning_from_nothing(seed):
    middle = halfway(seed, "val_loss")
    steps, matching = streams(seed)["prefix_matching"]
    plateau = matching[(steps >= PLATEAU) & (steps < middle - 150)]
    assert len(plateau) >= 15
    assert plateau.max() < 0.1  # even attention has 0.06, for tokens come again in a block
    assert matching[-1] > 0.7
    assert streams(seed)[SCORE][1][0] > -0.2
    assert streams(seed)[SCORE][1][-1] < -1.8


@seeds
def test_the_loss_falls_slowly_and_then_at_once(seed):
    steps, losses = streams(seed)["val_loss"]
    middle = halfway(seed, "val_loss")

    def fall(begin, end):
        return losses[steps == begin].item() - losses[steps == end].item()

    assert fall(middle - 80, middle + 70) > 3 * fall(PLATEAU, PLATEAU + 150) > 0


@seeds
def test_the_detectors_find_one_acquisition_and_find_it_there(seed):
    found = transitions_of(GOLDEN / f"induction_heads_{seed}.npz")
    (main,) = [t for t in found if t.severity > 0.5]
    middle = halfway(seed, "val_loss")
    assert main.kind is TransitionKind.ACQUISITION
    assert {"prefix_matching", "previous_token", "val_loss", "train_loss"} <= set(main.evidence)
    assert middle - 200 < main.onset_step < middle
    assert main.onset_step < main.detected_step < middle
    onsets = [alarm.onset_step for alarm in main.evidence.values()]
    assert max(onsets) - min(onsets) <= 100
    # Prefix matching creeps up before it jumps, from 0.06 to 0.07 in one run: nothing else speaks.
    for other in found:
        if other is not main:
            assert other.severity < 0.1
            assert set(other.evidence) == {"prefix_matching"}
