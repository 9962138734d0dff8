"""The memory that chains take is what the formula says."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize("engine", ["vmap", "vmap, 2", "loop", "inplace"])
def test_the_measured_peak_is_that_of_the_formula(engine, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from llc_memory import measured_apart

    found = measured_apart(engine, 1_000_000, 256)
    assert found["d"] == 1_000_000
    # Far below it the formula would refuse what fits.
    assert 0.7 * found["formula"] < found["measured"] < 1.3 * found["formula"]
