"""Batch normalisation together with what follows it in these networks: ReLU, and 2x2 max pooling before it."""

from __future__ import annotations

from torch import Tensor, nn

from sepnet.kernels import Averages, Normalisation, batch_norm_relu

__all__ = ["BatchNormReLU"]


class BatchNormReLU(nn.BatchNorm2d):
    """Batch normalisation, 2x2 max pooling (with ``pool``), ReLU: one module, so that one pass over the memory can do it.

    Pooling stands before the ReLU, where the ReLU costs a quarter: the two commute, values and gradients alike, because ReLU
    is monotone. The state dict is that of ``nn.BatchNorm2d``.

    Args:
        relu: False for a map that ends without one: the last of a residual block, to which the shortcut is handed.

    Shape: (B, C, H, W) -> (B, C, H, W), or (B, C, H//2, W//2) with pool.
    """

    def __init__(self, num_features: int, *, eps: float = 1e-5, pool: bool = False, relu: bool = True) -> None:
        super().__init__(num_features, eps=eps)
        self.pool, self.relu = pool, relu

    @property
    def uses_batch(self) -> bool:
        """Whether it normalises by the batch's statistics, with weight and bias."""
        return self.affine and (self.training or self.running_mean is None)

    def normalisation(self) -> Normalisation:
        """What the kernels need to know of a layer that ``uses_batch``. Who applies it calls ``count_batch``."""
        mean, var = self.running_mean, self.running_var
        averages = None if mean is None or var is None else Averages(mean, var, self._momentum())
        return Normalisation(self.weight, self.bias, averages, self.eps, self.relu)

    def count_batch(self) -> None:
        """In training: one more batch is in the running averages."""
        if self.training and (counted := self.num_batches_tracked) is not None:
            counted.add_(1)

    def _momentum(self) -> float:
        """The share of the next batch in the running averages."""
        if self.momentum is None and self.training and self.num_batches_tracked is not None:
            return 1.0 / (float(self.num_batches_tracked) + 1.0)  # the plain average of all batches
        return self.momentum if self.momentum is not None else 0.0

    def forward(self, x: Tensor, shortcut: Tensor | None = None, sums: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), or (B, C, H//2, W//2) with pool. With a ``shortcut`` of x's shape: ReLU of their sum.
        ``sums``: of x, where they are known (``sepnet.kernels.summed_pointwise``).
        """
        momentum = self._momentum()
        self.count_batch()
        return batch_norm_relu(
            x,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            training=self.training or self.running_mean is None,
            momentum=momentum,
            eps=self.eps,
            pool=self.pool,
            relu=self.relu or shortcut is not None,
            shortcut=shortcut,
            sums=sums,
        )
