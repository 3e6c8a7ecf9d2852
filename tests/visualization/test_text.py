"""Names of any characters can be drawn without a warning and written as UTF-8."""

import matplotlib
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from dca_triton.visualization.text import drawable, writable


@given(st.text(st.characters(codec=None), max_size=20))
def test_any_text(text: str) -> None:
    assert len(drawable(text)) == len(writable(text)) == len(text)
    writable(text).encode("utf-8")
    figure = Figure((1, 1))
    figure.text(0, 0, drawable(text), parse_math=False)
    figure.draw_without_rendering()  # warnings are errors


def test_known_letters_stay() -> None:
    text = "Größe 2 µm: Ελλάδα, Юг, a/b_c$1 (è)"
    assert drawable(text) == writable(text) == text
    assert drawable("目\n\udc80") == "□□□" and writable("目\n\udc80") == "目\ufffd\ufffd"


def test_fonts_are_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(matplotlib.rcParams, "font.family", ["cmr10"])
    assert drawable("aЮ") == "a?"  # it has neither the letter nor a box
    monkeypatch.setitem(matplotlib.rcParams, "font.family", ["cmr10", "DejaVu Sans"])
    assert drawable("aЮ目") == "aЮ□"
