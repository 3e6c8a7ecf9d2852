"""Every Python block of the documentation runs as it stands, page by page, and no page points nowhere."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


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


def readers_own() -> dict[str, Any]:
    """What the README takes for granted: a reader's photos, labels and projected heads."""
    q, k, v = torch.randn(3, 4, 17, 2, 16).unbind()
    return {
        "images": torch.randn(4, 3, 224, 224),
        "labels": torch.tensor([0, 1, 1, 2]),
        "cross_entropy": torch.nn.functional.cross_entropy,
        **{
            "q": q,
            "k": k,
            "v": v,
            "partner": torch.tensor([1, 0, 3, -1]),
            "selected": torch.zeros(4, 3).long(),
        },
    }


@pytest.mark.parametrize("page", with_examples(), ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def without_download(name: str, pretrained: bool = False, **options: Any) -> Any:
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", without_download)  # weights are random, the code is as shown
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    given = readers_own() if page.name == "README.md" else {}
    exec(compile(program(page.read_text(encoding="utf-8")), str(page), "exec"), given)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    lost = [link for link in links if not (page.parent / link).exists()]
    assert not lost
