"""Kernels for the CPU (C) and NVIDIA GPUs (Triton): depthwise convolution and batch normalisation, forward and backward;
docs/kernels.md tells how they work.

The functions take PyTorch's operations where those are faster, or where the compiled library cannot serve: on other devices, in
other types, without a compiler at installation, without triton. ``why_not_native()`` and ``gpu_path()`` say which;
``use("reference")`` asks for it.
"""

from sepnet.kernels._calls import watching
from sepnet.kernels._choice_pointwise import pooling_is_faster
from sepnet.kernels._depthwise import depthwise_branches, depthwise_by_geometry, depthwise_conv2d, fits, native_for
from sepnet.kernels._geometry import Geometry
from sepnet.kernels._joined import joined_depthwise, joined_separable, joins, joins_pointwise
from sepnet.kernels._library import isa_names, library, use, why_not_native
from sepnet.kernels._multiscale import multiscale_branches
from sepnet.kernels._muon import MOST_STEPS, Iterations, Update, muon_step, same_places
from sepnet.kernels._native_norm import Averages
from sepnet.kernels._norm import Normalisation, batch_norm_relu
from sepnet.kernels._pixels import global_average
from sepnet.kernels._pointwise import pointwise_conv2d, summed_pointwise
from sepnet.kernels._pooled import pooled_pointwise, pools
from sepnet.kernels._processor import processor_has
from sepnet.kernels._status import EXAMPLE_BATCH, KernelPath, calls_by, gpu_path, kernel_paths, kernels_in_use
from sepnet.kernels._tensors import is_plain
from sepnet.kernels._tracing import is_written_down

__all__ = [
    "EXAMPLE_BATCH",
    "MOST_STEPS",
    "Averages",
    "Geometry",
    "Iterations",
    "KernelPath",
    "Normalisation",
    "Update",
    "batch_norm_relu",
    "calls_by",
    "depthwise_branches",
    "depthwise_by_geometry",
    "depthwise_conv2d",
    "fits",
    "global_average",
    "gpu_path",
    "is_plain",
    "is_written_down",
    "isa_names",
    "joined_depthwise",
    "joined_separable",
    "joins",
    "joins_pointwise",
    "kernel_paths",
    "kernels_in_use",
    "library",
    "multiscale_branches",
    "muon_step",
    "native_for",
    "pointwise_conv2d",
    "pooled_pointwise",
    "pooling_is_faster",
    "pools",
    "processor_has",
    "same_places",
    "summed_pointwise",
    "use",
    "watching",
    "why_not_native",
]
