"""Settings: our own process options, typed, with units in their names, read from the environment in this one place.

Every service has a small class of its own; what they share is here. A settings object can be made with keywords too, which is how tests and the
all-in-one process do it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from heliograph.core.errors import InvalidRequest


class ServiceSettings(BaseSettings):
    """What every service needs. Environment variables carry the prefix ``HELIOGRAPH_``; an empty one counts as not set."""

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        env_prefix="HELIOGRAPH_", env_ignore_empty=True, extra="ignore", frozen=True
    )

    region: str = Field("local", description="name of the region this process runs in; shown in propagation and fingerprints")
    listen_host: str = Field("127.0.0.1", description="address that HTTP and WebSocket listen on")
    reuse_port: bool = Field(
        False,
        description="whether another process that says so too may listen on the same ports (SO_REUSEPORT), as during a change",
    )
    data_dir: Path = Field(Path(".heliograph"), description="folder for keys, first tokens and, embedded, PostgreSQL's data")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="the least that is logged")
    huge_pages: bool = Field(
        False,
        description="whether this process's memory is gathered in huge pages, where the system's `transparent_hugepage` is not `never`: "
        "less CPU with thousands of clients, for up to an eighth more memory",
    )
    unready_s: float = Field(
        0.0,
        ge=0,
        le=300,
        description="seconds a stopping service goes on as before but is not ready, so that balancers can turn away",
    )
    drain_s: float = Field(10.0, gt=0, description="seconds a stopping service may take then to finish what it has begun")
    # above what a busy client leaves between two requests
    keep_alive_grace_s: float = Field(
        2.0,
        ge=0,
        description="seconds without a request after which a stopping service closes a kept connection; a request before is answered",
    )

    service_token: SecretStr | None = Field(None, description="token for the other services' APIs")
    service_token_file: Path | None = Field(None, description="file that holds it; the file wins when both are set")

    @field_validator("log_level", mode="before")
    @classmethod
    def _in_any_case(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    def service_token_text(self) -> str:
        """Reads the file, if there is one. Raises InvalidRequest when there is no token."""
        if self.service_token_file is not None:
            return _content(self.service_token_file)
        if self.service_token is None:
            raise InvalidRequest("a service token is needed: set HELIOGRAPH_SERVICE_TOKEN_FILE")
        return self.service_token.get_secret_value()


def _content(file: Path) -> str:
    try:
        text = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise InvalidRequest(f"HELIOGRAPH_SERVICE_TOKEN_FILE ({file}) cannot be read: {reason}") from None
    if not text:
        raise InvalidRequest(f"HELIOGRAPH_SERVICE_TOKEN_FILE ({file}) is empty")
    return text


class DatabaseSettings(ServiceSettings):
    """For services with a PostgreSQL connection of their own."""

    database_url: SecretStr = Field(
        SecretStr("postgresql:///heliograph"), description="PostgreSQL 15 or newer, as this service's own role"
    )
    database_pool: int = Field(10, ge=1, le=200, description="connections kept at most")
    # above the slowest statement of a healthy server, below what a caller waits
    database_timeout_s: float = Field(15.0, gt=0, description="seconds one statement may take")


class LogSettings(ServiceSettings):
    """For services that read or write the event log."""

    kafka_bootstrap: str = Field("", description="Kafka's addresses; empty: the log is PostgreSQL's event table")
    kafka_prefix: str = Field("heliograph", description="prefix of the topics' names")
    kafka_options: Annotated[dict[str, str], NoDecode] = Field(
        {}, description="more librdkafka settings as a JSON object: TLS, SASL", repr=False
    )

    @field_validator("kafka_options", mode="before")
    @classmethod
    def _from_json(cls, value: Any) -> Any:
        try:
            return json.loads(value) if isinstance(value, str) else value
        except ValueError:
            raise ValueError("not a JSON object") from None  # its own text would quote a password
