"""Where a store may lie, what it says when it cannot lie there, and its version."""

import logging
import os
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.schema import CreateTable

from phasewatch.monitor import store_engine, store_schema
from phasewatch.monitor.errors import StoreError
from phasewatch.monitor.scalars import Column
from phasewatch.monitor.store import Store
from phasewatch.monitor.store_engine import network_file_system
from support.records import make_observation


def use(store):
    run, attempt = store.begin_run(name="demo")
    store.add_observation(run, attempt, make_observation(1))
    return store.history(run, "train_loss")[0].tolist()


@pytest.mark.parametrize(
    "name", ["runs.db", "a b.db", "100%.db", "q?x=1#y.db", "żółć.db", "runs", "deep/er/runs.db"]
)
def test_any_file_name_will_do(tmp_path, name):
    with Store(tmp_path / name) as store:
        assert use(store) == [1]
        assert store.path == tmp_path / name
        assert store.where == str(tmp_path / name)
    assert (tmp_path / name).is_file()


@pytest.mark.parametrize("source", ["sqlite://", "sqlite:///:memory:", ":memory:"])
def test_a_store_in_memory_leaves_no_file(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with Store(source) as store:
        assert use(store) == [1]
        assert store.path is None
    assert list(tmp_path.iterdir()) == []


def test_a_url_names_a_file_too(tmp_path):
    with Store(f"sqlite:///{tmp_path}/runs.db") as store:
        assert use(store) == [1]
    assert (tmp_path / "runs.db").is_file()


def test_a_relative_path_stays_where_it_was_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Store("runs.db") as store:
        monkeypatch.chdir("/")
        assert use(store) == [1]
    assert (tmp_path / "runs.db").is_file()


# Refusals ---------------------------------------------------------------------------------------


def refusal(source, **options):
    with pytest.raises(StoreError) as caught:
        Store(source, **options)
    return str(caught.value)


def test_a_folder_is_refused(tmp_path):
    assert refusal(tmp_path) == f"store {tmp_path} is a directory; give the path of a file in it"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    message = refusal(tmp_path / "file" / "runs.db")
    assert str(tmp_path / "file" / "runs.db") in message
    assert "give a path that can be written" in message


@pytest.mark.parametrize("readonly", ["file", "folder"])
def test_a_path_without_permission_is_refused(tmp_path, monkeypatch, readonly):
    path = tmp_path / "runs.db"
    path.write_text("")
    place = path if readonly == "file" else tmp_path
    # The tests may run as root, to whom everything is permitted.
    monkeypatch.setattr(os, "access", lambda where, mode: Path(where) != place)
    assert f"no permission to write {place};" in refusal(path)


def test_a_file_that_is_no_database_is_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("dear diary " * 200)
    message = refusal(path)
    assert f"store {path} cannot be opened: file is not a database" in message
    assert path.read_text().startswith("dear diary")


def test_a_store_that_is_only_read_must_exist(tmp_path):
    assert f"there is no store at {tmp_path / 'x.db'}" in refusal(tmp_path / "x.db", create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_database_of_another_program_is_no_store(tmp_path):
    raw = sqlite3.connect(tmp_path / "other.db")
    raw.execute("CREATE TABLE runs (id)")
    raw.close()
    assert "holds no phasewatch runs" in refusal(tmp_path / "other.db", create=False)


def test_a_database_may_be_shared_with_another_program(tmp_path):
    raw = sqlite3.connect(tmp_path / "other.db")
    raw.execute("CREATE TABLE runs (id)")
    with Store(tmp_path / "other.db") as store:
        assert use(store) == [1]
    tables = {name for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type='table'")}
    raw.close()
    assert {name for name in tables if not name.startswith("phasewatch_")} == {"runs"}


def test_an_unknown_kind_of_database_is_refused_without_its_password():
    message = refusal("nosuch://me:secret@host/db")
    assert "nosuch://***@host/db" in message
    assert "secret" not in message


def test_a_missing_driver_is_named():
    try:
        import psycopg  # noqa: F401
    except ImportError:
        message = refusal("postgresql+psycopg://me:secret@localhost/db")
        assert "needs the Python package 'psycopg'" in message
        assert "secret" not in message


@pytest.mark.parametrize("source", ["", "not a://url"])
def test_what_is_neither_path_nor_url_is_refused(source):
    assert "give a path" in (message := refusal(source)) or "neither a path nor a URL" in message


# Version ----------------------------------------------------------------------------------------


def test_a_newer_schema_is_refused_with_what_to_do(tmp_path):
    path = tmp_path / "runs.db"
    Store(path).close()
    raw = sqlite3.connect(path)
    assert raw.execute("SELECT version FROM phasewatch_schema").fetchall() == [
        (store_schema.SCHEMA_VERSION,)
    ]
    raw.execute("UPDATE phasewatch_schema SET version = 99")
    raw.commit()
    raw.close()
    for create in (True, False):
        message = refusal(path, create=create)
        assert "has schema version 99" in message
        assert "upgrade phasewatch" in message


@pytest.mark.parametrize("dialect", [postgresql.dialect(), mysql.dialect()])
@pytest.mark.parametrize("table", store_schema.metadata.sorted_tables, ids=lambda t: t.name)
def test_every_table_can_be_made_on_a_server(dialect, table):
    assert f"CREATE TABLE {table.name}" in str(CreateTable(table).compile(dialect=dialect))


# Network file systems ---------------------------------------------------------------------------

MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
/dev/sdb1 /home/local xfs rw 0 0
//nas/share /mnt/my\\040share cifs rw 0 0
me@host: /mnt/ssh fuse.sshfs rw 0 0
tank /scratch lustre rw 0 0
tmpfs /over tmpfs rw 0 0
server:/o /over nfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/data/runs.db", None),
        ("/home/me/runs.db", "nfs4"),
        ("/homeless/runs.db", None),
        ("/home/local/runs.db", None),
        ("/mnt/my share/runs.db", "cifs"),
        ("/mnt/ssh/a/b/runs.db", "fuse.sshfs"),
        ("/scratch/runs.db", "lustre"),
        ("/over/runs.db", "nfs"),
    ],
)
def test_network_file_systems_are_known_by_their_mount(path, kind):
    assert network_file_system(Path(path), MOUNTS) == kind


def test_the_folder_of_the_tests_is_on_no_network(tmp_path):
    assert network_file_system(tmp_path / "runs.db") is None


def test_a_network_file_system_gets_a_rollback_journal_and_is_told_once(
    tmp_path, monkeypatch, caplog
):
    path = tmp_path / "runs.db"
    Store(path).close()  # made in WAL mode, before it was moved to the network
    monkeypatch.setattr(store_engine, "network_file_system", lambda _: "nfs4")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with Store(path) as store:
                assert use(store) == [1]
                raw = sqlite3.connect(path)
                assert raw.execute("PRAGMA journal_mode").fetchone() == ("delete",)
                raw.close()
                assert not (tmp_path / "runs.db-wal").exists()
    (record,) = caplog.records
    assert f"store {path} lies on a network file system (nfs4)" in record.getMessage()


def test_a_server_without_question_marks_gets_the_same_rows(tmp_path, monkeypatch):
    """SQLite takes hand-made statements; every other database takes SQLAlchemy's own."""
    make = store_engine.create_engine

    def make_named(url, **options):
        return make(url, paramstyle="named", **options)

    monkeypatch.setattr(store_engine, "create_engine", make_named)
    column = Column([1, 2, 3], [0.5, float("nan"), 0.25], [0, 0, 1], [1.5, 2.5, 3.5])
    with Store(tmp_path / "runs.db") as store:
        run, attempt = store.begin_run(name="demo")
        store.add_scalars(run, attempt, "val_loss", column)
        found = store.observations(run, "val_loss")
    assert [row.step for row in found] == [1, 2, 3]
    assert [row.timestamp for row in found] == [1.5, 2.5, 3.5]
    assert [row.status for row in found] == ["ok", "diverged", "ok"]
    assert [row.duration_seconds for row in found] == [0.0, 0.0, 0.0]
