"""What may end training, and what may not.

A user's Ctrl-C and the signals of the system must get through whatever is being measured. All else
that is raised in a measurement, a detector or a sink is that part's own failure: also a
`SystemExit`, which a careless library raises.
"""

from __future__ import annotations

import signal
from types import TracebackType


def let_through(error: BaseException) -> None:
    """Raise what ends training again; return for what is a failure like any other.

    Args:
        error: What was caught as a `BaseException`.
    """
    if isinstance(error, KeyboardInterrupt) or _comes_from_a_signal(error.__traceback__):
        raise error


def _comes_from_a_signal(trace: TracebackType | None) -> bool:
    """Whether a signal's handler raised it."""
    if trace is None:
        return False
    handlers = set()
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        code = getattr(getattr(handler, "__func__", handler), "__code__", None)
        if code is None and callable(handler):
            code = getattr(vars(type(handler)).get("__call__"), "__code__", None)
        if code is not None:
            handlers.add(code)
    while trace is not None:
        if trace.tb_frame.f_code in handlers:
            return True
        trace = trace.tb_next
    return False
