"""What kind of transition it is, and how large."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from phasewatch.detectors.types import AlarmKind, Direction
from phasewatch.monitor.core.meaning import Meanings
from phasewatch.monitor.core.transitions import TransitionKind
from phasewatch.monitor.transitions.classification import (
    RULES,
    classify,
    displacement,
    progress,
    seen_by,
    severity,
)
from support.alarms import alarm
from support.records import make_transition as transition

DOWN, UP = Direction.DOWN, Direction.UP
K = TransitionKind


@pytest.mark.parametrize(
    ("evidence", "kind"),
    [
        ({"val_loss": DOWN}, K.GENERALISATION),
        ({"val/loss": DOWN}, K.GENERALISATION),
        ({"valid_loss_epoch": DOWN}, K.GENERALISATION),
        ({"validation/topAcc1": UP}, K.GENERALISATION),
        ({"eval_perplexity": DOWN}, K.GENERALISATION),
        ({"val_acc": UP, "llc": DOWN}, K.GENERALISATION),
        ({"train_loss": DOWN}, K.MEMORISATION),
        ({"train/MulticlassAccuracy": UP}, K.MEMORISATION),
        ({"train_loss": DOWN, "llc": UP}, K.MEMORISATION),
        ({"train_loss": DOWN, "val_loss": UP}, K.MEMORISATION),
        ({"train_loss": DOWN, "val_loss": DOWN}, K.ACQUISITION),
        ({"train_loss": DOWN, "val_accuracy": UP}, K.ACQUISITION),
        ({"llc": DOWN}, K.SIMPLIFICATION),
        ({"llc": DOWN, "weight_norm": DOWN}, K.SIMPLIFICATION),
        ({"llc": UP}, K.ACQUISITION),
        ({"llc/head": DOWN, "nu_hat": DOWN}, K.SIMPLIFICATION),
        ({"nu_hat": DOWN}, K.UNCLASSIFIED),
        ({"llc/waic": DOWN}, K.UNCLASSIFIED),
        ({"llc/wbic": DOWN}, K.UNCLASSIFIED),
        ({"llc_validation": DOWN}, K.UNCLASSIFIED),
        ({"prefix_matching": UP}, K.ACQUISITION),
        ({"prefix_matching": UP, "train_loss": DOWN, "val_loss": DOWN}, K.ACQUISITION),
        ({"prefix_matching": DOWN}, K.UNCLASSIFIED),
        ({"function_llc": UP}, K.ACQUISITION),
        ({"function_llc": DOWN}, K.SIMPLIFICATION),
        ({"singular_value_2": UP}, K.ACQUISITION),
        ({"represented_features": UP, "train_loss": DOWN}, K.MEMORISATION),
        ({"polygon": UP, "val_loss": DOWN}, K.GENERALISATION),
        ({"singular_value_2": DOWN}, K.UNCLASSIFIED),
        ({"train_loss": UP}, K.INSTABILITY),
        ({"train_accuracy": DOWN}, K.INSTABILITY),
        ({"val_loss": UP}, K.UNCLASSIFIED),
        ({"weight_norm": DOWN}, K.UNCLASSIFIED),
        ({"attention_score_entropy": DOWN}, K.UNCLASSIFIED),
    ],
)
def test_kind_comes_from_what_moved_which_way(evidence, kind) -> None:
    assert classify({n: alarm(direction=d) for n, d in evidence.items()}) is kind


def test_an_instability_comes_before_everything_else() -> None:
    evidence = {"val_loss": alarm(), "train_loss": alarm(kind=AlarmKind.INSTABILITY, direction=UP)}
    assert classify(evidence) is K.INSTABILITY


def test_without_held_out_data_nobody_can_say_that_it_memorises() -> None:
    assert classify({"train_loss": alarm()}, has_validation=False) is K.ACQUISITION
    assert classify({"train_loss": alarm(), "llc": alarm(direction=UP)}, has_validation=False) is (
        K.ACQUISITION
    )


def test_training_that_has_nothing_left_to_learn_is_flat() -> None:
    evidence = {
        "val_loss": alarm(before=8.0, after=0.1),
        "train_loss": alarm(before=1e-4, after=1e-7),
    }
    assert classify(evidence) is K.GENERALISATION
    learns = evidence | {"train_loss": alarm(before=3.0, after=0.1)}
    assert classify(learns) is K.ACQUISITION
    slightly = learns | {"val_loss": alarm(before=8.0, after=7.9)}
    assert classify(slightly) is K.MEMORISATION


def test_the_latest_values_decide_and_not_those_at_the_alarm() -> None:
    evidence = {
        "val_loss": alarm(before=8.0, after=7.0),
        "train_loss": alarm(before=0.5, after=0.2),
    }
    before = {"val_loss": 8.0, "train_loss": 0.5}
    assert classify(evidence) is K.ACQUISITION
    after = {"val_loss": 0.1, "train_loss": 0.1}
    assert classify(evidence, before=before, after=after) is K.GENERALISATION


@pytest.mark.parametrize(("way", "kind"), [(UP, K.GENERALISATION), (DOWN, K.UNCLASSIFIED)])
def test_a_stream_may_say_which_way_is_better(way, kind) -> None:
    evidence = {"val_quality": alarm(direction=UP)}
    assert classify(evidence) is K.UNCLASSIFIED
    assert classify(evidence, meanings=Meanings({"val_quality": {"better": way}})) is kind


@pytest.mark.parametrize(
    ("evidence", "kind"),
    [
        ({"train_loss": DOWN, "excluded_loss": DOWN}, K.MEMORISATION),
        ({"restricted_loss": DOWN}, K.CIRCUIT_FORMATION),
        ({"excluded_loss": UP}, K.CIRCUIT_FORMATION),
        ({"excluded_loss": UP, "weight_norm": DOWN, "llc": DOWN}, K.CIRCUIT_FORMATION),
        ({"restricted_loss": DOWN, "val_loss": DOWN}, K.CLEANUP),
        ({"val_loss": DOWN, "weight_norm": DOWN}, K.GENERALISATION),
        ({"excluded_loss": DOWN}, K.UNCLASSIFIED),
    ],
)
def test_phases_of_modular_addition(evidence, kind) -> None:
    assert classify({n: alarm(direction=d) for n, d in evidence.items()}) is kind


@pytest.mark.parametrize(
    ("evidence", "kind"),
    [
        ({"val_loss": DOWN}, K.CLEANUP),
        ({"val_accuracy": UP, "excluded_loss": DOWN}, K.CLEANUP),
        ({"val_loss": DOWN, "train_loss": DOWN}, K.ACQUISITION),
        ({"val_loss": UP}, K.UNCLASSIFIED),
        ({"llc": DOWN}, K.SIMPLIFICATION),
        ({"excluded_loss": UP}, K.CIRCUIT_FORMATION),
    ],
)
def test_generalisation_after_circuits_formed_is_cleanup(evidence, kind) -> None:
    assert classify({n: alarm(direction=d) for n, d in evidence.items()}, formed=True) is kind


def test_every_kind_has_a_rule_but_the_one_that_is_left_over() -> None:
    assert {rule.kind for rule in RULES} == set(K) - {K.UNCLASSIFIED}


def test_severity_is_in_dex_for_positive_values_and_relative_otherwise() -> None:
    assert severity({"a": 1.0}, {"a": 0.01}) == pytest.approx(2.0)
    assert severity({"a": -1.0}, {"a": 1.0}) == pytest.approx(2.0)
    assert severity({"a": 1.0, "b": 0.0}, {"a": 0.1, "b": 0.0}) == pytest.approx(1.0)
    assert severity({"a": 1.0}, {"a": math.nan}) == math.inf


def test_norms_do_not_outweigh_the_losses_they_follow() -> None:
    before = {"train_loss": 1.0, "gradient_norm": 1.0}
    assert severity(before, {"train_loss": 0.1, "gradient_norm": 1e-4}) == pytest.approx(1.0)
    assert severity({"gradient_norm": 1.0}, {"gradient_norm": 0.1}) == pytest.approx(1.0)


def test_displacement_has_a_sign_and_progress_none_without_a_change() -> None:
    assert displacement(1.0, 0.1) == pytest.approx(-1.0)
    assert displacement(0.0, 2.0) == pytest.approx(1.0)
    assert progress(1.0, 0.01, 0.1) == pytest.approx(0.5)
    assert progress(0.0, 1.0, 0.5) == pytest.approx(0.5)
    assert progress(1.0, 1.0, 5.0) == 0.0


def test_the_observables_are_named_with_their_lags() -> None:
    evidence = {"val_loss": alarm(100, 120), "llc": alarm(140, 300), "weight_norm": alarm(95, 100)}
    one = replace(transition("run"), evidence=evidence)
    assert seen_by(one) == "val_loss, llc +40, weight_norm -5"
    assert seen_by(replace(one, repeats=1200)).endswith(", 1,200 more alarms")
    assert seen_by(replace(one, repeats=1)).endswith(", 1 more alarm")
