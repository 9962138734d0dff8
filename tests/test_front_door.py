"""`import phasewatch`: its names, and how little it takes."""

from __future__ import annotations

import subprocess
import sys

import pytest

import phasewatch
from phasewatch.monitor.core.errors import CurveError

STEPS = range(10, 6010, 10)
CURVE = [(1.0 if step < 3000 else 0.01) * (1 + 0.01 * (step // 10 % 7)) for step in STEPS]


def printed(code):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_every_name_it_offers_is_there_and_it_offers_no_other():
    assert phasewatch.__all__ == sorted(phasewatch.__all__)
    assert set(phasewatch.__all__) == {*phasewatch._PLACES, "__version__"}
    for name in phasewatch.__all__:
        assert getattr(phasewatch, name) is not None
    assert dir(phasewatch) == phasewatch.__all__
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = phasewatch.Nothing


def test_its_names_are_those_of_the_packages():
    import phasewatch.callbacks
    import phasewatch.monitor
    import phasewatch.monitor.sampling

    assert phasewatch.TransitionMonitor is phasewatch.callbacks.TransitionMonitor
    assert phasewatch.Watch is phasewatch.monitor.Watch
    assert phasewatch.MonitorConfig is phasewatch.monitor.MonitorConfig
    assert phasewatch.estimate_llc is phasewatch.monitor.sampling.estimate_llc
    assert phasewatch.SamplerConfig is phasewatch.monitor.sampling.SamplerConfig


def test_the_version_is_that_of_the_distribution():
    from importlib.metadata import version

    assert phasewatch.__version__ == version("phasewatch")


def test_importing_it_brings_nothing_but_the_standard_library():
    code = (
        "import sys, typing, importlib; before = set(sys.modules); import phasewatch;"
        "print(*sorted(set(sys.modules) - before))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["phasewatch"]


def test_what_needs_no_torch_brings_none():
    code = (
        "import sys, phasewatch; phasewatch.MonitorConfig, phasewatch.Store, phasewatch.detect;"
        "phasewatch.Observable, phasewatch.__version__; print('torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"


def test_detect_finds_in_arrays_what_it_finds_in_a_file(tmp_path):
    file = tmp_path / "curve.csv"
    rows = [f"{step},{value}" for step, value in zip(STEPS, CURVE, strict=True)]
    file.write_text("\n".join(["step,val_loss", *rows]))
    (found,) = phasewatch.detect({"val_loss": CURVE}, steps=STEPS).transitions
    (read,) = phasewatch.detect(file).transitions
    assert 2980 <= found.onset_step <= 3000 <= found.detected_step <= 3100
    assert (found.kind, found.onset_step, found.detected_step, found.end_step) == (
        read.kind,
        read.onset_step,
        read.detected_step,
        read.end_step,
    )
    assert found.hindsight == read.hindsight


def test_detect_takes_another_detector():
    outcome = phasewatch.detect({"x": CURVE}, detector="page_hinkley", parameters={"gate": 0.5})
    assert [(w.name, w.detector, w.parameters["gate"]) for w in outcome.watched] == [
        ("x", "page_hinkley", 0.5)
    ]


@pytest.mark.parametrize(
    ("curves", "steps", "message"),
    [
        ({"a": [1.0, 2.0], "b": [1.0]}, None, "'b' has 1 values, but must have 2"),
        ({"a": [1.0, 2.0]}, [1], "'a' has 2 values, but must have 1"),
        ({"a": [1.0, 2.0, 3.0]}, [1, 5, 5], "steps do not increase after 5"),
        ("curve.csv", [1], "steps were given beside the file curve.csv"),
    ],
)
def test_detect_refuses_curves_that_do_not_fit(curves, steps, message):
    with pytest.raises(CurveError, match=message):
        phasewatch.detect(curves, steps=steps)
