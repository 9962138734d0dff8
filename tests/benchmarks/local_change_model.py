"""The model of `local_change`: how it is fitted, and what the default detector reaches with it.

    PHASEWATCH_TEST_DATA=… python tests/benchmarks/local_change_model.py            # as shipped
    PHASEWATCH_TEST_DATA=… python tests/benchmarks/local_change_model.py --left-out # minutes
    PHASEWATCH_TEST_DATA=… python tests/benchmarks/local_change_model.py --write    # fits it anew

Looks are gathered from the recorded and the public curves (also thinned), from the null streams and
from simulated runs. A look whose onset and time would hit a transition may be a positive: of those
of a transition the twelve most likely ones are, by a plain rule at first and by a first model then.
Looks in no zone are negatives. Boosted trees of depth three, whose log-odds may only grow with
features that speak for a change, are fitted to both (scikit-learn). With --left-out repositories
are dealt into five parts, and each is judged by a model that never saw it. Settings of the detector
that are no part of the model are the shipped ones for all parts.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from phasewatch.detectors.evaluation import null_streams, simulated_runs
from phasewatch.detectors.evaluation.scoring import Curve, load_curves
from phasewatch.detectors.online.abrupt_change import AbruptChange
from phasewatch.detectors.online.local_change import MODEL, LocalChange
from phasewatch.detectors.statistics.boosted import INNER, LEAVES, NEVER, BoostedTrees
from phasewatch.detectors.statistics.local_features import NAMES, RISING
from phasewatch.monitor.transitions.streams import SCALARS
from support.public_curves import PublicCurve, Tally, classes, judge, load, total

PARTS = 5
SIMULATED, NULLS, BRIEF = 500, 4, 20
TREES, RATE, WEIGHT, MOST = 60, 0.15, 60.0, 12
COLUMN = {name: index for index, name in enumerate(NAMES)}
Array = np.ndarray


class Looks(NamedTuple):
    """Looks at one curve: features, and the transition each would hit (-1 none, -2 ignored)."""

    repository: str
    features: Array
    truth: Array


class Recorder:
    """Stands in for the model: writes down every look, and answers as the model would."""

    def __init__(self, inner: BoostedTrees | None) -> None:
        self.inner, self.detector = inner, None
        self.features: list[Array] = []
        self.counts: list[int] = []

    def log_odds(self, features: Array) -> Array:
        """The model's answer; never a change without one."""
        self.features.append(features)
        self.counts += [self.detector._count] * len(features)
        if self.inner is None:
            return np.full(len(features), -99.0)
        return self.inner.log_odds(features)


def with_model(model: object) -> LocalChange:
    """The shipped detector with another model."""
    detector = LocalChange()
    detector._model = model
    return detector


def looks_at(curve: PublicCurve, model: BoostedTrees | None) -> Looks:
    """Every look that the detector takes at a curve."""
    recorder = Recorder(model)
    recorder.detector = detector = with_model(recorder)
    detector._whole = True  # a model learns also from looks that are too faint to count
    for step, value in zip(curve.steps, curve.values, strict=True):
        detector.update(step, value)
    if not recorder.features:
        return Looks(curve.repository, np.zeros((0, len(NAMES))), np.zeros(0, int))
    features, counts = np.vstack(recorder.features), np.array(recorder.counts)
    usable = features[:, COLUMN["over_jump"]] > -3.99
    features, counts = features[usable], counts[usable]
    span = features[:, COLUMN["m"]] * 4.0 ** features[:, COLUMN["level"]]
    truth = np.empty(len(features), int)
    for row, (count, onset) in enumerate(zip(counts, counts - span.astype(int), strict=True)):
        at, seen = curve.steps[max(onset, 0)], curve.steps[count - 1]
        hit = curve.truth_of(at, seen)
        truth[row] = hit if hit is not None else -2 if curve.is_ignored(at, seen) else -1
    return Looks(curve.repository, features, truth)


def from_curve(curve: Curve, repository: str) -> PublicCurve:
    """A curve of `scoring` in the form of the public ones."""
    last = len(curve.steps) - 1
    spans = [(curve.steps[t.start], curve.steps[min(t.end, last)]) for t in curve.transitions]
    zones = [(curve.steps[z.start], curve.steps[min(z.end, last)]) for z in curve.ignore]
    truths = [[(*span, "fall")] for span in spans]
    return PublicCurve(
        curve.name, repository, "losses", list(curve.steps), list(curve.values), truths, zones
    )


def corpus(folder: Path) -> Iterator[PublicCurve]:
    """Everything that the model is fitted to."""
    for curve in load(folder / "public_curves.json"):
        yield curve
        if len(curve.steps) > 60:
            yield curve.every(2)
    for given in load_curves(folder / "training_curves.json"):
        yield from_curve(given, "recorded")
        yield from_curve(given.every(4), "recorded")
    for name in null_streams.names():
        if name not in null_streams.RISING:
            for seed in range(1, NULLS + 1):
                yield from_curve(null_streams.curve(name, 500 * seed, seed), f"null/{name}")
            for seed in range(BRIEF):
                brief = null_streams.curve(name, 40 + 10 * seed, 100 + seed)
                yield from_curve(brief, f"null/{name}")
    for index, simulated in enumerate(simulated_runs.streams(SIMULATED, 5)):
        yield from_curve(simulated, f"sim/{index % 10}")


def plain_rule(features: Array) -> Array:
    """A first guess of how likely each look is a change: noise, range, jumps and trend."""
    z = features[:, COLUMN["z_mean"]] - 1.0
    size = np.minimum(
        features[:, COLUMN["over_range"]] + 0.3, features[:, COLUMN["over_jump"]] - 0.1
    )
    return np.minimum(np.minimum(z, size), features[:, COLUMN["over_trend"]] - 0.5)


def fit(looks: Sequence[Looks]) -> BoostedTrees:
    """The model of these looks."""
    rng = np.random.default_rng(0)
    negatives, weights, transitions = [], [], []
    for one in looks:
        made = one.repository.startswith(("sim", "null"))
        guess = plain_rule(one.features)
        share = np.where(guess > -0.6, 0.35 if made else 1.0, 0.01)
        chosen = (one.truth == -1) & (rng.random(len(share)) < share)
        negatives.append(one.features[chosen])
        weights.append((0.5 if made else 1.0) / share[chosen])
        for truth in range(one.truth.max(initial=-1) + 1):
            rows = one.features[(one.truth == truth) & (guess > -1.5)]
            if len(rows):
                transitions.append((rows, 0.5 if made else 1.0))
    wrong, wrong_weights = np.vstack(negatives), np.concatenate(weights)
    score: Callable[[Array], Array] = plain_rule
    for trees in (TREES // 3, TREES):
        right, right_weights = [], []
        for rows, weight in transitions:
            count = min(max(3, len(rows) // 10), MOST)
            best = rows[np.argsort(-score(rows))[:count]]
            right.append(best)
            right_weights.append(np.full(len(best), weight * WEIGHT / len(best)))
        model = boost(
            np.vstack([wrong, *right]),
            np.concatenate([np.zeros(len(wrong)), np.ones(sum(map(len, right)))]),
            np.concatenate([wrong_weights, *right_weights]),
            trees,
        )
        score = model.log_odds
    return model


def boost(features: Array, labels: Array, weights: Array, trees: int) -> BoostedTrees:
    """Gradient boosting by scikit-learn, as the arrays that the detector runs."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    fitted = HistGradientBoostingClassifier(
        max_iter=trees, learning_rate=RATE, max_depth=3, max_leaf_nodes=8, l2_regularization=1.0,
        early_stopping=False, monotonic_cst=[int(name in RISING) for name in NAMES],
    ).fit(features, labels, sample_weight=weights)  # fmt: skip
    asked, above, leaves = [], [], []
    for (tree,) in fitted._predictors:
        feature, threshold, leaf = [0] * INNER, [NEVER] * INNER, [0.0] * LEAVES
        places = [(0, 0)]
        while places:
            node, place = places.pop()
            content = tree.nodes[node]
            if place >= INNER:
                leaf[place - INNER] = float(f"{content['value']:.4g}")
            elif content["is_leaf"]:
                places += [(node, 2 * place + 1), (node, 2 * place + 2)]
            else:
                feature[place] = int(content["feature_idx"])
                threshold[place] = float(f"{content['num_threshold']:.4g}")
                places += [
                    (content["left"], 2 * place + 1), (content["right"], 2 * place + 2),
                ]  # fmt: skip
        asked.append(feature)
        above.append(threshold)
        leaves.append(leaf)
    return BoostedTrees(asked, above, leaves, round(float(fitted._baseline_prediction.item()), 4))


def part_of(repository: str) -> int:
    """Which part a repository is dealt to."""
    return zlib.crc32(repository.encode()) % PARTS


def left_out_of(looks: Sequence[Looks]) -> list[list[Looks]]:
    """For each part what all others show."""
    return [[one for one in looks if part_of(one.repository) != k] for k in range(PARTS)]


def default_with(model: object, family: str) -> AbruptChange:
    """The default detector of a logged stream, with another model of its local rule."""
    detector = AbruptChange(**({} if family == "losses" else SCALARS))
    detector._local._model = model
    return detector


def score(curves: Sequence[PublicCurve], model_of: Callable[[str], object]) -> dict[str, Tally]:
    """Tally of each curve, by its name."""
    tallies = {}
    for curve in curves:
        detector = default_with(model_of(curve.repository), curve.family)
        said = map(detector.update, curve.steps, curve.values)
        alarms = [alarm for alarm in [*said, detector.finish()] if alarm is not None]
        tallies[curve.name] = judge(curve, [(a.onset_step, a.detected_step) for a in alarms])
    return tallies


def table(title: str, curves: Sequence[PublicCurve], tallies: dict[str, Tally]) -> Table:
    """Figures by class, with 95 % intervals over repositories drawn anew."""
    made = Table(title=title)
    for head in ("class", "found", "recall", "95 %", "false/1000", "95 %", "alarmed", "delay"):
        made.add_column(head, justify="left" if head == "class" else "right", no_wrap=True)
    rows = dict.fromkeys(row for curve in curves for row in classes(curve))
    for row in rows:
        by_source: dict[str, Tally] = {}
        for curve in curves:
            if row in classes(curve):
                known = by_source.get(curve.repository, Tally())
                by_source[curve.repository] = known + tallies[curve.name]
        all_of = total(by_source.values())
        delay = f"{np.median(all_of.delays):.2f}w" if all_of.delays else "–"
        made.add_row(
            row, f"{all_of.hit}/{all_of.asked}", f"{all_of.recall:.2f}",
            interval(by_source, lambda t: t.recall), f"{all_of.false_per_1000:.3f}",
            interval(by_source, lambda t: t.false_per_1000),
            f"{all_of.alarmed}/{all_of.clean}", delay,
        )  # fmt: skip
    return made


def interval(by_source: dict[str, Tally], figure: Callable[[Tally], float]) -> str:
    """Percentile interval of the bootstrap over repositories."""
    rng = np.random.default_rng(0)
    each = list(by_source.values())
    drawn = [
        figure(total(each[i] for i in rng.integers(0, len(each), len(each)))) for _ in range(400)
    ]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return f"{low:.2f}–{high:.2f}"


def main() -> None:
    """Print the tables; with --write, fit the model anew."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--left-out", action="store_true", help="models that never saw the part")
    parser.add_argument("--write", action="store_true", help="fit to everything and write it")
    arguments = parser.parse_args()
    folder = os.environ.get("PHASEWATCH_TEST_DATA")
    if folder is None or not (Path(folder) / "public_curves.json").is_file():
        print("PHASEWATCH_TEST_DATA names no folder with public_curves.json: nothing to do")
        return
    console = Console(width=150)
    curves = load(Path(folder) / "public_curves.json")
    shipped = LocalChange()._model
    tallies = score(curves, lambda _: shipped)
    console.print(table("as shipped: every curve had a part in the fit", curves, tallies))
    if not (arguments.left_out or arguments.write):
        return
    everything = list(corpus(Path(folder)))
    with multiprocessing.get_context("fork").Pool() as pool:
        first = pool.starmap(looks_at, [(curve, None) for curve in everything], chunksize=8)
        models = pool.map(fit, left_out_of(first), chunksize=1)
        # Again with alarms, after which what was before is forgotten, as it is live.
        again = [(curve, models[part_of(curve.repository)]) for curve in everything]
        looks = first + pool.starmap(looks_at, again, chunksize=8)
        if arguments.left_out:
            models = pool.map(fit, left_out_of(looks), chunksize=1)
    if arguments.left_out:
        left_out = score(curves, lambda repository: models[part_of(repository)])
        console.print(table("each repository by a model without it", curves, left_out))
    if arguments.write:
        path = Path(sys.modules[BoostedTrees.__module__].__file__).with_name(MODEL)
        path.write_text(json.dumps(fit(looks).as_dict(), separators=(",", ":")))
        console.print(f"written: {path}")


if __name__ == "__main__":
    main()
