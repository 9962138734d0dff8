"""Settings of where numbers go: Prometheus, a Pushgateway, Grafana, sinks of other packages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from phasewatch.monitor.config.base import Settings
from phasewatch.monitor.core.urls import web_address


class ExporterConfig(Settings):
    """The Prometheus endpoint.

    Attributes:
        enabled: Serve metrics at all.
        host: Address to bind; loopback unless told otherwise.
        port: First port to try; the next free one is taken when it is in use.
        num_ports: How many ports to try, one after another, before any free one is taken.
        targets_dir: Folder for a Prometheus file_sd target file; None writes none.
        linger_seconds: How long to go on serving after the run ended, for the last scrape. None
            waits until a Prometheus that has come before has seen the end: at most two of its
            intervals and 75 seconds, and not at all where none has come.
        certfile: Certificate chain (PEM) to serve HTTPS with; None serves HTTP.
        keyfile: Its private key (PEM, not encrypted); None where the certificate's file holds it.
        client_cafile: Certificates (PEM) that sign those of the clients; who has none is refused.
        runbook_url: Page that alerts lead to for what to do; None is the one that each run serves
            beside its metrics, as /runbook.
    """

    enabled: bool = True
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 9877
    num_ports: PositiveInt = 50
    targets_dir: Path | None = None
    linger_seconds: NonNegativeFloat | None = None
    certfile: Path | None = None
    keyfile: Path | None = None
    client_cafile: Path | None = None
    runbook_url: str | None = None

    @field_validator("runbook_url")
    @classmethod
    def _no_secret(cls, url: str | None) -> str | None:
        return url if url is None else web_address(url)

    @model_validator(mode="after")
    def _certificate_first(self) -> ExporterConfig:
        if self.certfile is None and (self.keyfile or self.client_cafile):
            raise ValueError("keyfile and client_cafile need certfile, the server's certificate")
        return self

    @property
    def scheme(self) -> str:
        """How the metrics are served."""
        return "http" if self.certfile is None else "https"


class PushgatewayConfig(Settings):
    """A Pushgateway to push to, where no Prometheus can reach the run.

    Attributes:
        url: Its address, without user and password.
        job: Label `job` of what is pushed.
        interval_seconds: Time between two pushes.
        timeout_seconds: How long the gateway may keep silent.
        linger_seconds: How long the end of the run stays at the gateway before it is deleted: at
            least two scrapes of Prometheus. Training's end waits for it.
        username: User, where the gateway asks for one.
        password_env: Environment variable that holds the password.
        password_file: File that holds the password.
    """

    url: str
    job: Annotated[str, Field(min_length=1, max_length=200)] = "phasewatch"
    interval_seconds: PositiveFloat = 30.0
    timeout_seconds: PositiveFloat = 5.0
    linger_seconds: NonNegativeFloat = 30.0
    username: Annotated[str, Field(min_length=1)] | None = None
    password_env: Annotated[str, Field(min_length=1)] | None = None
    password_file: Path | None = None

    @field_validator("url")
    @classmethod
    def _no_secret(cls, url: str) -> str:
        if "@" in url:  # anywhere: a password may hold a slash
            raise ValueError("give user and password as username and password_env or password_file")
        return web_address(url, like="http://gateway:9091")

    @model_validator(mode="after")
    def _one_password(self) -> PushgatewayConfig:
        given = (self.password_env is not None) + (self.password_file is not None)
        if given != (self.username is not None):
            raise ValueError("give username with one of password_env and password_file, or none")
        return self


class GrafanaConfig(Settings):
    """A Grafana that transitions are written into as annotations.

    The token is read from `token_file` or from PHASEWATCH_GRAFANA_TOKEN: a configuration is kept
    with the run, so it holds no secret.

    Attributes:
        url: Its address, for example "http://localhost:3000".
        token_file: File that holds a service account's token; None reads the environment.
        timeout_seconds: How long one answer may take.
    """

    url: str
    token_file: Path | None = None
    timeout_seconds: PositiveFloat = 5.0

    @field_validator("url")
    @classmethod
    def _no_secret(cls, url: str) -> str:
        return web_address(url)


class SinkConfig(Settings):
    """Settings of an installed sink.

    Attributes:
        parameters: Keyword arguments it is made with.
    """

    parameters: Mapping[str, Any] = Field(default_factory=dict)
