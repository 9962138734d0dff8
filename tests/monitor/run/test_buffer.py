"""The buffer of per-step scalars: what is read where, and how calls become columns."""

from __future__ import annotations

import math

import numpy as np
import torch

from phasewatch.monitor.core.columns import Column
from phasewatch.monitor.run.buffer import MAX_STEPS, ScalarBuffer


def columns(*calls):
    buffer = ScalarBuffer()
    for step, scalars in calls:
        buffer.append(step, scalars, None)
    return buffer.take().columns()


def test_it_says_when_it_is_time_by_count_and_by_clock():
    now = 0.0
    buffer = ScalarBuffer(lambda: now)
    said = [buffer.append(step, {"a": 1.0}, None) for step in range(MAX_STEPS)]
    assert said == [False] * (MAX_STEPS - 1) + [True]
    buffer.take()
    assert not buffer.append(1, {"a": 1.0}, None)
    now = 1.0
    assert buffer.append(2, {"a": 1.0}, None)


def test_calls_with_different_names_become_one_column_a_stream_in_order():
    found = columns(
        (1, {"loss": 1.0}),
        (1, {"a": 10, "b": True}),
        (2, {"loss": 2.0}),
        (2, {"a": 20, "b": False}),
        (3, {"a": 30, "loss": 3.0}),
    )
    assert {name: (c.steps, c.values) for name, c in found.items()} == {
        "loss": ([1, 2, 3], [1.0, 2.0, 3.0]),
        "a": ([1, 2, 3], [10.0, 20.0, 30.0]),
        "b": ([1, 2], [1.0, 0.0]),
    }
    assert list(found) == ["loss", "a", "b"]


def test_a_mapping_may_be_used_again_after_the_call():
    buffer, logged = ScalarBuffer(), {}
    for step in range(3):
        logged["a"] = float(step)
        buffer.append(step, logged, None)
    assert buffer.take().columns()["a"].values == [0.0, 1.0, 2.0]


def test_every_kind_of_number_is_read_and_what_is_none_becomes_nan():
    class Odd:
        def __float__(self):
            raise OSError("a user's own trouble")

    values = {
        "half": torch.tensor(0.5, dtype=torch.bfloat16),
        "count": torch.tensor(3),
        "flag": torch.tensor(True),
        "one": torch.tensor([2.0]),
        "graph": torch.tensor(4.0, requires_grad=True),
        "numpy": np.float32(1.5),
        "many": torch.zeros(2),
        "complex": torch.tensor(1j),
        "text": "1.25",
        "none": None,
        "odd": Odd(),
    }
    found = {name: column.values[0] for name, column in columns((1, values)).items()}
    nan = {name for name, value in found.items() if math.isnan(value)}
    assert nan == {"many", "complex", "none", "odd"}
    assert [found[n] for n in ("half", "count", "flag", "one", "graph", "numpy", "text")] == [
        *(0.5, 3.0, 1.0, 2.0, 4.0, 1.5, 1.25)
    ]


def test_code_of_the_user_runs_when_the_buffer_is_taken_and_plain_tensors_are_left():
    class Mine:
        reads = 0

        def __float__(self):
            Mine.reads += 1
            return 7.0

    class Tagged(torch.Tensor):
        pass

    buffer = ScalarBuffer()
    buffer.append(1, {"plain": torch.tensor(1.0), "float": 2.0, "np": np.float64(3.0)}, None)
    batch = buffer.take()
    assert [type(v) for v in batch.values] == [torch.Tensor, float, np.float64]
    for value, expected in ((Mine(), 7.0), (torch.tensor(5.0).as_subclass(Tagged), 5.0)):
        buffer.append(1, {"own": value}, None)
        assert buffer.take().values == [expected]
    assert Mine.reads == 1


def test_a_column_is_what_was_logged():
    (column,) = columns((3, {"a": 0.5}), (7, {"a": 0.25})).values()
    assert isinstance(column, Column)
    assert (column.steps, column.values, column.epochs) == ([3, 7], [0.5, 0.25], [None, None])
    assert column.timestamps == sorted(column.timestamps)
