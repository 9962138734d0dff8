"""The Turing Change Point Dataset: F1 and cover of our segmentation with one default setting.

Give a copy of github.com/alan-turing-institute/TCPD: `python tests/benchmarks/tcpd.py --data DIR`.
Series that vendors do not let others pass on are missing there; the script says how many it found.
Scores are those of TCPDBench (margin 5), averaged over series. Points without a value are left out.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence

import numpy as np
import ruptures
from rich.console import Console
from rich.table import Table

from phasewatch.detectors.evaluation.tcpd import AnnotatedSeries, cover, f1, load_tcpd
from phasewatch.detectors.offline.segmentation import change_points, segment

Method = Callable[[np.ndarray], list[int]]


def nothing(values: np.ndarray) -> list[int]:
    """No change points."""
    return []


def ours(values: np.ndarray) -> list[int]:
    """Our segmentation as it comes."""
    return change_points(segment(np.arange(values.size), values))


def levels(values: np.ndarray) -> list[int]:
    """Our segmentation into levels in place of lines."""
    return change_points(segment(np.arange(values.size), values, shape="level"))


def plain_pelt(values: np.ndarray) -> list[int]:
    """Ruptures Pelt, l2, penalty 3 log n on the standardised series."""
    scaled = (values - values.mean()) / (values.std() or 1.0)
    search = ruptures.Pelt(model="l2", min_size=2, jump=1).fit(scaled)
    return list(search.predict(pen=3.0 * math.log(values.size))[:-1])


METHODS: dict[str, Method] = {
    "no change points": nothing,
    "ruptures Pelt l2, 3 log n": plain_pelt,
    "segment(), lines (the default)": ours,
    "segment(), levels": levels,
}


def found_in(series: AnnotatedSeries, method: Method) -> list[int]:
    """Change points as indices of the whole series, whatever is missing in it."""
    known = np.flatnonzero(np.isfinite(series.values))
    return [int(known[at]) for at in method(series.values[known])]


def table(data: Sequence[AnnotatedSeries]) -> Table:
    """One row a method."""
    printed = Table(title=f"Turing Change Point Dataset, {len(data)} univariate series")
    printed.add_column("method")
    for head in ("F1", "cover"):
        printed.add_column(head, justify="right")
    for name, method in METHODS.items():
        found = [found_in(series, method) for series in data]
        pairs = list(zip(data, found, strict=True))
        mean_f1 = np.mean([f1(s.annotations, points) for s, points in pairs])
        mean_cover = np.mean([cover(s.annotations, points, s.values.size) for s, points in pairs])
        printed.add_row(name, f"{mean_f1:.3f}", f"{mean_cover:.3f}")
    return printed


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of the local copy")
    parser.add_argument(
        "--complete", action="store_true", help="only series without missing points"
    )
    arguments = parser.parse_args()
    data = load_tcpd(arguments.data)
    if arguments.complete:
        data = [series for series in data if np.isfinite(series.values).all()]
    Console(width=100).print(table(data))


if __name__ == "__main__":
    main()
