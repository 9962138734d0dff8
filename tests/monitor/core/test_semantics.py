"""What the name of a stream says."""

from __future__ import annotations

import pytest

from phasewatch.detectors.types import Direction
from phasewatch.monitor.core.semantics import better_direction, is_validation
from phasewatch.monitor.transitions.streams import Streams


def test_held_out_data_is_told_by_whole_words() -> None:
    held_out = ("val_loss", "valid/loss", "Test-acc", "loss_val", "valLoss", "val2/loss", "dev_nll")
    assert [name for name in held_out if not is_validation(name)] == []
    others = ("value_loss", "interval_loss", "train_loss", "latest_loss", "devices", "retrieval")
    others += ("llc_validation", "llc_validation/nu_hat")  # no measure of how well it does there
    assert [name for name in others if is_validation(name)] == []


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("train_loss", Direction.DOWN),
        ("trainloss", Direction.DOWN),
        ("val/nll", Direction.DOWN),
        ("val_mse_epoch", Direction.DOWN),
        ("MulticlassAccuracy", Direction.UP),
        ("val_acc1", Direction.UP),
        ("val_F1", Direction.UP),
        ("val/mAP", None),
        ("momentum", None),
        ("llc", None),
        ("weight_norm", None),
    ],
)
def test_which_way_is_better_is_told_by_the_name_or_left_open(name, way) -> None:
    assert better_direction(name) is way


def test_a_score_must_change_by_a_tenth_and_another_scalar_need_not() -> None:
    streams = Streams({})
    effects = [streams.get(name).detector.parameters["min_effect"] for name in ("val_acc", "rank")]
    assert effects == [0.1, 0.0]
