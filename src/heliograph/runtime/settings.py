"""Settings: our own process options, typed, with units in their names, read from the environment in this one place.

Every service has a small class of its own; what they share is here. A settings object can be made with keywords too, which is how tests and the
all-in-one process do it.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from heliograph.core.errors import InvalidRequest


class ServiceSettings(BaseSettings):
    """What every service needs. Environment variables carry the prefix ``HELIOGRAPH_``."""

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(env_prefix="HELIOGRAPH_", extra="ignore", frozen=True)

    region: str = Field("local", description="name of the region this process runs in; shown in propagation and fingerprints")
    listen_host: str = Field("127.0.0.1", description="address that HTTP and WebSocket listen on")
    data_dir: Path = Field(Path(".heliograph"), description="folder for keys, first tokens and, embedded, PostgreSQL's data")
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")
    drain_s: float = Field(10.0, gt=0, description="seconds a stopping service may take to finish what it has begun")

    service_token: SecretStr | None = Field(None, description="token for the other services' APIs")
    service_token_file: Path | None = Field(None, description="file that holds it; the file wins when both are set")

    def service_token_text(self) -> str:
        """Raises InvalidRequest when there is none."""
        if self.service_token_file is not None:
            try:
                return self.service_token_file.read_text().strip()
            except OSError as error:
                raise InvalidRequest(f"HELIOGRAPH_SERVICE_TOKEN_FILE cannot be read: {error.strerror}") from None
        if self.service_token is None:
            raise InvalidRequest("a service token is needed: set HELIOGRAPH_SERVICE_TOKEN_FILE")
        return self.service_token.get_secret_value()


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
    kafka_options: dict[str, str] = Field({}, description="more librdkafka settings as JSON: TLS, SASL")
