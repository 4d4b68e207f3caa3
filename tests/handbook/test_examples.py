"""How blocks of a page are read."""

from __future__ import annotations

from handbook.examples import Step, examples_of, steps

PAGE = """# A page

Words, and `code`.

    heliograph health
    heliograph log shop/dev

<!-- refused: 3 -->

    heliograph set shop/dev/a "" nonsense

1. A step.
   It goes on here.

<!-- -->

```sh
export A=1
heliograph get shop/dev
```

<!-- not run: it needs systemd -->

```sh
systemctl start heliograph@sync
```

```python
# app.py
print(1)
```

```python
fragment(of="code")
```
"""


def test_blocks_are_read_in_order_with_what_is_said_of_them() -> None:
    assert list(steps(PAGE)) == [
        Step("command", "heliograph health"),
        Step("command", "heliograph log shop/dev"),
        Step("command", 'heliograph set shop/dev/a "" nonsense', refused=3),
        Step("script", "export A=1\nheliograph get shop/dev\n"),
        Step("script", "systemctl start heliograph@sync\n", not_run="it needs systemd"),
        Step("file", "# app.py\nprint(1)\n", language="python"),
        Step("other", 'fragment(of="code")\n', language="python"),
    ]
    assert next(each.file for each in steps(PAGE) if each.kind == "file") == "app.py"


def test_a_remark_is_of_the_next_block_alone() -> None:
    found = [step.refused for step in steps(PAGE)]
    assert found == [0, 0, 3, 0, 0, 0, 0]


def test_examples_are_of_the_very_command_and_not_of_a_refusal() -> None:
    assert all(each.command.startswith("heliograph set ") for each in examples_of("set"))
    assert not any(each.command.endswith("/max_items 0") for each in examples_of("set"))
    assert examples_of("token create")
    assert not examples_of("token cre")
    assert len({each.command for each in examples_of("apply")}) == len(examples_of("apply"))
