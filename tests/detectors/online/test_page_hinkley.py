import numpy as np
import pytest

from phasewatch.detectors import PageHinkley
from phasewatch.detectors.online.page_hinkley import PageHinkleySums


def test_the_sums_are_those_of_the_definition():
    z = 3.0 + np.random.default_rng(0).standard_normal(500)
    means = np.cumsum(z) / np.arange(1, z.size + 1)
    sums = PageHinkleySums(0.25)
    for n in range(1, z.size + 1):
        sums.update(float(z[n - 1]))
        up, down = (
            np.concatenate([[0.0], np.cumsum(sign * (z[:n] - means[:n]) - 0.25)])
            for sign in (1.0, -1.0)
        )
        assert sums.statistic == pytest.approx(max(up[-1] - up.min(), down[-1] - down.min()))


def test_a_mean_that_was_always_off_zero_is_no_change():
    sums = PageHinkleySums(0.25)
    for z in (2.0 + 0.1 * np.random.default_rng(0).standard_normal(1_000)).tolist():
        sums.update(z)
        assert sums.statistic < 1.0
    for _ in range(10):
        sums.update(-1.0)
    assert sums.statistic > 20.0
    assert sums.sign == -1
    assert sums.run_length == 10


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"threshold": 0.0}, r"threshold is 0\.0, but must be above 0"),
        ({"slack": -1.0}, r"slack is -1\.0, but must be at least 0"),
    ],
)
def test_a_parameter_out_of_range_is_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        PageHinkley(**parameters)
