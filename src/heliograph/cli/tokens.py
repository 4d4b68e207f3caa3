"""Commands about tokens: create, list, revoke."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from heliograph.cli import show
from heliograph.cli.options import seconds
from heliograph.cli.session import Session
from heliograph.core.errors import InvalidRequest


def create(
    session: Session,
    kind: Annotated[str, typer.Argument(help="admin, author, client, service or edge")],
    name: Annotated[str, typer.Argument(help="What or whom it is for.")],
    scope: Annotated[list[str], typer.Option("--scope", "-s", help="namespace/environment, with * for all; may be repeated.")],
    expires: Annotated[
        str | None, typer.Option("--expires", metavar="TIME", help="After 30d, 12h …; never, if not given.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write it to this new file (mode 0600) instead of showing it.")
    ] = None,
) -> None:
    """Make a token. Its text is shown once and stored nowhere."""
    body: dict[str, Any] = {"kind": kind, "name": name, "scopes": [_scope(each) for each in scope]}
    if expires:
        body["expires_in_s"] = seconds(expires)
    if output and output.exists():
        raise InvalidRequest(f"{output} exists already; nothing was made")
    made = session.api.call("POST", "/v1/tokens", json=body).json()
    if output:
        _write_private(output, made.pop("token"))
        session.tell(made, lambda: show.done(f"{made['id']} written to {output}"))
    else:
        session.tell(made, lambda: _show_once(made))


def _scope(text: str) -> dict[str, str]:
    namespace, _, environment = text.partition("/")
    return {"namespace": namespace, "environment": environment or "*"}


def _write_private(path: Path, text: str) -> None:
    """Raises InvalidRequest, also when the file is there already."""
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text + "\n")
    except OSError as error:
        raise InvalidRequest(
            f"the token was made, but {path} cannot be written ({error.strerror}): revoke it and try again"
        ) from None


def _show_once(made: dict[str, Any]) -> None:
    """The text alone on standard output, so that it can be piped."""
    show.note(f"{made['id']}; this is the only time it is shown:")
    sys.stdout.write(made["token"] + "\n")


def list_(session: Session) -> None:
    """Show the tokens within your scopes; never their texts."""
    found = list(session.api.pages("/v1/tokens"))
    session.tell(
        found, lambda: show.table(("id", "kind", "name", "scopes", "last used", "until"), map(_row, found), empty="no tokens")
    )


def _row(told: dict[str, Any]) -> tuple[str, ...]:
    scopes = ", ".join(f"{each['namespace']}/{each['environment']}" for each in told["scopes"])
    until = "revoked" if told["revoked_at"] else show.clock(told["expires_at"] or "") or "valid"
    used = show.clock(told["last_used_at"] or "")[:13]
    return told["id"], told["kind"], told["name"], scopes, f"{used} h" if used else "never", until


def revoke(session: Session, identity: Annotated[str, typer.Argument(metavar="ID", help="Its id, tok_…")]) -> None:
    """Revoke a token for good: connections that use it are closed within a second."""
    told = session.api.call("DELETE", f"/v1/tokens/{identity}").json()
    session.tell(told, lambda: show.done(f"{identity} is revoked"))
