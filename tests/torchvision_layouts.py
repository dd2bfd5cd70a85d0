"""Names and shapes of torchvision's published weight files, from the architectures' tables; nothing here is sepnet's.

The sums of the sizes are checked against the parameter counts that torchvision publishes beside each file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Shapes = dict[str, tuple[int, ...]]

CLASSES = 1000


def convolution(key: str, outputs: int, inputs: int, kernel: int, bias: bool = False) -> Shapes:
    shapes: Shapes = {f"{key}.weight": (outputs, inputs, kernel, kernel)}
    return shapes | ({f"{key}.bias": (outputs,)} if bias else {})


def normalisation(key: str, channels: int) -> Shapes:
    vectors: Shapes = {f"{key}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}
    return vectors | {f"{key}.num_batches_tracked": ()}


def linear(key: str, outputs: int, inputs: int) -> Shapes:
    return {f"{key}.weight": (outputs, inputs), f"{key}.bias": (outputs,)}


def residual(blocks: Sequence[int], groups: int, width_of_group: int) -> Shapes:
    shapes = convolution("conv1", 64, 3, 7) | normalisation("bn1", 64)
    inputs = 64
    for stage, count in enumerate(blocks):
        planes = 64 * 2**stage
        width, outputs = groups * width_of_group * 2**stage, 4 * planes
        for block in range(count):
            key = f"layer{stage + 1}.{block}"
            shapes |= convolution(f"{key}.conv1", width, inputs, 1) | normalisation(f"{key}.bn1", width)
            shapes |= convolution(f"{key}.conv2", width, width // groups, 3) | normalisation(f"{key}.bn2", width)
            shapes |= convolution(f"{key}.conv3", outputs, width, 1) | normalisation(f"{key}.bn3", outputs)
            if block == 0:
                shapes |= convolution(f"{key}.downsample.0", outputs, inputs, 1) | normalisation(f"{key}.downsample.1", outputs)
            inputs = outputs
    return shapes | linear("fc", CLASSES, 2048)


def vgg() -> Shapes:
    """Configuration D: the numbers of its convolutions among torchvision's ``features``, with their output channels."""
    places = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256, 17: 512, 19: 512, 21: 512, 24: 512, 26: 512, 28: 512}
    shapes: Shapes = {}
    inputs = 3
    for place, outputs in places.items():
        shapes |= convolution(f"features.{place}", outputs, inputs, 3, bias=True)
        inputs = outputs
    for place, (outputs, inputs) in {0: (4096, 512 * 7 * 7), 3: (4096, 4096), 6: (CLASSES, 4096)}.items():
        shapes |= linear(f"classifier.{place}", outputs, inputs)
    return shapes


# place among torchvision's ``features``: input channels, squeeze, expand
FIRE = {
    3: (96, 16, 64),
    4: (128, 16, 64),
    5: (128, 32, 128),
    7: (256, 32, 128),
    8: (256, 48, 192),
    9: (384, 48, 192),
    10: (384, 64, 256),
    12: (512, 64, 256),
}


def squeeze() -> Shapes:
    shapes = convolution("features.0", 96, 3, 7, bias=True)
    for place, (inputs, narrow, wide) in FIRE.items():
        shapes |= convolution(f"features.{place}.squeeze", narrow, inputs, 1, bias=True)
        shapes |= convolution(f"features.{place}.expand1x1", wide, narrow, 1, bias=True)
        shapes |= convolution(f"features.{place}.expand3x3", wide, narrow, 3, bias=True)
    return shapes | convolution("classifier.1", CLASSES, 512, 1, bias=True)


def unit(key: str, outputs: int, inputs: int, kernel: int) -> Shapes:
    return convolution(f"{key}.conv", outputs, inputs, kernel) | normalisation(f"{key}.bn", outputs)


# input channels, 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pooled
INCEPTION = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}


def inception() -> Shapes:
    """With auxiliary heads; the kernel of the third branch is 3x3 in torchvision's file."""
    shapes = unit("conv1", 64, 3, 7) | unit("conv2", 64, 64, 1) | unit("conv3", 192, 64, 3)
    for name, (inputs, one, reduce3, three, reduce5, five, pooled) in INCEPTION.items():
        key = f"inception{name}"
        shapes |= unit(f"{key}.branch1", one, inputs, 1)
        shapes |= unit(f"{key}.branch2.0", reduce3, inputs, 1) | unit(f"{key}.branch2.1", three, reduce3, 3)
        shapes |= unit(f"{key}.branch3.0", reduce5, inputs, 1) | unit(f"{key}.branch3.1", five, reduce5, 3)
        shapes |= unit(f"{key}.branch4.1", pooled, inputs, 1)
    for key, inputs in (("aux1", 512), ("aux2", 528)):
        shapes |= unit(f"{key}.conv", 128, inputs, 1) | linear(f"{key}.fc1", 1024, 2048) | linear(f"{key}.fc2", CLASSES, 1024)
    return shapes | linear("fc", CLASSES, 1024)


LAYOUTS: dict[str, Callable[[], Shapes]] = {
    "resnet50": lambda: residual((3, 4, 6, 3), 1, 64),
    "resnet101": lambda: residual((3, 4, 23, 3), 1, 64),
    "resnext50_32x4d": lambda: residual((3, 4, 6, 3), 32, 4),
    "vgg16": vgg,
    "squeezenet": squeeze,
    "googlenet": inception,
}

# "num_params" beside the files' addresses; GoogLeNet's is without the auxiliary heads
PUBLISHED = {
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnext50_32x4d": 25_028_904,
    "vgg16": 138_357_544,
    "squeezenet": 1_248_424,
    "googlenet": 6_624_904,
}
