"""The front pages quote figures of the pages that hold the measurements, and quote the same ones."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
QUOTED = re.compile(r"<!-- figures -->\n(.*?)<!-- end of figures -->", re.DOTALL)
FIGURE = re.compile(r"\d+\.\d+")


def quoted(page: Path) -> str:
    found = QUOTED.search(page.read_text(encoding="utf-8"))
    assert found is not None
    return found[1]


def test_home_and_readme_quote_the_same() -> None:
    readme = quoted(ROOT / "README.md").replace("docs/performance.md", "performance.md")
    assert quoted(DOCS / "index.md") == readme


def test_quoted_figures_stand_where_they_were_measured() -> None:
    held = "".join((DOCS / f"{name}.md").read_text(encoding="utf-8") for name in ("performance", "kernels"))
    figures = FIGURE.findall(quoted(ROOT / "README.md"))
    assert len(figures) >= 12
    assert set(figures) <= set(FIGURE.findall(held))
    assert "0.123" not in FIGURE.findall(held)  # the check can fail
