"""The global random generators: saved, seeded with our own seed, put back."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from phasewatch.monitor.isolation.generators import reseed
from phasewatch.monitor.isolation.threads import is_beside


class RngState:
    """State of the generators that training draws from.

    torch on the CPU, torch on the given accelerators, numpy's legacy generator and `random`.
    Generators of accelerators that are not in use are left alone: reading them may open a
    context on the device.

    Args:
        devices: Accelerators in use.
    """

    __slots__ = ("_accelerators", "_numpy", "_python", "_torch")

    def __init__(self, devices: Iterable[torch.device] = ()) -> None:
        self._torch = torch.default_generator.get_state()
        self._accelerators = [
            (generator, generator.get_state()) for generator in map(_generator_of, devices)
        ]
        self._numpy: Any = np.random.get_state(legacy=False)  # noqa: NPY002
        self._python = random.getstate()

    def seed(self, seed: int) -> None:
        """Seed all of them, so that what is measured does not depend on where training stands.

        `torch.manual_seed` is not used: it also seeds accelerators that were not saved, and it
        queues a seed for those that are not initialised yet. Beside another thread that may draw,
        only this thread's own streams are seeded: what draws from torch's is refused there.
        """
        if is_beside():
            reseed(seed)
            return
        torch.default_generator.manual_seed(seed)
        for generator, _ in self._accelerators:
            generator.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002  (the global generator is what user code draws)
        random.seed(seed)

    def restore(self) -> None:
        """Put every generator back where it was."""
        torch.default_generator.set_state(self._torch)
        for generator, state in self._accelerators:
            generator.set_state(state)
        np.random.set_state(self._numpy)  # noqa: NPY002
        random.setstate(self._python)


def _generator_of(device: torch.device) -> torch.Generator:
    if device.type == "mps":
        return torch.mps._get_default_mps_generator()
    backend = torch.get_device_module(device)
    index = backend.current_device() if device.index is None else device.index
    generator: torch.Generator = backend.default_generators[index]
    return generator


def accelerators_of(module: torch.nn.Module | None) -> list[torch.device]:
    """Accelerators whose generators a measurement of `module` may move.

    The devices of its parameters and buffers, and the current CUDA device once CUDA is in use.
    """
    found: dict[torch.device, None] = {}
    if module is not None:
        for tensors in (module.parameters(), module.buffers()):
            for tensor in tensors:
                if tensor.device.type not in ("cpu", "meta"):
                    found[tensor.device] = None
    if torch.cuda.is_initialized():
        found[torch.device("cuda", torch.cuda.current_device())] = None
    return list(found)
