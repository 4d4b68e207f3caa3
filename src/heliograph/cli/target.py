"""``namespace/environment[/config…]``: how the command names things."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self
from urllib.parse import quote

from heliograph.core import names
from heliograph.core.errors import InvalidName


@dataclass(frozen=True)
class Target:
    """``config`` may be a folder (ending in ``/``) where a command takes one; empty: the whole environment."""

    namespace: str
    environment: str
    config: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises InvalidName."""
        parts = text.split("/", 2)
        if len(parts) < 2:
            raise InvalidName(
                f"{text!r} is not a target; write namespace/environment or namespace/environment/config, as in shop/production"
            )
        config = parts[2] if len(parts) > 2 else ""
        return cls(names.namespace(parts[0]), names.environment(parts[1]), names.selector(config))

    def of_config(self) -> Self:
        """Raises InvalidName unless it names one config."""
        if not self.config:
            raise InvalidName(f"{self}: the config is missing, as in {self}/checkout/limits")
        names.config(self.config)
        return self

    @property
    def path(self) -> str:
        return f"/v1/namespaces/{self.namespace}/environments/{self.environment}"

    def config_path(self, kind: str = "configs") -> str:
        return f"{self.path}/{kind}/{quote(self.config)}"

    def ledger_path(self, what: str) -> str:
        return f"/v1/{what}/{self.namespace}/{self.environment}"

    def __str__(self) -> str:
        return "/".join(each for each in (self.namespace, self.environment, self.config) if each)
