"""Puts a run's data, the style and the script into one HTML file that needs no network."""

from __future__ import annotations

import json
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

from intellect_jax.monitor.report.data import report_data

FILE = "report.html"
SCRIPTS = ("tools.js", "charts.js", "staleness.js", "timeline.js", "rollouts.js", "app.js")  # each uses the ones before


def write_report(run_dir: Path) -> Path:
    """Writes ``<run_dir>/report.html``, by rename, and returns its path.

    Raises FileNotFoundError when the folder holds no config.json.
    """
    path = run_dir / FILE
    temporary = path.with_name(f".{FILE}.{os.getpid()}")
    temporary.write_text(page(report_data(run_dir)), encoding="utf-8")
    temporary.replace(path)
    return path


def page(data: dict[str, Any]) -> str:
    """The whole page. ``data`` is JSON without NaN; whatever text it holds, it cannot end its script element."""
    assets = files(__package__) / "page"

    def asset(name: str) -> str:
        return (assets / name).read_text(encoding="utf-8")

    encoded = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    parts = {
        "STYLE": asset("style.css"),
        "DATA": encoded,
        "SCRIPT": "\n".join(asset(name) for name in SCRIPTS),
    }
    html = asset("page.html")
    for name, text in parts.items():
        before, after = html.split(f"<!--{name}-->")
        html = before + text + after
    return html
