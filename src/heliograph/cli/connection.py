"""Which server the command speaks to, and as whom: options, else the environment, else what `heliograph dev` left in this folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from heliograph.core.errors import InvalidRequest, Unauthenticated

DEFAULT_URL: Final = "http://127.0.0.1:7070"
DATA_DIR: Final = Path(".heliograph")


@dataclass(frozen=True, slots=True)
class Connection:
    """``root``: the file with the trust root of a server of our own, which needs no anchor from elsewhere."""

    url: str
    token: str = field(repr=False, default="")
    root: Path | None = None


@dataclass(frozen=True, slots=True)
class _Local:
    """What a data folder says of the server that runs on it."""

    url: str
    token_file: Path
    root: Path


def find(*, url: str | None, token: str | None, token_file: Path | None, data_dir: Path) -> Connection:
    """Raises InvalidRequest, Unauthenticated for files that cannot be read.

    A folder's own address and token go together: a token that was given is sent to no address that a folder names, and a folder's token to no
    other address.
    """
    local = _local(data_dir)
    given = token or (_read(token_file) if token_file else "")
    if local is None or (url is not None and url.rstrip("/") != local.url):
        return Connection((url or DEFAULT_URL).rstrip("/"), given)
    if given and url is None:
        raise InvalidRequest(f"a token was given, but no address: add --url {local.url} (or set HELIOGRAPH_URL)")
    return Connection(local.url, given or _read(local.token_file), local.root)


def _local(data_dir: Path) -> _Local | None:
    try:
        told = json.loads((data_dir / "cli.json").read_text())
        found = _Local(str(told["url"]).rstrip("/"), Path(told["token_file"]), data_dir / "keys" / "root.json")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise InvalidRequest(f"{data_dir / 'cli.json'} cannot be read; say --url and --token-file instead") from None
    if not found.token_file.resolve().is_relative_to(data_dir.resolve()):
        raise InvalidRequest(f"{data_dir / 'cli.json'} names a token outside of its folder; say --url and --token-file instead")
    return found


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError as error:
        raise Unauthenticated(f"the token file {file} cannot be read: {error.strerror}") from None
