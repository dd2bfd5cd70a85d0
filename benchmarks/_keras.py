"""The peer in Keras: a described network (``_describe``) of Keras' own layers, channels last, as Keras has them by default.

Needs neither torch nor sepnet, so that TensorFlow may live in an environment of its own. Keras pads a strided convolution of
padding "same" on the right and below, PyTorch on both sides: the same work on maps of the same size.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import tensorflow as tf
from keras import layers as L

__all__ = ["keras_network", "set_threads", "versions"]

Layer = dict[str, Any]


def set_threads(threads: int) -> None:
    """Before anything is computed."""
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


def versions() -> dict[str, str]:
    return {"tensorflow": tf.__version__, "keras": keras.__version__}


def _conv(layer: Layer, x: Any) -> Any:
    kernel, stride, padding, dilation = layer["kernel"], layer["stride"], layer["padding"], layer["dilation"]
    keeps_size = all(2 * p == d * (k - 1) for p, d, k in zip(padding, dilation, kernel, strict=True))
    if not keeps_size and any(padding):
        x = L.ZeroPadding2D(tuple(padding))(x)
    strided_and_dilated = (
        max(stride) > 1 and max(dilation) > 1
    )  # Keras has not got both: all is computed, three of four are dropped
    settings: dict[str, Any] = {
        "strides": (1, 1) if strided_and_dilated else tuple(stride),
        "dilation_rate": tuple(dilation),
        "padding": "same" if keeps_size else "valid",
        "use_bias": layer["bias"],
    }
    if layer["groups"] == layer["in_channels"]:
        x = L.DepthwiseConv2D(tuple(kernel), depth_multiplier=layer["out_channels"] // layer["groups"], **settings)(x)
    else:
        x = L.Conv2D(layer["out_channels"], tuple(kernel), groups=layer["groups"], **settings)(x)
    return x[:, :: stride[0], :: stride[1]] if strided_and_dilated else x


def _maxpool(layer: Layer, x: Any) -> Any:
    return L.MaxPooling2D(layer["kernel"], layer["stride"], padding="same" if layer["padding"] else "valid")(x)


def _branches(layer: Layer, x: Any) -> list[Any]:
    return [_apply(branch, x) for branch in layer["branches"]]


OPS = {
    "conv": _conv,
    "bn": lambda layer, x: L.BatchNormalization(momentum=1 - layer["momentum"], epsilon=layer["eps"])(x),
    "relu": lambda _, x: L.ReLU()(x),
    "maxpool": _maxpool,
    "gap": lambda _, x: L.GlobalAveragePooling2D()(x),
    "flatten": lambda _, x: L.Flatten()(x),
    "dropout": lambda layer, x: L.Dropout(layer["rate"])(x),
    "linear": lambda layer, x: L.Dense(layer["out_features"], use_bias=layer["bias"])(x),
    "sum": lambda layer, x: L.Add()(_branches(layer, x)),
    "concat": lambda layer, x: L.Concatenate()(_branches(layer, x)),
}


def _apply(layers: list[Layer], x: Any) -> Any:
    for layer in layers:
        x = OPS[layer["op"]](layer, x)
    return x


def keras_network(layers: list[Layer], size: int, channels: int = 3) -> Any:
    """The Keras model of ``layers`` for images (size, size, channels), with random weights."""
    image = keras.Input((size, size, channels))
    return keras.Model(image, _apply(layers, image))
