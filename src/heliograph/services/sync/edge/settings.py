"""Settings of an edge."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, field_validator

from heliograph.core import names, token
from heliograph.core.errors import HeliographError, InvalidRequest, Unauthenticated
from heliograph.services.sync.settings import HubSettings

DAY_S = 86_400.0


class EdgeSettings(HubSettings):
    parent_url: str = Field("", description="the Heliograph that feeds this edge: its API, or another edge's HTTP port")
    edge_token: SecretStr | None = Field(None, description="edge token: it names what may be relayed, and the anchor of trust")
    edge_token_file: Path | None = Field(
        None, description="file of mode 0600 that holds it, read again for each connection; the file wins when both are set"
    )
    edge_hold: str = Field(
        "",
        description="environments that are always followed, namespace/environment separated by commas; others once a client asks",
    )
    edge_idle_s: float = Field(
        DAY_S,
        gt=0,
        description="seconds after which an environment that nobody asks for is followed no longer, and its copy deleted",
    )
    edge_tokens_kept_s: float = Field(
        DAY_S, ge=0, description="seconds for which a token that was checked is accepted while the parent is away"
    )
    # with full jitter: a site's edges that lost the same parent do not come back at once
    edge_reconnect_cap_s: float = Field(30.0, gt=0, description="bound of the pause before the parent is tried again")
    public_stream_url: str = Field(
        "", description="where clients reach this edge's stream, with its path; default: where it listens"
    )
    public_bundles_url: str = Field("", description="where clients reach this edge's HTTP port; default: where it listens")

    @field_validator("parent_url")
    @classmethod
    def _of_http(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("not an address: write https://… (or http://…) and the host")
        return value

    @field_validator("edge_hold")
    @classmethod
    def _of_pairs(cls, value: str) -> str:
        try:
            _pairs(value)
        except HeliographError as error:
            raise ValueError(error.detail) from None
        return value

    @property
    def held(self) -> tuple[tuple[str, str], ...]:
        return _pairs(self.edge_hold)

    @property
    def stream_url(self) -> str:
        return self.public_stream_url or f"ws://{self._listening}:{self.sync_port}/v1/stream"

    @property
    def bundles_url(self) -> str:
        return self.public_bundles_url or f"http://{self._listening}:{self.sync_http_port}"

    @property
    def _listening(self) -> str:
        return f"[{self.listen_host}]" if ":" in self.listen_host else self.listen_host

    def read_token(self) -> token.Token:
        """The edge token; blocks for its file. Raises InvalidRequest for one that is missing, cut off, of another kind, or that others may read."""
        if self.edge_token_file is None and self.edge_token is None:
            raise InvalidRequest("an edge token is needed: set HELIOGRAPH_EDGE_TOKEN_FILE, or use --token-file")
        text = _private(self.edge_token_file) if self.edge_token_file else str(_secret(self.edge_token))
        try:
            found = token.Token(text)
        except Unauthenticated as error:
            raise InvalidRequest(f"the edge token is {error.detail}") from None
        if found.parts.kind != "edge":
            raise InvalidRequest(
                f"this is a {found.parts.kind} token; make one with: heliograph token create edge NAME --scope …"
            )
        return found


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    found = [each.strip().partition("/") for each in text.split(",") if each.strip()]
    return tuple((names.namespace(namespace), names.environment(environment)) for namespace, _, environment in found)


def _secret(value: SecretStr | None) -> Any:
    return value.get_secret_value().strip() if value else ""


def _private(file: Path) -> str:
    try:
        if stat.S_IMODE(file.stat().st_mode) & 0o077:
            raise InvalidRequest(f"others may read the edge token: chmod 600 {file}")
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise InvalidRequest(f"the edge token's file {file} cannot be read: {reason}") from None
