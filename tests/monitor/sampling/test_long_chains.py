"""The reference that benchmarks are judged against, itself judged by what is known exactly."""

from __future__ import annotations

import math

import pytest
import torch

from support.long_chains import Net, Rows, long_run_value, minimum


def data(net: Net, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, net.widths[0], generator=generator)
    if net.tanh:
        x = x.sign()
    return x, torch.randn(n, net.widths[-1], generator=generator)


@pytest.mark.parametrize("net", [Net((4, 3, 2)), Net((4, 3, 2), tanh=True)])
def test_few_rows_have_the_loss_of_all_data_up_to_a_constant(net: Net) -> None:
    x, y = data(net, 500)
    rows = Rows.of(net, x, y)
    points = torch.randn(5, net.num_parameters, dtype=torch.float64)
    residuals = y.double() - net.outputs(points, x.double())
    whole = 0.5 * residuals.square().sum(-1).mean(-1)
    gap = whole - rows.loss(net, points)
    assert len(rows.x) < 20
    assert torch.allclose(gap, gap[0].expand(5))


@pytest.mark.slow
def test_the_long_run_value_of_linear_regression_is_the_exact_one() -> None:
    net, n_beta, localization = Net((3, 2)), 50.0, 20.0
    x, y = data(net, 200)
    rows = Rows.of(net, x, y)
    center = minimum(net, rows, torch.zeros(net.num_parameters))
    value, stderr = long_run_value(
        net, rows, center, n_beta=n_beta, localization=localization, num_chains=256
    )
    h = torch.linalg.eigvalsh(x.double().mT @ x.double() / len(x))
    exact = 2 * float((n_beta * h / (n_beta * h + localization)).sum()) / 2
    assert stderr < 0.03 * exact
    assert math.isclose(value, exact, abs_tol=4 * stderr)
