"""MkDocs hooks for a site that reads without a network: equations become MathML, all files are its own."""

import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

# What pymdownx.arithmatex marks: spans are inline, divs are displayed.
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
OTHER_HOST = re.compile(r"(?:https?:)?//")
STYLE = re.compile(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')\s]+)""")


def on_page_content(html: str, **_: Any) -> str:
    """Renders the equations of a page."""
    return EQUATION.sub(_render, html)


def on_post_build(config: Any, **_: Any) -> None:
    """Stops the build if any page or stylesheet loads something from another host."""
    pages = [path for path in Path(config["site_dir"]).rglob("*") if path.suffix in {".html", ".css", ".svg"}]
    faults = [f"{path}: {url}" for path in pages for url in loaded(path.read_text(encoding="utf-8"))]
    if faults:
        raise ValueError(f"the site must load everything from its own host, got {'; '.join(faults)}")


def _render(found: re.Match[str]) -> str:
    tag, tex = found.groups()
    return f'<{tag} class="equation">{mathml(unescape(tex), displayed=tag == "div")}</{tag}>'


def mathml(tex: str, displayed: bool) -> str:
    """Converts one equation.

    Raises:
        ValueError: The equation has a command that latex2mathml does not know and would print as text.
    """
    rendered = convert(tex, display="block" if displayed else "inline")
    if "\\" in rendered:
        raise ValueError(f"equation must use commands that latex2mathml knows, got {tex}")
    return rendered


def loaded(text: str) -> list[str]:
    """Lists the addresses on other hosts that a page or stylesheet loads when it is opened."""
    tags = Tags()
    tags.feed(text)
    return tags.loaded + STYLE.findall(text)


class Tags(HTMLParser):
    """Collects what tags load: scripts, styles, fonts, pictures. A link, <a href>, loads nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        addresses = [value for name, value in attrs if name in {"src", "srcset", "href", "data"} and value]
        self.loaded += [value for value in addresses if tag != "a" and OTHER_HOST.match(value)]
