"""The native library built and run for this machine and, emulated, for 64-bit ARM: the same bits everywhere."""

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import torchdfa

SOURCES = [p for p in sorted(Path(torchdfa.__file__).parent.glob("ops/csrc/*.cpp")) if p.name != "module.cpp"]
MAIN = Path(__file__).with_name("every_path.cpp")
# What x86-64 with AVX-512 gave on every path, in 2026.
EXPECTED = "7880e112050b36ad"
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-fno-exceptions", "-fno-rtti", "-w", "-pthread", "-static"]
MACHINES = {
    "here": ("g++", ()),
    "aarch64": ("aarch64-linux-gnu-g++", ("qemu-aarch64",)),
}


def hashes(folder, machine):
    """Return the paths that run there, and the hash of each path's results."""
    compiler, emulator = MACHINES[machine]
    for tool in (compiler, *emulator):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    program = folder / machine
    subprocess.run([compiler, *FLAGS, *map(str, (*SOURCES, MAIN)), "-o", str(program)], check=True, timeout=300)
    done = subprocess.run([*emulator, str(program)], check=True, capture_output=True, text=True, timeout=300)
    return done.stderr.split(), done.stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="built as on Linux")
@pytest.mark.parametrize("machine", MACHINES)
def test_every_path_gives_the_same_bits_on_every_machine(tmp_path, machine):
    paths, found = hashes(tmp_path, machine)
    assert paths[-1] == "portable"
    if machine == "aarch64":
        assert paths == ["neon", "portable"]
    elif platform.machine() == "x86_64":
        assert set(paths) <= {"avx512", "avx2", "portable"}
    assert set(found) == {EXPECTED}
