"""Batch normalisation, 2x2 max pooling and ReLU as one differentiable function."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sepnet.kernels import _gpu, _native_norm, _reference
from sepnet.kernels._autograd import Function, once_differentiable
from sepnet.kernels._library import Library, library
from sepnet.kernels._tensors import dense, is_plain, is_trifle, library_for
from sepnet.kernels._tracing import is_traced

__all__ = ["Normalisation", "batch_norm_relu"]

_TYPES = (torch.float32, torch.bfloat16)


class Normalisation(NamedTuple):
    """Batch normalisation by the batch's own statistics, which the running averages take in, and ReLU."""

    weight: Tensor
    bias: Tensor
    averages: _native_norm.Averages | None
    eps: float
    relu: bool

    def fits(self, channels: int) -> bool:
        """Whether the library can read its vectors, of so many channels."""
        vectors = (self.weight, self.bias, *(self.averages[:2] if self.averages else ()))
        return all(_is_vector(t, channels) for t in vectors)


def batch_norm_relu(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    pool: bool = False,
    relu: bool = True,
    shortcut: Tensor | None = None,
    sums: Tensor | None = None,
) -> Tensor:
    """``F.batch_norm``, then ``F.max_pool2d(y, 2)`` with ``pool``, then ``F.relu``, by the kernels where they serve.

    ``shortcut`` is added before the ReLU: the end of a residual block (He et al. 2016, Fig. 5). Not with ``pool``.

    With ``training`` the batch's statistics are used and the running averages are updated in place, otherwise the averages are
    used. Statistics are accumulated in float64, or come from ``sums`` of x, where the operation that made it has taken them
    (``summed_pointwise``). Differentiable once on the native path.

    Shape: (B, C, H, W) -> (B, C, H, W), or (B, C, H // 2, W // 2) with pool; channels-last.

    Raises:
        ValueError: a shortcut together with ``pool``, or without ``relu``.
    """
    if shortcut is not None and (pool or not relu):
        raise ValueError(f"a shortcut wants relu=True and pool=False, got relu={relu}, pool={pool}")
    lib = _library_taking(x, (weight, bias), (running_mean, running_var), pool, shortcut)
    if lib is not None and weight is not None and bias is not None:
        if training or running_mean is None or running_var is None:
            averages = _averages(running_mean, running_var, momentum)
            y: Tensor = _BatchNormReLU.apply(x, weight, bias, shortcut, averages, eps, pool, relu, sums)
            return y
        if not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias, shortcut))):
            scale = weight.detach() * torch.rsqrt(running_var + eps)
            shift = torch.addcmul(bias.detach(), running_mean, scale, value=-1)
            return _native_norm.norm_apply(lib, dense(x), scale, shift, pool, relu, None if shortcut is None else dense(shortcut))
    if x.is_cuda and training and not is_traced():
        result = _gpu.batch_norm_relu(
            x, weight, bias, running_mean, running_var, momentum=momentum, eps=eps, pool=pool, relu=relu, shortcut=shortcut
        )
        if result is not None:
            return result
    return _reference.batch_norm_relu(
        x,
        weight,
        bias,
        running_mean,
        running_var,
        training=training,
        momentum=momentum,
        eps=eps,
        pool=pool,
        relu=relu,
        shortcut=shortcut,
    )


def _averages(mean: Tensor | None, var: Tensor | None, momentum: float) -> _native_norm.Averages | None:
    return None if mean is None or var is None else _native_norm.Averages(mean, var, momentum)


def _is_vector(t: Tensor | None, channels: int) -> bool:
    """Whether the library can read ``t``: a float32 for each channel, one after the other."""
    return t is not None and t.dtype == torch.float32 and t.shape == (channels,) and t.is_contiguous() and is_plain(t)


def _library_taking(
    x: Tensor,
    affine: tuple[Tensor | None, Tensor | None],
    averages: tuple[Tensor | None, Tensor | None],
    pool: bool,
    shortcut: Tensor | None,
) -> Library | None:
    """The library, if it takes these tensors and nothing is being traced. PyTorch takes the others, or has the words for them."""
    lib = library_for(x)
    if lib is None or x.dtype not in _TYPES or x.dim() != 4 or x.numel() == 0 or is_trifle(x):
        return None
    channels = x.shape[1]
    if not all(_is_vector(t, channels) for t in affine) or not all(t is None or _is_vector(t, channels) for t in averages):
        return None
    if pool and min(x.shape[2:]) < 2:
        return None
    if shortcut is not None and not (is_plain(shortcut) and shortcut.dtype == x.dtype and shortcut.shape == x.shape):
        return None
    return None if x.numel() == channels else lib  # one value a channel has no variance


class _BatchNormReLU(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        shortcut: Tensor | None,
        averages: _native_norm.Averages | None,
        eps: float,
        pool: bool,
        relu: bool,
        sums: Tensor | None,
    ) -> Tensor:
        lib = library()
        assert lib is not None
        x = dense(x)
        more = None if shortcut is None else dense(shortcut)
        y, constants, argmax = _native_norm.norm_forward(lib, x, weight, bias, averages, eps, pool, relu, more, sums)
        ctx.lib, ctx.pool, ctx.relu, ctx.shortcut = lib, pool, relu, shortcut is not None
        ctx.save_for_backward(x, y if relu and (pool or ctx.shortcut) else None, constants, argmax)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, constants, argmax = ctx.saved_tensors
        x, y = dense(x), None if y is None else dense(y)  # hooks of saved tensors may give them back in another layout
        grads = _native_norm.norm_backward(ctx.lib, x, y, constants, argmax, dense(grad), ctx.pool, ctx.relu, ctx.shortcut)
        return *grads, None, None, None, None, None
