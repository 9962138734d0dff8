"""A folder that somebody writes to: what is complete is measured once, as it comes."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from phasewatch.monitor.backfill import following
from phasewatch.monitor.backfill.backfill import backfill
from phasewatch.monitor.backfill.checkpoints import Checkpoint, find_checkpoints, mark_of
from phasewatch.monitor.backfill.following import follow
from phasewatch.monitor.backfill.measuring import Block, Plan, prepared
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.errors import ConfigError
from phasewatch.monitor.core.transitions import TransitionStatus
from phasewatch.monitor.store.store import Store
from support.backfilled import CONFIG, JUMPING, jump, train

PLAN = Plan(
    "support.backfilled:factory", {**CONFIG, "sampler": {**CONFIG["sampler"], "warm_start": True}}
)
NORMS = Plan(PLAN.factory, {**CONFIG, "observables": ["weight_norm"]})


class Writer:
    """Stands in for time: whatever happens in the folder happens while nobody looks.

    Args:
        actions: What is done between two looks, by turns; after the last nothing is.
    """

    def __init__(self, *actions):
        self.actions = list(actions)
        self.now = 0.0

    def sleep(self, seconds):
        self.now += seconds
        if self.actions:
            self.actions.pop(0)()

    def monotonic(self):
        return self.now


@pytest.fixture
def writer(monkeypatch):
    def write(*actions):
        made = Writer(*actions)
        monkeypatch.setattr(following, "time", made)
        return made

    return write


def followed(tmp_path, plan=NORMS, idle=20.0, **more):
    with Store(tmp_path / "later.db") as store:
        done = follow(store, "run", plan, [str(tmp_path / "c" / "*")], idle=idle, **more)
        return done, store.run(done.run_id)


def history(tmp_path, name="weight_norm"):
    with Store(tmp_path / "later.db", create=False) as store:
        return store.history(store.run("run").id, name, include_unconverged=True)[:3]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "c").mkdir()
    return tmp_path / "c"


def saver(folder, step):
    return lambda: torch.save(jump(step), folder / f"step-{step}.pt")


def nothing():
    pass


def interrupt():
    raise KeyboardInterrupt


def test_checkpoints_are_measured_as_they_come_in_one_attempt(tmp_path, folder, writer):
    actions = [saver(folder, 10), nothing, saver(folder, 20), saver(folder, 30)]
    writer(*actions)
    counts = []
    done, run = followed(tmp_path, progress=lambda *count: counts.append(count))
    assert history(tmp_path)[0].tolist() == [10, 20, 30]
    assert (done.measured, done.known, done.retries, done.unread) == (3, 0, 0, {})
    assert counts == [(1, 1), (2, 2), (3, 3)]
    assert (run.state, run.attempt) == (RunState.FINISHED, 1)


def test_the_numbers_are_those_of_a_backfill_of_the_same_checkpoints(tmp_path, folder, writer):
    saved = tmp_path / "saved"
    train(saved, 40, lambda step, net: torch.save(net.state_dict(), saved / f"step-{step}.pt"))

    def comes(step):
        return lambda: (saved / f"step-{step}.pt").rename(folder / f"step-{step}.pt")

    writer(comes(10), nothing, comes(20), comes(30), nothing, nothing, comes(40))
    done, _ = followed(tmp_path, PLAN)
    assert done.measured == 4
    with Store(":memory:") as store:
        whole = backfill(store, "run", PLAN, find_checkpoints([str(folder / "*")]))
        for name in ("llc", "weight_norm"):
            later = store.history(whole.run_id, name, include_unconverged=True)[:3]
            for a, b in zip(history(tmp_path, name), later, strict=True):
                np.testing.assert_array_equal(a, b)


def test_a_file_that_grows_is_waited_for_and_one_that_is_torn_is_tried_again(
    tmp_path, folder, writer, caplog
):
    path = folder / "step-10.pt"
    torch.save(jump(10), tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    third = len(whole) // 3

    def grows(to):
        return lambda: path.write_bytes(whole[:to])

    # It stands still for one look after the second third.
    writer(grows(9), grows(third), grows(2 * third), nothing, nothing, grows(len(whole)))
    done, _ = followed(tmp_path, idle=12.0)
    assert history(tmp_path)[0].tolist() == [10]
    assert history(tmp_path)[1].tolist() == [pytest.approx(norm(jump(10)))]
    assert (done.measured, done.retries, done.unread) == (1, 2, {})
    said = [record.message for record in caplog.records if "tried again" in record.message]
    assert len(said) == 1
    assert "step-10.pt" in said[0]


def norm(state):
    return float(torch.cat([value.flatten() for value in state.values()]).norm())


def test_what_is_never_read_is_told_at_the_end_and_nothing_waits_for_it(tmp_path, folder, writer):
    (folder / "step-10.pt").write_bytes(b"torn")
    torch.save(jump(20), folder / "best.pt")
    writer(saver(folder, 30))
    done, run = followed(tmp_path)
    assert (done.measured, run.state) == (1, RunState.FINISHED)
    why = {path.rpartition("/")[2]: reason for path, reason in done.unread.items()}
    assert "cannot be read" in why["step-10.pt"]
    assert "is not known" in why["best.pt"]
    assert done.retries >= 4


def test_one_that_is_gone_before_it_could_be_read_is_told(tmp_path, folder, writer, caplog):
    (folder / "step-10.pt").write_bytes(b"torn")
    writer(nothing, (folder / "step-10.pt").unlink, saver(folder, 20))
    done, _ = followed(tmp_path)
    assert (done.measured, done.unread) == (1, {})
    assert any("is gone; it was not measured" in record.message for record in caplog.records)


def test_a_folder_of_transformers_is_taken_when_all_of_it_is_there(tmp_path, folder, writer):
    one = folder / "checkpoint-10"

    def begins():
        one.mkdir()
        (one / "config.json").write_text("{}")

    def ends():
        torch.save(jump(10), one / "pytorch_model.bin")
        (one / "trainer_state.json").write_text(json.dumps({"global_step": 10}))

    writer(begins, nothing, ends)
    done, _ = followed(tmp_path)
    assert (done.measured, done.retries) == (1, 1)
    assert history(tmp_path)[0].tolist() == [10]


def test_a_file_that_is_written_anew_is_another_checkpoint(tmp_path, folder, writer):
    last = folder / "last.ckpt"

    def saves(step):
        return lambda: torch.save({"global_step": step, "state_dict": jump(step)}, last)

    writer(saves(10), nothing, saves(20), nothing, saver(folder, 20), saves(30))
    done, _ = followed(tmp_path)
    assert history(tmp_path)[0].tolist() == [10, 20, 30]
    assert done.measured == 3


def test_weights_that_were_written_anew_are_not_taken_for_those_looked_at(folder):
    path = folder / "last.pt"
    torch.save(jump(10), path)
    checkpoint = Checkpoint(10, path, mark_of(path))
    block = Block(prepared(NORMS))
    assert block.measure(checkpoint).observations
    torch.save({**jump(20), "more": torch.zeros(999)}, path)
    torch.save(jump(20), path)
    os.utime(path, ns=(1, 1))
    measured = block.measure(checkpoint)
    assert (measured.observations, "written anew" in measured.unread) == ((), True)


def test_what_could_not_be_measured_as_found_is_tried_again(tmp_path, folder, writer, monkeypatch):
    whole, times = Block.measure, []

    def once_anew(block, checkpoint):
        times.append(checkpoint.step)
        mark = (0, 0) if len(times) == 1 else checkpoint.mark
        return whole(block, Checkpoint(checkpoint.step, checkpoint.path, mark))

    monkeypatch.setattr(Block, "measure", once_anew)
    writer(saver(folder, 10))
    done, _ = followed(tmp_path)
    assert times == [10, 10]
    assert (done.measured, done.retries, done.unread) == (1, 1, {})


def test_ctrl_c_stops_it_and_everything_is_kept(tmp_path, folder, writer, monkeypatch):
    whole = Block.measure

    def stops(block, checkpoint):
        return interrupt() if checkpoint.step == 30 else whole(block, checkpoint)

    for step in (10, 20, 30):
        saver(folder, step)()
    writer()
    monkeypatch.setattr(Block, "measure", stops)
    done, run = followed(tmp_path, idle=None)
    assert (done.measured, run.state, run.reason) == (2, RunState.STOPPED, "Ctrl-C")
    assert history(tmp_path)[0].tolist() == [10, 20]
    monkeypatch.undo()
    writer(nothing, interrupt)
    done, run = followed(tmp_path, idle=None)
    assert (done.measured, done.known, run.state, run.attempt) == (1, 2, RunState.STOPPED, 2)
    assert history(tmp_path)[0].tolist() == [10, 20, 30]


def test_a_failure_ends_it_as_failed(tmp_path, folder, writer):
    torch.save({"other": torch.zeros(3)}, folder / "step-10.pt")
    writer()
    with pytest.raises(ConfigError, match="do not match the model"):
        followed(tmp_path)
    with Store(tmp_path / "later.db", create=False) as store:
        assert store.run("run").state is RunState.FAILED


def test_transitions_are_told_as_they_come_and_looked_back_at_in_the_end(tmp_path, folder, writer):
    plan = Plan(PLAN.factory, JUMPING)
    for step in range(10, 290, 10):
        saver(folder, step)()
    written, told = [280], []

    def next_one():
        written.append(written[-1] + 10)
        saver(folder, written[-1])()

    writer(*[next_one] * 22)
    done, _ = followed(tmp_path, plan, tell=lambda t: told.append((written[-1], t)))
    assert done.measured == 50
    assert told[0][1].status in (
        TransitionStatus.SUSPECTED, TransitionStatus.CONFIRMED,
    )  # fmt: skip
    assert 300 <= told[0][0] < 400  # long before the last checkpoint
    states = [(t.id, t.status, t.kind) for _, t in told]
    assert len(states) == len(set(states))
    with Store(":memory:") as store:
        whole = backfill(store, "run", plan, find_checkpoints([str(folder / "*")]))
    assert len(done.transitions) == len(whole.transitions) == 1
    ours, theirs = done.transitions[0], whole.transitions[0]
    for name in ("kind", "status", "onset_step", "detected_step", "end_step", "hindsight"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.hindsight is not None


def test_what_compares_checkpoints_is_measured_in_their_order_alone(tmp_path, folder, writer):
    plan = Plan(PLAN.factory, {**CONFIG, "observables": ["distance_from_init"]})
    writer(*(saver(folder, step) for step in (10, 30)), nothing, saver(folder, 20))
    done, _ = followed(tmp_path, plan)
    assert done.measured == 2
    assert [number for why, number in done.reasons.items() if "came late" in why] == [1]
    with pytest.raises(ConfigError, match=r"distance_from_init.*in one block"):
        followed(tmp_path, plan, jobs=2)


def test_wrong_numbers_are_refused(tmp_path, folder):
    for more, message in (({"every": 0.0}, "every is 0.0"), ({"idle": -1.0}, "idle is -1.0")):
        with pytest.raises(ConfigError, match=message):
            followed(tmp_path, **more)


def arguments_of(tmp_path, folder):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(JUMPING))
    return [
        "backfill", PLAN.factory, folder / "*.pt", "--run", "run", "--config", config,
        "--store", tmp_path / "later.db", "--follow", "--every", "0.05",
    ]  # fmt: skip


def test_the_command_follows_and_tells(tmp_path, folder, phasewatch):
    for step in range(10, 510, 10):
        saver(folder, step)()
    arguments = [*arguments_of(tmp_path, folder), "--idle", "0.1"]
    code, out, _ = phasewatch(*arguments)
    assert code == 0
    assert "weight_norm" in out.partition("50 checkpoints measured, 0 were known")[0]
    assert "steps" not in out.partition("0 were known")[2].partition("\n")[0]
    code, out, _ = phasewatch(*arguments, "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert (code, lines[-1]["known"], lines[-1]["measured"]) == (0, 50, 0)


def test_the_command_refuses_what_does_not_go_together(tmp_path, folder, phasewatch):
    arguments = arguments_of(tmp_path, folder)
    code, _, err = phasewatch(*arguments, "--around", "generalisation")
    assert (code, "give one" in err) == (1, True)
    code, _, err = phasewatch(*[a for a in arguments if a != "--follow"])
    assert (code, "--every is 0.05" in err) == (1, True)


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_leaves_with_a_summary(tmp_path, folder):
    for step in (10, 20):
        saver(folder, step)()
    command = [sys.executable, "-X", "faulthandler", "-m", "phasewatch.monitor.cli.main"]
    process = subprocess.Popen(
        [*command, *map(str, arguments_of(tmp_path, folder))],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while process.poll() is None and measured(tmp_path) < 2:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # says where it hangs
        pytest.fail(process.communicate()[1])
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert "2 checkpoints measured" in out
    with Store(tmp_path / "later.db", create=False) as store:
        assert store.run("run").state is RunState.STOPPED


def measured(tmp_path):
    try:
        return len(history(tmp_path)[0])
    except Exception:  # the store is not there yet
        return 0
