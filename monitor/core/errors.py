"""Every error phasewatch raises on purpose.

    PhasewatchError
    ├── ConfigError          the configuration is wrong; raised before the first step
    │   ├── UnknownNameError   an observable, detector or schedule nobody registered
    │   └── UnreadableError    a checkpoint cannot be read, or not yet
    ├── MeasurementError     one measurement failed; counted, and training goes on
    │   └── RefusedError       this cannot be measured safely here; says why and the way out
    ├── StoreError           the run history cannot be read or written
    ├── CurveError           a file of curves cannot be read, or what it holds cannot be watched
    ├── GrafanaError         a Grafana cannot be reached, or refuses
    └── MissingPackageError  a package that phasewatch does without is not installed

A message says which quantity is wrong, the value received, what is allowed and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from phasewatch.monitor.core.redaction import redact


class PhasewatchError(Exception):
    """Base of all errors raised on purpose by phasewatch; no message of one holds a secret."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(redact(item) if isinstance(item, str) else item for item in args))

    def __reduce__(self) -> tuple[Any, ...]:
        # Those made of parts would be made again of their message: a worker's error must arrive.
        return _as_it_was, (type(self), self.args), self.__dict__ or None


def _as_it_was(kind: type[PhasewatchError], args: tuple[object, ...]) -> PhasewatchError:
    error = kind.__new__(kind)
    error.args = args
    return error


class ConfigError(PhasewatchError, ValueError):
    """The configuration is wrong. Raised before the first training step, never in the middle."""


class UnknownNameError(ConfigError):
    """A name that is in no registry.

    Args:
        what: What was looked up, for example "observable".
        name: The name received.
        known: The names that exist.
        hint: What to do to make the name known.
    """

    def __init__(self, what: str, name: object, known: Iterable[str], hint: str = "") -> None:
        names = sorted(known)
        super().__init__(
            f"unknown {what} {name!r}{did_you_mean(name, names)}; known: "
            f"{', '.join(names) or 'none'}" + (f". {hint}" if hint else "")
        )


class UnreadableError(ConfigError):
    """A checkpoint cannot be read: it is damaged, incomplete, gone, or says no step."""


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """What may have been meant, to be put after the name: " (did you mean 'llc'?)"; else empty.

    Args:
        name: What was given.
        known: What there is.
    """
    alike = get_close_matches(str(name), [*known], n=3)
    return f" (did you mean {' or '.join(map(repr, alike))}?)" if alike else ""


class MeasurementError(PhasewatchError, RuntimeError):
    """One measurement failed. The monitor counts it, says so once, and training goes on."""


class RefusedError(MeasurementError):
    """Measuring this would be wrong or unsafe. The message says why and what to do instead."""


class StoreError(PhasewatchError, RuntimeError):
    """The run history cannot be opened, read or written."""


class CurveError(PhasewatchError, ValueError):
    """A file of curves cannot be read. The message says which file, column and value."""


class GrafanaError(PhasewatchError, RuntimeError):
    """A Grafana cannot be reached or refuses. The message says what was asked and what to do."""


class MissingPackageError(PhasewatchError, ImportError):
    """A package that phasewatch does without is needed for what was asked.

    Args:
        package: Its name.
        what: What needs it.
    """

    def __init__(self, package: str, what: str) -> None:
        super().__init__(
            f"{what} needs the package {package}, which is not installed; install it with "
            f"`pip install {package}`"
        )
