"""What becomes of our alerts: relabelling, routes and silences, evaluated for their labels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Labels = dict[str, str]

_MATCHER = re.compile(r"^\s*(\w+)\s*(=~|!~|!=|=)\s*(.*?)\s*$", re.DOTALL)


def relabelled(labels: Labels, rules: Iterable[Mapping[str, Any]]) -> Labels | None:
    """Labels after Prometheus' relabelling; None where a rule drops them.

    Args:
        labels: As they are.
        rules: `relabel_configs`, `alert_relabel_configs`.
    """
    labels = dict(labels)
    for rule in rules:
        action = str(rule.get("action", "replace")).lower()
        joined = str(rule.get("separator", ";")).join(
            labels.get(name, "") for name in rule.get("source_labels") or ()
        )
        pattern = re.compile(f"^(?:{rule.get('regex', '(.*)')})$", re.DOTALL)
        found = pattern.match(joined)
        if (action == "drop" and found) or (action == "keep" and not found):
            return None
        if action == "replace" and found:
            target = str(rule.get("target_label", ""))
            value = found.expand(_python(str(rule.get("replacement", "$1"))))
            labels.pop(target, None)
            if value:
                labels[target] = value
        elif action in ("labeldrop", "labelkeep"):
            wanted = action == "labelkeep"
            labels = {k: v for k, v in labels.items() if bool(pattern.match(k)) is wanted}
        elif action == "labelmap":
            for name, value in [*labels.items()]:
                if (renamed := pattern.match(name)) is not None:
                    labels[renamed.expand(_python(str(rule.get("replacement", "$1"))))] = value
    return labels


def _python(replacement: str) -> str:
    """A replacement of Prometheus as one of Python."""
    return re.sub(r"\$\{?(\w+)\}?", r"\\g<\1>", replacement.replace("\\", r"\\"))


def matches(labels: Labels, node: Mapping[str, Any]) -> bool:
    """Whether an alert belongs into a route."""
    for name, value in (node.get("match") or {}).items():
        if labels.get(name, "") != str(value):
            return False
    for name, value in (node.get("match_re") or {}).items():
        if not re.fullmatch(str(value), labels.get(name, ""), re.DOTALL):
            return False
    return all(_holds(labels, str(text)) for text in _each_matcher(node.get("matchers") or ()))


def _each_matcher(matchers: Any) -> Iterator[str]:
    for text in [matchers] if isinstance(matchers, str) else matchers:
        inner = str(text).strip()
        if inner.startswith("{") and inner.endswith("}"):
            yield from re.findall(r'\w+\s*(?:=~|!~|!=|=)\s*"(?:[^"\\]|\\.)*"', inner)
        else:
            yield inner


def _holds(labels: Labels, text: str) -> bool:
    found = _MATCHER.match(text)
    if found is None:
        return True
    name, operator, value = found.groups()
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = value[1:-1].replace('\\"', '"')
    return _compare(labels.get(name, ""), operator, value)


def _compare(actual: str, operator: str, value: str) -> bool:
    if operator in ("=", "!="):
        return (actual == value) is (operator == "=")
    return bool(re.fullmatch(value, actual, re.DOTALL)) is (operator == "=~")


def receivers(labels: Labels, route: Mapping[str, Any], inherited: str = "") -> list[str]:
    """Names of the receivers that an alert goes to.

    Args:
        labels: The alert's.
        route: The root of the tree.
        inherited: Receiver of the node above.
    """
    own = str(route.get("receiver") or inherited)
    found: list[str] = []
    for child in route.get("routes") or ():
        if matches(labels, child):
            found += receivers(labels, child, own)
            if not child.get("continue"):
                return found
    return found or [own]


def is_silenced(labels: Labels, silence: Mapping[str, Any]) -> bool:
    """Whether an active silence mutes an alert."""
    if silence.get("status", {}).get("state") != "active":
        return False
    for matcher in silence["matchers"]:
        is_equal = matcher.get("isEqual", True)
        operator = ("=~" if is_equal else "!~") if matcher["isRegex"] else "=" if is_equal else "!="
        if not _compare(labels.get(matcher["name"], ""), operator, str(matcher["value"])):
            return False
    return True


def integrations(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """What each receiver of an Alertmanager has to tell people by."""
    return {
        str(receiver["name"]): [
            key.removesuffix("_configs")
            for key, value in receiver.items()
            if key != "name" and value
        ]
        for receiver in config.get("receivers") or ()
    }


def alerts_of(rules: Iterable[Mapping[str, Any]], runs: Sequence[Labels]) -> list[Labels]:
    """Labels of every alert that may fire for some runs.

    Args:
        rules: The alerting rules, each with `name` and `labels`.
        runs: Labels of the runs; one without any if none is found.
    """
    runs = runs or [{"run": "any", "run_id": "any"}]
    return [
        {**run, **{k: str(v) for k, v in (rule.get("labels") or {}).items()}, **_named(rule)}
        for rule in rules
        for run in runs
    ]


def _named(rule: Mapping[str, Any]) -> Labels:
    return {"alertname": str(rule["name"])}
