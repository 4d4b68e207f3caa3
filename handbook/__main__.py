"""Writes every reference page, and the table of alerts. What is not made any more is deleted."""

from __future__ import annotations

from handbook import alerts
from handbook.reference import FOLDER, pages


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    made = pages()
    for name, text in made.items():
        (FOLDER / name).write_text(text)
    for old in FOLDER.glob("*.md"):
        if old.name not in made:
            old.unlink()
    alerts.PAGE.write_text(alerts.page())


if __name__ == "__main__":
    main()
