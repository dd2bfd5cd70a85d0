"""The operations on an NVIDIA GPU: Triton's kernels where they serve, else PyTorch's; the rules that choose stand here.

Environment:
    SEPNET_KERNELS: ``reference`` switches the Triton kernels off, as it does the library for the CPU.

Nothing here waits for the GPU, and no shape depends on data: after a first call, which compiles, all of it can be captured in a
CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sepnet.errors import one_line
from sepnet.kernels import _reference
from sepnet.kernels._geometry import Geometry
from sepnet.kernels._library import reference_wanted
from sepnet.kernels._tensors import compute_dtype, dense, is_trifle

__all__ = ["batch_norm_relu", "depthwise_conv2d", "triton_depthwise", "triton_norm", "triton_serves", "why_not_triton"]

_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_MAX_KERNEL, _MAX_STRIDE = 7, 2
_MOST_VALUES = 1 << 31  # the kernels count in 32 bits
_LEAST_CAPABILITY = (8, 0)  # bf16

# --- which path ------------------------------------------------------------------------------------------------------------


def triton_serves(dtype: torch.dtype, shape: Sequence[int], geometry: Geometry) -> bool:
    """Whether Triton's kernels take, and are the faster for, a depthwise convolution of (B, C, H, W) in ``dtype``.

    The one place to change after a measurement (benchmarks/gpu_kernels.py).
    """
    if len(geometry.kernels) > 1 or max(geometry.kernels[0]) > _MAX_KERNEL or max(geometry.stride) > _MAX_STRIDE:
        return False
    batch, channels, height, width = shape
    out_height, out_width = geometry.output_size(height, width)
    largest = batch * channels * max(height * width, out_height * out_width)
    return dtype in _TYPES and 0 < largest < _MOST_VALUES


def triton_serves_norm(x: Tensor) -> bool:
    """Whether Triton's kernels take, and are the faster for, a batch normalisation of ``x`` in training."""
    return x.dtype in _TYPES and x.dim() == 4 and x.shape[1] < x.numel() < _MOST_VALUES


class _Kernels(NamedTuple):
    """The modules that need triton."""

    depthwise: Any
    norm: Any


@cache
def _kernels() -> _Kernels | str:
    """The kernels, or why there are none. Triton is no dependency of sepnet: it comes with PyTorch for CUDA."""
    try:
        from sepnet.kernels import _triton_depthwise, _triton_norm
    except Exception as error:  # whatever a version of triton that we do not know may raise: PyTorch's operations serve
        return f"triton cannot be used ({one_line(error)})"
    return _Kernels(_triton_depthwise, _triton_norm)


@cache
def _why_not_device(index: int) -> str | None:
    if torch.version.cuda is None:
        return "the kernels are written for CUDA"
    capability = torch.cuda.get_device_capability(index)
    if capability < _LEAST_CAPABILITY:
        return f"compute capability {capability[0]}.{capability[1]}, the kernels want {_LEAST_CAPABILITY[0]}.{_LEAST_CAPABILITY[1]}"
    return None


def why_not_triton(device: torch.device) -> str | None:
    """Why PyTorch's operations serve on a CUDA device; None if the kernels serve."""
    if reference_wanted():
        return "SEPNET_KERNELS=reference, or asked for by sepnet.kernels.use"
    kernels = _kernels()
    return kernels if isinstance(kernels, str) else _why_not_device(device.index or 0)


def _is_plain(*tensors: Tensor | None) -> bool:
    """Tensors of PyTorch's own on one CUDA device: no subclasses, which may stand for something else."""
    present = [t for t in tensors if t is not None]
    return all(t.is_cuda and type(t) in (Tensor, torch.nn.Parameter) and t.device == present[0].device for t in present)


# --- depthwise convolution -------------------------------------------------------------------------------------------------


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Arguments as those of ``_reference.depthwise_conv2d``, on a CUDA device; under autocast in its type."""
    dtype = compute_dtype(x)
    if not _is_plain(x, weight, bias) or is_trifle(x) or why_not_triton(x.device) is not None:
        return _reference.depthwise_conv2d(x, weight, bias, geometry)
    if not triton_serves(dtype, x.shape, geometry):
        return _reference.depthwise_conv2d(x, weight, bias, geometry)
    return triton_depthwise(x.to(dtype), weight, bias, geometry)


def triton_depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """By Triton's kernels. Differentiable once.

    Shape: (B, C, H, W), weight (C, 1, kh, kw), bias (C,) -> (B, C, H', W'), channels-last, in x's type.
    """
    y: Tensor = _DepthwiseConv2d.apply(x, weight, bias, geometry)  # type: ignore[no-untyped-call]
    return y


class _DepthwiseConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        kernels = _kernels()
        assert isinstance(kernels, _Kernels)
        x = dense(x)
        taps = weight.detach().float().flatten(1).t().contiguous()  # (kh * kw, C): a tap's weights are one piece of memory
        y: Tensor = kernels.depthwise.depthwise_forward(x, taps, None if bias is None else bias.detach(), geometry)
        ctx.save_for_backward(x, taps, weight)
        ctx.geometry, ctx.bias_type = geometry, None if bias is None else bias.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kernels = _kernels()
        assert isinstance(kernels, _Kernels)
        x, taps, weight = ctx.saved_tensors
        grad, wants = dense(grad), ctx.needs_input_grad
        grad_x = grad_weight = grad_bias = None
        if wants[0]:
            grad_x = kernels.depthwise.depthwise_input_gradient(grad, taps, (x.shape[2], x.shape[3]), ctx.geometry)
        if wants[1]:
            grad_weight = kernels.depthwise.depthwise_weight_gradient(x, grad, weight, ctx.geometry)
        if wants[2]:
            grad_bias = grad.sum((0, 2, 3), dtype=torch.float32).to(ctx.bias_type)
        return grad_x, grad_weight, grad_bias, None


# --- batch normalisation ---------------------------------------------------------------------------------------------------


def batch_norm_relu(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    momentum: float,
    eps: float,
    pool: bool,
    relu: bool,
    shortcut: Tensor | None,
) -> Tensor | None:
    """Arguments as those of ``_reference.batch_norm_relu`` in training, on a CUDA device. None where PyTorch's are to serve."""
    if weight is None or bias is None or (running_mean is None) != (running_var is None) or not torch.is_grad_enabled():
        return None
    vectors = [t for t in (weight, bias, running_mean, running_var) if t is not None]
    if not _is_plain(x, shortcut, *vectors) or not triton_serves_norm(x) or why_not_triton(x.device) is not None:
        return None
    if not all(t.dtype == torch.float32 and t.shape == x.shape[1:2] and t.is_contiguous() for t in vectors):
        return None
    if shortcut is not None and (shortcut.dtype != x.dtype or shortcut.shape != x.shape):
        return None
    averages = None if running_mean is None or running_var is None else (running_mean, running_var)
    y = triton_norm(x, weight, bias, averages, momentum=momentum, eps=eps, relu=relu, shortcut=shortcut)
    return F.max_pool2d(y, 2) if pool else y


def triton_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    averages: tuple[Tensor, Tensor] | None,
    *,
    momentum: float,
    eps: float,
    relu: bool,
    shortcut: Tensor | None = None,
) -> Tensor:
    """By Triton's kernels, with the statistics of the batch, which the running ``averages`` take in. Differentiable once.

    Shape: (B, C, H, W) -> (B, C, H, W), channels-last.
    """
    y: Tensor = _BatchNormReLU.apply(  # type: ignore[no-untyped-call]
        x, weight, bias, shortcut, averages, momentum, eps, relu
    )
    return y


class _BatchNormReLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        shortcut: Tensor | None,
        averages: tuple[Tensor, Tensor] | None,
        momentum: float,
        eps: float,
        relu: bool,
    ) -> Tensor:
        kernels = _kernels()
        assert isinstance(kernels, _Kernels)
        x, weight, bias = dense(x), weight.detach(), bias.detach()
        more = None if shortcut is None else dense(shortcut)
        y, constants = kernels.norm.norm_forward(x, weight, bias, averages, momentum, eps, relu, more)
        ctx.relu, ctx.shortcut = relu, shortcut is not None
        ctx.save_for_backward(x, y if relu and ctx.shortcut else None, constants, bias)
        result: Tensor = y
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kernels = _kernels()
        assert isinstance(kernels, _Kernels)
        x, y, constants, bias = ctx.saved_tensors
        grads = kernels.norm.norm_backward(x, y, constants, bias, dense(grad), ctx.relu, ctx.shortcut)
        return *grads, None, None, None, None
