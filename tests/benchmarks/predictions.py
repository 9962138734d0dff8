"""Predicted cost of a measurement against what it took, by observable, on ten models.

Each model is trained in a process of its own on a CPU clock, with `observables="all"`; what one
measurement takes is predicted before the first step. Printed are, for each, the ratio of the mean
measured cost to the prediction, and by observable how many of the models lie within a factor of
two, with the worst model named.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict

from overhead import MODELS, trained

FURTHER = ("mlp", "cnn")
FACTOR = 2.0


def ratios(model: str, seconds: float) -> dict[str, float]:
    """Measured over predicted seconds of one measurement, by observable."""
    without = trained(model, seconds, 0)
    if without is None:
        raise SystemExit(f"{model} does not end without a monitor")
    found = trained(model, seconds, without["steps"], "all")
    if found is None:
        return {}
    predicted = found["predicted_seconds"]
    return {
        name: took / predicted[name]
        for name, took in found["mean_seconds"].items()
        if predicted.get(name)
    }


def main() -> None:
    """One model after another."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=(*MODELS, *FURTHER),
                        default=(*MODELS, *FURTHER), help="which")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=30.0, help="CPU seconds of a training")
    arguments = parser.parse_args()
    by_name: dict[str, dict[str, float]] = defaultdict(dict)
    for model in arguments.models:
        found = ratios(model, arguments.seconds)
        print(json.dumps({"model": model, "ratios": {n: round(r, 2) for n, r in found.items()}}))
        for name, ratio in found.items():
            by_name[name][model] = ratio
    width = max(map(len, by_name), default=0)
    for name, found in sorted(by_name.items()):
        worst = max(found, key=lambda model: max(found[model], 1 / found[model]))
        within = sum(1 / FACTOR <= ratio <= FACTOR for ratio in found.values())
        print(
            f"{name:{width}}  {within} of {len(found)} within a factor of {FACTOR:g}, worst "
            f"{found[worst]:.2f} ({worst})"
        )


if __name__ == "__main__":
    main()
