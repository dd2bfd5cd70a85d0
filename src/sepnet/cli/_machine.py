"""What ``--device`` and ``--workers`` do before anything is read that takes time."""

from __future__ import annotations

__all__ = ["use_machine"]


def use_machine(device: str, workers: int | None = None) -> None:
    """See that the device is there, and compute with so many threads of the processor; None leaves them all.

    Raises:
        ConfigError: there is no such device.
    """
    import torch

    from sepnet.engine import check_device

    check_device(device)
    if workers is not None:
        torch.set_num_threads(workers)
