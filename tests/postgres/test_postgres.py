"""The run history in a real PostgreSQL: started here, as an ordinary user, on loopback."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from phasewatch.monitor.core.columns import Column
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.transitions import TransitionStatus
from phasewatch.monitor.run.watch import Watch
from phasewatch.monitor.store import schema
from phasewatch.monitor.store.store import Store
from support.needs import need_binary
from support.records import make_observation, make_transition, wait_until
from support.scraping import free_port

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(300)]


def programs() -> Path:
    """Where Debian keeps what a server needs; `initdb` is not on the path there."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return debian[-1].parent if debian else Path(need_binary("initdb")).parent


class Server:
    """A PostgreSQL of our own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder / "data", free_port()
        self._as = {"user": "nobody", "group": "nogroup"} if os.getuid() == 0 else {}
        if self._as:
            shutil.chown(folder, "nobody")
        self.url = f"postgresql+psycopg://me@127.0.0.1:{self.port}/postgres"
        command = [programs() / "initdb", "-D", self.folder, "-U", "me", "-A", "trust", "-N"]
        subprocess.run(command, check=True, capture_output=True, cwd="/", **self._as)
        self.start()

    def start(self) -> None:
        settings = f"port={self.port} listen_addresses=127.0.0.1 unix_socket_directories="
        options = [part for one in settings.split(" ") for part in ("-c", one)]
        command = [programs() / "postgres", "-D", self.folder, *options]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, cwd="/", **quiet, **self._as)
        wait_until(self._answers, seconds=60, what="the server")

    def _answers(self) -> bool:
        engine = create_engine(self.url)
        try:
            with engine.connect() as connection:
                return connection.execute(text("select 1")).scalar() == 1
        except Exception:
            return False
        finally:
            engine.dispose()

    def stop_immediately(self) -> None:
        """As a power cut: no farewell, what was not committed is gone."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(60)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(60)


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("psycopg", reason="run by `make postgres`")
    # Not below pytest's folder: each session closes that to others, also while we are running.
    with tempfile.TemporaryDirectory(prefix="phasewatch-postgres-") as folder:
        server = Server(Path(folder))
        yield server
        server.close()


@pytest.fixture(autouse=True)
def _empty(server):
    yield
    engine = create_engine(server.url)
    with engine.begin() as connection:
        connection.execute(text("drop schema public cascade"))
        connection.execute(text("create schema public"))
    engine.dispose()


def column(steps):
    steps = list(steps)
    return Column(steps, [step / 7 for step in steps], [0] * len(steps), [1e9] * len(steps))


def test_eight_writers_at_once_lose_and_mix_nothing(server):
    code = """
import sys
from phasewatch.monitor.core.columns import Column
from phasewatch.monitor.store.store import Store
from phasewatch.monitor.core.ending import RunState
with Store(sys.argv[1]) as store:
    run, attempt = store.begin_run(name=sys.argv[2])
    for start in range(0, 4000, 200):
        steps = list(range(start, start + 200))
        values = [float(sys.argv[2])] * 200
        store.add_scalars(run, attempt, "loss", Column(steps, values, [0] * 200, [1e9] * 200))
    store.end_run(run, attempt, RunState.FINISHED)
"""
    children = [
        subprocess.Popen([sys.executable, "-c", code, server.url, str(number)])
        for number in range(8)
    ]
    assert [child.wait(120) for child in children] == [0] * 8
    with Store(server.url, create=False) as store:
        runs = store.runs()
        assert sorted(run.name for run in runs) == [str(number) for number in range(8)]
        for run in runs:
            steps, values, _ = store.history(run.id, "loss")
            assert steps.tolist() == [*range(4000)]
            assert set(values) == {float(run.name)}
            assert run.state is RunState.FINISHED


def test_eight_resumes_of_one_run_at_once_take_eight_attempts(server):
    with Store(server.url) as store:
        run, _ = store.begin_run(name="r")
        found = []

        def begin():
            found.append(store.begin_run(name="r", run_id=run, attempt=2, resumed_step=1)[1])

        threads = [threading.Thread(target=begin) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(found) == [*range(2, 10)]


def test_a_server_that_is_cut_off_in_mid_run_loses_no_row(server):
    settings = {"store": server.url, "exporter": {"enabled": False}, "observables": {}}
    with Watch(settings | {"run_name": "cut"}) as watch:
        for step in range(1, 2001):
            watch.observe(step, {"loss": float(step)})
            if step == 1000:
                watch.drain()
                server.stop_immediately()
            if step == 1500:
                watch.drain()
                state = watch.state_dict()  # the store is down: the rows travel in it
                assert state["durable"]["rows"]
                server.start()
        watch.drain()
        wait_until(lambda: watch.store.flush(5.0), seconds=60, what="the last rows")
    assert watch.history("loss")[0].tolist() == [*range(1, 2001)]
    assert watch.health.store_dropped == 0

    resumed = Watch(settings)
    resumed.load_state_dict(state)
    resumed.start(1500)
    for step in range(1501, 1601):
        resumed.observe(step, {"loss": -1.0})
    resumed.finish()
    steps, values, _ = resumed.history("loss")
    assert len(set(steps.tolist())) == len(steps)
    assert values[:1500].tolist() == [float(step) for step in range(1, 1501)]


def test_transitions_and_their_messages_are_kept(server):
    from phasewatch.monitor.store.outbox import Delivery, Mailbox, Recipient

    target = Recipient(target="1-json-aa", updates=True)
    with Store(server.url) as store:
        run, _ = store.begin_run(name="r")
        store.add_observation(run, 1, make_observation(3, value=float("nan")))
        for status in (TransitionStatus.CONFIRMED, TransitionStatus.ENDED):
            store.add_transition(make_transition(run, status=status), (target,))
        store.flush()
        assert store.transitions(run)[0].status is TransitionStatus.ENDED
        box = store.outbox
        first = box.first(Mailbox(target=target.target))
        assert box.claim(first)
        box.delivered(first)
        assert [m.delivery for m in box.messages()] == [Delivery.SENT, Delivery.WAITING]


def test_a_store_of_the_first_schema_is_brought_up_to_date(server):
    engine = create_engine(server.url)
    with Store(server.url) as store:
        store.begin_run(name="old", run_id="r")
        store.add_scalars("r", 1, "loss", column(range(10)))
    with engine.begin() as connection:  # what version 1 had
        for statement in (
            "alter table phasewatch_attempts drop column parent_run, drop column parent_attempt",
            "drop table phasewatch_holes",
            "drop index phasewatch_observations_by_step",
            "create index phasewatch_observations_by_step on phasewatch_observations"
            " (stream_id, step)",
            "drop index phasewatch_outbox_by_run",
            "update phasewatch_schema set version = 1",
        ):
            connection.execute(text(statement))
    engine.dispose()
    with Store(server.url, create=False) as store:
        assert store.history("r", "loss")[0].tolist() == [*range(10)]
        assert store.holes("r") == []
    with Store(server.url) as store:
        assert store.begin_run(name="old", run_id="r", attempt=2, resumed_step=4) == ("r", 2)
        assert store.history("r", "loss")[0].tolist() == [*range(5)]
        with store.database.reading() as connection:
            assert schema.stored_version(connection) == schema.SCHEMA_VERSION
