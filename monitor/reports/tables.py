"""A run as one long table, for other programs: a row an observation, with its error and status."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from phasewatch.monitor.core.errors import ConfigError
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.history import needed
from phasewatch.monitor.store.store import Store

COLUMNS = (
    "step",
    "name",
    "value",
    "stderr",
    "status",
    "reason",
    "unit",
    "epoch",
    "timestamp",
    "duration_seconds",
)

FORMATS = {
    "csv": "text/csv",
    "jsonl": "application/jsonl",
    "parquet": "application/vnd.apache.parquet",
}
"""Media type by format."""

ROWS_AT_ONCE = 65_536


def write_table(store: Store, run_id: str, path: Path, form: str) -> int:
    """Write everything observed in a run, by step and time.

    Args:
        store: The run history.
        run_id: Id of the run.
        path: Where to.
        form: "csv" (NaN and infinities as nan, inf, -inf; empty where there is nothing), "jsonl"
            (the same as strings, null), or "parquet" (as themselves).

    Returns:
        How many rows were written.

    Raises:
        ConfigError: There is no such format.
        MissingPackageError: "parquet" needs pyarrow, which is not installed.
        StoreError: The store cannot be read.
        OSError: The file cannot be written.
    """
    writers = {"csv": _write_csv, "jsonl": _write_jsonl, "parquet": _write_parquet}
    if form not in writers:
        raise ConfigError(f"format is {form!r}; it must be one of {', '.join(writers)}")
    return writers[form](store.in_order(run_id), path)


def _row(item: Observation) -> list[Any]:
    return [
        item.step,
        item.name,
        item.value,
        item.stderr,
        item.status.value,
        item.reason,
        item.unit,
        item.epoch,
        item.timestamp,
        item.duration_seconds,
    ]


def _write_csv(rows: Iterable[Observation], path: Path) -> int:
    count = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for item in rows:
            writer.writerow(_row(item))
            count += 1
    return count


def _write_jsonl(rows: Iterable[Observation], path: Path) -> int:
    def plain(value: Any) -> Any:
        return repr(value) if isinstance(value, float) and not math.isfinite(value) else value

    count = 0
    with path.open("w", encoding="utf-8") as file:
        for item in rows:
            record = {key: plain(value) for key, value in zip(COLUMNS, _row(item), strict=True)}
            file.write(json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n")
            count += 1
    return count


def _write_parquet(rows: Iterable[Observation], path: Path) -> int:
    arrow = needed("pyarrow", "an export as parquet")
    parquet = needed("pyarrow.parquet", "an export as parquet")
    types = {"step": "int64", "epoch": "int64", "name": "string", "status": "string"}
    types |= {"reason": "string", "unit": "string"}
    schema = arrow.schema([(name, types.get(name, "float64")) for name in COLUMNS])
    count = 0
    with parquet.ParquetWriter(path, schema) as writer:
        for part in _parts(rows):
            count += len(part)
            columns = [[*column] for column in zip(*part, strict=True)]
            writer.write_table(arrow.table(columns, schema=schema))
    return count


def _parts(rows: Iterable[Observation]) -> Iterator[Sequence[list[Any]]]:
    waiting = map(_row, rows)
    while part := [*islice(waiting, ROWS_AT_ONCE)]:
        yield part
