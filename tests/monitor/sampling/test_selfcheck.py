"""The self-check: its verdicts, its exit code, its JSON and its page."""

import dataclasses
import json
from functools import partial

import pytest
import torch

from phasewatch.monitor.core.errors import ConfigError
from phasewatch.monitor.core.estimates import EstimateStatus
from phasewatch.monitor.sampling import closed_forms, selfcheck
from phasewatch.monitor.sampling.closed_forms import deep_linear_case, regular_case
from phasewatch.monitor.sampling.selfcheck import choose_device, judge, run_selfcheck
from support.records import make_estimate


@pytest.fixture
def few(monkeypatch):
    """Two quick cases in place of all of them; returns a function that changes them."""
    cases = [regular_case(3, 2, 300), deep_linear_case((2, 3, 2), 1, num_samples=300)]
    monkeypatch.setattr(selfcheck, "all_cases", lambda _: cases)
    monkeypatch.setattr(selfcheck, "net_cases", list)

    def change(index, **fields):
        cases[index] = dataclasses.replace(cases[index], **fields)

    return change


@pytest.fixture
def shell(phasewatch):
    return partial(phasewatch, "selfcheck")


def test_it_prints_truth_estimate_and_verdict_of_each_case(few, shell):
    code, out, err = shell("--device", "cpu")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["model", "regular", "deep"]
    assert all("±" in line and " ok " in line and "pass" in line for line in lines[1:3])
    assert lines[-1].startswith("2 of 2 cases passed on cpu")
    assert selfcheck.RULE in out


def test_a_wrong_truth_fails_it_with_exit_code_1(few, shell):
    few(0, truth=6.0)
    code, out, _ = shell("--device", "cpu")
    assert code == 1
    assert "FAIL" in out.splitlines()[1]
    assert "1 of 2 cases passed" in out


def test_json_is_all_there_is_on_standard_output(few, shell):
    few(0, truth=6.0)
    code, out, _ = shell("--device", "cpu", "--json")
    content = json.loads(out)
    assert code == 1
    assert (content["device"], content["passed"]) == ("cpu", False)
    wrong, right = content["checks"]
    assert (wrong["truth"], wrong["passed"]) == (6.0, False)
    assert right["passed"] is True
    assert right["status"] == "ok"
    assert abs(right["lambda_hat"] - right["truth"]) < 3 * right["lambda_stderr"]


def test_the_report_is_one_page_that_loads_nothing(few, shell, tmp_path):
    few(1, name="<script>alert(1)</script>", truth=20.0)
    code, out, _ = shell("--device", "cpu", "--report", tmp_path / "check.html")
    assert code == 1
    assert "1 of 2" in out
    page = (tmp_path / "check.html").read_text(encoding="utf-8")
    assert "regular 3x2" in page
    assert "<td>fail</td>" in page
    assert "1 of 2 cases passed" in page
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert "default-src 'none'" in page
    assert "<link" not in page


def test_a_page_that_cannot_be_written_is_one_line(few, shell, tmp_path):
    code, _, err = shell("--device", "cpu", "--report", tmp_path)
    assert code == 1
    assert "give --report a path" in err
    assert err.count("\n") == 1


def test_a_device_that_is_not_here_is_refused(shell):
    code, out, err = shell("--device", "tpu")
    assert (code, out) == (1, "")
    assert "device is 'tpu'; this machine has cpu" in err


def test_auto_takes_an_accelerator_if_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match="this machine has cpu"):
        choose_device("cuda")


CASE = regular_case(4, 4, num_samples=100)


@pytest.mark.parametrize(
    ("value", "stderr", "status", "passed"),
    [
        (9.5, 0.1, EstimateStatus.OK, True),  # within 20 % of 8
        (9.7, 0.1, EstimateStatus.OK, False),
        (9.7, 0.6, EstimateStatus.OK, True),  # within 3 standard errors
        (6.3, 0.1, EstimateStatus.OK, False),
        (8.0, 0.1, EstimateStatus.UNCONVERGED, False),
        (float("nan"), float("nan"), EstimateStatus.DIVERGED, False),
    ],
)
def test_the_verdict_is_the_rule_that_is_printed(value, stderr, status, passed):
    found = make_estimate(lambda_hat=value, lambda_stderr=stderr, status=status)
    assert judge(CASE, found).passed is passed


def test_it_is_judged_by_what_is_expected_at_its_n_not_in_the_limit():
    case = closed_forms.monomial_case((1, 1))
    found = make_estimate(lambda_hat=case.expected, lambda_stderr=0.0, status=EstimateStatus.OK)
    assert case.expected < 0.8 * case.truth
    assert judge(case, found).passed


def test_what_the_device_cannot_do_is_a_failed_case_and_the_rest_still_runs():
    class Broken(torch.nn.Linear):
        def forward(self, x):
            raise TypeError("no float64 here")

    broken = dataclasses.replace(CASE, model=Broken(4, 4), name="broken")
    first, second = run_selfcheck("cpu", [broken, regular_case(3, 2, 300)])
    assert (first.passed, first.status) == (False, "failed")
    assert "no float64 here" in first.reason
    assert second.passed


@pytest.mark.slow
def test_the_whole_suite_passes_here():
    failed = [check for check in run_selfcheck("cpu") if not check.passed]
    assert failed == []
