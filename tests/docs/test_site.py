"""The site of the documentation: equations rendered at build time, no other host, a complete map."""

import importlib.util
import re
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
FENCE = re.compile(r"^( *)```.*?^\1```", re.MULTILINE | re.DOTALL)
DISPLAYED, INLINE = re.compile(r"\$\$(.+?)\$\$", re.DOTALL), re.compile(r"\$([^$\n]+)\$")


def hooks() -> Any:
    spec = importlib.util.spec_from_file_location("offline", DOCS / "offline.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def settings() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def equations(text: str) -> list[tuple[str, bool]]:
    prose = FENCE.sub("", text)
    rest = DISPLAYED.sub("", prose)
    return [(tex, True) for tex in DISPLAYED.findall(prose)] + [(tex, False) for tex in INLINE.findall(rest)]


def test_every_equation_becomes_mathml() -> None:
    found = [equation for page in PAGES for equation in equations(page.read_text(encoding="utf-8"))]
    assert len(found) > 40
    for tex, displayed in found:
        assert hooks().mathml(tex, displayed).startswith("<math ")


def test_unknown_commands_stop_the_build() -> None:
    with pytest.raises(ValueError, match="commands that latex2mathml knows"):
        hooks().mathml(r"\nosuchcommand x", False)


def test_equations_of_a_page_are_replaced() -> None:
    page = r'<p>a <span class="arithmatex">\(x &lt; 1\)</span></p> <div class="arithmatex">\[y\]</div>'
    html = hooks().on_page_content(page)
    assert "arithmatex" not in html and html.count("<math ") == 2
    assert re.search(
        r'<p>a <span class="equation"><math .*?</math></span></p> <div class="equation"><math ', html
    )
    assert 'display="inline"' in html and 'display="block"' in html and "&amp;lt;" not in html


LOADS = [
    '<script src="https://cdn.example/a.js"></script>',
    "<link rel='stylesheet' href='//fonts.example/css'>",
    '<img alt="a > b" src=http://example.org/a.png>',
    "@import 'https://example.org/a.css';",
    "src: url(https://example.org/a.woff2)",
]
STAYS = [
    '<a href="https://arxiv.org/abs/2205.02151">the paper</a>',
    '<script src="assets/a.js"></script><link href="../a.css"><img src="figures/sheet.png">',
    '<svg xmlns="http://www.w3.org/2000/svg"><path d="M0 0"/></svg>',
    "background: url(data:image/svg+xml;base64,PHN2Zw==)",
]


@pytest.mark.parametrize("text", LOADS)
def test_a_site_that_loads_from_another_host_is_refused(text: str, tmp_path: Path) -> None:
    assert len(hooks().loaded(text)) == 1
    (tmp_path / "page.html").write_text(text)
    with pytest.raises(ValueError, match="its own host"):
        hooks().on_post_build(SimpleNamespace(site_dir=tmp_path).__dict__)


@pytest.mark.parametrize("text", STAYS)
def test_a_site_of_its_own_passes(text: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(text)
    hooks().on_post_build(SimpleNamespace(site_dir=tmp_path).__dict__)


def test_settings_name_no_other_host() -> None:
    site = settings()
    assert site["theme"]["font"] is False  # else the theme asks a font server
    assert site["hooks"] == ["docs/offline.py"]
    own = [*site.get("extra_css", []), *site.get("extra_javascript", [])]
    assert all((DOCS / file).is_file() for file in own)


def test_api_pages_hold_what_exists_and_every_public_name() -> None:
    texts = [page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md")]
    listed = [name for text in texts for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)]
    documented = [resolve_name(name) for name in listed]
    assert len(documented) == len(set(listed)) > 40
    for face in ("dca_triton", "dca_triton.model", "dca_triton.training", "dca_triton.visualization"):
        public = resolve_name(face).__all__
        assert [
            name for name in public if not any(resolve_name(f"{face}:{name}") is x for x in documented)
        ] == []


def test_nav_holds_every_page_once_under_its_title() -> None:
    entries: list[tuple[str, str]] = []

    def walk(items: list[Any]) -> None:
        for item in items:
            ((title, below),) = item.items()
            walk(below) if isinstance(below, list) else entries.append((title, below))

    nav = settings()["nav"]
    walk(nav)
    assert [next(iter(group)) for group in nav] == ["Start", "Learn", "Inside", "API"]
    assert sorted(path for _, path in entries) == [str(page.relative_to(DOCS)) for page in PAGES]
    for title, path in entries:
        heading = (DOCS / path).read_text(encoding="utf-8").split("\n", 1)[0]
        assert heading == ("# dca_triton" if title == "Home" else f"# {title}")
