"""What the pages say in tables and headings is what the code says."""

import ast
import importlib.util
import json
import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT

SOURCES = [*sorted((ROOT / "intellect_jax").rglob("*.py")), *sorted((ROOT / "launch").rglob("*.py"))]
_NAME = re.compile(r"[a-z]+/[a-z_]+")
VARIABLE = ("env/", "eval/", "deaths/", "rollouts/dropped_", "staleness/hist_")  # what follows is not in the code


def test_config_tables_are_up_to_date():
    spec = importlib.util.spec_from_file_location("docs_tables", ROOT / "docs" / "tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    text = tables.PAGE.read_text()
    assert text.count("<!-- table:") == len(tables.TABLES)
    assert tables.rendered(text) == text, "run: python docs/tables.py"


def documented_metrics() -> set[str]:
    return set(re.findall(r"^\| `([a-z]+/[a-z_<>]+)` \|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE))


def is_documented(name: str, known: set[str]) -> bool:
    return name in known or any(name.startswith(p) and any(k.startswith(p + "<") for k in known) for p in VARIABLE)


def test_every_metric_of_a_recorded_run_is_explained():
    rows = [json.loads(line) for line in (Path(__file__).parent / "metrics_sample.jsonl").read_text().splitlines()]
    names = {name for row in rows for name in row if "/" in name}
    assert len(names) > 50
    assert not [name for name in sorted(names) if not is_documented(name, documented_metrics())]


def metrics_in_code() -> set[str]:
    """Keys of dict displays that look like metrics, in everything that logs them."""
    keys = [
        key
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Dict)
        for key in node.keys
    ]
    constants = (key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str))
    return {name for name in constants if _NAME.fullmatch(name)}


def test_the_table_has_the_metrics_of_the_code_and_no_others():
    known, logged = documented_metrics(), metrics_in_code()
    assert not [name for name in sorted(logged) if not is_documented(name, known)]
    of_fixed_name = {name for name in known if "<" not in name and not name.startswith("rollouts/dropped_")}
    assert of_fixed_name == logged


def texts_in_code() -> str:
    constants = [
        node.value
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    return "\n".join(constants)


def messages() -> list[str]:
    return re.findall(r"^### `(.+)`$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("message", messages())
def test_messages_of_troubleshooting_are_those_of_the_code(message):
    """Between the gaps, and what a value or another constant fills in, stands text of the code."""
    filled_in = r"…|: must be |monitor\.tensorboard=True|sft\.steps=0|metrics\.jsonl"
    parts = [part.strip(": ") for part in re.split(filled_in, message)]
    missing = [part for part in parts if part not in CODE]
    assert not missing, f"no such text in the code: {missing}"


CODE = texts_in_code()


def test_links_between_pages_lead_somewhere():
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]*)(#[^)]*)?\)", page.read_text()):
            path, anchor = target
            if path.startswith("http") or path.endswith(".png"):
                continue
            other = (page.parent / path).resolve() if path else page
            if not other.exists() or (anchor and anchor[1:] not in anchors(other)):
                broken.append(f"{page.name}: {path}{anchor}")
    assert not broken


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
