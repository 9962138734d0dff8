"""The real loggers of W&B and MLflow, which write on this machine alone."""

from __future__ import annotations

import json
import struct

import pytest

pytest.importorskip("wandb", reason="run by `make trackers`")
pytest.importorskip("mlflow", reason="run by `make trackers`")

import torch
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

from phasewatch.callbacks import TransitionMonitor
from support.logged import STEPS, train

pytestmark = [pytest.mark.trackers, pytest.mark.filterwarnings("ignore")]


def make_monitor():
    return TransitionMonitor(
        every_n_steps=4, observables=["llc"], exporter=False, run_name="tracked"
    )


def expected(monitor):
    """(step, value) of λ̂ under each name that it is logged by."""
    found = {"phasewatch/llc": [], "phasewatch/llc_stderr": [], "phasewatch/llc_not_ok": []}
    history = monitor.history("llc", include_unconverged=True)
    for step, value, stderr, ok in zip(
        history.steps.tolist(), history.values, history.stderrs, history.ok, strict=True
    ):
        if ok:
            found["phasewatch/llc"].append((step, value))
            found["phasewatch/llc_stderr"].append((step, stderr))
        else:
            found["phasewatch/llc_not_ok"].append((step, value))
    assert len(history.steps) == STEPS // 4
    return {name: points for name, points in found.items() if points}


def both(tmp_path, make, finish=lambda logger: None):
    """Train without and with the monitor: the loggers, and the monitor."""
    bare, watched = make(tmp_path / "bare"), make(tmp_path / "watched")
    monitor = make_monitor()
    weights = train(tmp_path / "bare", bare)
    finish(bare)  # a process has one run of W&B at a time
    others = train(tmp_path / "watched", watched, monitor=monitor)
    finish(watched)
    assert all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))
    assert monitor.watch.health.sink_failures["TrainerLoggers"] == 0
    return bare, watched, monitor


@pytest.mark.parametrize("kind", ["sqlite", "file"])
def test_mlflow_has_the_coefficient_at_its_steps_beside_what_is_logged(tmp_path, kind, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # newer ones want to be asked

    def make(folder):
        folder.mkdir()
        uri = f"sqlite:///{folder}/mlflow.db" if kind == "sqlite" else f"file:{folder}/mlruns"
        return MLFlowLogger("tried", tracking_uri=uri, artifact_location=str(folder / "artifacts"))

    def metrics(logger):
        client, run = logger.experiment, logger.run_id
        names = client.get_run(run).data.metrics
        return {
            name: [(point.step, point.value) for point in client.get_metric_history(run, name)]
            for name in names
        }

    bare, watched, monitor = both(tmp_path, make)
    found = metrics(watched)
    own = {name: found.pop(name) for name in [*found] if name.startswith("phasewatch/")}
    assert own == expected(monitor)
    assert found == metrics(bare)
    assert len(found["my_loss"]) == STEPS // 2


def test_weights_and_biases_have_it_in_the_rows_they_have_without_it(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")

    def make(folder):
        folder.mkdir()
        return WandbLogger(name="tried", save_dir=folder, project="phasewatch", offline=True)

    _, _, monitor = both(tmp_path, make, lambda logger: logger.experiment.finish())
    (rows, axes), (plain, _) = read_wandb(tmp_path / "watched"), read_wandb(tmp_path / "bare")
    found = {}
    for row in rows:
        own = {name: row.pop(name) for name in [*row] if name.startswith("phasewatch/")}
        step = own.pop("phasewatch/llc_step", None)
        for name, value in own.items():
            found.setdefault(name, []).append((step, value))
    assert found == expected(monitor)
    assert {axes[name] for name in found} == {"phasewatch/llc_step"}
    # What comes after the trainer's last row has one of its own, which the end of the run writes.
    assert rows[: len(plain)] == plain
    assert [[*row] for row in rows[len(plain) :]] in ([], [["trainer/global_step"]])
    assert len(plain) == STEPS // 2


def read_wandb(folder):
    """Rows of an offline run, without times, and the step that each metric is shown against.

    The file is LevelDB's log format after a head of 7 bytes, each entry a `Record`.
    """
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.rglob("offline-run-*/run-*.wandb")
    data = path.read_bytes()
    rows, axes, at, parts = [], {}, 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
        size, kind = struct.unpack_from("<HB", data, at + 4)
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind not in (1, 4):  # the whole entry, or the last of its parts
            continue
        record = wandb_internal_pb2.Record()
        record.ParseFromString(parts)
        parts = b""
        if record.HasField("history"):
            named = {item.nested_key[0]: item.value_json for item in record.history.item}
            rows.append(
                {k: json.loads(v) for k, v in named.items() if k not in ("_timestamp", "_runtime")}
            )
            assert rows[-1].pop("_step") == len(rows) - 1
        elif record.HasField("metric") and record.metric.name:
            axes[record.metric.name] = record.metric.step_metric
    return rows, axes
