"""A store that fails in mid-run counts, keeps what it can, goes on trying, and never raises."""

import logging
import shutil
import sqlite3
import threading

import pytest

from phasewatch.monitor.core.columns import Column
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.errors import StoreError
from phasewatch.monitor.core.transitions import Recipient, TransitionStatus
from phasewatch.monitor.store import database, writer
from phasewatch.monitor.store import store as store_module
from phasewatch.monitor.store.outbox import Delivery
from phasewatch.monitor.store.store import Store
from support.records import make_observation, make_transition, start_python, wait_until


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    monkeypatch.setattr(writer, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(store_module, "ENTER_SECONDS", 0.2)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs.db"


def begin(store):
    run, attempt = store.begin_run(name="demo", run_id="r1")
    assert (run, attempt) == ("r1", 1)


def add(store, steps):
    for step in steps:
        store.add_observation("r1", 1, make_observation(step))


def test_a_locked_store_is_written_once_the_lock_is_gone(path, caplog):
    with Store(path) as store:
        begin(store)
        blocker = sqlite3.connect(path, isolation_level=None)
        blocker.execute("BEGIN EXCLUSIVE")
        with caplog.at_level(logging.INFO):
            add(store, range(5))
            assert not store.flush(0.3)
            wait_until(lambda: store.num_failed >= 2, what="the second try")
            assert store.queue_depth == 5
            blocker.execute("ROLLBACK")
            blocker.close()
            assert store.flush()
        assert store.history("r1", "train_loss")[0].tolist() == [0, 1, 2, 3, 4]
        assert (store.queue_depth, store.num_dropped) == (0, 0)
    told = [record.getMessage() for record in caplog.records]
    assert len([line for line in told if "cannot be written (database is locked)" in line]) == 1
    assert len([line for line in told if "can be written again" in line]) == 1


def test_a_full_queue_drops_and_counts_and_never_blocks(path):
    with Store(path, capacity=10) as store:
        begin(store)
        blocker = sqlite3.connect(path, isolation_level=None)
        blocker.execute("BEGIN EXCLUSIVE")
        add(store, range(25))
        store.add_scalars("r1", 1, "x", Column([1, 2], [0.0, 0.0], [None, None], [0.0, 0.0]))
        store.add_transition(make_transition("r1"))
        assert store.num_dropped == 17
        assert store.queue_depth == 11  # a transition is rare and always kept
        blocker.execute("ROLLBACK")
        blocker.close()
        assert store.flush()
        assert store.history("r1", "train_loss")[0].tolist() == list(range(10))
        assert len(store.transitions("r1")) == 1


def test_what_cannot_be_written_at_the_end_is_counted_and_told(path, caplog):
    store = Store(path)
    begin(store)
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN EXCLUSIVE")
    add(store, range(5))
    store.close(timeout=0.3)
    blocker.close()
    assert store.num_dropped == 5
    assert "5 rows could not be written and are lost" in caplog.text


def test_a_removed_file_is_made_anew_and_the_run_goes_on(path, caplog):
    with Store(path) as store:
        begin(store)
        add(store, [1])
        assert store.flush()
        for file in path.parent.iterdir():
            file.unlink()
        add(store, [2])
        assert store.flush()
        assert store.history("r1", "train_loss")[0].tolist() == [2]
        assert store.run("demo").state is RunState.RUNNING
        assert store.num_failed == 1
        store.end_run("r1", 1, RunState.FINISHED)
    assert "was removed or replaced while in use" in caplog.text
    with Store(path, create=False) as again:
        assert again.run("demo").state is RunState.FINISHED


def test_a_removed_folder_is_waited_for(path, tmp_path):
    folder = tmp_path / "folder"
    with Store(folder / "runs.db") as store:
        begin(store)
        shutil.rmtree(folder)
        add(store, [1])
        assert not store.flush(0.3)
        assert store.num_failed >= 1
        assert store.queue_depth == 1
        folder.mkdir()
        assert store.flush()
        assert store.history("r1", "train_loss")[0].tolist() == [1]


def test_a_row_the_database_refuses_is_dropped_alone(path, caplog):
    with Store(path) as store:
        begin(store)
        add(store, [1, 2**70, 3])
        store.add_observation("r1", 1, make_observation(4, "not a number"))
        add(store, [5])
        assert store.flush()
        assert store.history("r1", "train_loss")[0].tolist() == [1, 3, 5]
        assert (store.num_dropped, store.num_failed) == (2, 2)
        assert store.run("demo").last_step == 5
    assert len([r for r in caplog.records if "refuses" in r.getMessage()]) == 1


def test_a_run_that_cannot_be_entered_is_an_error_that_names_the_store(path):
    with Store(path) as store:
        blocker = sqlite3.connect(path, isolation_level=None)
        blocker.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match=r"run 'demo' .*runs\.db: database is locked"):
            begin(store)
        blocker.close()


def test_a_full_disk_is_survived(tmp_path):
    code = """
import resource, sys
from phasewatch.monitor.store import writer as store_writer
from phasewatch.monitor.store.outbox import Delivery
from phasewatch.monitor.store.store import Store
from phasewatch.monitor.core.columns import Column
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.transitions import Recipient, TransitionStatus
store_writer.RETRY_SECONDS = 0.05
store = Store(sys.argv[1])
run, attempt = store.begin_run(name="demo")
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
steps = list(range(20_000))
store.add_scalars(run, attempt, "x", Column(steps, [0.5] * 20_000, [None] * 20_000, [1e9] * 20_000))
assert not store.flush(1.0)
assert store.num_failed > 0 and store.queue_depth == 20_000
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
assert store.flush(20.0)
assert len(store.history(run, "x")[0]) == 20_000
store.end_run(run, attempt, RunState.FINISHED)
store.close()
print("survived", store.num_dropped)
"""
    child = start_python(code, tmp_path / "runs.db")
    out, err = child.communicate(timeout=60)
    assert out.split() == ["survived", "0"], err
    raw = sqlite3.connect(tmp_path / "runs.db")
    assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    raw.close()


def test_rows_are_committed_within_half_a_second_without_asking(path):
    with Store(path) as store, Store(path, create=False) as reader:
        begin(store)
        add(store, [1])
        wait_until(lambda: len(reader.history("r1", "train_loss")[0]), what="the commit")
    assert writer.GATHER_SECONDS < 0.5


def test_the_writer_sleeps_while_nothing_is_open(path):
    with Store(path) as store:
        begin(store)
        store.end_run("r1", 1, RunState.FINISHED)
        thread = store._writer._thread
        waits = []
        wait = store._writer._wake.wait

        def listen(timeout):
            waits.append(timeout)
            return wait(timeout)

        store._writer._wake.wait = listen
        add(store, [1])
        assert store.flush()
        wait_until(lambda: len(waits) == 1, what="the pause")
        assert waits == [None]
        assert thread.is_alive()


def test_an_idle_run_goes_on_saying_that_it_lives(path, monkeypatch):
    monkeypatch.setattr(writer, "HEARTBEAT_SECONDS", 0.1)
    with Store(path) as store:
        begin(store)
        first = store.run("demo").last_seen
        wait_until(lambda: store.run("demo").last_seen > first, what="a heartbeat")


def test_a_store_writes_from_a_thread_of_its_own_only(path):
    with Store(path) as store:
        begin(store)
        names = set()
        inner = store._rows.write
        store._rows.write = lambda *rows: names.add(threading.current_thread().name) or inner(*rows)
        add(store, range(10))
        assert store.flush()
        store.end_run("r1", 1, RunState.FINISHED)
    assert names == {"phasewatch-store"}


def test_what_a_removed_store_held_is_marked_and_its_transitions_are_entered_again(path):
    target = Recipient(target="1-json-aa", updates=True)
    with Store(path) as store:
        begin(store)
        add(store, range(1, 11))
        store.add_transition(make_transition("r1", status=TransitionStatus.CONFIRMED), (target,))
        assert store.flush()
        for file in path.parent.iterdir():
            file.unlink()
        add(store, range(11, 16))
        assert store.flush()
        state = store.carry("r1", 5.0)
        add(store, range(16, 21))
        store.flush()
        (hole,) = store.holes("r1")
        assert (hole.num_rows, hole.last_step) == (10, 10)
        assert "removed or replaced" in hole.reason
        assert [t.status for t in store.transitions("r1")] == [TransitionStatus.CONFIRMED]
        (message,) = store.outbox.messages()
        assert message.delivery is Delivery.WAITING
    with Store(path) as store:  # a resume finds the same
        store.begin_run(name="demo", run_id="r1", attempt=2, resumed_step=15)
        assert store.take_over("r1", 2, 15, state, "r1") == (0, 0)
        assert store.history("r1", "train_loss")[0].tolist() == [*range(11, 16)]
        assert [hole.num_rows for hole in store.holes("r1")] == [10]


def test_a_hole_beyond_the_checkpoint_is_counted_up_to_it(path):
    with Store(path) as store:
        begin(store)
        add(store, range(1, 11))
        state = store.carry("r1", 5.0)
        add(store, range(11, 21))
        assert store.flush()
        for file in path.parent.iterdir():
            file.unlink()
        add(store, [21])
        assert store.flush()
        assert [(h.num_rows, h.last_step) for h in store.holes("r1")] == [(20, 20)]
    with Store(path) as store:
        store.begin_run(name="demo", run_id="r1", attempt=2, resumed_step=10)
        assert store.take_over("r1", 2, 10, state, "r1") == (0, 10)
        (hole,) = store.holes("r1")
        assert (hole.num_rows, hole.last_step) == (10, 10)
        assert "removed or replaced" in hole.reason


def test_a_reader_follows_a_store_that_was_made_anew(path):
    with Store(path) as store, Store(path, create=False) as reader:
        begin(store)
        add(store, [1])
        assert store.flush()
        assert reader.history("r1", "train_loss")[0].tolist() == [1]
        for file in path.parent.iterdir():
            file.unlink()
        assert reader.history("r1", "train_loss")[0].tolist() == [1], "as long as there is none"
        add(store, [2])
        assert store.flush()
        assert reader.history("r1", "train_loss")[0].tolist() == [2]
