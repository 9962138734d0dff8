"""How far each parameter group has moved between any two measurements, without keeping weights.

Of each group a sketch of 251 numbers is kept (count sketch, Charikar et al. 2002; as a norm,
Thorup and Zhang 2004): entry i of w is added, with a sign s(i), to bucket h(i),

    S(w)_k = Σ_{i: h(i) = k} s(i) w_i,    E ‖S(v) − S(w)‖² = ‖v − w‖²,

with s and h from a hash of i's chunk and its place there, h going round within a chunk. S is
linear, so the difference of two sketches is the sketch of the difference. The standard error of a
distance is 1/√502 = 4.5 %, whatever the displacement looks like. Nothing random is drawn, and
weights are only read.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

WIDTH = 256
"""Numbers in a sketch: the largest prime number of buckets, then zeros."""

METHOD = 2
"""By which sketches are made: those of another method cannot be compared."""

RECORDS = 48
"""Sketches kept of each group, 48 kB; the older, the fewer."""

CHUNK = 2**16
"""Entries signed at a time: they stay in the processor's cache."""

SMALL = 2**12
"""Tensors of no more entries are taken together."""

ROUNDING = 1e-5
"""Smallest relative displacement told from none: the sums are in float32."""

RELEVANT = 0.05
"""Groups that moved by less than this share of the largest displacement are named last."""

# Odd multipliers of 32-bit hashing (Knuth's golden ratio; Murmur3's finaliser), as signed numbers.
_GOLDEN, _MIX = -1640531535, -2048144777


def sketch(tensors: Sequence[torch.Tensor], width: int = WIDTH) -> torch.Tensor:
    """Sketch of all entries of some real tensors together, shape (width,), float32.

    Takes about 1.5 ms for 10⁶ entries on one CPU core, and 1 MB while it does.

    Args:
        tensors: What is sketched.
        width: Its numbers, a power of two; a distance has the standard error 1/√(2 · width).
    """
    device = tensors[0].device
    sums: dict[int, list[torch.Tensor]] = {}
    with torch.no_grad():
        for tensor in _joined(tensors):
            num = next(n for n in _primes(width) if all(size % n for size in tensor.shape))
            signs = _signs(num, device)
            for entries in tensor.reshape(-1).split(signs.numel()):
                chunk = entries.to(device, torch.float32)
                rows = -(-len(chunk) // num)
                if rows * num > len(chunk):
                    chunk = torch.nn.functional.pad(chunk, (0, rows * num - len(chunk)))
                signed = chunk.view(rows, num) * signs[:rows]
                sums.setdefault(num, []).append(signed.sum(dim=0))
        return sum(
            (_turned(torch.stack(parts), width) for parts in sums.values()),
            torch.zeros(width, device=device),
        )


def _turned(chunks: torch.Tensor, width: int) -> torch.Tensor:
    """Sum of the chunks, each turned and signed anew: within, all have the same signs."""
    places, flips = _turns(*chunks.shape, chunks.device)
    total = (chunks.gather(1, places) * flips).sum(dim=0)
    return torch.nn.functional.pad(total, (0, width - len(total)))


@lru_cache(maxsize=4)
def _turns(num_chunks: int, num: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the numbers of turned chunks come from, and the signs of the chunks."""
    random = _hash(num_chunks, 1, 2 * num, device)
    places = (torch.arange(num, device=device) + (random >> 1)[:, None]) % num
    return places, (1 - 2 * (random & 1))[:, None]


def _joined(tensors: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Small tensors of one kind together: each chunk takes some operations."""
    small: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
    for tensor in tensors:
        if tensor.numel() > SMALL:
            yield tensor.detach()
        elif tensor.numel():
            small.setdefault((tensor.device, tensor.dtype), []).append(tensor.detach())
    for some in small.values():
        yield torch.cat([tensor.reshape(-1) for tensor in some])


@lru_cache
def _primes(width: int) -> tuple[int, ...]:
    """Prime numbers up to a width, the largest first: numbers of buckets.

    One that divides no side of a matrix keeps what is regular in it, such as one of its columns,
    out of one bucket.
    """
    every = range(width, 1, -1)
    return tuple(n for n in every if all(n % k for k in range(2, math.isqrt(n) + 1)))


@lru_cache(maxsize=16)
def _signs(num: int, device: torch.device) -> torch.Tensor:
    """The signs of a chunk, shape (rows, num)."""
    rows = max(CHUNK // num, 1)
    signs = 1 - 2 * (_hash(rows * num, 0, 2, device) & 1)
    return signs.to(torch.float32).view(rows, num)


def _hash(num: int, chunk: int, limit: int, device: torch.device) -> torch.Tensor:
    """Numbers from 0 to `limit` − 1; 32-bit arithmetic that wraps."""
    index = torch.arange(num, dtype=torch.int32, device=device)
    index += (chunk * 0x5851F42D) & 0x7FFFFFF
    for factor, shift in ((_GOLDEN, 15), (_MIX, 13)):
        index *= factor
        index ^= (index >> shift) & ((1 << (32 - shift)) - 1)
    return ((index >> 8) & 0xFFFFFF).to(torch.int64) % limit


Records = tuple[tuple[str, ...], list[int], list[NDArray[np.float32]]]


class Displacements:
    """Sketches of every parameter group at the latest measurements."""

    def __init__(self) -> None:
        # Groups, steps and sketches of shape (groups, 256). Replaced as a whole: another thread
        # may ask where something moved while this one records.
        self._records: Records = ((), [], [])

    def record(self, step: int, groups: Mapping[str, Sequence[torch.Tensor]]) -> None:
        """Remember where the groups are at a step; weights that are not finite are left out."""
        rows = torch.stack([sketch(tensors).cpu() for tensors in groups.values()]).numpy()
        known, steps, sketches = self._records
        if not np.isfinite(rows).all() or (steps and step <= steps[-1]):
            return
        if known != tuple(groups):
            steps, sketches = [], []
        steps, sketches = [*steps, step], [*sketches, rows]
        if len(steps) > RECORDS:
            # The gap that is left is smallest against its age: any look back is about as exact.
            at = np.array(steps)
            gap = (at[2:] - at[:-2]) / (at[-1] - at[1:-1])
            spare = 1 + int(np.argmin(gap))
            del steps[spare], sketches[spare]
        self._records = (tuple(groups), steps, sketches)

    def locate(self, onset: int, end: int) -> tuple[tuple[str, float], ...]:
        """Parameter groups by how many times as far they moved from `onset` to `end` as before.

        The relative displacement ‖w(end) − w(onset)‖ / ‖w(onset)‖ of a group over the same for an
        equal stretch before the onset; where less than that was seen, as if it had moved on evenly.

        Returns:
            Groups and ratios, largest first; empty if nothing was recorded before the onset, in
            between, or before that.
        """
        groups, known, sketches = self._records
        steps = np.array(known)
        first = int(np.searchsorted(steps, onset, side="right")) - 1
        last = int(np.searchsorted(steps, end, side="right")) - 1
        if first < 1 or last <= first:
            return ()
        stretch = steps[last] - steps[first]
        before = int(np.argmin(np.abs(steps[:first] - (steps[first] - stretch))))
        evenly = stretch / (steps[first] - steps[before])
        moved = _displacement(sketches[first], sketches[last])
        usual = np.maximum(_displacement(sketches[before], sketches[first]) * evenly, ROUNDING)
        small = moved < RELEVANT * moved.max()
        order = np.lexsort((-moved / usual, small))
        return tuple((groups[i], float(moved[i] / usual[i])) for i in order)

    def state_dict(self) -> dict[str, Any]:
        """The records, as plain containers."""
        groups, steps, sketches = self._records
        raw = np.array(sketches, dtype="<f4").tobytes()
        return {
            "method": METHOD,
            "groups": list(groups),
            "steps": list(steps),
            "sketches": base64.b64encode(raw).decode("ascii"),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; what another version sketched is left out."""
        if state.get("method") != METHOD:
            return
        groups = tuple(state["groups"])
        steps = [int(step) for step in state["steps"]]
        raw = np.frombuffer(base64.b64decode(state["sketches"]), dtype="<f4")
        shape = (len(steps), len(groups), WIDTH)
        self._records = (groups, steps, list(raw.reshape(shape).astype(np.float32)))


def _displacement(old: NDArray[np.float32], new: NDArray[np.float32]) -> NDArray[np.float64]:
    """Relative displacement of each group between two records."""
    start, end = old.astype(np.float64), new.astype(np.float64)
    size = np.linalg.norm(start, axis=1)
    size = np.where(size > 0.0, size, np.maximum(np.linalg.norm(end, axis=1), ROUNDING))
    moved: NDArray[np.float64] = np.linalg.norm(end - start, axis=1) / size
    return moved
