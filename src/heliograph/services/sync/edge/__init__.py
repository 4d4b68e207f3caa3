"""`heliograph edge`: the hub of a sync node, fed by another Heliograph over one connection instead of the log.

    parent     where it is, what may be believed of it, and what is asked of it over HTTP
    uplink     the one connection, opened again and again; receipts go up by it
    upstream   the environments that are followed: each frame verified, then in force
    tokens     whose a client's token is, also while the parent is away
    copies     what is kept on disk for that time
    api        where clients find this edge, and what it says of itself
    app        the wiring

An edge holds no signing key. What it passes on its clients verify with the anchor in their own tokens; so does it, with the one in its own.
"""
