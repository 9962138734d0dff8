"""Checkpoints from before and after a suspicion: which are written, kept and deleted."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import namedtuple

import pytest

from phasewatch.monitor.config.measuring import AroundConfig
from phasewatch.monitor.core.health import Health
from phasewatch.monitor.core.transitions import TransitionStatus
from phasewatch.monitor.run.keeper import LIST, NAME, REFUSED, SHARE, Grid, Keeper
from support.planned import Clock
from support.records import make_transition

SUSPECTED = TransitionStatus.SUSPECTED
WITHDRAWN = TransitionStatus.WITHDRAWN


class Run:
    """Steps that write a checkpoint whenever one is wanted."""

    def __init__(
        self, folder, *, budget=1.0, seconds=0.0, length=math.inf, attempt=1, at=0, **more
    ):
        self.clock, self.health = Clock(), Health()
        settings = AroundConfig(**({"keep": 3, "every_n_steps": 10} | more))
        self.keeper = Keeper(settings, self.health, budget=budget, suffix=".ckpt", clock=self.clock)
        self.keeper.open(folder, at, attempt, length)
        self.folder, self.seconds, self.at = folder, seconds, at
        self.written: list[int] = []
        self.error: Exception | None = None

    def go(self, to, step_seconds=1.0):
        while self.at < to:
            self.at += 1
            self.clock.now += step_seconds
            if (place := self.keeper.wants(self.at)) is None:
                continue
            self.clock.now += self.seconds
            if self.error is not None:
                place.write_bytes(b"half")
                self.keeper.failed(place, self.error)
                continue
            place.write_bytes(b"x" * 100)
            self.keeper.wrote(place, self.seconds)
            self.written.append(self.at)
        return self

    def tell(self, status=SUSPECTED, name="t1"):
        self.keeper.told(make_transition("r", transition_id=name, status=status))

    @property
    def there(self):
        return sorted(int(p.stem.split("=")[1].split("-")[0]) for p in self.folder.glob("*.ckpt"))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "kept" / "run"


def test_the_last_k_are_there_and_nothing_else(folder):
    run = Run(folder).go(95)
    assert run.written == list(range(10, 91, 10))
    assert run.there == [70, 80, 90]
    assert run.health.checkpoint_bytes == 300
    assert run.health.checkpoints_written == 9


def test_what_was_there_at_a_suspicion_is_kept_and_as_many_after_it(folder):
    run = Run(folder).go(95)
    run.tell()
    run.go(300)
    kept = [70, 80, 90, 100, 110, 120]
    assert run.there == [*kept, 280, 290, 300]
    assert [int(path.rpartition("=")[2].removesuffix(".ckpt"))
            for path in run.keeper.paths_of("t1")] == kept  # fmt: skip
    assert all(os.path.isabs(path) for path in run.keeper.paths_of("t1"))
    assert run.keeper.changed == {"t1"}


def test_two_suspicions_share_what_both_want(folder):
    run = Run(folder).go(95)
    run.tell(name="a")
    run.go(105)
    run.tell(name="b")
    run.go(300)
    assert run.there == [70, 80, 90, 100, 110, 120, 130, 280, 290, 300]
    run.tell(WITHDRAWN, "a")
    run.go(310)
    assert run.there == [80, 90, 100, 110, 120, 130, 290, 300, 310]


def test_what_was_kept_for_a_withdrawn_suspicion_goes_and_its_record_says_so(folder):
    run = Run(folder).go(95)
    run.tell()
    run.go(105)
    run.tell(WITHDRAWN)
    run.go(205)
    assert run.there == [180, 190, 200]
    assert run.keeper.paths_of("t1") == ()
    assert "t1" in run.keeper.changed


def test_disk_use_is_bounded_and_what_is_not_kept_is_counted_and_said(folder, caplog):
    run = Run(folder, max_transitions=2).go(95)
    for number in range(30):
        run.tell(name=f"t{number}")
        run.tell(TransitionStatus.CONFIRMED, name=f"t{number}")
        run.go(run.at + 100)
        assert len(run.there) <= 3 + 2 * 2 * 3
    assert run.health.skipped[REFUSED] == 28
    assert caplog.text.count("max_transitions") == 1


def test_within_a_budget_they_take_a_part_of_it_and_a_suspicion_does_not_wait(folder):
    run = Run(folder, budget=0.05, seconds=2.0, length=100_000, every_n_steps=None)
    run.go(100_000, step_seconds=0.1)
    elapsed = run.clock.now - 100.0
    assert 2.0 * len(run.written) <= SHARE * 0.05 * elapsed + 2.0
    assert len(run.written) >= 0.7 * SHARE * 0.05 * elapsed / 2.0
    again = Run(folder.with_name("b"), budget=0.05, seconds=2.0, length=100_000, every_n_steps=None)
    again.go(1_500, step_seconds=0.1)
    assert again.written == [1_000]
    again.tell()
    again.go(2_000, step_seconds=0.1)
    assert again.written == [1_000, 2_000]


def test_without_a_budget_there_are_a_hundred_in_a_run():
    assert [Grid(None, 10_000).after(step) for step in (0, 99, 100)] == [100, 100, 200]
    assert Grid(7, 10_000).after(0) == 7
    unknown = Grid(None, math.inf)
    steps, step = [], 0
    while step < 100_000:
        step = unknown.after(step)
        steps.append(step)
    assert 500 < len(steps) < 1_500
    assert steps == sorted(set(steps))


def test_nothing_that_we_have_not_written_is_deleted_or_written_over(folder):
    folder.mkdir(parents=True)
    mine = folder / "step=20.ckpt"
    mine.write_text("the user's")
    (folder / "notes.txt").write_text("the user's")
    run = Run(folder).go(200)
    run.keeper.close(is_over=True)
    assert mine.read_text() == "the user's"
    assert sorted(p.name for p in folder.iterdir()) == ["notes.txt", "step=20.ckpt"]
    assert run.health.measurement_failures[NAME] == 1
    assert 20 not in run.written


def test_at_the_end_only_what_is_kept_is_left_and_a_failed_run_keeps_all(folder):
    run = Run(folder).go(95)
    run.tell()
    run.go(205)
    run.keeper.close(is_over=False)
    assert run.there == [70, 80, 90, 100, 110, 120, 180, 190, 200]
    run.keeper.close(is_over=True)
    assert run.there == [70, 80, 90, 100, 110, 120]
    assert run.health.checkpoint_bytes == 600
    calm = Run(folder.with_name("calm")).go(95)
    calm.keeper.close(is_over=True)
    assert not calm.folder.exists()


def test_a_resumed_run_goes_on_with_what_is_there(folder):
    Run(folder).go(95)
    run = Run(folder, attempt=2, at=85).go(86)
    assert run.there == [70, 80]  # 90 is of what this attempt walks again
    run.tell()
    run.go(125)
    assert run.there == [70, 80, 90, 100, 110, 120]
    assert [p.rpartition("/")[2] for p in run.keeper.paths_of("t1")] == [
        "step=70.ckpt", "step=80.ckpt", "step=90-attempt=2.ckpt", "step=100-attempt=2.ckpt",
        "step=110-attempt=2.ckpt",
    ]  # fmt: skip


def test_what_was_kept_before_a_resume_stays_and_what_is_to_come_still_comes(folder):
    first = Run(folder).go(95)
    first.tell()
    first.go(105)
    state = json.loads(json.dumps(first.keeper.state_dict()))
    first.go(125)
    second = Run(folder, attempt=2, at=105)
    second.keeper.load_state_dict(state)
    second.go(205)
    names = [p.rpartition("/")[2] for p in second.keeper.paths_of("t1")]
    own = [f"step={step}.ckpt" for step in (70, 80, 90, 100, 110, 120)]
    assert sorted(names) == sorted([*own, "step=110-attempt=2.ckpt", "step=120-attempt=2.ckpt"])


def test_one_that_was_being_written_when_the_process_died_is_no_checkpoint(folder):
    run = Run(folder).go(95)
    place = run.keeper.wants(100)
    place.write_bytes(b"half of it")
    again = Run(folder, attempt=2, at=100)
    assert again.there == [70, 80, 90]


def test_a_disk_that_is_full_is_a_failure_that_is_counted_and_said_once(folder, caplog):
    run = Run(folder).go(45)
    run.error = OSError(28, "No space left on device")
    run.go(1_000)
    assert run.there == [20, 30, 40]  # and no half of one
    assert 2 <= run.health.measurement_failures[NAME] <= 8  # rarer after each
    assert caplog.text.count("No space left") == 1
    run.error = None
    run.go(3_000)
    assert len(run.there) == 3
    assert run.there[0] > 1_000


def test_a_disk_that_has_hardly_room_is_not_filled(folder, monkeypatch, caplog):
    run = Run(folder).go(45)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1_000, 750, 250))
    run.go(200)
    assert run.written == [10, 20, 30, 40]
    assert run.health.measurement_failures[NAME] >= 1
    assert "has 250 B left" in caplog.text


@pytest.mark.parametrize("why", ["a file lies there", "it cannot be written"])
def test_a_folder_that_cannot_be_made_or_written_stops_nothing(why, tmp_path, caplog, monkeypatch):
    folder = tmp_path / "there" / "run"
    if why == "a file lies there":
        folder.parent.write_text("a file")
    else:  # whoever is root may write everywhere
        folder.mkdir(parents=True)

        def refuse(self, *_, **__):
            raise PermissionError(13, "Permission denied", str(self))

        monkeypatch.setattr("pathlib.Path.write_bytes", refuse)
    run = Run(folder).go(200)
    run.tell()
    run.go(400)
    run.keeper.close(is_over=True)
    assert run.written == []
    assert run.health.measurement_failures[NAME] >= 2
    assert caplog.text.count("was not written") == 1
    assert "no checkpoint was written" in caplog.text


@pytest.mark.parametrize("content", ["{half", '[{"step": "x"}]', "7", "[[]]"])
def test_a_list_that_cannot_be_read_costs_nothing_but_what_it_lists(content, folder, caplog):
    Run(folder).go(95)
    (folder / LIST).write_text(content)
    run = Run(folder, attempt=2, at=95).go(205)
    assert "cannot be read" in caplog.text
    assert {70, 80, 90} <= set(run.there)  # whose they are, is no longer known


@pytest.mark.parametrize("name", ["../../mine.ckpt", "{}/mine.ckpt", LIST, "..", ".", "notes"])
def test_a_list_that_names_what_is_not_ours_deletes_nothing(name, folder, tmp_path):
    Run(folder).go(95)
    mine = [tmp_path / "mine.ckpt", folder / "notes", folder.parent / "another run"]
    for path in mine:
        path.write_text("the user's")
    listed = json.loads((folder / LIST).read_text())
    listed.append({**listed[0], "step": 500, "name": name.format(tmp_path)})
    (folder / LIST).write_text(json.dumps(listed))
    run = Run(folder, attempt=2, at=95).go(205)
    run.keeper.close(is_over=True)
    assert [path.read_text() for path in mine] == ["the user's"] * 3


def test_a_folder_that_may_not_be_looked_into_stops_nothing(folder, monkeypatch, caplog):
    Run(folder).go(95)

    def refuse(self, *_, **__):
        raise PermissionError(13, "Permission denied", str(self))

    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.exists", refuse)
        Run(folder, attempt=2, at=95)
    assert "cannot be read" in caplog.text


def test_a_checkpoint_may_be_a_folder(tmp_path):
    keeper = Keeper(AroundConfig(keep=2, every_n_steps=1), Health())
    keeper.open(tmp_path / "run", 0, 1, math.inf)
    for step in range(1, 6):
        place = keeper.wants(step)
        place.mkdir()
        (place / "model.safetensors").write_bytes(b"x" * 10)
        (place / "more").mkdir()
        keeper.wrote(place, 0.0)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["step=4", "step=5", LIST]
