"""Builds the native library of ``torchdfa.ops``, where there is a compiler; everything else is in pyproject.toml.

It is a plain shared library without Python's or torch's headers. One build, and one wheel, therefore serves all their
versions, and building needs neither.
"""

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

SOURCES = Path("src/torchdfa/ops/csrc")
# Nothing of these runtimes is used, so that they need not be there either.
LINK = ["-static-libgcc", "-static-libstdc++"] if sys.platform.startswith("linux") else []
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fno-exceptions", "-fno-rtti", "-fvisibility=hidden", "-g0", "-w"]


class BuildLibrary(build_ext):
    """Names the library for no Python version, and tolerates its absence."""

    def get_ext_filename(self, fullname):
        """Return the file's path in the package."""
        return f"{fullname.replace('.', '/')}.so"

    def get_export_symbols(self, ext):
        """Export what the sources export: there is no module initialiser."""
        return ext.export_symbols


class PlatformWheel(bdist_wheel):
    """Tags the wheel for any Python 3 on this platform, or on any where nothing was built."""

    def get_tag(self):
        """Return the wheel's tag."""
        built = list(Path(self.bdist_dir or ".").rglob("_native.so")) if self.bdist_dir else []
        return ("py3", "none", super().get_tag()[2] if built else "any")


setup(
    ext_modules=[
        Extension(
            "torchdfa.ops._native",
            sorted(str(p) for p in SOURCES.glob("*.cpp")),
            depends=sorted(str(p) for p in SOURCES.glob("*.h")),
            extra_compile_args=FLAGS,
            extra_link_args=LINK,
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": PlatformWheel},
)
