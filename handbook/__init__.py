"""The handbook: reference pages made from the declarations in the code, the shell examples of the prose pages, and the site.

    python -m handbook            writes docs/reference (`make reference`)

Each module makes one page. Nothing here is shipped; nothing in the package knows of it. Pages depend on the code alone, never on the machine, the
time or the order of imports, so that a checked-in page that differs is a stale one.
"""
