"""``namespace/environment[/config…]``: how the command names things."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Self

from heliograph.core import names
from heliograph.core.errors import InvalidName
from heliograph.core.which import PREFIX, which

ENVIRONMENT_PARTS: Final = 2


@dataclass(frozen=True, slots=True)
class Target:
    """``config`` may be a folder (ending in ``/``) where a command takes one; empty: the whole environment."""

    namespace: str
    environment: str
    config: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises InvalidName."""
        namespace, environment, *config = text.split("/", ENVIRONMENT_PARTS)[:3] if "/" in text else (text, "")
        if not environment:
            raise InvalidName(f"{text!r}: write namespace/environment or namespace/environment/config, as in shop/production")
        return cls(names.namespace(namespace), names.environment(environment), names.selector("".join(config)))

    @classmethod
    def environment_of(cls, text: str) -> Self:
        """Raises InvalidName for anything but an environment."""
        found = cls.parse(text.removesuffix("/"))
        if found.config:
            raise InvalidName(f"{text!r} names a config; this is about a whole environment, as in {replace(found, config='')}")
        return found

    @classmethod
    def version_of(cls, text: str, version: str | None) -> tuple[Self, str | None]:
        """``shop/production 42`` or ``shop/production/42``; also with an id or a label."""
        head, _, last = text.rpartition("/")
        if version is None and head.count("/") == 1 and (last.isdigit() or last.startswith(("sha256:", PREFIX))):
            text, version = head, last
        return cls.environment_of(text), version

    @classmethod
    def at_version(cls, text: str) -> tuple[Self, str | None]:
        """``shop/dev@41``, ``shop/dev/checkout/limits@sha256:…``; without a version None. Raises InvalidName."""
        name, _, version = text.partition("@")
        return cls.parse(name.removesuffix("/") if name.count("/") < ENVIRONMENT_PARTS else name), version or None

    def with_config(self) -> Self:
        """Raises InvalidName unless it names one config."""
        if not self.config:
            raise InvalidName(f"{self}: the config is missing, as in {self}/checkout/limits")
        names.config(self.config)
        return self

    @property
    def path(self) -> str:
        return f"/v1/namespaces/{self.namespace}/environments/{self.environment}"

    @property
    def config_path(self) -> str:
        return f"{self.path}/configs/{self.config}"

    def of(self, what: str) -> str:
        """A path that ends in this environment: heads, bundles, propagations, instances, drift."""
        return f"/v1/{what}/{self.namespace}/{self.environment}"

    def __str__(self) -> str:
        return "/".join(each for each in (self.namespace, self.environment, self.config) if each)


def one_version(text: str) -> int | str:
    """A number, id, label or time, as the API takes it in JSON. Raises InvalidRequest, InvalidName."""
    return found if isinstance(found := which(text), int) else text
