"""follow, compare, rm, init and completion, as a user's shell sees them."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from phasewatch.monitor.config.example import commented_yaml, explanations
from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.estimates import EstimateStatus
from phasewatch.monitor.core.explanation import explain
from phasewatch.monitor.core.transitions import Recipient, TransitionStatus
from phasewatch.monitor.store.store import Store
from support.history import RUN_ID, fill
from support.records import make_observation, make_transition, start_python

UNCONVERGED = EstimateStatus.UNCONVERGED
MAIN = "from phasewatch.monitor.cli.main import main; main()"


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "runs.db"
    with Store(path) as store:
        fill(store, name="grokking seed 0")
    return path


# ---- follow


def test_a_run_that_is_over_is_told_and_left(phasewatch, path):
    code, out, err = phasewatch("follow", "grokking", "--store", path)
    assert (code, err) == (0, "")
    with Store(path, create=False) as store:
        (found,) = store.transitions(RUN_ID)
        units, config = store.units(RUN_ID), store.run(RUN_ID).config
    assert str(explain(found, config=config, units=units)) in out
    assert "step 1,000" in out
    assert out.splitlines()[-1] == "run grokking seed 0 is over: finished"


def test_a_transition_is_told_while_the_run_goes_on(path):
    with Store(path) as store:
        run, attempt = store.begin_run(name="live")
        store.add_observation(run, attempt, make_observation(1))
        store.flush()
        process = start_python(MAIN, "follow", "live", "--store", path, "--json", "--every", 0.2)
        try:
            first = json.loads(process.stdout.readline())
            assert first["values"]["train_loss"] == {
                "step": 1, "value": 0.5, "stderr": None, "status": "ok"
            }  # fmt: skip
            store.add_transition(make_transition(run, status=TransitionStatus.CONFIRMED))
            store.flush()
            seen = iter(lambda: json.loads(process.stdout.readline()), None)
            told = next(event for event in seen if "transition" in event)
            assert told["explanation"]["title"] == "generalisation, from step 80"
            store.end_run(run, attempt, RunState.FAILED, "ValueError: boom")
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert json.loads(out.splitlines()[-1]) == {"state": "failed", "reason": "ValueError: boom"}
    assert (process.returncode, err) == (1, "")


# ---- compare


def test_runs_stand_beside_one_another_with_the_status_of_their_values(phasewatch, path):
    with Store(path) as store:
        run, attempt = store.begin_run(name="other")
        store.add_observation(
            run,
            attempt,
            make_observation(5, 903.0, name="llc", unit="1", stderr=32.0, status=UNCONVERGED),
        )
        store.end_run(run, attempt, RunState.FINISHED)
    _, out, _ = phasewatch("compare", "grokking", "other", "--store", path)
    assert "903 ± 32 (unconverged)" in out
    assert "generalisation 500 (1.25)" in out
    _, out, _ = phasewatch("compare", RUN_ID, "other", "--store", path, "--json")
    first, second = json.loads(out)
    assert first["values"]["val_loss"]["status"] == "ok"
    assert [t["kind"] for t in first["transitions"]] == ["generalisation"]
    assert second["values"].keys() == {"llc"}
    _, out, _ = phasewatch("compare", RUN_ID, "--stream", "weight_norm", "--store", path, "--json")
    assert json.loads(out)[0]["values"].keys() == {"weight_norm"}


# ---- rm


def test_a_run_goes_with_all_that_was_observed(phasewatch, path):
    with Store(path) as store:
        run, attempt = store.begin_run(name="stays")
        store.add_observation(run, attempt, make_observation(1))
        store.add_transition(
            make_transition(RUN_ID, status=TransitionStatus.CONFIRMED), (Recipient(target="x"),)
        )
        store.end_run(run, attempt, RunState.FINISHED)
    code, out, _ = phasewatch("rm", "grokking", "--yes", "--store", path)
    assert code == 0
    assert out.startswith(f"removed grokking seed 0 ({RUN_ID[:8]}, finished, 1,000 steps): 627 ")
    with Store(path, create=False) as store:
        assert [info.name for info in store.runs()] == ["stays"]
        assert len(store.history(run, "train_loss").steps) == 1
        with store.database.reading() as connection:
            for table in ("observations", "streams", "estimates", "transitions", "outbox"):
                left = connection.exec_driver_sql(f"SELECT COUNT(*) FROM phasewatch_{table}")
                assert left.scalar() == {"observations": 1, "streams": 1}.get(table, 0), table


def test_nothing_goes_unless_it_is_said(path):
    command = [sys.executable, "-c", MAIN, "rm", "grokking", "--store", str(path)]
    done = subprocess.run(command, input="n\n", capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "for good? [y/N]" in done.stdout
    assert "kept grokking seed 0" in done.stdout
    with Store(path, create=False) as store:
        assert len(store.runs()) == 1


def test_what_is_still_needed_stays(phasewatch, path):
    with Store(path) as store:
        store.begin_run(name="running now", run_id="c" * 32)
        code, _, err = phasewatch("rm", "running", "--yes", "--store", path)
        assert code == 1
        assert f"is running (process {os.getpid()} on " in err
        store.end_run("c" * 32, 1, RunState.FINISHED)
        store.begin_run(name="branch", parent=(RUN_ID, 1), resumed_step=500)
    code, _, err = phasewatch("rm", "grokking", "--yes", "--store", path)
    assert code == 1
    assert "holds the beginning of its branches: branch (" in err
    with Store(path, create=False) as store:
        assert len(store.runs()) == 3


# ---- init


def test_every_setting_is_there_with_its_default_and_its_explanation(phasewatch, tmp_path):
    out = tmp_path / "watch.yaml"
    code, said, _ = phasewatch("init", out)
    assert (code, f'TransitionMonitor("{out}")' in said) == (0, True)
    text = out.read_text(encoding="utf-8")
    assert MonitorConfig.load(out) == MonitorConfig()  # all of it is commented out
    settings = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")]
    given = yaml.safe_load("\n".join(settings))
    assert given.keys() == MonitorConfig.model_fields.keys()
    assert MonitorConfig.load(given).model_dump() == MonitorConfig().model_dump()
    for name, explained in explanations(MonitorConfig).items():
        assert explained.split()[0] in text, name
    assert explanations(MonitorConfig).keys() == MonitorConfig.model_fields.keys()
    assert max(map(len, (x for x in text.splitlines() if x.startswith("##")))) <= 100


def test_what_is_there_is_not_overwritten(phasewatch, tmp_path):
    out = tmp_path / "watch.yaml"
    out.write_text("seed: 3\n")
    code, _, err = phasewatch("init", out)
    assert code == 1
    assert "is there already; give another path, or --force" in err
    assert out.read_text() == "seed: 3\n"
    assert phasewatch("init", out, "--force")[0] == 0
    assert out.read_text() == commented_yaml("watch.yaml")


# ---- names


@pytest.mark.parametrize("wanted", ["grokking seed 0", "grok", RUN_ID, RUN_ID[:6]])
def test_the_first_letters_of_a_name_are_enough(phasewatch, path, wanted):
    _, out, _ = phasewatch("show", wanted, "--store", path, "--json")
    assert json.loads(out)["id"] == RUN_ID


def test_letters_that_several_names_begin_with_are_told(phasewatch, path):
    with Store(path) as store:
        store.begin_run(name="grokking seed 1")
    code, _, err = phasewatch("show", "grok", "--store", path)
    assert code == 1
    assert "several names begin with 'grok': grokking seed 1, grokking seed 0" in err


def test_a_wrong_name_gets_the_nearest(phasewatch, path):
    code, _, err = phasewatch("show", "groking seed 0", "--store", path)
    assert (code, err.count("\n")) == (1, 1)
    assert "(did you mean 'grokking seed 0'?)" in err


def test_a_shell_completes_the_names_of_runs(path):
    environment = os.environ | {
        "_PHASEWATCH_COMPLETE": "complete_bash",
        "COMP_WORDS": f"phasewatch show --store {path} grok",
        "COMP_CWORD": "4",
    }
    code = "import sys; sys.argv[0] = 'phasewatch'; " + MAIN
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "grokking seed 0"
