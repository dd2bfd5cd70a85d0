"""sepnet.registry: filled on the first look-up, from one folder, and honest about what goes wrong there."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sepnet.errors import DuplicateNameError, UnknownNameError
from sepnet.registry import Registry

Plant = Callable[..., Registry[int]]

HEAD = "from {package}._table import table\n"


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plant:
    """Writes a package with a registry and the given modules (each sees ``table``), and returns the registry."""

    def build(**modules: str) -> Registry[int]:
        package = f"planted_{tmp_path.name}"  # pytest makes it a word, and unique
        folder = tmp_path / package
        folder.mkdir()
        (folder / "__init__.py").touch()
        (folder / "_table.py").write_text(f"from sepnet.registry import Registry\ntable = Registry('fruit', '{package}')\n")
        for name, source in modules.items():
            (folder / f"{name}.py").write_text(HEAD.format(package=package) + source)
        monkeypatch.syspath_prepend(str(tmp_path))
        return __import__(f"{package}._table", fromlist=["table"]).table

    return build


def test_modules_are_imported_on_the_first_look_up_only(plant: Plant) -> None:
    table = plant(a="table.register('apple')(1)", _private="raise RuntimeError('a private module was imported')")
    assert f"{table.package}.a" not in sys.modules
    assert table.get("apple") == 1
    assert f"{table.package}.a" in sys.modules
    assert f"{table.package}._private" not in sys.modules


def test_every_way_of_looking_fills_the_table(plant: Plant) -> None:
    table = plant(b="table.register('banana')(2)", a="table.register('apple')(1)")
    assert "apple" in table
    assert "cherry" not in table
    assert len(table) == 2
    assert list(table) == table.names() == ["apple", "banana"]


def test_register_returns_its_target() -> None:
    table: Registry[Callable[[], int]] = Registry("fruit", "sepnet")

    @table.register("apple")
    def apple() -> int:
        return 7

    assert apple() == 7


def test_duplicate_name_raises_and_keeps_the_first(plant: Plant) -> None:
    table = plant(a="table.register('apple')(1)", b="table.register('apple')(2)")
    for _ in range(2):  # and again: a failed look-up leaves no half-filled table behind
        with pytest.raises(DuplicateNameError, match=r"^fruit 'apple' is registered twice"):
            table.get("apple")


def test_unknown_name_offers_the_close_matches(plant: Plant) -> None:
    table = plant(a="for n in ('apple', 'apricot', 'maple', 'kiwi'): table.register(n)(1)")
    with pytest.raises(UnknownNameError) as caught:
        table.get("aple")
    assert str(caught.value).startswith("no fruit named 'aple'; did you mean ")
    assert "apple" in str(caught.value)
    assert "kiwi" not in str(caught.value)


def test_unknown_name_that_is_close_to_nothing_lists_them_all(plant: Plant) -> None:
    table = plant(a="table.register('kiwi')(1); table.register('apple')(1)")
    with pytest.raises(UnknownNameError, match=r"no fruit named 'zzz\\n'; there are: apple, kiwi$"):
        table.get("zzz\n")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (None, ["pear", "pine_apple", "pine_nut"]),
        ("pine*", ["pine_apple", "pine_nut"]),
        ("p?ar", ["pear"]),
        ("pine_[an]*", ["pine_apple", "pine_nut"]),
        ("nut", ["pine_nut"]),
        ("p", ["pear", "pine_apple", "pine_nut"]),
        ("PEAR", []),
        ("plum*", []),
    ],
)
def test_patterns(plant: Plant, pattern: str | None, expected: list[str]) -> None:
    table = plant(a="for n in ('pine_nut', 'pear', 'pine_apple'): table.register(n)(1)")
    assert table.names(pattern) == expected


def test_module_that_fails_fails_again_with_the_same_error(plant: Plant) -> None:
    table = plant(a="table.register('apple')(1)", b="table.register('banana')(2)\nimport a_module_that_does_not_exist")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="a_module_that_does_not_exist"):
            table.get("apple")


def test_second_thread_waits_for_the_whole_table(plant: Plant) -> None:
    # The module dawdles, so that the second thread has its chance to see a half-filled table.
    table = plant(a="import time; time.sleep(0.2)\ntable.register('apple')(1)")
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(table.get("apple"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1, 1]


def test_import_needs_no_torch() -> None:
    code = "import sys, sepnet.errors, sepnet.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
