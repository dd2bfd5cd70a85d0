"""Which way a depthwise convolution takes on processors of each kind. That the ways agree is tested elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sepnet.kernels import _choice_depthwise, _processor
from sepnet.kernels._choice_depthwise import choose
from sepnet.kernels._geometry import Geometry

FLOAT, BF16 = torch.float32, torch.bfloat16


def plain(kernel: int, dilation: int = 1, stride: int = 1) -> Geometry:
    padding = dilation * (kernel // 2)
    return Geometry((stride, stride), ((kernel, kernel),), ((padding, padding),), ((dilation, dilation),), False)


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """Its instructions, with oneDNN's bf16 where AVX-512 is; "AVX512 pairs" is Zen 4, with the instruction that multiplies pairs
    of it, as has "AVX512 Zen 5", and "AVX512 Intel" has it without gaining by it.
    """
    name, _, pairs = str(request.param).partition(" ")
    monkeypatch.setattr(_choice_depthwise, "is_intel_with_bf16", lambda: pairs == "Intel")
    monkeypatch.setattr(_choice_depthwise, "is_zen5", lambda: pairs == "Zen 5")
    monkeypatch.setattr(_choice_depthwise, "instructions", lambda: name)
    monkeypatch.setattr(_choice_depthwise, "multiplies_pairs", lambda: pairs in ("pairs", "Zen 5"))
    monkeypatch.setattr(_choice_depthwise, "onednn_has", lambda dtype: dtype == FLOAT or name == "AVX512")
    return name


@pytest.mark.parametrize("processor", ["AVX512", "AVX2", "DEFAULT"], indirect=True)
@pytest.mark.parametrize(
    ("geometry", "side", "avx2", "others"),
    [
        (plain(3), 32, False, True),
        (plain(3), 56, False, True),
        (plain(3, stride=2), 32, False, True),
        (plain(3, stride=2, dilation=2), 28, False, True),
        (plain(3, stride=2, dilation=2), 32, False, True),
        (plain(3, dilation=2), 32, False, True),
        (plain(3, dilation=4), 32, False, True),
        (plain(3, dilation=5), 32, False, True),
        (plain(3, dilation=7), 32, False, False),
        (plain(3), 2, False, False),
        (plain(3), 3, False, True),
        (plain(3, dilation=2), 4, False, False),
        (plain(3, dilation=3), 3, False, False),
        (plain(3, dilation=3), 4, False, True),
        (plain(3, dilation=3, stride=2), 6, False, False),
        (plain(3, dilation=3, stride=2), 7, False, True),
        (plain(3, dilation=4), 4, False, False),
        (plain(3, dilation=4), 8, False, True),
        (plain(3, dilation=4, stride=2), 8, False, False),
        (plain(3, dilation=5), 7, False, False),
        (plain(3, dilation=5), 8, False, True),
        (plain(3, dilation=5, stride=2), 14, False, False),
        (plain(3, dilation=5, stride=2), 15, False, True),
        (plain(5, dilation=3), 7, False, False),
        (plain(7, dilation=2), 8, False, True),
        (plain(5), 32, False, True),
        (plain(5), 56, False, True),
        (plain(5, stride=2), 56, False, True),
        (plain(5, dilation=2), 32, False, True),
        (plain(7), 56, False, True),
    ],
    ids=str,
)
def test_forward(processor: str, geometry: Geometry, side: int, avx2: bool, others: bool) -> None:
    wanted = avx2 if processor == "AVX2" else others
    assert _choice_depthwise.torch_forward_is_faster(FLOAT, (8, 64, side, side), geometry) == wanted
    assert _choice_depthwise.torch_forward_is_faster(BF16, (8, 64, side, side), geometry) == (wanted and processor == "AVX512")
    assert not _choice_depthwise.torch_forward_is_faster(FLOAT, (8, 3, side, side), geometry)
    assert not _choice_depthwise.torch_forward_is_faster(FLOAT, (0, 64, side, side), geometry)


@pytest.mark.parametrize(
    ("geometry", "shape", "fp32", "bf16"),
    [
        (plain(3), (128, 192, 16, 16), False, False),  # 12 MiB in bf16
        (plain(3), (127, 192, 16, 16), False, True),
        (plain(3), (128, 128, 14, 14), False, True),
        (plain(3), (128, 128, 16, 16), False, True),
        (plain(3), (128, 191, 32, 32), False, True),
        (plain(3), (128, 512, 16, 16), False, False),
        (plain(3), (256, 128, 16, 16), False, False),  # 16 MiB of results in bf16
        (plain(3), (256, 144, 16, 16), False, True),  # no whole cache lines
        (plain(3), (128, 32, 32, 32), False, True),
        (plain(3), (127, 32, 32, 32), True, True),
        (plain(3), (256, 24, 32, 32), True, True),
        (plain(3, stride=2), (256, 64, 32, 32), False, True),
        (plain(3, stride=2), (255, 64, 32, 32), True, True),  # of the input 64 MiB, of the results less than 16
        (Geometry((1, 1), ((3, 3),), ((0, 0),), ((1, 1),), False), (4, 32, 2, 300), True, True),  # no output: PyTorch refuses
        (plain(3, dilation=2), (128, 64, 32, 32), False, True),
        (plain(3, dilation=2), (128, 32, 32, 32), True, True),
        (plain(3, dilation=2), (128, 272, 32, 32), True, True),
        (plain(3, dilation=3), (128, 64, 32, 32), True, True),
        (plain(3, dilation=2, stride=2), (512, 64, 32, 32), True, True),
        (plain(3), (256, 512, 8, 8), True, True),  # both directions are PyTorch's
        (plain(3), (128, 513, 16, 16), True, True),
        (plain(3), (128, 127, 32, 32), True, True),
        (plain(3, stride=2), (128, 128, 32, 32), False, False),
        (plain(3, stride=2), (127, 128, 32, 32), False, True),
        (plain(3, stride=2, dilation=2), (128, 128, 32, 32), True, True),
        (plain(5), (128, 256, 32, 32), True, True),
        (plain(3, stride=3), (128, 256, 32, 32), True, True),
    ],
    ids=str,
)
@pytest.mark.parametrize("processor", ["AVX512", "DEFAULT"], indirect=True)
def test_forward_on_large_maps(processor: str, geometry: Geometry, shape: tuple[int, ...], fp32: bool, bf16: bool) -> None:
    """PyTorch's is the faster one, but for some with AVX-512."""
    other = processor == "DEFAULT"
    assert _choice_depthwise.torch_forward_is_faster(FLOAT, shape, geometry) == (fp32 or other)
    assert _choice_depthwise.torch_forward_is_faster(BF16, shape, geometry) == (bf16 and not other)


@pytest.mark.parametrize("processor", ["AVX512", "AVX2"], indirect=True)
@pytest.mark.parametrize(
    ("geometry", "side", "avx2", "others"),
    [
        (plain(3), 8, False, True),
        (plain(3), 16, False, False),
        (plain(3, stride=2), 8, False, False),
        (plain(3, stride=2), 56, False, False),
        (plain(3, stride=2, dilation=2), 56, False, False),
        (plain(5, stride=2), 56, False, False),
        (plain(5), 8, False, False),
    ],
    ids=str,
)
def test_backward(processor: str, geometry: Geometry, side: int, avx2: bool, others: bool) -> None:
    wanted = avx2 if processor == "AVX2" else others
    assert _choice_depthwise.torch_backward_is_faster(FLOAT, (8, 64, side, side), geometry) == wanted
    assert _choice_depthwise.torch_backward_is_faster(BF16, (8, 64, side, side), geometry) == (wanted and processor == "AVX512")


@pytest.mark.parametrize("processor", ["AVX512 pairs"], indirect=True)
@pytest.mark.parametrize(
    ("geometry", "shape", "fp32", "bf16"),
    [
        (plain(3), (128, 1024, 4, 4), False, False),
        (plain(3), (8, 64, 16, 16), False, False),
        (plain(3), (128, 64, 27, 27), False, False),
        (plain(3), (128, 64, 28, 28), False, True),  # of 4 MiB and more
        (plain(3), (128, 80, 28, 28), False, False),
        (plain(3), (8, 64, 64, 63), False, False),
        (plain(3, stride=2), (8, 64, 64, 64), False, True),
        (plain(3), (16, 40, 14, 14), True, False),  # under 256 KiB in bf16
        (plain(3), (16, 40, 15, 15), True, True),
        (plain(3), (16, 72, 15, 15), False, True),  # fp32 with many channels
        (plain(3, stride=3), (8, 64, 8, 8), True, True),
        (Geometry((2, 1), ((3, 3),), ((1, 1),), ((1, 1),), False), (8, 64, 8, 8), True, True),
        (Geometry((1, 1), ((3, 3),), ((1, 2),), ((1, 2),), False), (8, 64, 8, 8), True, True),
        (plain(2), (8, 64, 8, 8), True, True),
        (plain(5), (8, 256, 7, 7), True, False),
        (plain(5), (8, 272, 8, 8), False, True),
        (plain(5, stride=2), (8, 1024, 8, 8), False, False),
        (plain(7), (8, 128, 7, 7), True, False),
        (plain(7), (8, 144, 7, 7), True, True),
        (plain(7), (8, 1024, 8, 8), False, False),
        (plain(7, stride=2), (8, 1024, 7, 7), False, False),
        (plain(3, stride=2, dilation=2), (128, 512, 8, 8), False, False),
        (plain(3, stride=2, dilation=2), (128, 1024, 8, 8), True, True),
        (plain(3, dilation=2), (128, 64, 11, 11), False, False),  # under 2 MiB in bf16
        (plain(3, dilation=2), (128, 64, 12, 12), False, True),
        (plain(3, dilation=2), (128, 256, 8, 8), False, False),  # 4 MiB
        (plain(3, dilation=2), (128, 256, 7, 8), False, True),
        (plain(3, dilation=2), (128, 528, 8, 8), False, True),
        (plain(3, dilation=3), (8, 128, 16, 16), False, False),
        (plain(3, dilation=3), (8, 128, 16, 17), False, True),
        (plain(3, dilation=3), (8, 144, 14, 14), False, True),
        (plain(3, dilation=3), (8, 1024, 14, 14), True, True),
        (plain(5, dilation=2), (8, 64, 32, 32), True, True),
        (plain(3), (8, 64, 2, 2), False, False),  # padded too much for oneDNN
    ],
    ids=str,
)
def test_forward_on_zen4(processor: str, geometry: Geometry, shape: tuple[int, ...], fp32: bool, bf16: bool) -> None:
    assert _choice_depthwise.torch_forward_is_faster(FLOAT, shape, geometry) == fp32
    assert _choice_depthwise.torch_forward_is_faster(BF16, shape, geometry) == bf16


@pytest.mark.parametrize("processor", ["AVX512 Zen 5"], indirect=True)
@pytest.mark.parametrize(
    ("geometry", "shape", "fp32", "bf16"),
    [
        (plain(3), (128, 32, 32, 32), False, False),
        (plain(3), (128, 31, 32, 32), False, True),
        (plain(3), (127, 512, 8, 8), False, True),  # less than 8 MiB in bf16
        (plain(3), (128, 512, 8, 8), False, False),
        (plain(3), (8, 511, 7, 7), False, False),
        (plain(3, stride=2), (17, 64, 32, 32), False, False),
        (plain(3, stride=2), (16, 64, 32, 32), True, False),
        (plain(3, stride=3), (128, 64, 32, 32), True, True),
        (plain(5), (128, 64, 8, 8), False, False),
        (plain(7, stride=2), (128, 64, 16, 16), False, False),
        (plain(4), (128, 64, 16, 16), True, True),
        (plain(1), (128, 64, 16, 16), True, True),
        (plain(3, dilation=3), (128, 64, 16, 16), False, False),
        (plain(3, dilation=3), (128, 65, 16, 16), True, True),
        (plain(3, dilation=3), (128, 64, 16, 15), True, True),
        (plain(3, dilation=4), (128, 64, 16, 16), False, True),
        (plain(3, dilation=6), (128, 64, 16, 16), True, True),
        (plain(3, dilation=7), (128, 64, 32, 32), False, False),  # padded too much for oneDNN
        (plain(3, stride=2, dilation=2), (128, 64, 32, 32), True, True),
        (plain(5, dilation=2), (128, 64, 32, 32), True, True),
    ],
    ids=str,
)
def test_forward_on_zen5(processor: str, geometry: Geometry, shape: tuple[int, ...], fp32: bool, bf16: bool) -> None:
    assert _choice_depthwise.torch_forward_is_faster(FLOAT, shape, geometry) == fp32
    assert _choice_depthwise.torch_forward_is_faster(BF16, shape, geometry) == bf16


@pytest.mark.parametrize("processor", ["AVX512 Intel"], indirect=True)
@pytest.mark.parametrize(
    ("geometry", "shape", "fp32", "bf16"),
    [
        (plain(3), (128, 64, 8, 8), False, False),
        (plain(3), (128, 128, 8, 8), False, False),
        (plain(3), (128, 128, 8, 9), True, False),  # over 4 MiB in fp32, on a map that is not small
        (plain(3), (8, 128, 28, 28), False, False),
        (plain(3), (8, 256, 28, 28), True, True),
        (plain(3), (16, 64, 32, 33), True, True),  # over 2 MiB in bf16, of few images
        (plain(3), (128, 64, 16, 16), False, False),  # 8 MiB in fp32
        (plain(3), (128, 128, 16, 16), False, False),  # 8 MiB in bf16
        (plain(3), (128, 64, 32, 32), False, True),
        (plain(3), (16, 64, 64, 64), True, True),
        (plain(3), (16, 128, 64, 64), False, True),
        (plain(3, stride=2), (128, 64, 8, 8), False, False),
        (plain(3, stride=2), (128, 256, 8, 8), False, False),
        (plain(3, stride=2), (128, 512, 8, 8), True, False),
        (plain(3, stride=2), (8, 512, 14, 14), False, False),
        (plain(3, stride=2), (8, 256, 28, 28), True, True),
        (plain(3, stride=3), (8, 64, 8, 8), True, True),
        (Geometry((2, 1), ((3, 3),), ((1, 1),), ((1, 1),), False), (8, 64, 8, 8), True, True),
        (Geometry((1, 1), ((3, 3),), ((1, 2),), ((1, 2),), False), (8, 64, 8, 8), True, True),
        (plain(2), (8, 64, 8, 8), True, True),
        (plain(3, dilation=2), (128, 512, 8, 8), False, False),
        (plain(3, dilation=2), (8, 256, 28, 28), True, False),
        (plain(3, stride=2, dilation=2), (128, 256, 32, 32), False, False),
        (plain(3, stride=2, dilation=2), (8, 256, 56, 56), False, False),
        (plain(3, stride=2, dilation=2), (8, 1024, 14, 14), False, False),
        (plain(3, stride=2, dilation=2), (128, 1024, 8, 8), True, False),
        (plain(3, dilation=5), (8, 64, 16, 16), False, False),
        (plain(3, dilation=5, stride=2), (8, 64, 16, 16), False, True),
        (plain(3, dilation=5), (16, 64, 17, 17), True, False),
        (plain(3, dilation=5), (128, 128, 16, 16), False, True),
        (plain(3, dilation=5), (128, 64, 32, 32), True, False),
        (plain(3, dilation=5, stride=2), (128, 64, 8, 8), False, False),  # padded too much for oneDNN
        (plain(5), (128, 64, 32, 32), False, False),
        (plain(5), (128, 128, 8, 8), False, False),
        (plain(5), (128, 128, 8, 9), True, False),
        (plain(5), (8, 128, 56, 56), False, True),
        (plain(5, stride=2), (128, 512, 16, 16), True, False),
        (plain(7), (128, 64, 16, 16), True, False),
        (plain(7), (128, 32, 16, 16), False, False),
        (plain(7), (128, 128, 16, 16), False, False),
    ],
    ids=str,
)
def test_forward_on_intel(processor: str, geometry: Geometry, shape: tuple[int, ...], fp32: bool, bf16: bool) -> None:
    assert _choice_depthwise.torch_forward_is_faster(FLOAT, shape, geometry) == fp32
    assert _choice_depthwise.torch_forward_is_faster(BF16, shape, geometry) == bf16


@pytest.mark.parametrize("processor", ["AVX512 pairs", "AVX512 Zen 5", "AVX512 Intel"], indirect=True)
@pytest.mark.parametrize("side", [4, 5, 8])
def test_backward_on_amd_and_intel_with_bf16(processor: str, side: int) -> None:
    """There ours is always the faster one, and may share passes over memory with the normalisations beside it."""
    for dtype in (FLOAT, BF16):
        assert not _choice_depthwise.torch_backward_is_faster(dtype, (8, 64, side, side), plain(3))


@pytest.mark.parametrize("processor", ["AVX2"], indirect=True)
@pytest.mark.parametrize(
    ("geometry", "shape", "torchs"),
    [
        (plain(3), (8, 31, 112, 112), True),
        (plain(3), (8, 32, 112, 112), False),
        (plain(3), (128, 1024, 4, 4), False),
        (plain(2), (8, 64, 32, 32), True),
        (plain(3, stride=3), (8, 64, 32, 32), True),
        (plain(3, stride=2), (8, 32, 31, 32), False),
        (plain(5, stride=2), (8, 32, 32, 32), True),
        (plain(3, stride=2), (8, 33, 32, 32), False),
        (plain(3, stride=2), (8, 31, 14, 14), True),
        (plain(3, stride=2), (8, 32, 31, 31), False),
        (plain(3, stride=2), (8, 1024, 14, 14), False),
        (plain(3, stride=2), (128, 1025, 28, 28), True),
        (plain(3, stride=2), (8, 1023, 14, 14), False),
        (plain(5, stride=2), (8, 1024, 14, 14), False),
        (plain(3, stride=2, dilation=2), (128, 128, 8, 8), False),
        (plain(3, stride=2, dilation=2), (128, 129, 7, 7), True),
        (plain(3, stride=2, dilation=2), (8, 16, 28, 28), False),
        (plain(3, stride=2, dilation=2), (128, 256, 8, 16), False),
        (plain(3, stride=2, dilation=2), (128, 256, 7, 16), False),
        (plain(3, stride=2, dilation=2), (128, 257, 14, 14), True),
        (plain(3, stride=2, dilation=2), (128, 1024, 14, 14), False),
        (plain(3, dilation=2), (128, 64, 16, 16), False),  # 8 MiB
        (plain(3, dilation=4), (128, 64, 16, 16), False),
        (plain(3, dilation=4), (127, 65, 16, 16), False),
        (plain(3, dilation=4), (126, 65, 16, 16), True),
        (plain(3, dilation=4), (1, 8, 16, 16), False),
        (plain(3, dilation=2), (512, 47, 16, 16), True),
        (plain(3, dilation=2), (512, 49, 16, 16), False),
        (plain(3, dilation=2), (128, 255, 16, 16), False),
        (plain(3, dilation=2), (128, 257, 16, 16), True),
        (plain(3, dilation=3, stride=2), (128, 128, 32, 32), False),
        (plain(3, dilation=3, stride=2), (128, 129, 32, 32), True),
        (Geometry((2, 2), ((3, 3),), ((3, 2),), ((3, 2),), False), (128, 128, 32, 32), True),
        (Geometry((1, 2), ((3, 3),), ((3, 3),), ((3, 3),), False), (128, 128, 32, 32), True),
        (plain(5, dilation=2), (128, 128, 32, 32), False),
        (plain(5, dilation=2), (128, 127, 32, 32), True),
        (plain(5, stride=2, dilation=2), (8, 64, 32, 32), False),
        (Geometry((1, 1), ((5, 5),), ((3, 3),), ((2, 2),), False), (128, 128, 32, 32), True),
        (plain(5), (8, 16, 14, 14), False),
        (Geometry((2, 2), ((7, 7),), ((3, 3),), ((2, 2),), False), (8, 16, 28, 28), False),
    ],
    ids=str,
)
def test_forward_with_avx2(processor: str, geometry: Geometry, shape: tuple[int, ...], torchs: bool) -> None:
    assert _choice_depthwise.torch_forward_is_faster(FLOAT, shape, geometry) == torchs


def test_the_choice_is_kept_for_each_type_shape_and_geometry() -> None:
    for dtype in (FLOAT, BF16):
        for shape in ((8, 64, 32, 32), (8, 64, 8, 8), (8, 3, 32, 32)):
            for geometry in (plain(3), plain(3, dilation=7), plain(3, stride=2)):
                directions = (_choice_depthwise.torch_forward_is_faster, _choice_depthwise.torch_backward_is_faster)
                wanted = tuple(faster(dtype, shape, geometry) for faster in directions)
                assert choose(dtype, shape, geometry) == wanted
                assert choose(dtype, torch.Size(shape), geometry) is choose(dtype, shape, geometry)


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="no /proc/cpuinfo here")
def test_this_processor_has_a_name() -> None:
    told = Path("/proc/cpuinfo").read_text()
    assert _processor.instructions() == torch.backends.cpu.get_cpu_capability()
    intel = "GenuineIntel" in told
    assert _processor.multiplies_pairs() == ("avx512_bf16" in told and not intel)
    assert _processor.is_intel_with_bf16() == ("avx512_bf16" in told and intel)
    assert _processor.processor_has("amx_bf16") == ("amx_bf16" in told)
    assert _processor.is_zen5() == ("avx512_bf16" in told and "avx512_vp2intersect" in told and not intel)
