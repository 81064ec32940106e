"""What must agree before a release: the version, the licences' page, the citation."""

import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

import torchdfa

ROOT = Path(__file__).parents[1]


def test_the_version_stands_in_one_place():
    project = (ROOT / "pyproject.toml").read_text()
    assert 'dynamic = ["version"]' in project and not re.search(r"^version = \"", project, re.MULTILINE)
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == torchdfa.__version__
    assert f"{{{torchdfa.__version__}}}" in (ROOT / "docs" / "citing.md").read_text()


def test_the_citation_has_what_the_format_asks_for():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()


def test_types_are_shipped():
    assert files("torchdfa").joinpath("py.typed").is_file()


def test_tables_that_are_shipped_are_read_as_they_are_written():
    """In UTF-8 also where the system's own encoding is another, as on Windows."""
    code = "from torchdfa.hardware.cacti import sram_picojoules\nfrom torchdfa.hardware.chip import chips, load_chip\n"
    code += "sram_picojoules(64, 65)\nfor name in chips(): load_chip(name)"
    strict = [f"-Werror::EncodingWarning:torchdfa.hardware.{module}" for module in ("cacti", "chip")]
    subprocess.run([sys.executable, "-X", "warn_default_encoding", *strict, "-c", code], check=True, timeout=120)


@pytest.fixture(scope="module")
def licences(script):
    return script("licences")


def test_every_dependency_has_its_licence_listed(licences):
    rows = dict(re.findall(r"^\| (\S+) \| [\w, ]+ \| (.+) \|$", licences.PAGE.read_text(), re.MULTILINE))
    del rows["package"]  # the head
    assert rows.keys() == licences.requirements().keys()
    assert "not installed here" not in rows.values()


def test_workflows_and_templates_can_be_read():
    found = sorted((ROOT / ".github").rglob("*.yml"))
    assert len(found) >= 7
    for path in found:
        assert yaml.safe_load(path.read_text()), path


def test_every_python_is_tested_with_the_torch_that_was_asked_for():
    job = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == ["3.10", "3.11", "3.12", "3.13", "3.14"]
    # A second installation would bring the torch that the newest torchvision wants.
    (installation,) = [step["run"] for step in job["steps"] if "pip install" in step.get("run", "")]
    assert "'torch==${{ matrix.torch }}'" in installation and "[test]" in installation
