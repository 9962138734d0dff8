"""Whatever the command line is given: an answer, or a line that says what is wrong."""

from __future__ import annotations

import csv
import io
import json
import sys

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from phasewatch.monitor.cli import main
from phasewatch.monitor.core.errors import CurveError
from phasewatch.monitor.readers.curves import Curves
from phasewatch.monitor.store.store import Store
from support.records import make_observation

pytestmark = pytest.mark.slow

QUIET = [*HealthCheck]
MANY = settings(max_examples=300, deadline=None, suppress_health_check=QUIET)
FEW = settings(max_examples=100, deadline=None, suppress_health_check=QUIET)

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
NUMBER = st.one_of(st.integers(), st.floats(), st.sampled_from([10**400, -(10**30), 2**63]))
CELL = st.one_of(
    NUMBER.map(str), TEXT, st.sampled_from(["", "nan", "inf", "1e999", "-", "0x1", "½"])
)
NAME = st.one_of(TEXT, st.sampled_from(["step", "epoch", "loss", "value", "tag", "wall_time", ""]))
VALUE = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAME, inner, max_size=3),
    max_leaves=6,
)


def as_csv(rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


CSV = st.builds(
    lambda names, rows: as_csv([names, *rows]),
    st.lists(NAME, min_size=1, max_size=4),
    st.lists(st.lists(CELL, max_size=5), max_size=12),
)
JSONL = st.lists(st.dictionaries(NAME, VALUE, max_size=4), max_size=10).map(
    lambda rows: "\n".join(map(json.dumps, rows))
)
LOG_HISTORY = st.fixed_dictionaries({"log_history": st.lists(st.dictionaries(NAME, VALUE))}).map(
    json.dumps
)
FILE = st.one_of(
    st.binary(max_size=200),
    *(text.map(lambda content: content.encode()) for text in (CSV, JSONL, LOG_HISTORY, TEXT)),
)
ENDING = st.sampled_from([".csv", ".jsonl", ".json", ".txt", "", ".tfevents.1"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def store(folder):
    path = folder / "runs.db"
    with Store(path) as history:
        run, attempt = history.begin_run(name="demo")
        for step in range(5):
            history.add_observation(run, attempt, make_observation(step))
    return str(path)


def read(path) -> None:
    try:
        for chunk in Curves(path).chunks():
            assert chunk
    except CurveError as error:
        assert str(path) in str(error)  # noqa: PT017


@MANY
@given(FILE, ENDING)
@example(b"step,loss\n1e400,1\n", ".csv")
@example(b'{"step": 1e400, "loss": 1}', ".jsonl")
@example(b'{"step": ' + b"[" * 5000, ".jsonl")
def test_any_file_of_curves_is_read_or_refused_by_its_name(folder, content, ending):
    path = folder / f"curve{ending}"
    path.write_bytes(content)
    read(path)


def shell(arguments) -> None:
    """As a user's shell calls it: nothing but an exit code comes out."""
    before = sys.argv, sys.stdout, sys.stderr
    sys.argv, sys.stdout, sys.stderr = ["phasewatch", *arguments], io.StringIO(), io.StringIO()
    try:
        main.main()
    except SystemExit as leaving:
        assert leaving.code in (0, 1, 2, None)  # noqa: PT017
        if leaving.code:
            assert (sys.stdout.getvalue() + sys.stderr.getvalue()).strip(), "it says why"
    finally:
        assert "Traceback" not in sys.stdout.getvalue() + sys.stderr.getvalue()
        sys.argv, sys.stdout, sys.stderr = before


@FEW
@given(FILE, ENDING, st.lists(st.sampled_from(["--json", "--step", "row", "--columns", "loss"])))
def test_any_file_is_watched_or_refused(folder, content, ending, options):
    path = folder / f"watched{ending}"
    path.write_bytes(content)
    shell(["detect", str(path), *options])


READING = ("runs", "show", "report", "compare", "export", "replay", "outbox", "targets")
OPTION = st.sampled_from(
    ["--json", "--store", "--out", "--format", "--step", "--set", "--detector", "--reap", "--help"]
)
WORD = st.one_of(
    TEXT, st.sampled_from(["demo", "", "-", "--", ".", "/", "0", "sqlite://", "x://y@"])
)


@settings(max_examples=300, deadline=None, suppress_health_check=QUIET)
@given(st.sampled_from(READING), st.lists(st.one_of(WORD, OPTION), max_size=5))
def test_any_arguments_are_taken_or_refused(folder, store, monkeypatch_module, command, words):
    monkeypatch_module.setenv("PHASEWATCH_STORE", store)
    monkeypatch_module.chdir(folder)
    shell([command, *words])


@FEW
@given(st.one_of(VALUE.map(json.dumps), TEXT).map(str.encode) | st.binary(max_size=100))
def test_any_configuration_file_is_taken_or_refused(folder, content):
    path = folder / "config.yaml"
    path.write_bytes(content)
    shell(["test-alert", "--config", str(path)])
    shell(["doctor", "--config", str(path), "--prometheus", "http://127.0.0.1:1"])


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch
