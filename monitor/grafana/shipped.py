"""The dashboards and alert rules that are shipped, as files and as Grafana's API takes them."""

from __future__ import annotations

import json
from typing import Any

import yaml

from phasewatch.monitor.core.shipped import DEPLOY

FOLDER_UID = "phasewatch"
SOURCE_UID = "phasewatch-prometheus"
SHIPPED = DEPLOY / "grafana"

Json = dict[str, Any]


def shipped_dashboards() -> dict[str, Json]:
    """The dashboards, by file name without its ending."""
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((SHIPPED / "dashboards").glob("*.json"))
    }


def shipped_rules() -> Json:
    """The group of alert rules, as Grafana's provisioning reads it."""
    path = SHIPPED / "provisioning" / "alerting" / "rules.yaml"
    (group,) = yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
    return dict(group)


def with_source(dashboard: Json, source: Json) -> Json:
    """The dashboard with this data source chosen, where Grafana knows several."""
    current = {"selected": True, "text": source["name"], "value": source["uid"]}
    variables = [
        variable | {"current": current} if variable["type"] == "datasource" else variable
        for variable in dashboard["templating"]["list"]
    ]
    return dashboard | {"templating": {"list": variables}}


def for_api(rule: Json, group: str, source_uid: str, contact_point: str | None) -> Json:
    """A rule of the provisioning file as the API takes it.

    Args:
        rule: The rule, as the provisioning file has it.
        group: Name of its group.
        source_uid: Uid of the data source that it asks.
        contact_point: Whom it tells; None leaves that to the notification policy.
    """
    wanted = {key: value for key, value in rule.items() if key != "notification_settings"}
    if contact_point is not None:
        wanted["notification_settings"] = {"receiver": contact_point}
    wanted["data"] = [
        query | ({"datasourceUid": source_uid} if query["datasourceUid"] == SOURCE_UID else {})
        for query in rule["data"]
    ]
    return wanted | {"folderUID": FOLDER_UID, "ruleGroup": group, "orgID": 1}
