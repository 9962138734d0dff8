"""Recorded runs of the lottery-ticket example hold their transitions, and no others."""

from __future__ import annotations

import numpy as np
import pytest

from support.recorded import GOLDEN, read, transitions_of

STEPS = 2000


def stream(seed: int, name: str) -> dict[int, float]:
    recorded = read(GOLDEN / f"lottery_tickets_{seed}.npz")
    return {o.step: o.value for o in recorded if o.name == name}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_memorises_and_much_later_generalises(seed: int) -> None:
    accuracy = stream(seed, "val_accuracy")
    half = next(step for step, value in accuracy.items() if value > 0.5)
    known = next(step for step, value in stream(seed, "train_accuracy").items() if value > 0.99)
    assert half > 5 * known
    first, second = transitions_of(GOLDEN / f"lottery_tickets_{seed}.npz")
    assert (first.kind, second.kind) == ("memorisation", "generalisation")
    assert first.onset_step < known
    assert abs(first.detected_step - known) <= 0.01 * STEPS
    assert first.end_step < half / 2
    assert half / 2 < second.onset_step < half
    # Seen once it has begun, and not much later than when it is half done.
    assert accuracy[second.detected_step] > 0.1
    assert second.detected_step <= half + 0.1 * STEPS
    assert "val_loss" in second.evidence


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_spectra_get_simple_as_it_generalises_and_the_mask_settles(seed: int) -> None:
    (_, generalisation) = transitions_of(GOLDEN / f"lottery_tickets_{seed}.npz")
    entropy = stream(seed, "frequency_entropy")
    begin, end = entropy[20], entropy[STEPS]
    at_onset = np.interp(generalisation.onset_step, list(entropy), list(entropy.values()))
    assert begin - end > 0.5
    assert begin - at_onset < 0.25 * (begin - end)  # the rest comes after the onset
    overlap = stream(seed, "mask_overlap")
    assert overlap[STEPS] > 0.98
    assert min(value for step, value in overlap.items() if step > 500) > 0.9
    assert min(value for step, value in overlap.items() if step < 100) < 0.85
