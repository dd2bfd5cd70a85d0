"""Finding, choosing and loading the library: with a compiler, without, with a broken file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

import sepnet
from cli_runner import invoke
from kernel_tools import ISAS, LIBRARY, instruction_set, needs_library
from sepnet import kernels
from sepnet.errors import ConfigError
from sepnet.kernels import _library

PACKAGE = Path(sepnet.__file__).parent
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler here")


def nothing_chosen() -> dict[str, str]:
    """The environment without what chooses instructions or kernels."""
    chosen = ("ATEN_CPU_CAPABILITY", "SEPNET_KERNELS", "SEPNET_KERNELS_ISA")
    return {name: value for name, value in os.environ.items() if name not in chosen}


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The library is looked for anew, with nothing set in the environment."""
    for name in ("SEPNET_KERNELS", "SEPNET_KERNELS_ISA"):
        monkeypatch.delenv(name, raising=False)
    # Caches of their own, not emptied ones: the object that other tests know must be the library's again afterwards.
    monkeypatch.setattr(_library, "_load", cache(_library._load.__wrapped__))
    monkeypatch.setattr(_library, "_choose", cache(_library._choose.__wrapped__))
    monkeypatch.setattr(_library, "dispatched", _library.dispatched)
    before = LIBRARY.isa if LIBRARY is not None else None
    yield monkeypatch
    monkeypatch.undo()
    if before is not None:
        LIBRARY.select_isa(before)
        assert _library._load() is LIBRARY


@needs_compiler
@pytest.mark.skipif(sys.platform == "win32", reason="not built there")
def test_where_there_is_a_compiler_the_library_was_built() -> None:
    """Else every test of it is skipped, and nobody sees that. In a source tree: python setup.py build_ext --inplace"""
    assert not isinstance(_library._load(), str), _library._load()


# --- the choice ------------------------------------------------------------------------------------------------------------


def test_reference_is_chosen_by_the_environment_without_a_warning(fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv("SEPNET_KERNELS", "reference")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernels.library() is None
    assert kernels.why_not_native() == "SEPNET_KERNELS=reference"
    assert not kernels.native_for(torch.ones(1, 1, 2, 2))
    shown = invoke("info", "--kernels").output
    assert "SEPNET_KERNELS=reference" in shown
    rows = json.loads(invoke("info", "--kernels", "--json").output)["paths"]
    assert {row["forward"].split()[0] for row in rows} == {row["backward"].split()[0] for row in rows} == {"PyTorch"}


@needs_library
@pytest.mark.parametrize("value", ["native", ""])
def test_native_is_chosen(fresh: pytest.MonkeyPatch, value: str) -> None:
    fresh.setenv("SEPNET_KERNELS", value)
    assert kernels.library() is not None
    assert kernels.why_not_native() is None
    shown = json.loads(invoke("info", "--kernels", "--json").output)
    assert shown["why_not_native"] is None
    assert shown["kernels"] in kernels.isa_names
    assert any(row["backward"].startswith("native") for row in shown["paths"])


@pytest.mark.parametrize("value", ["Native", "1", "off\nand more"])
def test_another_word_is_refused_in_one_line(fresh: pytest.MonkeyPatch, value: str) -> None:
    fresh.setenv("SEPNET_KERNELS", value)
    with pytest.raises(ConfigError, match=r"SEPNET_KERNELS=.*choose native or reference") as error:
        kernels.library()
    assert "\n" not in str(error.value)


@needs_library
@pytest.mark.parametrize("name", ISAS)
def test_instruction_set_is_chosen_by_the_environment(fresh: pytest.MonkeyPatch, name: str) -> None:
    fresh.setenv("SEPNET_KERNELS_ISA", name)
    library = kernels.library()
    assert library is not None
    assert library.isa == name
    assert kernels.kernels_in_use() == name


@needs_library
@pytest.mark.skipif("avx512_bf16" not in ISAS, reason="this processor has no products of bf16")
def test_pairs_are_multiplied_only_where_that_is_fast() -> None:
    """The library finds out whose processor it is as Python does, whose choices rest on it."""
    program = "from sepnet.kernels import _processor, kernels_in_use; print(kernels_in_use(), _processor.is_intel_with_bf16())"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=nothing_chosen()).stdout
    assert shown.split() in (["avx512_bf16_amx", "True"], ["avx512_bf16_floats", "True"], ["avx512_bf16", "False"])


@needs_library
@pytest.mark.parametrize("name", ["avx1024", "avx2\nx"])
def test_unknown_instruction_set_is_refused_in_one_line(fresh: pytest.MonkeyPatch, name: str) -> None:
    fresh.setenv("SEPNET_KERNELS_ISA", name)
    with pytest.raises(ConfigError, match="avx512_bf16, avx512, avx2, baseline") as error:
        kernels.library()
    assert "\n" not in str(error.value)


def test_use_is_for_its_block_and_nests(fresh: pytest.MonkeyPatch) -> None:
    chosen = None if LIBRARY is None else kernels.library()
    with kernels.use("reference"):
        assert kernels.library() is None
        assert kernels.why_not_native() is not None
        if LIBRARY is not None:
            with kernels.use("native"):
                assert kernels.library() is not None
        assert kernels.library() is None
        with pytest.raises(ZeroDivisionError), kernels.use("reference"):
            raise ZeroDivisionError
        assert kernels.library() is None
    if LIBRARY is not None:
        assert kernels.library() is chosen


# --- no library, or a broken one -------------------------------------------------------------------------------------------


def expect_reference(reason: str) -> None:
    """One warning, which says why; then silence, and PyTorch's operations."""
    with pytest.warns(RuntimeWarning, match=reason) as caught:
        assert kernels.library() is None
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernels.library() is None
        y = kernels.depthwise_conv2d(torch.ones(1, 2, 3, 3), torch.ones(2, 1, 3, 3), padding=1)
    assert y[0, 0].tolist() == [[4, 6, 4], [6, 9, 6], [4, 6, 4]]


def test_no_library(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fresh.setattr(_library, "_FILE", tmp_path / "none.so")
    expect_reference("was not built")
    fresh.setenv("SEPNET_KERNELS", "native")
    _library._choose.cache_clear()
    with pytest.raises(ConfigError, match=r"SEPNET_KERNELS=native.*was not built.*install sepnet again"):
        kernels.library()
    with pytest.raises(ConfigError, match="was not built"), kernels.use("native"):
        pass


@pytest.mark.parametrize(
    "content", [b"", b"not a library\n" * 100, b"\x7fELF" + b"\0" * 3000], ids=["empty", "text", "header only"]
)
def test_a_file_that_is_no_library(fresh: pytest.MonkeyPatch, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "_sepnet_kernels.so"
    file.write_bytes(content)
    fresh.setattr(_library, "_FILE", file)
    expect_reference("cannot be loaded")


@needs_compiler
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("int sepnet_abi(void) { return 9999; }", "cannot be loaded"),
        (None, "another version of sepnet"),
    ],
    ids=["lacks functions", "another interface"],
)
def test_a_library_of_another_version(fresh: pytest.MonkeyPatch, tmp_path: Path, source: str | None, reason: str) -> None:
    if source is None:  # all the names, and another number
        names = [name for name in _library._SIGNATURES if name != "sepnet_abi"]
        source = "int sepnet_abi(void) { return 9999; }" + "".join(f"void {name}(void) {{}}" for name in names)
    (tmp_path / "other.c").write_text(source)
    file = tmp_path / "_sepnet_kernels.so"
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-o", str(file), str(tmp_path / "other.c")], check=True)
    fresh.setattr(_library, "_FILE", file)
    expect_reference(reason)


TRAIN = """
import sys, warnings
warnings.simplefilter("always")
with warnings.catch_warnings(record=True) as caught:
    import torch
    from sepnet.kernels import why_not_native
    from sepnet.models import create_model
    network = create_model("multiscale_concat", num_classes=3, units=(4, 4), input_size=8)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    x, y = torch.randn(8, 3, 8, 8), torch.arange(8) % 3
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print(float(loss) < 0.1, why_not_native() is None, [str(w.message) for w in caught if w.category is RuntimeWarning])
"""


def train_with(source: Path, cwd: Path) -> str:
    """What ``TRAIN`` prints with the package in ``source``, in a process of its own."""
    environment = nothing_chosen() | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TRAIN]
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr}"
    return done.stdout


def copy_without_library(to: Path) -> Path:
    shutil.copytree(PACKAGE, to / "sepnet", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return to / "sepnet" / "kernels" / "_sepnet_kernels.so"


def test_a_source_tree_trains_with_one_warning(tmp_path: Path) -> None:
    copy_without_library(tmp_path)
    trained, native, caught = train_with(tmp_path, tmp_path).split(maxsplit=2)
    assert (trained, native) == ("True", "False")
    assert caught.count("sepnet's native kernels are not in use") == 1
    assert "was not built" in caught


@needs_library
def test_a_library_cut_short_is_a_warning_and_no_crash(tmp_path: Path) -> None:
    """The dynamic linker maps what is not there, and whoever touches it is killed: an interrupted copy, a full disk."""
    file = copy_without_library(tmp_path)
    whole = _library._FILE.read_bytes()
    file.write_bytes(whole[:20_000])
    trained, native, caught = train_with(tmp_path, tmp_path).split(maxsplit=2)
    assert (trained, native) == ("True", "False")
    assert caught.count("sepnet's native kernels are not in use") == 1


@needs_library
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 1.0], ids=str)
def test_a_library_cut_anywhere_is_not_loaded(fresh: pytest.MonkeyPatch, tmp_path: Path, share: float) -> None:
    whole = _library._FILE.read_bytes()
    file = tmp_path / "_sepnet_kernels.so"
    file.write_bytes(whole[: int(share * (len(whole) - 1))])
    fresh.setattr(_library, "_FILE", file)
    expect_reference("cannot be loaded")


@needs_library
def test_the_instruction_set_in_use_is_known() -> None:
    for isa in ISAS:
        with instruction_set(isa):
            assert LIBRARY.isa_key == LIBRARY.handle.sepnet_isa() == isa.encode()
