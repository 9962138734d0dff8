"""Detection over stored runs: what it finds, and that it is what the live run found."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from phasewatch.detectors.types import Alarm, Direction
from phasewatch.monitor import Watch
from phasewatch.monitor.core.columns import Column
from phasewatch.monitor.core.errors import ConfigError, UnknownNameError
from phasewatch.monitor.core.estimates import EstimateStatus, Observation
from phasewatch.monitor.core.transitions import TransitionKind, TransitionStatus
from phasewatch.monitor.replay.recorded import (
    DetectorOverride,
    Pair,
    Verdict,
    compare,
    detect,
    equal,
    replay,
)
from phasewatch.monitor.run import buffer
from phasewatch.monitor.store.store import Store
from support.history import transition

STEPS = 2400
FALL, UNDERSTOOD, BROKEN = 300, 1200, range(2000, 2010)


def values(step: int) -> dict[str, float]:
    """Memorises at 300, generalises at 1200, and is not finite for a while at 2000."""
    noise = np.random.default_rng(step).standard_normal(3)
    train = 2.0 * 10 ** -min(max(step - FALL, 0) / 80, 1.5) * np.exp(0.02 * noise[0])
    logged = {"train_loss": float("nan") if step in BROKEN else float(train), "lr": 0.1}
    if step % 5 == 0:
        logged["val_loss"] = (
            3.0 * 10 ** -min(max(step - UNDERSTOOD, 0) / 100, 2.0) * float(np.exp(0.02 * noise[1]))
        )
        logged["val_accuracy"] = float(np.clip((step - UNDERSTOOD) / 100, 0, 1)) + 0.01 * noise[2]
    return logged


class Measured:
    """Stands in for λ̂ and for a norm: both move when the network generalises."""

    name, unit = "llc", "1"

    def measure(self, context):
        step = context.step
        noise = np.random.default_rng(step).standard_normal(2)
        after = step > UNDERSTOOD
        status = EstimateStatus.UNCONVERGED if step % 140 == 0 else EstimateStatus.OK
        return [
            Observation(
                name="llc",
                step=step,
                value=(8.0 if after else 20.0) + 0.3 * noise[0],
                stderr=0.3,
                status=status,
            ),
            Observation(name="weight_norm", step=step, value=30.0 - 12 * after + 0.1 * noise[1]),
            Observation(name="weight_norm/net", step=step, value=30.0 - 12 * after),
        ]

    def locate(self, onset, end):
        return (("net", 2.0),)


@pytest.fixture
def settings(tmp_path):
    return {
        "run_name": "test",
        "store": str(tmp_path / "runs.db"),
        "exporter": {"enabled": False},
        "every_n_steps": 20,
    }


def train(watch: Watch, steps) -> None:
    model = torch.nn.Linear(1, 1)
    for step in steps:
        logged = values(step)
        watch.observe(step, {k: v for k, v in logged.items() if not k.startswith("val")})
        if watch.due(step):
            watch.probe(step, model)
        if "val_loss" in logged:  # a validation comes after the step, as an entry of its own
            watch.observe(step, {k: v for k, v in logged.items() if k.startswith("val")})


def live(settings, **given) -> Watch:
    with Watch(settings, observables=[Measured()], **given) as watch:
        train(watch, range(1, STEPS + 1))
    return watch


def assert_replays_as_stored(settings, num: int | None = None):
    with Store(settings["store"], create=False) as store:
        info = store.run("test")
        stored = store.transitions(info.id)
        outcome = replay(store, info)
    assert stored
    assert num is None or len(stored) == num
    pairs = compare(stored, outcome.transitions)
    assert [pair.verdict for pair in pairs] == [Verdict.SAME] * len(stored)
    for old, new in zip(stored, outcome.transitions, strict=True):
        assert (new.id, new.evidence, new.where) == (old.id, old.evidence, old.where)
        assert (new.before, new.after, new.epoch) == (old.before, old.after, old.epoch)
        assert (new.detected_at, new.run) == (old.detected_at, old.run)
    return outcome


def test_a_run_whose_end_was_known_is_replayed_with_the_same_thresholds(settings):
    watch = Watch({**settings, "false_alarms_per_run": 1.0}, observables=[Measured()])
    watch.start(expected_steps=STEPS)
    train(watch, range(1, 300))
    watch.finish()
    with Store(settings["store"], create=False) as store:
        info = store.run("test")
        outcome = replay(store, info)
    assert info.config["horizon"] == [0, STEPS]
    alive = {s.name: s.detector.state_dict() for s in watch._detection.streams if s.detector}
    for watched in outcome.watched:
        if watched.name in alive:
            assert watched.parameters == alive[watched.name]["parameters"]


def test_a_finished_run_replays_exactly(settings) -> None:
    live(settings)
    outcome = assert_replays_as_stored(settings)
    kinds = [t.kind for t in outcome.transitions]
    assert TransitionKind.GENERALISATION in kinds
    assert TransitionKind.INSTABILITY in kinds
    generalised = next(t for t in outcome.transitions if t.kind == "generalisation")
    assert {"val_loss", "llc", "weight_norm"} <= set(generalised.evidence)
    assert generalised.where[0][0] == "net"
    watched = {one.name: one.detector for one in outcome.watched}
    assert watched["llc"] == "level_shift"
    assert watched["lr"] == watched["weight_norm/net"] == "none"


@pytest.mark.parametrize("max_steps", [1, 7, 1000])
def test_what_a_live_run_finds_does_not_depend_on_how_often_it_is_drained(
    settings, max_steps, monkeypatch
) -> None:
    monkeypatch.setattr(buffer, "MAX_STEPS", max_steps)
    monkeypatch.setattr(buffer, "MAX_SECONDS", 1000.0)
    live(settings)
    assert_replays_as_stored(settings)


def test_a_resumed_run_replays_as_its_attempts_went(settings) -> None:
    first = Watch(settings, observables=[Measured()])
    first.start()
    train(first, range(1, 1231))
    state = first.state_dict()
    # What comes now is superseded: the second attempt sees other values there.
    for step in range(1231, 1300):
        first.observe(step, {"train_loss": 50.0, "val_loss": 50.0})
    first.finish()
    second = Watch(settings, observables=[Measured()])
    second.load_state_dict(state)
    second.start(step=1230)
    train(second, range(1231, STEPS + 1))
    second.finish()
    outcome = assert_replays_as_stored(settings)
    assert second.attempt == 2
    detected = [[a.detected_step for a in t.evidence.values()] for t in outcome.transitions]
    assert any(min(steps) < 1230 < max(steps) for steps in detected)  # it was open at the resume


def test_a_validation_after_the_checkpoint_of_its_step_is_detected_on_by_the_resumed_run(
    settings,
) -> None:
    first = Watch(settings)
    first.start()
    train(first, range(1, 1210))
    logged = values(1210)
    first.observe(1210, {"train_loss": logged["train_loss"]})
    state = first.state_dict()
    first.observe(1210, {"val_loss": 1.05 * logged["val_loss"]})  # differs, so that it matters
    first.finish()
    second = Watch(settings)
    second.load_state_dict(state)
    second.start(step=1210)
    assert second.state_dict()["detection"]["seen"]["val_loss"] == 1210
    assert second.state_dict()["detection"]["streams"]["train_loss"]["num_skipped"] == 0
    train(second, range(1211, STEPS + 1))
    second.finish()
    assert_replays_as_stored(settings)


def test_detectors_of_the_configuration_and_of_the_code_are_used_again(settings) -> None:
    from phasewatch import detectors

    chosen = settings | {
        "detectors": {"val_loss": {"name": "slope_shift", "parameters": {"gate": 0.3}}}
    }
    given = {"train_loss": detectors.create("slope_shift", gate=0.4), "val_accuracy": "none"}
    live(chosen, detectors=given)
    watched = {one.name: one for one in assert_replays_as_stored(settings).watched}
    assert watched["val_loss"].parameters["gate"] == 0.3
    assert watched["train_loss"].parameters["gate"] == 0.4
    assert watched["val_accuracy"].detector == "none"


class Own:
    """A detector that only the user's code knows."""

    active, threshold, statistic, num_skipped = False, 1.0, 0.0, 0

    def update(self, step, value, stderr=None):
        if step != 50:
            return None
        return Alarm(
            detected_step=step,
            onset_step=40,
            direction=Direction.DOWN,
            score=2.0,
            run_length=10,
            value_before=2.0,
            value_after=1.0,
        )

    def reset(self): ...

    def state_dict(self):
        return {}

    def load_state_dict(self, state): ...


def test_a_detector_that_is_not_known_here_is_told_and_can_be_replaced(settings) -> None:
    live(settings, detectors={"train_loss": Own()})
    with Store(settings["store"], create=False) as store:
        info = store.run("test")
        with pytest.raises(ConfigError, match="'train_loss' by a detector of its own, 'Own'"):
            replay(store, info)
        outcome = replay(store, info, DetectorOverride("slope_shift", streams=["train_loss"]))
    assert {w.name: w.detector for w in outcome.watched}["train_loss"] == "slope_shift"


# ---- what if


def replayed(settings, change):
    with Store(settings["store"], create=False) as store:
        info = store.run("test")
        outcome = replay(store, info, change)
        return outcome, compare(store.transitions(info.id), outcome.transitions)


def test_a_changed_parameter_reaches_the_detectors_that_have_it(settings) -> None:
    live(settings)
    outcome, pairs = replayed(settings, DetectorOverride(parameters={"gate": 5.0}))
    watched = {one.name: one for one in outcome.watched}
    assert watched["train_loss"].parameters["gate"] == 5.0
    assert "gate" not in watched["llc"].parameters
    assert {pair.verdict for pair in pairs} >= {Verdict.SAME, Verdict.MOVED, Verdict.GONE}


def test_a_change_of_some_streams_leaves_the_others(settings) -> None:
    live(settings)
    outcome, _ = replayed(settings, DetectorOverride("none", streams=["train_loss", "val_loss"]))
    watched = {one.name: one.detector for one in outcome.watched}
    assert watched["train_loss"] == watched["val_loss"] == "none"
    assert watched["val_accuracy"] == "abrupt_change"
    outcome, _ = replayed(settings, DetectorOverride("slope_shift"))
    watched = {one.name: one.detector for one in outcome.watched}
    assert watched["val_accuracy"] == watched["llc"] == "slope_shift"
    assert watched["lr"] == "none"  # what is not watched stays so, unless it is named
    outcome, _ = replayed(settings, DetectorOverride("slope_shift", streams=["lr"]))
    assert {one.name: one.detector for one in outcome.watched}["lr"] == "slope_shift"


def test_wrong_changes_are_refused() -> None:
    with pytest.raises(
        UnknownNameError, match=r"unknown detector 'cumsum' \(did you mean 'cusum'\?\); known: "
    ):
        DetectorOverride("cumsum")
    with pytest.raises(ConfigError, match=r"'slope_shift' refuses its parameters .*'gat'"):
        DetectorOverride("slope_shift", {"gat": 0.2})
    with pytest.raises(ConfigError, match=r"gate is -1\.0, but must be above 0"):
        DetectorOverride("slope_shift", {"gate": -1.0})


def test_a_parameter_that_no_detector_has_is_refused() -> None:
    columns = {"loss": Column([1, 2], [1.0, 1.0], [None, None], [0.0, 0.0])}
    with pytest.raises(ConfigError, match=r"has a parameter 'gat'; .* abrupt_change: certainty, "):
        detect([columns], run="x", change=DetectorOverride(parameters={"gat": 1.0}))


def test_a_change_in_words() -> None:
    assert str(DetectorOverride()) == ""
    assert not DetectorOverride()
    change = DetectorOverride("slope_shift", {"gate": 0.2}, ["val_loss"])
    assert str(change) == "slope_shift, gate = 0.2 on val_loss"
    assert change


# ---- beside what was stored


def test_transitions_are_paired_equal_ones_first_then_by_overlap_and_kind() -> None:
    stored = [transition(onset=100, detected=150, end=200), transition(onset=500)]
    moved = transition(onset=120, detected=160, end=210)
    other = transition(onset=110, detected=150, end=200, kind=TransitionKind.INSTABILITY)
    late = transition(onset=2000, detected=2100, end=2200)
    pairs = compare(stored, [other, moved, transition(onset=500), late])
    assert [(pair.verdict, pair.onset_step) for pair in pairs] == [
        (Verdict.MOVED, 100),
        (Verdict.NEW, 110),
        (Verdict.SAME, 500),
        (Verdict.NEW, 2000),
    ]
    assert pairs[0].found is moved
    assert compare(stored[:1], [])[0].verdict is Verdict.GONE
    assert compare([], []) == []


def test_a_pair_says_what_moved() -> None:
    cells = Pair(transition(), transition(onset=510)).cells
    assert (cells["verdict"], cells["onset"], cells["detected"]) == ("moved", "500→510", "600")
    assert Pair(transition(end=None), None).cells["end"] == "–"


@pytest.mark.parametrize(
    "change",
    [
        {"kind": TransitionKind.INSTABILITY},
        {"status": TransitionStatus.CONFIRMED},
        {"onset": 501},
        {"detected": 601},
        {"end": None},
    ],
)
def test_what_makes_transitions_differ(change) -> None:
    assert equal(transition(), transition())
    assert not equal(transition(), transition(**change))
