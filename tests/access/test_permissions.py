from __future__ import annotations

from itertools import product

import pytest

from heliograph.access.permissions import PERMITTED, Action, allow, permits
from heliograph.access.principal import Principal, Scope
from heliograph.core.errors import Forbidden
from heliograph.core.token import KINDS

EXPECTED = {
    "admin": "read head write create delete purge admin connect observe",
    "author": "read head write create delete connect observe",
    "client": "head connect",
    "service": "read head connect observe internal",
    "edge": "head connect relay",
}


def principal(kind: str, *scopes: Scope) -> Principal:
    return Principal(id="tok_1", kind=kind, name="x", scopes=scopes or (Scope(),))  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "action"), list(product(KINDS, Action)))
def test_the_table_says_who_may_do_what(kind: str, action: Action) -> None:
    assert permits(principal(kind), action, "shop", "dev") == (action in EXPECTED[kind].split())


def test_every_kind_has_a_row() -> None:
    assert set(PERMITTED) == set(KINDS)


def test_an_unknown_kind_may_do_nothing() -> None:
    assert not any(permits(principal("robot"), action, "shop", "dev") for action in Action)


def test_no_scope_permits_nothing() -> None:
    nobody = Principal(id="tok_1", kind="admin", name="x", scopes=())
    assert not any(permits(nobody, action, "shop", "dev") for action in Action)


@pytest.mark.parametrize(
    ("scope", "namespace", "environment", "covered"),
    [
        (Scope("shop", "dev"), "shop", "dev", True),
        (Scope("shop", "dev"), "shop", "production", False),
        (Scope("shop", "dev"), "bank", "dev", False),
        (Scope("shop"), "shop", "anything", True),
        (Scope("shop"), "bank", "dev", False),
        (Scope(environment="dev"), "bank", "dev", True),
        (Scope(environment="dev"), "bank", "production", False),
        (Scope(), "bank", "production", True),
        # None asks for all of them
        (Scope("shop", "dev"), "shop", None, False),
        (Scope("shop"), "shop", None, True),
        (Scope("shop"), None, None, False),
        (Scope(), None, None, True),
        # names that look like something else
        (Scope("shop", "dev"), "*", "*", False),
        (Scope("shop", "dev"), "sho", "dev", False),
        (Scope("shop", "dev"), "shop/dev", "dev", False),
    ],
)
def test_scopes_cover_what_they_name(scope: Scope, namespace: str | None, environment: str | None, covered: bool) -> None:
    assert permits(principal("author", scope), Action.WRITE, namespace, environment) == covered


def test_any_of_several_scopes_will_do() -> None:
    who = principal("author", Scope("shop", "dev"), Scope("bank", "production"))
    assert permits(who, Action.WRITE, "shop", "dev")
    assert permits(who, Action.WRITE, "bank", "production")
    assert not permits(who, Action.WRITE, "shop", "production")


def test_refusal_says_what_was_asked_for() -> None:
    with pytest.raises(Forbidden, match="this client token does not permit write on shop/dev"):
        allow(principal("client"), Action.WRITE, "shop", "dev")
    with pytest.raises(Forbidden, match="admin on everything"):
        allow(principal("author"), Action.ADMIN)
