"""`phasewatch detect` and `phasewatch replay`, as a user's shell sees them."""

from __future__ import annotations

import json
import re

import pytest

from phasewatch.monitor import Watch
from support.records import start_python

FALL = 400


def loss(step: int) -> float:
    return 2.0 * 10 ** -min(max(step - FALL, 0) / 40, 1.5)


@pytest.fixture
def shell(phasewatch):
    return phasewatch


@pytest.fixture
def curve(tmp_path):
    path = tmp_path / "curve.csv"
    rows = (f"{step},{loss(step):.6g},0.1" for step in range(800))
    path.write_text("step,val_loss,lr\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def store(tmp_path):
    settings = {
        "run_name": "demo",
        "store": str(tmp_path / "runs.db"),
        "exporter": {"enabled": False},
        "observables": [],
    }
    with Watch(settings) as watch:
        for step in range(800):
            watch.observe(step, {"val_loss": loss(step)})
    return settings["store"]


def test_detect_tells_streams_and_transitions(shell, curve) -> None:
    code, out, err = shell("detect", curve)
    assert (code, err) == (0, "")
    assert f"{curve}, steps from column step" in out
    for part in ("val_loss", "800", "799", "abrupt_change", "lr", "none"):
        assert part in out
    for part in ("generalisation", "ended"):
        assert part in out


def test_detect_as_json(shell, curve) -> None:
    code, out, _ = shell("detect", curve, "--json")
    content = json.loads(out)
    assert code == 0
    assert (content["file"], content["step"]) == (str(curve), "step")
    streams = {stream["name"]: stream for stream in content["streams"]}
    assert (streams["val_loss"]["detector"], streams["val_loss"]["count"]) == ("abrupt_change", 800)
    assert streams["val_loss"]["parameters"]["gate"] == 0.1
    (found,) = content["transitions"]
    assert found["kind"] == "generalisation"
    assert abs(found["onset_step"] - FALL) <= 10


def test_a_file_and_a_live_run_of_the_same_numbers_say_the_same(shell, curve, store) -> None:
    (of_file,) = json.loads(shell("detect", curve, "--json")[1])["transitions"]
    (of_run,) = json.loads(shell("replay", "demo", "--store", store, "--json")[1])["transitions"]
    for key in ("kind", "status", "onset_step", "detected_step", "end_step"):
        assert of_file[key] == of_run[key]


def test_detect_with_other_settings(shell, curve) -> None:
    _, out, _ = shell("detect", curve, "--set", "gate=5", "--set", "certainty=4", "--json")
    content = json.loads(out)
    assert [t["hindsight"]["streamed"] for t in content["transitions"]] == [None]
    assert content["streams"][0]["parameters"]["gate"] == 5
    assert content["streams"][0]["parameters"]["certainty"] == 4
    _, out, _ = shell("detect", curve, "--detector", "none")
    assert "no transitions" in out


def test_detect_shows_both_verdicts(shell, curve) -> None:
    _, out, _ = shell("detect", curve)
    assert "in hindsight" in out
    assert any(word in out for word in ("confirmed", "corrected: "))
    _, out, _ = shell("detect", curve, "--json")
    (transition,) = json.loads(out)["transitions"]
    assert transition["hindsight"]["streamed"] == transition["status"] == "ended"


def test_detect_on_chosen_columns(shell, curve) -> None:
    _, out, _ = shell("detect", curve, "--columns", "lr", "--step", "row", "--json")
    content = json.loads(out)
    assert [(s["name"], s["count"]) for s in content["streams"]] == [("lr", 800)]
    assert content["step"] == "row"
    code, _, err = shell("detect", curve, "--exclude", "val_loss, lr")
    assert (code, err.count("\n")) == (1, 1)
    assert "no numeric column to watch" in err


def test_detect_says_where_points_are_too_few(shell, tmp_path) -> None:
    path = tmp_path / "short.csv"
    path.write_text("step,val_loss\n" + "".join(f"{i},{2.0 - i / 9}\n" for i in range(6)))
    code, out, _ = shell("detect", path)
    assert code == 0
    assert "abrupt_change: too few points, it needs 7" in out
    (stream,) = json.loads(shell("detect", path, "--json")[1])["streams"]
    assert (stream["count"], stream["too_few"]) == (6, 7)
    path.write_text("step,val_loss\n" + "".join(f"{i},{2.0 - i / 9}\n" for i in range(7)))
    assert "too few" not in shell("detect", path)[1]


def test_detect_says_how_many_rows_have_no_step(shell, curve) -> None:
    with curve.open("a") as file:
        file.write(",1.0,0.1\n,2.0,\n")
    assert "2 rows without a step were left out" in shell("detect", curve)[1]


def test_replay_puts_what_it_finds_beside_what_was_stored(shell, store) -> None:
    code, out, err = shell("replay", "demo", "--store", store)
    assert (code, err) == (0, "")
    assert "again with the detectors it had" in out
    assert "same" in out
    _, out, _ = shell("replay", "demo", "--store", store, "--set", "gate=5")
    assert "again with gate = 5" in out
    assert "gone" in out
    _, out, _ = shell("replay", "demo", "--store", store, "--set", "gate=1", "--json")
    content = json.loads(out)
    assert content["change"] == "gate = 1"
    (pair,) = content["beside"]
    assert pair["verdict"] == "moved"
    assert pair["stored"]["detected_step"] < pair["found"]["detected_step"]


def test_replay_of_a_run_without_transitions(shell, tmp_path) -> None:
    settings = {"run_name": "calm", "store": str(tmp_path / "calm.db"), "observables": []}
    with Watch(settings | {"exporter": {"enabled": False}}) as watch:
        watch.observe(1, {"val_loss": 1.0})
    assert "no transitions, now as then" in shell("replay", "calm", "--store", settings["store"])[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--detector", "cumsum"], "unknown detector 'cumsum' (did you mean 'cusum'?); known: "),
        (["--detector", "slope_shift", "--set", "gat=1"], "'slope_shift' refuses its parameters"),
        (["--detector", "slope_shift", "--set", "gate=-1"], "gate is -1, but must be above 0"),
        (["--set", "gat=1"], "no detector here has a parameter 'gat'"),
        (["--set", "gate=-1"], "gate is -1, but must be above 0"),
        (["--set", "gate"], "--set is 'gate'; it must be KEY=VALUE"),
    ],
)
@pytest.mark.parametrize("command", ["detect", "replay"])
def test_a_wrong_setting_is_one_line(shell, curve, store, command, arguments, message) -> None:
    subject = [curve] if command == "detect" else ["demo", "--store", store]
    code, out, err = shell(command, *subject, *arguments)
    assert (code, out) == (1, "")
    assert err.startswith("phasewatch: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["detect", "none.csv"], "there is no file 'none.csv'"),
        (["replay", "dmeo"], "no run 'dmeo'"),
        (
            ["replay", "demo", "--stream", "loss", "--detector", "none"],
            "--stream 'loss' is none of run 'demo'; its streams: val_loss",
        ),
        (["replay", "demo", "--stream", "val_loss"], "--stream alone changes nothing; give"),
    ],
)
def test_a_wrong_subject_is_one_line(shell, store, arguments, message) -> None:
    where = ["--store", store] if arguments[0] == "replay" else []
    code, out, err = shell(*arguments, *where)
    assert (code, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1


def test_the_page_of_a_file_shows_curve_transition_and_detectors(shell, curve, tmp_path) -> None:
    page = tmp_path / "page.html"
    code, out, _ = shell("detect", curve, "--report", page, "--set", "gate=0.2")
    assert code == 0
    assert f"page written to {page}" in out
    content = page.read_text(encoding="utf-8")
    for part in ("curve.csv", "with gate = 0.2", "1 transition: generalisation", "gate = 0.2,"):
        assert part in content
    curve = re.search(r'data-name="val_loss"><path class="line" d="M0,[^"]*L(\d+),', content)
    assert curve is not None
    assert curve.group(1) == "799"
    assert "Along each chart: the step." in content
    assert content.count('<text class="mark"') == 1


def test_the_page_of_measured_values_shows_their_errors(shell, tmp_path) -> None:
    path, page = tmp_path / "llc.csv", tmp_path / "page.html"
    rows = (f"{10 * i},{20 - 12 * (i > 20)},0.3" for i in range(40))
    path.write_text("step,llc,llc_stderr\n" + "\n".join(rows), encoding="utf-8")
    shell("detect", path, "--report", page)
    content = page.read_text(encoding="utf-8")
    assert '<path class="error"' in content
    assert "<title>step 10: 20 ± 0.3, ok</title>" in content
    assert "simplification" in content


def test_the_page_of_a_replay_shows_what_it_found_beside_what_was_said(
    shell, store, tmp_path
) -> None:
    page = tmp_path / "page.html"
    assert shell("replay", "demo", "--store", store, "--report", page, "--set", "gate=5")[0] == 0
    content = page.read_text(encoding="utf-8")
    for part in ("demo, replayed", "with gate = 5", ">gone</t", "found: "):
        assert part in content


def test_a_page_that_cannot_be_written_is_one_line(shell, curve, store, tmp_path) -> None:
    for command in (["detect", curve], ["replay", "demo", "--store", store]):
        code, _, err = shell(*command, "--report", tmp_path / "none" / "x.html")
        assert code == 1
        assert "cannot be written: No such file or directory; give --report" in err
        assert err.count("\n") == 1


def test_detect_and_replay_do_not_wait_for_torch_or_lightning(curve, store) -> None:
    code = """
import sys
from phasewatch.monitor.cli import main as cli
for command in (["detect", CURVE], ["replay", "demo", "--store", STORE]):
    sys.argv = ["phasewatch", *command]
    try:
        cli.main()
    except SystemExit as leaving:
        assert not leaving.code, leaving.code
print("loaded:", {"torch", "lightning", "plotly", "matplotlib"} & set(sys.modules))
"""
    child = start_python(code.replace("CURVE", repr(str(curve))).replace("STORE", repr(store)))
    out, err = child.communicate(timeout=60)
    assert "loaded: set()" in out, err
