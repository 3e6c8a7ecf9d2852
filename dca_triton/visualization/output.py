"""What all pages and pictures share: the kinds of files, the head of a page, pictures as bytes."""

import base64
import io

from matplotlib.figure import Figure

SUFFIXES = (".png", ".html")
HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff }}
"""


def png_of(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def base64_of(content: bytes) -> str:
    """Bytes as a page holds them."""
    return base64.b64encode(content).decode()
