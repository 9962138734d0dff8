"""Write docs/schemas.json, the JSON schemas of what commands print with `--json`: `make docs`."""

import json
import re
from pathlib import Path
from typing import Any, Literal, get_type_hints

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from typing_extensions import TypedDict

from phasewatch.monitor.backfill.backfill import Backfilled
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.estimates import Estimate, EstimateStatus
from phasewatch.monitor.core.meaning import StreamMeaning
from phasewatch.monitor.core.transitions import Transition, TransitionKind, TransitionStatus
from phasewatch.monitor.grafana.push import Done
from phasewatch.monitor.observables import Entry
from phasewatch.monitor.operations.doctor_links import Link
from phasewatch.monitor.prometheus.reaper import Target
from phasewatch.monitor.replay.recorded import Pair, Verdict, Watched
from phasewatch.monitor.sampling.selfcheck import Check
from phasewatch.monitor.store.outbox import Delivery
from phasewatch.monitor.store.reader import Hole, RunInfo, StreamInfo

PAGE = Path(__file__).with_name("schemas.json")

VERSION = 1
"""One more whenever a key goes or comes to mean something else; new keys may come within one."""


class Schemas(GenerateJsonSchema):
    """How the command line writes what JSON lacks."""

    def float_schema(self, schema: Any) -> JsonSchemaValue:  # noqa: ARG002, D102
        return {"anyOf": [{"type": "number"}, {"enum": ["nan", "inf", "-inf"]}]}

    def is_instance_schema(self, schema: Any) -> JsonSchemaValue:  # noqa: ARG002, D102
        return {"type": "array"}  # the only ones are arrays of numbers

    def field_is_required(self, *_: Any, **__: Any) -> bool:  # noqa: D102
        return True

    def default_schema(self, schema: Any) -> JsonSchemaValue:  # noqa: D102
        return self.generate_inner(schema["schema"])  # everything is printed, defaults too


def record(name: str, base: Any, *, without: tuple[str, ...] = (), **more: Any) -> Any:
    """The fields of a dataclass, with some more and without some.

    Args:
        name: Name of the schema.
        base: The dataclass.
        without: Fields that are not printed.
        **more: Fields that are added, and their types.
    """
    fields = {k: v for k, v in get_type_hints(base).items() if k in base.__dataclass_fields__}
    left = {key: kind for key, kind in fields.items() if key not in without}
    return TypedDict(name, {**left, **more})  # type: ignore[operator]


class Explained(TypedDict):
    """A transition in words, each under its heading."""

    title: str
    facts: dict[str, str]


class Value(TypedDict):
    """The last value of a stream."""

    step: int
    value: float
    stderr: float | None
    status: EstimateStatus


class UnitValue(Value):
    """The last value of a stream, with its unit."""

    unit: str


class Compared(TypedDict):
    """A run beside others."""

    id: str
    name: str
    state: RunState
    last_step: int | None
    values: dict[str, UnitValue]
    transitions: list[Transition]


class Detected(TypedDict):
    """What was found in a file."""

    file: str
    step: str
    rows_without_step: int
    streams: list[record("CountedStream", Watched, count=int)]  # type: ignore[valid-type]
    transitions: list[Transition]


class Replayed(TypedDict):
    """What was found in a stored run, beside what was said while it ran."""

    run: str
    name: str
    change: str
    streams: list[Watched]
    transitions: list[Transition]
    beside: list[record("Beside", Pair, verdict=Verdict)]  # type: ignore[valid-type]


class TransitionEvent(TypedDict):
    """A line of `follow`: a transition came, or changed."""

    transition: Transition
    explanation: Explained


class ValuesEvent(TypedDict):
    """A line of `follow`: the last values."""

    step: int | None
    values: dict[str, Value]


class EndEvent(TypedDict):
    """The last line of `follow`."""

    state: RunState
    reason: str


class Waiting(TypedDict):
    """A message about a transition."""

    id: int
    run: str
    kind: TransitionKind
    state: TransitionStatus
    step: int
    target: str
    delivery: Delivery
    since: float
    tries: int
    not_before: float | None
    error: str


class Tried(TypedDict):
    """An alert target to which a sample was sent."""

    target: str
    ok: bool
    error: str
    seconds: float


class Examined(TypedDict):
    """The chain from run to alert."""

    ok: bool
    links: list[Link]


class Pushed(TypedDict):
    """What became of everything in a Grafana."""

    url: str
    dry_run: bool
    done: list[Done]


class Checked(TypedDict):
    """How the estimator did where λ is known."""

    device: str
    passed: bool
    rule: str
    checks: list[Check]


Point = record("Point", Estimate, without=("chain_loss",))


class Swept(TypedDict):
    """A sweep of the sampler's settings."""

    recommended: Point | None  # type: ignore[valid-type]
    why: list[str]
    grid: list[Point]  # type: ignore[valid-type]
    automatic: list[Point]  # type: ignore[valid-type]


Shown = record(
    "Shown",
    RunInfo,
    holes=list[Hole],
    streams=list[record("ShownStream", StreamInfo, meaning=StreamMeaning)],  # type: ignore[misc]
    transitions=list[record("Told", Transition, explanation=Explained)],  # type: ignore[misc]
)
FoundTarget = record("FoundTarget", Target, without=("content", "path"), path=str, removed=bool)

COMMANDS: dict[str, Any] = {
    "runs": list[RunInfo],
    "show": Shown,
    "compare": list[Compared],
    "follow": TransitionEvent | ValuesEvent | EndEvent,
    "detect": Detected,
    "replay": Replayed,
    "backfill": Backfilled,
    "observables": list[Entry],
    "outbox": list[Waiting],
    "test-alert": list[Tried],
    "targets": list[FoundTarget],
    "doctor": Examined,
    "grafana push": Pushed,
    "selfcheck": Checked,
    "calibrate": Swept,
}
"""What each command prints; `follow` prints one of these a line."""

Mode = Literal["serialization"]

ATTRIBUTE = re.compile(r"^    (\w+): (.*(?:\n     +.*)*)", re.MULTILINE)


def explained(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema whose keys say what they are, as the docstring has it.

    Args:
        schema: That of a dataclass.
    """
    said, _, listed = schema.get("description", "").partition("\n\nAttributes:\n")
    known = {name: " ".join(text.split()) for name, text in ATTRIBUTE.findall(listed)}
    for name, content in schema.get("properties", {}).items():
        if name in known:
            content["description"] = known[name]
    return {**schema, "description": " ".join(said.split())} if said else schema


def render() -> str:
    """The whole file."""
    inputs: list[tuple[str, Mode, TypeAdapter[Any]]] = [
        (name, "serialization", TypeAdapter(kind)) for name, kind in COMMANDS.items()
    ]
    commands, shared = TypeAdapter.json_schemas(inputs, schema_generator=Schemas)
    content = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"phasewatch-json-{VERSION}",
        "title": "What phasewatch prints with --json",
        "version": VERSION,
        "commands": {name: commands[name, "serialization"] for name in COMMANDS},
        "$defs": {name: explained(schema) for name, schema in shared["$defs"].items()},
    }
    return json.dumps(content, indent=1, ensure_ascii=False, sort_keys=False) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
