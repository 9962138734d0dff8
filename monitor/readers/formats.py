"""Rows of a file of curves, whatever its format: CSV, JSONL or TensorBoard events."""

from __future__ import annotations

import csv
import heapq
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from phasewatch.monitor.core.errors import CurveError

MAX_FOLDERS = 8
"""Folders that an error lists at most."""

STEP = "step"
"""Name of the steps of events."""


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
    if (path / "metrics.csv").is_file():
        return path / "metrics.csv"
    kinds = ("*tfevents*", "metrics.csv")
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
    with path.open(encoding="utf-8-sig", newline="") as file:
        start = file.readline()
    if start.lstrip().startswith("{"):
        return (), _jsonl_rows(path)
    delimiter = max(",;\t", key=re.sub(r'"[^"]*"', "", start).count)
    names = [name.strip() for name in next(csv.reader([start], delimiter=delimiter), [])]
    if not any(map(_is_word, names)):
        raise CurveError(
            f"{path}: the first line is {start.strip()[:60]!r}; it must name the columns"
        )
    twice = [name for index, name in enumerate(names) if name and name in names[:index]]
    if twice:
        raise CurveError(f"{path} has two columns {twice[0]!r}; give each its own name")
    return names, _csv_rows(path, names, delimiter)


def _is_word(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return bool(cell)
    return False


def _csv_rows(path: Path, names: Sequence[str], delimiter: str) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter)
        next(reader)
        try:
            for cells in reader:
                yield Row(reader.line_num, dict(zip(names, cells, strict=False)))
        except csv.Error as error:
            raise CurveError(f"{path}, line {reader.line_num} is no CSV: {error}") from error


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                content = json.loads(line)
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
