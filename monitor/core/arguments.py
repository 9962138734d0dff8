"""A keyword argument that does not exist is named with the nearest that does."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from phasewatch.monitor.core.errors import did_you_mean

Init = TypeVar("Init", bound=Callable[..., None])


def named_arguments(init: Init) -> Init:
    """Make a constructor name its class, the argument it does not know, and the nearest.

    Args:
        init: An `__init__` without `**kwargs`; its signature stays visible.

    Example:
        >>> class Clock:
        ...     @named_arguments
        ...     def __init__(self, *, every_n_steps: int = 1) -> None: ...
        >>> Clock(every_n_step=5)
        Traceback (most recent call last):
        TypeError: Clock has no argument 'every_n_step' (did you mean 'every_n_steps'?)
    """
    known = [*inspect.signature(init).parameters][1:]

    @functools.wraps(init)
    def checked(self: Any, *values: Any, **named: Any) -> None:
        for name in named:
            if name not in known:
                hint = did_you_mean(name, known) or f"; it has: {', '.join(known)}"
                raise TypeError(f"{type(self).__name__} has no argument {name!r}{hint}")
        init(self, *values, **named)

    return checked  # type: ignore[return-value]
