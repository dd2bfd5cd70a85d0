"""The library from C: tests/kernels_driver.c calls all its functions, as built, and under the compiler's sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kernel_tools import ISAS, LIBRARY, needs_library
from sepnet.kernels import _library, isa_names

DRIVER = Path(__file__).with_name("kernels_driver.c")
SOURCES = Path(_library.__file__).with_name("csrc")
COMPILER = shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
# what counts as large: results, their pixels, planes, matrices
SMALL = [
    "-DSTREAM_BYTES=4096",
    "-DSTREAM_PIXEL=256",
    "-DBAND_BYTES=16384",
    "-DLEAST_WORK=4096",
    "-DFETCH_AHEAD=1",
    "-DFETCHED_MAP_BYTES=1024",
]
NOT_HERE = 77  # how the driver ends where the processor lacks the instruction set

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler here")


def compile_c(*arguments: object, seconds: float = 280) -> subprocess.CompletedProcess[str]:
    command = [str(COMPILER), "-std=gnu11", f"-I{SOURCES}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)


def run(program: Path, *words: object) -> int:
    """The driver's exit code; whatever it or a sanitizer complains of fails the test."""
    environment = os.environ | {"UBSAN_OPTIONS": "print_stacktrace=1", "MALLOC_PERTURB_": "165"}
    done = subprocess.run([program, *map(str, words)], capture_output=True, text=True, check=False, timeout=280, env=environment)
    assert done.returncode in (0, NOT_HERE), f"{words}: exit code {done.returncode}\n{done.stderr[:4000]}"
    return done.returncode


@pytest.mark.parametrize("source", sorted(SOURCES.glob("*.c")), ids=lambda path: path.stem)
def test_compiler_has_nothing_to_warn_of(source: Path, tmp_path: Path) -> None:
    checked = compile_c("-Wall", "-Wextra", "-Werror", "-O1", "-c", source, "-o", tmp_path / "object.o")
    assert checked.returncode == 0, checked.stderr


@needs_library
def test_library_as_built_agrees_with_the_definitions(tmp_path: Path) -> None:
    program = tmp_path / "driver"
    library = _library._FILE
    linked = compile_c(
        "-O1", "-Wall", "-Wextra", "-Werror", DRIVER, library, f"-Wl,-rpath,{library.parent}", "-lpthread", "-lm", "-o", program
    )
    assert linked.returncode == 0, linked.stderr
    for isa in ISAS:
        for threads, callers in ((1, 1), (3, 1), (2, 2)):
            assert run(program, isa, threads, callers, 60) == 0
    assert run(program, "no such thing", 1, 1, 1) == NOT_HERE
    assert LIBRARY.handle.sepnet_abi() == _library.ABI


def compile_object(source: Path, to: Path, flags: list[str]) -> subprocess.CompletedProcess[str]:
    """Without the flags where it is for an instruction set that this processor lacks: nobody will run it."""
    elsewhere = [f"isa_{isa}" for isa in isa_names if ISAS and isa not in ISAS]
    # with a sanitizer AVX-512 takes a core two minutes and more, and several are compiled at once
    return compile_c(*(["-O1"] if source.stem in elsewhere else flags), "-c", source, "-o", to, seconds=1200)


@pytest.mark.slow
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_sanitizers_find_nothing(tmp_path: Path, sanitizers: str) -> None:
    """Minutes: the kernels of this processor's instruction sets, compiled anew with checks around every access, and so that maps of
    a few kilobytes count as large and are cut into slabs and bands, and matrices of a few rows are shared.
    """
    flags = ["-Og", "-g", *SMALL, f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    trial = tmp_path / "trial.c"
    trial.write_text("int main(void) { return 0; }\n")
    if (
        compile_c(*flags, trial, "-o", tmp_path / "trial").returncode
        or subprocess.run([tmp_path / "trial"], check=False).returncode
    ):
        pytest.skip(f"{COMPILER} cannot -fsanitize={sanitizers} here")
    sources = [*sorted(SOURCES.glob("*.c")), DRIVER]
    objects = [tmp_path / f"{source.stem}.o" for source in sources]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in pool.map(lambda pair: compile_object(pair[0], pair[1], flags), zip(sources, objects, strict=True)):
            assert done.returncode == 0, done.stderr
    program = tmp_path / "driver"
    linked = compile_c(*flags, *objects, "-lpthread", "-lm", "-o", program)
    assert linked.returncode == 0, linked.stderr
    ran = [isa for isa in isa_names if run(program, isa, 1, 1, 200) == 0]
    assert "baseline" in ran
    for isa in ran:
        run(program, isa, 3, 1, 200)
        run(program, isa, 2, 3, 60)
