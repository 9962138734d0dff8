"""Who measures: this process, processes that each keep a block, or tasks of any executor.

The numbers are the same for the same blocks: chains go on from one checkpoint of a block to the
next, and begin anew at the first of another.
"""

from __future__ import annotations

import multiprocessing
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextlib import ExitStack
from types import TracebackType
from typing import Protocol, Self, TypeVar

from phasewatch.monitor.backfill.checkpoints import Checkpoint
from phasewatch.monitor.backfill.measuring import Block, Measured, Plan, measure, measure_block
from phasewatch.monitor.core.errors import ConfigError, MeasurementError

TASK_SIZE = 8
"""Checkpoints of a task, where nothing is said: chains begin anew once in so many, and a task that
is lost loses no more."""

LOOK_SECONDS = 0.1
"""How often tasks are asked whether they are done; not all that run tasks can be waited for."""

Blocks = list[Sequence[Checkpoint]]

_T = TypeVar("_T")


class Workers(Protocol):
    """What measures checkpoints; to be entered before, and left after."""

    def __enter__(self) -> Self:
        """Begin."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go of what was started."""
        ...

    def is_one_row(self, num_checkpoints: int) -> bool:
        """Whether so many are measured one after another, in one block."""
        ...

    def measured(self, checkpoints: Sequence[Checkpoint]) -> Iterator[Measured]:
        """What each checkpoint gave, as it comes; each block by ascending steps."""
        ...


def workers_for(
    plan: Plan, *, jobs: int = 1, executor: Executor | None = None, block: int | None = None
) -> Workers:
    """Those who measure.

    Args:
        plan: What is measured.
        jobs: Processes that measure; 1 measures in this one.
        executor: What runs blocks as tasks, in place of `jobs`.
        block: Checkpoints of a block; None gives one to each process, and an executor
            `TASK_SIZE`.

    Raises:
        ConfigError: A number is below 1, or both `jobs` and `executor` were given.
    """
    for name, number in (("jobs", jobs), ("block", block)):
        if number is not None and number < 1:
            raise ConfigError(f"{name} is {number}; give a number of at least 1")
    if executor is None:
        return Here(plan, block) if jobs == 1 else Processes(plan, jobs, block)
    if jobs != 1:
        raise ConfigError(
            f"jobs is {jobs} beside an executor, which has its own number of workers; give one of "
            "the two"
        )
    return Tasks(plan, executor, TASK_SIZE if block is None else block)


def blocks_of(checkpoints: Sequence[Checkpoint], size: int) -> Blocks:
    """Neighbouring checkpoints, so many together."""
    return [checkpoints[i : i + size] for i in range(0, len(checkpoints), size)]


class Here:
    """Measures in this process; the block goes on from one call to the next.

    Args:
        plan: What is measured.
        size: Checkpoints of a block; None makes one of all.
    """

    def __init__(self, plan: Plan, size: int | None = None) -> None:
        self._plan = plan
        self._size = size
        self._block: Block | None = None
        self._count = 0
        self._step = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._block = None

    def is_one_row(self, num_checkpoints: int) -> bool:
        """Whether so many are measured one after another, in one block."""
        return self._size is None or num_checkpoints <= self._size

    def measured(self, checkpoints: Sequence[Checkpoint]) -> Iterator[Measured]:
        """What each checkpoint gave, as it comes."""
        for checkpoint in checkpoints:
            # One that comes late, and belongs before others, begins anew: chains do not go back.
            if self._block is None or self._count == self._size or checkpoint.step < self._step:
                self._block, self._count = Block(self._plan), 0
            self._count += 1
            self._step = checkpoint.step
            yield self._block.measure(checkpoint)


class Processes:
    """Processes that each measure a block, checkpoint after checkpoint, and then the next block.

    Args:
        plan: What is measured.
        jobs: How many.
        size: Checkpoints of a block; None makes a block for each process.
    """

    def __init__(self, plan: Plan, jobs: int, size: int | None = None) -> None:
        self._plan = plan
        self._jobs = jobs
        self._size = size
        self._stack = ExitStack()
        self._pools: list[ProcessPoolExecutor] = []
        self._num_blocks = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def is_one_row(self, num_checkpoints: int) -> bool:
        """Whether so many are measured one after another, in one block."""
        return num_checkpoints <= 1

    def measured(self, checkpoints: Sequence[Checkpoint]) -> Iterator[Measured]:
        """What each checkpoint gave, as it comes; a failure of one block ends all."""
        blocks = blocks_of(checkpoints, self._size or max(1, -(-len(checkpoints) // self._jobs)))
        self._start(min(self._jobs, len(blocks)))
        waiting = iter(blocks)
        own: list[tuple[int, deque[Checkpoint]]] = [(0, deque()) for _ in self._pools]
        running: dict[Future[Measured], int] = {}

        def go_on(worker: int) -> None:
            if not own[worker][1]:
                self._num_blocks += 1
                own[worker] = self._num_blocks, deque(next(waiting, ()))
            number, left = own[worker]
            if left:
                pool = self._pools[worker]
                running[pool.submit(measure, self._plan, number, left.popleft())] = worker

        for worker in range(len(self._pools)):
            go_on(worker)
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                worker = running.pop(future)
                yield _result(future)
                go_on(worker)

    def _start(self, number: int) -> None:
        context = multiprocessing.get_context("spawn")
        while len(self._pools) < number:
            # One process each, so that the chains of its block stay where they are.
            self._pools.append(
                self._stack.enter_context(ProcessPoolExecutor(1, mp_context=context))
            )


class Tasks:
    """Blocks as tasks of an executor that is the caller's: any worker may take any of them.

    Args:
        plan: What is measured.
        executor: What runs them; it is left open.
        size: Checkpoints of a task.
    """

    def __init__(self, plan: Plan, executor: Executor, size: int) -> None:
        self._plan = plan
        self._executor = executor
        self._size = size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def is_one_row(self, num_checkpoints: int) -> bool:
        """Whether so many are measured one after another, in one block."""
        return num_checkpoints <= self._size

    def measured(self, checkpoints: Sequence[Checkpoint]) -> Iterator[Measured]:
        """What each checkpoint gave, block by block as they come; a failure of one ends all."""
        running = [
            self._executor.submit(measure_block, self._plan, block)
            for block in blocks_of(checkpoints, self._size)
        ]
        try:
            while running:
                done = [future for future in running if future.done()]
                for future in done:
                    running.remove(future)
                    yield from _result(future)
                if not done:
                    time.sleep(LOOK_SECONDS)
        finally:
            for future in running:
                future.cancel()


def _result(future: Future[_T]) -> _T:
    try:
        return future.result()
    except BrokenExecutor as error:
        raise MeasurementError(
            "a process that measured is gone before its work was done, as when it is killed or "
            "memory runs out; what was measured is kept. Start it again to go on, with fewer at "
            "once"
        ) from error
