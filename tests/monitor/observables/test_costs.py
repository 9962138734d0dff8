"""What measurements were seen to take, in words."""

import pytest

from phasewatch.monitor.observables.costs import DURATIONS, SIZES, MeasuredCost, in_words


@pytest.mark.parametrize(
    ("values", "units", "said"),
    [
        ([3e-4, 1.12e-3, 9.04e-3], DURATIONS, "300 µs / 1.1 ms / 9 ms"),
        ([0.0021, 0.0114, 0.2444], DURATIONS, "2.1 / 11 / 244 ms"),
        ([0.5, 12.34, 300.0], DURATIONS, "500 ms / 12 s / 300 s"),
        ([2e-7], DURATIONS, "0.2 µs"),
        ([408, 266_000, 1.24e9], SIZES, "408 B / 266 kB / 1.2 GB"),
        ([0, 10, 999], SIZES, "0 / 10 / 999 B"),
    ],
)
def test_two_figures_and_each_unit_once_where_it_is_the_same(values, units, said):
    assert in_words(values, units) == said


def test_the_words_are_of_processor_time_and_of_memory():
    spent = MeasuredCost(
        parameters=(1, 2),
        cpu_seconds=(1.0, 2.0),
        seconds=(3.0, 4.0),
        passes=(5.0, 6.0),
        bytes=(7, 8),
    )
    assert (spent.duration, spent.memory) == ("1 / 2 s", "7 / 8 B")
