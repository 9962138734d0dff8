"""Where a run stands, and how it ended, by the exception that ended it."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class RunState(StrEnum):
    """Where a run stands.

    FINISHED: it came to its end. STOPPED: it was ended early on purpose, by early stopping, a
    pruner or the user's own control flow. INTERRUPTED: by Ctrl-C, a signal or preemption; also
    what a reader calls a run whose process is gone. FAILED: training raised an error.
    """

    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


STOPS = frozenset(
    {
        *("TrialPruned", "TrialStopped", "StopTrial", "PruneTrial"),
        *(
            "StopTraining",
            "EarlyStop",
            "EarlyStopping",
            "EarlyStopException",
            "EarlyStoppingException",
        ),
        "StopIteration",
    }
)
"""Names of exceptions by which people and tools end training on purpose."""

INTERRUPTION_WORDS = ("SIGTERM", "Preempt", "Interrupt")
"""Parts of names of exceptions by which a system ends it."""

FIRST_SIGNAL = 128
"""A process ended by signal n exits with this and n, by the shells' custom."""


def ended_by(error: BaseException, stops: Iterable[str] = ()) -> RunState:
    """The state of a run that an exception has ended.

    Args:
        error: The exception.
        stops: Further names of exceptions that end training on purpose.

    Example:
        >>> str(ended_by(KeyboardInterrupt())), str(ended_by(ValueError()))
        ('interrupted', 'failed')
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    names |= {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    if not names.isdisjoint({*STOPS, *stops}):
        return RunState.STOPPED
    if isinstance(error, KeyboardInterrupt) or any(
        word in type(error).__name__ for word in INTERRUPTION_WORDS
    ):
        return RunState.INTERRUPTED
    if isinstance(error, SystemExit):
        if error.code in (None, 0):
            return RunState.STOPPED
        by_signal = isinstance(error.code, int) and error.code > FIRST_SIGNAL
        return RunState.INTERRUPTED if by_signal else RunState.FAILED
    if isinstance(error, GeneratorExit):  # the loop was a generator, and nobody asked for more
        return RunState.STOPPED
    return RunState.FAILED


def reason_for(error: BaseException) -> str:
    """What ended a run, in a line."""
    return f"{type(error).__name__}: {error}".removesuffix(": ")
