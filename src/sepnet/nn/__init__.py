"""Building blocks: convolution units and heads that the networks are made of."""

from sepnet.nn.conv import ConvBNReLU, DepthwiseConv2d, depthwise
from sepnet.nn.head import FlattenMLPHead
from sepnet.nn.multiscale import MultiScaleUnit
from sepnet.nn.norm import BatchNormReLU
from sepnet.nn.units import InceptionUnit, SeparableUnit, StandardUnit

__all__ = [
    "BatchNormReLU",
    "ConvBNReLU",
    "DepthwiseConv2d",
    "FlattenMLPHead",
    "InceptionUnit",
    "MultiScaleUnit",
    "SeparableUnit",
    "StandardUnit",
    "depthwise",
]
