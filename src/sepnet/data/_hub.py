"""``hf:owner/name``: a data set of images and labels from the Hugging Face hub, by the extra [hub].

The library ``datasets`` fetches it into its own cache; nothing that lies in the repository is run. Which columns hold images and
labels is told by their types. The images are decoded as those of a folder are, and kept in sepnet's cache.
"""

from __future__ import annotations

import inspect
import io
import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from sepnet.data._cache import EncodedImages
from sepnet.data._decode import ImageHeader, read_header
from sepnet.data._folder import SAMPLE, TEST_FRACTION, read_scan, settings_for
from sepnet.data._notes import some
from sepnet.data._scan import SPLITS, FileStamp, FolderEntry, FolderScan
from sepnet.data._types import RawData, ReadOptions
from sepnet.errors import ConfigError, DataError, DataNotFoundError, DownloadError, MissingExtraError, UnsafeFileError, one_line

__all__ = ["PREFIX", "read_hub"]

PREFIX = "hf:"
KINDS = frozenset({"arrow", "imagefolder", "parquet", "webdataset"})  # files of images and numbers; others may hold more
IMAGE_COLUMNS = ("image", "img", "jpg", "png")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target", "cls")
ORDER = ("train", "val", "test")
UNSTAMPED = FileStamp(0, 0, 0, 0)


class _Part(NamedTuple):
    """A split of the data set: its name there, the table of its images, and their labels (None: without)."""

    name: str
    images: Any
    labels: list[Any]


def read_hub(text: str, options: ReadOptions) -> RawData:
    """Read ``text``, "hf:owner/name" or "hf:owner/name:configuration".

    Raises:
        ConfigError: not of that form, or a folder of that name is in the way.
        MissingExtraError: the extra [hub] is not installed.
        DataNotFoundError: the hub has no such data set, or not for everybody.
        DownloadError: the hub cannot be reached, and the data set is not in the cache.
        UnsafeFileError: a data set of another kind than images in tables, folders or archives.
        DataError: no images, no labels, or not to be told which.
        OutputError: the cache of decoded images cannot be written.
    """
    found = re.fullmatch(r"hf:([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::([\w.-]+))?", text, re.ASCII)
    if found is None:
        raise ConfigError(f"{one_line(text)}: a data set of the hub is hf:owner/name, or hf:owner/name:configuration")
    name, configuration = found.groups()
    if Path(name).exists():
        raise ConfigError(f"there is a {name} here, which would be read for {text}; name it without hf:, or run this elsewhere")
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(f"{text} needs the extra [hub]; run: pip install 'sepnet[hub]' ({one_line(error, 80)})") from None
    return convert(datasets, _fetch(datasets, name, configuration, text), text, options)


def _fetch(library: ModuleType, name: str, configuration: str | None, text: str) -> Mapping[str, Any]:
    """The splits of the data set, in the library's cache."""
    options: dict[str, object] = {}
    if "trust_remote_code" in inspect.signature(library.load_dataset_builder).parameters:  # until 4.0, which runs none at all
        options["trust_remote_code"] = False
    try:
        builder = library.load_dataset_builder(name, configuration, **options)
        kind = type(builder).__module__
        if not kind.startswith("datasets.packaged_modules.") or kind.split(".")[2] not in KINDS:
            raise UnsafeFileError(
                f"{text} is of the kind {one_line(kind.split('.')[-1])}; read are {', '.join(sorted(KINDS))}, which cannot run code"
            )
        builder.download_and_prepare()
        splits: Mapping[str, Any] = builder.as_dataset()
        return splits
    except UnsafeFileError:
        raise
    except ConnectionError as error:
        raise DownloadError(f"the hub cannot be reached, and {text} is not in the cache: {one_line(error, 120)}") from None
    except FileNotFoundError as error:  # the library's own error is one of these
        raise DataNotFoundError(
            f"no {text} on the hub, or only for those who are logged in (hf auth login): {one_line(error, 120)}"
        ) from None
    except Exception as error:  # whatever the files of a stranger make the library stumble over
        hint = "; choose one with hf:owner/name:configuration" if "onfig name is missing" in str(error) else ""
        raise DataError(f"{text} cannot be read ({type(error).__name__}: {one_line(error, 200)}){hint}") from None


def convert(library: ModuleType, splits: Mapping[str, Any], text: str, options: ReadOptions) -> RawData:
    """The splits of a data set of ``library`` (the module ``datasets``), by name, as images and labels; raises as ``read_hub``."""
    known, notes = _splits(splits, text)
    features = known["train"][1].features
    image = _column(features, library.Image, IMAGE_COLUMNS, "images", text)
    label = _label_column(library, features, text)
    parts = {
        part: _Part(name, _encoded_only(library, table, image), list(table[label][:])) for part, (name, table) in known.items()
    }
    numbers, classes = _classes(library, features[label], parts, text)
    entries, rows, left_out = _entries(parts, numbers)
    encoded = _images(library, parts, rows, image, text)
    scan = FolderScan(Path(text), "split", classes, tuple(entries), (*notes, *left_out))
    settings = settings_for(options, lambda: _headers(encoded), text)
    raw = read_scan(scan, settings, options, f"a look at {text} on the hub", encoded=encoded)
    return replace(raw, title=text, test_fraction=TEST_FRACTION)


def _splits(splits: Mapping[str, Any], text: str) -> tuple[dict[str, tuple[str, Any]], list[str]]:
    """ "train", "val" and "test" -> the split's own name and its table; and a note on those passed over."""
    known: dict[str, tuple[str, Any]] = {}
    others = []
    for name, table in splits.items():
        part = "val" if name == "dev" else SPLITS.get(name.lower())
        if part is None or part in known or not len(table):
            others.append(name)
        else:
            known[part] = (name, table)
    if "train" not in known:
        raise DataError(f"{text} has no split for training, only {some(list(splits)) or 'nothing'}")
    ordered = {part: known[part] for part in ORDER if part in known}
    return ordered, [f"splits passed over: {some(others)}"] if others else []


def _column(features: Mapping[str, Any], kind: type, preferred: Sequence[str], what: str, text: str) -> str:
    """The one column of this kind, or of several the one with a preferred name."""
    found = [name for name, feature in features.items() if isinstance(feature, kind)]
    chosen = found if len(found) == 1 else [name for name in preferred if name in found]
    if not chosen:
        kinds = some([f"{name} ({type(feature).__name__})" for name, feature in features.items()])
        raise DataError(f"{text}: which column holds the {what} cannot be told; there are {kinds}")
    return chosen[0]


def _label_column(library: ModuleType, features: Mapping[str, Any], text: str) -> str:
    """A column of class labels; without any, one of texts or numbers that is called so."""
    if not any(isinstance(feature, library.ClassLabel) for feature in features.values()):
        named = [n for n in LABEL_COLUMNS if isinstance(features.get(n), library.Value) and _is_discrete(features[n])]
        if named:
            return named[0]
    return _column(features, library.ClassLabel, LABEL_COLUMNS, "labels", text)


def _is_discrete(value: Any) -> bool:
    return str(value.dtype).startswith(("string", "large_string", "int", "uint", "bool"))


def _encoded_only(library: ModuleType, table: Any, column: str) -> Any:
    """The images as they are stored: decoding is ours, which refuses bombs."""
    return table.select_columns([column]).cast_column(column, library.Image(decode=False))


def _classes(library: ModuleType, feature: Any, parts: Mapping[str, _Part], text: str) -> tuple[dict[Any, int], tuple[str, ...]]:
    """For each label its class number, and the names of the classes."""
    if isinstance(feature, library.ClassLabel):
        names = [one_line(name, 2000) for name in feature.names]
        numbers: dict[Any, int] = {number: number for number in range(len(names))}
    else:
        values = sorted({label for part in parts.values() for label in part.labels if label is not None})
        names = [one_line(value, 2000) for value in values]
        numbers = {value: number for number, value in enumerate(values)}
    if len(names) < 2 or len(set(names)) < len(names):
        raise DataError(f"{text}: a classifier needs two classes or more, each of a name of its own; found {some(names) or 'none'}")
    return numbers, tuple(names)


def _entries(parts: Mapping[str, _Part], numbers: Mapping[Any, int]) -> tuple[list[FolderEntry], list[tuple[str, int]], list[str]]:
    """The labelled images as entries, where each lies (split, row), and notes on those without a label."""
    entries: list[FolderEntry] = []
    rows: list[tuple[str, int]] = []
    notes = []
    for part, (name, _, labels) in parts.items():
        labelled = [(row, numbers[label]) for row, label in enumerate(labels) if label in numbers]
        if len(labelled) < len(labels):
            notes.append(f"{len(labels) - len(labelled):,} of the {len(labels):,} images of {name} have no label and are left out")
        entries += [FolderEntry(part, number, f"{name}/{row}", UNSTAMPED) for row, number in labelled]
        rows += [(part, row) for row, _ in labelled]
    return entries, rows, notes


def _images(
    library: ModuleType, parts: Mapping[str, _Part], rows: Sequence[tuple[str, int]], column: str, text: str
) -> EncodedImages:
    """The images in the order of the entries. The library's tables are not said to bear several threads: one at a time reads."""
    one_reader = threading.Lock()

    def read(number: int) -> bytes:
        part, row = rows[number]
        with one_reader:
            stored = parts[part].images[row][column]
        return _content(library, stored)

    listing = [(part, found.images._fingerprint, len(found.labels)) for part, found in parts.items()]
    return EncodedImages(text, listing, len(rows), read)


def _content(library: ModuleType, stored: Any) -> bytes:
    """The bytes of an image file, from the table, or from a file that the library itself has fetched. Raises OSError."""
    if not isinstance(stored, Mapping):
        raise OSError("there is no image")
    content, path = stored.get("bytes"), stored.get("path")
    if isinstance(content, bytes):
        return content
    caches = (library.config.HF_CACHE_HOME, library.config.HF_DATASETS_CACHE)
    if isinstance(path, str) and any(Path(path).resolve().is_relative_to(Path(cache).resolve()) for cache in caches):
        return Path(path).read_bytes()
    raise OSError("the image is neither in the data set nor in the hub's cache")


def _headers(encoded: EncodedImages) -> list[ImageHeader]:
    """Headers of up to ``SAMPLE`` images, evenly spread."""
    headers = []
    for number in range(0, encoded.count, max(1, encoded.count // SAMPLE)):
        with suppress(OSError, DataError):
            headers.append(read_header(io.BytesIO(encoded.read(number))))
    return headers
