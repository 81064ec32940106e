import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pages = pytest.mark.parametrize("page", ["README.md", "docs/modules.md"])


@pages
def test_every_block_of_python_runs(page):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(block, namespace)


@pages
def test_every_link_into_the_repository_resolves(page):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / page).read_text())
    assert targets
    missing = [t for t in targets if not (ROOT / page).parent.joinpath(t).exists()]
    assert not missing
