"""What a network costs: parameters and multiply-accumulates, in all and layer by layer."""

from sepnet.measure.counts import Counts, LayerCounts, count

__all__ = ["Counts", "LayerCounts", "count"]
