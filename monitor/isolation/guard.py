"""The outermost shell of every measurement: whatever happens inside, training does not see it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from phasewatch.monitor.isolation.rng import RngState, accelerators_of
from phasewatch.monitor.isolation.snapshot import LiveSnapshot
from phasewatch.monitor.isolation.threads import beside, drawing_threads
from phasewatch.monitor.isolation.torch_switches import Modes, measuring_modes


@dataclass(slots=True)
class GuardReport:
    """What a guard had to repair in what is alive. Complete once the guard was left.

    Attributes:
        repairs: What was found changed and was put back, in words; empty in a clean measurement.
    """

    repairs: list[str] = field(default_factory=list)


_TRAINABLE: dict[int, bool] = {}
"""`requires_grad` of the parameters that are under a guard just now, by identity."""


def is_trainable(parameter: torch.Tensor) -> bool:
    """Whether training trains this parameter, also while a guard has it frozen."""
    return _TRAINABLE.get(id(parameter), parameter.requires_grad)


class _Shell:
    """Everything that is restored, in one place, so that restoring can be done twice."""

    def __init__(self, module: nn.Module | None, extra: Iterable[Any]) -> None:
        self.others = drawing_threads()
        # Beside a thread that draws, the generators are left alone altogether.
        self._rng = None if self.others else RngState(accelerators_of(module))
        self._modes = Modes()
        roots = [root for root in (module, *extra) if root is not None]
        self._live = LiveSnapshot(roots) if roots else None
        self._parameters = [
            (parameter, parameter.grad, parameter.requires_grad)
            for parameter in (module.parameters() if module is not None else ())
            if id(parameter) not in _TRAINABLE  # else an outer guard has it
        ]

    def enter(self, seed: int) -> None:
        for parameter, _, requires_grad in self._parameters:
            # A loss that reads the live weights through a closure could otherwise write their
            # gradients, and fire the hooks by which data-parallel training communicates.
            _TRAINABLE[id(parameter)] = requires_grad
            parameter.grad = None
            parameter.requires_grad_(False)
        if self._rng is not None:
            self._rng.seed(seed)

    def restore(self, report: GuardReport) -> None:
        try:
            for parameter, gradient, requires_grad in self._parameters:
                parameter.requires_grad_(requires_grad)
                parameter.grad = gradient
                _TRAINABLE.pop(id(parameter), None)
            if self._live is not None:
                report.repairs.extend(self._live.restore())
        finally:
            self._modes.restore()
            if self._rng is not None:
                self._rng.restore()


@contextlib.contextmanager
def guard(
    module: nn.Module | None = None, *, seed: int, extra: Iterable[Any] = ()
) -> Iterator[GuardReport]:
    """Run a measurement so that training cannot tell that it happened.

    Saves, and restores after any exception (KeyboardInterrupt too): the random generators of
    torch (CPU and the accelerators in use), numpy and `random`; torch's process-wide switches;
    and what is alive: attributes, containers, buffers, parameters, gradients and generators of
    `module`. Inside, gradients are on, inference mode, autocast and anomaly detection are off, the
    generators are seeded with `seed`, and the live parameters have no `.grad` and do not
    require one.

    Where another thread may draw random numbers meanwhile, the generators are neither seeded nor
    put back: inside, numpy and `random` draw from streams of their own, seeded with `seed`, and
    what draws from torch's generators is refused.

    Args:
        module: The live module.
        seed: Seed of the global generators inside.
        extra: Further live objects to watch, for example a dataset that is read from.

    Yields:
        The report, filled when the guard is left.

    Raises:
        RefusedError: What is measured draws from torch's, and another thread may draw too.
    """
    report = GuardReport()
    shell = _Shell(module, extra)
    try:
        shell.enter(seed)
        with measuring_modes(), beside(shell.others, seed) if shell.others else nullcontext():
            yield report
    finally:
        try:
            shell.restore(report)
        except BaseException:
            # A Ctrl-C in the middle of restoring must not leave it half done.
            shell.restore(report)
            raise


@contextlib.contextmanager
def generators_kept(module: nn.Module | None = None) -> Iterator[None]:
    """Run what the user's own code may draw in, such as the writing of a checkpoint.

    The generators have inside the states that they have outside, and are put back; beside a thread
    that draws they are left alone altogether.

    Args:
        module: The live module: the generators of its accelerators are put back, too.
    """
    state = None if drawing_threads() else RngState(accelerators_of(module))
    try:
        yield
    finally:
        if state is not None:
            state.restore()
