"""Curvature against exact Hessians, closed forms, and losses without a second derivative."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from phasewatch.monitor.core.context import SharedWork
from phasewatch.monitor.core.errors import ConfigError, MeasurementError, RefusedError
from phasewatch.monitor.core.estimates import EstimateStatus
from phasewatch.monitor.isolation import measure_context
from phasewatch.monitor.observables.curvature.hessian_rank import HessianRank
from phasewatch.monitor.observables.curvature.hessian_top import HessianTop
from phasewatch.monitor.observables.curvature.hessian_trace import HessianTrace
from phasewatch.monitor.observables.curvature.krylov import Lanczos
from phasewatch.monitor.sampling.closed_forms import Quadratic, plain_loss
from phasewatch.monitor.sampling.hessian import MAX_PRODUCTS, Hessian

DIAGONAL = (9.0, 5.0, 5.0, 2.0, 0.5, 0.0, -1.0)


def cross_entropy(model, batch):
    x, y = batch
    return nn.functional.cross_entropy(model(x), y, reduction="none")


def network(seed=0, hidden=6, dtype=torch.float32, wrap=lambda layer: layer):
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), wrap(nn.Linear(hidden, 3)))
    return layers.to(dtype)


def data(num=60, dtype=torch.float32):
    random = torch.Generator().manual_seed(1)
    x = torch.randn(num, 4, generator=random)
    return x.to(dtype), (x @ torch.randn(4, 3, generator=random)).argmax(dim=1)


def context_of(model, batches, loss_fn=cross_entropy, **fields):
    deadline = fields.pop("deadline_seconds", math.inf)
    made = measure_context(
        model, step=fields.pop("step", 5), loss_fn=loss_fn, batches=batches, seed=2
    )
    return replace(made, deadline_seconds=deadline, **fields)


def another_turn(context, seed):
    """The same weights, and other random numbers."""
    return replace(context, shared=SharedWork(seed))


def exact_hessian(model, batch):
    """Row by row, by double backward through the live model in float64."""
    model = model.double()
    x, y = batch
    parameters = list(model.parameters())
    loss = cross_entropy(model, (x.double(), y)).mean()
    first = torch.autograd.grad(loss, parameters, create_graph=True)
    entries = torch.cat([part.reshape(-1) for part in first])
    rows = [torch.autograd.grad(entry, parameters, retain_graph=True) for entry in entries]
    return torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])


def quadratic(curvatures):
    """A loss of half the sum of h w², whose Hessian is diagonal, in float64."""
    return Quadratic(curvatures).double(), [torch.zeros(4, 1, dtype=torch.float64)]


def quadratic_context(curvatures, **fields):
    model, batches = quadratic(curvatures)
    return context_of(model, batches, plain_loss, **fields)


class Turned(nn.Module):
    """Half of (Qw)ᵀ D (Qw): a Hessian with eigenvalues D that is far from diagonal."""

    def __init__(self, eigenvalues):
        super().__init__()
        random = torch.Generator().manual_seed(4)
        num = len(eigenvalues)
        turn = torch.linalg.qr(torch.randn(num, num, generator=random, dtype=torch.float64))[0]
        self.register_buffer("turn", turn)
        self.register_buffer("d", torch.as_tensor(eigenvalues, dtype=torch.float64))
        self.w = nn.Parameter(torch.zeros(num, dtype=torch.float64))

    def forward(self, x):
        return (0.5 * self.d * (self.turn @ self.w).square()).sum().expand(len(x))


def turned_context(eigenvalues, **fields):
    batches = [torch.zeros(2, 1, dtype=torch.float64)]
    return context_of(Turned(eigenvalues), batches, plain_loss, **fields)


class Cube(torch.autograd.Function):
    """x³ with a derivative that autograd cannot differentiate again."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


class Cubic(nn.Module):
    """Σ w³/6 at w = (1, 2, −3): the Hessian is diagonal, and holds w."""

    def __init__(self, cube):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64))
        self.cube = cube

    def forward(self, x):
        return (self.cube(self.w).sum() / 6).expand(len(x))


class Checkpointed(nn.Module):
    def __init__(self, layer, use_reentrant):
        super().__init__()
        self.layer = layer
        self.use_reentrant = use_reentrant

    def forward(self, x):
        return checkpoint(self.layer, x, use_reentrant=self.use_reentrant)


# ---- products


@pytest.mark.parametrize("num_batches", [1, 2])
def test_a_product_is_that_with_the_exact_hessian(num_batches):
    model, (x, y) = network(dtype=torch.float64), data(dtype=torch.float64)
    cuts = [slice(0, 60)] if num_batches == 1 else [slice(0, 20), slice(20, 60)]
    hessian = Hessian(context_of(model, [(x[cut], y[cut]) for cut in cuts]))
    vector = torch.randn(hessian.num_parameters, dtype=torch.float64)
    expected = exact_hessian(model, (x, y)) @ vector
    torch.testing.assert_close(hessian(vector), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_gives_the_same_products(use_reentrant):
    batch = data()
    expected = exact_hessian(network(), batch)
    model = network(wrap=lambda layer: Checkpointed(layer, use_reentrant))
    hessian = Hessian(context_of(model, [batch]))
    vector = torch.ones(hessian.num_parameters)
    truth = (expected @ vector.double()).float()
    torch.testing.assert_close(hessian(vector), truth, rtol=0.0, atol=2e-3 * float(truth.norm()))


def test_a_function_without_a_second_derivative_is_differentiated_by_differences():
    batches = [torch.zeros(2, 1, dtype=torch.float64)]
    hessian = Hessian(context_of(Cubic(Cube.apply), batches, plain_loss))
    for _ in range(2):
        found = hessian(torch.tensor([1.0, 1.0, 2.0], dtype=torch.float64))
        assert found.tolist() == pytest.approx([1.0, 2.0, -6.0], rel=1e-6)


def test_a_derivative_that_hides_from_autograd_is_found_out_before_the_first_step():
    # The gradient that reaches the cube is constant here, so autograd says nothing of the second.
    context = context_of(Cubic(Cube.apply), [torch.zeros(2, 1, dtype=torch.float64)], plain_loss)
    observable = HessianTop(num_values=3)
    observable.check(context)
    assert [round(one.value, 5) for one in observable.measure(context)] == [2.0, 1.0, -3.0]


def test_differences_in_half_precision_are_refused_with_the_way_out():
    model = Cubic(lambda w: Cube.apply(w).square()).to(torch.bfloat16)
    with pytest.raises(RefusedError, match=r"no second derivative.*loss_fn="):
        Hessian(context_of(model, [torch.zeros(2, 1)], plain_loss))(torch.ones(3))


def test_a_linear_loss_has_no_curvature():
    batches = [torch.zeros(2, 1, dtype=torch.float64)]
    context = context_of(Cubic(lambda w: w), batches, plain_loss)
    assert Hessian(context)(torch.ones(3, dtype=torch.float64)).tolist() == [0.0, 0.0, 0.0]
    assert HessianTop().measure(context)[0].value == 0.0
    assert HessianRank().measure(context).value == 0.0


def test_a_product_that_is_no_number_is_a_failure():
    context = context_of(
        Cubic(lambda w: (w - w.detach()).abs().sqrt()), [torch.zeros(2, 1)], plain_loss
    )
    with pytest.raises(MeasurementError, match="not finite"):
        HessianTrace().measure(context)


def steps_of(matrix, num):
    """Lanczos steps from a vector of ones."""
    run = Lanczos(lambda v: matrix @ v, torch.ones(len(matrix), dtype=torch.float64))
    for _ in range(num):
        run.step()
    return run


def test_lanczos_finds_the_whole_spectrum_of_a_small_matrix():
    torch.manual_seed(3)
    matrix = torch.randn(12, 12, dtype=torch.float64)
    matrix = matrix + matrix.T
    run = steps_of(matrix, 12)
    assert run.closed
    found = run.ritz(12)
    np.testing.assert_allclose(found.values, np.linalg.eigvalsh(matrix.numpy()), atol=1e-10)
    assert found.residuals.max() < 1e-9
    trace, squares = run.trace(12)
    assert trace == pytest.approx(float(matrix.trace()))
    assert squares == pytest.approx(float(matrix.square().sum()))


def test_an_eigenvalue_lies_within_the_residual():
    torch.manual_seed(3)
    matrix = torch.randn(40, 40, dtype=torch.float64)
    matrix = matrix + matrix.T
    found = steps_of(matrix, 20).ritz(8)
    exact = np.linalg.eigvalsh(matrix.numpy())
    assert found.weights.sum() == pytest.approx(1.0)
    for value, residual in zip(found.values, found.residuals, strict=True):
        assert np.abs(exact - value).min() <= residual


def test_what_is_away_from_the_basis_is_orthogonal_to_it():
    torch.manual_seed(3)
    matrix = torch.randn(40, 40, dtype=torch.float64)
    matrix = matrix + matrix.T
    run = steps_of(matrix, 20)
    start = torch.ones(40, dtype=torch.float64)
    vector = run.away(torch.randn(40, dtype=torch.float64), 11)
    for _ in range(10):  # start, H start, H² start … span the basis
        assert abs(float(vector @ (start / start.norm()))) < 1e-9
        start = matrix @ (start / start.norm())


# ---- trace


def test_the_trace_of_a_network_is_exact_within_its_error():
    model, batch = network(dtype=torch.float64), data(dtype=torch.float64)
    found = [HessianTrace().measure(context_of(model, [batch]))]
    trace = float(exact_hessian(model, batch).trace())
    for one in found:
        assert one.status is EstimateStatus.OK
        assert one.value == pytest.approx(trace, abs=4 * one.stderr)
        assert 0 < one.stderr < 0.2 * trace


def test_the_errors_of_the_trace_are_as_large_as_they_say():
    eigenvalues = np.linspace(-1.0, 3.0, 40)
    context = turned_context(eigenvalues)
    found = [HessianTrace().measure(another_turn(context, seed)) for seed in range(40)]
    pulls = [(one.value - eigenvalues.sum()) / one.stderr for one in found]
    assert abs(np.mean(pulls)) < 0.6
    assert 0.7 < np.std(pulls) < 1.4


def test_a_diagonal_hessian_needs_no_luck():
    found = HessianTrace().measure(quadratic_context(DIAGONAL))
    assert found.value == pytest.approx(sum(DIAGONAL))
    assert (found.stderr, found.status) == (pytest.approx(0.0, abs=1e-12), EstimateStatus.OK)


@pytest.mark.parametrize("eigenvalues", [np.linspace(-3.0, 1.0, 40), np.linspace(-2.0, 2.0, 40)])
def test_a_trace_below_or_at_zero_does_not_stop_the_probing_early(eigenvalues, monkeypatch):
    taken = []
    real = Hessian.__call__
    monkeypatch.setattr(Hessian, "__call__", lambda self, v: taken.append(1) or real(self, v))
    found = HessianTrace(tolerance=0.25).measure(turned_context(eigenvalues))
    norm = math.sqrt(float((eigenvalues**2).sum()))
    assert len(taken) >= 8
    assert found.stderr < 0.5 * norm
    assert found.value == pytest.approx(eigenvalues.sum(), abs=4 * found.stderr)


def test_a_trace_whose_error_stays_large_is_marked():
    found = HessianTrace(tolerance=0.01).measure(turned_context(np.linspace(-1.0, 1.5, 40)))
    assert found.status is EstimateStatus.UNCONVERGED
    assert f"{MAX_PRODUCTS} Hessian-vector products were not enough" in found.reason


def test_the_deadline_ends_the_probing():
    context = turned_context(np.linspace(-1.0, 1.5, 40), deadline_seconds=0.0)
    found = HessianTrace().measure(context)
    assert found.status is EstimateStatus.UNCONVERGED
    assert "its time was over after 1 Hessian-vector products" in found.reason


# ---- top eigenvalues


def test_the_top_eigenvalues_of_a_network_are_the_exact_ones():
    model, batch = network(dtype=torch.float64), data(dtype=torch.float64)
    found = HessianTop(tolerance=1e-3).measure(context_of(model, [batch]))
    exact = np.linalg.eigvalsh(exact_hessian(model, batch).detach().numpy())[::-1]
    assert [one.name for one in found] == ["hessian_top", "hessian_top/2", "hessian_top/3"]
    for one, value in zip(found, exact, strict=False):
        assert one.status is EstimateStatus.OK
        assert one.value == pytest.approx(value, rel=1e-4)
        assert one.stderr <= 1e-3 * exact[0]


def test_a_multiple_eigenvalue_counts_once():
    found = HessianTop(num_values=4).measure(quadratic_context(DIAGONAL))
    assert [round(one.value, 6) for one in found] == [9.0, 5.0, 2.0, 0.5]


def test_the_largest_of_negative_curvatures_is_the_one_nearest_zero():
    found = HessianTop(num_values=1).measure(quadratic_context((-4.0, -2.0, -1.0)))
    assert found[0].value == pytest.approx(-1.0)


def test_two_over_the_learning_rate_stands_beside_it_where_it_is_known():
    context = quadratic_context(DIAGONAL, learning_rate=0.25)
    found = {one.name: one for one in HessianTop(num_values=1).measure(context)}
    assert found["hessian_top/2_over_lr"].value == 8.0
    assert found["hessian_top/2_over_lr"].stderr is None


def test_too_few_products_are_marked_with_the_residual():
    context = turned_context(np.linspace(0.0, 1.0, 60))
    (found,) = HessianTop(num_values=1, max_products=3).measure(context)
    assert found.status is EstimateStatus.UNCONVERGED
    assert "the residual is" in found.reason
    assert "3 Hessian-vector products were not enough" in found.reason
    assert found.value < 1.0
    assert found.stderr >= 1.0 - found.value  # the residual bounds the error


# ---- rank


@pytest.mark.parametrize(("rank", "tau"), [(5, 0.01), (20, 0.05)])
def test_the_rank_counts_the_eigenvalues_above_the_tolerance(rank, tau):
    eigenvalues = np.concatenate([np.geomspace(1.0, 4 * tau, rank), np.full(200 - rank, tau / 100)])
    eigenvalues[1] *= -1  # by magnitude
    context = turned_context(eigenvalues)
    found = [HessianRank(tau=tau).measure(another_turn(context, seed)) for seed in range(8)]
    assert all(one.status is EstimateStatus.OK for one in found if rank > 5)
    mean = np.mean([one.value for one in found])
    assert mean == pytest.approx(rank, abs=3 * found[0].stderr / math.sqrt(8))
    assert np.std([one.value for one in found]) < 2 * found[0].stderr


def test_the_rank_of_a_network_is_near_that_of_the_exact_hessian():
    model, batch = network(hidden=12, dtype=torch.float64), data(dtype=torch.float64)
    exact = np.abs(np.linalg.eigvalsh(exact_hessian(model, batch).detach().numpy()))
    found = HessianRank(tau=0.05).measure(context_of(model, [batch]))
    assert found.value == pytest.approx((exact > 0.05 * exact.max()).sum(), abs=3 * found.stderr)
    assert found.stderr < 0.5 * found.value


# ---- refusals


@pytest.mark.parametrize("observable", [HessianTrace(), HessianTop(), HessianRank()])
def test_without_a_loss_there_is_no_curvature(observable):
    context = context_of(network(), [data()], None)
    with pytest.raises(RefusedError, match="loss_fn="):
        observable.check(context)
    observable.check(context_of(network(), [data()]))


def test_a_loss_that_is_not_finite_yet_may_still_be_measured_later():
    model = network()
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    HessianTop().check(context_of(model, [data()]))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: HessianTrace(tolerance=0.0), "tolerance is 0.0; give a number above 0"),
        (lambda: HessianTrace(max_probes=1), "max_probes is 1; give 2 to 48"),
        (lambda: HessianTop(num_values=17), "num_values is 17; give 1 to 16"),
        (lambda: HessianTop(max_products=100), "max_products is 100; give 2 to 48"),
        (lambda: HessianRank(tau=1.0), "tau is 1.0; give a number between 0 and 1"),
        (lambda: HessianRank(num_probes=7), "num_probes is 7; give 1 to 6"),
    ],
)
def test_wrong_arguments_are_said(make, said):
    with pytest.raises(ConfigError, match=said):
        make()
