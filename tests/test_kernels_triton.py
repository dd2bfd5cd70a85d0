"""The Triton kernels against float64: on a CUDA device where there is one, else in Triton's interpreter, on the CPU.

Triton decides when it is imported whether it interprets, so the cases (triton_cases.py) run in a process of their own.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sepnet.kernels import _gpu, depthwise_conv2d, use

CASES = Path(__file__).with_name("triton_cases.py")
HAS_GPU = torch.cuda.is_available()


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed (it comes with PyTorch for CUDA)")
def test_cases() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SEPNET_KERNELS", "PYTEST_"))}
    environment["TRITON_INTERPRET"] = "0" if HAS_GPU else "1"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(CASES)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.skipif(importlib.util.find_spec("triton") is not None, reason="triton is installed")
def test_reason_where_triton_is_missing() -> None:
    assert "triton" in str(_gpu.why_not_triton(torch.device("cuda", 0)))


def test_reference_switches_triton_off() -> None:
    with use("reference"):
        assert "reference" in str(_gpu.why_not_triton(torch.device("cuda", 0)))


def test_the_rule_leaves_to_pytorch_what_the_kernels_cannot() -> None:
    plain = _gpu.Geometry((1, 1), ((3, 3),), ((1, 1),), ((1, 1),), False)
    shape = (2, 8, 9, 9)
    assert _gpu.triton_serves(torch.bfloat16, shape, plain)
    assert not _gpu.triton_serves(torch.float64, shape, plain)
    assert not _gpu.triton_serves(torch.float32, shape, plain._replace(stride=(3, 1)))
    assert not _gpu.triton_serves(torch.float32, shape, plain._replace(kernels=((9, 9),), paddings=((4, 4),)))
    two = plain._replace(kernels=((3, 3),) * 2, paddings=((1, 1),) * 2, dilations=((1, 1),) * 2, interleaved=True)
    assert not _gpu.triton_serves(torch.float32, shape, two)
    assert not _gpu.triton_serves(torch.float32, (1 << 16, 1 << 10, 32, 32), plain)


def test_the_cpu_never_asks_for_triton() -> None:
    x, weight = torch.randn(2, 8, 9, 9, requires_grad=True), torch.randn(8, 1, 3, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_gpu, "_kernels", lambda: pytest.fail("imported"))
        depthwise_conv2d(x, weight).sum().backward()
