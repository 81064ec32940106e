"""Fixtures shared by all tests."""

import importlib.util
from pathlib import Path

import pytest
import torch

from torchdfa import cli


@pytest.fixture(autouse=True, scope="session")
def single_thread():
    """The tests' matrices are tiny: threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def double():
    """Make new layers float64, as hand formulas need."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def call(capsys):
    """Run the command line in this process: exit status, standard output, standard error."""

    def run(*arguments):
        try:
            status = cli.main(arguments)
        except SystemExit as end:
            status = end.code
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture(scope="session")
def script():
    """Import a program of docs/, which is no package."""

    def load(name):
        path = Path(__file__).parents[1] / "docs" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
