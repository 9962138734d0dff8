"""Measures saved checkpoints into the history of a run, and detects over it.

Checkpoints that the store has are left out, so that a backfill that was stopped goes on where it
was, and one that is complete does nothing. Each worker takes a block of neighbouring checkpoints;
one process writes.
"""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from phasewatch.monitor.backfill.checkpoints import Checkpoint
from phasewatch.monitor.backfill.measuring import (
    Block,
    Measured,
    Plan,
    asked_for,
    measurable,
    measure,
)
from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.core.ending import RunState, ended_by, reason_for
from phasewatch.monitor.core.errors import ConfigError, StoreError
from phasewatch.monitor.core.transitions import Transition, TransitionStatus
from phasewatch.monitor.replay.recorded import Verdict, compare, replay
from phasewatch.monitor.store.store import RunInfo, Store

log = logging.getLogger("phasewatch")

MARK = "backfilled"
"""Entry in the configuration of a run that was made by a backfill alone."""

Progress = Callable[[int, int], None]
"""Called with the number of checkpoints done and of all."""


@dataclass(slots=True)
class Backfilled:
    """What a backfill did.

    Attributes:
        run_id: Identity of the run.
        measured: Checkpoints measured now.
        known: Checkpoints that the store had.
        transitions: Of the whole run.
        reasons: Why an observable was not measured, and at how many checkpoints.
    """

    run_id: str = ""
    measured: int = 0
    known: int = 0
    transitions: list[Transition] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)


def backfill(
    store: Store,
    run_name: str,
    plan: Plan,
    checkpoints: Sequence[Checkpoint],
    *,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Backfilled:
    """Measure what the store lacks of these checkpoints.

    Args:
        store: Where the history is.
        run_name: Name of the run; made, if the store has none of that name.
        plan: What is measured; its configuration as the user gave it.
        checkpoints: By step.
        jobs: Processes that measure; 1 measures in this one.
        progress: Called after each checkpoint.

    Raises:
        ConfigError: The run is still running, or the factory, a checkpoint or an observable cannot
            be used.
        StoreError: The store cannot be read or written.
    """
    if jobs < 1:
        raise ConfigError(f"jobs is {jobs}; give a number of at least 1")
    config = measurable(MonitorConfig.load(plan.config))
    plan = replace(plan, config=config.model_dump(mode="json", exclude_unset=True))
    run = _known_run(store, run_name)
    left = _left(store, run, checkpoints, config)
    done = Backfilled(known=len(checkpoints) - len(left), run_id=run.id if run else "")
    if not left:
        if run is not None:
            done.transitions = store.transitions(run.id)
        return done
    _refuse_gaps(config, done.known, jobs)
    kept = config.model_dump(mode="json")
    if run is None:
        done.run_id, attempt = store.begin_run(name=run_name, config={**kept, MARK: True})
    else:
        done.run_id, attempt = store.begin_run(
            name=run.name, run_id=run.id, attempt=run.attempt + 1, config=run.config
        )
    try:
        for measured in _measured(plan, left, jobs):
            for observation in measured.observations:
                timed = replace(observation, timestamp=observation.timestamp or time.time())
                store.add_observation(done.run_id, attempt, timed)
            store.flush()
            done.measured += 1
            done.reasons.update(f"{name}: {why}" for name, why in measured.reasons.items())
            if progress is not None:
                progress(done.measured, len(left))
        done.transitions = _detected(store, done.run_id, attempt)
    except BaseException as error:
        store.end_run(done.run_id, attempt, ended_by(error), reason_for(error))
        raise
    store.end_run(done.run_id, attempt, RunState.FINISHED)
    return done


def _known_run(store: Store, name: str) -> RunInfo | None:
    try:
        run = store.run(name)
    except StoreError:
        return None
    if run.state is RunState.RUNNING:
        raise ConfigError(
            f"run {run.name!r} is being written by process {run.pid} on {run.host}; wait until it "
            "has ended, or give --run another name"
        )
    return run


def _left(
    store: Store, run: RunInfo | None, checkpoints: Sequence[Checkpoint], config: MonitorConfig
) -> list[Checkpoint]:
    """The checkpoints at which something that is asked for was not observed."""
    if run is None:
        return list(checkpoints)
    streams = store.names(run.id)
    observed: list[set[int]] = []
    for asked in asked_for(config):
        own = [store.history(run.id, s)[0] for s in streams if asked.owns(s)]
        observed.append({int(step) for steps in own for step in steps})
    known = set.intersection(*observed) if observed else set()
    return [checkpoint for checkpoint in checkpoints if checkpoint.step not in known]


def _refuse_gaps(config: MonitorConfig, known: int, jobs: int) -> None:
    """Refuse observables that remember, where they would not see the checkpoints in one row."""
    for asked in asked_for(config):
        if asked.remembers and (known or jobs > 1):
            raise ConfigError(
                f"observable {asked.name!r} compares a checkpoint with those before it; measure it "
                "with --jobs 1, into a run that has nothing of these checkpoints yet"
            )


def _measured(plan: Plan, checkpoints: Sequence[Checkpoint], jobs: int) -> Iterator[Measured]:
    """What each checkpoint gave, as it comes; each block by ascending steps."""
    jobs = min(jobs, len(checkpoints))
    if jobs == 1:
        block = Block(plan)
        yield from map(block.measure, checkpoints)
        return
    size = -(-len(checkpoints) // jobs)
    blocks = [list(checkpoints[i : i + size]) for i in range(0, len(checkpoints), size)]
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        # One process a block, so that its chains stay where they are.
        workers = [stack.enter_context(ProcessPoolExecutor(1, mp_context=context)) for _ in blocks]
        yield from _results(plan, blocks, workers)


def _results(
    plan: Plan, blocks: Sequence[Sequence[Checkpoint]], workers: Sequence[Executor]
) -> Iterator[Measured]:
    """Results as they come; one task a block at a time, which a failure of another ends."""
    waiting = [iter(block) for block in blocks]
    running: dict[Future[Measured], int] = {}

    def go_on(number: int) -> None:
        checkpoint = next(waiting[number], None)
        if checkpoint is not None:
            running[workers[number].submit(measure, plan, number, checkpoint)] = number

    for number in range(len(blocks)):
        go_on(number)
    while running:
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            number = running.pop(future)
            yield future.result()
            go_on(number)


def _detected(store: Store, run_id: str, attempt: int) -> list[Transition]:
    """Detect over the whole run in step order, and keep what was found.

    What a live run has said itself stays as it said it; of a run that only backfills have written,
    what no longer shows is withdrawn.
    """
    run = store.run(run_id)
    before = store.transitions(run_id)
    found = list(replay(store, run).transitions)
    is_own = bool((run.config or {}).get(MARK))
    for pair in compare(before, found):
        if pair.verdict is Verdict.SAME:
            continue
        if pair.found is not None and (is_own or pair.verdict is Verdict.NEW):
            store.add_transition(pair.found, attempt=attempt)
        elif pair.stored is not None and is_own and pair.found is None:
            withdrawn = replace(pair.stored, status=TransitionStatus.WITHDRAWN)
            store.add_transition(withdrawn, attempt=attempt)
    store.flush()
    return store.transitions(run_id)
