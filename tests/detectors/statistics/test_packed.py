"""Numbers in a saved state: little room, and exactly the same numbers back."""

import json
import math

import numpy as np
import pytest

from phasewatch.detectors.statistics.packed import pack, unpack

NUMBERS = {
    "none": [],
    "one": [3.5],
    "two": [1.0, 2.0],
    "steps": list(range(100, 900, 50)),
    "means of steps": [0.5 + 2.0 * i for i in range(97)],
    "uneven steps": [1, 2, 4, 8, 16],
    "constant": [0.1] * 20,
    "noise": np.random.default_rng(0).standard_normal(50).tolist(),
    "far apart": [1e300, -1e-300, 5e-324, 0.0],
    "beyond what is exact": [2.0**60 + 2**10 * i for i in range(5)],
}


@pytest.mark.parametrize("name", NUMBERS)
def test_the_same_numbers_come_back(name):
    assert unpack(json.loads(json.dumps(pack(NUMBERS[name])))) == NUMBERS[name]


@pytest.mark.parametrize("name", ["steps", "means of steps", "constant"])
def test_evenly_spaced_numbers_take_three(name):
    assert pack(NUMBERS[name])["count"] == len(NUMBERS[name])
    assert len(pack(NUMBERS[name])) == 3


@pytest.mark.parametrize("name", NUMBERS)
def test_a_list_of_an_earlier_version_is_taken_as_it_is(name):
    assert unpack(NUMBERS[name][:3]) == NUMBERS[name][:3]
    assert unpack(NUMBERS[name]) == NUMBERS[name]


def test_others_take_eleven_characters_each():
    assert len(pack(NUMBERS["noise"])) <= math.ceil(32 * 50 / 3) + 4
