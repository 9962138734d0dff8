"""Seconds until λ̂ is within 8 % (root mean square) of its long-run value, against devinterp.

The models are trained to the minimum of their empirical loss on n = 10⁴ samples with unit noise.
The truth of each is what very long, Metropolis-adjusted chains say about the same local posterior
(same w*, γ and nβ), so neither side is charged for γ or for finite n. Both run four chains on one
thread, in turn, and the seconds are those of the call that samples.

- Ours: `estimate_llc` as it comes; only `num_draws` varies. The plain default is a row of its own.
- devinterp 1.3.2: its SGLD with minibatches of 256 and L(w*) over all data given to it; a quarter
  of the draws is dropped. Its step size is the best of a grid, chosen in hindsight, once for each
  model and once for all models together. A step size that is off by 20 % or more at every length
  over the first two seeds is given up. Its lengths are whole passes over the data, where the noise
  of the minibatch losses cancels: at other lengths it does far worse.

Ours counts from the shortest length after which no longer one misses 8 %, devinterp from the first
that does not. Seconds between two tried lengths are interpolated on a log-log scale. Where 8 % was
not reached, the seconds of the longest run stand, marked with >, and the ratio is a bound (> or <).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import peers
from support.long_chains import Net, Rows, long_run_value, minimum, weights_of

NUM_CHAINS = 4
LOCALIZATION = 1.0
MINIBATCH = 256
BURNIN = 0.25
OUR_DRAWS = (16, 32, 64, 128, 256, 512)
STEP_SIZES = (5e-6, 1e-5, 2e-5, 4e-5, 8e-5, 1.6e-4)
GIVEN_UP = 0.2
MARKS = {(True, True): "", (True, False): ">", (False, True): "<", (False, False): "?"}
"""Whether a ratio is a bound, by (ours, devinterp) having reached the target."""


@dataclass(frozen=True)
class Model:
    """A net. A linear one learns from a teacher of this rank, a tanh net from another like it."""

    widths: tuple[int, ...]
    rank: int = 0
    tanh: bool = False

    @property
    def name(self) -> str:
        layers = "-".join(map(str, self.widths))
        return f"tanh {layers}" if self.tanh else f"linear {layers} r{self.rank}"


MODELS = (
    Model((4, 4), 4),
    Model((3, 3, 3, 3), 1),
    Model((6, 5, 6), 2),
    Model((10, 8, 8, 10), 3),
    Model((20, 15, 15, 12), 6),
    Model((7, 10, 4), tanh=True),
)


def module(weights: Sequence[Tensor], tanh: bool) -> nn.Module:
    """The net as a module, in fp32."""
    layers: list[nn.Module] = []
    for weight in weights:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight.data.copy_(weight)
        layers += [layer, nn.Tanh()] if tanh else [layer]
    return nn.Sequential(*(layers[:-1] if tanh else layers))


def squared_error(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Gaussian negative log-likelihood of each sample, unit variance, without its constant."""
    return 0.5 * (model(batch[0]) - batch[1]).square().sum(dim=-1)


# -- the problem ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """A trained model with its data and the value that both sides are judged against."""

    model: Model
    net: nn.Module
    batch: tuple[Tensor, Tensor]
    n_beta: float
    truth: float
    truth_stderr: float
    file: str


def trained(model: Model, n: int, noise: float, num_moves: int, folder: str) -> Problem:
    """Data, minimum and long-run value of a model."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    net = Net(model.widths, model.tanh)
    inputs, outputs = model.widths[0], model.widths[-1]
    if model.tanh:  # few distinct inputs, one of them constant: a bias
        x = torch.randint(0, 2, (n, inputs), generator=generator) * 2.0 - 1.0
        x[:, 0] = 1.0
        teacher = 2.0 * normal(net.num_parameters)[None] / math.sqrt(inputs)
        y = net.outputs(teacher, x)[0]
    else:
        x = normal(n, inputs)
        y = x @ normal(inputs, model.rank) @ normal(model.rank, outputs)
        y = y / math.sqrt(model.rank * inputs)
    y = y + noise * normal(n, outputs)
    rows = Rows.of(net, x, y)
    start = torch.cat([normal(b, a).flatten() / math.sqrt(a) for a, b in layers(model.widths)])
    center = minimum(net, rows, start)
    weights = weights_of(net, center)
    n_beta = n / math.log(n)
    truth, stderr = long_run_value(
        net,
        rows,
        center,
        n_beta=n_beta,
        localization=LOCALIZATION,
        num_chains=max(48, 12_000 // net.num_parameters),
        num_moves=num_moves,
    )
    file = str(Path(folder) / f"{model.name}.pt".replace(" ", "_"))
    torch.save({"weights": weights, "tanh": model.tanh, "x": x, "y": y}, file)
    return Problem(model, module(weights, model.tanh), (x, y), n_beta, truth, stderr, file)


def layers(widths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(inputs, outputs) of each layer."""
    return itertools.pairwise(widths)


# -- what a side has shown ------------------------------------------------------------------------


@dataclass
class Point:
    """What it takes to get to some error."""

    draws: float
    wall: float
    cpu: float
    reached: bool = True


@dataclass
class Curve:
    """Errors and seconds of each seed, by number of draws."""

    errors: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    walls: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    cpus: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, draws: int, error: float, wall: float, cpu: float) -> None:
        self.errors[draws].append(error)
        self.walls[draws].append(wall)
        self.cpus[draws].append(cpu)

    def rmse(self, draws: int) -> float:
        mean = statistics.fmean(error**2 for error in self.errors[draws])
        return math.sqrt(mean) if math.isfinite(mean) else math.inf

    def at(self, draws: int) -> Point:
        """Medians over the seeds: what other processes disturb least."""
        return Point(
            draws, statistics.median(self.walls[draws]), statistics.median(self.cpus[draws])
        )

    def to_reach(self, target: float, lasting: bool = False) -> Point:
        """The least it takes; the longest run if that was not enough.

        Args:
            target: Relative root mean square error.
            lasting: No longer run may miss it.
        """
        budgets = sorted(self.errors)
        within = [self.rmse(draws) <= target for draws in budgets]
        if not (within[-1] if lasting else any(within)):
            return replace(self.at(budgets[-1]), reached=False)
        index = within.index(True)
        if lasting and not all(within):
            index = len(within) - within[::-1].index(False)
        here = self.at(budgets[index])
        if index == 0 or not math.isfinite(self.rmse(budgets[index - 1])):
            return here
        before, after = self.rmse(budgets[index - 1]), self.rmse(budgets[index])
        share = math.log(before / target) / math.log(before / max(after, 1e-9))
        ends = zip(astuple(self.at(budgets[index - 1]))[:3], astuple(here)[:3], strict=True)
        return Point(*(a ** (1 - share) * b**share for a, b in ends))

    def burden(self, target: float) -> float:
        """Wall seconds to the target; where it was missed, as if the error fell with the root."""
        point = self.to_reach(target)
        missed_by = min(map(self.rmse, self.errors)) / target
        return point.wall if point.reached else point.wall * missed_by**2

    def table(self) -> str:
        cells = (f"{d}: {self.rmse(d):.1%} {self.at(d).wall:.2f} s" for d in sorted(self.errors))
        return "  ".join(cells)


# -- ours -----------------------------------------------------------------------------------------


def ours(problem: Problem, draws: int, seed: int) -> tuple[float, float, float]:
    """Relative error, wall seconds and CPU seconds of one measurement."""
    from phasewatch.monitor.sampling import SamplerConfig, estimate_llc

    config = SamplerConfig(num_draws=draws, seed=seed)
    wall, cpu = time.perf_counter(), time.process_time()
    n = len(problem.batch[0])
    found = estimate_llc(problem.net, [problem.batch], squared_error, n_samples=n, config=config)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return found.lambda_hat / problem.truth - 1, wall, cpu


# -- devinterp ------------------------------------------------------------------------------------


class Clock:
    """Callback of devinterp: when each draw of each chain was done."""

    def __init__(self) -> None:
        self.stamps: list[list[tuple[float, float]]] = []
        self._begun = (time.perf_counter(), time.process_time())

    def __call__(self, chain: int, draw: int, **_: Any) -> None:
        now = (time.perf_counter(), time.process_time())
        if draw == 0:
            before = self.stamps[-1][-1] if self.stamps else self._begun
            self.stamps.append([before])
        self.stamps[chain].append(now)

    def seconds(self, draws: int, kind: int) -> float:
        """Seconds that a call with so many draws takes: each chain up to there."""
        return math.fsum(chain[draws][kind] - chain[0][kind] for chain in self.stamps)


def peer_run(
    file: str, step_size: float, draws: Sequence[int], seed: int, n_beta: float
) -> dict[str, Any]:
    """One run of devinterp; its beginnings are the shorter runs."""
    from devinterp.optim import SGLD
    from devinterp.slt.llc import LLCEstimator
    from devinterp.slt.sampler import sample
    from torch.utils.data import DataLoader, TensorDataset

    saved = torch.load(file)
    net = module(saved["weights"], saved["tanh"])
    batch = (saved["x"], saved["y"])
    with torch.no_grad():
        init_loss = squared_error(net, batch).mean()
    loader = DataLoader(TensorDataset(*batch), batch_size=MINIBATCH, shuffle=True, drop_last=True)

    def evaluate(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return 0.5 * (model(batch[0]) - batch[1]).square().sum(dim=-1).mean()

    estimator = LLCEstimator(NUM_CHAINS, max(draws), init_loss=init_loss, nbeta=n_beta)
    clock = Clock()
    try:
        sample(
            net,
            loader,
            [estimator, clock],
            evaluate=evaluate,
            sampling_method=SGLD,
            optimizer_kwargs={"lr": step_size, "nbeta": n_beta, "localization": LOCALIZATION},
            num_draws=max(draws),
            num_chains=NUM_CHAINS,
            init_loss=init_loss,
            seed=seed,
            verbose=False,
        )
    except RuntimeError as error:
        if "NaN" not in str(error):
            raise
        return {"diverged": True}
    excess = n_beta * (estimator.losses.double() - init_loss)
    return {
        "diverged": False,
        "values": [float(excess[:, int(BURNIN * d) : d].mean()) for d in draws],
        "walls": [clock.seconds(d, 0) for d in draws],
        "cpus": [clock.seconds(d, 1) for d in draws],
    }


def peer_server() -> None:
    """Runs under the peer's interpreter: one line of JSON in, one out."""
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        print(json.dumps(peer_run(**json.loads(line))), flush=True)


# -- the comparison -------------------------------------------------------------------------------


@dataclass
class Result:
    """One model: our curve, and devinterp's for each step size."""

    problem: Problem
    ours: Curve
    peer: dict[float, Curve]

    def best(self, target: float) -> float:
        """The step size that reaches the target soonest."""
        return min(self.peer, key=lambda step: self.peer[step].burden(target))

    def error(self, step_size: float) -> float:
        """Smallest error at any length."""
        curve = self.peer[step_size]
        return min(map(curve.rmse, curve.errors))


def compare(problem: Problem, server: peers.Server | None, options: argparse.Namespace) -> Result:
    """Both sides in turn, seed by seed."""

    from phasewatch.monitor.sampling.pace import USUAL_DRAWS

    our_draws = sorted({*OUR_DRAWS, USUAL_DRAWS})
    # A quarter, the burn-in, is one pass or more: what remains is whole passes too.
    shortest = 4 * (len(problem.batch[0]) // MINIBATCH)
    peer_draws = [d for d in (shortest * 2**k for k in range(20)) if d <= options.max_draws]
    result = Result(problem, Curve(), {step: Curve() for step in STEP_SIZES} if server else {})
    ours(problem, our_draws[0], 0)  # both sides start warm
    for seed in range(options.seeds):
        steps = [s for s in result.peer if seed < 2 or result.error(s) < GIVEN_UP]
        for draws, step in itertools.zip_longest(our_draws, steps):
            if draws is not None:
                result.ours.add(draws, *ours(problem, draws, seed))
            if server is not None and step is not None:
                _ask(server, result, step, peer_draws, seed)
    return result


def _ask(
    server: peers.Server, result: Result, step: float, draws: Sequence[int], seed: int
) -> None:
    problem, curve = result.problem, result.peer[step]
    answer = server.ask(
        file=problem.file, step_size=step, draws=draws, seed=seed, n_beta=problem.n_beta
    )
    if answer["diverged"]:
        for count in draws:
            curve.add(count, math.inf, math.inf, math.inf)
        return
    columns = zip(draws, answer["values"], answer["walls"], answer["cpus"], strict=True)
    for count, value, wall, cpu in columns:
        error = value / problem.truth - 1 if math.isfinite(value) else math.inf
        curve.add(count, error, wall, cpu)


def report_model(result: Result) -> None:
    problem = result.problem
    print(f"{problem.model.name}: long-run value {problem.truth:.2f} ± {problem.truth_stderr:.2f}")
    print(f"  draws: RMSE, time: ours         {result.ours.table()}")
    for step, curve in result.peer.items():
        print(f"                 ε = {step:7.1e}    {curve.table()}")
    sys.stdout.flush()


def report(results: Sequence[Result], target: float) -> None:
    """The table and the geometric means."""

    from phasewatch.monitor.sampling.pace import USUAL_DRAWS

    default = USUAL_DRAWS
    print(f"\nseconds to {target:.0%} RMSE; in brackets: CPU seconds, draws")
    print(f"{'model':26s} {'plain default':>18s} {'ours':>24s}", end="")
    print(f" {'devinterp, best ε':>38s} {'ratio':>7s} {'one ε for all':>28s} {'ratio':>7s}")
    steps = list(results[0].peer)
    common = min(steps, key=lambda s: _burden(results, s, target), default=math.nan)
    ratios: dict[str, list[tuple[float, float]]] = {"best": [], "common": []}
    for result in results:
        plain, point = result.ours.at(default), result.ours.to_reach(target, lasting=True)
        shown = f"{plain.wall:.2f} s, {result.ours.rmse(default):.1%}"
        print(f"{result.problem.model.name:26s} {shown:>18s} {_shown(point):>24s}", end="")
        for kind, step in (("best", result.best(target) if steps else 0.0), ("common", common)):
            if not steps:
                continue
            other = result.peer[step].to_reach(target)
            ratio = (other.wall / point.wall, other.cpu / point.cpu)
            ratios[kind].append(ratio)
            label = f"{_shown(other)} {step:.1e}" if kind == "best" else _shown(other)
            mark = MARKS[point.reached, other.reached]
            width = 38 if kind == "best" else 28
            print(f" {label:>{width}s} {mark + format(ratio[0], '.1f'):>7s}", end="")
        print()
    for kind, name in (("best", "the best ε of each model"), ("common", f"ε = {common:.1e}")):
        if ratios[kind]:
            wall, cpu = map(statistics.geometric_mean, zip(*ratios[kind], strict=True))
            print(f"geometric mean of the ratios to {name}: {wall:.1f} (of CPU seconds: {cpu:.1f})")


def _burden(results: Sequence[Result], step: float, target: float) -> float:
    """How bad one step size for all models is."""
    return math.fsum(math.log(result.peer[step].burden(target)) for result in results)


def _shown(point: Point) -> str:
    mark = "" if point.reached else "> "
    return f"{mark}{point.wall:.2f} ({point.cpu:.2f}, {point.draws:.0f})"


def main() -> None:
    """Print the errors by length of each model, then the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--models", type=int, nargs="+", default=[0, 1, 2], help=f"of {len(MODELS)}"
    )
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--max-draws", type=int, default=1248, help="of devinterp")
    parser.add_argument("--target", type=float, default=0.08)
    parser.add_argument("--noise", type=float, default=1.0)
    parser.add_argument("--num-samples", type=int, default=10_000)
    parser.add_argument("--moves", type=int, default=60, help="of the long reference chains")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peer:
        peer_server()
        return
    shortest = 4 * (options.num_samples // MINIBATCH)
    if options.max_draws < shortest:
        parser.error(
            f"--max-draws is {options.max_draws}; four passes over the data are {shortest}"
        )
    interpreter = peers.interpreter()
    server = peers.Server(interpreter, __file__, "--peer") if interpreter else None
    results = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for index in options.models:
                problem = trained(
                    MODELS[index], options.num_samples, options.noise, options.moves, folder
                )
                results.append(compare(problem, server, options))
                report_model(results[-1])
        finally:
            if server is not None:
                server.close()
    report(results, options.target)


if __name__ == "__main__":
    main()
