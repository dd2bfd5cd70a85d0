"""Where a run's data lay on this machine: a note in its folder, so that they are found again from anywhere.

The note is no part of the release: ``config.json`` names the data without the way to them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from sepnet.data import Place
from sepnet.engine import atomic_write

__all__ = ["find", "note_place", "place_of"]

NOTE = "data.json"


def note_place(run: Path, place: Place) -> None:
    """Leave the note in the folder of a run. Raises OutputError."""
    paths = {"folder": place.folder, "data_dir": place.data_dir}
    note = {key: os.path.abspath(path) for key, path in paths.items() if path is not None}  # noqa: PTH100  (links stay)
    content = json.dumps(note, indent=1).encode()
    atomic_write(run / NOTE, lambda file: file.write(content))


def place_of(run: Path) -> Place:
    """What the note says; nothing where there is none, or none that can be read."""
    try:
        note = json.loads((run / NOTE).read_bytes())
        return Place(*(Path(note[key]) if isinstance(note.get(key), str) else None for key in ("folder", "data_dir")))
    except (OSError, ValueError, AttributeError):
        return Place()


def find(name: str, place: Place) -> str:
    """What to load for the data that a run calls ``name``: the image folder where it still lies there, else the name."""
    return os.fspath(place.folder) if place.folder is not None and os.path.isdir(place.folder) else name  # noqa: PTH112  (no name makes it raise)
