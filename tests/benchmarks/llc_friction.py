"""How the friction of the default sampler was chosen: deep linear nets against their long-run λ̂.

Sixteen points of `llc_accuracy.py`, 2 to 5 layers, chains of fixed length. Laws of friction, with k
the number of steps from w* and t = hk:

    constant   η = 10 √γ, the least that all laws have
    c/t        η = c/t
    a/√k       hη = a/√k; a = 1 is the default
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from itertools import groupby

import numpy as np
import torch
from llc_accuracy import NUM_NETS, Subject, load, subjects

from phasewatch.monitor.sampling import SamplerConfig, schemes
from phasewatch.monitor.sampling.underdamped import FRICTION, MAX_DAMPING, Baoab

Law = Callable[[int], float]
"""hη as a function of k."""

LAWS: dict[str, Law] = {
    "constant": lambda k: 0.0,
    "8/t": lambda k: 8.0 / k,
    "15/t": lambda k: 15.0 / k,
    "30/t": lambda k: 30.0 / k,
    "0.5/√k": lambda k: 0.5 / math.sqrt(k),
    "1/√k": lambda k: 1.0 / math.sqrt(k),
    "1.4/√k": lambda k: 1.4 / math.sqrt(k),
}


def following(law: Law) -> type[Baoab]:
    """BAOAB with this friction."""

    class Tried(Baoab):
        def _next_friction(self) -> float:
            self._steps_done += 1
            least = min(self._step * FRICTION * math.sqrt(self._localization), MAX_DAMPING)
            return max(law(self._steps_done), least)

    return Tried


def points() -> list[tuple[Subject, float]]:
    """Three noise-free points and one with noise of each depth, with their long-run λ̂."""
    references = load()
    known = [s for s in subjects(NUM_NETS, full_data=False) if s.name in references and s.layers]
    chosen = []
    for _, group in groupby(sorted(known, key=lambda s: (s.layers, s.group)), lambda s: s.layers):
        found = list(group)
        for kind, count in (("exact", 3), ("minimum", 1)):
            of_kind = [s for s in found if s.group == kind]
            places = np.linspace(0, len(of_kind) - 1, count + 2)[1:-1].astype(int)
            chosen += [(of_kind[place], references[of_kind[place].name].value) for place in places]
    return chosen


def main() -> None:
    """Print one line for each law and length."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chosen = points()
    print(f"{'law':9s} draws  |error|: median  90th percentile  median error  by layers")
    for draws in arguments.draws:
        for name, law in LAWS.items():
            schemes.Baoab = following(law)  # type: ignore[misc]
            errors = np.array(
                [
                    subject.estimate(
                        SamplerConfig(seed=seed, num_draws=draws, max_draws=0)
                    ).lambda_hat
                    / truth
                    - 1
                    for seed in range(arguments.seeds)
                    for subject, truth in chosen
                ]
            )
            layers = np.array([subject.layers for subject, _ in chosen] * arguments.seeds)
            depths = " ".join(f"{np.median(errors[layers == n]):+5.0%}" for n in range(2, 6))
            sizes = np.abs(errors)
            print(
                f"{name:9s} {draws:5d} {np.median(sizes):16.1%} {np.quantile(sizes, 0.9):16.1%} "
                f"{np.median(errors):+13.1%}  {depths}",
                flush=True,
            )


if __name__ == "__main__":
    main()
