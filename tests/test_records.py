"""Records and the pages that quote them: all are made from the CSVs that lie beside them."""

import shutil
from pathlib import Path

import pytest

from torchdfa.experiments import EXPERIMENTS, ReproduceConfig, write_page
from torchdfa.experiments.results import Cell, Results, find_results
from torchdfa.experiments.study import Trial

ROOT = Path(__file__).parent.parent
RECORDS = [results.path.parent for results in find_results(ROOT / "records")]
REPRODUCED = [folder for folder in RECORDS if any((folder / f"{name}.md").exists() for name in EXPERIMENTS)]


def experiment_of(folder):
    """Return the name of the experiment whose page lies in a record."""
    return next(name for name in EXPERIMENTS if (folder / f"{name}.md").exists())


@pytest.mark.parametrize("folder", RECORDS, ids=lambda folder: folder.name)
def test_results_can_be_read(folder):
    runs = Results(folder / "results.csv").read()
    with open(folder / "results.csv", encoding="utf-8") as file:
        assert sum(len(run) for run in runs.values()) == sum(1 for _ in file) - 1


@pytest.mark.parametrize("folder", REPRODUCED, ids=lambda folder: folder.name)
def test_a_record_s_page_is_made_from_its_results(folder, tmp_path):
    name = experiment_of(folder)
    for csv in folder.glob("*.csv"):
        shutil.copy(csv, tmp_path)
    page, *_ = write_page(EXPERIMENTS[name], tmp_path)
    assert page.read_text() == (folder / page.name).read_text()


@pytest.mark.parametrize("folder", REPRODUCED, ids=lambda folder: folder.name)
def test_a_record_s_runs_are_known_again(folder):
    """Else the command that made a record would train all of it anew."""
    name = experiment_of(folder)
    runs = Results(folder / "results.csv").read()
    one = next(iter(runs.values()))[0]
    searched = {rows[0].method for rows in runs.values() if rows[0].phase == "search"}
    # On more than 5,000 images searches begin where those of Table 1 ended.
    source = str(ROOT / "records/table1-cifar10-small") if name in ("table1", "sizes") else None
    config = ReproduceConfig(scale=one.scale, data=one.dataset, rows=tuple(searched), rates_from=source)
    lines = EXPERIMENTS[name].lines(config, one.dataset)
    for line in lines:
        if line.name in searched:  # of a search under way, not all rates are there
            trials = [line.settings(Trial(lr), 0, line.budget.validation) for lr in line.budget.lrs]
            assert any(Cell(name, line.name, "search", config).key in runs for config in trials), line.name


@pytest.fixture(scope="module")
def embed(script):
    return script("embed")


@pytest.mark.parametrize("path", [*ROOT.rglob("docs/**/*.md"), ROOT / "README.md"], ids=lambda path: path.name)
def test_pages_quote_the_records_as_they_are(path, embed):
    text = path.read_text(encoding="utf-8")
    assert embed.embedded(text) == text


def test_a_table_is_put_in_its_place(embed, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "ROOT", tmp_path)
    (tmp_path / "page.md").write_text("# Title\n\n| a |\n| --- |\n| 1 |\n\n| other |\n")
    text = "before\n<!-- table: page.md -->\nold\n<!-- end -->\nafter <!-- end -->\n"
    after = embed.embedded(text)
    assert after == "before\n<!-- table: page.md -->\n| a |\n| --- |\n| 1 |\n<!-- end -->\nafter <!-- end -->\n"
    assert embed.embedded(after) == after
    (tmp_path / "page.md").write_text("no table")
    with pytest.raises(ValueError, match="no table"):
        embed.embedded(text)


def test_one_line_asks_for_any_table_or_for_an_output(embed, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "ROOT", tmp_path)
    (tmp_path / "page.md").write_text("| a |\n| --- |\n\n| b |\n| --- |\n")
    (tmp_path / "times.txt").write_text("1 ms\n")
    text = "<!-- table: page.md#2 -->\nbetween\n<!-- table: times.txt -->\n"
    after = (
        "<!-- table: page.md#2 -->\n| b |\n| --- |\n<!-- end -->\nbetween\n"
        "<!-- table: times.txt -->\n```text\n1 ms\n```\n<!-- end -->\n"
    )
    assert embed.embedded(text) == after == embed.embedded(after)
    with pytest.raises(ValueError, match="2 tables; number 3"):
        embed.embedded("<!-- table: page.md#3 -->\n")
