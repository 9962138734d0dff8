"""The fixed data on which the model is measured.

Batches are taken once, collated once, and kept. The trainer's iterator is never advanced, and no
loader is iterated: even without shuffling, a new iterator draws a seed from the global generator.
Build probes inside a `phasewatch.monitor.isolation.guard` whose `extra` holds the dataset: reading
a sample may draw random numbers and move counters.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    default_collate,
)
from torch.utils.data.distributed import DistributedSampler

from phasewatch.monitor.config.measuring import ProbeConfig
from phasewatch.monitor.core.errors import ConfigError, RefusedError
from phasewatch.monitor.isolation.batches import clone_batch, count_samples, num_bytes
from phasewatch.monitor.isolation.threads import drawing_threads, fetch_elsewhere

log = logging.getLogger("phasewatch")

Prepare = Callable[[Any], Any]
"""What training does to a batch between the loader and the model: conversion, transfer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Fixed batches and their size.

    Attributes:
        batches: Batches as the loss takes them, on the model's device.
        n_samples: Number of terms the loss averages over, all batches together.
        sample_unit: What one term is.
        n_data: Size of the dataset they come from, if known.
    """

    batches: tuple[Any, ...]
    n_samples: int
    sample_unit: str = "sample"
    n_data: int | None = None


def build_probe(
    source: Any,
    *,
    config: ProbeConfig | None = None,
    seed: int = 0,
    prepare: Prepare | None = None,
    n_samples: int | None = None,
) -> Probe:
    """Take a probe from a dataset, a loader, or ready batches.

    Args:
        source: A map-style dataset; a `DataLoader`; a sequence of ready batches; or one batch (a
            tensor, a mapping, or a tuple of tensors of one length).
        config: How many samples, in batches of which size, of how many bytes at most.
        seed: Seed by which samples are chosen.
        prepare: Applied once to each batch.
        n_samples: Number of loss terms, where it is not the number of samples (token losses).

    Raises:
        ConfigError: The source is empty, or nothing a probe can be taken from.
        RefusedError: One sample is larger than `config.max_bytes`.
    """
    config = config or ProbeConfig()
    n_data: int | None = None
    if isinstance(source, DataLoader):
        batches, n_data = _from_loader(source, config, seed)
    elif _is_batch(source):
        batches = [source]
    elif isinstance(source, (list, tuple)):
        batches = list(source)
    elif isinstance(source, IterableDataset):
        batches = _from_stream(DataLoader(source, batch_size=config.batch_size or 32), config, seed)
    elif hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        batches, n_data = _from_dataset(source, config, seed, default_collate), len(source)
    else:
        raise ConfigError(
            f"probe: got a {type(source).__name__}; give a dataset with __len__ and __getitem__, "
            "a DataLoader, or a list of batches"
        )
    batches = [prepare(batch) for batch in batches] if prepare else batches
    return probe_of(batches, config=config, n_data=n_data, n_samples=n_samples)


def probe_of(
    batches: Sequence[Any],
    *,
    config: ProbeConfig | None = None,
    n_data: int | None = None,
    n_samples: int | None = None,
) -> Probe:
    """Make a probe of batches that are ready for the loss.

    Args:
        batches: The batches, on their device.
        config: Limits of size; None takes the defaults.
        n_data: Size of the training dataset, if known.
        n_samples: Terms that the loss averages over; None counts samples.

    Raises:
        ConfigError: There is none, or the number of samples cannot be told.
        RefusedError: The first batch alone is larger than `config.max_bytes`.
    """
    limit = (config or ProbeConfig()).max_bytes
    if not batches:
        raise ConfigError("probe: the data is empty; give a dataset with at least one sample")
    kept: list[Any] = []
    total = 0
    for batch in batches:
        total += num_bytes(batch)
        if total > limit:
            break
        kept.append(batch)
    if not kept:
        raise RefusedError(
            f"the first probe batch takes {num_bytes(batches[0])} bytes, more than "
            f"probe.max_bytes = {limit}; set a smaller probe.batch_size or raise probe.max_bytes"
        )
    if len(kept) < len(batches):
        log.warning(
            "probe: kept %d of %d batches to stay below probe.max_bytes = %d",
            len(kept),
            len(batches),
            limit,
        )
    return Probe(
        batches=tuple(kept),
        n_samples=n_samples or sum(count_samples(batch) for batch in kept),
        sample_unit="term" if n_samples else "sample",
        n_data=n_data,
    )


class PassingProbe:
    """Collects a probe from the batches of training as they pass by.

    For streams, and for loaders whose order only they know. Each batch is copied before the
    training step can change it.

    Args:
        config: How many samples, of how many bytes at most.
        n_samples: Number of loss terms, where it is not the number of samples.
        one_batch_first: Complete after one batch; `extend` asks for more.

    Attributes:
        complete: Whether no more is wanted.
        closed: Whether no more can be had.
    """

    def __init__(
        self,
        config: ProbeConfig | None = None,
        n_samples: int | None = None,
        *,
        one_batch_first: bool = False,
    ) -> None:
        self._config = config or ProbeConfig()
        self._n_samples = n_samples
        self._wanted = 1 if one_batch_first else self._config.num_samples
        self.closed = False
        self._batches: list[Any] = []
        self._samples = 0
        self._bytes = 0
        self.complete = False

    def offer(self, batch: Any) -> bool:
        """Take a copy of a passing batch, if more are wanted.

        Returns:
            Whether the probe is complete.
        """
        if self.complete:
            return True
        size = num_bytes(batch)
        if self._batches and self._bytes + size > self._config.max_bytes:
            self.complete = self.closed = True
            return True
        self._batches.append(clone_batch(batch))
        self._bytes += size
        self._samples += count_samples(batch)
        self.complete = self._samples >= self._wanted
        return self.complete

    def extend(self, num_samples: int) -> bool:
        """Ask for so many samples in all.

        Returns:
            Whether more batches are to pass by.
        """
        self._wanted = num_samples
        self.complete = self.closed or self._samples >= num_samples
        return not self.complete

    def close(self) -> None:
        """Take what has passed as the whole, if anything has."""
        self.complete = self.closed = bool(self._batches)

    def probe(self) -> Probe:
        """The probe so far."""
        return probe_of(self._batches, config=self._config, n_samples=self._n_samples)


def find_dataset(loader: Any) -> Any:
    """The map-style dataset behind a loader whose way of choosing samples is known, or None.

    None means that only passing batches show what training sees: streams, loaders of other
    kinds, and samplers of the user's own.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    return None if _indices(loader) is None else loader.dataset


def is_indexed(source: Any) -> bool:
    """Whether single samples can be chosen from it: a dataset, or a loader over one."""
    if isinstance(source, DataLoader):
        return find_dataset(source) is not None and source.batch_sampler is not None
    ready = _is_batch(source) or isinstance(source, (list, tuple, IterableDataset))
    return not ready and hasattr(source, "__getitem__") and hasattr(source, "__len__")


def batch_size_of(source: Any) -> int | None:
    """Samples in a batch of a loader; None for anything else."""
    if not isinstance(source, DataLoader):
        return None
    # A loader that was given its batch sampler has no size of its own.
    size = source.batch_size or getattr(source.batch_sampler, "batch_size", None)
    return size if isinstance(size, int) else None


def num_available(source: Any) -> int:
    """Samples that can be chosen from a source that `is_indexed`."""
    if isinstance(source, DataLoader):
        return len(_indices(source) or ())
    return len(source)


def _is_batch(source: Any) -> bool:
    if isinstance(source, (torch.Tensor, Mapping)):
        return True
    return (
        isinstance(source, tuple)
        and len(source) > 0
        and all(isinstance(item, torch.Tensor) and item.ndim > 0 for item in source)
        and len({len(item) for item in source}) == 1
    )


def _from_loader(
    loader: DataLoader[Any], config: ProbeConfig, seed: int
) -> tuple[list[Any], int | None]:
    if isinstance(loader.dataset, IterableDataset):
        return _from_stream(loader, config, seed), None
    indices = _indices(loader)
    if indices is None:
        indices = range(len(loader.dataset))  # type: ignore[arg-type]
    if loader.batch_sampler is None:  # the dataset itself gives batches
        chosen = _choose(indices, len(indices), seed)
        read = _reader(lambda group: loader.collate_fn(loader.dataset[group[0]]), seed)
        return _until_full(read([[index] for index in chosen]), config), len(indices)
    return _from_dataset(loader.dataset, config, seed, loader.collate_fn, indices), len(indices)


def _from_dataset(
    dataset: Any,
    config: ProbeConfig,
    seed: int,
    collate: Callable[[list[Any]], Any],
    indices: Sequence[int] | None = None,
) -> list[Any]:
    indices = range(len(dataset)) if indices is None else indices
    if not len(indices):
        raise ConfigError("probe: the dataset is empty; give one with at least one sample")
    chosen = _choose(indices, config.num_samples, seed)

    def fetch(group: list[int]) -> Any:
        return collate(_fetch_many(dataset, group))

    read = _reader(fetch, seed)
    (first,) = read([chosen[:1]])
    each = num_bytes(first)
    if each > config.max_bytes:
        raise RefusedError(
            f"one probe sample takes {each} bytes, more than probe.max_bytes = "
            f"{config.max_bytes}; raise probe.max_bytes, or pass probe= with smaller samples"
        )
    if each * len(chosen) > config.max_bytes:
        fitting = config.max_bytes // each
        log.warning(
            "probe: %d samples of %d bytes do not fit into probe.max_bytes = %d; taking %d",
            len(chosen),
            each,
            config.max_bytes,
            fitting,
        )
        chosen = chosen[:fitting]
    size = config.batch_size or len(chosen)
    if len(chosen) > size:  # equal batches, so that every sample weighs the same in the mean
        chosen = chosen[: len(chosen) - len(chosen) % size]
    return [*read([chosen[start : start + size] for start in range(0, len(chosen), size)])]


def _reader(
    fetch: Callable[[list[int]], Any], seed: int
) -> Callable[[list[list[int]]], Iterable[Any]]:
    """Reads groups of samples, in another process while another thread may draw."""

    def read(groups: list[list[int]]) -> Iterable[Any]:
        if drawing_threads():
            return fetch_elsewhere(fetch, groups, seed)
        return map(fetch, groups)

    return read


def _from_stream(loader: DataLoader[Any], config: ProbeConfig, seed: int) -> list[Any]:
    try:
        dataset = copy.deepcopy(loader.dataset)
    except Exception as error:
        raise RefusedError(
            f"the stream {type(loader.dataset).__name__} cannot be copied "
            f"({type(error).__name__}: {error}), and reading from it would advance it; "
            "leave `probe` out to take batches as they pass, or give a list of batches"
        ) from error
    own = DataLoader(
        dataset,
        batch_size=loader.batch_size,
        collate_fn=loader.collate_fn,
        generator=torch.Generator().manual_seed(seed),
        num_workers=1 if drawing_threads() else 0,  # its numbers are then its own
    )
    return _until_full(iter(own), config)


def _until_full(batches: Iterable[Any], config: ProbeConfig) -> list[Any]:
    taken: list[Any] = []
    samples = 0
    for batch in islice(batches, config.num_samples):
        taken.append(batch)
        samples += count_samples(batch)
        if samples >= config.num_samples:
            break
    return taken


def _choose(indices: Sequence[int], number: int, seed: int) -> list[int]:
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))
    return [indices[i] for i in order[:number].tolist()]


def _fetch_many(dataset: Any, indices: list[int]) -> list[Any]:
    # Loaders ask for many samples at once where a dataset offers it.
    many = getattr(dataset, "__getitems__", None)
    return list(many(indices)) if many else [dataset[index] for index in indices]


def _indices(loader: DataLoader[Any]) -> Sequence[int] | None:
    """Indices that the loader's sampler draws from; None if that cannot be known."""
    sampler = loader.sampler
    if loader.batch_sampler is not None and not isinstance(loader.batch_sampler, BatchSampler):
        return None
    if isinstance(sampler, SubsetRandomSampler):
        return list(sampler.indices)
    if isinstance(sampler, (SequentialSampler, RandomSampler, DistributedSampler)):
        try:
            return range(len(loader.dataset))  # type: ignore[arg-type]
        except TypeError:
            return None
    return None


def with_terms(probe: Probe, terms: int, unit: str) -> Probe:
    """The same probe, its number of loss terms corrected by what the loss returned.

    Args:
        probe: The probe.
        terms: Number of terms that the loss averages over.
        unit: What one term is.
    """
    if terms == probe.n_samples:
        return probe
    return replace(probe, n_samples=terms, sample_unit=unit)
