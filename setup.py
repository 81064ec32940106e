"""Builds the native library of ``torchdfa.ops``, where there is a compiler; everything else is in pyproject.toml.

It is a module in Python's limited API, without torch's headers. One build, and one wheel, therefore serves all versions
of Python from 3.10 on and of torch, and building needs Python's headers alone.
"""

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel

SOURCES = Path("src/torchdfa/ops/csrc")
# Nothing of these runtimes is used, so that they need not be there either.
LINK = ["-static-libgcc", "-static-libstdc++"] if sys.platform.startswith("linux") else []
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fno-exceptions", "-fno-rtti", "-fvisibility=hidden", "-g0", "-w"]


class PlatformWheel(bdist_wheel):
    """Tags the wheel for this platform and Python from 3.10 on, or, where nothing was built, for all."""

    def get_tag(self):
        """Return the wheel's tag."""
        built = self.bdist_dir and list(Path(self.bdist_dir).rglob("_native.*.so"))
        return super().get_tag() if built else ("py3", "none", "any")


setup(
    ext_modules=[
        Extension(
            "torchdfa.ops._native",
            sorted(str(p) for p in SOURCES.glob("*.cpp")),
            depends=sorted(str(p) for p in SOURCES.glob("*.h")),
            extra_compile_args=FLAGS,
            extra_link_args=LINK,
            define_macros=[("Py_LIMITED_API", "0x030A0000")],
            language="c++",
            py_limited_api=True,
            optional=True,
        )
    ],
    cmdclass={"bdist_wheel": PlatformWheel},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
