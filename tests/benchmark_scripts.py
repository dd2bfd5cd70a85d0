"""The scripts in benchmarks/, for their tests: importable as they are when they are run, and what they wrote."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["FOLDER", "script", "written"]

FOLDER = Path(__file__).parent.parent / "benchmarks"
if str(FOLDER) not in sys.path:
    sys.path.append(str(FOLDER))  # they import one another


def script(name: str) -> ModuleType:
    return importlib.import_module(name)


def written(folder: Path, name: str) -> dict[str, Any]:
    """The JSON of a benchmark, after a look at the page beside it."""
    content: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    page = (folder / f"{name}.md").read_text(encoding="utf-8")
    assert content["benchmark"] == name
    assert page.startswith(f"# {content['title']}\n")
    assert all(f"- {line}\n" in page for line in content["headline"])
    assert str(folder) not in page + json.dumps(content)  # places on this machine are nobody's business
    return content
