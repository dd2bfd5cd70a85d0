"""Which networks are worth their cost: the Pareto front of accuracy against one cost."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["pareto_front"]


def pareto_front(costs: Sequence[float], values: Sequence[float]) -> tuple[bool, ...]:
    """For each point, whether it is on the front: no other is at least as cheap and at least as good, and better in one of the two.

    Points that are equal in both are on the front together, or not at all.

    Args:
        costs: less is better (parameters, MACs, milliseconds).
        values: more is better (accuracy); as many as costs.

    Raises:
        ValueError: sequences of different lengths, or a figure that is not a number: it could not be ranked.
    """
    points = list(zip(costs, values, strict=True))
    if any(number != number for point in points for number in point):
        raise ValueError("a figure that is not a number has no place among the others")
    best: float | None = None  # value of the best point among the cheaper ones
    front = [False] * len(points)
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    start = 0
    while start < len(order):
        cost, top = points[order[start]]  # the best of those with this cost comes first
        end = start
        while end < len(order) and points[order[end]][0] == cost:
            front[order[end]] = points[order[end]][1] == top and (best is None or top > best)
            end += 1
        best = top if best is None else max(best, top)
        start = end
    return tuple(front)
