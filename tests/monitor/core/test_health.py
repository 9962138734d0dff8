"""Durations as a histogram; counters that are born at zero."""

from phasewatch.monitor.core.health import Durations, Health
from phasewatch.monitor.core.metrics import MEASUREMENT_BUCKETS


def test_a_duration_falls_into_the_bucket_that_ends_at_or_above_it():
    for index, bound in enumerate(MEASUREMENT_BUCKETS):
        at, above = Durations().after(bound, 1, 1.0), Durations().after(bound * 1.01, 1, 1.0)
        assert at.counts.index(1) == at.latest_bucket == index
        assert above.counts.index(1) == above.latest_bucket == index + 1


def test_durations_are_replaced_and_never_changed():
    first = Durations().after(0.5, 10, 100.0)
    second = first.after(2.5, 20, 200.0)
    assert (sum(first.counts), first.sum_seconds) == (1, 0.5)
    assert (sum(second.counts), second.sum_seconds) == (2, 3.0)
    latest = (second.latest_seconds, second.latest_step, second.latest_timestamp)
    assert latest == (2.5, 20, 200.0)


def test_a_measurement_is_counted_and_timed():
    health = Health()
    health.born(["llc"], ["Logger"])
    assert health.durations == {"llc": Durations()}
    assert health.sink_failures == {"Logger": 0}
    health.measured("llc", 0.25, 7)
    assert health.measurements["llc"] == 1
    assert health.durations["llc"].sum_seconds == 0.25
    assert health.durations["llc"].latest_step == 7
    assert health.durations["llc"].latest_timestamp > 0
