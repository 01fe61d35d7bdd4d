"""README and docs/ as tests read them: fenced blocks with their page, language and text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    page: str  # relative to the repository
    language: str
    text: str


def blocks(language: str) -> list[Block]:
    return [
        Block(str(page.relative_to(ROOT)), match[1], match[2])
        for page in PAGES
        for match in _FENCE.finditer(page.read_text(encoding="utf-8"))
        if match[1] == language
    ]


def commands() -> list[tuple[str, str]]:
    """(page, command) of every line of every bash block, in order, each command once a page."""
    lines = [
        (block.page, line.strip())
        for block in blocks("bash")
        for line in block.text.replace("\\\n", " ").splitlines()
        if line.strip() and not line.startswith("#")
    ]
    return list(dict.fromkeys(lines))
