"""The sweep: its grid, its recommendation, its page and its command."""

import dataclasses
import json
import math
import re
import sys
from functools import partial

import pytest
import torch
from torch import nn

from phasewatch.monitor.core.errors import ConfigError
from phasewatch.monitor.core.estimates import EstimateStatus
from phasewatch.monitor.reports.sweep_page import render_sweep
from phasewatch.monitor.sampling.factory import Subject
from phasewatch.monitor.sampling.sweep import agree, plateau, recommend, run_sweep
from support.records import make_estimate

N = 1000
N_BETA = N / math.log(N)
OK, UNCONVERGED, DIVERGED = (
    EstimateStatus.OK,
    EstimateStatus.UNCONVERGED,
    EstimateStatus.DIVERGED,
)


def loss(model, batch):
    x, y = batch
    return 0.5 * (model(x) - y).square().sum(dim=-1)


@pytest.fixture(scope="module")
def subject():
    """Linear regression with d = 6: λ = 3."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(2, 2)
        x = torch.randn(N, 2)
    return Subject(model, [(x, model(x).detach())], loss, N)


@pytest.fixture(scope="module")
def swept(subject):
    calls = []
    found = run_sweep(
        subject,
        steps=[1e-2, 2.5e-3, 1.0],
        localizations=[10.0, 1.0],
        n_betas=[N_BETA],
        num_draws=256,
        progress=lambda done, total: calls.append((done, total)),
    )
    return found, calls


def test_every_point_of_the_grid_is_measured_as_it_was_asked(swept):
    found, calls = swept
    points = [(e.localization, round(e.step_size, 8)) for e in found.grid]
    assert points == [(g, s) for g in (1.0, 10.0) for s in (2.5e-3, 1e-2, 1.0)]
    assert [e.localization for e in found.automatic] == [1.0, 10.0]
    assert {e.n_beta for e in found.grid} == {N_BETA}
    assert all(e.num_draws + e.num_burnin == 256 for e in found.grid if e.status is OK)
    assert calls == [(done, 8) for done in range(1, 9)]


def test_too_large_a_step_shows_as_diverged_and_is_not_recommended(swept):
    found, _ = swept
    assert {e.status for e in found.grid if e.step_size == 1.0} == {DIVERGED}
    assert found.recommended is not None
    assert found.recommended.step_size == pytest.approx(1e-2)
    assert abs(found.recommended.lambda_hat - 3.0) < 4 * found.recommended.lambda_stderr


def test_the_default_grid_comes_from_the_curvature_and_from_n(subject):
    found = run_sweep(subject, localizations=[1.0], num_draws=16)
    automatic = found.automatic[1]
    steps = sorted({e.step_size for e in found.grid})
    assert automatic.n_beta == pytest.approx(N_BETA)
    assert [step / automatic.step_size for step in steps] == pytest.approx(
        [1 / 16, 1 / 4, 1, 4, 16, 64]
    )
    n_betas = sorted({e.n_beta for e in found.grid})
    assert n_betas == pytest.approx([N_BETA / 4, N_BETA, 4 * N_BETA])
    assert automatic.sharpness == pytest.approx(1.1, abs=0.2)


def test_the_model_and_the_random_generators_stay_as_they_are(subject):
    before = {key: value.clone() for key, value in subject.model.state_dict().items()}
    state = torch.get_rng_state()
    run_sweep(subject, steps=[1e-3], localizations=[1.0], n_betas=[10.0], num_draws=16)
    assert torch.equal(torch.get_rng_state(), state)
    after = subject.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_same_seed_gives_the_same_sweep(subject):
    def once(seed):
        grid = {"steps": [1e-3], "localizations": [1.0], "n_betas": [10.0]}
        return run_sweep(subject, **grid, num_draws=16, seed=seed).grid[0].lambda_hat

    assert once(1) == once(1)
    assert once(1) != once(2)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"steps": [1e-3, -1.0]}, "step_size: got -1.0"),
        ({"localizations": [-2.0]}, "localization: got -2.0"),
        ({"n_betas": [0.0]}, "n_beta: got 0.0"),
        ({"num_draws": 2}, "num_draws: got 2"),
        ({"localizations": []}, "localizations is empty"),
    ],
)
def test_a_wrong_value_is_told_before_the_work(subject, grid, message):
    with pytest.raises(ConfigError, match=message):
        run_sweep(subject, **grid, progress=pytest.fail)


# ---- the recommendation


def point(step, value, *, gamma=1.0, n_beta=N_BETA, stderr=0.01, status=OK, acceptance=None):
    reason = "" if status is OK else "drift 0.31 is not below 0.2"
    return make_estimate(
        lambda_hat=value,
        lambda_stderr=stderr,
        status=status,
        reason=reason,
        step_size=step,
        localization=gamma,
        n_beta=n_beta,
        n_samples=N,
        sharpness=2.0,
        acceptance=acceptance,
    )


def test_estimates_agree_within_a_tenth_or_within_their_errors():
    assert agree(point(1, 10.0), point(1, 10.9))
    assert not agree(point(1, 10.0), point(1, 11.5))
    assert agree(point(1, 10.0, stderr=0.6), point(1, 11.5, stderr=0.6))


def test_a_plateau_is_the_longest_run_that_settled_and_agrees():
    values = [4.0, 7.0, 9.8, 10.0, 10.2, 13.0]
    points = [point(10.0**i, value) for i, value in enumerate(values)]
    assert [e.lambda_hat for e in plateau(points)] == [9.8, 10.0, 10.2]
    assert plateau(points[::-1]) == plateau(points)


def test_what_creeps_on_is_no_plateau_as_a_whole():
    points = [point(10.0**i, 10.0 * 1.08**i) for i in range(6)]
    assert len(plateau(points)) == 2


def test_an_unsettled_point_breaks_a_plateau():
    points = [point(1, 10), point(2, 10), point(3, 10, status=UNCONVERGED), point(4, 10)]
    assert [e.step_size for e in plateau(points)] == [1, 2]
    assert plateau([point(1, 10, status=DIVERGED)]) == []


def test_the_largest_step_on_the_plateau_is_recommended_and_the_next_is_told():
    grid = [point(1, 6), point(2, 10), point(3, 10.1), point(4, math.nan, status=DIVERGED)]
    best, why = recommend(grid, [point(2.5, 10.0)])
    assert best is grid[2]
    assert "plateau from ε = 2 to ε = 3" in why[0]
    assert "At the next step, ε = 4, the estimate is diverged (drift" in why[0]
    assert "curvature at w* (2)" in why[3]
    assert why[3].endswith("the two agree.")


def test_the_acceptance_of_the_recommended_step_is_told_where_it_is_known():
    grid = [point(1, 10), point(2, 10, acceptance=0.873)]
    _, why = recommend(grid, [point(2, 10)])
    assert "would let 87% of its steps pass" in why[0]
    _, why = recommend([point(1, 10), point(2, 10)], [point(2, 10)])
    assert "Metropolis" not in why[0]


def test_an_automatic_step_that_disagrees_is_told():
    grid = [point(1, 10), point(2, 10)]
    assert recommend(grid, [point(2, 13)])[1][3].endswith("the two do not agree.")
    _, why = recommend(grid, [point(2, math.nan, status=DIVERGED)])
    assert "automatic step diverges here" in why[3]


@pytest.mark.parametrize(
    ("levels", "chosen", "said"),
    [
        ({0.1: 10, 1.0: 10, 10.0: 10}, 10.0, "does not depend on it"),
        ({0.1: 10, 1.0: 10, 10.0: 6}, 1.0, "stays the same up to γ = 1 "),
        ({0.1: 10, 1.0: 7, 10.0: 4}, 0.1, "no plateau in γ"),
        ({1.0: 10}, 1.0, "only γ = 1 gives a plateau"),
    ],
)
def test_localization_is_the_largest_that_does_not_show(levels, chosen, said):
    grid = [point(step, value, gamma=gamma) for gamma, value in levels.items() for step in (1, 2)]
    best, why = recommend(grid, [point(2, 10)])
    assert best.localization == chosen
    assert said in why[1]


def test_the_temperature_is_that_nearest_to_the_theorys():
    grid = [
        point(step, value, n_beta=n_beta)
        for n_beta, value in ((0.5 * N_BETA, 8.0), (1.1 * N_BETA, 10.0), (4 * N_BETA, 12.0))
        for step in (1, 2)
    ]
    best, why = recommend(grid, [point(2, 10)])
    assert best.n_beta == 1.1 * N_BETA
    assert f"n / log n = {N_BETA:.4g}" in why[2]
    assert "8 at nβ" in why[2]
    assert "12 at nβ" in why[2]


def test_without_a_plateau_nothing_is_recommended_and_the_reason_is_told():
    grid = [point(step, 10, status=UNCONVERGED) for step in (1, 2, 3)]
    best, why = recommend(grid, [point(2, 10)])
    assert best is None
    assert len(why) == 1
    assert "drift 0.31 is not below 0.2" in why[0]
    assert "more draws" in why[0]


# ---- the page and the command


def page_data(page):
    text = re.search(r'id="page-data">(.*?)</script>', page, re.DOTALL).group(1)
    return json.loads(text)


def test_the_page_shows_surfaces_curves_traces_and_why(swept):
    found, _ = swept
    page = render_sweep(found, "Calibration of <b>", "n = 1,000")
    data = page_data(page)
    assert "Calibration of &lt;b&gt;" in page
    assert "Recommended: ε = 0.01" in page
    assert all(sentence.split(" (")[0] in page for sentence in found.why)
    surface, acceptance = data["figures"]["surfaces"]["data"]
    assert surface["y"] == ["1", "10"]
    assert surface["z"][0][1] == pytest.approx(found.grid[1].lambda_hat, rel=1e-3)
    assert acceptance["z"][0][1] == pytest.approx(found.grid[1].acceptance, rel=1e-3)
    assert surface["z"][0][2] is None
    assert surface["text"][0][2] == "×"
    assert len(data["chains"]) == len(found.grid) + len(found.automatic)
    assert data["chains"][surface["customdata"][1][1]]["title"] == "ε = 0.01, γ = 10, nβ = 144.8"
    lines = [trace["name"] for trace in data["figures"]["curves"]["data"] if trace["name"]]
    assert lines == ["γ = 1", "γ = 10", "recommended"]


def test_acceptance_is_shown_where_it_is_measured(swept):
    found, _ = swept
    grid = tuple(dataclasses.replace(e, acceptance=0.75) for e in found.grid)
    page = render_sweep(dataclasses.replace(found, grid=grid, recommended=None), "c", "s")
    assert page_data(page)["figures"]["surfaces"]["data"][1]["z"][0] == [0.75] * 3
    assert "No point of the grid can be recommended" in page


SOURCE = """
import torch
from torch import nn

def factory():
    def loss(model, batch):
        return 0.5 * (model(batch[0]) - batch[1]).square().sum(dim=-1)
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    return nn.Linear(2, 1, bias=False), [(x, x @ torch.tensor([[1.0], [2.0]]))], loss, 200
"""


@pytest.fixture
def shell(phasewatch, monkeypatch, tmp_path):
    """Runs `phasewatch calibrate` in a folder with a factory; exit code, output, errors."""
    (tmp_path / "sweep_probe.py").write_text(SOURCE, encoding="utf-8")
    torch.save({"weight": torch.tensor([[1.0, 2.0]])}, tmp_path / "w.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    yield partial(phasewatch, "calibrate")
    sys.modules.pop("sweep_probe", None)


GRID = ("--steps", "4e-3,1.6e-2", "--localizations", "1", "--n-betas", "40", "--draws", "1024")


def test_the_command_writes_the_page_and_says_what_to_use(shell, tmp_path):
    code, out, _ = shell("sweep_probe:factory", "--checkpoint", "w.pt", *GRID, "--out", "c.html")
    assert code == 0
    assert "Step size: " in out
    assert "SamplerConfig(step_size=0.016, localization=1, n_beta=40)" in out
    assert "sweep of 2 points written to c.html" in out
    page = (tmp_path / "c.html").read_text(encoding="utf-8")
    assert "Calibration of sweep_probe:factory" in page
    assert "weights of w.pt · n = 200" in page


def test_json_is_all_there_is_on_standard_output(shell):
    code, out, _ = shell("sweep_probe:factory", "--checkpoint", "w.pt", *GRID, "--json")
    content = json.loads(out)
    assert code == 0
    assert [e["step_size"] for e in content["grid"]] == pytest.approx([4e-3, 1.6e-2])
    assert content["recommended"]["lambda_hat"] == content["grid"][1]["lambda_hat"]
    assert len(content["why"]) == 4
    assert len(content["automatic"]) == 1
    assert "chain_loss" not in content["grid"][0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sweep_probe:factory", "--steps", "1e-3;1"), "--steps is '1e-3;1'; it must be numbers"),
        (("sweep_probe:factory", "--checkpoint", "none.pt"), "cannot be read: No such file"),
        (("sweep_probe:nothing",), "unknown function of module 'sweep_probe'"),
        (("sweep_probe:factory", *GRID, "--out", "."), "give --out a path"),
    ],
)
def test_an_error_is_one_line(shell, arguments, message):
    code, out, err = shell(*arguments)
    assert (code, out) == (1, "")
    assert message in err
    assert err.strip().count("\n") == 0
