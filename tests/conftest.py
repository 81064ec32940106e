"""Fixtures shared by all tests."""

import pytest
import torch


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
