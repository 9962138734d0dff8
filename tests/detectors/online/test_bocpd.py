import itertools
import math

import numpy as np
import pytest

from phasewatch.detectors import Bocpd
from phasewatch.detectors.online.bocpd import ALPHA, BETA, RunLengths

KAPPA, MEAN_RUN = 0.3, 6.0


def log_evidence(z):
    """log p(z) of one run under the normal-inverse-gamma prior, in closed form."""
    n = len(z)
    if n == 0:
        return 0.0
    kappa, alpha = KAPPA + n, ALPHA + n / 2.0
    mean = sum(z) / n
    squares = sum((x - mean) ** 2 for x in z)
    beta = BETA + squares / 2.0 + KAPPA * n * mean * mean / (2.0 * kappa)
    return (
        math.lgamma(alpha) - math.lgamma(ALPHA) + ALPHA * math.log(BETA) - alpha * math.log(beta)
        + 0.5 * math.log(KAPPA / kappa) - n / 2.0 * math.log(2.0 * math.pi)
    )  # fmt: skip


def brute_force(z):
    """P(run length | z), summed over all 2ⁿ ways to cut z; a cut may follow the last point."""
    n, hazard = len(z), 1.0 / MEAN_RUN
    posterior = np.zeros(n + 1)
    for cuts in itertools.product([False, True], repeat=n):
        ends = [i + 1 for i, cut in enumerate(cuts) if cut]
        edges = [0, *ends, n]
        runs = [z[a:b] for a, b in itertools.pairwise(edges)]
        prior = hazard ** sum(cuts) * (1.0 - hazard) ** (n - sum(cuts))
        posterior[n - edges[-2]] += prior * math.exp(sum(map(log_evidence, runs)))
    return posterior / posterior.sum()


def bare(max_run=50, recent=40):
    return RunLengths(MEAN_RUN, max_run, KAPPA, recent)


@pytest.mark.parametrize("seed", range(3))
def test_the_posterior_equals_the_sum_over_all_ways_to_cut_the_series(seed):
    z = np.random.default_rng(seed).standard_normal(10)
    z[6:] += 4.0
    lengths = bare()
    for n in range(1, z.size + 1):
        lengths.update(float(z[n - 1]))
        assert lengths.probabilities == pytest.approx(brute_force(z[:n].tolist()), abs=1e-12)


def test_a_change_is_seen_where_it_is():
    z = np.random.default_rng(0).standard_normal(60)
    z[50:] -= 5.0
    lengths = RunLengths(100.0, 100, KAPPA, 40)
    for value in z.tolist():
        lengths.update(value)
    assert lengths.statistic > 0.9
    assert (lengths.run_length, lengths.sign) == (10, -1)


def test_the_start_of_the_stream_is_no_change():
    lengths = RunLengths(1e6, 200, KAPPA, 40)
    for z in np.random.default_rng(0).standard_normal(150).tolist():
        lengths.update(z)
        assert lengths.statistic < 0.01


def test_long_runs_share_the_last_place():
    short, long = bare(max_run=41), bare(max_run=400)
    for z in np.random.default_rng(3).standard_normal(300).tolist():
        short.update(z)
        long.update(z)
        assert short.probabilities.sum() == pytest.approx(1.0)
    assert short.probabilities.size == 42
    assert short.probabilities[:20] == pytest.approx(long.probabilities[:20], rel=0.2, abs=1e-3)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"threshold": 1.0}, r"threshold is 1\.0, but must be above 0 and below 1"),
        ({"mean_run": 1.0}, r"mean_run is 1\.0, but must be above 1"),
        ({"recent": 2}, "recent is 2, but must be at least 3"),
        ({"max_run": 40}, "max_run is 40, but must be above recent = 40"),
        ({"kappa": 0.0}, r"kappa is 0\.0, but must be above 0"),
    ],
)
def test_a_parameter_out_of_range_is_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        Bocpd(**parameters)
