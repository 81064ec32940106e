import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_every_block_of_python_runs():
    text = README.read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 3
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(block, namespace)


def test_every_link_into_the_repository_resolves():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text())
    assert targets
    missing = [t for t in targets if not (README.parent / t).exists()]
    assert not missing
