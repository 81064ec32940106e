"""The native library: that it is there, how it is chosen, and what is said where it is not."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import torchdfa
from torchdfa import ops
from torchdfa.ops import native

PACKAGE = Path(torchdfa.__file__).parent
compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
linux = sys.platform == "linux" and platform.machine() == "x86_64"


def run(code, package=None, **variables):
    """Run code in a fresh interpreter, torchdfa coming from a folder."""
    environment = {**os.environ, "PYTHONPATH": str(package or PACKAGE.parent), **variables}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The package as it is installed where there is no compiler."""
    folder = tmp_path_factory.mktemp("bare")
    shutil.copytree(PACKAGE, folder / "torchdfa", ignore=shutil.ignore_patterns("_native*", "__pycache__"))
    return folder


@pytest.mark.skipif(not linux, reason="promised on Linux x86-64")
@pytest.mark.skipif(compiler is None, reason="no C++ compiler here")
def test_the_library_was_built():
    assert ops.why_not_native() == ""
    assert ops.PATHS[-2:] == ("portable", "torch")
    flags = Path("/proc/cpuinfo").read_text()
    assert ("avx2" in ops.PATHS) == (" avx2 " in flags and " fma " in flags)
    assert ("avx512" in ops.PATHS) == (" avx512bw " in flags and " avx512dq " in flags and " avx512vl " in flags)


@pytest.mark.skipif(not linux, reason="promised on Linux x86-64")
@pytest.mark.skipif(compiler is None, reason="no C++ compiler here")
def test_it_serves_torch_threads():
    assert native._torch_threads() is not None


def test_choosing_a_path():
    before = ops.path()
    try:
        assert ops.choose("torch") == before
        assert ops.path() == "torch"
    finally:
        ops.choose(before)
    with pytest.raises(ValueError, match=r"path 'sse9' does not run here.*expected one of .*torch"):
        ops.choose("sse9")
    assert ops.path() == before


def test_choosing_by_the_environment():
    ask = "from torchdfa import ops; print(ops.path())"
    for name in ops.PATHS[-2:]:  # each costs an import of torch
        assert run(ask, TORCHDFA_OPS=name).stdout.strip() == name
    wrong = run(ask, TORCHDFA_OPS="sse9")
    assert wrong.returncode != 0
    assert "TORCHDFA_OPS=sse9: path 'sse9' does not run here" in wrong.stderr


USE = """
import torch
from torchdfa.feedback import SeededFeedback
feedback = SeededFeedback(10, 50, 7, torch.tensor(0.5))
for _ in range(3):
    out = feedback(torch.ones(2, 10))
print(out.sum().item())
"""


def test_without_the_library_it_says_so_once_and_works(bare):
    found = run(USE, bare)
    assert found.returncode == 0, found.stderr
    assert found.stderr.count("runs without its native library") == 1
    assert "no C++ compiler" in found.stderr
    assert float(found.stdout) == pytest.approx(float(run(USE).stdout))


def test_without_the_library_it_is_silent_when_asked_to_be(bare):
    found = run(USE, bare, TORCHDFA_OPS="torch")
    assert found.returncode == 0
    assert found.stderr == ""


def test_a_library_of_another_machine_is_not_fatal(bare):
    (bare / "torchdfa/ops/_native.so").write_bytes(b"not a library")
    try:
        found = run(USE, bare)
    finally:
        (bare / "torchdfa/ops/_native.so").unlink()
    assert found.returncode == 0
    assert found.stderr.count("can't be loaded") == 1


def test_importing_says_nothing(bare):
    assert run("import torchdfa", bare).stderr == ""
