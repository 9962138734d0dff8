"""Measures checkpoints as they come into a folder that a live run elsewhere writes to."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from pathlib import Path

from phasewatch.monitor.backfill.backfill import Backfilled, Progress
from phasewatch.monitor.backfill.checkpoints import (
    Checkpoint,
    Mark,
    mark_of,
    matching,
    step_of,
    weights_of,
)
from phasewatch.monitor.backfill.measuring import Measured, Plan, prepared
from phasewatch.monitor.backfill.workers import Workers, workers_for
from phasewatch.monitor.backfill.writing import Writing, known_run
from phasewatch.monitor.core.ending import RunState, ended_by, reason_for
from phasewatch.monitor.core.errors import ConfigError, UnreadableError
from phasewatch.monitor.core.transitions import Transition
from phasewatch.monitor.sampling.factory import check_readable
from phasewatch.monitor.store.store import Store

log = logging.getLogger("phasewatch")

EVERY_SECONDS = 5.0
"""How often a folder is looked at, where nothing is said."""

Tell = Callable[[Transition], None]
"""Called with a transition that is new, or of another status or kind than it was."""

Marks = dict[Path, tuple[tuple[str, Mark], ...]]
"""What each file, or every file of a folder, was at a look."""


class Arrivals:
    """Checkpoints that are complete: they were the same at two looks, and can be read.

    Args:
        patterns: As for `find_checkpoints`; what they name may come later.

    Attributes:
        unread: What cannot be read yet, and why; it is tried again at every look.
        retries: How often that was.
        is_settling: Whether a file was new or still changed at the last look.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = list(patterns)
        self._seen: Marks = {}
        self._done: Marks = {}
        self._taken: dict[int, Path] = {}
        self.unread: dict[Path, str] = {}
        self.retries = 0
        self.is_settling = False

    def look(self) -> list[Checkpoint]:
        """The checkpoints that are complete since the last look, by step; each once.

        Raises:
            ConfigError: A package is missing that would read them.
        """
        now = {path: marks for path in matching(self._patterns) if (marks := _marks_of(path))}
        before, self._seen = self._seen, now
        self.is_settling = any(before.get(path) != marks for path, marks in now.items())
        for path in [path for path in self.unread if path not in now]:
            log.warning("checkpoint %s is gone; it was not measured: %s", path, self.unread[path])
            del self.unread[path]
        found: dict[int, Checkpoint] = {}
        for path, marks in now.items():
            if before.get(path) != marks or self._done.get(path) == marks:
                continue
            checkpoint = self._read(path)
            if checkpoint is None:
                continue
            self._done[path] = marks
            if checkpoint.step not in self._taken:
                self._taken[checkpoint.step] = path
                found[checkpoint.step] = checkpoint
        return sorted(found.values())

    def give_back(self, step: int, why: str) -> None:
        """Take a checkpoint again that could not be measured as it was found.

        Args:
            step: Its step.
            why: What was the matter.
        """
        path = self._taken.pop(step)
        self._done.pop(path, None)
        self._miss(path, why)

    def _read(self, path: Path) -> Checkpoint | None:
        try:
            weights = weights_of(path)
            mark = mark_of(weights)
            check_readable(weights)
            checkpoint = Checkpoint(step_of(path), weights, mark)
        except UnreadableError as error:
            self._miss(path, str(error))
            return None
        self.unread.pop(path, None)
        return checkpoint

    def _miss(self, path: Path, why: str) -> None:
        self.retries += 1
        if self.unread.get(path) != why:
            log.warning("%s; it is tried again at the next look", why)
        self.unread[path] = why


def _marks_of(path: Path) -> tuple[tuple[str, Mark], ...]:
    """What a file, or every file in a folder, is by now; empty if it is gone."""
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
    except OSError:
        return ()
    return tuple((file.name, mark) for file in files if (mark := mark_of(file)) is not None)


def follow(
    store: Store,
    run_name: str,
    plan: Plan,
    patterns: Iterable[str],
    *,
    every: float = EVERY_SECONDS,
    idle: float | None = None,
    jobs: int = 1,
    executor: Executor | None = None,
    block: int | None = None,
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> Backfilled:
    """Measure checkpoints as they come, until Ctrl-C or until none has come for a while.

    The whole is one attempt of the run. After each round of checkpoints detection runs over the
    history so far; at the end it looks back as well.

    Args:
        store: Where the history is.
        run_name: Name of the run; made, if the store has none of that name.
        plan: What is measured; its configuration as the user gave it.
        patterns: Checkpoints, as for `find_checkpoints`; there need be none yet.
        every: Seconds between two looks.
        idle: Seconds without a new checkpoint after which it ends; None goes on until Ctrl-C.
        jobs: Processes that measure; 1 measures in this one, and chains go on from one checkpoint
            to the next from the first to the last.
        executor: What runs blocks of checkpoints as tasks, in place of `jobs`.
        block: As for `backfill`, of the checkpoints of a round.
        progress: Called after each checkpoint with how many are done, and how many there are.
        tell: Called with each transition that is new, or changes.

    Returns:
        What was done. The state of the run is `stopped` after Ctrl-C, else `finished`.

    Raises:
        ConfigError: As for `backfill`.
        MeasurementError: A process that measured is gone.
        StoreError: The store cannot be read or written.
    """
    for name, seconds in (("every", every), ("idle", idle)):
        if seconds is not None and not seconds > 0:
            raise ConfigError(f"{name} is {seconds}; give a number of seconds above 0")
    plan = prepared(plan)
    workers = workers_for(plan, jobs=jobs, executor=executor, block=block)
    run = known_run(store, run_name)
    writing = Writing(store, run_name, plan, run)
    writing.refuse_gaps(run is not None, workers.is_one_row(sys.maxsize))
    done = Backfilled(run_id=writing.begin())
    rounds = _Rounds(writing, Arrivals(patterns), done, progress, tell)
    rounds.told = {t.id: t for t in store.transitions(done.run_id)}
    state, reason = RunState.FINISHED, ""
    try:
        try:
            with workers:
                rounds.go_on(workers, every, idle)
        except KeyboardInterrupt:
            state, reason = RunState.STOPPED, "Ctrl-C"
        rounds.detect(is_over=True)
    except BaseException as error:
        writing.end(ended_by(error), reason_for(error))
        raise
    writing.end(state, reason)
    return done


class _Rounds:
    """Look, measure, detect, wait; and so on."""

    def __init__(
        self,
        writing: Writing,
        arrivals: Arrivals,
        done: Backfilled,
        progress: Progress | None,
        tell: Tell | None,
    ) -> None:
        self._writing = writing
        self._arrivals = arrivals
        self._done = done
        self._progress = progress
        self._tell = tell
        self._last_step = -1
        self.told: dict[str, Transition] = {}

    def go_on(self, workers: Workers, every: float, idle: float | None) -> None:
        new_at = time.monotonic()
        while True:
            came = self._arrivals.look()
            left = self._writing.lacking(came)
            self._done.known += len(came) - len(left)
            before = self._done.measured
            if left:
                self._measure(workers, left)
                self.detect(is_over=False)
            self._keep_count()
            # One that is tried again and again is nothing new.
            if self._done.measured > before or self._arrivals.is_settling:
                new_at = time.monotonic()
            elif idle is not None and time.monotonic() - new_at >= idle:
                return
            time.sleep(every)

    def _measure(self, workers: Workers, checkpoints: list[Checkpoint]) -> None:
        if remembering := self._writing.remembering:
            late = [c.step for c in checkpoints if c.step < self._last_step]
            checkpoints = [c for c in checkpoints if c.step > self._last_step]
            why = f"it came late, and observable {remembering[0]!r} compares it with those before"
            for step in late:
                log.warning("checkpoint of step %d is left out: %s", step, why)
            self._done.reasons.update([why] * len(late))
        total = self._done.measured + len(checkpoints)
        for measured in workers.measured(checkpoints):
            if measured.unread:
                self._arrivals.give_back(measured.step, measured.unread)
                total -= 1
            else:
                self._add(measured)
            if self._progress is not None:
                self._progress(self._done.measured, total)

    def _add(self, measured: Measured) -> None:
        self._writing.add(measured)
        self._last_step = max(self._last_step, measured.step)
        self._done.measured += 1
        self._done.reasons.update(f"{name}: {why}" for name, why in measured.reasons.items())

    def _keep_count(self) -> None:
        self._done.retries = self._arrivals.retries
        self._done.unread = {str(path): why for path, why in self._arrivals.unread.items()}

    def detect(self, *, is_over: bool) -> None:
        self._keep_count()
        self._done.transitions = self._writing.detect(is_over=is_over)
        for transition in self._done.transitions:
            before = self.told.get(transition.id)
            is_news = before is None or (before.status, before.kind) != (
                transition.status, transition.kind,
            )  # fmt: skip
            if is_news and self._tell is not None:
                self._tell(transition)
            self.told[transition.id] = transition
