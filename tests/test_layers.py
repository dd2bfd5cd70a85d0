"""The shape of the house: imports run downwards only, L2 folders know nothing of each other, and nothing grows too long."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import sepnet.errors
from sepnet.models import list_models

PACKAGE = Path(sepnet.errors.__file__).parent
ROOT = Path(__file__).parent.parent

LAYERS = {
    "errors": 0,
    "locking": 0,
    "registry": 0,
    "_version": 0,
    "kernels": 1,
    "nn": 1,
    "models": 2,
    "data": 2,
    "engine": 2,
    "measure": 2,
    "export": 2,
    "report": 2,
    "recipes": 3,
    "api": 4,
    "serve": 4,
    "__init__": 4,  # `import sepnet` is the Python API's front door
    "cli": 5,
    "__main__": 5,
}
STRANGERS = 2  # folders of this layer never import one another

MAX_FILE, MAX_NETWORK_FILE, MAX_FUNCTION = 400, 250, 60

SOURCES = sorted(PACKAGE.rglob("*.py"))
WRITTEN = [*SOURCES, *(path for folder in ("tests", "benchmarks", "examples") for path in sorted((ROOT / folder).rglob("*.py")))]


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix() if path.is_relative_to(PACKAGE) else path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def folder_of(path: Path) -> str:
    """The part of sepnet that a file belongs to: its folder, or its own name at the top."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_parts(tree: ast.Module, package: list[str]) -> Iterator[tuple[int, str]]:
    """(line, part of sepnet) for every import of sepnet, wherever it stands; ``package`` resolves relative imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from sepnet import x` names a part only if there is such a part; otherwise it is the front door's.
            targets = [f"{module}.{alias.name}" if module == "sepnet" and alias.name in LAYERS else module for alias in node.names]
        else:
            continue
        for target in targets:
            root, _, rest = target.partition(".")
            if root == "sepnet":
                yield node.lineno, rest.split(".")[0] or "__init__"


def violations(path: Path, tree: ast.Module) -> Iterator[str]:
    own = folder_of(path)
    package = ["sepnet", *path.relative_to(PACKAGE).parts[:-1]]
    for line, other in imported_parts(tree, package):
        if other == own:
            continue
        upwards = LAYERS[other] > LAYERS[own]
        if upwards or LAYERS[other] == LAYERS[own] == STRANGERS:
            yield f"{name_of(path)}:{line} (L{LAYERS[own]} {own}) imports {other} (L{LAYERS[other]})"


def test_every_part_has_a_layer() -> None:
    assert {folder_of(path) for path in SOURCES} <= set(LAYERS), "give the new part its layer, here and in the design"


def test_imports_run_downwards() -> None:
    assert [v for path in SOURCES for v in violations(path, parse(path))] == []


@pytest.mark.parametrize(
    ("file", "source", "found"),
    [
        ("nn/x.py", "import sepnet.models", True),
        ("nn/x.py", "def f():\n    from sepnet import models", True),
        ("nn/x.py", "from ..models import y", True),
        ("nn/x.py", "from .conv import y", False),
        ("nn/x.py", "from sepnet.errors import ConfigError", False),
        ("data/x.py", "from sepnet.engine.config import FitConfig", True),
        ("data/x.py", "from sepnet import create_model", True),
        ("recipes/x.py", "from sepnet import engine, data", False),
        ("cli/x.py", "import sepnet", False),
        ("errors.py", "import sepnet.registry, torch", False),
        ("registry.py", "from . import nn", True),
    ],
)
def test_the_walk_sees_every_form_of_import(file: str, source: str, found: bool) -> None:
    assert bool(list(violations(PACKAGE / file, ast.parse(source)))) is found


@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_files_stay_short(path: Path) -> None:
    is_network = path.parent == PACKAGE / "models" and not path.name.startswith("_")
    assert len(path.read_text(encoding="utf-8").splitlines()) < (MAX_NETWORK_FILE if is_network else MAX_FILE)


@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_functions_stay_short(path: Path) -> None:
    functions = [n for n in ast.walk(parse(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {f"{f.name} (line {f.lineno})": f.end_lineno - f.lineno + 1 for f in functions if f.end_lineno}
    assert {name: n for name, n in lengths.items() if n >= MAX_FUNCTION} == {}


def test_engine_names_no_network() -> None:
    names = set(list_models())
    assert names
    spoken = []
    for path in (PACKAGE / "engine").rglob("*.py"):
        for node in ast.walk(parse(path)):
            word = getattr(node, "id", None) or getattr(node, "attr", None) or getattr(node, "value", None)
            if isinstance(word, str) and any(name in word for name in names):
                spoken.append(f"{name_of(path)}: {word}")
    assert spoken == []
