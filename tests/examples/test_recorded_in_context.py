"""Recorded runs of the in-context regression example: the stage in which it learns from context.

The histories were made by

    python examples/in_context_regression.py --seed N --out demo
    python tests/support/recorded.py demo/phasewatch.db in-context-seedN \\
        tests/golden/in_context_N.npz
"""

from __future__ import annotations

import functools

import numpy as np
import pytest

from phasewatch.detectors.types import Direction
from phasewatch.monitor.core.transitions import TransitionKind
from support import recorded

SEEDS = (0, 1, 2)
SCORE = "icl_score_1_8"


def path_of(seed: int):
    return recorded.GOLDEN / f"in_context_{seed}.npz"


@functools.cache
def found(seed: int):
    """What was told while it ran."""
    every = recorded.transitions_of(path_of(seed))
    return [t for t in every if t.hindsight is None or t.hindsight.streamed is not None]


@functools.cache
def stream(seed: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values."""
    seen = [o for o in recorded.read(path_of(seed)) if o.name == name]
    return np.array([o.step for o in seen]), np.array([o.value for o in seen])


def emergence(seed: int) -> int:
    """First step at which the ICL score is below −2 nats: it begins near 0 and ends below −5."""
    steps, values = stream(seed, SCORE)
    assert abs(values[0]) < 1.5
    assert values[-5:].mean() < -5.0
    return int(steps[np.flatnonzero(values < values[0] - 2.0)[0]])


@pytest.mark.parametrize("seed", SEEDS)
def test_learning_from_context_is_one_acquisition_seen_in_the_losses_of_late_examples(seed) -> None:
    (transition,) = found(seed)
    assert transition.kind is TransitionKind.ACQUISITION
    assert abs(transition.onset_step - emergence(seed)) <= 70
    assert transition.detected_step <= emergence(seed) + 100
    late = {f"loss_example_{k}" for k in range(4, 9)}
    assert len(late & transition.evidence.keys()) >= 2
    for name in late & transition.evidence.keys():
        assert transition.evidence[name].direction is Direction.DOWN
    # The first example comes with nothing to learn it from.
    assert "loss_example_1" not in transition.evidence


@pytest.mark.parametrize("seed", SEEDS)
def test_the_learning_coefficient_rises_with_it_and_then_rests(seed) -> None:
    steps, values = stream(seed, "llc")
    before = values[steps < emergence(seed)]
    after = values[steps >= 400]
    assert before.max() < after.min() / 3.0
    assert after.max() < 1.6 * after.min()
