"""Rows of a file of curves, whatever its format: CSV, JSONL, JSON or TensorBoard events."""

from __future__ import annotations

import csv
import heapq
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from phasewatch.monitor.core.errors import CurveError
from phasewatch.monitor.readers.json import document_rows, is_document, newest_trainer_state, parse

MAX_FOLDERS = 8
"""Folders that an error lists at most."""

MAX_COLUMNS = 10_000
"""More columns than that are no curves, but a table lying on its side, or embeddings."""

STEP = "step"
"""Name of the steps of events."""

LONG_NAMES, LONG_VALUES = ("tag", "metric", "key", "name", "variable"), ("value", "scalar")
"""Columns of the long format: one value a row, beside the name of its stream."""

FOLDER_FILES = ("metrics.csv", "progress.csv", "monitor.csv", "0.monitor.csv")
"""What a folder of a run may hold: of Lightning, and of Stable-Baselines3."""


class Row(NamedTuple):
    """One line of a file, or one event.

    Attributes:
        line: Number of the line, from 1; 0 for an event.
        cells: Texts or numbers, by column.
        timestamp: Unix seconds, if known.
    """

    line: int
    cells: Mapping[str, Any]
    timestamp: float = 0.0


def find_file(path: Path) -> Path:
    """The file to read, or the folder of events.

    Raises:
        CurveError: There is none.
    """
    if path.is_file():
        return path
    if not path.exists():
        raise CurveError(
            f"there is no file {str(path)!r}; give a CSV or JSONL file, a TensorBoard event file, "
            "or the folder of one run"
        )
    if any(path.glob("*tfevents*")):
        return path
    for name in FOLDER_FILES:
        if (path / name).is_file():
            return path / name
    if (state := newest_trainer_state(path)) is not None:
        return state
    kinds = ("*tfevents*", *FOLDER_FILES, "trainer_state.json")
    below = sorted({str(found.parent) for kind in kinds for found in path.rglob(kind)})
    hint = f"; there are runs in {', '.join(below[:MAX_FOLDERS])}: give one" if below else ""
    raise CurveError(f"folder {str(path)!r} holds neither event files nor a metrics.csv{hint}")


def open_rows(path: Path) -> tuple[Sequence[str], Iterator[Row]]:
    """Names of the columns, and the rows. JSONL does not name its columns: they are empty.

    Raises:
        CurveError: It is of no known format; also while the rows are read.
        OSError: The file cannot be read.
        UnicodeDecodeError: It is no text.
    """
    if path.is_dir() or "tfevents" in path.name:
        return _open_events(path)
    start, skipped = _first_line(path)
    if is_document(start):
        return (), (Row(number, dict(_flat(row))) for number, row in document_rows(path))
    if start.lstrip().startswith("{"):
        return (), _jsonl_rows(path)
    delimiter = max(",;\t", key=re.sub(r'"[^"]*"', "", start).count)
    names = [name.strip() for name in next(csv.reader([start], delimiter=delimiter), [])]
    if not any(map(_is_word, names)):
        raise CurveError(
            f"{path}: the first line is {start.strip()[:60]!r}; it must name the columns"
        )
    if len(names) > MAX_COLUMNS:
        raise CurveError(
            f"{path} has {len(names):,} columns, more than {MAX_COLUMNS:,}: no run logs so many "
            "streams; give one row a step and one column a stream"
        )
    rows = _csv_rows(path, _told_apart(names), delimiter, skipped)
    plain = [name.lower() for name in names]
    keys = [n for n in LONG_NAMES if n in plain]
    values = [n for n in LONG_VALUES if n in plain]
    if keys and values and len(names) <= LONG_COLUMNS:
        key, value = names[plain.index(keys[0])], names[plain.index(values[0])]
        return (), _pivoted(rows, key, value)
    return _told_apart(names), rows


LONG_COLUMNS = 8
"""A file of the long format has few columns."""


def _first_line(path: Path) -> tuple[str, int]:
    """The first line that is no comment, and how many lines are before it."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        skipped = 0
        for line in file:
            if not line.startswith("#"):
                return line, skipped
            skipped += 1
    return "", skipped


def _told_apart(names: Sequence[str]) -> list[str]:
    """The names, a repeated one with its number: loggers write a column twice."""
    counts: dict[str, int] = {}
    apart = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        apart.append(name if counts[name] == 1 or not name else f"{name}.{counts[name]}")
    return apart


def _pivoted(rows: Iterator[Row], key: str, value: str) -> Iterator[Row]:
    """Rows of the long format, each with a column of the name it holds."""
    for row in rows:
        cells = {name: cell for name, cell in row.cells.items() if name not in (key, value)}
        name = str(row.cells.get(key, ""))
        yield Row(row.line, {**cells, name: row.cells.get(value)}, row.timestamp)


def _is_word(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return bool(cell)
    return False


def _csv_rows(path: Path, names: Sequence[str], delimiter: str, skipped: int) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        for _ in range(skipped):
            file.readline()
        reader = csv.reader(file, delimiter=delimiter)
        next(reader)
        try:
            for cells in reader:
                if delimiter == ";":
                    cells = [_with_point(cell) for cell in cells]
                if len(cells) == len(names) and _is_header(cells, names):
                    continue  # of the log of a resumed run
                yield Row(reader.line_num, dict(zip(names, cells, strict=False)))
        except csv.Error as error:
            raise CurveError(f"{path}, line {reader.line_num} is no CSV: {error}") from error


def _with_point(cell: str) -> str:
    """A number with a decimal comma, with a point instead."""
    return cell.replace(",", ".") if DECIMAL_COMMA.fullmatch(cell.strip()) else cell


DECIMAL_COMMA = re.compile(r"[-+]?\d*,\d+([eE][-+]?\d+)?")


def _is_header(cells: Sequence[str], names: Sequence[str]) -> bool:
    return cells[0].strip() == names[0] and [cell.strip() for cell in cells] == list(names)


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                content = parse(line)
            except ValueError as error:
                raise CurveError(
                    f"{path}, line {number} is no JSON ({error}); each line must be one object"
                ) from error
            if not isinstance(content, dict):
                raise CurveError(
                    f"{path}, line {number} is {line.strip()[:40]!r}; it must be an object"
                )
            yield Row(number, dict(_flat(content)))


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested objects as "outer/inner"."""
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


# ---- TensorBoard


class _Scalar(NamedTuple):
    step: int
    timestamp: float
    tag: str
    value: float


def _open_events(path: Path) -> tuple[Sequence[str], Iterator[Row]]:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.util.tensor_util import make_ndarray
    except ImportError as error:
        raise CurveError(
            f"{path} is of TensorBoard, and the package tensorboard is not installed; "
            "pip install 'phasewatch[tensorboard]'"
        ) from error
    events = EventAccumulator(str(path), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    streams = [
        [_Scalar(e.step, e.wall_time, tag, e.value) for e in events.Scalars(tag)]
        for tag in tags["scalars"]
    ]
    for tag in tags["tensors"]:
        arrays = [(e, make_ndarray(e.tensor_proto)) for e in events.Tensors(tag)]
        if all(a.ndim == 0 and a.dtype.kind in "fiu" for _, a in arrays):
            streams.append([_Scalar(e.step, e.wall_time, tag, float(a)) for e, a in arrays])
    rows = (
        Row(0, {STEP: scalar.step, scalar.tag: scalar.value}, scalar.timestamp)
        for scalar in heapq.merge(*map(_standing, streams))
    )
    return (STEP, *(stream[0].tag for stream in streams if stream)), rows


def _standing(scalars: Sequence[_Scalar]) -> list[_Scalar]:
    """Without what a resumed run has written again: of each step the last word counts."""
    kept: list[_Scalar] = []
    for scalar in reversed(scalars):
        if not kept or scalar.step < kept[-1].step:
            kept.append(scalar)
    return kept[::-1]
