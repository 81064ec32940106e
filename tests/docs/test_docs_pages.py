"""Pages of the documentation and the README: their Python runs, their commands parse, their links resolve."""

import json
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from torchdfa.cli import main

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("docs/**/*.md"))]
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
# What a page's code takes as given: two frames of a video.
GIVEN = {
    "docs/tracking.md": lambda: dict(zip(("frame", "next_frame"), frames(), strict=True)),
}


def frames():
    image = np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8)
    return image, np.roll(image, 2, axis=1)


def blocks(page, *languages):
    found = re.findall(r"^```(\w*)\n(.*?)^```", TEXTS[page], re.M | re.S)
    return [text for language, text in found if language in languages]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_every_block_of_python_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = GIVEN.get(page, dict)()
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), namespace)
    assert not torch.distributed.is_initialized()


def commands(page):
    for block in blocks(page, "", "sh", "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words:
                stop = words.index("&&") if "&&" in words else len(words)
                yield words[:stop]
                words = words[stop + 1 :]


COMMANDS = sorted({(page, shlex.join(words)) for page in PAGES for words in commands(page) if words})
OURS = [(page, line) for page, line in COMMANDS if re.match(r"torchdfa |torchrun ", line)]


@pytest.mark.parametrize(("page", "line"), OURS)
def test_every_command_parses(page, line, tmp_path, monkeypatch, capsys):
    """``--print_config`` reads all of the options and runs nothing; commands that have none are asked for help."""
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line)
    arguments = words[words.index("torchdfa") + 1 :]
    assert main(["train", "--print_config"]) == 0
    stored = json.loads(capsys.readouterr().out)
    for folder in ("runs/a", "runs/cdfa"):  # of runs that a page made before
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text(json.dumps(stored))
    ask = "--help" if arguments[0] == "hardware" or "--help" in arguments else "--print_config"
    try:
        status = main([*(a for a in arguments if a != "--help"), ask])
    except SystemExit as stop:
        status = stop.code
    said = capsys.readouterr()
    assert not status, said.err
    assert said.out


def test_pages_have_commands():
    assert len(OURS) > 20


@pytest.mark.parametrize(("page", "line"), [(page, line) for page, line in COMMANDS if line.startswith("python ")])
def test_every_script_is_there(page, line):
    words = shlex.split(line)
    if words[1] == "-m":
        assert find_spec(words[2])
    else:
        assert (ROOT / words[1]).exists()


@pytest.mark.parametrize("page", PAGES)
def test_every_link_into_the_repository_resolves(page):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", re.sub(r"```.*?```", "", TEXTS[page], flags=re.S))
    missing = [t for t in targets if not (ROOT / page).parent.joinpath(t).exists()]
    assert not missing


def test_the_readme_has_links():
    assert re.search(r"\]\(docs/", TEXTS["README.md"])
