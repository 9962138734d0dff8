"""Opening a database: where it lies, how it is locked, and what it says when it cannot be."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from phasewatch.monitor.core.errors import StoreError
from phasewatch.monitor.core.redaction import add_secret, get_logger
from phasewatch.monitor.store import schema

logger = get_logger(__name__)

BUSY_SECONDS = 5.0
"""How long SQLite itself waits for another writer's lock."""

NETWORK_FILE_SYSTEMS = frozenset(
    """9p afs afpfs beegfs beegfs_nodev ceph cifs coda davfs fhgfs gfs gfs2 glusterfs gpfs lustre
    ncpfs nfs nfs3 nfs4 ocfs2 orangefs panfs pvfs2 quobyte smb smb2 smb3 smbfs sshfs vboxsf wekafs
    fuse.beegfs fuse.ceph fuse.ceph-fuse fuse.davfs2 fuse.gcsfuse fuse.glusterfs fuse.goofys
    fuse.juicefs fuse.mergerfs fuse.quobyte fuse.rclone fuse.s3fs fuse.smbnetfs fuse.sshfs
    fuse.vmhgfs-fuse""".split()  # noqa: SIM905 - fifty quoted words would be harder to read
)
"""File systems on which the shared memory of SQLite's write-ahead log does not work."""

_told_about: set[str] = set()


class Database:
    """An engine, and the few things about it that SQLAlchemy does not know.

    Args:
        source: Path of an SQLite file, or any SQLAlchemy URL.
        create: Make the file and the tables when they are missing.

    Raises:
        StoreError: It cannot be opened: names the place and the reason.
    """

    def __init__(self, source: str | Path, *, create: bool) -> None:
        self.url = _parse(source)
        self.path = _file_of(self.url)
        self.where = str(self.path) if self.path else _place(self.url)
        # One connection serves every thread of a store in memory, so they take turns.
        self._turn: threading.RLock | None = threading.RLock() if self.is_in_memory else None
        self._inode: tuple[int, int] | None = None
        self._makes = create
        if self.path is not None:
            _check_path(self.path, create=create)
        self.engine = self._make_engine()
        try:
            self._prepare(create)
        except StoreError:
            self.engine.dispose()
            raise
        except (SQLAlchemyError, sqlite3.Error, OSError) as error:
            self.engine.dispose()
            reason = " ".join(schema.reason_of(error).split())  # drivers tell theirs in lines
            raise StoreError(
                f"store {self.where} cannot be opened: {reason}. Give a file or "
                "database that can be read and written (store=, --store or PHASEWATCH_STORE)"
            ) from (error if self.is_sqlite else None)

    @property
    def is_sqlite(self) -> bool:
        """Whether SQLite keeps the store."""
        return self.url.get_backend_name() == "sqlite"

    @property
    def is_in_memory(self) -> bool:
        """Whether the database ends with this process."""
        return self.is_sqlite and self.url.database in (None, "", ":memory:")

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """A short transaction that has the write lock from its first statement."""
        self._follow()
        with self._turn or contextlib.nullcontext(), self.engine.connect() as connection:
            connection = connection.execution_options(phasewatch_writes=True)
            with connection.begin():
                yield connection

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database and holds nobody up."""
        self._follow()
        with self._turn or contextlib.nullcontext(), self.engine.connect() as connection:
            try:
                yield connection
            except SQLAlchemyError as error:
                raise StoreError(
                    f"store {self.where} cannot be read: {schema.reason_of(error)}"
                ) from error

    def is_busy(self, error: BaseException) -> bool:
        """Whether an error only says that another process has the write lock just now."""
        original = getattr(error, "orig", None) or error
        return isinstance(original, sqlite3.OperationalError) and (
            "locked" in str(original) or "busy" in str(original)
        )

    def lost(self) -> bool:
        """Whether the file is no longer the one that was opened.

        SQLite goes on writing to a file that was removed, and what it writes is lost.
        """
        return self._inode is not None and self._inode != _inode(self.path)

    def _follow(self) -> None:
        """Take up the file that the run's process has put in the place of one that was removed."""
        if not self._makes and self.lost() and (inode := _inode(self.path)) != _GONE:
            self.engine.dispose()
            self._inode = inode

    def reopen(self) -> None:
        """Let go of a file that was removed, and make a new one in its place."""
        self.engine.dispose()
        self._prepare(create=True)

    def _make_engine(self) -> Engine:
        options: dict[str, Any] = {}
        if self.is_sqlite:
            options["connect_args"] = {"timeout": BUSY_SECONDS, "check_same_thread": False}
            if self.is_in_memory:
                options["poolclass"] = StaticPool
        try:
            engine = create_engine(self.url, **options)
        except ImportError as error:
            raise StoreError(
                f"store {self.where} needs the Python package {error.name!r}; install it, or name "
                "an SQLite file"
            ) from None
        except (SQLAlchemyError, ValueError, TypeError) as error:
            # What a driver says of a URL may hold parts of it.
            raise StoreError(f"store {self.where} cannot be opened: {error}") from None
        if self.is_sqlite:
            event.listen(engine, "connect", _leave_transactions_to_us)
            event.listen(engine, "begin", _begin)
        return engine

    def _prepare(self, create: bool) -> None:
        if not create:
            with self.engine.connect() as connection:
                version = schema.stored_version(connection)
            schema.check_version(version, self.where)
            if version is not None and version < schema.SCHEMA_VERSION:
                self._migrate(version)
        else:
            if self.path is not None:
                self._choose_journal(self.path)
            try:
                with self.writing() as connection:
                    schema.prepare(connection, self.where)
            except SQLAlchemyError:
                # On a server two first writers may both have set out to make the tables.
                with self.writing() as connection:
                    schema.prepare(connection, self.where)
        self._inode = _inode(self.path)

    def _migrate(self, version: int) -> None:
        try:
            with self.writing() as connection:
                schema.prepare(connection, self.where)
        except SQLAlchemyError as error:
            raise StoreError(
                f"store {self.where} has schema version {version} and must be brought to "
                f"{schema.SCHEMA_VERSION} before it can be read: {schema.reason_of(error)}. Open "
                "it once where it can be written, or work on a copy"
            ) from error

    def _choose_journal(self, path: Path) -> None:
        kind = network_file_system(path)
        mode = "wal" if kind is None else "delete"
        if kind is not None and str(path) not in _told_about:
            _told_about.add(str(path))
            logger.warning(
                "store %s lies on a network file system (%s): using a rollback journal instead of "
                "a write-ahead log; readers and writers may wait for each other",
                path,
                kind,
            )
        raw = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
        end = time.monotonic() + BUSY_SECONDS
        with contextlib.closing(raw):
            while True:
                try:
                    if raw.execute("PRAGMA journal_mode").fetchone()[0] != mode:
                        raw.execute(f"PRAGMA journal_mode={mode}")
                    return
                except sqlite3.OperationalError as error:
                    # Of several first writers one makes the change; the others are told at once.
                    if not self.is_busy(error) or time.monotonic() > end:
                        raise
                    time.sleep(0.02)


def network_file_system(path: Path, mounts: str | None = None) -> str | None:
    """Type of the network file system that holds `path`; None on a local one, or if unknown.

    Args:
        path: A file, which need not exist yet.
        mounts: Content of /proc/mounts; read there if not given.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/mounts").read_text(errors="surrogateescape")
        except OSError:
            return None
    place = Path(os.path.realpath(path))
    best, kind = -1, ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        mount = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), fields[1])
        depth = len(Path(mount).parts)
        if place.is_relative_to(mount) and depth >= best:  # a later mount hides an earlier one
            best, kind = depth, fields[2]
    return kind if kind in NETWORK_FILE_SYSTEMS else None


def _parse(source: str | Path) -> URL:
    if isinstance(source, Path) or "://" not in source:
        if str(source) == ":memory:":
            return URL.create("sqlite")
        path = _home_of(Path(source))
        if _MANGLED.match(str(source)):
            raise StoreError(
                "the store that was given (it is not shown, for it may hold a password) looks like "
                f"a URL and is none {_LIKE}"
            )
        if str(source) in ("", "."):
            raise StoreError(f"store {str(source)!r} is not a file; give a path such as runs.db")
        return URL.create("sqlite", database=str(path.absolute()))
    try:
        url = make_url(source)
        _ = url.get_backend_name(), url.get_dialect().driver
    except (ArgumentError, ValueError):
        raise StoreError(f"store {source!r} is neither a path nor a URL {_LIKE}") from None
    except (ImportError, SQLAlchemyError):
        url = make_url(source)  # told when it is opened
    if url.get_backend_name() != "sqlite" and re.search(r"[@/]", url.database or ""):
        raise StoreError(
            "the store that was given (it is not shown, for it may hold a password) cannot be read "
            "as a URL: write %2F for / and %40 for @ in user and password"
        )
    _remember_secrets(url)
    if url.get_backend_name() == "sqlite" and _file_of(url) is not None:
        url = url.set(database=str(_home_of(Path(url.database or "")).absolute()))
    return url


_LIKE = "such as postgresql://host/database"

_MANGLED = re.compile(
    r"^[A-Za-z][\w+.-]*:?/{1,2}[^/\s]*@|^(?:postgres\w*|mysql|mariadb|mssql)\b.*[/:@]"
)
"""What was meant as the URL of a server: as a path, it would make a folder named by a password."""

_SECRET_PARAMETER = re.compile(r"(?i)pass|pwd|secret|token|key|auth|sig")


def _remember_secrets(url: URL) -> None:
    if url.password:
        add_secret(str(url.password))
    for name, value in url.query.items():
        if _SECRET_PARAMETER.search(name):
            add_secret(*((value,) if isinstance(value, str) else value))


def _place(url: URL) -> str:
    """A server's database without user, password and options, any of which may be a secret."""
    bare = url.set(username=None, password=None).difference_update_query([*url.query])
    return bare.render_as_string(hide_password=True)


def _file_of(url: URL) -> Path | None:
    """The SQLite file of a URL, if it is one we can look at."""
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        return None
    return None if url.database.startswith("file:") else Path(url.database)


def _check_path(path: Path, *, create: bool) -> None:
    if path.is_dir():
        raise StoreError(f"store {path} is a directory; give the path of a file in it")
    if not create:
        if not path.exists():
            raise StoreError(
                f"there is no store at {path}; name one with --store or PHASEWATCH_STORE"
            )
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"store {path} cannot be made: folder {path.parent}: {error.strerror}; give a path "
            "that can be written"
        ) from error
    target = path if path.exists() else path.parent
    # SQLite keeps its journal beside the file, so the folder must be writable too.
    for place in {target, path.parent}:
        if not os.access(place, os.W_OK):
            raise StoreError(
                f"store {path} cannot be written: no permission to write {place}; give a path "
                "that can be written"
            )


_GONE = (0, 0)
"""Unlike any file."""


def _inode(path: Path | None) -> tuple[int, int] | None:
    if path is None:
        return None
    try:
        status = path.stat()
    except OSError:
        return _GONE
    return status.st_dev, status.st_ino


def _leave_transactions_to_us(raw: Any, _record: object) -> None:
    raw.isolation_level = None  # else sqlite3 opens a transaction only at the first write
    cursor = raw.cursor()
    # With a write-ahead log a commit then waits for no disk, and a crash cannot corrupt the file.
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("phasewatch_writes")
    # A transaction that starts by reading cannot wait for the write lock: it fails at once.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _home_of(path: Path) -> Path:
    """The path with a leading ~ or ~user put in full; as it is where there is no such home."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path
