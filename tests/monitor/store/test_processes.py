"""Many processes, one file: killed writers, readers meanwhile, forks."""

import os
import signal
import sqlite3
import time

import pytest

from phasewatch.monitor.core import processes
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.errors import StoreError
from phasewatch.monitor.core.processes import ProcessIdentity
from phasewatch.monitor.store.store import Store
from support.records import make_observation, start_python, wait_until

WRITER = """
import sys, time
from phasewatch.monitor.store.store import Store
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.estimates import Observation
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
store = Store(path)
run, attempt = store.begin_run(name=name, run_id=name)
print("begun", flush=True)
step = 0
while count == 0 or step < count:
    now = time.time()
    store.add_observation(run, attempt, Observation(name="x", step=step, value=0.5, timestamp=now))
    step += 1
    if count == 0:
        time.sleep(0.001)
    elif step % 100 == 0:
        time.sleep(0.02)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs.db"


def intact(path):
    raw = sqlite3.connect(path)
    verdict = raw.execute("PRAGMA integrity_check").fetchone()[0]
    raw.close()
    return verdict == "ok"


def test_a_killed_process_loses_at_most_a_second_and_reads_as_interrupted(path):
    child = start_python(WRITER, path, "demo", 0)
    try:
        child.stdout.readline()
        with Store(path, create=False) as reader:
            wait_until(lambda: len(reader.history("demo", "x")[0]) > 500, what="500 rows")
            assert reader.run("demo").state is RunState.RUNNING
        killed_at = time.time()
        child.send_signal(signal.SIGKILL)
    finally:
        child.kill()
        child.communicate()
    with Store(path, create=False) as store:
        info = store.run("demo")
        assert info.state is RunState.INTERRUPTED
        assert "is gone" in info.reason
        assert info.pid == child.pid
        kept = store.observations("demo", "x")
        assert [row.step for row in kept] == list(range(len(kept)))
        assert killed_at - kept[-1].timestamp < 1.0
        assert info.last_step == kept[-1].step
    assert intact(path)


def test_two_processes_write_to_one_file_while_a_third_reads(path):
    children = [start_python(WRITER, path, name, 3_000) for name in ("one", "two")]
    seen = []
    for child in children:
        child.stdout.readline()
    with Store(path, create=False) as reader:
        while any(child.poll() is None for child in children):
            counts = [len(reader.history(name, "x")[0]) for name in ("one", "two")]
            seen.append(counts)
            time.sleep(0.02)
        for child in children:
            _, err = child.communicate(timeout=60)
            assert (child.returncode, err) == (0, "")
        for name in ("one", "two"):
            assert reader.history(name, "x")[0].tolist() == list(range(3_000))
    assert seen == sorted(seen)  # what was read once is never gone again
    assert any(0 < one < 3_000 for one, _ in seen)
    assert intact(path)


def test_several_first_writers_make_one_file(path):
    code = """
import sys
from phasewatch.monitor.store.store import Store
print("ready", flush=True)
sys.stdin.readline()
with Store(sys.argv[1]) as store:
    store.begin_run(name=sys.argv[2])
"""
    children = [start_python(code, path, f"run{index}") for index in range(4)]
    for child in children:
        child.stdout.readline()
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    for child in children:
        _, err = child.communicate(timeout=60)
        assert (child.returncode, err) == (0, "")
    with Store(path, create=False) as store:
        assert sorted(run.name for run in store.runs()) == [f"run{index}" for index in range(4)]


def test_what_is_queued_is_written_at_exit_without_a_close(path):
    child = start_python(WRITER, path, "demo", 50)
    child.communicate(timeout=60)
    with Store(path, create=False) as store:
        assert len(store.history("demo", "x")[0]) == 50
        assert store.run("demo").state is RunState.INTERRUPTED  # nobody said that it ended


def test_a_fork_neither_writes_nor_hangs_and_the_parent_goes_on(path):
    code = """
import json, os, sys
from phasewatch.monitor.core.errors import StoreError
from phasewatch.monitor.store.store import Store
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.estimates import Observation
store = Store(sys.argv[1])
run, attempt = store.begin_run(name="demo", run_id="demo")
def add(steps):
    for step in steps:
        store.add_observation(run, attempt, Observation(name="x", step=step, value=0.5))
add(range(10))
child = os.fork()
if child == 0:
    add(range(100, 110))
    assert store.flush() and store.queue_depth <= 10
    store.end_run(run, attempt, RunState.FAILED)
    try:
        store.runs()
    except StoreError as error:
        assert "open it again in this process" in str(error)
    with Store(sys.argv[1]) as own:
        own.begin_run(name="of the child")
    store.close()
    sys.exit(0)
add(range(10, 20))
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
add(range(20, 30))
store.end_run(run, attempt, RunState.FINISHED)
store.close()
"""
    child = start_python(code, path)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    with Store(path, create=False) as store:
        assert store.history("demo", "x")[0].tolist() == list(range(30))
        assert store.run("demo").state is RunState.FINISHED
        assert store.run("of the child").name == "of the child"
    assert intact(path)


def test_a_worker_of_a_loader_forked_while_writing_does_no_harm(path):
    code = """
import multiprocessing, sys
from phasewatch.monitor.store.store import Store
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.estimates import Observation
store = Store(sys.argv[1])
run, attempt = store.begin_run(name="demo", run_id="demo")
step = 0
for _ in range(5):
    workers = [multiprocessing.get_context("fork").Process(target=int) for _ in range(2)]
    for worker in workers:
        for _ in range(200):
            store.add_observation(run, attempt, Observation(name="x", step=step, value=0.5))
            step += 1
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
store.end_run(run, attempt, RunState.FINISHED)
store.close()
"""
    child = start_python(code, path)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    with Store(path, create=False) as store:
        assert len(store.history("demo", "x")[0]) == 2_000
    assert intact(path)


# Whose process is it ----------------------------------------------------------------------------


def alter(path, **values):
    raw = sqlite3.connect(path)
    for column, value in values.items():
        raw.execute(f"UPDATE phasewatch_attempts SET {column} = ?", (value,))
    raw.commit()
    raw.close()


@pytest.fixture
def elsewhere(path):
    """A run of this living process, to be told as if it were another's."""
    with Store(path) as store:
        store.begin_run(name="demo", run_id="demo")
        store.flush()
    return path


def state(path):
    with Store(path, create=False) as store:
        return store.run("demo").state


def test_a_later_process_with_the_same_pid_is_not_the_run(elsewhere):
    assert state(elsewhere) is RunState.RUNNING
    alter(elsewhere, process_start="1")
    assert state(elsewhere) is RunState.INTERRUPTED


def test_a_run_on_another_machine_lives_by_its_heartbeat(elsewhere):
    alter(elsewhere, machine="another", pid=1, heartbeat=time.time())
    assert state(elsewhere) is RunState.RUNNING
    alter(elsewhere, heartbeat=time.time() - processes.STALE_SECONDS - 1)
    assert state(elsewhere) is RunState.INTERRUPTED


def test_without_start_times_a_run_needs_its_pid_and_its_heartbeat():
    identity = ProcessIdentity.current()
    unknown = ProcessIdentity(
        host=identity.host, machine=identity.machine, pid=identity.pid, start=""
    )
    assert unknown.is_alive(heartbeat=100.0, now=101.0)
    assert not unknown.is_alive(heartbeat=100.0, now=100.0 + processes.STALE_SECONDS)


def test_a_zombie_has_ended():
    child = start_python("import sys; sys.stdin.read()")
    try:
        started = processes._start(child.pid)
        assert started
        os.kill(child.pid, signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert processes._start(child.pid) is None
    finally:
        child.kill()
        child.communicate()


def test_the_rows_of_a_run_can_be_read_with_plain_sql(path):
    with Store(path) as store:
        run, attempt = store.begin_run(name="demo")
        store.add_observation(run, attempt, make_observation(1, 0.25))
        store.flush()
        raw = sqlite3.connect(path)
        query = """
            SELECT a.name, s.name, o.step, o.value FROM phasewatch_observations o
            JOIN phasewatch_streams s ON s.id = o.stream_id
            JOIN phasewatch_attempts a ON a.run_id = s.run_id AND a.attempt = o.attempt
        """
        assert raw.execute(query).fetchall() == [("demo", "train_loss", 1, 0.25)]
        raw.close()


def test_a_forked_store_says_what_to_do(path):
    store = Store(path)
    store._after_fork()
    with pytest.raises(StoreError, match="open it again in this process"):
        store.begin_run(name="demo")
    store._forked = False
    store.close()
