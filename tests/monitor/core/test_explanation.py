"""A transition in words: complete, bounded, and never more certain than it is."""

from __future__ import annotations

import dataclasses

import pytest

from phasewatch.detectors.types import AlarmKind
from phasewatch.monitor.core.explanation import (
    NUM_STREAMS,
    WHY,
    explain,
    onset_interval,
    witnesses,
)
from phasewatch.monitor.core.meaning import Meanings
from phasewatch.monitor.core.transitions import (
    Hindsight,
    HindsightVerdict,
    TransitionKind,
    TransitionStatus,
)
from phasewatch.monitor.transitions.classification import RULES, Rule
from support.alarms import alarm
from support.records import INF, make_transition


def facts(transition, **settings):
    return dict(explain(transition, **settings).facts)


def seen(**evidence):
    """A transition that these alarms make."""
    return make_transition(
        "r",
        evidence=evidence,
        before={name: one.value_before for name, one in evidence.items()},
        after={name: one.value_after for name, one in evidence.items()},
        onset_step=min(one.onset_step for one in evidence.values()),
        severity=0.301,
    )


def words(rule: Rule) -> str:
    """A rule as `WHY` says it."""
    order = {move: place for place, move in enumerate(type(next(iter(rule.needs))))}

    def said(moves, by):
        return by.join(move.value for move in sorted(moves, key=order.get))

    parts = [said(rule.needs, " or ")]
    if rule.beside:
        parts.append(f"with: {said(rule.beside, ', ')}")
    if rule.lacks:
        parts.append(f"and none of: {said(rule.lacks, ', ')}")
    return ", ".join(parts) + (", in a run with held-out data" if rule.held_out else "")


def test_the_rule_behind_each_kind_is_the_one_that_decides():
    said = {}
    for rule in RULES:
        known = said.get(rule.kind)
        said[rule.kind] = words(rule) if known is None else f"{known}; or {words(rule)}"
    assert said | {TransitionKind.UNCLASSIFIED: "no rule fits what moved"} == WHY


def test_parts_of_one_measurement_are_one_witness_and_norms_are_none():
    found = {
        name: alarm()
        for name in ("val_loss", "llc/block.1", "llc/wbic", "weight_norm", "train_loss")
    }
    found["llc (precursor)"] = alarm(kind=AlarmKind.PRECURSOR)
    assert witnesses(found, Meanings()) == ["val_loss", "llc/block.1", "train_loss"]
    unstable = {"gradient_norm": alarm(kind=AlarmKind.INSTABILITY)}
    assert witnesses(unstable, Meanings()) == ["gradient_norm"]


def test_certainty_counts_witnesses_and_says_the_rate_of_false_alarms():
    found = seen(val_loss=alarm(), llc=alarm(110, 140), weight_norm=alarm())
    assert facts(found, config={"false_alarms_per_run": 0.1})["How sure"] == (
        "2 independent witnesses: val_loss at 1.5 times its threshold, "
        "llc at 1.5 times its threshold, +10 steps; beside them weight_norm; "
        "0.1 false alarms are expected in a whole run"
    )


def test_a_probability_is_told_where_a_detector_has_one():
    sure = dataclasses.replace(alarm(), probability=0.934)
    assert "a change with probability 0.93" in facts(seen(val_loss=sure))["How sure"]
    assert "probability" not in facts(seen(val_loss=alarm()))["How sure"]


def test_the_onset_is_an_interval_as_wide_as_the_stream_is_sparse():
    dense, sparse = alarm(100, 103, run_length=4), alarm(100, 120, run_length=3)
    assert onset_interval(seen(train_loss=dense)) == (99, 100)
    assert onset_interval(seen(val_loss=sparse)) == (90, 100)
    assert onset_interval(seen(val_loss=sparse, train_loss=dense)) == (99, 100)
    said = dataclasses.replace(sparse, onset_interval=(95, 100))
    assert onset_interval(seen(val_loss=said)) == (95, 100)
    assert "from step 100 (began between 90 and 100)" in facts(seen(val_loss=sparse))["When"]
    assert "began" not in facts(seen(train_loss=dense))["When"]


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ((("head", 4.0), ("body", 1.0)), "head (4 ± 0.2 times), body (1 ± 0.06 times) as far"),
        ((("head", 1.1), ("body", 1.0), ("neck", 1.05)), "no place stands out: 3 groups, the"),
        ((("head", 2.0),), "head (2 ± 0.1 times) as far"),
    ],
)
def test_a_place_is_named_with_its_error_or_none_is(where, said):
    assert facts(make_transition("r", where=where))["Where"].startswith(said)


def test_nothing_is_said_of_a_place_that_was_not_measured():
    assert "Where" not in facts(make_transition("r", where=()))


def test_the_checkpoints_that_were_kept_are_said_where_they_lie():
    kept = ("/runs/a/step=100.ckpt", "/runs/a/step=110.ckpt")
    said = facts(make_transition("r", checkpoints=kept))["Checkpoints"]
    assert said == "2 kept, step=100 to step=110, in /runs/a"
    assert "Checkpoints" not in facts(make_transition("r"))


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (HindsightVerdict.CONFIRMED, "the whole history shows it where it was said to be"),
        (HindsightVerdict.CORRECTED, "at other steps than the 80 to 120 that were told"),
        (HindsightVerdict.WITHDRAWN, "shows no abrupt change in its streams"),
        (HindsightVerdict.FOUND, "only the whole history shows it, 4.2 times as steep"),
    ],
)
def test_hindsight_says_what_it_changed_and_why(verdict, said):
    told = Hindsight(
        verdict=verdict,
        streamed=TransitionStatus.ENDED,
        onset_step=70,
        end_step=130,
        score=0.0 if verdict is HindsightVerdict.WITHDRAWN else 4.2,
    )
    assert said in facts(make_transition("r", end_step=120, hindsight=told))["In hindsight"]


def test_of_many_streams_the_first_are_named_and_the_others_counted():
    found = seen(**{f"loss_{i}": alarm() for i in range(50)})
    for heading in ("How much", "How sure", "Why"):
        assert facts(found)[heading].count("loss_") == NUM_STREAMS
        assert f"{50 - NUM_STREAMS} more" in facts(found)[heading]


def test_a_stream_that_stopped_being_a_number_is_said():
    found = make_transition("r", severity=INF, after={"val_loss": float("nan")})
    assert facts(found)["How much"] == "severity inf (1 is tenfold); val_loss: 2 → nan nats"


def test_a_notebook_shows_the_same_words_escaped():
    found = make_transition("r", evidence={"<b>": alarm()}, before={"<b>": 1.0}, after={"<b>": 0.5})
    shown = found._repr_html_()
    assert "<b>" not in shown
    assert "&lt;b&gt; falls" in shown
