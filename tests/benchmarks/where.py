"""How to tell which parameter groups moved: cost, memory and error of three ways.

    python tests/benchmarks/where.py

Compares copies of the weights, 64 dense projections on random signs, and the count sketch that
`WeightNorm` keeps, on one vector of `--size` weights. The error is that of the distance between two
sets of weights, as root mean square over `--repeats` displacements of all, or of one column.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import torch

from phasewatch.monitor.observables.weights.displacement import sketch

DENSE = 64
COLUMN = 128


def dense(weights: torch.Tensor) -> torch.Tensor:
    """Projections on 64 vectors of random signs, made anew each time."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(DENSE)
    for part in weights.split(2**14):
        shape = (DENSE, part.numel())
        signs = torch.randint(0, 2, shape, generator=generator, dtype=torch.int8)
        total += signs.float().mul_(2).sub_(1) @ part
    return total / math.sqrt(DENSE)


WAYS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "copy": torch.clone,
    "64 dense signs": dense,
    "count sketch, 256": lambda weights: sketch([weights]),
}


def milliseconds(way: Callable[[torch.Tensor], torch.Tensor], weights: torch.Tensor) -> float:
    way(weights)
    begin = time.process_time()
    for _ in range(3):
        way(weights)
    return (time.process_time() - begin) / 3 * 1e3


def error(
    way: Callable[[torch.Tensor], torch.Tensor], repeats: int, size: int, *, column: bool
) -> float:
    squares = []
    for seed in range(repeats):
        generator = torch.Generator().manual_seed(seed)
        before = torch.randn(size, generator=generator)
        step = 0.01 * torch.randn(size, generator=generator)
        if column:
            step *= torch.arange(size) % COLUMN == seed % COLUMN
        found = float((way(before + step) - way(before)).norm())
        squares.append((found / float(step.norm()) - 1.0) ** 2)
    return math.sqrt(sum(squares) / repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=20)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    weights = torch.randn(chosen.size)
    print(f"{chosen.size:,} weights, one thread, processor time")
    print(f"{'way':<20}{'ms':>8}{'bytes':>12}{'error, all':>12}{'one column':>12}")
    for name, way in WAYS.items():
        cost = milliseconds(way, weights)
        size = way(weights).numel() * 4
        errors = [error(way, chosen.repeats, 2**16, column=column) for column in (False, True)]
        print(f"{name:<20}{cost:>8.1f}{size:>12,}{errors[0]:>12.3f}{errors[1]:>12.3f}")


if __name__ == "__main__":
    main()
