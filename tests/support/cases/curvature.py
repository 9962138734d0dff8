"""Cases of curvature, broadness and gradient noise, on a multilayer perceptron."""

from __future__ import annotations

from support.cases.norms import perceptron, points
from support.observable_cases import ObservableCase

CASES = tuple(
    ObservableCase(name=name, module=perceptron, dataset=points, streams=streams)
    for name, streams in {
        "hessian_trace": ("hessian_trace",),
        "hessian_top": ("hessian_top", "hessian_top/2", "hessian_top/2_over_lr"),
        "hessian_rank": ("hessian_rank",),
        "basin_broadness": ("basin_broadness",),
        "gradient_noise_scale": ("gradient_noise_scale/noise", "gradient_noise_scale/signal"),
    }.items()
)
