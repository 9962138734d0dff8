"""A model from the command line: a factory in the user's own code, and a checkpoint."""

from __future__ import annotations

import importlib
import pickle
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from phasewatch.monitor.core.context import LossFn
from phasewatch.monitor.core.errors import ConfigError, UnknownNameError, UnreadableError

CONTRACT = (
    "a factory takes no arguments and returns (model, batches, loss_fn, n_samples), the arguments "
    "of estimate_llc"
)

MAX_KEYS = 4
"""Keys of a checkpoint that an error message lists of each sort."""


class Subject(NamedTuple):
    """What a factory returns, as this or as a plain tuple.

    Attributes:
        model: The model; a checkpoint is loaded into it.
        batches: The probe: batches as `loss_fn` takes them.
        loss_fn: `loss_fn(model, batch)` -> per-sample losses (B,), or their mean, in nats.
        n_samples: n, the number of terms that the loss averages over all batches.
    """

    model: nn.Module
    batches: Sequence[Any]
    loss_fn: LossFn
    n_samples: int


def load_subject(factory: str) -> Subject:
    """Call the factory named `module:function`; the module may lie in the working directory.

    Raises:
        ConfigError: There is no such function, it raises, or it returns something else.

    Example:
        A factory, in a file probe.py, named as probe:grokking:

            def grokking():
                model = Net()
                x, y = dataset()
                return model, [(x, y)], loss, len(x)

            def loss(model, batch):
                return cross_entropy(model(batch[0]), batch[1], reduction="none")
    """
    try:
        returned = find_function(factory)()
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"factory {factory!r} raised {type(error).__name__}: {error}; {CONTRACT}"
        ) from error
    return _checked(factory, returned)


def find_function(factory: str) -> Callable[[], Any]:
    """The function named `module:function`; the module may lie in the working directory.

    Args:
        factory: Its name.

    Raises:
        ConfigError: There is none.
    """
    name, colon, attribute = factory.partition(":")
    if not (name and colon and attribute):
        raise ConfigError(
            f"factory is {factory!r}; it must be module:function, for example probe:f"
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(name)
    except Exception as error:
        hint = f"modules are looked for in {here} and on PYTHONPATH"
        raise ConfigError(
            f"module {name!r} of the factory cannot be imported: {type(error).__name__}: {error}; "
            f"{hint}"
        ) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        own = [
            key
            for key, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == name
        ]
        raise UnknownNameError(f"function of module {name!r}:", attribute, own)
    return found  # type: ignore[no-any-return]


def _checked(factory: str, returned: Any) -> Subject:
    if not isinstance(returned, tuple) or len(returned) != len(Subject._fields):
        size = f" of {len(returned)}" if isinstance(returned, tuple) else ""
        raise ConfigError(
            f"factory {factory!r} returned a {type(returned).__name__}{size}; {CONTRACT}"
        )
    subject = Subject(*returned)
    wrong = {
        "model": None if isinstance(subject.model, nn.Module) else "a torch.nn.Module",
        "batches": None
        if isinstance(subject.batches, Sequence) and len(subject.batches) > 0
        else "a list of at least one batch",
        "loss_fn": None if callable(subject.loss_fn) else "a function loss_fn(model, batch)",
        "n_samples": None
        if isinstance(subject.n_samples, int) and subject.n_samples >= 3
        else "an integer of at least 3",
    }
    for field, allowed in wrong.items():
        if allowed is not None:
            value = repr(getattr(subject, field))[:60]
            raise ConfigError(
                f"{field} of factory {factory!r} is {value}; it must be {allowed}: {CONTRACT}"
            )
    return subject


# ---- checkpoints


def load_checkpoint(model: nn.Module, path: Path, prefix: str = "") -> None:
    """Load weights into `model`, in place; every key must match.

    `.safetensors` files are read with safetensors, all others with torch (`weights_only`). Of a
    Lightning checkpoint its "state_dict" is taken.

    Args:
        model: Where the weights go.
        path: The file.
        prefix: Take only the keys that begin with this, and cut it off: "model." for a network
            that was the attribute `model` of a LightningModule.

    Raises:
        UnreadableError: The file cannot be read.
        ConfigError: Its keys or shapes are not those of the model.
    """
    state = _state(path)
    if prefix:
        state = _without(prefix, state)
    try:
        result = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ConfigError(f"checkpoint {str(path)!r} does not fit the model: {error}") from error
    missing = _untied(model, result.missing_keys, state)
    faults = [
        f"{what}: {_some(keys)}"
        for what, keys in (
            ("missing in the file", missing),
            ("unknown to the model", result.unexpected_keys),
        )
        if keys
    ]
    if faults:
        raise ConfigError(
            f"keys of checkpoint {str(path)!r} do not match the model ({'; '.join(faults)})"
            + _prefix_hint(model, state)
        )


def check_readable(path: Path) -> None:
    """Find out whether a file of weights can be read; its tensors are not.

    Args:
        path: The file.

    Raises:
        UnreadableError: It is damaged, incomplete, gone or no checkpoint.
    """
    _read(path, tensors=False)


def _untied(model: nn.Module, missing: Sequence[str], state: Mapping[str, Tensor]) -> list[str]:
    """Of the keys a file lacks those that no other key stands for: tied weights are saved once."""
    own = model.state_dict(keep_vars=True)
    held = {id(value) for key, value in own.items() if key in state}
    return [key for key in missing if id(own[key]) not in held]


def _state(path: Path) -> Mapping[str, Tensor]:
    content = _read(path)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(
        isinstance(value, Tensor) for value in content.values()
    ):
        held = _some(list(content)) if isinstance(content, Mapping) else type(content).__name__
        raise ConfigError(
            f"checkpoint {str(path)!r} holds {held}; it must be a state_dict, or have one under "
            "the key 'state_dict'"
        )
    return content


def _read(path: Path, *, tensors: bool = True) -> Any:
    try:
        if path.suffix == ".safetensors":
            if tensors:
                from safetensors.torch import load_file

                return load_file(path)
            from safetensors import safe_open

            with safe_open(path, "pt"):  # compares its length with what its head says
                return {}
        # An old file, which is no archive, cannot be mapped.
        mapped = not tensors and zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except ImportError as error:
        raise ConfigError(
            f"checkpoint {str(path)!r} needs the package safetensors: pip install safetensors"
        ) from error
    except OSError as error:
        raise UnreadableError(
            f"checkpoint {str(path)!r} cannot be read: {error.strerror or error}; give the path of "
            "a file"
        ) from error
    except pickle.UnpicklingError as error:
        raise UnreadableError(
            f"checkpoint {str(path)!r} holds more than tensors and plain containers, or is no "
            "checkpoint, and will not be unpickled; save model.state_dict() alone"
        ) from error
    except Exception as error:  # torch and safetensors each have several for a damaged file
        raise UnreadableError(
            f"checkpoint {str(path)!r} cannot be read: {type(error).__name__}: {error}"
        ) from error


def _without(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {
        key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
    }
    if not found:
        raise ConfigError(
            f"prefix is {prefix!r}, and no key of the checkpoint begins with it; it has "
            f"{_some(list(state))}"
        )
    return found


def _prefix_hint(model: nn.Module, state: Mapping[str, Tensor]) -> str:
    """The prefix that would make all keys of the model appear, if there is one."""
    wanted = list(model.state_dict())
    for key in state:
        if wanted and key.endswith("." + wanted[0]):
            prefix = key.removesuffix(wanted[0])
            if all(prefix + name in state for name in wanted):
                return f". With --prefix {prefix} they would"
    return ""


def _some(keys: Sequence[str]) -> str:
    shown = ", ".join(map(str, keys[:MAX_KEYS])) or "nothing"
    return shown + (f" and {len(keys) - MAX_KEYS} more" if len(keys) > MAX_KEYS else "")
