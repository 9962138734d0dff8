"""A thread with streams of its own is not felt by those who draw from the global generators."""

# ruff: noqa: NPY002 - what users draw from is the legacy generator
import random
import threading
from random import choice, gauss

import numpy as np
import pytest
from numpy.random import rand

from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.isolation.generators import own_streams

NUMPY = {
    "rand": lambda r: r.rand(),
    "rand3": lambda r: r.rand(3).tolist(),
    "randn": lambda r: r.randn(),
    "randn3": lambda r: r.randn(3).tolist(),
    "randint": lambda r: r.randint(0, 2**40),
    "choice": lambda r: r.choice([1, 2, 3, 4, 5], 3, replace=False).tolist(),
    "permutation": lambda r: r.permutation(50).tolist(),
    "shuffle": lambda r: (x := [*range(50)], r.shuffle(x))[0],
    "beta": lambda r: r.beta(0.4, 0.4),
    "gamma": lambda r: r.gamma(2.0, size=2).tolist(),
    "binomial": lambda r: r.binomial(100, 0.5),
    "poisson": lambda r: r.poisson(30.0),
    "multinomial": lambda r: r.multinomial(100, [0.5, 0.5]).tolist(),
    "dirichlet": lambda r: r.dirichlet([1, 1]).tolist(),
    "multivariate_normal": lambda r: r.multivariate_normal([0, 0], np.eye(2)).tolist(),
    "bytes": lambda r: r.bytes(4),
}
PYTHON = {
    "random": lambda r: r.random(),
    "randint": lambda r: r.randint(0, 10**9),
    "shuffle": lambda r: (x := [*range(50)], r.shuffle(x))[0],
    "sample": lambda r: r.sample(range(1000), 5),
    "gauss": lambda r: r.gauss(0, 1),
    "normalvariate": lambda r: r.normalvariate(0, 1),
    "betavariate": lambda r: r.betavariate(0.4, 0.4),
    "getrandbits": lambda r: r.getrandbits(64),
    "randbytes": lambda r: r.randbytes(4),
}


def beginning():
    """Global generators in a known state, each with the second number of a pair kept back."""
    np.random.seed(7)
    random.seed(7)
    np.random.randn()
    random.gauss(0, 1)


def everything():
    numpy = [draw(np.random) for draw in NUMPY.values()]
    return numpy + [draw(random) for draw in PYTHON.values()]


def test_others_get_the_numbers_that_they_would_get_anyway():
    beginning()
    expected = [everything() for _ in range(3)]
    beginning()
    found = []
    turn, done = threading.Barrier(2, timeout=60), threading.Barrier(2, timeout=60)

    def other():
        for _ in range(3):
            turn.wait()
            found.append(everything())
            done.wait()

    thread = threading.Thread(target=other)
    thread.start()
    with own_streams(1):
        for _ in range(3):
            everything(), rand(), choice([1, 2]), gauss(0, 1)
            turn.wait()
            done.wait()
            everything()
    thread.join()
    assert found == expected


@pytest.mark.parametrize(("module", "draws"), [(np.random, NUMPY), (random, PYTHON)])
def test_each_draw_leaves_the_global_state_and_comes_from_the_seed(module, draws):
    beginning()
    before = np.random.get_state(), random.getstate()
    for name, draw in draws.items():
        with own_streams(3):
            first = draw(module)
        module.random()  # whoever else draws changes nothing
        before = np.random.get_state(), random.getstate()
        with own_streams(3):
            assert draw(module) == first, name
            assert draw(module) != first or name in {"binomial", "multinomial", "poisson"}, name
        assert repr(np.random.get_state()) == repr(before[0]), name
        assert random.getstate() == before[1], name


def test_many_threads_at_once_feel_nothing():
    np.random.seed(3)
    random.seed(3)
    expected = np.random.rand(4000), [random.random() for _ in range(4000)]
    np.random.seed(3)
    random.seed(3)
    stop = threading.Event()

    def measure(seed):
        while not stop.is_set():
            with own_streams(seed):
                for _ in range(20):
                    np.random.rand(), np.random.randn(), random.random(), random.gauss(0, 1)

    threads = [threading.Thread(target=measure, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    numpy = [np.random.rand() for _ in range(4000)]
    python = [random.random() for _ in range(4000)]
    stop.set()
    for thread in threads:
        thread.join()
    assert np.array_equal(numpy, expected[0])
    assert python == expected[1]


def test_everything_is_as_before_afterwards():
    before = np.random.get_bit_generator(), random.random, type(random.seed.__self__)
    with own_streams(1), own_streams(2):
        np.random.rand()
        assert np.random.get_bit_generator() is not before[0]
    assert (np.random.get_bit_generator(), random.random) == before[:2]
    assert type(random.seed.__self__) is before[2]


def test_another_thread_may_seed_and_this_one_may_not():
    def seed():
        np.random.seed(5)
        random.seed(5)

    with own_streams(1):
        with pytest.raises(RefusedError, match=r"np\.random\.seed"):
            np.random.seed(1)
        thread = threading.Thread(target=seed)
        thread.start()
        thread.join()
        random.seed(1)
    found = np.random.rand(), random.random()
    seed()
    assert found == (np.random.rand(), random.random())


def test_another_kind_of_generator_that_the_user_has_put_there_is_kept():
    theirs, before = np.random.PCG64(3), np.random.get_bit_generator()
    expected = np.random.RandomState(np.random.PCG64(3)).rand(4)
    np.random.set_bit_generator(theirs)
    try:
        first = np.random.rand(2)
        with own_streams(1):
            mine = np.random.rand(3)
        with own_streams(1):
            assert np.array_equal(np.random.rand(3), mine)
        assert np.array_equal([*first, *np.random.rand(2)], expected)
        assert np.random.get_bit_generator() is theirs
    finally:
        np.random.set_bit_generator(before)
