"""The models of known λ: their tables, and that each model is what its table says."""

import math

import pytest
import torch

from phasewatch.monitor.sampling.closed_forms import (
    DEEP_LINEAR,
    POLYGONS,
    REDUCED_RANK,
    all_cases,
    deep_linear_lambda,
    monomial_mean,
    reduced_rank_case,
    reduced_rank_lambda,
    squared_error,
    superposition_case,
)
from phasewatch.monitor.sampling.estimators import default_n_beta

N_BETA = 1e4 / math.log(1e4)


def hessian_rank(case):
    """Rank of the Hessian at w*, what its slope could still gain in nats, smallest eigenvalue."""
    model = case.to("cpu").model.double()
    batch = [tensor.double() for tensor in case.batch]
    names, tensors = zip(*model.named_parameters(), strict=True)
    sizes = [tensor.numel() for tensor in tensors]

    def loss(flat):
        parts = [p.view_as(t) for p, t in zip(flat.split(sizes), tensors, strict=True)]
        values = dict(zip(names, parts, strict=True))

        def forward(x):
            return torch.func.functional_call(model, values, (x,))

        return squared_error(forward, batch).mean()

    center = torch.cat([tensor.detach().flatten() for tensor in tensors])
    slope = torch.autograd.functional.jacobian(loss, center)
    values = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, center))
    steep = values[values > 1e-3]
    return len(steep), float(slope.square().sum() / (2 * steep.min())), float(values.min())


@pytest.mark.parametrize(("widths", "rank", "value", "multiplicity"), DEEP_LINEAR)
def test_deep_linear_table(widths, rank, value, multiplicity):
    assert deep_linear_lambda(widths, rank) == (value, multiplicity)


@pytest.mark.parametrize(("widths", "ranks", "rank", "value", "multiplicity"), REDUCED_RANK)
def test_reduced_rank_table(widths, ranks, rank, value, multiplicity):
    assert reduced_rank_lambda(widths, ranks, rank) == (value, multiplicity)


@pytest.mark.parametrize(("widths", "rank"), [((5, 3, 5), 0), ((6, 4, 6), 2), ((3, 5, 4), 1)])
def test_layers_of_the_rank_of_their_product_are_the_most_singular_point(widths, rank):
    assert reduced_rank_lambda(widths, (rank, rank), rank) == deep_linear_lambda(widths, rank)


def test_a_point_of_full_rank_layers_is_regular_up_to_its_symmetry():
    # d = 40 parameters, of which the 16 of GL(4) change nothing.
    assert reduced_rank_lambda((5, 4, 5), (4, 4), 4) == ((40 - 16) / 2, 1)


@pytest.mark.parametrize("ranks", [(3, 2), (0, 1), (6, 1), (1, 6)])
def test_ranks_that_no_network_has_are_refused(ranks):
    with pytest.raises(ValueError, match=r"a \+ b − r ≤ H"):
        reduced_rank_lambda((5, 4, 5), ranks, 0 if ranks == (3, 2) else 1)


@pytest.mark.parametrize(("widths", "ranks", "rank", "value", "multiplicity"), REDUCED_RANK)
def test_a_reduced_rank_case_has_the_ranks_it_says(widths, ranks, rank, value, multiplicity):
    case = reduced_rank_case(widths, ranks, rank, num_samples=200)
    first, second = case.model.weights
    found = [int(torch.linalg.matrix_rank(m)) for m in (first, second, second @ first)]
    assert found == [*ranks, rank]
    assert float(squared_error(case.model, case.batch).detach().abs().max()) == 0.0
    assert (case.truth, case.multiplicity) == (value, multiplicity)


@pytest.mark.parametrize("polygon", POLYGONS, ids=lambda polygon: polygon.name)
def test_a_polygon_is_a_minimum_of_the_published_loss_and_its_rank_gives_lambda(polygon):
    case = superposition_case(polygon)
    loss = 2 * float(squared_error(case.model, case.batch).detach().mean())
    assert loss == pytest.approx(polygon.loss, abs=5e-6)
    rank, gain, lowest = hessian_rank(case)
    assert default_n_beta(case.n_samples) * gain < 0.05
    assert lowest > -1e-4
    assert rank / 2 == polygon.truth


def test_the_mean_of_a_monomial_is_exact():
    # One direction of w²: nβ K is half a chi-square, shrunk by the pull; K = w⁴ without a pull: ¼.
    assert monomial_mean((1,), N_BETA, 1.0) == pytest.approx(N_BETA / (2 * N_BETA + 1), rel=1e-4)
    assert monomial_mean((2,), N_BETA, 1e-4) == pytest.approx(0.25, rel=1e-4)


def test_the_mean_of_a_monomial_of_multiplicity_two_falls_short_by_one_over_log_n():
    # E[nβ K] = λ − 1/(log nβ + constant), so that 1/(λ − E) grows like log nβ.
    short = [1 / (0.5 - monomial_mean((1, 1), n_beta, 1.0)) for n_beta in (1e4, 1e6)]
    assert short[1] - short[0] == pytest.approx(math.log(1e2), rel=0.02)


def test_every_case_is_at_its_minimum_on_its_probe_and_named_once():
    cases = all_cases(num_samples=100)
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        assert case.n_samples >= 100
        assert 0 < case.expected <= case.truth * 1.3
        assert bool(torch.isfinite(squared_error(case.model, case.batch)).all())
