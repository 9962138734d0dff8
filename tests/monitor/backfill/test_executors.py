"""Blocks of checkpoints as tasks: whoever runs them, the numbers are those of the same blocks."""

import os
import pickle
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import numpy as np
import pytest
import torch

from phasewatch.monitor.backfill.backfill import backfill
from phasewatch.monitor.backfill.checkpoints import Checkpoint, find_checkpoints
from phasewatch.monitor.backfill.executors import executor_of
from phasewatch.monitor.backfill.measuring import Plan, measure_block, prepared
from phasewatch.monitor.backfill.workers import TASK_SIZE, workers_for
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.errors import (
    ConfigError,
    MeasurementError,
    MissingPackageError,
    UnknownNameError,
)
from phasewatch.monitor.store.store import Store
from support.backfilled import CONFIG, train

PLAN = Plan(
    "support.backfilled:factory", {**CONFIG, "sampler": {**CONFIG["sampler"], "warm_start": True}}
)


class AtOnce(Executor):
    """Runs what it is given in this process, the last first, and keeps what that was."""

    def __init__(self):
        self.blocks = []
        self.waiting = []

    def submit(self, fn, plan, checkpoints):
        future = Done(self)
        self.blocks.append([checkpoint.step for checkpoint in checkpoints])
        self.waiting.append((future, pickle.dumps((fn, plan, checkpoints))))
        return future

    def run(self):
        while self.waiting:
            future, task = self.waiting.pop()
            fn, *arguments = pickle.loads(task)
            try:
                future.set_result(fn(*arguments))
            except Exception as error:
                future.set_exception(error)


class Done(Future):
    def __init__(self, executor):
        super().__init__()
        self.executor = executor

    def done(self):
        self.executor.run()
        return super().done()


def at_once():
    return AtOnce()


def threads():
    return ThreadPoolExecutor(1)


def not_an_executor():
    return "four"


def fails():
    raise OSError("no cluster")


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "checkpoints"
    train(folder, 60, lambda step, net: torch.save(net.state_dict(), folder / f"step-{step}.pt"))
    return find_checkpoints([str(folder / "*.pt")])


def filled(where, checkpoints, plan=PLAN, **more):
    with Store(where) as store:
        done = backfill(store, "run", plan, checkpoints, **more)
        return done, [
            store.history(done.run_id, name, include_unconverged=True)[:3]
            for name in ("llc", "weight_norm")
        ]


def equal(one, other):
    for ours, theirs in zip(one, other, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


def test_tasks_are_blocks_of_neighbours_and_give_what_one_process_gives(tmp_path, saved):
    executor = AtOnce()
    seen = []
    done, tasks = filled(
        tmp_path / "tasks.db",
        saved,
        executor=executor,
        block=2,
        progress=lambda *count: seen.append(count),
    )
    assert executor.blocks == [[10, 20], [30, 40], [50, 60]]
    assert seen == [(number, 6) for number in range(1, 7)]
    assert done.measured == 6
    _, serial = filled(tmp_path / "serial.db", saved, block=2)
    equal(serial, tasks)
    _, whole = filled(tmp_path / "whole.db", saved)
    assert not np.array_equal(whole[0][1], serial[0][1])  # chains go on within a block alone


@pytest.mark.slow
def test_two_processes_give_what_one_gives_either_way(tmp_path, saved):
    _, serial = filled(tmp_path / "serial.db", saved, block=2)
    with executor_of("processes", 2) as executor:
        _, tasks = filled(tmp_path / "tasks.db", saved, executor=executor, block=2)
    equal(serial, tasks)
    _, jobs = filled(tmp_path / "jobs.db", saved, jobs=2, block=2)
    equal(serial, jobs)


def test_a_task_is_a_function_of_the_plan_and_its_checkpoints(saved):
    plan = prepared(PLAN)

    def values(block):
        return [(o.name, o.step, o.value, o.stderr) for m in block for o in m.observations]

    first = values(measure_block(plan, saved[2:4]))
    torch.rand(7)
    measure_block(plan, saved[:2])
    assert values(measure_block(plan, saved[2:4])) == first
    assert {step for _, step, *_ in first} == {30, 40}


def test_a_task_has_eight_checkpoints_where_nothing_is_said():
    workers = workers_for(PLAN, executor=AtOnce())
    assert (TASK_SIZE, workers.is_one_row(8), workers.is_one_row(9)) == (8, True, False)


def test_a_failure_of_a_task_ends_it_and_done_blocks_are_kept(tmp_path, saved):
    # Tasks are taken up from the last: what the first one fails at comes after the others.
    executor = AtOnce()
    (saved[0].path).write_bytes(b"torn")
    with pytest.raises(ConfigError, match=r"step-10\.pt"):
        filled(tmp_path / "run.db", [*saved[1:], Checkpoint(70, saved[0].path)], executor=executor)
    with Store(tmp_path / "run.db", create=False) as store:
        run = store.run("run")
        assert run.state is RunState.FAILED
        assert store.history(run.id, "weight_norm")[0].tolist() == [20, 30, 40, 50, 60]


@pytest.mark.slow
def test_a_worker_that_is_gone_is_told_in_words(tmp_path, saved):
    plan = Plan(f"{__name__}:dies", PLAN.config)
    with (
        executor_of("processes", 1) as executor,
        pytest.raises(MeasurementError, match="a process that measured is gone"),
    ):
        filled(tmp_path / "run.db", saved, plan=plan, executor=executor)


def dies():
    os._exit(9)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["jobs", "executor"])
def test_an_error_of_a_worker_arrives_as_it_was(tmp_path, saved, way):
    plan = Plan("support.backfilled:factori", PLAN.config)
    with executor_of("processes", 2) as executor:
        more = {"jobs": 2} if way == "jobs" else {"executor": executor, "block": 3}
        with pytest.raises(UnknownNameError, match=r"did you mean 'factory'"):
            filled(tmp_path / "run.db", saved, plan=plan, **more)


@pytest.mark.parametrize(
    "error",
    [
        UnknownNameError("observable", "lc", ["llc"]),
        MissingPackageError("ray", "the executor 'ray'"),
        ConfigError("jobs is 0"),
    ],
)
def test_errors_travel_between_processes(error):
    arrived = pickle.loads(pickle.dumps(error))
    assert (type(arrived), str(arrived)) == (type(error), str(error))


def test_what_remembers_is_refused_in_more_than_one_block(tmp_path, saved):
    plan = Plan(PLAN.factory, {**CONFIG, "observables": ["distance_from_init"]})
    with pytest.raises(ConfigError, match=r"distance_from_init.*in one block"):
        filled(tmp_path / "run.db", saved, plan=plan, executor=AtOnce(), block=2)
    with pytest.raises(ConfigError, match=r"distance_from_init.*in one block"):
        filled(tmp_path / "run.db", saved, plan=plan, block=2)
    assert filled(tmp_path / "run.db", saved, plan=plan, block=6)[0].measured == 6


@pytest.mark.parametrize(
    ("name", "workers", "message"),
    [
        ("raye", None, r"did you mean 'ray'\?\); known: processes, ray\. Or give module:factory"),
        ("processes", 0, "jobs is 0; give a number of at least 1"),
        (f"{__name__}:threads", 2, "jobs is 2 beside the executor of .* leave --jobs out"),
        (f"{__name__}:not_an_executor", None, "returned a str; it must return a concurrent"),
        (f"{__name__}:fails", None, "raised OSError: no cluster; it takes no arguments"),
        (f"{__name__}:thread", None, "did you mean 'threads'"),
    ],
)
def test_a_wrong_executor_is_told_with_what_is_right(name, workers, message):
    with pytest.raises(ConfigError, match=message):
        executor_of(name, workers)


def test_a_factory_gives_its_executor():
    with executor_of(f"{__name__}:threads") as executor:
        assert executor.submit(abs, -3).result() == 3


def test_numbers_below_one_and_two_ways_at_once_are_refused(tmp_path, saved):
    for more, message in (
        ({"jobs": 0}, "jobs is 0"),
        ({"block": 0}, "block is 0"),
        ({"jobs": 2, "executor": AtOnce()}, "jobs is 2 beside an executor"),
    ):
        with pytest.raises(ConfigError, match=message):
            filled(tmp_path / "run.db", saved, **more)


def test_the_command_takes_an_executor(tmp_path, saved, phasewatch):
    arguments = [
        "backfill", "support.backfilled:factory", saved[0].path.parent / "*.pt", "--run", "later",
        "--observables", "weight_norm", "--store", tmp_path / "later.db",
    ]  # fmt: skip
    code, out, err = phasewatch(*arguments, "--executor", f"{__name__}:at_once", "--block", "4")
    assert (code, err.strip()) == (0, "")
    assert "6 of 6 checkpoints measured, 0 were known" in out
    code, _, err = phasewatch(*arguments, "--executor", "proceses")
    assert code == 1
    assert "unknown executor 'proceses' (did you mean 'processes'?)" in err
