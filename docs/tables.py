"""Writes the tables of docs/configs.md from the code: every key, the rules that tie keys together, what may change.

    python docs/tables.py            # rewrites the tables in place
    python docs/tables.py --check    # says whether they are up to date

A table stands between ``<!-- table: name -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from intellect_jax.config import SCHEMA, Key, walk
from intellect_jax.config.rules import RULES
from launch.rundir import MAY_CHANGE

PAGE = Path(__file__).parent / "configs.md"
_TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_PROBES: dict[type, tuple[Any, ...]] = {int: (-1e9, 1e9), float: (-1e9, 1e9), str: ("?",), tuple: ((), ({},))}


def keys() -> str:
    """One section a group: key, default, what is allowed, meaning."""
    parts = []
    for group, node in SCHEMA.items():
        entries = [(group, node)] if isinstance(node, Key) else list(walk(node, f"{group}."))
        rows = [(f"`{name}`", f"`{key.default!r}`", allowed(key), key.doc) for name, key in entries]
        parts.append(f"### {group}\n\n" + table(("key", "default", "allowed", "meaning"), rows))
    return "\n".join(parts)


def allowed(key: Key) -> str:
    """What the key's own check says to a value that is wrong; its type where nothing else is checked."""
    kind = {bool: "true or false", int: "whole number", float: "number", str: "text", tuple: "tuple"}[type(key.default)]
    for probe in _PROBES.get(type(key.default), ()):
        right = key.check(probe) if key.check else None
        if right:
            return f"{kind}, {right}" if kind.endswith("number") else right
    return kind


def rules() -> str:
    rows = [(", ".join(f"`{key}`" for key in rule.keys), rule.right) for rule in RULES]
    return table(("keys", "what must hold"), rows)


def may_change() -> str:
    groups = {name for name, node in SCHEMA.items() if not isinstance(node, Key)}
    return ", ".join(f"`{name}.*`" if name in groups else f"`{name}`" for name in MAY_CHANGE) + "\n"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines: Iterator[tuple[str, ...]] = iter([head, ("---",) * len(head), *rows])
    return "".join("| " + " | ".join(_escaped(cell) for cell in line) + " |\n" for line in lines)


def _escaped(cell: str) -> str:
    return cell if cell.startswith("`") else cell.replace("|", "\\|").replace("<", "\\<")


TABLES: dict[str, Callable[[], str]] = {"keys": keys, "rules": rules, "may_change": may_change}


def rendered(text: str) -> str:
    """``text`` with every table as the code says; raises KeyError for a table of no known name."""
    return _TABLE.sub(lambda m: m[1] + TABLES[m[2]]() + m[3], text)


def main() -> int:
    old = PAGE.read_text(encoding="utf-8")
    new = rendered(old)
    if "--check" in sys.argv[1:]:
        print("up to date" if new == old else f"{PAGE} is out of date: python docs/tables.py")
        return int(new != old)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
