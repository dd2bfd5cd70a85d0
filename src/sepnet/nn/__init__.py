"""Building blocks: convolution units and heads that the networks are made of."""

from sepnet.nn.conv import ConvBNReLU, DepthwiseConv2d, depthwise
from sepnet.nn.fire import Fire
from sepnet.nn.head import FlattenMLPHead, PoolHead
from sepnet.nn.inception import AuxiliaryHead, Inception
from sepnet.nn.multiscale import MultiScaleUnit
from sepnet.nn.norm import BatchNormReLU
from sepnet.nn.residual import Bottleneck
from sepnet.nn.separable import DilatedSeparableBlock, SeparableBlock
from sepnet.nn.units import InceptionUnit, SeparableUnit, StandardUnit

__all__ = [
    "AuxiliaryHead",
    "BatchNormReLU",
    "Bottleneck",
    "ConvBNReLU",
    "DepthwiseConv2d",
    "DilatedSeparableBlock",
    "Fire",
    "FlattenMLPHead",
    "Inception",
    "InceptionUnit",
    "MultiScaleUnit",
    "PoolHead",
    "SeparableBlock",
    "SeparableUnit",
    "StandardUnit",
    "depthwise",
]
