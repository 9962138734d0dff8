"""Cases of the weight-space measures, on a perceptron; dead units on one with rectifiers."""

from __future__ import annotations

import lightning.pytorch as pl
from torch import nn

from support.cases.norms import WIDTHS, perceptron, points
from support.observable_cases import ObservableCase
from support.zoo_modules import Plain


def rectified(size: int) -> pl.LightningModule:
    """Four inputs, three classes, two hidden layers of rectified units."""
    width = WIDTHS[size]
    return Plain(
        nn.Sequential(
            nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 3)
        )
    )


CASES = (
    ObservableCase(
        name="distance_from_init",
        module=perceptron,
        dataset=points,
        streams=(
            "distance_from_init",
            "distance_from_init/net.0",
            "distance_from_init_relative",
            "distance_from_init_relative/net.4",
        ),
    ),
    ObservableCase(
        name="distance_moved",
        module=perceptron,
        dataset=points,
        streams=("distance_moved", "distance_moved/net.2"),
    ),
    ObservableCase(
        name="update_angle",
        module=perceptron,
        dataset=points,
        streams=("update_angle", "update_angle/net.0"),
    ),
    ObservableCase(
        name="spectral_norm",
        module=perceptron,
        dataset=points,
        streams=("spectral_norm", "spectral_norm/net.2"),
    ),
    ObservableCase(
        name="dead_units",
        module=rectified,
        dataset=points,
        streams=("dead_units", "dead_units/net.1", "dead_units/net.3"),
    ),
)
