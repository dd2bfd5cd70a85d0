"""Every error sepnet raises on purpose. The command line prints one line for each and exits with ``exit_code``.

SepnetError
|-- ConfigError             a flag, a key of a configuration file, or a combination of them
|-- UnknownNameError        no such model, data set, recipe, ... (offers the close matches)
|-- DuplicateNameError      two files register the same name
|-- DataError               a data set, folder or image that cannot be used
|   |-- DataNotFoundError   it is not there: the message says what to run or where to put it
|   |-- DownloadError       it could not be fetched: no network, no server that has it whole
|   |-- ImageError          one file that is not a readable image
|   `-- UnsafeFileError     a file that would run code, or is far larger than it may be
|-- CheckpointError         a checkpoint or release that is cut, foreign, or of another network
|-- OutputError             a result that cannot be written (permission, full disk)
|-- TrainingError           training cannot go on
|   `-- NonFiniteLossError  the loss became NaN or infinite
`-- MissingExtraError       an optional dependency is not installed (names the extra)
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DataNotFoundError",
    "DownloadError",
    "DuplicateNameError",
    "ImageError",
    "MissingExtraError",
    "NonFiniteLossError",
    "OutputError",
    "SepnetError",
    "TrainingError",
    "UnknownNameError",
    "UnsafeFileError",
    "one_line",
]


class SepnetError(Exception):
    """Base of every deliberate error; ``exit_code`` is the command line's exit status."""

    exit_code = 2


class ConfigError(SepnetError):
    """A flag, configuration key or combination of values that cannot be used."""


class UnknownNameError(SepnetError, LookupError):
    """A name that no file registers."""


class DuplicateNameError(SepnetError):
    """A name that two files register."""


class DataError(SepnetError):
    """A data set, folder or image that cannot be used."""


class DataNotFoundError(DataError):
    """A data set that is not there; the message says what to run or where to put it."""


class DownloadError(DataError):
    """A data set that no server would give."""


class ImageError(DataError):
    """A single file that is not a readable image."""


class UnsafeFileError(DataError):
    """A file that would run code, leave its folder, or unpack to far more than it may."""


class CheckpointError(SepnetError):
    """A checkpoint or release that is cut short, foreign, or of another network."""


class OutputError(SepnetError):
    """A result that cannot be written."""


class TrainingError(SepnetError):
    """Training cannot go on."""


class NonFiniteLossError(TrainingError):
    """The loss became NaN or infinite."""


class MissingExtraError(SepnetError):
    """An optional dependency that is not installed."""


def one_line(value: object, limit: int = 200) -> str:
    """``value`` as text that is safe to print on one line: control and undecodable characters escaped, cut at ``limit``."""
    text = str(value).encode("utf-8", "backslashreplace").decode()
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"
