"""Tables, exponents and plots of made-up results."""

import fakes
import pytest
from PIL import Image

from bench import report


def test_tables_hold_the_figures():
    text = report.markdown(fakes.document(share=0.4), ["rollout_row.png"])
    assert (
        "| step | path | time | of best own way | of SA alone | of eager maps | peak memory | "
        "of best own way / of SA alone / of eager maps |" in text
    )
    assert (
        "| train step deit_tiny_patch16_224 size=224 B=8 fp32 | eager maps | 100 ms | 2.38 (2.38-2.38)"
        in text
    )
    assert (
        "|  | library | 40 ms | 0.95 (0.95-0.95) | 4.00 (4.00-4.00) | 0.40 (0.40-0.40) | 38.1 MiB | "
        "0.80 / 4.00 / 0.40 |" in text
    )
    assert "| rollout_row | library | 2.00 | 1.00 |" in text
    assert "Measured on Fake GPU with torch" in text
    assert "![rollout_row](rollout_row.png)" in text


def test_ratios_are_taken_round_by_round():
    """If the machine slows down in one round, times change but ratios do not."""
    benchmark, paths = fakes.step("train step", "vit", 224, 1, share=0.5)
    entry = fakes.results.entry(benchmark, "library", paths["library"], paths)
    assert entry["extra_info"]["ratios"]["eager maps"] == pytest.approx({"25": 0.5, "50": 0.5, "75": 0.5})
    assert entry["extra_info"]["ratios"]["SA alone"] == pytest.approx({"25": 5, "50": 5, "75": 5})
    assert entry["extra_info"]["ratios"].keys() == paths.keys()
    assert entry["stats"]["percentiles"]["50"] == entry["stats"]["median"] == pytest.approx(0.05)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_exponents_are_recovered(power):
    lengths = [128, 197, 785, 3136]
    assert report.exponent(lengths, [3.7 * n**power for n in lengths]) == pytest.approx(power)


def test_a_path_that_allocates_nothing_does_not_grow():
    assert report.exponent([128, 785], [0, 0]) == 0.0


def test_growth_of_each_path():
    grown = report.growth(fakes.document())
    assert grown["rollout_row", "matrix"] == pytest.approx((2.0, 2.0))
    assert grown["rollout_row", "library"] == pytest.approx((2.0, 1.0))


def test_share_of_the_matrix_product():
    document = fakes.document()
    entry = document["benchmarks"][1]
    expected = entry["extra_info"]["flops"] / entry["stats"]["median"] / fakes.PEAKS["matmul fp32"]
    assert report.share_of_matmul(document, entry) == pytest.approx(expected)
    assert 0 < expected < 1


def test_plots_are_pictures(tmp_path):
    (name,) = report.plot(fakes.document(), tmp_path)
    assert name == "rollout_row.png"
    with Image.open(tmp_path / name) as picture:
        assert min(picture.size) > 500
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 50
