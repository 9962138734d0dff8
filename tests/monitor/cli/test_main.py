"""The command line, as a user's shell sees it."""

import io
import json
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from phasewatch.monitor.cli import main
from phasewatch.monitor.cli.output import transitions_table
from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.transitions import TransitionStatus
from phasewatch.monitor.store.store import Store
from support.alarms import alarm
from support.records import (
    NAN,
    make_estimate,
    make_observation,
    make_transition,
    start_python,
)


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.delenv("PHASEWATCH_STORE", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "runs.db"
    with Store(path) as store:
        store.begin_run(name="demo", run_id="aaaa1111", config={"lr": 0.5})
        store.add_observation("aaaa1111", 1, make_observation(9, NAN))
        store.add_observation(
            "aaaa1111",
            1,
            make_observation(10, 12.5, name="llc", unit="1", stderr=0.25, detail=make_estimate()),
        )
        store.add_transition(make_transition("aaaa1111", status=TransitionStatus.CONFIRMED))
        store.end_run("aaaa1111", 1, RunState.FAILED, "ValueError: boom")
        store.begin_run(name="[red]odd[/] \x1b[31m", run_id="bbbb2222")
        store.end_run("bbbb2222", 1, RunState.FINISHED)
    return path


@pytest.fixture
def shell(phasewatch):
    return phasewatch


def test_runs_lists_them_the_latest_first(shell, path):
    code, out, err = shell("runs", "--store", path)
    assert (code, err) == (0, "")
    assert out.index("odd") < out.index("demo")
    assert "failed" in out
    assert "finished" in out


def test_a_name_is_printed_as_it_is_without_markup_or_control_characters(shell, path):
    _, out, _ = shell("runs", "--store", path)
    assert "[red]odd[/]" in out
    assert "\x1b" not in out
    _, out, _ = shell("show", "bbbb", "--store", path)
    assert "[red]odd[/]" in out
    assert "\x1b" not in out


def test_runs_as_json(shell, path):
    code, out, _ = shell("runs", "--store", path, "--json")
    assert code == 0
    latest, first = json.loads(out)
    assert (first["id"], first["name"], first["state"]) == ("aaaa1111", "demo", "failed")
    assert (first["last_step"], first["reason"]) == (10, "ValueError: boom")
    assert latest["id"] == "bbbb2222"


@pytest.mark.parametrize("run", ["demo", "aaaa1111", "aaaa"])
def test_show_tells_state_streams_and_transitions(shell, path, run):
    code, out, err = shell("show", run, "--store", path)
    assert (code, err) == (0, "")
    for part in ("failed, ValueError: boom", "step 10", "train_loss", "nan", "12.5 ± 0.25"):
        assert part in out
    for part in ("generalisation", "confirmed", "80", "90", "val_loss"):
        assert part in out


def test_show_as_json_is_strict(shell, path):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    _, out, _ = shell("show", "demo", "--store", path, "--json")
    content = json.loads(out, parse_constant=refuse)
    streams = {stream["name"]: stream for stream in content["streams"]}
    assert streams["train_loss"]["last"]["value"] == "nan"
    assert (streams["llc"]["count"], streams["llc"]["last"]["value"]) == (1, 12.5)
    (transition,) = content["transitions"]
    assert transition["kind"] == "generalisation"
    assert transition["evidence"]["val_loss"]["direction"] == "down"


def test_a_run_without_anything_says_so(shell, path):
    _, out, _ = shell("show", "bbbb2222", "--store", path)
    assert "nothing observed yet" in out
    assert "no transitions" in out


def test_the_store_is_named_by_the_environment_too(shell, path, monkeypatch):
    monkeypatch.setenv("PHASEWATCH_STORE", str(path))
    assert shell("show", "demo")[0] == 0


def test_the_default_store_is_the_configurations(shell, path, monkeypatch):
    assert MonitorConfig().store == main.DEFAULT_STORE
    path.rename(path.parent / main.DEFAULT_STORE)
    monkeypatch.chdir(path.parent)
    assert shell("show", "demo")[0] == 0


def test_an_empty_store_has_no_runs(shell, tmp_path):
    Store(tmp_path / "empty.db").close()
    _, out, _ = shell("runs", "--store", tmp_path / "empty.db")
    assert out == f"no runs in {tmp_path / 'empty.db'}\n"


def test_a_missing_store_is_one_line_and_is_not_made(shell, tmp_path):
    code, out, err = shell("runs", "--store", tmp_path / "none.db")
    assert (code, out) == (1, "")
    assert err.startswith(f"phasewatch: there is no store at {tmp_path / 'none.db'}")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_run_is_one_line_with_the_known_ones(shell, path):
    code, out, err = shell("show", "dmeo", "--store", path)
    assert (code, out) == (1, "")
    assert err.startswith("phasewatch: no run 'dmeo'")
    assert "demo" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["shwo"], "No such command 'shwo'. Did you mean 'show'?; see `phasewatch --help`"),
        (["show"], "Missing argument 'run'; see `phasewatch show --help`"),
        (["runs", "--stroe"], "No such option: --stroe"),
        (["serve", "--port", "99999999"], "Invalid value for '--port'"),
        (["grafana", "psh"], "Did you mean 'push'?; see `phasewatch grafana --help`"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(shell, arguments, told):
    code, out, err = shell(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("phasewatch: ")
    assert told in err
    assert err.count("\n") == 1


def test_without_a_command_the_help_is_shown(shell):
    code, out, err = shell()
    assert code == 2
    assert "Usage: phasewatch" in out + err


def test_the_version(shell):
    from importlib.metadata import version

    assert shell("--version") == (0, f"phasewatch {version('phasewatch')}\n", "")


def test_help_names_every_command(shell):
    code, out, _ = shell("--help")
    assert code == 0
    for command in ("runs", "show", "report", "detect", "replay", "selfcheck", "calibrate"):
        assert command in out


@pytest.fixture
def reports(monkeypatch):
    """Stands in for the module that draws, and keeps what it is asked for."""
    module = type(sys)("phasewatch.monitor.reports.run_page")
    module.calls = []
    module.write_report = lambda store, run_id, out: module.calls.append((store, run_id, out))
    monkeypatch.setitem(sys.modules, "phasewatch.monitor.reports.run_page", module)
    return module


def test_report_writes_the_report_of_the_run(shell, path, reports, tmp_path):
    code, out, _ = shell("report", "demo", "--store", path, "--out", tmp_path / "x.html")
    assert code == 0
    ((store, run_id, written),) = reports.calls
    assert (store.path, run_id, written) == (path, ["aaaa1111"], tmp_path / "x.html")
    assert f"report of demo written to {tmp_path / 'x.html'}" in out


def test_a_report_that_cannot_be_written_is_one_line(shell, path, reports, tmp_path):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    reports.write_report = refuse
    code, _, err = shell("report", "demo", "--store", path, "--out", tmp_path / "x.html")
    assert code == 1
    assert "cannot be written: Permission denied; give --out" in err
    assert err.count("\n") == 1


def test_the_command_line_does_not_wait_for_torch_or_lightning(path):
    code = """
import sys
from phasewatch.monitor.cli import main as cli
for command in ("runs", "show demo"):
    sys.argv = ["phasewatch", *command.split(), "--store", STORE]
    try:
        cli.main()
    except SystemExit as leaving:
        assert not leaving.code, leaving.code
heavy = {"torch", "lightning", "plotly", "matplotlib", "scipy", "prometheus_client"}
print("loaded:", heavy & set(sys.modules))
"""
    child = start_python(code.replace("STORE", repr(str(path))))
    out, err = child.communicate(timeout=60)
    assert "loaded: set()" in out, err


def test_the_table_names_the_lead_first_and_the_others_with_their_lags() -> None:
    evidence = {"val_loss": alarm(100, 120), "llc": alarm(140, 300)}
    console = Console(width=200, file=io.StringIO())
    console.print(transitions_table([replace(make_transition("run"), evidence=evidence)]))
    assert "val_loss, llc +40" in console.file.getvalue()


def test_a_name_that_several_runs_have_is_told_with_the_choices(phasewatch, tmp_path):
    path = tmp_path / "twins.db"
    with Store(path) as store:
        for number in "123":
            store.begin_run(name="twin", run_id=number * 32)
    code, out, err = phasewatch("show", "twin", "--store", path)
    assert code == 0
    assert "3" * 32 in out
    assert "3 runs are named 'twin'; this is the latest, 33333333" in err
    assert "22222222" in err
    assert "11111111" in err
    code, out, err = phasewatch("show", "1" * 8, "--store", path)
    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["test-alert", "slack://T0PSECRET/B/C"],
        ["test-alert", "json://me:T0PSECRET@127.0.0.1:9/hook"],
        ["postgresql://me:T0PSECRET@host/db"],
        ["runs", "--stor=postgresql://me:T0PSECRET@host/db"],
        ["--store=postgresql://host/db?password=T0PSECRET", "runs"],
        ["detect", "json://me:T0PSECRET@127.0.0.1:9/curve.csv"],
        ["targets", "add", "https://me:T0PSECRET@host/hook"],
        ["export", "demo", "--format", "https://me:T0PSECRET@host/hook"],
    ],
)
def test_what_is_said_of_wrong_arguments_holds_no_secret(phasewatch, arguments, monkeypatch):
    for columns in ("200", "60"):  # narrow: what is wrapped is not searched
        monkeypatch.setenv("COLUMNS", columns)
        code, out, err = phasewatch(*arguments)
        assert code != 0
        assert out + err
        plain = "".join(character for character in out + err if character.isalnum())
        assert "T0PSECRET" not in plain
