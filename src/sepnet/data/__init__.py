"""Data sets, splits, batched augmentation and loaders.

    from sepnet.data import AugmentConfig, EvalLoader, TrainLoader, download_dataset, load_dataset

    download_dataset("cifar10", Path("data"))
    data = load_dataset("cifar10", data_dir=Path("data"), seed=0)
    train = TrainLoader(data.train, data.preprocessing, batch_size=128, seed=0, augment=AugmentConfig(hflip="random", shift=2))
    x, y = train.batch(0)

A data set is one file of this folder (``cifar10``, ``svhn``, ...); any folder of images is one too, and hf:owner/name of the
Hugging Face hub.
"""

from __future__ import annotations

from sepnet.data._augment import Augment, AugmentConfig, AugmentParameters
from sepnet.data._check import FolderReport, SizeRange, check_folder
from sepnet.data._decode import IMAGE_SUFFIXES, decode_image
from sepnet.data._download import Downloaded, Patience, download_dataset
from sepnet.data._folder import choose_size
from sepnet.data._load import load_dataset
from sepnet.data._loader import EvalLoader, TrainLoader
from sepnet.data._registry import Entry, datasets
from sepnet.data._source import Download, Source
from sepnet.data._types import Dataset, Place, Preprocessing, RawData, Split

__all__ = [
    "IMAGE_SUFFIXES",
    "Augment",
    "AugmentConfig",
    "AugmentParameters",
    "Dataset",
    "Download",
    "Downloaded",
    "Entry",
    "EvalLoader",
    "FolderReport",
    "Patience",
    "Place",
    "Preprocessing",
    "RawData",
    "SizeRange",
    "Source",
    "Split",
    "TrainLoader",
    "check_folder",
    "choose_size",
    "datasets",
    "decode_image",
    "download_dataset",
    "load_dataset",
]
