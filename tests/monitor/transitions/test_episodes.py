"""Streams of any cadence and any trouble, through the default detectors and fusing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from phasewatch.detectors.types import Alarm, AlarmKind, Direction
from phasewatch.monitor.core.transitions import TransitionKind, TransitionStatus
from phasewatch.monitor.transitions.episodes import onset_of
from support.recorded import GOLDEN, transitions_of
from support.watched import noise, sigmoid, watched

K = TransitionKind
N = 6000
STEPS = np.arange(1, N + 1)
DECAY = 2.0 * STEPS**-0.3 * noise(N, 0.02, 0)


def kinds(transitions):
    return [t.kind for t in transitions]


# ---- fusing


def alarm(onset, gap, points=5):
    return Alarm(
        detected_step=onset + (points - 1) * gap,
        onset_step=onset,
        direction=Direction.DOWN,
        kind=AlarmKind.SHIFT,
        score=2.0,
        run_length=points,
        value_before=1.0,
        value_after=0.1,
    )


@pytest.mark.parametrize(("at", "expected"), [(145, 145), (125, 160)])
def test_norms_date_a_change_within_what_leads_it_only(at, expected) -> None:
    evidence = {"val_loss": alarm(160, 10), "weight_norm": alarm(at, 5)}
    assert onset_of(evidence, {"val_loss"}) == expected
    assert onset_of({"weight_norm": alarm(at, 5)}, set()) == at


def test_what_began_after_the_first_was_seen_does_not_date_a_change() -> None:
    evidence = {"llc": alarm(240, 40, points=2), "val_loss": alarm(305, 5)}
    assert onset_of(evidence, evidence.keys()) == 240  # seen at 280
    evidence["val_loss"] = alarm(275, 5)  # within what the points of the other tell
    assert onset_of(evidence, evidence.keys()) == 275


@pytest.mark.parametrize("seed", [0, 1])
def test_a_change_seen_at_three_cadences_is_one_transition(seed) -> None:
    every, each_epoch, now_and_then = STEPS, STEPS[249::250], STEPS[199::200]

    def fall(steps):
        return 2.0 * steps**-0.1 * 10.0 ** -sigmoid(steps, 4000, 10) * noise(len(steps), 0.02, seed)

    llc = (20.0 + 30.0 * sigmoid(now_and_then, 4000, 10)) * noise(len(now_and_then), 0.01, seed)
    (only,) = watched(
        {"train_loss": (every, fall(every)), "val_loss": (each_epoch, fall(each_epoch))},
        {"llc": (now_and_then, llc, 0.5)},
    )
    assert only.kind is K.ACQUISITION
    assert set(only.evidence) == {"train_loss", "val_loss", "llc"}
    assert only.onset_step == pytest.approx(4000, abs=60)  # not the step of some validation
    assert only.lags["llc"] == pytest.approx(0, abs=200)
    assert only.lags["val_loss"] == pytest.approx(0, abs=500)  # two of its points


def test_llc_that_falls_long_after_the_losses_did_is_a_simplification() -> None:
    sparse = STEPS[99::100]
    loss = 2.0 * STEPS**-0.1 * 10.0 ** -sigmoid(STEPS, 2000, 10) * noise(N, 0.02, 0)
    llc = 20.0 + 30.0 * sigmoid(sparse, 2000, 10) - 25.0 * sigmoid(sparse, 4500, 10)
    found = watched(
        {"train_loss": (STEPS, loss)}, {"llc": (sparse, llc * noise(len(sparse), 0.01, 0), 0.5)}
    )
    assert kinds(found) == [K.ACQUISITION, K.SIMPLIFICATION]
    assert set(found[0].evidence) == {"train_loss", "llc"}


def test_llc_that_falls_while_validation_improves_is_the_same_transition() -> None:
    sparse, validated = STEPS[49::50], STEPS[9::10]
    val = 10.0 ** (0.9 - 2.0 * sigmoid(validated, 3000, 60)) * noise(len(validated), 0.01, 0)
    llc = (60.0 - 50.0 * sigmoid(sparse, 3050, 20)) * noise(len(sparse), 0.01, 0)
    (only,) = watched(
        {"train_loss": (STEPS, 1e-3 * noise(N, 0.02, 0)), "val_loss": (validated, val)},
        {"llc": (sparse, llc, 0.5)},
    )
    assert only.kind is K.GENERALISATION
    assert set(only.evidence) == {"val_loss", "llc"}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_recorded_run_memorises_and_generalises_once_each(seed) -> None:
    found = transitions_of(GOLDEN / f"grokking_{seed}.npz")
    assert kinds(found) == [K.MEMORISATION, K.GENERALISATION]
    assert {t.status for t in found} == {TransitionStatus.ENDED}
    assert found[1].severity > 4.0  # dex, of the validation loss


# ---- instability


def spikes(period: int):
    y = np.log10(DECAY)
    for start in range(1000, N, period):
        since = STEPS - 1 - start
        y += np.where(since >= 0, np.exp(-since / 15) * np.minimum(1.0, (since + 1) / 5), 0.0)
    return 10.0**y


@pytest.mark.parametrize("detector", ["slope_shift", "cusum", "focus"])
@pytest.mark.parametrize("period", [100, 300, 1000])
def test_a_run_that_spikes_for_ever_has_one_or_two_instabilities(detector, period) -> None:
    found = watched({"train_loss": (STEPS, spikes(period))}, detectors={"train_loss": detector})
    assert set(kinds(found)) == {K.INSTABILITY}
    assert len(found) <= 2


def test_losses_that_are_not_numbers_are_one_instability() -> None:
    loss = DECAY.copy()
    loss[3000:] = math.nan
    accuracy = np.where(np.isnan(loss), 0.1, 0.9)
    (only,) = watched(
        {
            "train_loss": (STEPS, loss),
            "train_accuracy": (STEPS, accuracy),
            "val_loss": (STEPS[99::100], loss[99::100]),
        }
    )
    assert only.kind is K.INSTABILITY
    assert only.status is TransitionStatus.CONFIRMED  # it never came back
    assert 2996 <= only.onset_step <= 3001  # the score's slope is placed half a point early
    assert only.detected_step <= 3003
    assert {"train_loss", "val_loss"} <= set(only.evidence)
    assert only.severity == math.inf


def test_a_spell_of_bad_values_ends_and_its_way_back_is_no_transition() -> None:
    loss = DECAY.copy()
    loss[3000:3400] = math.inf
    (only,) = watched({"train_loss": (STEPS, loss)})
    assert (only.kind, only.status) == (K.INSTABILITY, TransitionStatus.ENDED)
    assert only.end_step == pytest.approx(3420, abs=5)  # twenty good values in a row


@pytest.mark.parametrize("detector", ["slope_shift", "cusum", "page_hinkley", "focus"])
def test_a_loss_that_rises_and_stays_is_one_instability(detector) -> None:
    loss = DECAY.copy()
    loss[3000:] *= 10.0 ** np.minimum(1.5, np.arange(3000) / 30)
    (only,) = watched({"train_loss": (STEPS, loss)}, detectors={"train_loss": detector})
    assert only.kind is K.INSTABILITY
    assert only.severity == pytest.approx(1.5, abs=0.2)


@pytest.mark.parametrize("detector", ["slope_shift", "cusum"])
def test_slingshots_hide_no_generalisation_and_are_none(detector) -> None:
    since = STEPS % 800
    loss = 10.0 ** (-4.0 - 3e-4 * STEPS)
    loss *= 10.0 ** np.where(STEPS > 1500, 3 * np.exp(-since / 40) * np.minimum(1, since / 8), 0.0)
    validated = STEPS[::10]
    val = 10.0 ** (0.5 - 3.0 * sigmoid(validated, 4000, 40)) * noise(len(validated), 0.01, 0)
    found = watched(
        {"train_loss": (STEPS, loss), "val_loss": (validated, val)},
        detectors={"train_loss": detector},
    )
    assert kinds(found).count(K.GENERALISATION) == 1
    assert 1 <= kinds(found).count(K.INSTABILITY) <= 2
    assert len(found) <= 3


def test_a_spike_that_ends_far_below_is_an_instability_and_an_acquisition() -> None:
    loss = DECAY.copy()
    loss[3000:3010] *= 10.0 ** np.linspace(0.1, 1.5, 10)
    loss[3010:] *= 10.0 ** np.maximum(1.5 - np.arange(N - 3010) / 25, -1.5)
    assert kinds(watched({"train_loss": (STEPS, loss)})) == [K.INSTABILITY, K.ACQUISITION]


# ---- precursors


def test_a_detector_may_foretell_and_alerts_only_when_it_comes() -> None:
    """λ̂ falls 800 steps before validation improves, and again when nothing follows."""
    sparse, validated = STEPS[19::20], STEPS[9::10]
    val = 10.0 ** (0.9 - 2.0 * sigmoid(validated, 2300, 20)) * noise(len(validated), 0.01, 0)
    llc = 60.0 - 30.0 * (sparse > 2000) - 15.0 * (sparse > 4500)
    llc *= noise(len(sparse), 0.005, 0)
    ahead = {"precursors": {"llc": {"name": "level_shift"}}, "detectors": {"llc": "none"}}
    streams = {"val_loss": (validated, val)}
    came, gone = watched(streams, {"llc": (sparse, llc, 0.5)}, **ahead)
    assert (came.kind, came.status) == (K.GENERALISATION, TransitionStatus.ENDED)
    assert came.lags["llc (precursor)"] < -100
    assert gone.status is TransitionStatus.WITHDRAWN
    without = watched(streams, {"llc": (sparse, llc, 0.5)}, detectors={"llc": "none"})
    assert kinds(without) == [K.GENERALISATION]
