"""Records to rows and back. No pickle: numbers, JSON that any parser reads, and raw arrays.

NaN and infinity survive: in columns by a code beside the number, in JSON as strings.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from phasewatch.monitor.core.columns import Column, observations_of
from phasewatch.monitor.core.estimates import Estimate, Observation
from phasewatch.monitor.core.redaction import redact
from phasewatch.monitor.core.transitions import Transition

_CODES = {"nan": 1, "inf": 2, "-inf": 3}
_VALUES = (0.0, math.nan, math.inf, -math.inf)
_STDERR_SHIFT = 2

_ESTIMATE, _TRANSITION = TypeAdapter(Estimate), TypeAdapter(Transition)
_NO_LOSSES = np.empty((0, 0))


class Numbers(NamedTuple):
    """A value and its error as columns hold them."""

    value: float | None
    stderr: float | None
    nonfinite: int | None


def encode_numbers(value: float, stderr: float | None) -> Numbers:
    """Split off what a database may not keep."""
    code = 0
    kept_value: float | None = float(value)
    kept_stderr = None if stderr is None else float(stderr)
    if not math.isfinite(value):
        code, kept_value = _CODES[repr(kept_value)], None
    if kept_stderr is not None and not math.isfinite(kept_stderr):
        code |= _CODES[repr(kept_stderr)] << _STDERR_SHIFT
        kept_stderr = None
    return Numbers(kept_value, kept_stderr, code or None)


def decode_numbers(
    value: float | None, stderr: float | None, nonfinite: int | None
) -> tuple[float, float | None]:
    """The inverse of `encode_numbers`.

    Args:
        value: The stored value; None where it was not finite.
        stderr: The stored standard error.
        nonfinite: What stands for NaN and infinities.
    """
    code = nonfinite or 0
    if code:
        if code & 3:
            value = _VALUES[code & 3]
        if code >> _STDERR_SHIFT:
            stderr = _VALUES[code >> _STDERR_SHIFT]
    return (math.nan if value is None else value), stderr


OBSERVATION_COLUMNS = (
    "stream_id",
    "attempt",
    "step",
    "epoch",
    "value",
    "stderr",
    "nonfinite",
    "timestamp",
    "duration_seconds",
    "status",
    "reason",
)


def encode_observation(stream_id: int, attempt: int, observation: Observation) -> tuple[Any, ...]:
    """One row, in the order of `OBSERVATION_COLUMNS`.

    Args:
        stream_id: Number of the stream.
        attempt: Which fit of the run.
        observation: What is stored.
    """
    epoch = observation.epoch
    return (
        stream_id,
        attempt,
        int(observation.step),
        None if epoch is None else int(epoch),
        *encode_numbers(observation.value, observation.stderr),
        float(observation.timestamp),
        float(observation.duration_seconds),
        observation.status.value,
        redact(observation.reason) if observation.reason else None,
    )


SCALAR_COLUMNS = ("stream_id", "attempt", "step", "epoch", "value", "timestamp")
"""What differs between finite, exact scalars: binding fewer values halves the cost of a row."""

SCALAR_CONSTANTS = {"duration_seconds": "0.0", "status": "'ok'"}
"""What does not, as SQL."""


def encode_column(
    stream_id: int, attempt: int, name: str, column: Column
) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Rows of exact scalars: finite ones by `SCALAR_COLUMNS`, others by `OBSERVATION_COLUMNS`.

    Args:
        stream_id: Number of the stream.
        attempt: Which fit of the run.
        name: Name of the stream.
        column: Its values.
    """
    if all(map(math.isfinite, column.values)):
        stream, fit = itertools.repeat(stream_id), itertools.repeat(attempt)
        numbers = (column.steps, column.epochs, column.values, column.timestamps)
        return list(zip(stream, fit, *numbers, strict=False)), []
    scalars: list[tuple[Any, ...]] = []
    others: list[tuple[Any, ...]] = []
    for item in observations_of(name, column):
        if math.isfinite(item.value):
            scalars.append((stream_id, attempt, item.step, item.epoch, item.value, item.timestamp))
        else:
            others.append(encode_observation(stream_id, attempt, item))
    return scalars, others


def to_json(content: Any) -> str:
    """Strict JSON; NaN and infinity become the strings "nan", "inf" and "-inf"."""
    return json.dumps(_plain(content), allow_nan=False, ensure_ascii=False, default=str)


def _plain(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {str(key): _plain(item) for key, item in content.items()}
    if isinstance(content, (list, tuple)):
        return [_plain(item) for item in content]
    if isinstance(content, np.generic):
        content = content.item()
    if isinstance(content, float) and not math.isfinite(content):
        return repr(float(content))
    return content


def encode_estimate(estimate: Estimate) -> tuple[str, bytes]:
    """The estimate as JSON, and its chain losses as raw little-endian float64."""
    chain_loss = np.ascontiguousarray(estimate.chain_loss, dtype="<f8")
    body = dataclasses.asdict(dataclasses.replace(estimate, chain_loss=_NO_LOSSES))
    del body["chain_loss"]
    return to_json(body | {"chain_shape": chain_loss.shape}), chain_loss.tobytes()


def decode_estimate(body: str, chain_loss: bytes) -> Estimate:
    """The inverse of `encode_estimate`."""
    content = json.loads(body)
    shape = content.pop("chain_shape")
    losses: NDArray[np.float64] = np.frombuffer(chain_loss, dtype="<f8").reshape(shape)
    return _ESTIMATE.validate_python(content | {"chain_loss": losses.astype(np.float64)})


def encode_transition(transition: Transition) -> str:
    """The whole transition as JSON."""
    body = dataclasses.asdict(transition)
    if transition.hindsight is None:
        del body["hindsight"]  # as before there was any
    return to_json(body)


def decode_transition(body: str) -> Transition:
    """The inverse of `encode_transition`; what a body of an earlier version lacks is left out."""
    return _TRANSITION.validate_json(body)
