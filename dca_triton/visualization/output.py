"""What all pages and pictures share: checks of the file to write, the head of a page, pictures as bytes."""

import base64
import io
from pathlib import Path

from matplotlib.figure import Figure

HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff }}
"""


def check_output(output: Path) -> list[str]:
    """The faults of a picture or page to be written."""
    faults = []
    if output.suffix not in (".png", ".html"):
        faults.append(f"output must end in .png or .html, got {str(output)!r}")
    if not output.parent.is_dir():
        faults.append(f"output must be in a folder that exists, got {str(output)!r}")
    if output.exists() and not output.is_file():
        faults.append(f"output must be a file, got {str(output)!r}, a folder, a device or a pipe")
    return faults


def png_of(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def base64_of(content: bytes) -> str:
    """Bytes as a page holds them."""
    return base64.b64encode(content).decode()
