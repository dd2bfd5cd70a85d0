"""``sepnet info --kernels``: which path each operation takes on this machine, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sepnet.cli._output import Output

__all__ = ["show_kernels"]


def show_kernels(out: Output) -> None:
    """Print the library in use and a row for each kind of operation."""
    import torch

    from sepnet.engine.devices import prefers_bf16
    from sepnet.kernels import EXAMPLE_BATCH, calls_by, gpu_path, kernel_paths, kernels_in_use, library, why_not_native

    lib, reason, paths = library(), why_not_native(), kernel_paths()
    precision = "bf16" if prefers_bf16(torch.device("cpu")) else "fp32"
    if out.as_json:
        threads, calls = (None, None) if lib is None else (lib.threads, calls_by(lib))
        rows = [path._asdict() for path in paths]
        numbers = {
            "kernels": kernels_in_use(),
            "why_not_native": reason,
            "threads": threads,
            "calls": calls,
            "precision": precision,
        }
        out.json(numbers | {"gpu": gpu_path(), "batch_size": EXAMPLE_BATCH, "paths": rows})
        return
    facts = [("kernels", kernels_in_use() if lib is not None else f"PyTorch's own operations: {reason}")]
    if lib is not None:
        facts += [
            ("threads", f"{torch.get_num_threads()}, in {lib.threads}"),
            ("calls", f"of depthwise convolutions by {calls_by(lib)}"),
        ]
    facts.append(("precision", f"{precision} is what training takes on this processor (--amp overrides)"))
    gpu = gpu_path()
    if gpu is not None:
        facts.append(("GPU", gpu))
    facts.append(("shown", f"what batches of {EXAMPLE_BATCH} images take in training"))
    facts.append(("choice", "SEPNET_KERNELS=native or reference, SEPNET_KERNELS_ISA=NAME"))
    out.facts(facts)
    out.line()
    out.table(["operation", "type", "forward", "backward", "why"], [list(path) for path in paths], optional=(4,))
