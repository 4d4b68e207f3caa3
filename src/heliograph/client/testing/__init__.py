"""For the tests of applications: a server in memory, and real clients of it.

    server = InMemoryServer({"checkout/limits": {"max_items": 20}})

    async with server.client() as client:                      # or: with server.blocking_client() as client:
        shop = Shop(client)
        published = server.publish({"checkout/limits": {"max_items": "many"}})
        [answer] = await published.answered()                   # or: published.wait()
        assert (answer.state, shop.max_items) == ("rejected", 20)

Only the wire is missing. The client is the client; every version is hashed into a trie, chained, signed and proved, and what comes is
verified, bound, applied and answered for by the code that runs in production. One suite of tests is passed by these clients and by those of a
real server. What this server does not have: JSON Schemas (a real one refuses such a version before any client sees it), tokens with
scopes, and regions.
"""

from heliograph.client.testing._hub import Answer
from heliograph.client.testing._server import InMemoryServer, Publication

__all__ = ["Answer", "InMemoryServer", "Publication"]
