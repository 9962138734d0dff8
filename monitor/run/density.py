"""Measuring more densely around a suspected transition: when, for how long, how often at most."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from phasewatch.monitor.core.health import Health
from phasewatch.monitor.core.transitions import Transition, TransitionStatus

log = logging.getLogger("phasewatch")

DENSER = 4
"""So many times as often is measured, unless the user says otherwise."""

WINDOW = 0.05
"""Share of the run for which it goes on after a suspicion, and once more after a confirmation."""

SHARE = 0.25
"""Share of the steps so far that may be measured densely, one window left aside. A run in which
something is always suspected would be dense for ever; and the change at the start of a run, which
is the first that most see, must not use up what those after it need."""

REFUSED = "denser measuring"
"""What a window that was not opened is counted as, among what was left out."""


class Density:
    """Opens and closes the windows in which a run is measured more densely.

    A window opens when a transition is suspected, is lengthened when it is confirmed, and closes
    at once when it is withdrawn and nothing else has opened it.

    Args:
        factor: So many times as often; None is `DENSER` for what a budget holds back, and 1 for
            what the user gave a cadence without one.
        health: Where windows, and those that were not opened, are counted.

    Attributes:
        news: What was told and not looked at yet; another thread may tell.
        changes: Steps at which a window opened or closed, with the factor from then on.
    """

    def __init__(self, factor: int | None = None, health: Health | None = None) -> None:
        self._factor = factor
        self._health = health or Health()
        self.news: deque[Transition] = deque()
        self.changes: deque[tuple[int, int]] = deque()
        self._holders: set[str] = set()
        self._asked: set[tuple[str, str]] = set()
        self._opened: int | None = None
        self._until = 0
        self._num_steps = 0
        self._was_refused = False

    @property
    def in_words(self) -> str:
        """What is done around a suspicion; empty where nothing is."""
        if self._factor == 1:
            return ""
        return (
            f"measured {self._factor or DENSER} times as often for {WINDOW:.0%} of the run, and as "
            f"long again if it is confirmed ({SHARE:.0%} of all steps at most)"
        )

    def told(self, transition: Transition) -> None:
        """Hear of a transition that changed; from whatever thread."""
        if self._factor != 1:
            self.news.append(transition)

    def factor(self, step: int, *, held_back: bool) -> int:
        """How many times as often is measured at `step`.

        Args:
            step: Optimizer steps completed.
            held_back: Whether a budget holds the observable back.
        """
        if self._opened is None or step >= self._until:
            return 1
        return self._factor or (DENSER if held_back else 1)

    def is_open(self, step: int) -> bool:
        """Whether there is a window at `step`."""
        return self._opened is not None and step < self._until

    def look(self, step: int, length: float) -> bool:
        """Take what was told; close what is over.

        Args:
            step: Optimizer steps completed.
            length: Length of the run in steps, or what it is taken for.

        Returns:
            Whether a window has opened or become longer.
        """
        if self._opened is not None and step >= self._until:
            self._close(self._until)
        has_grown = False
        while self.news:
            transition = self.news.popleft()
            match transition.status:
                case TransitionStatus.SUSPECTED | TransitionStatus.CONFIRMED:
                    has_grown |= self._ask(transition, step, max(1, math.ceil(WINDOW * length)))
                case TransitionStatus.WITHDRAWN:
                    self._holders.discard(transition.id)
                    if self._opened is not None and not self._holders:
                        self._close(step)
                case _:
                    pass
        return has_grown

    def _ask(self, transition: Transition, step: int, length: int) -> bool:
        key = (transition.id, transition.status.value)
        if key in self._asked:  # told again, as of another kind
            return False
        self._asked.add(key)
        spent = self._num_steps + (0 if self._opened is None else step - self._opened)
        if spent > SHARE * step:
            self._health.skipped[REFUSED] += 1
            if not self._was_refused:
                self._was_refused = True
                log.info(
                    "at step %d something is suspected again, and %d of %d steps were measured "
                    "densely already: it is measured as ever until that is less than %.0f %%; "
                    "counted in phasewatch_skips_total",
                    step,
                    spent,
                    step,
                    100 * SHARE,
                )
            return False
        self._holders.add(transition.id)
        self._until = max(self._until, step + length)
        if self._opened is None:
            self._opened = step
            self._health.dense_windows += 1
            self.changes.append((step, self._factor or DENSER))
            log.info(
                "step %d: a transition is %s; observables are measured %d times as often until "
                "step %d",
                step,
                transition.status,
                self._factor or DENSER,
                self._until,
            )
        return True

    def _close(self, step: int) -> None:
        if self._opened is not None:
            self._num_steps += step - self._opened
            self._opened, self._until = None, step
            self._holders.clear()
            self.changes.append((step, 1))

    def state_dict(self) -> dict[str, Any]:
        """The open window and what was used, as plain containers."""
        return {
            "holders": sorted(self._holders),
            "asked": sorted(list(key) for key in self._asked),
            "opened": self._opened,
            "until": self._until,
            "num_steps": self._num_steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._holders = set(state["holders"])
        self._asked = {(str(one), str(status)) for one, status in state["asked"]}
        self._opened = state["opened"]
        self._until = int(state["until"])
        self._num_steps = int(state["num_steps"])
