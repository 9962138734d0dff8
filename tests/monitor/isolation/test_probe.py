import random

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

from phasewatch.monitor.config.measuring import ProbeConfig
from phasewatch.monitor.core.errors import ConfigError, RefusedError
from phasewatch.monitor.isolation import guard
from phasewatch.monitor.isolation.batches import clone_batch, count_samples, same_batch
from phasewatch.monitor.isolation.probe import PassingProbe, build_probe, find_dataset

DATA = TensorDataset(torch.arange(20.0).reshape(20, 1), torch.arange(20))
SMALL = ProbeConfig(num_samples=8)


class Noisy(Dataset):
    """Draws from every generator there is, and counts its reads."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)
        self.reads = 0
        self.cache = {}

    def __len__(self):
        return 10

    def __getitem__(self, index):
        self.reads += 1
        self.cache[index] = True
        noise = random.random() + np.random.random() + torch.rand(1)  # noqa: NPY002
        return noise + torch.rand(1, generator=self.generator)


class Stream(IterableDataset):
    def __iter__(self):
        yield from (torch.tensor([float(i)]) for i in range(100))


def test_a_dataset_gives_distinct_samples_chosen_by_the_seed_alone():
    first = build_probe(DATA, config=SMALL, seed=1)
    assert first.n_samples == 8
    assert first.n_data == 20
    assert len(first.batches) == 1
    assert len(set(first.batches[0][1].tolist())) == 8
    torch.rand(5)
    assert same_batch(first.batches, build_probe(DATA, config=SMALL, seed=1).batches)
    assert not same_batch(first.batches, build_probe(DATA, config=SMALL, seed=2).batches)


def test_building_a_probe_draws_nothing_and_leaves_the_dataset_as_it_was():
    dataset = Noisy()
    states = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())  # noqa: NPY002
    generator = dataset.generator.get_state()
    with guard(seed=0, extra=[dataset]) as report:
        probe = build_probe(DataLoader(dataset, batch_size=4, shuffle=True), config=SMALL)
    assert probe.n_samples == 8
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])  # noqa: NPY002
    assert states[2] == random.getstate()
    assert dataset.reads == 0
    assert dataset.cache == {}
    assert torch.equal(generator, dataset.generator.get_state())
    assert report.repairs


def test_a_plain_dataset_needs_no_guard_to_leave_the_generators_alone():
    before = torch.get_rng_state()
    build_probe(DataLoader(DATA, batch_size=4, shuffle=True), config=SMALL)
    assert torch.equal(before, torch.get_rng_state())


def test_a_batch_size_gives_equal_batches():
    probe = build_probe(DATA, config=ProbeConfig(num_samples=10, batch_size=4))
    assert [len(batch[0]) for batch in probe.batches] == [4, 4]
    assert probe.n_samples == 8


def test_a_loaders_collate_function_is_used():
    loader = DataLoader(DATA, batch_size=4, collate_fn=lambda items: {"n": torch.ones(len(items))})
    probe = build_probe(loader, config=SMALL)
    assert list(probe.batches[0]) == ["n"]
    assert probe.n_samples == 8


def test_only_what_the_sampler_can_draw_is_taken():
    loader = DataLoader(DATA, batch_size=2, sampler=SubsetRandomSampler([1, 3, 5]))
    probe = build_probe(loader)
    assert sorted(probe.batches[0][1].tolist()) == [1, 3, 5]
    assert probe.n_data == 3


def test_a_dataset_that_gives_batches_itself():
    batches = [torch.full((3, 1), float(i)) for i in range(5)]
    probe = build_probe(DataLoader(batches, batch_size=None), config=SMALL)
    assert probe.n_samples == 9


def test_samples_fetched_many_at_once():
    assert build_probe(Subset(DATA, [2, 4]), config=SMALL).n_samples == 2


@pytest.mark.parametrize(
    ("source", "n_samples"),
    [
        ([torch.ones(3, 2), torch.ones(2, 2)], 5),
        ((torch.ones(3, 2), torch.ones(3)), 3),
        ({"x": torch.ones(4, 1)}, 4),
        (torch.ones(6, 1), 6),
    ],
)
def test_ready_batches(source, n_samples):
    assert build_probe(source).n_samples == n_samples


def test_a_stream_is_read_from_a_copy():
    probe = build_probe(Stream(), config=ProbeConfig(num_samples=8, batch_size=4))
    assert probe.n_samples == 8
    assert probe.n_data is None


def test_prepare_is_applied_once_to_each_batch():
    probe = build_probe([torch.ones(2), torch.ones(2)], prepare=lambda batch: batch + 1)
    assert [batch.tolist() for batch in probe.batches] == [[2.0, 2.0], [2.0, 2.0]]


def test_n_samples_given_names_the_terms():
    probe = build_probe([torch.ones(2, 7)], n_samples=14)
    assert probe.n_samples == 14
    assert probe.sample_unit == "term"


@pytest.mark.parametrize("source", [[], TensorDataset(torch.empty(0, 1)), Subset(DATA, [])])
def test_an_empty_source_is_a_clear_error(source):
    with pytest.raises(ConfigError, match="empty"):
        build_probe(source)


def test_what_is_no_source_is_a_clear_error():
    with pytest.raises(ConfigError, match="got a int; give a dataset"):
        build_probe(3)
    with pytest.raises(ConfigError, match="n_samples="):
        build_probe([["only", "text"]])


def test_a_probe_too_large_is_shrunk_and_told(caplog):
    probe = build_probe(DATA, config=ProbeConfig(num_samples=20, max_bytes=60))
    assert probe.n_samples == 5  # 12 bytes a sample
    assert "max_bytes = 60" in caplog.text
    with pytest.raises(RefusedError, match="one probe sample takes 12 bytes"):
        build_probe(DATA, config=ProbeConfig(max_bytes=10))
    kept = build_probe([torch.ones(4), torch.ones(4)], config=ProbeConfig(max_bytes=20))
    assert kept.n_samples == 4


def test_passing_batches_are_copied_before_they_can_be_changed():
    passing = PassingProbe(ProbeConfig(num_samples=5))
    batch = {"x": torch.ones(3, 1), "tags": ["a"]}
    assert not passing.offer(batch)
    batch["x"].add_(1)
    batch["tags"].append("b")
    assert passing.offer({"x": torch.ones(3, 1), "tags": ["a"]})
    probe = passing.probe()
    assert probe.n_samples == 6
    assert probe.batches[0]["x"].tolist() == [[1.0]] * 3
    assert probe.batches[0]["tags"] == ["a"]


def test_passing_batches_stop_at_the_byte_limit_and_at_the_end_of_the_data():
    passing = PassingProbe(ProbeConfig(max_bytes=20))
    assert not passing.offer(torch.ones(4))
    assert passing.offer(torch.ones(4))
    assert passing.probe().n_samples == 4
    short = PassingProbe()
    short.close()
    assert not short.complete
    short.offer(torch.ones(4))
    short.close()
    assert short.complete


def test_the_dataset_behind_a_loader_is_found_only_where_its_order_is_known():
    class Own(Sampler):
        def __iter__(self):
            return iter([0])

        def __len__(self):
            return 1

    assert find_dataset(DataLoader(DATA)) is DATA
    assert find_dataset(DataLoader(DATA, sampler=Own())) is None
    assert find_dataset(DataLoader(DATA, batch_sampler=Own())) is None
    assert find_dataset(DataLoader(Stream())) is None
    assert find_dataset([1, 2]) is None


def test_batches_are_cloned_through_any_nesting():
    batch = {"a": (torch.ones(2), [np.ones(2)]), "b": "text"}
    copied = clone_batch(batch)
    assert same_batch(batch, copied)
    copied["a"][0][0] = 5
    copied["a"][1][0][0] = 5
    assert batch["a"][0][0] == 1
    assert batch["a"][1][0][0] == 1
    assert not same_batch(batch, copied)
    assert same_batch(torch.tensor([torch.nan]), torch.tensor([torch.nan]))
    assert count_samples(batch) == 2
