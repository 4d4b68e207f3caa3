"""The Python SDK for programs without an event loop: scripts, WSGI applications, workers.

    from heliograph.blocking import Heliograph

    with Heliograph(url, token=token, namespace="shop", environment="production") as client:
        limits = client.config("checkout/limits")

The client itself is that of `heliograph.client`, on a background thread; values, errors and what a client promises are described there.
"""

from heliograph.client._blocking import Bound, Changes, Config, Environment, Heliograph, Reader, Watch

__all__ = ["Bound", "Changes", "Config", "Environment", "Heliograph", "Reader", "Watch"]
