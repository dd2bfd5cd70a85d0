"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): momentum SGD whose update of each weight matrix is made orthogonal.

The hidden matrices (pointwise and standard convolutions, hidden linear layers) take orthogonalised steps; the rest
(vectors, depthwise kernels, the classifier) takes Nesterov SGD in the same optimiser. torch.optim.Muon admits
matrices of two dimensions only, so it cannot train the convolutions; the update here is the same (momentum as an
exponential mean, Nesterov, decoupled weight decay, step scaled by sqrt(max(1, rows / columns))), except that three
Newton-Schulz iterations are enough here and halve its cost, and that those of a wide matrix run on its Gram matrix, as all do where
the kernels serve (LOG.md). They run in bf16 where the device computes in it, else in float32; on a GPU those of matrices of about
one size together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from sepnet.engine.devices import prefers_bf16
from sepnet.kernels import MOST_STEPS, Iterations, Update, is_plain, muon_step, same_places

__all__ = ["Muon", "orthogonalise"]

# quintic iteration that lifts small singular values fastest (Jordan et al. 2024): a X + b (X X^T) X + c (X X^T)^2 X
QUINTIC = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 3
ON_GRAM = MOST_STEPS  # on the Gram matrix


def orthogonalise(matrix: Tensor, steps: int = NEWTON_SCHULZ_STEPS) -> Tensor:
    """A matrix near U V^T of ``matrix`` = U S V^T, by Newton-Schulz iterations in bf16; in float32 where bf16 is slow.

    Shape: (rows, columns) -> (rows, columns), or a stack of them (n, rows, columns); singular values come to lie about 1,
    between 0.3 and 1.5 where the matrix is well conditioned. A matrix of zeros stays zero. The result is of the type
    iterated in; by the kernels, of the matrix's own.
    """
    iterations = _iterations(matrix.device, steps)
    if matrix.ndim == 2 and not (matrix.requires_grad and torch.is_grad_enabled()):
        direction = torch.empty_like(matrix)
        if not muon_step([Update(direction, matrix, None, 1.0)], iterations):
            return direction
    x = matrix.to(iterations.dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    on_gram = min(steps, ON_GRAM) if x.shape[-1] >= 2 * x.shape[-2] else 0
    if on_gram:
        x = _iterate_gram(x, on_gram)
    x = _iterate(x, steps - on_gram)
    return x.mT if tall else x


def _iterations(device: torch.device, steps: int = NEWTON_SCHULZ_STEPS) -> Iterations:
    return Iterations(*QUINTIC, steps, torch.bfloat16 if prefers_bf16(device) else torch.float32)


def _iterate(x: Tensor, steps: int) -> Tensor:
    a, b, c = QUINTIC
    for _ in range(steps):
        gram = x @ x.mT
        x = _add_product(x, _add_product(gram, gram, gram, b, c), x, a)
    return x


def _iterate_gram(x: Tensor, steps: int) -> Tensor:
    """The same for a wide matrix, on its small Gram matrix: the large one is read twice in all instead of twice a step.

    A step multiplies X by the polynomial a (I + P) of its Gram matrix G, P = (b G + c G G) / a, and so G by its square. The
    identity is kept out of every stored matrix: within bf16's 8 bits it would drown what is small beside it.
    """
    a, b, c = QUINTIC
    gram = x @ x.mT
    product = torch.zeros_like(gram)  # all steps so far: a^k (I + product)
    for step in range(steps):
        p = _add_product(gram, gram, gram, b / a, c / a)
        product = _add_product(product + p, product, p) if step else p
        if step + 1 < steps:
            half = _add_product(gram, gram, p)
            gram = _add_product(half, p, half, a * a, a * a)
    return _add_product(x, product, x, a**steps, a**steps)


def _add_product(x: Tensor, left: Tensor, right: Tensor, beta: float = 1.0, alpha: float = 1.0) -> Tensor:
    """beta x + alpha (left @ right), of matrices or of stacks of them."""
    add = torch.addmm if x.ndim == 2 else torch.baddbmm
    return add(x, left, right, beta=beta, alpha=alpha)


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for groups with ``orthogonal``, Nesterov SGD for the others.

    Args:
        groups: parameter groups, each with lr, momentum, weight_decay and orthogonal. Weight decay is decoupled (times
            lr) for orthogonal groups and added to the gradient for the others, as in torch's SGD.

    Weights of more than two dimensions are taken as matrices (out_channels, all the rest).
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.0, "orthogonal": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                (self._orthogonal if group["orthogonal"] else self._sgd)(group, params)
        return loss

    def _orthogonal(self, group: dict[str, Any], params: list[Tensor]) -> None:
        gradients, means = self._gradients_and_buffers(params)
        lr = group["lr"]
        if not isinstance(lr, Tensor):
            rates = [-lr * _factor(p) for p in params]
            updates = list(map(Update, params, gradients, means, rates))
            keep = 1 - lr * group["weight_decay"]
            left = muon_step(updates, _iterations(params[0].device), momentum=group["momentum"], keep=keep)
            if not left:
                return
            params, gradients, means = (
                [u.weight for u in left],
                [u.gradient for u in left],
                [u.mean for u in left if u.mean is not None],
            )
        self._orthogonal_by_torch(group, params, gradients, means)

    def _orthogonal_by_torch(
        self, group: dict[str, Any], params: list[Tensor], gradients: list[Tensor], means: list[Tensor]
    ) -> None:
        lr, momentum = group["lr"], group["momentum"]
        torch._foreach_lerp_(means, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(gradients, means, momentum)
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        for p, direction in zip(params, _directions(ahead), strict=True):
            rate = -lr * _factor(p)
            if isinstance(rate, Tensor):  # of a step that is recorded: it must stay on its device
                p.add_(direction.to(p.dtype) * rate)  # not rounded to bf16 once more
            else:
                p.add_(direction, alpha=rate)

    def _sgd(self, group: dict[str, Any], params: list[Tensor]) -> None:
        momentum, decay, lr = group["momentum"], group["weight_decay"], group["lr"]
        gradients, buffers = self._gradients_and_buffers(params)
        if not isinstance(lr, Tensor) and all(map(_is_in_memory, params, gradients, buffers)):
            kept = buffers if momentum else []  # it refuses what it does not need
            torch._fused_sgd_(
                params, gradients, kept, weight_decay=decay, momentum=momentum, lr=lr, dampening=0.0, nesterov=momentum > 0,
                maximize=False, is_first_step=False,
            )  # fmt: skip
            torch.autograd.graph.increment_version([*params, *kept])  # which it leaves to its caller
            return
        if decay:
            gradients = list(torch._foreach_add(gradients, params, alpha=decay))
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
        ahead = torch._foreach_add(gradients, buffers, alpha=momentum)
        if isinstance(lr, Tensor):
            torch._foreach_mul_(ahead, -lr)
            torch._foreach_add_(params, ahead)
        else:
            torch._foreach_add_(params, ahead, alpha=-lr)

    def _gradients_and_buffers(self, params: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return [p.grad for p in params if p.grad is not None], [self.state[p]["momentum_buffer"] for p in params]


def _factor(p: Tensor) -> float:
    """Of the rate of a weight's step, by its shape."""
    return float(max(1.0, p.shape[0] / (p.numel() // p.shape[0])) ** 0.5)


def _is_in_memory(*tensors: Tensor) -> bool:
    """Whether a fused update on a CPU, which goes through all of them in the order of their values in memory, takes them."""
    return all(is_plain(t) and t.dtype == torch.float32 for t in tensors) and same_places(*tensors)


def _directions(updates: Sequence[Tensor]) -> list[Tensor]:
    """Each update made orthogonal, in its own shape."""
    if not updates[0].is_cuda:  # a processor is busy with one matrix at a time
        return [orthogonalise(u.flatten(1)).view(u.shape) for u in updates]
    return _directions_together(updates)


def _directions_together(updates: Sequence[Tensor]) -> list[Tensor]:
    """The same for a device whose time is in the number of calls: matrices of about one size go through in one stack.

    Each is padded with zeros, which the iterations leave zero, and lies with its longer side across.
    """
    matrices = [m.T if m.shape[0] > m.shape[1] else m for m in (u.flatten(1) for u in updates)]
    members: dict[tuple[int, int], list[int]] = {}
    for i, (rows, columns) in enumerate(m.shape for m in matrices):
        members.setdefault((_rounded(rows), _rounded(columns)), []).append(i)
    found = list(updates)
    for (rows, columns), group in members.items():
        stack = updates[0].new_zeros(len(group), rows, columns)
        for place, i in zip(stack, group, strict=True):
            place[: matrices[i].shape[0], : matrices[i].shape[1]] = matrices[i]
        for direction, i in zip(orthogonalise(stack), group, strict=True):
            own = direction[: matrices[i].shape[0], : matrices[i].shape[1]]
            tall = updates[i].flatten(1).shape != matrices[i].shape
            found[i] = (own.T if tall else own).reshape(updates[i].shape)
    return found


def _rounded(side: int) -> int:
    """Sides that are padded to one length: up to 256, then the next power of two."""
    return max(256, 1 << (side - 1).bit_length())
