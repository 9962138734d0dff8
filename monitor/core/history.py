"""The values of one stream, each with its error and its status."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phasewatch.monitor.core.errors import MissingPackageError
from phasewatch.monitor.core.estimates import EstimateStatus

Steps = NDArray[np.int64]
Floats = NDArray[np.float64]

STATUSES = tuple(EstimateStatus)
"""What a code of `History.codes` stands for: its place here."""

_CODES = {status.value: code for code, status in enumerate(STATUSES)}


class History(tuple[Steps, Floats, Floats]):
    """Everything observed of one stream: steps, values and standard errors, each of shape (n,).

    It unpacks to those three. A value whose status is not OK is NaN in them, and so is its error,
    unless they were asked for with `include_unconverged=True`; its step stays. `statuses` says of
    every value how far it may be trusted.

    Args:
        name: Name of the stream.
        unit: Unit of the values.
        steps: Optimizer steps, increasing.
        values: As they were observed.
        stderrs: Standard errors; NaN where a value is exact.
        codes: Status of each value, as its place in `STATUSES`.
        include_unconverged: Show also the values whose status is not OK.

    Example:
        >>> history = History("llc", "1", [10, 20], [3.0, 903.0], [0.1, 32.0], codes=[0, 1])
        >>> steps, values, stderrs = history
        >>> values.tolist(), history.statuses.tolist()
        ([3.0, nan], ['ok', 'unconverged'])
    """

    name: str
    unit: str
    codes: NDArray[np.uint8]

    def __new__(
        cls,
        name: str,
        unit: str,
        steps: Any,
        values: Any,
        stderrs: Any,
        *,
        codes: Any,
        include_unconverged: bool = False,
    ) -> History:
        """Mask what is not OK, unless it is wanted."""
        found = np.asarray(codes, dtype=np.uint8)
        columns = [np.asarray(column, dtype=np.float64) for column in (values, stderrs)]
        if not include_unconverged and found.any():
            columns = [np.where(found == 0, column, np.nan) for column in columns]
        self = super().__new__(cls, (np.asarray(steps, dtype=np.int64), columns[0], columns[1]))
        self.name, self.unit, self.codes = name, unit, found
        return self

    @classmethod
    def empty(cls, name: str) -> History:
        """The history of what was never observed."""
        return cls(name, "1", [], [], [], codes=[])

    @property
    def steps(self) -> Steps:
        """Optimizer steps, increasing."""
        return self[0]

    @property
    def values(self) -> Floats:
        """The values."""
        return self[1]

    @property
    def stderrs(self) -> Floats:
        """Standard errors; NaN where a value is exact."""
        return self[2]

    @property
    def statuses(self) -> NDArray[np.str_]:
        """Of every value its status: "ok", "unconverged", "diverged" or "negative"."""
        return np.array([status.value for status in STATUSES])[self.codes]

    @property
    def ok(self) -> NDArray[np.bool_]:
        """Which values passed every check."""
        passed: NDArray[np.bool_] = self.codes == 0
        return passed

    def __getnewargs_ex__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """For copying and for other processes: what is masked stays so."""
        return (self.name, self.unit, *self), {"codes": self.codes, "include_unconverged": True}

    def __repr__(self) -> str:
        counts = np.bincount(self.codes, minlength=len(STATUSES))
        said = ", ".join(f"{n:,} {s}" for n, s in zip(counts, STATUSES, strict=True) if n)
        span = f", steps {self.steps[0]:,} to {self.steps[-1]:,}" if self.steps.size else ""
        return f"<History of {self.name!r} [{self.unit}]: {said or 'no values'}{span}>"

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame` with the columns step, value, stderr and status.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        frame = needed("pandas", "history(...).to_pandas()").DataFrame(self._columns())
        frame.attrs |= {"name": self.name, "unit": self.unit}
        return frame

    def to_arrow(self) -> Any:
        """A `pyarrow.Table` with the columns step, value, stderr and status.

        Raises:
            MissingPackageError: pyarrow is not installed.
        """
        table = needed("pyarrow", "history(...).to_arrow()").table(self._columns())
        return table.replace_schema_metadata({"name": self.name, "unit": self.unit})

    def _columns(self) -> dict[str, Any]:
        return {
            "step": self.steps,
            "value": self.values,
            "stderr": self.stderrs,
            "status": self.statuses,
        }


def codes_of(statuses: Sequence[str]) -> NDArray[np.uint8]:
    """The codes of statuses as the store spells them."""
    return np.fromiter(map(_CODES.__getitem__, statuses), dtype=np.uint8, count=len(statuses))


def needed(package: str, what: str) -> ModuleType:
    """A package that phasewatch does without, for what cannot.

    Args:
        package: Its name.
        what: What needs it.

    Raises:
        MissingPackageError: It is not installed.
    """
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingPackageError(package, what) from error
