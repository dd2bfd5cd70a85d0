"""A stand-in for the library ``datasets``, of which sepnet uses little: typed columns, rows, and a builder that fetches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any


class Image:
    """The type of a column of images."""

    def __init__(self, decode: bool = True) -> None:
        self.decode = decode


class ClassLabel:
    """The type of a column of class numbers."""

    def __init__(self, names: list[str]) -> None:
        self.names = names


class Value:
    """The type of any other column."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype


class Table:
    """A split. It refuses to give an image that it would have to decode."""

    def __init__(self, features: Mapping[str, Any], columns: Mapping[str, list[Any]], fingerprint: str = "print") -> None:
        self.features, self.columns, self._fingerprint = dict(features), dict(columns), fingerprint

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, str):
            return list(self.columns[key])
        assert not any(isinstance(feature, Image) and feature.decode for feature in self.features.values())
        return {name: values[key] for name, values in self.columns.items()}

    def select_columns(self, names: list[str]) -> Table:
        return Table({n: self.features[n] for n in names}, {n: self.columns[n] for n in names}, self._fingerprint)

    def cast_column(self, name: str, feature: Any) -> Table:
        return Table(self.features | {name: feature}, self.columns, self._fingerprint)


def library(fetch: Callable[[str, str | None], Mapping[str, Table]], cache: str, kind: str = "parquet") -> ModuleType:
    """The module; ``fetch`` gives the splits of (name, configuration)."""

    class Builder:
        def __init__(self, name: str, configuration: str | None) -> None:
            self.asked = (name, configuration)

        def download_and_prepare(self) -> None:
            self.splits = fetch(*self.asked)

        def as_dataset(self) -> Mapping[str, Table]:
            return self.splits

    Builder.__module__ = f"datasets.packaged_modules.{kind}.{kind}"

    def load_dataset_builder(name: str, configuration: str | None, trust_remote_code: bool) -> Builder:
        assert trust_remote_code is False
        return Builder(name, configuration)

    module = ModuleType("datasets")
    module.__dict__.update(Image=Image, ClassLabel=ClassLabel, Value=Value, load_dataset_builder=load_dataset_builder)
    module.config = SimpleNamespace(HF_CACHE_HOME=cache, HF_DATASETS_CACHE=cache)  # type: ignore[attr-defined]
    return module
