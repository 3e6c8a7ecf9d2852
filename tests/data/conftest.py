"""Tiny dataset trees, built by each test."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

Tree = Callable[..., Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """tree(folder, *photos, texts): photos and text files below tmp_path/folder, whose path is returned."""

    def build(folder: str, *photos: str, texts: dict[str, str] | None = None) -> Path:
        root = tmp_path / folder
        for number, name in enumerate(photos):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (6, 8), (number * 7 % 256, 20, 30)).save(root / name)
        for name, text in (texts or {}).items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        return root

    return build
