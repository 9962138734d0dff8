"""Reading what is shipped for Grafana: panels, queries, variables."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from phasewatch.monitor.grafana.shipped import SHIPPED, shipped_dashboards, shipped_rules

Json = dict[str, Any]
BUILT_IN = {"__range": "10m", "__rate_interval": "4s", "__interval": "1s"}


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression and where it stands."""

    where: str
    expr: str
    is_instant: bool


def boards() -> dict[str, Json]:
    found = shipped_dashboards()
    assert set(found) == {"overview", "run", "compare"}
    return found


def panels(board: Json) -> list[Json]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def queries_of(name: str, board: Json) -> Iterator[Query]:
    """Of panels and annotations."""
    for panel in panels(board):
        for target in panel["targets"]:
            where = f"{name}/{panel['title']}/{target['refId']}"
            yield Query(where, target["expr"], bool(target.get("instant")))
    for annotation in board["annotations"]["list"]:
        if "expr" in annotation:
            yield Query(f"{name}/{annotation['name']}", annotation["expr"], is_instant=False)


def alert_queries() -> Iterator[Query]:
    for rule in shipped_rules()["rules"]:
        yield Query(f"alert/{rule['title']}", rule["data"][0]["model"]["expr"], is_instant=True)


def all_queries() -> list[Query]:
    found = [query for name, board in boards().items() for query in queries_of(name, board)]
    return [*found, *alert_queries()]


def variables(board: Json) -> list[Json]:
    """Those that ask Prometheus, in the order of their dependence."""
    return [item for item in board["templating"]["list"] if item["type"] == "query"]


def fill_in(expr: str, values: Mapping[str, str]) -> str:
    """Replace variables, `$name` and `${name}`; one without a value is an error."""
    known = {**BUILT_IN, **values}
    return re.sub(r"\$\{?(\w+)\}?", lambda match: known[match[1]], expr)


def provisioned_files() -> list[str]:
    return [path.read_text(encoding="utf-8") for path in (SHIPPED / "provisioning").rglob("*.yaml")]
