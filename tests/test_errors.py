"""sepnet.errors: the tree drawn is the tree there is, and untrusted text stays on one harmless line."""

from __future__ import annotations

import inspect
import re

import pytest

from sepnet import errors
from sepnet.errors import SepnetError, one_line

CLASSES = {n: c for n, c in vars(errors).items() if inspect.isclass(c) and issubclass(c, SepnetError)}


def drawn_tree() -> dict[str, str | None]:
    """Name -> parent, as the module's docstring draws it; four columns of indentation are one level."""
    parents: dict[str, str | None] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"((?:\|   |    )*(?:\|-- |`-- )|)([A-Z]\w+Error)\b(?: {2,}\S|$)", line):
            depth = len(match[1]) // 4
            parents[match[2]] = path[depth - 1] if depth else None
            path[depth:] = [match[2]]
    return parents


def test_drawn_tree_is_the_tree_of_the_classes() -> None:
    real = {}
    for name, cls in CLASSES.items():
        bases = [b.__name__ for b in cls.__bases__ if issubclass(b, SepnetError)]
        assert len(bases) == (0 if cls is SepnetError else 1)
        real[name] = bases[0] if bases else None
    assert drawn_tree() == real


def test_every_error_is_exported() -> None:
    assert set(errors.__all__) == {*CLASSES, "one_line"}


@pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES)
def test_exit_code_is_a_failure_the_shell_does_not_use_itself(cls: type[SepnetError]) -> None:
    assert 1 < cls.exit_code < 126  # 1 is Python's own traceback; from 126 on the shell reports signals and missing commands


def test_unknown_name_is_a_lookup_error() -> None:
    assert issubclass(errors.UnknownNameError, LookupError)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("plain name.png", "plain name.png"),
        ("größe 猫 🐈.png", "größe 猫 🐈.png"),
        ("", ""),
        (12.5, "12.5"),
        (None, "None"),
        ("a\nb\r\tc\0", r"a\nb\r\tc\x00"),
        ("\x1b[2Jscreen\x07", r"\x1b[2Jscreen\x07"),
        ("evil\u202egnp.exe", r"evil\u202egnp.exe"),
        ("line\u2028paragraph\u2029\x85", r"line\u2028paragraph\u2029\x85"),
        (b"caf\xe9.png".decode("utf-8", "surrogateescape"), r"caf\udce9.png"),
        ("\ud83d alone", r"\ud83d alone"),
    ],
)
def test_one_line_escapes_what_does_not_print(value: object, expected: str) -> None:
    line = one_line(value)
    assert line == expected
    assert line.isprintable()
    line.encode()  # raises if a surrogate is left


def test_one_line_cuts_to_the_limit() -> None:
    assert one_line("x" * 200) == "x" * 200
    assert one_line("x" * 201) == "x" * 199 + "…"
    assert one_line("\n" * 10, limit=7) == r"\n\n\n" + "…"
    assert len(one_line("\0" * 10_000)) == 200
