"""Curves from files: every format, every mistake."""

from __future__ import annotations

import json
import math
import sys

import pytest

from phasewatch.monitor.core.errors import CurveError
from phasewatch.monitor.core.estimates import EstimateStatus, Observation
from phasewatch.monitor.readers.curves import CHUNK, Curves
from phasewatch.monitor.readers.formats import find_file


@pytest.fixture
def write(tmp_path):
    def make(text: str, name: str = "curves.csv"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return make


def read(path, **options):
    """Steps and values of every stream, and the reader."""
    curves = Curves(path, **options)
    streams: dict[str, list[tuple[int, float]]] = {}
    for chunk in curves.chunks():
        if isinstance(chunk, Observation):
            streams.setdefault(chunk.name, []).append((chunk.step, chunk.value))
            continue
        for name, column in chunk.items():
            streams.setdefault(name, []).extend(zip(column.steps, column.values, strict=True))
    return streams, curves


def test_every_numeric_column_of_a_csv_is_a_stream(write) -> None:
    path = write("step,loss,note,accuracy\n10,2.5,warm,0.1\n20,1e-3,,0.2\n")
    streams, curves = read(path)
    assert streams == {"loss": [(10, 2.5), (20, 0.001)], "accuracy": [(10, 0.1), (20, 0.2)]}
    assert curves.step_name == "step"
    assert curves.streams["loss"].count == 2


def test_empty_cells_are_no_points_and_nan_and_inf_are(write) -> None:
    path = write("step,a,b\n1,,nan\n2,5,inf\n3,N/A,\n4,None,-inf\n")
    streams, _ = read(path)
    assert streams["a"] == [(2, 5.0)]
    assert [step for step, _ in streams["b"]] == [1, 2, 4]
    assert math.isnan(streams["b"][0][1])
    assert [value for _, value in streams["b"][1:]] == [math.inf, -math.inf]


def test_the_metrics_of_lightnings_csv_logger(write) -> None:
    path = write(
        "epoch,step,train_loss,val_loss\n0,49,2.0,\n0,49,,2.5\n1,99,1.0,\n1,99,,1.5\n",
        "metrics.csv",
    )
    streams, curves = read(path.parent)
    assert curves.path == path
    assert streams == {
        "train_loss": [(49, 2.0), (99, 1.0)],
        "val_loss": [(49, 2.5), (99, 1.5)],
    }


def test_the_epoch_of_a_row_goes_with_its_values(write) -> None:
    (chunk,) = Curves(write("epoch,step,loss\n0,1,2.0\n1.0,2,1.0\n,3,1.0\n")).chunks()
    assert chunk["loss"].epochs == [0, 1, None]


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("epoch,step,global_step,loss", "step"),
        ("epoch,global_step,loss", "global_step"),
        ("Epoch,Iteration,loss", "Iteration"),
        ("Episode,loss", "Episode"),
        ("epoch,trainer/global_step,loss", "trainer/global_step"),
        ("_step,epoch,loss", "_step"),
        ("loss,epoch", "epoch"),
    ],
)
def test_the_step_column_is_found_by_its_name_the_epoch_last(write, header, found) -> None:
    row = ",".join(["7"] * (header.count(",") + 1))
    streams, curves = read(write(f"{header}\n{row}\n"))
    assert curves.step_name == found
    assert streams["loss"] == [(7, 7.0)]
    assert found not in streams
    assert not {"epoch", "Epoch"} & streams.keys()


def test_the_step_column_can_be_named_and_rows_can_be_counted(write) -> None:
    path = write("tokens,loss\n100,3\n200,2\n")
    assert read(path, step="tokens")[0] == {"loss": [(100, 3.0), (200, 2.0)]}
    assert read(path, step="row")[0]["loss"] == [(1, 3.0), (2, 2.0)]


def test_columns_are_chosen_and_left_out(write) -> None:
    path = write("step,a,b,c\n1,1,2,3\n")
    assert set(read(path, columns=["a", "c"])[0]) == {"a", "c"}
    assert set(read(path, exclude=["a"])[0]) == {"b", "c"}
    for options in ({"columns": ["d"]}, {"exclude": ["d"]}):
        with pytest.raises(CurveError, match=r"has no column 'd' .* 'step', 'a', 'b', 'c'"):
            read(path, **options)


def test_clocks_and_row_numbers_are_no_streams_unless_they_are_named(write) -> None:
    path = write(",step,Wall time,_timestamp,Unnamed: 3,loss\n0,1,9,9,0,2\n")
    assert set(read(path)[0]) == {"loss"}
    assert set(read(path, columns=["Wall time"])[0]) == {"Wall time"}


def test_a_column_of_standard_errors_makes_a_measured_stream(write) -> None:
    path = write("step,llc,llc_stderr,loss\n1,9.0,0.5,3\n2,nan,0.5,2\n3,8.0,,1\n")
    chunks = list(Curves(path).chunks())
    measured = [chunk for chunk in chunks if isinstance(chunk, Observation)]
    assert [(o.step, o.stderr) for o in measured] == [(1, 0.5), (2, 0.5), (3, None)]
    assert measured[1].status is EstimateStatus.DIVERGED
    # Scalars of the same step come before what was measured at it, as in a live run.
    assert [isinstance(chunk, Observation) for chunk in chunks] == [False, True] * 3
    assert set(read(path)[0]) == {"llc", "loss"}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiters_byte_order_mark_quotes_and_line_ends(tmp_path, delimiter) -> None:
    path = tmp_path / "x.csv"
    lines = [["step", '"train, loss"'], ["1", "2.5"], ["2"]]
    text = "\r\n".join(delimiter.join(line) for line in lines)
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read(path)[0] == {"train, loss": [(1, 2.5)]}


def test_jsonl_with_nested_objects(write) -> None:
    rows = [
        {"event": "start", "config": {"lr": 0.1}},
        {"step": 1, "train": {"loss": 2.0}, "flag": True, "tags": ["a"]},
        {"step": 2, "train": {"loss": None}, "val": {"loss": "nan"}},
        {"step": 3, "train": {"loss": math.inf}},
    ]
    path = write("\n\n".join(map(json.dumps, rows)) + "\n", "log.jsonl")
    streams, curves = read(path)
    assert streams["train/loss"] == [(1, 2.0), (3, math.inf)]
    assert math.isnan(streams["val/loss"][0][1])
    assert set(streams) == {"train/loss", "val/loss"}
    assert curves.num_stepless == 1


def test_names_that_come_late_in_jsonl_can_be_chosen(write) -> None:
    lines = [json.dumps({"step": i, "a": 1.0}) for i in range(200)]
    path = write("\n".join([*lines, '{"step": 200, "late": 2.0}']), "log.jsonl")
    assert read(path, columns=["late"])[0] == {"late": [(200, 2.0)]}
    with pytest.raises(CurveError, match="no column 'never' to watch"):
        read(path, columns=["a", "never"])


def test_large_files_come_in_chunks_that_end_with_a_step(write) -> None:
    rows = "".join(f"{i // 2},{i if i % 2 else ''},{'' if i % 2 else i}\n" for i in range(10_000))
    chunks = list(Curves(write("step,a,b\n" + rows)).chunks())
    assert len(chunks) > 2
    for chunk in chunks[:-1]:
        assert chunk["a"].steps[-1] == chunk["b"].steps[-1]
        assert len(chunk["a"].steps) <= CHUNK
    assert sum(len(column.steps) for chunk in chunks for column in chunk.values()) == 10_000


# ---- mistakes


def assert_refused(message: str, path, **options) -> None:
    with pytest.raises(CurveError, match=message) as caught:
        read(path, **options)
    assert str(path.name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path) -> None:
    assert_refused(r"there is no file .*none.csv'; give a CSV", tmp_path / "none.csv")


def test_a_folder_without_curves_names_the_runs_below(tmp_path) -> None:
    assert_refused("holds neither event files nor a metrics.csv$", tmp_path)
    (tmp_path / "version_3").mkdir()
    (tmp_path / "version_3" / "metrics.csv").touch()
    assert_refused(r"there are runs in .*version_3: give one", tmp_path)


def test_no_step_column(write) -> None:
    path = write("loss,accuracy\n1,2\n")
    assert_refused(r"no column of steps .* 'loss', 'accuracy'; name one with --step, or", path)
    assert_refused(r"no column 'tokens' for the steps; its columns: 'loss'", path, step="tokens")


def test_no_numeric_column(write) -> None:
    path = write("step,note\n1,a\n2,b\n")
    assert_refused(
        r"no numeric column to watch beside the steps; its columns: 'step', 'note'", path
    )
    assert_refused(r"column 'note' holds 'a', which is no number", path, columns=["note"])
    assert_refused("no numeric column", write("step,loss\n"))


def test_steps_that_decrease(write) -> None:
    path = write("step,loss\n1,5\n3,4\n2,3\n")
    assert_refused(r"line 4, column 'step': step 2 follows step 3; steps must not decrease", path)
    assert read(path, step="row")[0]["loss"] == [(1, 5.0), (2, 4.0), (3, 3.0)]


def test_steps_that_stand_still(write) -> None:
    path = write("epoch,loss\n" + "0,1\n" * 5 + "1,1\n" * 5)
    assert_refused(r"8 of 10 values of 'loss' repeat the step before: 'epoch' does not", path)
    streams, curves = read(write("step,loss\n1,5\n2,4\n2,4\n"))  # as trainer.validate() leaves it
    assert len(streams["loss"]) == 3
    assert curves.streams["loss"].repeated == 1


@pytest.mark.parametrize("step", ["1.5", "-1", "nan", "inf"])
def test_steps_that_are_no_whole_numbers(write, step) -> None:
    path = write(f"step,loss\n{step},5\n")
    assert_refused(rf"line 2, column 'step': step is '{step}'; it must be a whole number", path)


def test_steps_may_be_written_as_floats(write) -> None:
    assert read(write("step,loss\n1e3,5\n2000.0,4\n"))[0]["loss"] == [(1000, 5.0), (2000, 4.0)]


def test_a_cell_that_is_no_number(write) -> None:
    path = write("step,loss\n1,5\n2,oops\n")
    assert_refused(r"line 3, column 'loss': 'oops' is no number; .* --exclude loss", path)
    assert_refused(r"line 2, column 'step': 'x' is no number", write("step,loss\nx,5\n"))


@pytest.mark.parametrize("text", ["", "1,2\n3,4\n"])
def test_a_file_without_names_of_columns(write, text) -> None:
    assert_refused("the first line is '.*'; it must name the columns", write(text))


def test_broken_jsonl(write) -> None:
    assert_refused("line 2 is no JSON", write('{"step": 1}\n{"step": \n', "x.jsonl"))
    assert_refused(
        r"line 2 is '\[1\]'; it must be an object", write('{"step": 1}\n[1]\n', "x.jsonl")
    )


def test_a_file_that_is_no_text(tmp_path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"\x89PNG\r\n\xff\xfe")
    assert_refused(r"is no text: .*; give a CSV or JSONL file in UTF-8", path)


def test_a_file_that_cannot_be_read(write, monkeypatch) -> None:
    path = write("step,loss\n1,2\n")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", refuse)
    assert_refused("cannot be read: Permission denied", path)


# ---- TensorBoard


def test_without_tensorboard_its_files_name_the_package(tmp_path, monkeypatch) -> None:
    for name in {"tensorboard", *sys.modules}:
        if name.partition(".")[0] == "tensorboard":  # its parts too, where another test read some
            monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "events.out.tfevents.1.host").touch()
    assert find_file(tmp_path) == tmp_path
    assert_refused(
        r"tensorboard is not installed; pip install 'phasewatch\[tensorboard\]'", tmp_path
    )


@pytest.mark.filterwarnings("default")
def test_tensorboard_scalars_of_either_kind_and_of_resumed_runs(tmp_path) -> None:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        for step in range(10):
            writer.add_scalar("train/loss", 10.0 - step, step)
            writer.add_scalar("epoch", step // 5, step)
        for step in range(7, 12):  # resumed from step 7: what comes last counts
            writer.add_scalar("train/loss", 50.0 + step, step)
        writer.add_scalar("val/loss", 3.0, 11, new_style=True)
        writer.add_text("note", "hello")
    streams, curves = read(tmp_path)
    assert streams["train/loss"] == [
        *((step, 10.0 - step) for step in range(7)),
        *((step, 50.0 + step) for step in range(7, 12)),
    ]
    assert streams["val/loss"] == [(11, 3.0)]
    assert set(streams) == {"train/loss", "val/loss"}
    assert curves.step_name == "step"
    (event_file,) = tmp_path.glob("*tfevents*")
    assert read(event_file)[0] == streams


# ---- formats that people have

FALL = [2.0, 1.5, 1.0]


def test_the_state_of_a_hugging_face_trainer(write, tmp_path) -> None:
    history = [{"step": 10 * (i + 1), "epoch": 0.1 * i, "loss": v} for i, v in enumerate(FALL)]
    history.append({"step": 30, "epoch": 0.3, "eval_loss": 0.9})
    content = json.dumps({"best_metric": None, "log_history": history}, indent=2)
    streams, _ = read(write(content, "trainer_state.json"))
    assert streams["loss"] == [(10, 2.0), (20, 1.5), (30, 1.0)]
    assert streams["eval_loss"] == [(30, 0.9)]
    for step in (9, 500, 1000):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(content)
    (tmp_path / "trainer_state.json").unlink()
    assert Curves(tmp_path).path.parent.name == "checkpoint-1000"


@pytest.mark.parametrize("indent", [None, 1])
def test_lists_and_histories_in_json(write, indent) -> None:
    rows = [{"step": i, "loss": v} for i, v in enumerate(FALL)]
    expected = list(enumerate(FALL))
    assert read(write(json.dumps(rows, indent=indent), "a.json"))[0]["loss"] == expected
    keras = {"loss": FALL, "val_loss": [3.0, 2.0, 1.0]}
    for content in (keras, {"history": keras, "params": {"epochs": 3}}):
        streams, curves = read(write(json.dumps(content, indent=indent), "history.json"))
        assert streams["loss"] == [(1, 2.0), (2, 1.5), (3, 1.0)]
        assert curves.step_name == "epoch"
    assert read(write(json.dumps(FALL), "c.json"))[0]["value"] == [(1, 2.0), (2, 1.5), (3, 1.0)]
    assert_refused("of no known form; give a list of objects", write('{\n"a": 1\n}', "d.json"))


def test_the_files_of_stable_baselines(write) -> None:
    monitor = write(
        '#{"t_start": 1.5, "env_id": "Hopper"}\nr,l,t\n5.0,100,1.0\n7.0,120,2.0\n', "monitor.csv"
    )
    streams, curves = read(monitor)
    assert streams["r"] == [(1, 5.0), (2, 7.0)]
    progress = write(
        "time/fps,time/total_timesteps,rollout/ep_rew_mean\n90,2048,\n91,4096,20.5\n",
        "progress.csv",
    )
    streams, curves = read(progress)
    assert curves.step_name == "time/total_timesteps"
    assert streams["rollout/ep_rew_mean"] == [(4096, 20.5)]


def test_the_long_format(write) -> None:
    text = "run_id,key,value,step,timestamp\n" + "".join(
        f"a,{name},{v},{i},17000{i}\n"
        for i in range(3)
        for name, v in (("loss", FALL[i]), ("acc", i))
    )
    streams, _ = read(write(text))
    assert streams["loss"] == list(enumerate(FALL))
    assert streams["acc"] == [(0, 0.0), (1, 1.0), (2, 2.0)]


def test_decimal_commas_and_percent_signs(write) -> None:
    assert read(write("step;loss\n1;2,5\n2;1,5e-1\n"))[0]["loss"] == [(1, 2.5), (2, 0.15)]
    assert read(write("step,acc\n1,85.5%\n2,93 %\n"))[0]["acc"] == [(1, 85.5), (2, 93.0)]


def test_a_column_written_twice_and_an_empty_one(write) -> None:
    streams, _ = read(write("step,loss,loss,empty\n1,2,3,\n2,1,4,\n"))
    assert streams == {"loss": [(1, 2.0), (2, 1.0)], "loss.2": [(1, 3.0), (2, 4.0)]}


def test_the_log_of_a_resumed_run_says_what_the_later_attempt_saw(write) -> None:
    first = [(step, 10.0) for step in range(20)]
    second = [(step, 5.0) for step in range(12, 30)]
    for middle in ("", "step,loss\n"):
        text = "step,loss\n" + "".join(f"{s},{v}\n" for s, v in first)
        text += middle + "".join(f"{s},{v}\n" for s, v in second)
        streams, curves = read(write(text))
        assert streams["loss"] == first[:12] + second
        assert curves.num_superseded == 8


def test_fractions_of_an_epoch_count_rows(write) -> None:
    streams, curves = read(write("epoch,loss\n0.1,2\n0.25,1.5\n1.0,1\n"))
    assert curves.step_name == "row"
    assert streams["loss"] == [(1, 2.0), (2, 1.5), (3, 1.0)]


def test_a_table_on_its_side_is_refused_before_it_is_read(write) -> None:
    path = write(",".join(f"c{i}" for i in range(20_000)) + "\n")
    assert_refused("has 20,000 columns, more than 10,000: no run logs so many streams", path)
