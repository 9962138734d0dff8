"""Puts the shipped dashboards and alert rules into a Grafana, through its API.

What is there already as it should be is left. What somebody else owns, or a file provisions, is
never touched.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from phasewatch.monitor.errors import GrafanaError
from phasewatch.monitor.grafana_access import HOW_TO_TOKEN, base_url

FOLDER_UID = "phasewatch"
SOURCE_UID = "phasewatch-prometheus"
SOURCE_NAME = "phasewatch"
DEFAULT_PROMETHEUS = "http://localhost:9090"
SHIPPED = Path(__file__).resolve().parents[1] / "deploy" / "grafana"
"""In a checkout as in an installed package, `deploy` lies beside `monitor`."""

Json = dict[str, Any]


class Outcome(StrEnum):
    """What became of one thing in Grafana."""

    CREATED = "created"
    CHANGED = "changed"
    LEFT = "left"
    DELETED = "deleted"
    ABSENT = "not there"


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """One thing in Grafana and what became of it, or would become of it in a dry run.

    Attributes:
        what: "folder", "data source", "dashboard" or "alert rule".
        name: Its title.
        uid: Its identity.
        outcome: What became of it.
        note: Why, where that is not plain.
    """

    what: str
    name: str
    uid: str
    outcome: Outcome
    note: str = ""


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


class Grafana:
    """A Grafana that dashboards are put into.

    Args:
        url: Its address, with the path under which it is served, if any.
        token: Token of a service account.
        dry_run: Only look.
        timeout_seconds: How long one answer may take.

    Raises:
        ConfigError: The address cannot be one.
    """

    def __init__(
        self, url: str, token: str, *, dry_run: bool = False, timeout_seconds: float = 10.0
    ) -> None:
        from grafana_client.api import GrafanaApi

        self.url = base_url(url)
        self._token = token
        self._dry_run = dry_run
        self._api = GrafanaApi.from_url(f"{self.url}/", credential=token, timeout=timeout_seconds)

    def push(
        self,
        *,
        prometheus_url: str | None = None,
        source_uid: str | None = None,
        contact_point: str | None = None,
    ) -> Iterator[Done]:
        """Create or update folder, data source, dashboards and rules, one after another.

        Args:
            prometheus_url: Where Grafana finds Prometheus; None leaves a data source that is there
                as it is, and creates one for http://localhost:9090.
            source_uid: A Prometheus data source to use in place of our own.
            contact_point: Name of the contact point that the rules go to; None leaves that to the
                notification policies.

        Raises:
            GrafanaError: Grafana cannot be reached or refuses.
        """
        self._check()
        yield self._folder()
        if source_uid is None:
            source = yield from self._own_source(prometheus_url)
        else:
            source = self._others_source(source_uid)
            yield Done(
                what="data source", name=source["name"], uid=source_uid, outcome=Outcome.LEFT
            )
        for dashboard in shipped_dashboards().values():
            yield self._dashboard(_with_source(dashboard, source))
        group = shipped_rules()
        for rule in group["rules"]:
            yield self._rule(_for_api(rule, group["name"], source["uid"], contact_point))

    def delete(self) -> Iterator[Done]:
        """Take away what `push` has put there; a folder that holds more is left.

        Raises:
            GrafanaError: Grafana cannot be reached or refuses.
        """
        self._check()
        api = self._api
        rules, source = api.alertingprovisioning, api.datasource
        for rule in shipped_rules()["rules"]:
            found = self._find("alert rule", rules.get_alertrule, rule["uid"])
            is_ours = found is not None and found.get("provenance") != "file"
            yield self._remove(
                "alert rule", rule["title"], rule["uid"], found, is_ours, rules.delete_alertrule
            )
        for dashboard in shipped_dashboards().values():
            uid, title = dashboard["uid"], dashboard["title"]
            found = self._find("dashboard", api.dashboard.get_dashboard, uid)
            is_ours = found is not None and not found["meta"].get("provisioned")
            yield self._remove(
                "dashboard", title, uid, found, is_ours, api.dashboard.delete_dashboard
            )
        found = self._find("data source", source.get_datasource_by_uid, SOURCE_UID)
        is_ours = found is not None and not found.get("readOnly")
        yield self._remove(
            "data source",
            SOURCE_NAME,
            SOURCE_UID,
            found,
            is_ours,
            source.delete_datasource_by_uid,
        )
        yield self._remove_folder()

    # ---- one thing each

    def _folder(self) -> Done:
        """Ours by its uid; a user may have given it another title."""
        found = self._find("folder", self._api.folder.get_folder, FOLDER_UID)
        if found is None:
            self._write(
                "create the folder",
                lambda: self._api.folder.create_folder(SOURCE_NAME, uid=FOLDER_UID),
            )
        title = SOURCE_NAME if found is None else found["title"]
        return Done(
            what="folder",
            name=title,
            uid=FOLDER_UID,
            outcome=Outcome.CREATED if found is None else Outcome.LEFT,
        )

    def _own_source(self, prometheus_url: str | None) -> Generator[Done, None, Json]:
        what, source = "data source", self._api.datasource
        found = self._find(what, source.get_datasource_by_uid, SOURCE_UID)
        wanted: Json = {"name": SOURCE_NAME, "uid": SOURCE_UID, "type": "prometheus"}
        done = {"what": what, "name": SOURCE_NAME, "uid": SOURCE_UID}
        if found is None:
            wanted |= {
                "access": "proxy",
                "url": prometheus_url or DEFAULT_PROMETHEUS,
                "jsonData": {"httpMethod": "POST", "timeInterval": "5s"},
            }
            self._write("create the data source", lambda: source.create_datasource(wanted))
            yield Done(**done, outcome=Outcome.CREATED, note=wanted["url"])
            return wanted
        if prometheus_url is None or found.get("url") == prometheus_url:
            yield Done(**done, outcome=Outcome.LEFT, note=str(found.get("url", "")))
            return found
        if found.get("readOnly"):
            yield Done(**done, outcome=Outcome.LEFT, note="a file of Grafana's provisions it")
            return found
        kept = ("name", "type", "access", "jsonData", "isDefault", "basicAuth", "basicAuthUser")
        changed = {key: found[key] for key in kept if key in found}
        changed |= {"uid": SOURCE_UID, "url": prometheus_url}
        self._write(
            "change the data source", lambda: source.update_datasource_by_uid(SOURCE_UID, changed)
        )
        yield Done(**done, outcome=Outcome.CHANGED, note=prometheus_url)
        return found

    def _others_source(self, uid: str) -> Json:
        found = self._find("data source", self._api.datasource.get_datasource_by_uid, uid)
        if found is None:
            raise GrafanaError(
                f"Grafana has no data source with uid {uid!r}; its page under Connections, "
                "Data sources shows the uid at the end of its address"
            )
        if found["type"] != "prometheus":
            raise GrafanaError(
                f"data source {uid!r} is of type {found['type']!r}; the dashboards ask a Prometheus"
            )
        return found

    def _dashboard(self, wanted: Json) -> Done:
        done = {"what": "dashboard", "name": wanted["title"], "uid": wanted["uid"]}
        found = self._find("dashboard", self._api.dashboard.get_dashboard, wanted["uid"])
        if found is not None and holds(found["dashboard"], wanted):
            return Done(**done, outcome=Outcome.LEFT)
        if found is not None and found["meta"].get("provisioned"):
            return Done(**done, outcome=Outcome.LEFT, note="a file of Grafana's provisions it")
        # A user may have moved it: it stays where it is.
        folder = FOLDER_UID if found is None else found["meta"].get("folderUid", "")
        self._write(
            f"save the dashboard {wanted['title']!r}",
            lambda: self._api.dashboard.update_dashboard(
                {
                    "dashboard": wanted,
                    "folderUid": folder,
                    "overwrite": True,
                    "message": f"phasewatch {_version()}",
                }
            ),
        )
        return Done(**done, outcome=Outcome.CREATED if found is None else Outcome.CHANGED)

    def _rule(self, wanted: Json) -> Done:
        rules = self._api.alertingprovisioning
        done = {"what": "alert rule", "name": wanted["title"], "uid": wanted["uid"]}
        found = self._find("alert rule", rules.get_alertrule, wanted["uid"])
        if found is None:
            # Without provenance a rule stays editable in Grafana.
            self._write(
                f"create the alert rule {wanted['title']!r}",
                lambda: rules.create_alertrule(wanted, disable_provenance=True),
            )
            return Done(**done, outcome=Outcome.CREATED)
        if holds(found, wanted):
            return Done(**done, outcome=Outcome.LEFT)
        if found.get("provenance") == "file":
            return Done(**done, outcome=Outcome.LEFT, note="a file of Grafana's provisions it")
        # What the user has set beside ours, a pause or a contact point, stays.
        changed = {key: value for key, value in found.items() if key not in ("id", "updated")}
        self._write(
            f"change the alert rule {wanted['title']!r}",
            lambda: rules.update_alertrule(
                wanted["uid"], changed | wanted, disable_provenance=True
            ),
        )
        return Done(**done, outcome=Outcome.CHANGED)

    def _remove(
        self,
        what: str,
        name: str,
        uid: str,
        found: Json | None,
        is_ours: bool,
        delete: Callable[[str], Any],
    ) -> Done:
        done = {"what": what, "name": name, "uid": uid}
        if found is None:
            return Done(**done, outcome=Outcome.ABSENT)
        if not is_ours:
            return Done(**done, outcome=Outcome.LEFT, note="a file of Grafana's provisions it")
        self._write(f"delete the {what} {name!r}", lambda: delete(uid))
        return Done(**done, outcome=Outcome.DELETED)

    def _remove_folder(self) -> Done:
        done = {"what": "folder", "name": SOURCE_NAME, "uid": FOLDER_UID}
        if self._find("folder", self._api.folder.get_folder, FOLDER_UID) is None:
            return Done(**done, outcome=Outcome.ABSENT)
        if not self._dry_run:
            counts = self._ask(
                "count what the folder holds",
                lambda: self._api.client.GET(f"/folders/{FOLDER_UID}/counts"),
            )
            held = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
            if held:
                return Done(**done, outcome=Outcome.LEFT, note=f"it still holds {held}")
        self._write("delete the folder", lambda: self._api.folder.delete_folder(FOLDER_UID))
        note = "if it holds nothing else" if self._dry_run else ""
        return Done(**done, outcome=Outcome.DELETED, note=note)

    # ---- asking

    def _check(self) -> None:
        """Is there a Grafana at all? A wrong path often leads to a page for people."""
        health = self._ask("say how it is", lambda: self._api.client.GET("/health"))
        if not isinstance(health, Mapping) or "database" not in health:
            raise GrafanaError(
                f"what answers at {self.url} is not the API of a Grafana; give the address of its "
                "start page, without the path of a page within it"
            )

    def _find(self, what: str, get: Callable[[str], Any], uid: str) -> Json | None:
        """One thing by its uid; None where it does not exist."""
        found = self._ask(f"show the {what} {uid!r}", lambda: get(uid), absent=True)
        return None if found is None else dict(found)

    def _write(self, what: str, call: Callable[[], Any]) -> None:
        if not self._dry_run:
            self._ask(what, call)

    def _ask(self, what: str, call: Callable[[], Any], *, absent: bool = False) -> Any:
        """Call Grafana; every failure says what was asked and what to do."""
        from grafana_client.client import GrafanaException, GrafanaTimeoutError

        try:
            return call()
        except GrafanaTimeoutError:
            reason = "it does not answer in time; is it overloaded, or is a firewall in between?"
        except GrafanaException as error:
            if error.status_code == 404 and absent:
                return None
            reason = _reason(error.status_code, str(error.message), self.url)
        except OSError as error:  # what the HTTP library raises
            reason = f"it cannot be reached ({error}); is it running, and is the address right?"
        except ValueError:
            reason = "its answer is not JSON; is the address that of a Grafana's start page?"
        text = f"Grafana at {self.url} did not {what}: {reason}"
        raise GrafanaError(text.replace(self._token, "***")) from None


def holds(stored: Any, wanted: Any) -> bool:
    """Whether `stored` is `wanted`, but for keys that Grafana has added to it."""
    if isinstance(wanted, Mapping):
        return isinstance(stored, Mapping) and all(
            key in stored and holds(stored[key], value) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return (
            isinstance(stored, list)
            and len(stored) == len(wanted)
            and all(map(holds, stored, wanted))
        )
    return bool(stored == wanted)


def _reason(status: int, message: str, url: str) -> str:
    if status == 401:
        return f"it does not know the token (401): mistyped, expired or revoked; {HOW_TO_TOKEN}"
    if status == 403:
        return (
            f"the token may not do that (403: {message}); give its service account the role Admin, "
            "or Editor and a data source that is there already (--datasource)"
        )
    if status == 404:
        return f"there is no such page (404); is {url} the address of a Grafana's start page?"
    return f"{message} ({status})"


def _with_source(dashboard: Json, source: Json) -> Json:
    """The dashboard with this data source chosen, where Grafana knows several."""
    current = {"selected": True, "text": source["name"], "value": source["uid"]}
    variables = [
        variable | {"current": current} if variable["type"] == "datasource" else variable
        for variable in dashboard["templating"]["list"]
    ]
    return dashboard | {"templating": {"list": variables}}


def _for_api(rule: Json, group: str, source_uid: str, contact_point: str | None) -> Json:
    """A rule of the provisioning file as the API takes it."""
    wanted = {key: value for key, value in rule.items() if key != "notification_settings"}
    if contact_point is not None:
        wanted["notification_settings"] = {"receiver": contact_point}
    wanted["data"] = [
        query | ({"datasourceUid": source_uid} if query["datasourceUid"] == SOURCE_UID else {})
        for query in rule["data"]
    ]
    return wanted | {"folderUID": FOLDER_UID, "ruleGroup": group, "orgID": 1}


def _version() -> str:
    try:
        return version("phasewatch")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"
