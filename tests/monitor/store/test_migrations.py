"""A store of each released schema is brought up to date, whoever opens it, and loses nothing."""

import sqlite3
import threading
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect
from sqlalchemy.exc import OperationalError

from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.errors import StoreError
from phasewatch.monitor.core.transitions import TransitionStatus
from phasewatch.monitor.store import schema
from phasewatch.monitor.store.migrations import VERSION_TABLE
from phasewatch.monitor.store.outbox import Delivery
from phasewatch.monitor.store.store import Store

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture
def old(tmp_path):
    """A store as schema version 1 left it: two attempts, an estimate, a transition, a message."""
    path = tmp_path / "old.db"
    raw = sqlite3.connect(path)
    raw.executescript((GOLDEN / "store_v1.sql").read_text("utf-8"))
    raw.close()
    return path


def check_content(store):
    (run,) = store.runs()
    assert (run.name, run.attempt, run.state) == ("old", 2, RunState.FINISHED)
    assert (run.branch_of, run.branch_step) == (None, None)
    steps, values, _ = store.history("0ld", "train_loss")
    assert steps.tolist() == [*range(1, 26)]
    assert values[15:].tolist() == [0.01] * 10
    assert store.observations("0ld", "llc")[0].detail is not None
    assert store.transitions("0ld") == []  # told after the step that was resumed from
    assert store.transitions("0ld", superseded=True)[0].status is TransitionStatus.CONFIRMED
    (message,) = store.outbox.messages()
    assert (message.delivery, message.target) == (Delivery.WAITING, "1-json-aaaaaaaa")
    assert store.holes("0ld") == []


@pytest.mark.parametrize("create", [True, False], ids=["writer", "reader"])
def test_a_store_of_version_1_is_brought_up_to_date(old, create):
    with Store(old, create=create) as store:
        check_content(store)
        with store.database.reading() as connection:
            assert schema.stored_version(connection) == schema.SCHEMA_VERSION
    with Store(old) as store:
        check_content(store)
        store.begin_run(name="old", run_id="0ld", attempt=3, resumed_step=5)
        assert store.history("0ld", "train_loss")[0].tolist() == [1, 2, 3, 4, 5]


def test_a_migrated_store_has_the_tables_of_a_new_one(old, tmp_path):
    def shape(path):
        engine = create_engine(f"sqlite:///{path}")
        seen = inspect(engine)
        found = {
            table: (
                {column["name"]: str(column["type"]) for column in seen.get_columns(table)},
                {i["name"]: i["column_names"] for i in seen.get_indexes(table)},
            )
            for table in seen.get_table_names()
            if table != VERSION_TABLE
        }
        engine.dispose()
        return found

    Store(old).close()
    Store(tmp_path / "new.db").close()
    assert shape(old) == shape(tmp_path / "new.db")


def test_two_that_open_it_at_once_migrate_it_once(old):
    errors = []

    def work():
        try:
            Store(old).close()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with Store(old) as store:
        check_content(store)


def test_a_store_that_cannot_be_written_says_what_to_do(old, monkeypatch):
    def refuse(connection, where):
        raise OperationalError("", {}, Exception("attempt to write a readonly database"))

    monkeypatch.setattr(schema, "prepare", refuse)
    with pytest.raises(StoreError, match=r"schema version 1 .* brought to 2 .* readonly.* copy"):
        Store(old, create=False)
