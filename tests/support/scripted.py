"""A detector that says what a test wants."""

from dataclasses import replace

from phasewatch.detectors.types import Alarm, Direction


class Scripted:
    """A detector that alarms at one step and stays active up to another."""

    threshold = 1.0
    statistic = 0.5
    num_skipped = 0

    def __init__(self, alarm_at: int, until: int) -> None:
        self.alarm_at, self.until = alarm_at, until
        self.active = False
        self.seen: list[tuple[int, float]] = []

    def update(self, step, value, stderr=None):
        self.seen.append((step, value))
        self.active = self.alarm_at <= step < self.until
        if step != self.alarm_at:
            return None
        return Alarm(
            detected_step=step,
            onset_step=step - 5,
            direction=Direction.DOWN,
            score=2.0,
            run_length=5,
            value_before=1.0,
            value_after=0.1,
        )

    def reset(self):
        self.active = False

    def state_dict(self):
        return {"active": self.active}

    def load_state_dict(self, state):
        self.active = state["active"]


class Fall(Scripted):
    """Sees a fall from ten times the loss, which stands until the end."""

    def __init__(self, alarm_at: int) -> None:
        super().__init__(alarm_at, until=10**9)

    def update(self, step, value, stderr=None):
        alarm = super().update(step, value, stderr)
        return alarm and replace(alarm, value_before=10.0 * value, value_after=value)
