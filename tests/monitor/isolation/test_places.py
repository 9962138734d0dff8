import pytest
import torch

from phasewatch.monitor.isolation.places import place_of, told_with_place


def _multiply():
    return torch.zeros(2) @ torch.zeros(3)


def test_an_error_from_inside_a_library_is_placed_in_the_users_line():
    with pytest.raises(RuntimeError) as caught:
        torch.nn.Sequential(torch.nn.Linear(2, 2))(_multiply())
    assert place_of(caught.value).startswith(
        "test_places.py, line 8, in _multiply: return torch.zeros(2) @"
    )
    assert told_with_place(caught.value).startswith("RuntimeError: ")
    assert "\n" not in told_with_place(caught.value)


def test_an_error_without_a_line_of_the_user_is_told_without_place():
    assert place_of(ValueError("x")) is None
    assert told_with_place(ValueError("first\nsecond")) == "ValueError: first"
