"""Process-wide switches of torch: read before a measurement, put back where they moved."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

_AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")


def _set_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


def _set_default_device(device: torch.device) -> None:
    # "cpu" is what torch answers when no default device was set.
    torch.set_default_device(None if device.type == "cpu" else device)


def _set_anomaly(value: tuple[bool, bool]) -> None:
    torch.set_anomaly_enabled(*value)


def _attribute(owner: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    return (lambda: getattr(owner, name)), (lambda value: setattr(owner, name, value))


_SWITCHES: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "default device": (torch.get_default_device, _set_default_device),
    "float32 matmul precision": (
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    "deterministic algorithms": (
        lambda: (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        _set_deterministic,
    ),
    "anomaly detection": (
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        _set_anomaly,
    ),
    "number of threads": (torch.get_num_threads, torch.set_num_threads),
    "cudnn.benchmark": _attribute(torch.backends.cudnn, "benchmark"),
    "cudnn.deterministic": _attribute(torch.backends.cudnn, "deterministic"),
    "cudnn.allow_tf32": _attribute(torch.backends.cudnn, "allow_tf32"),
}


class Modes:
    """The switches as they were. `restore` touches only those that moved since."""

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        for name, (read, _) in _SWITCHES.items():
            # torch refuses to answer about TF32 when a program mixes its old and new switches;
            # what cannot be read is then not ours to write either.
            with contextlib.suppress(RuntimeError):
                self._values[name] = read()

    def restore(self) -> None:
        """Put back what moved."""
        for name, before in self._values.items():
            read, write = _SWITCHES[name]
            if read() != before:
                write(before)


@contextlib.contextmanager
def measuring_modes() -> Iterator[None]:
    """Gradients on; inference mode, anomaly detection, autocast and cudnn.benchmark off.

    Anomaly detection would raise on a chain that turns NaN, which is a result and not an error.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in _AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.is_anomaly_enabled():
            torch.set_anomaly_enabled(False)
        if torch.backends.cudnn.benchmark:
            torch.backends.cudnn.benchmark = False
        yield
