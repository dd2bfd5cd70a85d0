"""What a network costs: parameters and multiply-accumulates, in all and layer by layer, and time."""

from sepnet.measure.counts import Counts, LayerCounts, count
from sepnet.measure.latency import Latency, measure_latency

__all__ = ["Counts", "Latency", "LayerCounts", "count", "measure_latency"]
