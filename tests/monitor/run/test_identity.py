"""One run is one run: names, folds, branches, moved stores, and how it ended."""

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest

from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.core.ending import RunState, ended_by
from phasewatch.monitor.run.run_names import StepCount, new_name
from phasewatch.monitor.run.watch import Watch
from phasewatch.monitor.store.store import Store
from support.records import start_python


def settings(folder, **more):
    quiet = {"exporter": {"enabled": False}, "observables": {}}
    return {"store": str(folder / "runs.db"), **quiet, **more}


def feed(watch, steps, value=1.0):
    for step in steps:
        watch.observe(step, {"train_loss": value + step / 1000})
    watch.drain()


# Names ------------------------------------------------------------------------------------------


def test_names_of_one_second_differ():
    names = [new_name() for _ in range(2000)]
    assert len(set(names)) == 2000


def test_watches_started_together_have_names_ids_and_histories_of_their_own(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        watches = [*pool.map(lambda _: Watch(settings(tmp_path)), range(8))]
    for number, watch in enumerate(watches):
        watch.start()
        feed(watch, range(1, 4), value=number)
    for watch in watches:
        watch.finish()
    with Store(tmp_path / "runs.db") as store:
        runs = store.runs()
        assert len({run.id for run in runs}) == len({run.name for run in runs}) == 8
        for number, watch in enumerate(watches):
            values = store.history(store.run(watch.run_name).id, "train_loss")[1]
            assert values.tolist() == [number + step / 1000 for step in (1, 2, 3)]


# Steps that go back -----------------------------------------------------------------------------


def test_a_watch_used_for_each_fold_sees_each_as_a_run_of_its_own(tmp_path):
    watch = Watch(settings(tmp_path, run_name="fold"))
    seen = []
    for fold in range(3):
        with watch:
            feed(watch, range(1, 11), value=fold)
        steps, values, _ = watch.history("train_loss")
        assert steps.tolist() == [*range(1, 11)]
        assert values[0] == pytest.approx(fold + 0.001)
        seen.append((watch.run_name, watch.run_id, watch.attempt))
    assert [name for name, *_ in seen] == ["fold", "fold/2", "fold/3"]
    assert len({run for _, run, _ in seen}) == 3
    assert [attempt for *_, attempt in seen] == [1, 1, 1]
    with Store(tmp_path / "runs.db") as store:
        assert [run.last_step for run in store.runs()] == [10, 10, 10]


def test_an_observable_of_the_users_begins_each_fold_afresh(tmp_path):
    class Counting:
        name, unit = "count", "1"

        def __init__(self):
            self.seen = 0

        def measure(self, context):
            raise NotImplementedError

        def state_dict(self):
            return {"seen": self.seen}

        def load_state_dict(self, state):
            self.seen = state["seen"]

    own = Counting()
    watch = Watch(settings(tmp_path), observables=[own])
    with watch:
        own.seen = 7
        feed(watch, range(1, 6))
    with watch:
        assert own.seen == 0


def test_a_loop_that_counts_anew_each_epoch_is_told_once_and_counted_on(tmp_path, caplog):
    with Watch(settings(tmp_path)) as watch:
        for _ in range(4):
            feed(watch, range(1, 17))
    assert watch.history("train_loss")[0].tolist() == [*range(1, 65)]
    assert len([r for r in caplog.records if "begin anew" in r.getMessage()]) == 1


@pytest.mark.parametrize("first", [0, 1])
def test_every_entry_of_the_loop_counts_alike(first):
    count = StepCount()
    seen = []
    for _ in range(3):
        for step in range(first, first + 4):
            before = count.at(step)  # asked before the step
            assert count.passed(step, ("loss",)) == before
            assert count.at(step) == before
            seen.append(before)
    assert seen == [*range(first, first + 12)]


def test_a_stream_with_a_count_of_its_own_begins_nothing_anew():
    count = StepCount()
    for step in range(1, 9):
        assert count.passed(step, ("train_loss",)) == step
    assert count.passed(0, ("val_loss",)) == 0  # the number of the epoch
    assert count.passed(9, ("train_loss",)) == 9
    assert count.passed(7, ("late",)) == 7  # a value that comes a little late


# Branches ---------------------------------------------------------------------------------------


def trunk(folder, steps=20):
    with Watch(settings(folder, run_name="trunk")) as watch:
        feed(watch, range(1, steps + 1))
        return watch.state_dict()


def go_on(folder, state, value, steps, **more):
    watch = Watch(settings(folder, **more))
    watch.load_state_dict(state)
    watch.start(20)
    feed(watch, steps, value=value)
    return watch


def test_a_second_resume_of_a_checkpoint_is_a_branch(tmp_path, caplog):
    state = trunk(tmp_path)
    branches = []
    for number in (2, 3, 4):
        watch = go_on(tmp_path, state, float(number), range(21, 31))
        watch.finish()
        branches.append(watch)
    for number, watch in zip((2, 3, 4), branches, strict=True):
        steps, values, _ = watch.history("train_loss")
        assert steps.tolist() == [*range(1, 31)]
        assert values[19] == pytest.approx(1.02)
        assert values[20:] == pytest.approx([number + step / 1000 for step in range(21, 31)])
    assert [watch.run_name for watch in branches] == ["trunk", "trunk@20", "trunk@20/2"]
    assert caplog.text.count("is a branch") == 2
    with Store(tmp_path / "runs.db") as store:
        runs = {run.name: run for run in store.runs()}
        assert runs["trunk"].branch_of is None
        for name in ("trunk@20", "trunk@20/2"):
            assert (runs[name].branch_of, runs[name].branch_step) == (runs["trunk"].id, 20)
            assert store.streams(runs[name].id)[0].count == 30
            assert store.names(runs[name].id) == ["train_loss"]
            in_order = [o.step for o in store.in_order(runs[name].id)]
            assert in_order == [*range(1, 31)]


def test_a_resume_that_died_is_done_again_and_is_no_branch(tmp_path):
    state = trunk(tmp_path)
    go_on(tmp_path, state, 2.0, range(21, 26)).finish(RunState.FAILED, "out of memory")
    again = go_on(tmp_path, state, 3.0, range(21, 31))
    again.finish()
    assert (again.run_name, again.attempt) == ("trunk", 3)
    values = again.history("train_loss")[1]
    assert values[20:] == pytest.approx([3 + step / 1000 for step in range(21, 31)])
    with Store(tmp_path / "runs.db") as store:
        assert len(store.runs()) == 1


def test_what_goes_on_from_a_run_that_still_runs_elsewhere_is_a_branch(tmp_path):
    code = """
import json, sys, time
from phasewatch.monitor.run.watch import Watch
quiet = {"exporter": {"enabled": False}, "observables": {}}
watch = Watch({"store": sys.argv[1], "run_name": "trunk", **quiet})
watch.start()
for step in range(1, 21):
    watch.observe(step, {"train_loss": 1.0})
print(json.dumps(watch.state_dict()), flush=True)
sys.stdin.readline()
watch.finish()
"""
    import json

    child = start_python(code, tmp_path / "runs.db")
    state = json.loads(child.stdout.readline())
    watch = go_on(tmp_path, state, 2.0, range(21, 23))
    watch.finish()
    child.communicate("\n", timeout=30)
    assert watch.run_name == "trunk@20"
    assert watch.run_id != state["run_id"]


def test_a_transition_open_at_the_branching_is_told_of_the_branch(tmp_path):
    state = trunk(tmp_path)
    go_on(tmp_path, state, 2.0, range(21, 23)).finish()
    branch = go_on(tmp_path, state, 2.0, range(21, 23))
    assert branch._detection._tracker.run == branch.run_id
    branch.finish()


def test_a_resumed_run_may_be_given_another_name_and_keeps_its_history(tmp_path):
    state = trunk(tmp_path)
    watch = go_on(tmp_path, state, 2.0, range(21, 23), run_name="renamed")
    watch.finish()
    assert (watch.run_id, watch.run_name) == (state["run_id"], "renamed")
    assert len(watch.history("train_loss")[0]) == 22
    with Store(tmp_path / "runs.db") as store:
        assert [run.name for run in store.runs()] == ["renamed"]


# Another store ----------------------------------------------------------------------------------


def test_a_run_that_goes_on_elsewhere_takes_its_history_along(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / "a").mkdir()
    state = trunk(tmp_path / "a")
    watch = go_on(tmp_path / "b", state, 2.0, range(21, 31))
    watch.finish()
    assert (watch.run_id, watch.attempt) == (state["run_id"], 2)
    assert watch.history("train_loss")[0].tolist() == [*range(1, 31)]
    assert str(tmp_path / "a" / "runs.db") in caplog.text
    with Store(tmp_path / "b" / "runs.db") as store:
        assert store.holes(watch.run_id) == []


def test_a_store_out_of_reach_is_named_and_its_rows_are_a_hole(tmp_path, caplog):
    (tmp_path / "a").mkdir()
    state = trunk(tmp_path / "a")
    (tmp_path / "a" / "runs.db").rename(tmp_path / "a" / "away.db")
    watch = go_on(tmp_path / "b", state, 2.0, range(21, 31))
    watch.finish()
    assert f"is in {tmp_path / 'a' / 'runs.db'}, which is not there any more" in caplog.text
    assert watch.history("train_loss")[0].tolist() == [*range(21, 31)]
    with Store(tmp_path / "b" / "runs.db") as store:
        (hole,) = store.holes(watch.run_id)
        assert (hole.stream, hole.last_step, hole.num_rows) == ("train_loss", 20, 20)


# How it ended -----------------------------------------------------------------------------------


class TrialPruned(Exception):
    pass


class MyPruned(TrialPruned):
    pass


class SIGTERMException(SystemExit):
    pass


class Enough(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (TrialPruned("at epoch 1"), RunState.STOPPED),
        (MyPruned(), RunState.STOPPED),
        (Enough(), RunState.STOPPED),
        (SystemExit(), RunState.STOPPED),
        (SystemExit(1), RunState.FAILED),
        (SystemExit("no data"), RunState.FAILED),
        (SystemExit(143), RunState.INTERRUPTED),
        (SIGTERMException(), RunState.INTERRUPTED),
        (KeyboardInterrupt(), RunState.INTERRUPTED),
        (ValueError("boom"), RunState.FAILED),
        (MemoryError(), RunState.FAILED),
    ],
)
def test_how_a_run_ended(tmp_path, error, state):
    assert ended_by(error, ("Enough",)) is state
    watch = Watch(settings(tmp_path, run_name="r", stop_exceptions=["Enough"]))
    with pytest.raises(type(error)), watch:
        raise error
    assert watch.health.state is state
    with Store(tmp_path / "runs.db") as store:
        assert store.run("r").state is state


def test_names_of_exceptions_are_a_setting():
    assert MonitorConfig.load({"stop_exceptions": ["mine.Enough"]}).stop_exceptions
