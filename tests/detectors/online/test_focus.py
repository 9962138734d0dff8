import numpy as np
import pytest

from phasewatch.detectors import Focus
from phasewatch.detectors.online.focus import FunctionalPruning


def series(kind, seed):
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(120)
    match kind:
        case "noise":
            return noise
        case "step":
            return noise + np.where(np.arange(120) < 70, 0.0, rng.choice([-2.0, 2.0]))
        case "walk":
            return np.cumsum(noise)
        case "integers":  # ties, as on a line
            return np.round(noise)
        case _:
            return np.linspace(-1.0, 1.0, 120) * rng.choice([-1.0, 1.0])


def brute_force(z):
    """2 log Λ of the best change point and both means, by sums of squares; and that point."""

    def squares(part):
        return float(((part - part.mean()) ** 2).sum())

    gains = [squares(z) - squares(z[:tau]) - squares(z[tau:]) for tau in range(1, z.size)]
    best = int(np.argmax(gains))
    return gains[best], best + 1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["noise", "step", "walk", "integers", "line"])
def test_it_equals_brute_force_over_all_change_points_and_means(kind, seed):
    z = series(kind, seed)
    focus = FunctionalPruning(max_pieces=200)
    for n in range(1, z.size + 1):
        focus.update(float(z[n - 1]))
        if n == 1:
            assert focus.statistic == 0.0
            continue
        gain, tau = brute_force(z[:n])
        assert focus.statistic == pytest.approx(gain, abs=1e-9)
        if gain > 1e-6 and kind not in ("integers", "line"):
            assert focus.run_length == n - tau
            assert focus.sign == np.sign(z[tau:n].mean() - z[:tau].mean())


def test_noise_leaves_few_change_points_to_look_at():
    focus = FunctionalPruning(max_pieces=10_000)
    for z in np.random.default_rng(0).standard_normal(20_000).tolist():
        focus.update(z)
    assert max(map(len, focus._sides.values())) < 30


def test_the_cap_bounds_the_memory_and_the_statistic_from_above():
    focus, exact = FunctionalPruning(max_pieces=3), FunctionalPruning(max_pieces=10_000)
    for z in np.linspace(-1.0, 1.0, 300).tolist():  # every point stays on the hull
        focus.update(z)
        exact.update(z)
        assert focus.statistic <= exact.statistic + 1e-9
    assert max(map(len, focus._sides.values())) == 4
    assert max(map(len, exact._sides.values())) == 300
    assert focus.statistic > 0.0


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"threshold": 0.0}, r"threshold is 0\.0, but must be above 0"),
        ({"max_pieces": 0}, "max_pieces is 0, but must be at least 1"),
    ],
)
def test_a_parameter_out_of_range_is_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        Focus(**parameters)
