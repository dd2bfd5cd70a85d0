"""Learning-rate schedules as one pure function of the iteration, so that resuming needs no state.

Triangular: linear warm-up, then linear decay (Smith 2017, arXiv:1506.01186, one cycle of it). Cosine: Loshchilov & Hutter
2017, arXiv:1608.03983, without restarts.
"""

from __future__ import annotations

import math

from sepnet.engine.config import FitConfig

__all__ = ["lr_factor"]


def lr_factor(config: FitConfig, iteration: int, total: int) -> float:
    """Learning rate of ``iteration`` (0 is the first) as a fraction of ``config.lr``; between 0 and 1.

    In the warm-up it rises linearly and reaches 1 at its last step; the first step is already above 0. The decaying
    schedules reach ``final_lr`` one step after the last, so no step is wasted on a rate of 0.
    """
    warm = round(config.warmup * total)
    if iteration < warm:
        return (iteration + 1) / warm
    progress = (iteration - warm) / max(1, total - warm)
    if config.sched == "constant":
        return 1.0
    if config.sched == "step":
        return config.step_gamma ** sum(iteration >= at * total for at in config.step_at)
    falling = 1 - progress if config.sched == "triangular" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.final_lr + (1 - config.final_lr) * falling
