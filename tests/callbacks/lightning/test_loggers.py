"""λ̂ and transitions in the trainer's own loggers."""

from __future__ import annotations

import csv
import dataclasses
import math

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from phasewatch.callbacks import TransitionMonitor
from phasewatch.callbacks.shared.loggers import TrainerLoggers
from phasewatch.monitor.core.errors import PhasewatchError
from phasewatch.monitor.core.estimates import EstimateStatus, Observation
from phasewatch.monitor.core.transitions import TransitionKind, TransitionStatus
from support.history import estimate, transition
from support.logged import train

EVENTS = "tensorboard.backend.event_processing.event_accumulator"


def make_monitor(**settings):
    return TransitionMonitor(
        every_n_steps=4, observables=["llc"], exporter=False, run_name="logged", **settings
    )


def read_csv(folder):
    with next(folder.rglob("metrics.csv")).open(encoding="utf-8") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def read_board(folder):
    accumulator = pytest.importorskip(EVENTS).EventAccumulator(str(folder)).Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


def test_tensorboard_and_csv_have_the_coefficient_beside_what_is_logged(tmp_path):
    def loggers(folder):
        return [
            TensorBoardLogger(folder / "board", name="", version=""),
            CSVLogger(folder / "csv", name="", version=""),
        ]

    monitor = make_monitor()
    watched, bare = tmp_path / "watched", tmp_path / "bare"
    weights = train(watched, loggers(watched), monitor=monitor)
    other = train(bare, loggers(bare))
    assert all(torch.equal(a, b) for a, b in zip(weights, other, strict=True))

    steps, values, stderrs = monitor.history("llc", include_unconverged=True)
    ok = monitor.history("llc").ok
    names = ["phasewatch/llc" if passed else "phasewatch/llc_not_ok" for passed in ok]
    assert len(steps) >= 3

    rows = read_csv(watched / "csv")
    own = [row for row in rows if any(name.startswith("phasewatch/") for name in row)]
    assert [row for row in rows if row not in own] == read_csv(bare / "csv")
    found = [(int(row["step"]), row[name]) for row, name in zip(own, names, strict=True)]
    assert found == [*zip(steps.tolist(), values.tolist(), strict=True)]
    for row, passed, stderr in zip(own, ok, stderrs, strict=True):
        assert row.get("phasewatch/llc_stderr") == (stderr if passed else None)

    board = read_board(watched / "board")
    seen = [pair for name in sorted(set(names)) for pair in board[name]]
    assert sorted(seen) == [
        (step, pytest.approx(value, rel=1e-6)) for step, value in zip(steps, values, strict=True)
    ]
    kept = {name: points for name, points in board.items() if not name.startswith("phasewatch/")}
    assert kept == read_board(bare / "board")


@pytest.mark.parametrize("how", ["argument", "file"])
def test_a_setting_keeps_loggers_alone(tmp_path, how):
    settings = {"loggers": False}
    if how == "file":
        (tmp_path / "phasewatch.yaml").write_text("loggers: false\n", encoding="utf-8")
        settings = {"config": tmp_path / "phasewatch.yaml"}
    monitor = make_monitor(**settings)
    train(tmp_path, [CSVLogger(tmp_path / "csv", name="", version="")], monitor=monitor)
    assert len(monitor.history("llc")[0]) >= 3
    assert not [name for row in read_csv(tmp_path / "csv") for name in row if "phasewatch" in name]


def test_a_logger_that_raises_is_counted_and_training_goes_on(tmp_path):
    class Broken(CSVLogger):
        def log_metrics(self, metrics, step=None):
            if any(name.startswith("phasewatch/") for name in metrics):
                raise OSError("the disk is full")
            super().log_metrics(metrics, step)

    monitor = make_monitor()
    train(tmp_path, [Broken(tmp_path / "csv", name="", version="")], monitor=monitor)
    assert monitor.watch.health.sink_failures["TrainerLoggers"] >= 3
    assert len(monitor.history("llc")[0]) >= 3


def test_a_second_fit_logs_to_the_loggers_of_its_own_trainer(tmp_path):
    monitor = make_monitor()
    for fit in ("first", "second"):
        train(tmp_path, [CSVLogger(tmp_path / fit, name="", version="")], monitor=monitor)
    for fit in ("first", "second"):
        rows = [row for row in read_csv(tmp_path / fit) if "phasewatch/llc_stderr" in row
                or "phasewatch/llc_not_ok" in row]  # fmt: skip
        assert [int(row["step"]) for row in rows] == [4, 8, 12]


def made_for(logger):
    sink = TrainerLoggers()
    sink.loggers = [logger]
    return sink


class Memory:
    def __init__(self):
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, metrics))


def test_a_transition_is_logged_once_it_is_confirmed_and_once_for_each_kind():
    logger = Memory()
    sink = made_for(logger)
    sink.notify(transition(status=TransitionStatus.SUSPECTED))
    assert logger.rows == []
    for status in (TransitionStatus.CONFIRMED, TransitionStatus.ENDED):
        sink.notify(transition(status=status))
    first = {"phasewatch/transition_generalisation": 1.25, "phasewatch/transition_onset": 500.0}
    assert logger.rows == [(600, first)]
    known = dataclasses.replace(transition(), kind=TransitionKind.CLEANUP)
    sink.notify(known)
    assert logger.rows[1] == (
        600,
        {"phasewatch/transition_cleanup": 1.25, "phasewatch/transition_onset": 500.0},
    )
    for _ in range(2):
        sink.notify(dataclasses.replace(known, status=TransitionStatus.WITHDRAWN))
    assert logger.rows[2:] == [(600, {"phasewatch/transition_withdrawn": 500.0})]


def test_what_did_not_pass_its_checks_has_a_name_of_its_own():
    logger = Memory()
    sink = made_for(logger)
    for status, value in ((EstimateStatus.OK, 3.0), (EstimateStatus.DIVERGED, math.nan)):
        detail = estimate(7, value, status)
        made = Observation(
            name="llc", step=7, value=value, stderr=0.1, status=status, detail=detail
        )
        sink.emit(made)
    sink.emit(Observation(name="val_loss", step=7, value=1.0))
    assert logger.rows[0] == (7, {"phasewatch/llc": 3.0, "phasewatch/llc_stderr": 0.1})
    ((step, values),) = logger.rows[1:]
    assert step == 7
    assert list(values) == ["phasewatch/llc_not_ok"]


class Run:
    """Counts rows as the run of wandb does: a call moves its step unless it is told not to."""

    def __init__(self):
        self.step, self.row, self.rows, self.axes = 0, {}, [], []

    def define_metric(self, name, step_metric=None):
        self.axes.append((name, step_metric))

    def log(self, values, commit=True):
        self.row |= values
        if commit:
            self.rows.append(self.row)
            self.row, self.step = {}, self.step + 1


class WandbLogger:
    def __init__(self):
        self.experiment = Run()


def measured(step, value):
    detail = estimate(step, value)
    return Observation(name="llc", step=step, value=value, stderr=0.1, detail=detail)


def test_the_step_of_weights_and_biases_is_not_moved():
    sink, run = made_for(logger := WandbLogger()), logger.experiment
    sink.notify(transition())
    sink.emit(measured(580, 3.0))
    assert run.step == 0
    run.log({"loss": 1.0})
    assert run.rows == [
        {
            "phasewatch/transition_generalisation": 1.25,
            "phasewatch/transition_onset": 500.0,
            "phasewatch/transition_step": 600,
            "phasewatch/llc": 3.0,
            "phasewatch/llc_stderr": 0.1,
            "phasewatch/llc_step": 580,
            "loss": 1.0,
        }
    ]
    sink.emit(measured(620, 2.0))
    assert run.axes == [
        ("phasewatch/transition_generalisation", "phasewatch/transition_step"),
        ("phasewatch/transition_onset", "phasewatch/transition_step"),
        ("phasewatch/llc", "phasewatch/llc_step"),
        ("phasewatch/llc_stderr", "phasewatch/llc_step"),
    ]


def test_what_weights_and_biases_cannot_take_is_said_and_other_loggers_have_it():
    first, second = WandbLogger(), Memory()
    sink = TrainerLoggers()
    sink.loggers = [first, second]
    sink.emit(measured(580, 3.0))
    with pytest.raises(PhasewatchError, match="that of step 590 stands for both"):
        sink.emit(measured(590, 2.0))
    assert first.experiment.row["phasewatch/llc"] == 2.0
    assert [step for step, _ in second.rows] == [580, 590]
