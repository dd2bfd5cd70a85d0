"""A name -> object table that fills itself from the files of one folder. Imports no torch.

A new network, data set, recipe or command is one new file: on the first look-up the registry imports every module of
its package whose name does not begin with an underscore, and each of them registers what it defines.
"""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import pkgutil
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from sepnet.errors import DuplicateNameError, UnknownNameError, one_line

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Generic[T]):
    """Names of one kind of thing.

    Args:
        kind: what the entries are, as an error message would say it ("model", "data set").
        package: dotted name of the folder whose modules register the entries; imported on first look-up.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._entries: dict[str, T] = {}
        self._loaded = False
        self._loading = threading.RLock()

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that enters its target under ``name``.

        Raises:
            DuplicateNameError: the name is taken.
        """

        def enter(entry: T) -> T:
            if name in self._entries:
                raise DuplicateNameError(f"{self.kind} {name!r} is registered twice; rename one of them")
            self._entries[name] = entry
            return entry

        return enter

    def get(self, name: str) -> T:
        """The entry called ``name``.

        Raises:
            UnknownNameError: there is none; the message offers the close matches.
        """
        self._load()
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownNameError(self._unknown(name)) from None

    def names(self, pattern: str | None = None) -> list[str]:
        """Registered names in alphabetical order; ``pattern`` is a shell pattern ("multi*") or a part of a name."""
        self._load()
        names = sorted(self._entries)
        if pattern is None:
            return names
        wild = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
        return [n for n in names if fnmatch.fnmatchcase(n, wild)]

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        self._load()
        return len(self._entries)

    def _load(self) -> None:
        # A second thread waits for the whole table; the same thread, asking while it loads, sees what is there so far.
        with self._loading:
            if self._loaded:
                return
            self._loaded = True
            try:
                package = importlib.import_module(self.package)
                for module in pkgutil.iter_modules(package.__path__):
                    if not module.name.startswith("_"):
                        self._import(f"{self.package}.{module.name}")
            except BaseException:
                self._loaded = False
                raise

    def _import(self, module: str) -> None:
        before = dict(self._entries)
        try:
            importlib.import_module(module)
        except BaseException:
            # Python forgets a module that failed, so its names go too: the next look-up repeats the error, not a duplicate name.
            self._entries = before
            raise

    def _unknown(self, name: str) -> str:
        close = difflib.get_close_matches(name, self._entries, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(sorted(self._entries))}"
        return f"no {self.kind} named '{one_line(name)}'; {hint}"
