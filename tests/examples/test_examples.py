"""Every example runs, small, and leaves what it promises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.store.store import Store

EXAMPLES = Path(__file__).parents[2] / "examples"
HELPERS = {"common.py", "terminal.py"}


def start(script: str, *arguments: str, cwd: Path, timeout: float = 120) -> str:
    """Run an example as a user does, in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PHASEWATCH_STORE", None)
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} - HELPERS == {
        "addition.py",
        "deep_linear.py",
        "digits.py",
        "entropy_sgd.py",
        "grokking.py",
        "in_context_regression.py",
        "grokking_llc.py",
        "grokking_phases.py",
        "induction_heads.py",
        "plain_loop.py",
        "scaler_loop.py",
        "fabric_loop.py",
        "accelerate_loop.py",
        "hf_grokking.py",
        "lottery_tickets.py",
        "superposition.py",
    }


def test_grokking_says_where_everything_is(tmp_path: Path) -> None:
    said = start("grokking.py", "--fast", "--out", "demo", cwd=tmp_path)
    demo = tmp_path / "demo"
    assert "λ̂ was measured 6 times" in said
    for what, where in (("report", "report.html"), ("picture", "transition.png")):
        assert f"{what}   {Path('demo') / where}" in said.replace("picture  ", "picture   ")
        assert (demo / where).stat().st_size > 10_000
    assert "http://127.0.0.1:" in said
    assert "transition" in said
    assert "phasewatch show grokking-seed0 --store demo/phasewatch.db" in said
    with Store(demo / "phasewatch.db", create=False) as store:
        info = store.run("grokking-seed0")
        assert (info.state, info.last_step) == (RunState.FINISHED, 60)
        assert len(store.observations(info.id, "llc")) == 6
        assert len(store.history(info.id, "val_loss")[0]) == 12
        assert len(store.history(info.id, "train_loss")[0]) == 60
    assert "grokking-seed0" in (demo / "report.html").read_text(encoding="utf-8")


def test_the_plain_loop_prints_what_it_measures(rehearse, tmp_path: Path) -> None:
    said = rehearse("plain_loop.py")
    assert "step    60" in said
    assert "λ̂ -" in said  # on the first plateau: a saddle
    assert (tmp_path / "demo" / "report.html").exists()
    with Store(tmp_path / "demo" / "phasewatch.db", create=False) as store:
        info = store.run("plain-seed0")
        assert info.state is RunState.FINISHED
        assert len(store.history(info.id, "train_loss")[0]) == 60
        assert len(store.history(info.id, "gradient_norm")[0]) == 3


def test_lottery_tickets_are_taken_and_trained_again(rehearse, tmp_path: Path) -> None:
    said = json.loads(rehearse("lottery_tickets.py", "--json"))
    taken = said["facts"].pop("tickets taken at steps")
    assert taken.keys() == {"before", "at", "after"}
    assert taken["after"] == 60
    assert len(said["facts"]) == 7
    assert all(0.0 <= one["final accuracy"] <= 1.0 for one in said["facts"].values())
    demo = tmp_path / "demo"
    for written in ("tickets.png", "figure.png", "report.html"):
        assert (demo / written).stat().st_size > 10_000
    with Store(demo / "phasewatch.db", create=False) as store:
        info = store.run("tickets-seed0")
        assert info.state is RunState.FINISHED
        assert len(store.history(info.id, "mask_overlap")[0]) == 2  # the first has no other
        assert len(store.history(info.id, "frequency_entropy/in")[0]) == 3


def test_addition_follows_each_digit(rehearse, tmp_path: Path) -> None:
    said = rehearse("addition.py")
    assert "digit 2 is known from step" in said
    assert (tmp_path / "demo" / "figure.png").stat().st_size > 10_000
    with Store(tmp_path / "demo" / "phasewatch.db", create=False) as store:
        info = store.run("addition-seed0")
        assert info.state is RunState.FINISHED
        for digit in range(3):  # two digits, and the carry
            _, values, errors = store.history(info.id, f"loss_digit_{digit}")
            assert len(values) == 6
            assert np.isnan(errors).all(), "so that it gets the detector of losses"


def test_in_context_regression_measures_stages(rehearse, tmp_path: Path) -> None:
    said = rehearse("in_context_regression.py", "--json")
    facts = json.loads(said)["facts"]
    assert facts["ICL score of ridge regression"] < 0.0
    with Store(tmp_path / "demo" / "phasewatch.db", create=False) as store:
        info = store.run("in-context-seed0")
        assert info.state is RunState.FINISHED
        for stream in ("icl_score_1_8", "loss_example_8", "essential_dynamics/score_3"):
            assert len(store.history(info.id, stream)[0]) == 4, stream
        assert len(store.history(info.id, "llc")[0]) == 2


def test_the_phases_of_grokking_are_measured(rehearse, tmp_path: Path) -> None:
    said = json.loads(rehearse("grokking_phases.py", "--json"))
    assert said["facts"]["restricted loss is below 0.1 from step"] is None
    assert set(said["facts"]["key frequencies in the end"]) <= {1, 2, 3, 4, 5}
    assert (tmp_path / "demo" / "figure.png").stat().st_size > 10_000
    with Store(tmp_path / "demo" / "phasewatch.db", create=False) as store:
        info = store.run("grokking-phases-seed0")
        for stream in ("restricted_loss", "excluded_loss/5", "gini_unembedding", "squared_weights"):
            assert len(store.history(info.id, stream)[0]) == 3, stream


def test_grokking_llc_compares_the_falls_of_every_run(rehearse, tmp_path: Path) -> None:
    said = json.loads(rehearse("grokking_llc.py", "--json"))
    assert set(said["runs"]) == {"p11", "p43-random-labels"}
    for one in said["runs"].values():
        assert len(one["llc"]) == len(one["val_loss"]) == 3
        assert one["llc"] == sorted(one["llc"])
    assert (tmp_path / "demo" / "figure.png").stat().st_size > 10_000
    with Store(tmp_path / "demo" / "phasewatch.db", create=False) as store:
        info = store.run("grokking-llc-p11-seed0")
        assert len(store.history(info.id, "llc")[0]) == 3


def test_induction_heads_leave_every_stream_and_a_picture(rehearse, tmp_path: Path) -> None:
    said = rehearse("induction_heads.py", "--json")
    facts = json.loads(said)["facts"]
    assert facts["prefix_matching"]["first"] < 0.2
    assert (tmp_path / "demo" / "figure.png").stat().st_size > 10_000
    with Store(tmp_path / "demo" / "phasewatch.db", create=False) as store:
        info = store.run("induction-heads-seed0")
        assert (info.state, info.last_step) == (RunState.FINISHED, 40)
        for name, points in (
            ("train_loss", 40),
            ("icl_score_7_49", 4),
            ("prefix_matching/L1H1", 4),
            ("previous_token", 4),
            ("composition/k", 4),
            ("copying_score/L1H0", 4),
            ("head_ablation/L0H0", 2),
        ):
            assert len(store.history(info.id, name)[0]) == points, name


def test_superposition_says_which_polygons_it_saw(rehearse, tmp_path: Path) -> None:
    said = json.loads(rehearse("superposition.py", "--json"))
    assert said["facts"]["polygons"] == "4"
    assert said["facts"]["4: measurements"] == 3
    assert (tmp_path / "demo" / "figure.png").stat().st_size > 10_000
    with Store(tmp_path / "demo" / "phasewatch.db", create=False) as store:
        info = store.run("superposition-seed0")
        assert info.state is RunState.FINISHED
        assert store.history(info.id, "represented_features")[1][-1] == pytest.approx(4, abs=0.5)
        assert len(store.history(info.id, "feature_dimensionality/5")[0]) == 3


def test_a_deep_linear_network_starts_at_the_lambda_of_rank_zero(rehearse, tmp_path: Path) -> None:
    said = json.loads(rehearse("deep_linear.py", "--json"))
    facts = said["facts"]
    assert (facts["rank 0: closed form"], facts["rank 0: measurements"]) == (18.0, 2)
    assert facts["rank 0: λ̂"] == pytest.approx(18.0, abs=4.0)
    assert (tmp_path / "demo" / "report.html").exists()
    with Store(tmp_path / "demo" / "phasewatch.db", create=False) as store:
        info = store.run("deep_linear-seed0")
        assert info.state is RunState.FINISHED
        assert len(store.history(info.id, "singular_value_1")[0]) == 4
        # A saddle: never OK. Few draws do not always tell that it is one.
        statuses = {str(o.status) for o in store.observations(info.id, "llc")}
        assert statuses <= {"negative", "unconverged"}


def test_the_digits_leave_their_curvature_and_the_loss_of_each_digit(
    rehearse, tmp_path: Path
) -> None:
    result = json.loads(rehearse("digits.py", "--json"))
    assert result["facts"]["2/lr"] == pytest.approx(2 / 0.15)
    assert (tmp_path / "demo" / "figure.png").stat().st_size > 10_000
    with Store(tmp_path / "demo" / "phasewatch.db", create=False) as store:
        info = store.run("digits-seed0")
        for stream in ("hessian_top", "hessian_top/2_over_lr", "hessian_top/3"):
            assert len(store.history(info.id, stream)[0]) == 6, stream
        for stream in ("hessian_trace", "hessian_rank", "basin_broadness", "gradient_noise_scale"):
            assert len(store.history(info.id, stream)[0]) >= 1, stream
        assert len(store.history(info.id, "val_loss_digit_9")[0]) == 6


def test_entropy_sgd_and_sgd_are_measured_on_the_same_data(rehearse, tmp_path: Path) -> None:
    result = json.loads(rehearse("entropy_sgd.py", "--json"))
    assert {"last losses of SGD", "last losses of Entropy-SGD"} <= result["facts"].keys()
    assert (tmp_path / "demo" / "figure.png").stat().st_size > 10_000
    with Store(tmp_path / "demo" / "phasewatch.db", create=False) as store:
        for name in ("sgd-seed0", "entropy-sgd-seed0", "cooled-entropy-sgd-seed0"):
            info = store.run(name)
            assert len(store.history(info.id, "train_loss")[0]) == 10
            assert len(store.observations(info.id, "llc")) == 2


def grok(seed: int, folder: Path) -> dict[str, Any]:
    said = start("grokking.py", "--json", "--seed", str(seed), "--out", str(folder), cwd=folder,
               timeout=900)  # fmt: skip
    result: dict[str, Any] = json.loads(said)
    return result


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_generalisation_of_a_grokking_run_is_found_and_nothing_after_it(
    seed: int, tmp_path: Path
) -> None:
    result = grok(seed, tmp_path)
    steps, half = result["steps"], result["half_accuracy_step"]
    confirmed = [t for t in result["transitions"] if t["status"] in ("confirmed", "ended")]
    (found,) = [t for t in confirmed if t["kind"] == "generalisation"]
    assert abs(found["evidence"]["val_loss"] - half) <= 0.1 * steps
    assert found["onset_step"] < half
    assert found["end_step"] is not None

    # what comes earlier is the memorising; on the flat tail there is nothing
    others = [t for t in result["transitions"] if t is not found]
    assert {t["kind"] for t in others} <= {"memorisation"}
    assert all(t["detected_step"] < half for t in others)

    llc = result["llc"]
    assert len(llc) >= 40
    good = [(step, value) for step, value, _, status in llc if status == "ok"]
    assert len(good) >= 0.6 * len(llc)
    peak_step, peak = max(((step, value) for step, value, *_ in llc), key=lambda one: one[1])
    assert peak > 3 * llc[0][1], "λ̂ rises while the network memorises"
    assert peak_step < half
    at_half = min(good, key=lambda one: abs(one[0] - half))[1]
    assert at_half < peak / 2, "λ̂ falls as the memorised solution gives way"
    assert good[-1][1] < at_half / 4
