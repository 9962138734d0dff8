import math
from datetime import timedelta

import pytest
import torch.distributed as dist

from phasewatch.callbacks.shared.processes import (
    collective_timeout_seconds,
    longest_turn_seconds,
)


def test_one_process_waits_for_nobody(tmp_path):
    assert math.isinf(collective_timeout_seconds())
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/init", rank=0, world_size=1)
    try:
        assert math.isinf(collective_timeout_seconds())
        assert math.isinf(longest_turn_seconds())
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(("seconds", "turn"), [(7, 0.7), (20, 2.0), (1800, 2.0)])
def test_a_turn_is_a_tenth_of_the_timeout_and_two_seconds_at_most(
    seconds, turn, tmp_path, monkeypatch
):
    init = f"file://{tmp_path}/init"
    dist.init_process_group(
        "gloo", init_method=init, rank=0, world_size=1, timeout=timedelta(seconds=seconds)
    )
    try:
        monkeypatch.setattr(dist, "get_world_size", lambda: 2)
        assert collective_timeout_seconds() == seconds
        assert longest_turn_seconds() == pytest.approx(turn)
    finally:
        dist.destroy_process_group()
