"""Only the checkpoints around a transition, named by its id or its kind."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from phasewatch.monitor.backfill.around import around, find_transition, kept_for, span_of
from phasewatch.monitor.backfill.backfill import backfill
from phasewatch.monitor.backfill.checkpoints import Checkpoint, find_checkpoints
from phasewatch.monitor.backfill.measuring import Plan
from phasewatch.monitor.core.errors import ConfigError
from phasewatch.monitor.core.transitions import (
    Hindsight,
    HindsightVerdict,
    Transition,
    TransitionKind,
    TransitionStatus,
)
from phasewatch.monitor.run.watch import Watch
from phasewatch.monitor.store.store import Store
from support.backfilled import JUMPING, factory, jump

CHECKPOINTS = [Checkpoint(step, Path(f"step-{step}.pt")) for step in range(10, 410, 10)]


def transition(onset, end, *, key="a1b2c3d4e5", kind="generalisation", **more):
    fields = {
        "id": key, "run": "r", "attempt": 1, "kind": TransitionKind(kind),
        "status": TransitionStatus.ENDED, "onset_step": onset, "detected_step": onset,
        "end_step": end, "detected_at": 0.0, "severity": 1.0, "evidence": {}, "before": {},
        "after": {},
    }  # fmt: skip
    return Transition(**{**fields, **more})


def steps(found):
    return [checkpoint.step for checkpoint in found]


def test_taken_is_its_length_and_as_much_on_either_side():
    assert steps(around(transition(200, 240), CHECKPOINTS)) == list(range(160, 290, 10))


def test_at_least_two_are_taken_on_each_side():
    assert steps(around(transition(200, 205), CHECKPOINTS)) == [180, 190, 200, 210, 220]
    assert steps(around(transition(202, 204), CHECKPOINTS)) == [190, 200, 210, 220]
    assert steps(around(transition(10, 400), CHECKPOINTS)) == steps(CHECKPOINTS)
    assert steps(around(transition(900, 905), CHECKPOINTS)) == [390, 400]


def test_one_that_lasts_ends_where_it_was_detected_and_hindsight_knows_better():
    lasting = transition(200, None, detected_step=220)
    assert span_of(lasting) == (200, 220)
    corrected = Hindsight(
        verdict=HindsightVerdict.CORRECTED,
        streamed=TransitionStatus.ENDED,
        onset_step=180,
        end_step=210,
    )
    assert span_of(replace(lasting, hindsight=corrected)) == (180, 210)
    nothing = Hindsight(verdict=HindsightVerdict.WITHDRAWN, streamed=TransitionStatus.ENDED)
    assert span_of(replace(lasting, hindsight=nothing)) == (200, 220)


def test_no_checkpoint_is_an_error():
    with pytest.raises(ConfigError, match="no checkpoint around steps 200 to 240"):
        around(transition(200, 240), [])


FIRST = transition(100, 120, key="aa11bb22cc")
SECOND = transition(200, 220, key="aa33dd44ee", kind="simplification")
THIRD = transition(300, 320, key="ff55", kind="simplification")
GONE = transition(
    350, 360, key="bb77", kind="generalisation", status=TransitionStatus.WITHDRAWN
)  # fmt: skip
ALL = [FIRST, SECOND, THIRD, GONE]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("aa11bb22cc", FIRST),
        ("aa3", SECOND),
        ("generalisation", FIRST),
        ("Generalisation", FIRST),
        ("bb77", GONE),
    ],
)
def test_a_transition_is_known_by_its_id_or_its_kind(wanted, found):
    assert find_transition(ALL, wanted) is found


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("simplification", r"2 transitions are meant .*: aa33dd44 .*200 to 220\), ff55 \("),
        ("aa", r"2 transitions are meant by 'aa'; give the id of one: aa11bb22 \(general"),
        ("generalization", r"no transition 'generalization' \(did you mean 'generalisation'\?\)"),
        ("cleanup", r"no transition 'cleanup': aa11bb22 .*, bb77 \(.*, withdrawn\)"),
        ("", r"no transition ''"),
    ],
)
def test_what_is_not_one_is_told_with_what_there_is(wanted, message):
    with pytest.raises(ConfigError, match=message):
        find_transition(ALL, wanted)


def test_a_run_without_transitions_says_so():
    with pytest.raises(ConfigError, match="none was found in it"):
        find_transition([], "generalisation")


def test_the_command_measures_more_around_a_transition(tmp_path, phasewatch):
    for step in range(10, 510, 10):
        torch.save(jump(step), tmp_path / f"step-{step}.pt")
    pattern = tmp_path / "*.pt"
    with Store(tmp_path / "run.db") as store:
        plan = Plan("support.backfilled:factory", JUMPING)
        found = backfill(store, "run", plan, find_checkpoints([str(pattern)])).transitions
        first, last = span_of(found[0])
        assert (len(found), first, last) == (1, 290, 300)
    arguments = [
        "backfill", "support.backfilled:factory", pattern, "--observables", "effective_rank",
        "--store", tmp_path / "run.db",
    ]  # fmt: skip
    code, out, err = phasewatch(*arguments, "--run", "run", "--around", found[0].kind.value)
    assert (code, err.strip()) == (0, "")
    assert "6 of 6 checkpoints measured, 0 were known; steps 270 to 320" in out
    with Store(tmp_path / "run.db", create=False) as store:
        run = store.run("run")
        assert store.history(run.id, "effective_rank")[0].tolist() == list(range(270, 330, 10))
        assert len(store.history(run.id, "weight_norm")[0]) == 50
        assert found[0].id in [t.id for t in store.transitions(run.id)]
    code, _, err = phasewatch(*arguments, "--run", "run", "--around", "unclasified")
    assert (code, "did you mean 'unclassified'" in err) == (1, True)
    code, _, err = phasewatch(*arguments, "--run", "ru", "--around", "unclassified")
    assert (code, "no run" in err) == (1, True)


def test_what_the_run_has_kept_is_found_without_naming_it(tmp_path):
    paths = [tmp_path / f"[run] step={step}.pt" for step in (20, 30, 10)]
    for path in paths[:2]:
        torch.save({"model": {}}, path)
    kept = transition(20, 30, checkpoints=tuple(map(str, paths)))
    assert [(c.step, c.path) for c in kept_for(kept)] == [(20, paths[0]), (30, paths[1])]
    for path in paths[:2]:
        path.unlink()
    with pytest.raises(ConfigError, match=r"none of the 3 checkpoints .* is there any more"):
        kept_for(kept)
    with pytest.raises(ConfigError, match="no checkpoints were kept around transition a1b2c3d4"):
        kept_for(transition(20, 30))


def test_the_command_closes_the_loop_of_a_live_run_that_kept_them(tmp_path, phasewatch):
    model = factory()[0]
    settings = {
        **JUMPING, "store": str(tmp_path / "run.db"), "run_name": "live", "every_n_steps": 10,
        "checkpoint_on": "suspected", "around": {"keep": 6, "every_n_steps": 10},
    }  # fmt: skip
    save = lambda path: torch.save(model.state_dict(), path)  # noqa: E731
    with Watch(settings, save=save, root=tmp_path) as watch:
        for step in range(10, 510, 10):
            model.load_state_dict(jump(step))
            assert watch.due(step)
            watch.probe(step, model)
            watch.drain()
    (found,) = watch.transitions
    kept = kept_for(found)
    assert kept[0].step < found.onset_step < kept[-1].step
    assert len(kept) == 12
    command = [
        "backfill", "support.backfilled:factory", "--run", "live", "--store", settings["store"],
        "--observables", "effective_rank",
    ]  # fmt: skip
    code, out, err = phasewatch(*command, "--around", found.id)
    assert (code, err.strip()) == (0, "")
    assert f"12 of 12 checkpoints measured, 0 were known; steps {kept[0].step} to" in out
    with Store(settings["store"], create=False) as store:
        run = store.run("live")
        assert store.history(run.id, "effective_rank")[0].tolist() == steps(kept)
    code, out, _ = phasewatch("show", "live", "--store", settings["store"])
    assert f"Checkpoints: 12 kept, step={kept[0].step} to step={kept[-1].step}, in " in out
    code, _, err = phasewatch(*command)
    assert (code, "give --around" in err) == (1, True)
