"""What every test shares: one thread, a fixed seed, no window system."""

from __future__ import annotations

import os

import pytest
import torch

os.environ.setdefault("MPLBACKEND", "Agg")  # before matplotlib is first imported, here or in a subprocess

# The tests' tensors are too small to be worth a second thread, and one thread sums in the same order on every machine.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)
