"""Checkpoints from before and after a suspicion: the last few are always there, some are kept.

Nobody knows beforehand when a transition begins. So a checkpoint is written every now and then, as
often as a part of the budget pays for; the last k lie on disk. When something is suspected these
are kept, and the k that follow: the moment can be studied afterwards. They are written by the
trainer's own means, and only what a list in the folder says that we have written is deleted.
"""

from __future__ import annotations

import logging
import math
import re
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from phasewatch.monitor.config.measuring import AroundConfig
from phasewatch.monitor.core.health import Health
from phasewatch.monitor.core.transitions import Transition, TransitionStatus

log = logging.getLogger("phasewatch")

TURNS = 100
"""Checkpoints that a run writes at most, unless something is suspected."""

SHARE = 0.25
"""Of the budget, what checkpoints may take."""

ROOM = 3
"""A checkpoint is written where the disk has room for so many of its size."""

MAX_BACKOFF = 6
"""After n failures in a row, 2^n − 1 turns are left out, n up to this."""

NAME = "checkpoint"
"""What failures are counted as, among those of observables."""

REFUSED = "checkpoints"
"""What a transition without checkpoints is counted as, among what was left out."""

LIST = "written.json"
"""The list of what we have written, in the folder of the run."""


@dataclass(slots=True)
class Written:
    """One checkpoint.

    Attributes:
        step: Optimizer steps completed.
        name: Its file or folder.
        attempt: The attempt of the run that wrote it.
        num_bytes: Its size; 0 while it is being written.
        of: Transitions that it is kept for.
    """

    step: int
    name: str
    attempt: int
    num_bytes: int = 0
    of: list[str] = field(default_factory=list)


_WRITTEN = TypeAdapter(list[Written])
_OURS = re.compile(r"step=\d+(-attempt=\d+)?(\.\w+)?")
"""What a name of ours looks like: no list, whoever has written it, makes us delete others."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The steps at which a checkpoint may be written: all processes know them without asking.

    Attributes:
        every: Steps between two, where the user said so.
        length: Length of the run in steps; inf where it is not known.
    """

    every: int | None
    length: float

    def after(self, step: int) -> int:
        """The first of them after `step`."""
        every = self.every or max(1, math.ceil(self._length(step) / TURNS))
        return (step // every + 1) * every

    def _length(self, step: int) -> float:
        if math.isfinite(self.length):
            return self.length
        length = TURNS
        while length <= step:
            length *= 2
        return length


class Keeper:
    """Says when a checkpoint is to be written and which are kept; deletes the others.

    Args:
        config: How many, how often, of how many transitions.
        health: Where what was written, and what failed, is counted.
        budget: Share of wall time that monitoring may take; 1 is no budget.
        suffix: How the names of files end; empty where a checkpoint is a folder.
        clock: Monotonic seconds.

    Attributes:
        suffix: As given.
        grid: The steps at which one may be written.
        changed: Transitions whose checkpoints have changed, since that was last asked.
    """

    def __init__(
        self,
        config: AroundConfig,
        health: Health,
        *,
        budget: float = 1.0,
        suffix: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._health = health
        self._budget = budget
        self.suffix = suffix
        self._clock = clock
        self._news: deque[Transition] = deque()
        self._folder: Path | None = None
        self._written: list[Written] = []
        self._of: set[str] = set()
        self._refused: set[str] = set()
        self._to_come: dict[str, int] = {}
        self._is_asked = False
        self._attempt = 1
        self._first_step = 0
        self._next_time = -math.inf
        self._next_step = 0
        self._failures = 0
        self._told: set[str] = set()
        self.grid = Grid(config.every_n_steps, math.inf)
        self.changed: set[str] = set()

    def open(self, folder: Path, step: int, attempt: int, length: float) -> None:
        """Begin, or go on, at `step`. What a later part of the run had written goes, unless kept.

        Args:
            folder: The run's own folder; it is made with the first checkpoint.
            step: Optimizer steps completed.
            attempt: Which attempt of the run this is.
            length: Step at which it should end; inf where that is not known.
        """
        self._folder, self._attempt, self._first_step = folder, attempt, step
        self.grid = Grid(self._config.every_n_steps, length)
        self._next_step = self.grid.after(step)
        self._written = self._listed()
        self._of = {one for w in self._written for one in w.of}
        self._drop([w for w in self._written if not w.num_bytes or (w.step > step and not w.of)])
        self._count()

    @property
    def in_words(self) -> str:
        """What is kept around a suspicion."""
        config = self._config
        often = "as the budget allows, 1 % of the run apart at least"
        if config.every_n_steps is not None:
            often = f"every {config.every_n_steps} steps"
        elif self._budget >= 1.0:
            often = "every 1 % of the run"
        return (
            f"the last {config.keep} checkpoints before it kept, and {config.keep} after it "
            f"(written {often}; of {config.max_transitions} transitions at most)"
        )

    def told(self, transition: Transition) -> None:
        """Hear of a transition that changed; from whatever thread."""
        self._news.append(transition)

    # ---- writing

    def due(self, step: int) -> bool:
        """Whether `step` is one at which a checkpoint may be written."""
        return self._folder is not None and step >= self._next_step

    def wants(self, step: int) -> Path | None:
        """Where to write a checkpoint now; None where there is none to write. Never raises."""
        if self._folder is None or step < self._next_step:
            return None
        self._next_step = self.grid.after(step)
        try:
            self._take_news()
            if not (self._is_asked or self._config.every_n_steps or self._is_paid()):
                return None
            return self._place(self._folder, step)
        except Exception as error:
            self._failed(step, error)
            self._drop([w for w in self._written if not w.num_bytes])
            return None

    def _is_paid(self) -> bool:
        return self._budget >= 1.0 or self._clock() >= self._next_time

    def _place(self, folder: Path, step: int) -> Path:
        """The path of a checkpoint, listed as ours before it is there."""
        again = "" if self._attempt == 1 else f"-attempt={self._attempt}"
        path = folder / f"step={step}{again}{self.suffix}"
        if path.exists() and all(w.name != path.name for w in self._written):
            raise FileExistsError(f"{path} is there, and not ours; move it away")
        folder.mkdir(parents=True, exist_ok=True)
        size = max((w.num_bytes for w in self._written), default=0)
        if (free := shutil.disk_usage(folder).free) < ROOM * size:
            raise OSError(f"the disk of {folder} has {_size(free)} left; one takes {_size(size)}")
        self._written = [w for w in self._written if w.name != path.name]
        self._written.append(Written(step, path.name, self._attempt))
        self._enter()
        return path

    def wrote(self, path: Path, seconds: float) -> None:
        """A checkpoint was written. Never raises.

        Args:
            path: As `wants` gave it.
            seconds: What it took.
        """
        entry = self._entry(path)
        if entry is None:
            return
        try:
            entry.num_bytes = _num_bytes(path)
            self._failures = 0
            self._health.checkpoints_written += 1
            self._next_time = self._clock() + seconds / (SHARE * self._budget)
            self._is_asked = False
            for one in list(self._to_come):
                self._keep_for(one, entry)
                self._to_come[one] -= 1
                if not self._to_come[one]:
                    del self._to_come[one]
            self._tell_size(entry)
            self._prune()
        except Exception as error:
            self._failed(entry.step, error)

    def failed(self, path: Path, error: BaseException) -> None:
        """A checkpoint could not be written: what there is of it goes. Never raises."""
        entry = self._entry(path)
        if entry is not None:
            self._failed(entry.step, error)
            self._drop([entry])

    def _entry(self, path: Path) -> Written | None:
        return next((w for w in self._written if w.name == path.name), None)

    def _failed(self, step: int, error: BaseException) -> None:
        self._health.measurement_failures[NAME] += 1
        self._failures = min(self._failures + 1, MAX_BACKOFF)
        for _ in range(2**self._failures - 1):
            self._next_step = self.grid.after(self._next_step)
        if "failure" not in self._told:
            self._told.add("failure")
            log.warning(
                "the checkpoint of step %d was not written: %s: %s; training goes on, further "
                "failures are counted in phasewatch_measurement_failures_total",
                step,
                type(error).__name__,
                error,
            )

    def _tell_size(self, entry: Written) -> None:
        if "size" in self._told:
            return
        self._told.add("size")
        keep, most = self._config.keep, self._config.max_transitions
        log.info(
            "checkpoints for what may be suspected: %s each in %s, the last %d of them, and up to "
            "%d of each of %d transitions: %s at most",
            _size(entry.num_bytes),
            self._folder,
            keep,
            2 * keep,
            most,
            _size(entry.num_bytes * (keep + 2 * keep * most)),
        )

    # ---- keeping

    def _take_news(self) -> None:
        has_changed = False
        while self._news:
            transition = self._news.popleft()
            if transition.status is TransitionStatus.WITHDRAWN:
                self._to_come.pop(transition.id, None)
                has_changed |= self._release(transition.id)
            elif transition.status is TransitionStatus.ENDED:
                continue  # what comes after its end belongs to it, too
            elif transition.id not in self._of or self._is_of_before(transition.id):
                has_changed |= self._suspect(transition.id)
        if has_changed:
            self._prune()

    def _is_of_before(self, transition: str) -> bool:
        """Whether an earlier attempt saw it, and this one has come to it again."""
        return transition not in self._to_come and not any(
            w.attempt == self._attempt for w in self._written if transition in w.of
        )

    def _suspect(self, transition: str) -> bool:
        if transition in self._refused:
            return False
        if len(self._of | {transition}) > self._config.max_transitions:
            self._refused.add(transition)
            self._health.skipped[REFUSED] += 1
            if REFUSED not in self._told:
                self._told.add(REFUSED)
                log.warning(
                    "checkpoints of %d transitions are kept: none of those to come; raise "
                    "around.max_transitions, or delete some; counted in phasewatch_skips_total",
                    self._config.max_transitions,
                )
            return False
        self._of.add(transition)
        self._is_asked = True
        self._to_come[transition] = self._config.keep
        for entry in self._last():
            self._keep_for(transition, entry)
        return True

    def _keep_for(self, transition: str, entry: Written) -> None:
        if transition not in entry.of:
            entry.of.append(transition)
        self.changed.add(transition)

    def _release(self, transition: str) -> bool:
        found = [w for w in self._written if transition in w.of]
        for entry in found:
            entry.of.remove(transition)
        self._of.discard(transition)
        if found:
            self.changed.add(transition)
        return bool(found)

    def _last(self) -> list[Written]:
        """The last k of this attempt, or of those that it goes on from."""
        own = [w for w in self._written if w.attempt == self._attempt or self._is_earlier(w)]
        return sorted(own, key=lambda w: w.step)[-self._config.keep :]

    def _is_earlier(self, entry: Written) -> bool:
        return entry.step <= self._first_step

    def _prune(self) -> None:
        last = self._last()
        self._drop([w for w in self._written if not w.of and w not in last])
        self._count()

    def paths_of(self, transition: str) -> tuple[str, ...]:
        """The checkpoints that are kept around a transition, by step."""
        found = sorted((w for w in self._written if transition in w.of), key=lambda w: w.step)
        folder = self._folder or Path()
        return tuple(str((folder / w.name).absolute()) for w in found if w.num_bytes)

    def close(self, *, is_over: bool) -> None:
        """The attempt has ended: of a run that is over, what nothing was suspected for goes.

        Args:
            is_over: Whether it reached its end; one that failed may go on from what it has.
        """
        if self._folder is None:
            return
        self._take_news()
        if is_over:
            self._drop([w for w in self._written if not w.of])
            if not self._written and self._folder.exists():
                with suppress(OSError):  # somebody else's file is in it
                    (self._folder / LIST).unlink(missing_ok=True)
                    self._folder.rmdir()
        self._count()
        if not self._health.checkpoints_written:
            log.warning("checkpoint_on is set, and no checkpoint was written in this attempt")

    def state_dict(self) -> dict[str, Any]:
        """Of what checkpoints are still to come; what is there, the list on disk says."""
        return {"to_come": dict(self._to_come)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._to_come = {str(one): int(number) for one, number in state["to_come"].items()}

    # ---- on disk

    def _listed(self) -> list[Written]:
        """What the list says, of which everything is there and lies in the folder itself."""
        folder = self._folder or Path()
        path = folder / LIST
        try:
            if not path.exists():
                return []
            listed = _WRITTEN.validate_json(path.read_bytes())
            return [w for w in listed if _OURS.fullmatch(w.name) and (folder / w.name).exists()]
        except (OSError, ValueError) as error:
            log.warning("%s cannot be read (%s): what it lists is left where it is", path, error)
            return []

    def _enter(self) -> None:
        """Write the list, whole or not at all."""
        path = (self._folder or Path()) / LIST
        if not path.parent.exists():
            return
        part = path.with_suffix(".part")
        part.write_bytes(_WRITTEN.dump_json(self._written))
        part.replace(path)

    def _drop(self, entries: Iterable[Written]) -> None:
        """Delete what we have written. Never raises."""
        for entry in entries:
            path = (self._folder or Path()) / entry.name
            try:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            except OSError as error:
                self._health.measurement_failures[NAME] += 1
                if "delete" not in self._told:
                    self._told.add("delete")
                    log.warning("checkpoint %s cannot be deleted: %s", path, error)
            self._written.remove(entry)
        try:
            self._enter()
        except OSError as error:
            self._health.measurement_failures[NAME] += 1
            if "list" not in self._told:
                self._told.add("list")
                log.warning("the list of checkpoints in %s: %s", self._folder, error)

    def _count(self) -> None:
        self._health.checkpoint_bytes = sum(w.num_bytes for w in self._written)


def _num_bytes(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


def _size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"
