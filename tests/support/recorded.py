"""Histories of real runs, small enough to keep: what was observed, in the order it came.

Those in `tests/golden` were made by

    python examples/grokking.py --seed N --out demo --no-progress
    python tests/support/recorded.py demo/phasewatch.db grokking-seedN tests/golden/grokking_N.npz

with N from 0 to 2. Parts such as "weight_norm/embed" are left out: they are not watched.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from phasewatch.monitor.core.columns import chunked
from phasewatch.monitor.core.estimates import EstimateStatus, Observation
from phasewatch.monitor.core.transitions import Transition
from phasewatch.monitor.replay.recorded import detect
from phasewatch.monitor.store.store import Store

GOLDEN = Path(__file__).parents[1] / "golden"


def record(store: str, run: str, path: Path) -> None:
    """Write the history of a run as one compressed file."""
    with Store(store, create=False) as history:
        seen = [o for o in history.in_order(history.run(run).id) if "/" not in o.name]
    names = sorted({o.name for o in seen})
    begin = seen[0].timestamp
    np.savez_compressed(
        path,
        names=names,
        stream=np.array([names.index(o.name) for o in seen], dtype=np.uint8),
        step=np.array([o.step for o in seen], dtype=np.int32),
        value=np.array([o.value for o in seen]),
        stderr=np.array([np.nan if o.stderr is None else o.stderr for o in seen]),
        seconds=np.array([o.timestamp - begin for o in seen]),
        measured=np.array([o.duration_seconds > 0 for o in seen]),
        ok=np.array([o.status is EstimateStatus.OK for o in seen]),
    )


def read(path: Path) -> list[Observation]:
    """The history that `record` wrote."""
    with np.load(path) as kept:
        names, rows = kept["names"].tolist(), [kept[key].tolist() for key in COLUMNS]
    return [
        Observation(
            name=names[stream],
            step=step,
            value=value,
            stderr=None if np.isnan(stderr) else stderr,
            timestamp=seconds,
            duration_seconds=float(measured),
            status=EstimateStatus.OK if ok else EstimateStatus.UNCONVERGED,
        )
        for stream, step, value, stderr, seconds, measured, ok in zip(*rows, strict=True)
    ]


COLUMNS = ("stream", "step", "value", "stderr", "seconds", "measured", "ok")


def transitions_of(path: Path) -> list[Transition]:
    """What the default detectors find in a recorded history."""
    return list(detect(chunked(read(path)), run="recorded").transitions)


if __name__ == "__main__":
    record(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
