import json
import math

import pytest

from phasewatch.detectors.statistics.scales import StreamScale


def test_losses_are_taken_in_log10_and_come_back():
    scale = StreamScale("log", 1e-8)
    assert scale.take(0.01) == pytest.approx(-2.0, abs=1e-5)
    assert scale.back(scale.take(0.3)) == pytest.approx(0.3)
    assert scale.take(0.0) == scale.take(-1.0) == pytest.approx(-8.0)
    assert scale.unit == 1.0


def test_auto_turns_linear_at_the_first_negative_value_and_forgets_the_range():
    scale = StreamScale("auto", 1e-8)
    scale.take(100.0)
    assert not scale.must_change(0.0)
    assert scale.must_change(-3.0)
    assert not scale.must_change(-4.0)
    assert scale.take(-3.0) == -3.0
    assert scale.range == 0.0
    assert scale.unit == 3.0


@pytest.mark.parametrize("name", ["log", "linear"])
def test_a_named_scale_never_changes(name):
    assert not StreamScale(name, 1e-8).must_change(-1.0)


def test_the_range_grows_and_the_unit_is_the_largest_size_on_the_linear_scale():
    scale = StreamScale("linear", 1e-8)
    for value in (2.0, -1.0, 5.0, 1.0):
        scale.take(value)
    assert (scale.lowest, scale.highest, scale.range, scale.unit) == (-1.0, 5.0, 6.0, 6.0)


def test_a_reset_scale_is_logarithmic_again():
    scale = StreamScale("auto", 1e-8)
    scale.must_change(-1.0)
    scale.reset()
    assert not scale.linear


def test_going_back_never_overflows():
    assert math.isfinite(StreamScale("log", 1e-8).back(1e9))


def test_it_goes_through_json():
    scale, again = StreamScale("auto", 1e-8), StreamScale("auto", 1e-8)
    scale.must_change(-1.0)
    scale.take(-1.0)
    scale.take(7.0)
    again.load_state_dict(json.loads(json.dumps(scale.state_dict())))
    again.take(3.0)
    assert (again.linear, again.lowest, again.highest) == (True, -1.0, 7.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("db", 1e-8), r"scale is 'db', but must be 'auto', 'log' or 'linear'"),
        (("log", 0.0), r"floor is 0\.0, but must be above 0"),
    ],
)
def test_a_parameter_out_of_range_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        StreamScale(*arguments)
