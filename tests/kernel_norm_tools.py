"""Batch normalisation in float64, and how far from it float32 may lead."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kernel_tools import ROUNDING, SMALLEST

U = ROUNDING[torch.float32]


class Exact(NamedTuple):
    """x, gamma, beta, dL/dy and the statistics in float64, a channel's values broadcast against the map."""

    x: Tensor
    gamma: Tensor
    beta: Tensor
    grad: Tensor
    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, x: Tensor, gamma: Tensor, beta: Tensor, grad: Tensor, eps: float) -> Exact:
        x = x.double()
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
        return cls(x, gamma.double()[:, None, None], beta.double()[:, None, None], grad.double(), mean, (variance + eps).sqrt())

    def normalised(self) -> Tensor:
        return (self.x - self.mean) / self.std * self.gamma + self.beta


def average(x: Tensor) -> Tensor:
    return x.mean((0, 2, 3), keepdim=True)


class Slack:
    """How far float32 may lead from the exact results.

    Statistics are sums over lines of up to 4,096 float32 terms, x - x0 and its square, x0 being the channel's first value. A sum of
    n terms is off by about sqrt(n) * u times their magnitudes (Higham and Mary 2019, A new approach to probabilistic rounding error
    analysis), 64 u here. The variance is mean((x - x0)**2) - mean(x - x0)**2: relative to it the error grows by ``spread``.
    """

    def __init__(self, e: Exact) -> None:
        self.e = e
        away = e.x - e.x[:1, :, :1, :1]
        self.mean = U * e.mean.abs() + 64 * U * average(away.abs())
        self.variance = 64 * U * average(away**2) / e.std**2  # relative; the inverse deviation's is half of it

    def y(self) -> Tensor:
        """Of y = x * scale + shift: both constants are rounded, and mean * scale is subtracted from x * scale."""
        e = self.e
        products = (e.x - e.mean).abs() * (self.variance + 4 * U) + 2 * U * (e.x.abs() + e.mean.abs()) + self.mean
        return products * e.gamma.abs() / e.std + 4 * U * e.beta.abs()

    def gradients(self, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of dL/dx, dL/dgamma and dL/dbeta; ``grad``: what passed ReLU and pooling, at x's size."""
        e, count = self.e, grad.numel() // grad.shape[1]
        standard = ((e.x - e.mean) / e.std).abs()
        of_grad, of_product = average(grad.abs()), average(grad.abs() * standard)
        share = 64 * U + 3 * self.variance
        moved = self.mean / e.std
        products = (grad.abs() + of_grad + standard * of_product) * share + moved * (of_product + standard * of_grad)
        of_gamma = count * (of_product * share + moved * of_grad)
        return products * e.gamma.abs() / e.std, of_gamma.flatten(), (count * 64 * U * of_grad).flatten()


def check(name: str, got: Tensor, exact: Tensor, slack: Tensor) -> None:
    limit = slack + ROUNDING[got.dtype] * (exact.abs() + slack) + SMALLEST
    error = (got.double() - exact).abs()
    assert got.shape == exact.shape, name
    assert bool((error <= limit).all()), f"{name}: off by {float((error / limit).max()):.3g} times what rounding allows"


def windows(y: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, H // 2, W // 2, 4); what an odd size leaves over is in no window."""
    return y.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
