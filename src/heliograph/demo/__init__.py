"""The demo: the whole story before your eyes, on the same services and the same SDK as anywhere else."""

from __future__ import annotations

from pathlib import Path


def run(*, once: bool, stack: bool, data_dir: Path | None, url: str | None, token_file: Path | None) -> int:
    """Exit status. Ctrl-C is a clean end."""
    import asyncio  # noqa: PLC0415
    from contextlib import suppress  # noqa: PLC0415

    from heliograph.demo.main import Options, main  # noqa: PLC0415

    options = Options(once=once, stack=stack, data_dir=data_dir or Path(".heliograph"), url=url, token_file=token_file)
    with suppress(KeyboardInterrupt):
        return asyncio.run(main(options))
    return 0
