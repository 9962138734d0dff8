"""Beside threads that draw, generators are left alone and nothing draws from them."""

# ruff: noqa: NPY002 - what users draw from is the legacy generator
import concurrent.futures
import random
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

from phasewatch.monitor.config.measuring import ProbeConfig
from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.isolation import guard
from phasewatch.monitor.isolation.probe import build_probe
from phasewatch.monitor.isolation.threads import drawing_threads, fetch_elsewhere
from phasewatch.monitor.sampling import SamplerConfig, estimate_llc


@pytest.fixture
def other():
    """A thread of the user's that does nothing just now, and might draw."""
    done = threading.Event()
    thread = threading.Thread(target=lambda: done.wait(60), name="prefetch")
    thread.start()
    yield thread
    done.set()
    thread.join()


def test_threads_of_the_users_are_seen_and_ours_and_servers_are_not(other):
    ours = threading.Thread(target=time.sleep, args=(0.5,), name="phasewatch-store")
    ours.start()
    assert drawing_threads() == ["prefetch"]
    ours.join()


def test_a_worker_of_a_pool_counts_while_it_works():
    go, begun = threading.Event(), threading.Event()

    def work():
        begun.set()
        go.wait(60)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        job = pool.submit(work)
        begun.wait(60)
        assert len(drawing_threads()) == 1
        go.set()
        job.result()
        deadline = time.monotonic() + 10
        while drawing_threads() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert drawing_threads() == []


def test_a_draw_is_refused_before_it_happens_and_says_which_thread(other):
    before = torch.get_rng_state()
    with pytest.raises(RefusedError, match=r"randn.*prefetch"), guard(seed=1):
        torch.randn(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_private_generators_and_layers_that_drop_nothing_are_no_draw(other):
    before = torch.get_rng_state()
    dropout = nn.Dropout(0.5).eval()
    with guard(seed=1):
        torch.randn(3, generator=torch.Generator().manual_seed(0))
        dropout(torch.ones(4))
        q = torch.ones(1, 2, 4, 8)
        nn.functional.scaled_dot_product_attention(q, q, q, dropout_p=0.0)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_such_a_thread_the_generators_are_seeded_and_put_back():
    before = torch.get_rng_state()
    with guard(seed=1):
        first = torch.randn(3)
    with guard(seed=1):
        assert torch.equal(torch.randn(3), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_thread_that_draws_gets_every_number_once():
    torch.manual_seed(0)
    expected = torch.rand(2000).tolist()
    torch.manual_seed(0)
    drawn, stop = [], threading.Event()

    def draw():
        while len(drawn) < 2000 and not stop.is_set():
            drawn.append(float(torch.rand(())))
            time.sleep(0.0002)

    inputs = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    model = nn.Linear(4, 1)
    torch.manual_seed(0)
    thread = threading.Thread(target=draw)
    thread.start()
    config = SamplerConfig(num_chains=2, num_draws=32, max_draws=32, engine="loop")
    estimate_llc(
        model,
        [(inputs, inputs.sum(1, keepdim=True))],
        lambda m, batch: (m(batch[0]) - batch[1]).square().sum(1),
        n_samples=50,
        config=config,
    )
    stop.set()
    thread.join()
    assert len(drawn) > 5
    one_by_one = torch.Generator().manual_seed(0)
    assert drawn == [float(torch.rand((), generator=one_by_one)) for _ in drawn]
    assert len(expected) == 2000


def test_samples_that_draw_are_fetched_in_a_child_process(other):
    data = torch.arange(10.0)
    before = torch.get_rng_state()

    def fetch(group):
        return data[group] + torch.randn(len(group))

    with guard(seed=1):
        first = [*fetch_elsewhere(fetch, [[0, 1], [2]], seed=3)]
    again = [*fetch_elsewhere(fetch, [[0, 1], [2]], seed=3)]
    assert [len(batch) for batch in first] == [2, 1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def mixed_up(model, batch):
    """A loss that draws as mixup does."""
    weight = np.random.beta(0.4, 0.4) + (random.random() < 0.5)
    return weight * (model(batch[0]) - batch[1]).square().sum(1)


def seed_all():
    np.random.seed(5)
    random.seed(5)
    np.random.randn()
    random.gauss(0, 1)


def test_a_loss_that_draws_from_numpy_and_random_takes_no_number_from_another_thread():
    """The other thread draws all the while; what it gets is what it would get alone."""
    drawn, stop = [], threading.Event()

    def draw(num):
        for _ in range(num):
            yield (np.random.rand(), np.random.randn(), random.random(), random.gauss(0, 1))

    def prefetch():
        numbers = draw(10**6)
        while not stop.is_set():
            drawn.append(next(numbers))
            time.sleep(0.0002)

    inputs = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    batch = (inputs, inputs.sum(1, keepdim=True))
    config = SamplerConfig(num_chains=2, num_draws=32, max_draws=32, engine="loop")
    seed_all()
    thread = threading.Thread(target=prefetch, name="prefetch")
    thread.start()
    model = nn.Linear(4, 1)
    try:
        estimate_llc(model, [batch], mixed_up, n_samples=50, config=config)
        with guard(seed=3), torch.no_grad():
            first = float(mixed_up(model, batch).sum())
        with guard(seed=3), torch.no_grad():
            assert float(mixed_up(model, batch).sum()) == first
    finally:
        stop.set()
        thread.join()
    seed_all()
    assert len(drawn) > 5
    assert drawn == [*draw(len(drawn))]


def test_a_loss_that_seeds_numpy_is_refused_beside_another_thread(other):
    before = repr(np.random.get_state())
    with pytest.raises(RefusedError, match=r"np\.random\.seed"), guard(seed=1):
        np.random.seed(0)
    assert repr(np.random.get_state()) == before


class Noisy(torch.utils.data.Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, index):
        noise = np.random.randn() + random.random() + float(torch.randn(()))
        return torch.full((3,), float(index)) + noise, torch.zeros(1)


class NoisyStream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([Noisy()[index] for index in range(20)])


@pytest.mark.parametrize(
    "source",
    [
        Noisy(),
        NoisyStream(),
        torch.utils.data.DataLoader(Noisy(), 4, shuffle=True),
        torch.utils.data.DataLoader(Noisy(), batch_size=None),
        torch.utils.data.DataLoader(NoisyStream(), 4),
    ],
    ids=["dataset", "stream", "loader", "unbatched", "loader of a stream"],
)
def test_samples_that_draw_are_read_without_a_draw_in_this_process(other, source):
    before = torch.get_rng_state(), repr(np.random.get_state()), random.getstate()
    with guard(seed=1):
        probe = build_probe(source, config=ProbeConfig(num_samples=8), seed=1)
    assert probe.n_samples >= 8
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (repr(np.random.get_state()), random.getstate()) == before[1:]
