"""Heliograph: configuration that reaches every client in milliseconds, and a receipt from each that it did."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heliograph.client import Heliograph

__all__ = ["Heliograph", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`Heliograph` is loaded when it is asked for: a server imports this package without the SDK."""
    if name == "Heliograph":
        from heliograph.client import Heliograph  # noqa: PLC0415

        return Heliograph
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
