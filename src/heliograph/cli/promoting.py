"""Commands between environments: branch, promote."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from heliograph.cli import choosing, show
from heliograph.cli.exits import Exit
from heliograph.cli.options import MESSAGE, TIMEOUT, WAIT
from heliograph.cli.session import Session
from heliograph.cli.target import Target, one_version
from heliograph.cli.writing import Writing
from heliograph.core.errors import InvalidName, MergeConflict, StaleBase

ATTEMPTS: Final = 5
"""How often a promotion is looked at again because its target has moved."""
SIDES: Final = ("ours", "theirs")
AT = "namespace/environment\\[@version], as in shop/dev@41"

Conflict = dict[str, Any]
Choices = dict[str, dict[str, Any]]


def branch(
    session: Session,
    target: Annotated[str, typer.Argument(help="The new namespace/environment, as in shop/feature.", show_default=False)],
    source: Annotated[str, typer.Option("--from", help=f"Where it begins: {AT}.", show_default=False)],
) -> None:
    """Make an environment that begins with the content of another, at its head or at a version. It costs the same however large that is."""
    at = Target.environment_of(target)
    origin, version = _environment_at(source)
    if origin.namespace != at.namespace:
        raise InvalidName(f"{at} and {origin} are of two namespaces; a branch stays in its own")
    body = {"name": at.environment, "from": _given(environment=origin.environment, version=version)}
    made = session.api.write("POST", f"/v1/namespaces/{at.namespace}/environments", json=body)
    told = made["source"]
    session.tell(
        made,
        lambda: show.done(f"{at} begins with {show.count(made['configs'], 'config')} of {origin}, version {told['number']}"),
    )


def _environment_at(text: str) -> tuple[Target, int | str | None]:
    where, version = Target.at_version(text)
    return Target.environment_of(str(where)), one_version(version) if version else None


def _given(**members: Any) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}


# --- promote ----------------------------------------------------------------------------------------------------------------------


def promote(
    session: Session,
    source: Annotated[str, typer.Argument(help=f"What is promoted: {AT}.", show_default=False)],
    target: Annotated[str, typer.Argument(help="Where to: namespace/environment.", show_default=False)],
    configs: Annotated[
        list[str] | None, typer.Option("--config", "-c", metavar="NAME", help="Only this config, or folder/. Repeatable.")
    ] = None,
    change: Annotated[
        int | None, typer.Option("--change", metavar="N", min=2, help="Only what this version of the source changed.")
    ] = None,
    ours: Annotated[bool, typer.Option("--ours", help="Keep the target's value wherever both changed the same place.")] = False,
    theirs: Annotated[bool, typer.Option("--theirs", help="Take the source's value there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")] = False,
    message: MESSAGE = None,
    wait: WAIT = None,
    timeout: TIMEOUT = "2s",
) -> None:
    """Bring what changed in one environment to another, since they last had something in common; all of it is one version.

    Shows first what would change. Where both changed the same place it asks what to take; without a terminal it lists the conflicts and ends with
    status 5. Only what the source changed is taken over: what is the target's own stays.
    """
    if ours and theirs:
        raise typer.BadParameter("say --ours or --theirs, not both")
    origin, version = _environment_at(source)
    at = Target.environment_of(target)
    if origin.namespace != at.namespace:
        raise InvalidName(f"{origin} and {at} are of two namespaces; a promotion stays in its own")
    asked = {"from": origin.environment, **_given(version=version, configs=configs or None, change=change)}
    writing = Writing(session, message, wait, timeout)
    promotion = _Promotion(writing, at, asked, "ours" if ours else "theirs" if theirs else None)
    if dry_run:
        promotion.say()
    else:
        promotion.do(yes=yes)


class _Promotion:
    """``side``: what is taken for every conflict; None: somebody is asked."""

    def __init__(self, writing: Writing, at: Target, asked: dict[str, Any], side: str | None) -> None:
        self._writing = writing
        self._session = writing.session
        self._at = at
        self._asked = asked
        self._side = side
        self._choices: Choices = {}

    def say(self) -> None:
        """The preview. Ends with CONFLICT when there are conflicts left."""
        found = self._preview()
        if self._side:
            found = self._settled(found)
        self._session.tell(found, lambda: _show(found))
        if found["conflict_count"]:
            raise typer.Exit(Exit.CONFLICT)

    def do(self, *, yes: bool) -> None:
        for attempt in range(ATTEMPTS):
            found = self._settled(self._preview())
            if not self._session.as_json:
                _show(found)
            if found["change_count"] and not yes and choosing.somebody_there():
                typer.confirm(f"promote this to {self._at}?", abort=True, err=True)
            try:
                self._writing.tell(self._send(found))
                return
            except StaleBase:
                if attempt == ATTEMPTS - 1:
                    raise
                show.note(f"{self._at} has moved meanwhile; looking again")

    def _preview(self) -> dict[str, Any]:
        body = self._asked | ({"resolve": self._choices} if self._choices else {})
        answer = self._session.api.call("POST", f"{self._at.path}/promote", params={"preview": "true"}, json=body)
        return dict(answer.json())

    def _settled(self, found: dict[str, Any]) -> dict[str, Any]:
        """The preview with a choice for every conflict. Raises MergeConflict where nobody can be asked, Abort."""
        while found["conflict_count"]:
            conflicts = _conflicts(found)
            if not conflicts or (self._side is None and not self._asking):
                raise _refusal(self._at, conflicts, found["conflict_count"])
            for each in conflicts:
                taken = self._side or choosing.settle(each, SIDES)
                self._choices.setdefault(each["config"], {})[each["pointer"]] = taken
            found = self._preview()
        return found

    @property
    def _asking(self) -> bool:
        return choosing.somebody_there() and not self._session.as_json

    def _send(self, found: dict[str, Any]) -> Any:
        """Exactly what was looked at: of that version of the source, on top of that version of the target."""
        pinned = {} if "change" in self._asked else {"version": found["from"]["number"]}
        body = self._asked | pinned | ({"resolve": self._choices} if self._choices else {})
        try:
            return self._writing.send("POST", f"{self._at.path}/promote", base=found["to"]["version"], json=body)
        finally:
            self._choices = {}  # for another target than this one they may not fit


def _conflicts(found: dict[str, Any]) -> list[Conflict]:
    return [conflict for item in found["items"] for conflict in item["conflicts"]]


def _refusal(at: Target, conflicts: list[Conflict], count: int) -> MergeConflict:
    if not conflicts:
        return MergeConflict(
            f"{count:,} conflicts in configs beyond the first 500 that differ; promote some with --config first"
        )
    return MergeConflict(
        f"{show.count(count, 'place')} {'was' if count == 1 else 'were'} changed in both environments, so nothing was promoted "
        f"to {at}; say --ours or --theirs, or settle them one by one at a terminal",
        more={"conflicts": conflicts, "conflict_count": count},
    )


def _show(found: dict[str, Any]) -> None:
    """To standard output: the difference, as a person reads it."""
    for each in found["items"]:
        show.difference(each)
        for conflict in each["conflicts"]:
            show.conflict(conflict)
    if (more := found["change_count"] - len(found["items"])) > 0:
        show.out.print(f"and {more:,} more")
    if not found["change_count"]:
        show.out.print("nothing to promote")
