"""Puts the shipped dashboards and alert rules into a Grafana, through its API.

What is there already as it should be is left. What somebody else owns, or a file provisions, is
never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from phasewatch.monitor.core.errors import GrafanaError
from phasewatch.monitor.core.version import phasewatch_version
from phasewatch.monitor.grafana.client import Asking, ForbiddenError
from phasewatch.monitor.grafana.shipped import (
    FOLDER_UID,
    SOURCE_UID,
    Json,
    for_api,
    shipped_dashboards,
    shipped_rules,
    with_source,
)

SOURCE_NAME = "phasewatch"
DEFAULT_PROMETHEUS = "http://localhost:9090"


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
        self._ask = Asking(url, token, dry_run=dry_run, timeout_seconds=timeout_seconds)
        self._api = self._ask.api
        self._dry_run = dry_run

    @property
    def url(self) -> str:
        """Its address, without a slash at the end."""
        return self._ask.url

    def push(
        self,
        *,
        prometheus_url: str | None = None,
        source_uid: str | None = None,
        contact_point: str | None = None,
        with_rules: bool = True,
    ) -> Iterator[Done]:
        """Create or update folder, data source, dashboards and rules, one after another.

        Args:
            prometheus_url: Where Grafana finds Prometheus; None leaves a data source that is there
                as it is, and creates one for http://localhost:9090.
            source_uid: A Prometheus data source to use in place of our own.
            contact_point: Name of the contact point that the rules go to; None leaves that to the
                notification policies.
            with_rules: Put the alert rules there too; not, where Prometheus alerts already.

        Raises:
            GrafanaError: Grafana cannot be reached or refuses.
        """
        self._ask.check()
        yield self._folder()
        if source_uid is None:
            source = yield from self._own_source(prometheus_url)
        else:
            source = yield from self._others_source(source_uid)
        for dashboard in shipped_dashboards().values():
            yield self._dashboard(with_source(dashboard, source))
        group = shipped_rules()
        for rule in group["rules"] if with_rules else ():
            yield self._rule(for_api(rule, group["name"], source["uid"], contact_point))

    def delete(self) -> Iterator[Done]:
        """Take away what `push` has put there; a folder that holds more is left.

        Raises:
            GrafanaError: Grafana cannot be reached or refuses.
        """
        self._ask.check()
        api = self._api
        rules, source = api.alertingprovisioning, api.datasource
        for rule in shipped_rules()["rules"]:
            found = self._ask.find("alert rule", rules.get_alertrule, rule["uid"])
            is_ours = found is not None and found.get("provenance") != "file"
            yield self._remove(
                "alert rule", rule["title"], rule["uid"], found, is_ours, rules.delete_alertrule
            )
        for dashboard in shipped_dashboards().values():
            uid, title = dashboard["uid"], dashboard["title"]
            found = self._ask.find("dashboard", api.dashboard.get_dashboard, uid)
            is_ours = found is not None and not found["meta"].get("provisioned")
            yield self._remove(
                "dashboard", title, uid, found, is_ours, api.dashboard.delete_dashboard
            )
        found = self._ask.find("data source", source.get_datasource_by_uid, SOURCE_UID)
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
        found = self._ask.find("folder", self._api.folder.get_folder, FOLDER_UID)
        if found is None:
            self._ask.write(
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
        found = self._ask.find(what, source.get_datasource_by_uid, SOURCE_UID)
        wanted: Json = {"name": SOURCE_NAME, "uid": SOURCE_UID, "type": "prometheus"}
        done = {"what": what, "name": SOURCE_NAME, "uid": SOURCE_UID}
        if found is None:
            wanted |= {
                "access": "proxy",
                "url": prometheus_url or DEFAULT_PROMETHEUS,
                "jsonData": {"httpMethod": "POST", "timeInterval": "5s"},
            }
            self._ask.write("create the data source", lambda: source.create_datasource(wanted))
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
        self._ask.write(
            "change the data source", lambda: source.update_datasource_by_uid(SOURCE_UID, changed)
        )
        yield Done(**done, outcome=Outcome.CHANGED, note=prometheus_url)
        return found

    def _others_source(self, uid: str) -> Generator[Done, None, Json]:
        note = ""
        try:
            found = self._ask.find("data source", self._api.datasource.get_datasource_by_uid, uid)
        except ForbiddenError:
            note = "not looked at: the token may not read data sources"
            found = {"uid": uid, "name": uid, "type": "prometheus"}
        if found is None:
            raise GrafanaError(
                f"Grafana has no data source with uid {uid!r}; its page under Connections, "
                "Data sources shows the uid at the end of its address"
            )
        if found["type"] != "prometheus":
            raise GrafanaError(
                f"data source {uid!r} is of type {found['type']!r}; the dashboards ask a Prometheus"
            )
        yield Done(what="data source", name=found["name"], uid=uid, outcome=Outcome.LEFT, note=note)
        return found

    def _dashboard(self, wanted: Json) -> Done:
        done = {"what": "dashboard", "name": wanted["title"], "uid": wanted["uid"]}
        found = self._ask.find("dashboard", self._api.dashboard.get_dashboard, wanted["uid"])
        if found is not None and holds(found["dashboard"], wanted):
            return Done(**done, outcome=Outcome.LEFT)
        if found is not None and found["meta"].get("provisioned"):
            return Done(**done, outcome=Outcome.LEFT, note="a file of Grafana's provisions it")
        # A user may have moved it: it stays where it is.
        folder = FOLDER_UID if found is None else found["meta"].get("folderUid", "")
        self._ask.write(
            f"save the dashboard {wanted['title']!r}",
            lambda: self._api.dashboard.update_dashboard(
                {
                    "dashboard": wanted,
                    "folderUid": folder,
                    "overwrite": True,
                    "message": f"phasewatch {phasewatch_version()}",
                }
            ),
        )
        return Done(**done, outcome=Outcome.CREATED if found is None else Outcome.CHANGED)

    def _rule(self, wanted: Json) -> Done:
        rules = self._api.alertingprovisioning
        done = {"what": "alert rule", "name": wanted["title"], "uid": wanted["uid"]}
        found = self._ask.find("alert rule", rules.get_alertrule, wanted["uid"])
        if found is None:
            # Without provenance a rule stays editable in Grafana.
            self._ask.write(
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
        self._ask.write(
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
        self._ask.write(f"delete the {what} {name!r}", lambda: delete(uid))
        return Done(**done, outcome=Outcome.DELETED)

    def _remove_folder(self) -> Done:
        done = {"what": "folder", "name": SOURCE_NAME, "uid": FOLDER_UID}
        if self._ask.find("folder", self._api.folder.get_folder, FOLDER_UID) is None:
            return Done(**done, outcome=Outcome.ABSENT)
        if not self._dry_run:
            counts = self._ask(
                "count what the folder holds",
                lambda: self._api.client.GET(f"/folders/{FOLDER_UID}/counts"),
            )
            held = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
            if held:
                return Done(**done, outcome=Outcome.LEFT, note=f"it still holds {held}")
        self._ask.write("delete the folder", lambda: self._api.folder.delete_folder(FOLDER_UID))
        note = "if it holds nothing else" if self._dry_run else ""
        return Done(**done, outcome=Outcome.DELETED, note=note)


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
