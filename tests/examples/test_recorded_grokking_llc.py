"""λ̂ beside the validation loss in the recorded histories of `examples/grokking_llc.py`, p = 53.

    python examples/grokking_llc.py --seed N --out demo
    python tests/support/recorded.py demo/phasewatch.db grokking-llc-p53-seedN \
        tests/golden/grokking_llc_N.npz
"""

from __future__ import annotations

import numpy as np
import pytest

from phasewatch.detectors.types import Direction
from phasewatch.monitor.core.transitions import TransitionKind, TransitionStatus
from support.recorded import GOLDEN, read, transitions_of

SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])
EVERY = 30
"""Steps between two measurements of λ̂."""


def curve(seed, name):
    seen = [o for o in read(GOLDEN / f"grokking_llc_{seed}.npz") if o.name == name]
    return np.array([o.step for o in seen]), np.array([o.value for o in seen])


def half_fallen(steps, values) -> int:
    top = int(values.argmax())
    level = (values[top] + np.median(values[-5:])) / 2
    return int(steps[top + int(np.argmax(values[top:] <= level))])


@SEEDS
def test_memorisation_and_generalisation_are_found(seed) -> None:
    found = transitions_of(GOLDEN / f"grokking_llc_{seed}.npz")
    standing = {t.kind: t for t in found if t.status is not TransitionStatus.WITHDRAWN}
    memorised = standing[TransitionKind.MEMORISATION]
    assert memorised.evidence["llc"].direction is Direction.UP
    generalised = standing[TransitionKind.GENERALISATION]
    steps, val = curve(seed, "val_loss")
    share = np.interp(generalised.onset_step, steps, val) / val.max()
    assert 0.01 < share < 0.9, "the onset lies in the fall"
    assert generalised.detected_step > generalised.onset_step > steps[val.argmax()]


@SEEDS
def test_llc_has_fallen_to_half_before_the_validation_loss_has(seed) -> None:
    llc, val = curve(seed, "llc"), curve(seed, "val_loss")
    assert half_fallen(*llc) < half_fallen(*val)
    assert abs(llc[0][llc[1].argmax()] - val[0][val[1].argmax()]) <= 2 * EVERY, "the same peak"
    assert llc[1][-1] < 0.02 * llc[1].max()
