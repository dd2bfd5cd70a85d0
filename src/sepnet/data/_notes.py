"""Lists of names in a note or an error that stay one readable line, however many names there are."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice

from sepnet.errors import one_line

__all__ = ["NAMED", "some"]

NAMED = 5
"""As many items are named; the rest is a number."""


def some(items: Collection[str]) -> str:
    """The first ``NAMED`` of ``items``, escaped for printing, and how many more there are: "a, b, c, d, e and 3 more"."""
    more = f" and {len(items) - NAMED} more" if len(items) > NAMED else ""
    return ", ".join(one_line(item) for item in islice(items, NAMED)) + more
