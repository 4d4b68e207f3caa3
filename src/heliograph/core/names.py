"""The one grammar of names.

A segment is ``[a-z0-9][a-z0-9._-]{0,62}``, ASCII. Namespaces, environments and labels are one segment; a config is 1 to 8 segments joined by
``/``, 200 characters at most. A folder's name ends in ``/``. A selector of a view is a config's name, a folder's, or ``""`` for everything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NewType

from heliograph.core.errors import InvalidName

Namespace = NewType("Namespace", str)
Environment = NewType("Environment", str)
ConfigName = NewType("ConfigName", str)
LabelName = NewType("LabelName", str)
Selector = NewType("Selector", str)
View = NewType("View", tuple[str, ...])

MAX_CONFIG_NAME = 200
MAX_SEGMENTS = 8

SEGMENT = r"[a-z0-9][a-z0-9._-]{0,62}"
_SEGMENT = re.compile(SEGMENT)
_CONFIG = re.compile(rf"{SEGMENT}(?:/{SEGMENT}){{0,{MAX_SEGMENTS - 1}}}")
_FOLDER = re.compile(rf"(?:{SEGMENT}/){{1,{MAX_SEGMENTS - 1}}}")
_RULE = "lower-case letters, digits, dot, dash and underscore, beginning with a letter or digit, 63 characters at most"


def namespace(text: str) -> Namespace:
    return Namespace(_one_segment(text, "namespace"))


def environment(text: str) -> Environment:
    return Environment(_one_segment(text, "environment"))


def label(text: str) -> LabelName:
    """Of a version: ``release-7``."""
    return LabelName(_one_segment(text, "label"))


def config(text: str) -> ConfigName:
    if len(text) > MAX_CONFIG_NAME or not _CONFIG.fullmatch(text):
        shape = f"up to {MAX_SEGMENTS} segments joined by /, {MAX_CONFIG_NAME} characters in all"
        raise InvalidName(f"{_shown(text)} is not a config name: {shape}; a segment is {_RULE}")
    return ConfigName(text)


def selector(text: str) -> Selector:
    """A config, a folder (with everything below it), or ``""`` for all."""
    fits = len(text) <= MAX_CONFIG_NAME
    if not text or (fits and (_CONFIG.fullmatch(text) or _FOLDER.fullmatch(text))):
        return Selector(text)
    raise InvalidName(f'{_shown(text)} is not a selector: a config name, a folder name that ends in /, or "" for everything')


def view(selectors: Iterable[str]) -> View:
    """Sorted, without selectors that lie inside another. Raises InvalidName for a bad or missing selector."""
    wanted = sorted({selector(text) for text in selectors})
    if not wanted:
        raise InvalidName('a view needs at least one selector; "" means everything')
    kept: list[str] = []
    for each in wanted:  # a folder stands right before what is in it
        if not kept or not inside(each, kept[-1]):
            kept.append(each)
    return View(tuple(kept))


def inside(name: str, selector_: str) -> bool:
    """Whether a selector covers a name (or another selector)."""
    return name == selector_ or not selector_ or (selector_.endswith("/") and name.startswith(selector_))


def _one_segment(text: str, what: str) -> str:
    if not _SEGMENT.fullmatch(text):
        raise InvalidName(f"{_shown(text)} is not the name of a {what}: {_RULE}")
    return text


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
