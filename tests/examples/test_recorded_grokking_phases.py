"""The phases of grokking in the recorded histories of `examples/grokking_phases.py`.

    python examples/grokking_phases.py --seed N --out demo
    python tests/support/recorded.py demo/phasewatch.db grokking-phases-seedN \
        tests/golden/grokking_phases_N.npz
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from phasewatch.detectors.types import Direction
from phasewatch.monitor.core.transitions import TransitionKind, TransitionStatus
from support.recorded import GOLDEN, read, transitions_of

K = TransitionKind


@cache
def curves(seed):
    seen: dict[str, list[tuple[int, float]]] = {}
    for o in read(GOLDEN / f"grokking_phases_{seed}.npz"):
        seen.setdefault(o.name, []).append((o.step, o.value))
    return {name: tuple(np.array(pairs).T) for name, pairs in seen.items()}


@cache
def transitions(seed):
    found = transitions_of(GOLDEN / f"grokking_phases_{seed}.npz")
    assert not any(t.status is TransitionStatus.WITHDRAWN for t in found)
    return sorted(found, key=lambda t: t.onset_step)


def below(curve, level) -> float:
    """First step below a level, after the peak."""
    steps, values = curve
    top = int(values.argmax())
    return steps[top + int(np.argmax(values[top:] < level))]


SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])


@SEEDS
def test_the_three_phases_are_found_in_their_order_and_nothing_else(seed) -> None:
    found = transitions(seed)
    assert [t.kind for t in found[:3]] == [K.MEMORISATION, K.CIRCUIT_FORMATION, K.CLEANUP]
    for later in found[3:]:  # after it is all over, weight decay shrinks the logits
        assert later.kind is K.UNCLASSIFIED
        seen = {n: a.direction for n, a in later.evidence.items()}.items()
        assert seen
        assert seen <= {
            ("excluded_loss", Direction.DOWN),
            ("restricted_loss", Direction.UP),  # by three decades, at the same place
        }
        assert later.onset_step > below(curves(seed)["val_loss"], 0.1)


@SEEDS
def test_memorisation_is_where_train_and_excluded_loss_fall(seed) -> None:
    memorised = transitions(seed)[0]
    assert {"train_loss", "excluded_loss"} <= set(memorised.evidence)
    half = below(curves(seed)["train_loss"], 2.0)
    assert memorised.onset_step < half
    assert abs(memorised.detected_step - half) <= 30


@SEEDS
def test_circuits_are_seen_to_form_before_the_network_generalises(seed) -> None:
    formed = transitions(seed)[1]
    assert "excluded_loss" in formed.evidence
    steps, excluded = curves(seed)["excluded_loss"]
    early = steps <= 1000
    turn = steps[early][excluded[early].argmin()]
    assert abs(formed.onset_step - turn) <= 100
    _, val = curves(seed)["val_loss"]
    assert formed.detected_step < below(curves(seed)["val_loss"], 0.75 * val.max())


@SEEDS
def test_cleanup_is_where_the_validation_loss_falls(seed) -> None:
    cleaned = transitions(seed)[2]
    assert "val_loss" in cleaned.evidence
    _, val = curves(seed)["val_loss"]
    assert cleaned.onset_step < below(curves(seed)["val_loss"], 0.5 * val.max())
    assert cleaned.detected_step < below(curves(seed)["val_loss"], 0.25 * val.max())


@SEEDS
def test_the_measures_move_as_in_the_paper(seed) -> None:
    seen = curves(seed)
    _, formed, cleaned, *_ = transitions(seed)

    def at(name, step):
        steps, values = seen[name]
        return values[np.searchsorted(steps, step)]

    done = below(seen["val_loss"], 0.1)
    assert at("restricted_loss", done) < at("restricted_loss", formed.onset_step) / 100
    assert at("excluded_loss", done) > 5 * at("excluded_loss", formed.onset_step)
    assert at("squared_weights", done) < 0.9 * at("squared_weights", cleaned.onset_step)
    for gini in ("gini_embedding", "gini_unembedding"):
        before = at(gini, cleaned.onset_step) - at(gini, formed.onset_step)
        during = at(gini, done) - at(gini, cleaned.onset_step)
        assert during > 2 * before > 0
    assert at("key_frequencies", formed.detected_step) <= 8 < at("key_frequencies", 200)
