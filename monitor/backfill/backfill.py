"""Measures saved checkpoints into the history of a run, and detects over it.

Checkpoints that the store has are left out, so that a backfill that was stopped goes on where it
was, and one that is complete does nothing. Whoever measures, one process writes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

from phasewatch.monitor.backfill.checkpoints import Checkpoint
from phasewatch.monitor.backfill.measuring import Plan, prepared
from phasewatch.monitor.backfill.workers import workers_for
from phasewatch.monitor.backfill.writing import Writing, known_run
from phasewatch.monitor.core.ending import RunState, ended_by, reason_for
from phasewatch.monitor.core.errors import UnreadableError
from phasewatch.monitor.core.transitions import Transition
from phasewatch.monitor.store.store import Store

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
        unread: Checkpoints that could not be read in the end, and why.
        retries: How often reading one was tried again.
    """

    run_id: str = ""
    measured: int = 0
    known: int = 0
    transitions: list[Transition] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    unread: dict[str, str] = field(default_factory=dict)
    retries: int = 0


def backfill(
    store: Store,
    run_name: str,
    plan: Plan,
    checkpoints: Sequence[Checkpoint],
    *,
    jobs: int = 1,
    executor: Executor | None = None,
    block: int | None = None,
    progress: Progress | None = None,
) -> Backfilled:
    """Measure what the store lacks of these checkpoints.

    Args:
        store: Where the history is.
        run_name: Name of the run; made, if the store has none of that name.
        plan: What is measured; its configuration as the user gave it.
        checkpoints: By step.
        jobs: Processes that measure; 1 measures in this one.
        executor: What runs blocks of checkpoints as tasks, in place of `jobs`; it is left open.
        block: Neighbouring checkpoints through which chains go on; None gives one block to each
            process, and eight checkpoints to a task of an executor.
        progress: Called after each checkpoint.

    Raises:
        ConfigError: The run is still running, or the factory, a checkpoint or an observable cannot
            be used.
        MeasurementError: A process that measured is gone.
        StoreError: The store cannot be read or written.
    """
    plan = prepared(plan)
    workers = workers_for(plan, jobs=jobs, executor=executor, block=block)
    writing = Writing(store, run_name, plan, known_run(store, run_name))
    left = writing.lacking(checkpoints)
    done = Backfilled(known=len(checkpoints) - len(left), run_id=writing.run_id)
    if not left:
        if writing.run_id:
            done.transitions = store.transitions(writing.run_id)
        return done
    writing.refuse_gaps(bool(done.known), workers.is_one_row(len(left)))
    done.run_id = writing.begin()
    try:
        with workers:
            for measured in workers.measured(left):
                if measured.unread:
                    raise UnreadableError(measured.unread)
                writing.add(measured)
                done.measured += 1
                done.reasons.update(f"{name}: {why}" for name, why in measured.reasons.items())
                if progress is not None:
                    progress(done.measured, len(left))
        done.transitions = writing.detect()
    except BaseException as error:
        writing.end(ended_by(error), reason_for(error))
        raise
    writing.end(RunState.FINISHED)
    return done
