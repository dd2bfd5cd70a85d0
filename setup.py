"""Builds the CPU kernels (src/sepnet/kernels/csrc) as a plain shared library; everything else stands in pyproject.toml.

Without a C compiler the package installs all the same, and PyTorch's own operations serve.
"""

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

SOURCES = Path("src/sepnet/kernels/csrc")


class BuildLibrary(build_ext):
    """The library knows nothing of Python: no version in its name, no module to initialise."""

    def get_ext_filename(self, fullname: str) -> str:
        """No suffix of an interpreter."""
        return str(Path(*fullname.split("."))) + ".so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """No PyInit function."""
        return []


class PlatformWheel(bdist_wheel):
    """One wheel a platform serves every version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """py3-none-PLATFORM."""
        return "py3", "none", super().get_tag()[2]


kernels = Extension(
    "sepnet.kernels._sepnet_kernels",
    sources=sorted(str(path) for path in SOURCES.glob("*.c")),
    depends=sorted(str(path) for path in SOURCES.glob("*.h")),
    extra_compile_args=["-O3", "-g0", "-std=gnu11", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fexceptions"],
    libraries=["pthread"],
    optional=True,
)

# the sources are in the vector extensions of GCC and Clang, which Microsoft's compiler lacks
setup(
    ext_modules=[] if sys.platform == "win32" else [kernels],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": PlatformWheel},
)
