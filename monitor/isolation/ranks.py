"""How processes that measure one model together stay together: nobody waits for one that failed.

All that they tell each other travels in one kind of message: a sum over the processes of a few
numbers, at the head of which each says what it is about and whether it failed. So a process that
failed can say so whatever the others are about, and all learn of it in the same message. A process
that ends says that, too: nothing is sent after it.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from phasewatch.monitor.core.errors import MeasurementError, RefusedError
from phasewatch.monitor.core.seeds import seed_from
from phasewatch.monitor.core.work import Steps, T

FAILED, ENDED, CODE, SQUARE, CLOCK, HEAD = range(6)
"""What stands at the head of a message: counts of those that failed and ended; what it is about, as
a number, and its square: equal in all if N Σ c² = (Σ c)²; their clocks."""

ROOM = 64
"""Numbers in one message, beside its head."""

REASON_BYTES = 480
"""What is told of an error."""

REFUSED, MEASURED, OTHER = 1, 2, 3
"""Kinds of errors; all processes raise one kind."""


class Ranks:
    """Messages among the processes of a group.

    Args:
        group: The process group; None is that of all processes.
        device: Where its tensors must lie.
    """

    def __init__(self, group: dist.ProcessGroup | None, device: torch.device) -> None:
        self._group = group
        self._device = device
        self.size = dist.get_world_size(group)
        self.rank = dist.get_rank(group)
        self._now = time.monotonic()
        self._is_over = False

    # ---- what is asked

    def clock(self) -> float:
        """Mean of the processes' clocks at the last message: the same in all of them."""
        return self._now

    def total(self, values: Tensor) -> Tensor:
        """The sum over the processes, added up in double."""
        flat = values.detach().reshape(-1).double().cpu()
        found = [
            number
            for part in flat.split(ROOM)
            for number in self.exchange("total", part.tolist())[: len(part)]
        ]
        summed = torch.tensor(found, dtype=torch.float64).view(values.shape)
        return summed.to(values)

    def each(self, value: float) -> list[float]:
        """The value of each process, by rank."""
        own = torch.zeros(self.size, dtype=torch.float64)
        own[self.rank] = value
        found: list[float] = self.total(own).tolist()
        return found

    def noise(self, generator: torch.Generator) -> torch.Generator:
        """A generator of this process alone, seeded from the common one and the rank."""
        seed = seed_from(generator.initial_seed(), "noise of rank", self.rank)
        return torch.Generator(device=generator.device).manual_seed(seed)

    # ---- messages

    def exchange(
        self,
        about: str,
        values: Sequence[float] = (),
        error: BaseException | None = None,
        *,
        ends: bool = False,
    ) -> list[float]:
        """Add up some numbers over the processes.

        Args:
            about: What they are about; the same in all processes.
            values: At most `ROOM` numbers.
            error: Why this process has none.
            ends: Whether this is its last message.

        Returns:
            The sums.

        Raises:
            MeasurementError: One of them failed, has ended, or is about something else. All raise
                errors of one class, so that all handle them alike.
        """
        try:
            return self._exchanged(about, values, error, ends)
        except BaseException as told:
            told.known_to = self  # type: ignore[attr-defined]
            raise

    def knows(self, error: BaseException) -> bool:
        """Whether an error came out of a message, so that all processes have it."""
        return getattr(error, "known_to", None) is self

    def _exchanged(
        self, about: str, values: Sequence[float], error: BaseException | None, ends: bool
    ) -> list[float]:
        if self._is_over:
            raise MeasurementError("the processes that measure together have parted before")
        code = zlib.crc32(about.encode()) % 2**20  # small: sums of squares stay exact
        message = torch.zeros(HEAD + ROOM, dtype=torch.float64)
        message[FAILED], message[ENDED] = float(error is not None), float(ends)
        message[CODE], message[SQUARE], message[CLOCK] = code, code**2, time.monotonic()
        message[HEAD : HEAD + len(values)] = torch.tensor(values, dtype=torch.float64)
        sums = self._summed(message).tolist()
        self._now = sums[CLOCK] / self.size
        told = self._reasons(error) if sums[FAILED] else None
        self._is_over = sums[ENDED] > 0
        if told is not None:
            if error is not None and not isinstance(error, Exception):
                raise error  # a Ctrl-C stays one
            raise told from error
        if self.size * sums[SQUARE] != sums[CODE] ** 2 or 0 < sums[ENDED] < self.size:
            raise MeasurementError(
                f"the processes that measure together are about different things (rank {self.rank}:"
                f" {about}); give each the same probe and configuration, and call on all of them"
            )
        return sums[HEAD:]

    def _summed(self, tensor: Tensor) -> Tensor:
        moved = tensor.to(self._device)
        try:
            dist.all_reduce(moved, group=self._group)
        except BaseException:  # who is left, and where, is not known any more
            self._is_over = True
            raise
        return moved.cpu()

    def _reasons(self, error: BaseException | None) -> MeasurementError:
        """The error that all raise: what those that failed say, in a second message."""
        board = torch.zeros((self.size, 1 + REASON_BYTES), dtype=torch.int32)
        if error is not None:
            words = f"{type(error).__name__}: {error}".encode()[:REASON_BYTES]
            kind = REFUSED if isinstance(error, RefusedError) else OTHER
            if isinstance(error, MeasurementError):
                kind, words = min(kind, MEASURED), str(error).encode()[:REASON_BYTES]
            board[self.rank, 0] = kind
            board[self.rank, 1 : 1 + len(words)] = torch.tensor(list(words))
        board = self._summed(board)
        rows = [(rank, row[0], bytes(row[1:])) for rank, row in enumerate(board.tolist()) if row[0]]
        texts = {rank: words.rstrip(b"\0").decode(errors="replace") for rank, _, words in rows}
        first, kind, _ = rows[0]
        same = len(texts) == self.size and len(set(texts.values())) == 1
        text = texts[first] if same else f"rank {first} of {self.size} failed: {texts[first]}"
        return RefusedError(text) if kind == REFUSED else MeasurementError(text)

    # ---- beginning and end

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Tell the others of an exception that leaves this."""
        try:
            yield
        except BaseException as error:
            self._leave(error)
            raise

    def joined(self, steps: Steps[T]) -> Steps[T]:
        """A measurement that all of them make; an exception in one ends it in all."""
        self._is_over = False
        try:
            self.exchange("begin")
            result = yield from steps
        except GeneratorExit:  # all leave it alike, or it was never begun
            raise
        except BaseException as error:
            self._leave(error)
            raise
        self.exchange("end", ends=True)
        return result

    def _leave(self, error: BaseException) -> None:
        """The last message of one that failed; the error stays what it is."""
        if self._is_over:
            return
        try:
            self.exchange("end", error=error, ends=True)
        except MeasurementError as told:
            if str(told) != str(error):
                error.add_note(str(told))
