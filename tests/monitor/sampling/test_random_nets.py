"""The random nets and the reference chains are what the accuracy benchmark stands on."""

import itertools
import math

import pytest
import torch

from phasewatch.monitor.sampling.closed_forms import DEEP_LINEAR
from support.random_nets import (
    KINDS,
    Shape,
    build,
    numerical_codimension,
    random_shapes,
)
from support.reference_chains import (
    Effort,
    deep_linear_potential,
    deep_linear_reference,
    hmc_reference,
)

QUICK = Effort(min_draws=300, relative_stderr=0.02, max_seconds=4.0)


def n_beta(net):
    return net.num_samples / math.log(net.num_samples)


@pytest.mark.parametrize(("widths", "rank", "value", "multiplicity"), DEEP_LINEAR)
def test_the_most_singular_point_has_the_global_lambda(widths, rank, value, multiplicity):
    assert Shape(widths, rank, (False,) * (len(widths) - 1)).truth == (value, multiplicity)


@pytest.mark.parametrize(
    ("shape", "value"),
    [
        (Shape((5, 4, 5), 0, (False, False)), 8.0),
        (Shape((5, 4, 5), 0, (False, False), (4, 0)), 10.0),
        (Shape((5, 4, 5), 0, (True, False)), 10.0),
        (Shape((5, 4, 4, 5), 0, (False, True, False)), 8.0),
        (Shape((4, 4), 4, (True,)), 8.0),
    ],
)
def test_lambda_of_points_that_are_known(shape, value):
    assert shape.truth[0] == value


@pytest.mark.parametrize(
    "shape",
    [
        Shape((5, 4, 5), 1, (True, False)),
        Shape((6, 3, 4), 1, (False, True)),
        Shape((4, 6, 3, 5), 1, (True, False, True)),
        Shape((6, 3, 5, 4), 2, (True, True, False)),
        Shape((3, 5, 4, 3), 0, (False, True, True)),
        Shape((5, 4, 5), 1, (False, False), (2, 1)),
        Shape((4, 6, 3, 5), 1, (False, True, False), (1, 1)),
    ],
)
def test_lambda_is_half_the_codimension_where_the_fibre_is_smooth(shape):
    net = build(shape, "exact", seed=1, num_samples=200)
    assert 2 * net.truth == numerical_codimension(net.model)


def test_the_shapes_are_what_they_say():
    shapes = random_shapes(100, points=3, seed=3)
    assert shapes == random_shapes(100, points=3, seed=3)
    assert {len(points[0].full) for points in shapes} == {2, 3, 4, 5}
    widths = [width for points in shapes for width in points[0].widths]
    assert min(widths) == 2
    assert 35 < max(widths) <= 40
    for points in shapes:
        assert not any(points[0].full)
        for one, other in itertools.combinations(points, 2):
            assert (one.widths, one.rank) == (other.widths, other.rank)
            assert abs(one.truth[0] / other.truth[0] - 1) > 0.13


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("points", random_shapes(6, points=3, seed=8))
def test_nothing_to_descend_at_the_point_and_the_condensed_loss_is_the_loss(points, kind):
    for shape in points:
        net = build(shape, kind, seed=5, num_samples=1000)
        potential, d = deep_linear_potential(net.model.weights, *net.data)
        _, gradient = potential(torch.zeros(1, d, dtype=torch.float64))
        lengths = torch.logspace(-8, 2, 101, dtype=torch.float64)[:, None]
        gained, _ = potential(-lengths * gradient)
        assert float(gained.min()) * n_beta(net) > -1e-3  # nothing but rounding
        with torch.no_grad():
            for weight in net.model.weights:
                weight.add_(0.1)
            assert float(net.condensed_loss(net.model, net.condensed())) == pytest.approx(
                float(net.loss(net.model, net.data).mean()), rel=1e-4
            )


@pytest.mark.slow
def test_the_references_agree_with_each_other_and_with_what_is_known():
    """A regular net, λ̂ = ½ Σ nβh/(nβh + γ), and both samplers say so."""
    net = build(Shape((4, 4), 4, (True,)), "exact", seed=3)
    moments = torch.linalg.eigvalsh(net.data[0].T @ net.data[0] / net.num_samples).double()
    exact = float((4 * n_beta(net) * moments / (n_beta(net) * moments + 1) / 2).sum())
    options = {"n_beta": n_beta(net), "localization": 1.0, "effort": QUICK}
    gibbs = deep_linear_reference(net.model.weights, *net.data, **options)
    potential, d = deep_linear_potential(net.model.weights, *net.data)
    hmc = hmc_reference(potential, d, **options)
    assert gibbs.value == pytest.approx(exact, abs=4 * gibbs.stderr)
    assert hmc.value == pytest.approx(exact, abs=4 * hmc.stderr)
    assert max(gibbs.stderr, hmc.stderr) < 0.05 * exact


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_references_agree_on_a_singular_net(kind):
    net = build(Shape((3, 3, 3, 3), 1, (False,) * 3), kind, seed=3)
    options = {"n_beta": n_beta(net), "localization": 1.0}
    gibbs = deep_linear_reference(
        net.model.weights,
        *net.data,
        effort=Effort(relative_stderr=0.01, max_seconds=5.0),
        **options,
    )
    potential, d = deep_linear_potential(net.model.weights, *net.data)
    effort = Effort(relative_stderr=0.02, max_seconds=8.0)
    hmc = hmc_reference(potential, d, effort=effort, max_leapfrogs=100, **options)
    assert abs(gibbs.value - hmc.value) < 4 * math.hypot(gibbs.stderr, hmc.stderr)
    assert hmc.stderr < 0.06 * hmc.value
