"""Curves from files, as the values that a live run would have observed.

CSV (the `metrics.csv` of Lightning's CSVLogger among them), JSONL, and TensorBoard event files or
folders. Every numeric column is a stream. An empty cell is no point; "nan" and "inf" are points. A
column `<name>_stderr` holds the standard errors of `<name>`, which is then a measured stream. Files
are read once, row by row.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phasewatch.monitor.core.columns import CHUNK, Chunk, Column, unit_of
from phasewatch.monitor.core.errors import CurveError
from phasewatch.monitor.core.estimates import EstimateStatus, Observation
from phasewatch.monitor.readers.formats import Row, find_file, open_rows

STEP_NAMES = (
    "step", "global_step", "trainer/global_step", "_step", "iteration", "iter", "total_timesteps",
    "timesteps", "timestep", "num_timesteps", "batch", "update", "epoch", "episode",
)  # fmt: skip
"""Names of the step column, the best first; case, spaces and what precedes a "/" do not matter."""

ROW = "row"
"""In place of a step column: rows are counted, from 1."""

CLOCKS = frozenset({"time", "timestamp", "wall_time", "walltime", "runtime", "relative_time"})
"""Columns that tell the time are no streams."""

EMPTY = frozenset({"", "none", "null", "na", "n/a"})
"""Cells without a value."""

OTHER_STEPS = f"name another column with --step, or count rows with --step {ROW}"
STDERR = "_stderr"

EPISODES = frozenset({"r", "l", "t"})
"""Return, length and time of an episode, a row each: the monitor files of Stable-Baselines3."""
PEEKED = 100
"""Rows of JSONL that are looked at for the names of columns."""

MAX_RESTARTS, MIN_ATTEMPT = 20, 5
"""A log may be that of a run resumed so many times, with so many rows an attempt at least."""

MAX_NAMES = 12
"""Names that an error lists at most."""


@dataclass(slots=True)
class Curve:
    """What was read of one stream.

    Attributes:
        name: Name of the column.
        measured: Whether it has a column of standard errors.
        count: Values.
        last_step: Step of the latest.
        repeated: Values at the step of the value before, which detectors skip.
    """

    name: str
    measured: bool
    count: int = 0
    last_step: int = -1
    repeated: int = 0


class Curves:
    """The streams of a file.

    Args:
        path: CSV, JSONL or TensorBoard file; a folder that holds event files or a `metrics.csv`.
        step: Column of the steps; None finds it by its name, "row" counts rows.
        columns: Columns to watch; none watches all that are numeric.
        exclude: Columns to leave out.

    Attributes:
        path: The file that is read.
        step_name: Column of the steps, once the first row is read.
        streams: What was read so far, by name.
        num_stepless: Rows that were left out because they have no step.
        num_superseded: Rows that a later attempt of a resumed run has written again.

    Raises:
        CurveError: There is no such file, or it is of no known format.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        step: str | None = None,
        columns: Collection[str] = (),
        exclude: Collection[str] = (),
    ) -> None:
        self.path = find_file(Path(path))
        self.step_name = step or ""
        self.streams: dict[str, Curve] = {}
        self.num_stepless = self.num_superseded = 0
        self._columns, self._exclude = tuple(columns), tuple(exclude)
        self._ignored: set[str] = set()
        self._names: dict[str, None] = {}
        self._epoch_name: str | None = None
        self._standing_from: list[tuple[int, int]] = []

    def chunks(self) -> Iterator[Chunk]:
        """Everything in the file, in the order of steps.

        Raises:
            CurveError: The file cannot be read, has no steps or no numbers, its steps do not
                increase, or a cell of a numeric column is no number.
        """
        try:
            yield from self._chunks()
        except OSError as error:
            raise CurveError(f"{self.path} cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise CurveError(
                f"{self.path} is no text: {error.reason} at byte {error.start}; give a CSV or "
                "JSONL file in UTF-8, or a TensorBoard event file"
            ) from error
        self._check_streams()

    def _chunks(self) -> Iterator[Chunk]:
        names, rows = open_rows(self.path)
        peeked = list(itertools.islice(rows, PEEKED))
        self._names = dict.fromkeys(names or (name for row in peeked for name in row.cells))
        self._find_step(peeked)
        if names:
            self._check_names()
        columns: dict[str, Column] = {}
        size, last_step = 0, -1
        self._standing_from = self._restarts()
        for row in itertools.chain(peeked, rows):
            step = self._step_of(row, last_step)
            if step is None:
                self.num_stepless += 1
                continue
            if self._standing_from and self._is_superseded(row.line, step):
                self.num_superseded += 1
                continue
            if size >= CHUNK and step > last_step:
                yield columns
                columns, size = {}, 0
            last_step = step
            measured = self._take(row, step, columns)
            size += len(row.cells)
            if measured:
                if columns:
                    yield columns
                    columns, size = {}, 0
                yield from measured
        if columns:
            yield columns

    def _take(self, row: Row, step: int, columns: dict[str, Column]) -> list[Observation]:
        """Add a row's exact values to `columns`; returns the measured ones."""
        measured = []
        epoch = self._epoch_of(row)
        streams, line, timestamp = self.streams, row.line, row.timestamp
        for name, cell in row.cells.items():
            if name in self._ignored:
                continue
            curve = streams.get(name) or self._begin(name, cell)
            if curve is None or cell is None or cell == "":
                continue
            try:
                value = float(cell)
            except (TypeError, ValueError, OverflowError):
                if (number := self._number(line, name, cell)) is None:
                    continue
                value = number
            if step == curve.last_step:
                curve.repeated += 1
            curve.count += 1
            curve.last_step = step
            if curve.measured:
                stderr = self._number(line, name + STDERR, row.cells.get(name + STDERR))
                measured.append(_observation(name, step, epoch, timestamp, value, stderr))
                continue
            if (column := columns.get(name)) is None:
                column = columns[name] = Column()
            column.add(step, value, epoch, timestamp)
        return measured

    # ---- the log of a resumed run

    def _restarts(self) -> list[tuple[int, int]]:
        """Where the steps go back: line, and step from which on what is before it is void.

        A log that a resumed run was appended to goes back a few times; a file whose steps go back
        again and again is none, and its steps are then refused where they decrease.
        """
        if self.step_name == ROW or not self.path.is_file() or "tfevents" in self.path.name:
            return []
        restarts: list[tuple[int, int]] = []
        last, count = -math.inf, 0
        _, rows = open_rows(self.path)
        for row in rows:
            try:
                step = float(row.cells[self.step_name])
            except (KeyError, TypeError, ValueError):
                continue
            count += 1
            if step < last:
                restarts.append((row.line, int(step)))
                if len(restarts) > MAX_RESTARTS:
                    return []
            last = step
        return restarts if count >= MIN_ATTEMPT * (len(restarts) + 1) else []

    def _is_superseded(self, line: int, step: int) -> bool:
        return any(line < at and step >= first for at, first in self._standing_from)

    # ---- which columns

    def _find_step(self, peeked: Sequence[Row]) -> None:
        if self.step_name and self.step_name != ROW and self.step_name not in self._names:
            raise CurveError(
                f"{self.path} has no column {self.step_name!r} for the steps; its columns: "
                f"{_listed(self._names)}"
            )
        by_plain = {_plain(name): name for name in reversed(self._names)}
        if not self.step_name:
            found = [by_plain[plain] for plain in STEP_NAMES if plain in by_plain]
            if not found and not by_plain.keys() >= EPISODES:
                raise CurveError(
                    f"{self.path} has no column of steps ({', '.join(STEP_NAMES)}); its columns: "
                    f"{_listed(self._names)}; name one with --step, or count rows with --step {ROW}"
                )
            self.step_name = next((name for name in found if _counts(peeked, name)), ROW)
        self._epoch_name = by_plain.get("epoch")

    def _check_names(self) -> None:
        for name in (*self._columns, *self._exclude):
            if name not in self._names:
                raise CurveError(
                    f"{self.path} has no column {name!r} to watch or leave out; its columns: "
                    f"{_listed(self._names)}"
                )

    def _begin(self, name: str, cell: Any) -> Curve | None:
        """Decide what a column is by its first value; None if it is empty or no stream."""
        self._names.setdefault(name)
        if _is_empty(cell):
            return None
        try:
            float(cell)
        except (TypeError, ValueError):
            is_number = _percent(cell) is not None
        else:
            is_number = not isinstance(cell, bool)
        if self._columns and name in self._columns and not is_number:
            raise CurveError(
                f"{self.path}: column {name!r} holds {cell!r}, which is no number; leave it out "
                "of --columns"
            )
        if not is_number or not self._is_stream(name):
            self._ignored.add(name)
            return None
        curve = self.streams[name] = Curve(name, measured=name + STDERR in self._names)
        return curve

    def _is_stream(self, name: str) -> bool:
        if self._columns:
            return name in self._columns and name not in self._exclude
        is_error = name.endswith(STDERR) and name.removesuffix(STDERR) in self._names
        is_index = not name or name.startswith("Unnamed: ")
        is_counter = name in (self.step_name, self._epoch_name) or _plain(name) in CLOCKS
        return not (is_error or is_index or is_counter or name in self._exclude)

    # ---- cells

    def _step_of(self, row: Row, last_step: int) -> int | None:
        if self.step_name == ROW and ROW not in self._names:
            return last_step + 1 if last_step > 0 else 1
        cell = row.cells.get(self.step_name)
        number = self._number(row.line, self.step_name, cell)
        if number is None:
            return None
        if not math.isfinite(number) or number != int(number) or number < 0:
            raise CurveError(
                f"{self._where(row.line, self.step_name)}: step is {cell!r}; it must be a whole "
                f"number of at least 0; {OTHER_STEPS}"
            )
        step = int(number)
        if step < last_step and not self._standing_from:
            raise CurveError(
                f"{self._where(row.line, self.step_name)}: step {step} follows step {last_step}; "
                f"steps must not decrease: sort the file by {self.step_name}, {OTHER_STEPS}"
            )
        return step

    def _epoch_of(self, row: Row) -> int | None:
        if self._epoch_name is None:
            return None
        epoch = self._number(row.line, self._epoch_name, row.cells.get(self._epoch_name))
        return None if epoch is None or not math.isfinite(epoch) else int(epoch)

    def _number(self, line: int, name: str, cell: Any) -> float | None:
        if cell is None or cell == "":
            return None
        try:
            return float(cell)
        except (TypeError, ValueError, OverflowError) as error:
            if _is_empty(cell):
                return None
            if (percent := _percent(cell)) is not None:
                return percent
            raise CurveError(
                f"{self._where(line, name)}: {cell!r} is no number; mend it, or leave the column "
                f"out with --exclude {name}"
            ) from error

    def _where(self, line: int, name: str) -> str:
        return f"{self.path}, line {line}, column {name!r}"

    def _check_streams(self) -> None:
        """Refuse a file in which nothing can be watched."""
        self._check_names()
        if not self.streams:
            raise CurveError(
                f"{self.path} has no numeric column to watch beside the steps; its columns: "
                f"{_listed(self._names)}"
            )
        for curve in self.streams.values():
            if 2 * curve.repeated > curve.count:
                raise CurveError(
                    f"{self.path}: {curve.repeated} of {curve.count} values of {curve.name!r} "
                    f"repeat the step before: {self.step_name!r} does not count them; {OTHER_STEPS}"
                )


def _observation(
    name: str,
    step: int,
    epoch: int | None,
    timestamp: float,
    value: float,
    stderr: float | None,
) -> Observation:
    finite = math.isfinite(value)
    return Observation(
        name=name,
        step=step,
        epoch=epoch,
        value=value,
        unit=unit_of(name),
        stderr=stderr,
        timestamp=timestamp,
        status=EstimateStatus.OK if finite else EstimateStatus.DIVERGED,
        reason="" if finite else f"{name} is {value}",
    )


def _counts(rows: Sequence[Row], name: str) -> bool:
    """Whether a column holds whole numbers, as steps do: fractions of an epoch are none.

    A column of epochs that holds a fraction tells the place of a row, not its number.
    """
    if _plain(name) != "epoch":
        return True
    for row in rows:
        try:
            if not float(row.cells[name]).is_integer():
                return False
        except (KeyError, TypeError, ValueError):
            continue
    return True


def _percent(cell: Any) -> float | None:
    """A number before a percent sign, as it stands; None where there is none."""
    if not isinstance(cell, str) or not cell.rstrip().endswith("%"):
        return None
    try:
        return float(cell.strip()[:-1])
    except ValueError:
        return None


def _is_empty(cell: Any) -> bool:
    return cell is None or (isinstance(cell, str) and cell.strip().lower() in EMPTY)


def _plain(name: str) -> str:
    return name.rpartition("/")[2].strip(" _").lower().replace(" ", "_")


def _listed(names: Collection[str]) -> str:
    shown = [repr(name) for name in itertools.islice(names, MAX_NAMES)]
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return (", ".join(shown) or "none") + more
