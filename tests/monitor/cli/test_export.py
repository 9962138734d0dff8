"""`phasewatch export`, as a user's shell sees it."""

import csv
import io
import json
import sys

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from phasewatch.monitor.store.store import Store
from support.records import make_observation


@pytest.fixture
def shell(phasewatch, tmp_path):
    path = tmp_path / "runs.db"
    with Store(path) as store:
        store.begin_run(name="demo", run_id="aaaa1111")
        store.add_observation("aaaa1111", 1, make_observation(1))
    return lambda *arguments: phasewatch("export", *arguments, "--store", path)


def test_the_text_goes_to_standard_output_and_what_is_told_does_not(shell):
    code, out, err = shell("demo", "--openmetrics")
    assert code == 0
    names = [family.name for family in text_string_to_metric_families(out)]
    assert "phasewatch_loss_nats" in names
    assert err.endswith("series\n")


def test_the_text_goes_to_a_file(shell, tmp_path):
    code, out, err = shell("demo", "--openmetrics", "--out", tmp_path / "a.om")
    assert (code, out) == (0, "")
    assert (tmp_path / "a.om").read_text().endswith("# EOF\n")
    assert f"written to {tmp_path / 'a.om'}" in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["demo"],
            "no format is given; it must be one of csv, jsonl, openmetrics, parquet: ",
        ),
        (["demo", "-f", "xml"], "format is 'xml'; it must be one of csv, jsonl, "),
        (["nobody", "--openmetrics"], "known runs: demo"),
        (["demo", "--openmetrics", "--out", "/nowhere/a.om"], "give --out a path that can be"),
    ],
)
def test_what_cannot_be_done_is_one_line(shell, arguments, told):
    code, out, err = shell(*arguments)
    assert (code, out) == (1, "")
    assert told in err
    assert err.count("\n") == 1


def test_a_table_has_a_row_an_observation_with_its_status(shell, tmp_path):
    code, out, err = shell("demo", "--format", "csv")
    assert (code, err) == (0, "1 observations\n")
    (row,) = csv.DictReader(io.StringIO(out))
    assert (row["step"], row["name"], row["value"]) == ("1", "train_loss", "0.5")
    assert (row["status"], row["unit"], row["stderr"]) == ("ok", "nats", "")
    assert shell("demo", "--out", tmp_path / "a.jsonl")[0] == 0
    (line,) = (tmp_path / "a.jsonl").read_text().splitlines()
    assert json.loads(line)["status"] == "ok"


def test_a_parquet_file_is_named_by_its_end(shell, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    assert shell("demo", "--out", tmp_path / "a.parquet")[0] == 0
    (row,) = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert (row["step"], row["name"], row["status"]) == (1, "train_loss", "ok")


def test_a_package_that_is_needed_is_named(shell, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, _, err = shell("demo", "--out", tmp_path / "a.parquet")
    assert code == 1
    assert "needs the package pyarrow" in err
    assert "pip install pyarrow" in err
