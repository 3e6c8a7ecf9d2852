"""Every Python block of the documentation runs as it stands, page by page, and no page points nowhere."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from small_training import described, small_model

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)#\s]*)(?:#([^)]*))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def program(text: str) -> str:
    """The page's blocks on the lines where they stand, all else blank, so that a traceback names the line."""
    lines = [""] * text.count("\n")
    for block in BLOCK.finditer(text):
        first = text.count("\n", 0, block.start(2))
        code = block[2].splitlines()
        lines[first : first + len(code)] = [line.removeprefix(block[1]) for line in code]
    return "\n".join(lines)


def with_examples() -> list[Path]:
    return [page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))]


def test_examples_are_found() -> None:
    found = {page.name for page in with_examples()}
    assert {"glca.md", "pwca.md", "rollout.md", "uncertainty.md", "layouts.md", "quickstart.md"} <= found
    assert program("a\n```python\nx = 1\n```\nb\n  ```python\n  y = 2\n  ```\n").split("\n")[2:7] == [
        "x = 1",
        "",
        "",
        "",
        "y = 2",
    ]


@pytest.mark.parametrize("page", with_examples(), ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def without_download(name: str, pretrained: bool = False, **options: Any) -> Any:
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", without_download)  # weights are random, the code is as shown
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    if page.name == "deployment.md":
        described(small_model()).save_pretrained("birds")
        Image.effect_noise((30, 20), 90).save("jay.jpg")
    exec(compile(program(page.read_text(encoding="utf-8")), str(page), "exec"), {"__name__": "example"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link[0]]
    lost = [file for file, _ in links if not (page.parent / file).exists()]
    assert not lost
    targets = [(page.parent / file if file else page, anchor) for file, anchor in links if anchor]
    astray = [(target.name, anchor) for target, anchor in targets if anchor not in anchors(target)]
    assert not astray


def anchors(page: Path) -> set[str]:
    headings = HEADING.findall(page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
