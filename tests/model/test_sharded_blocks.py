"""Two processes: FSDP2 with a unit per block gives DDP's gradients and trains like it; DDP without pairs."""

import pytest
from programs import output_of

LAYOUTS = pytest.mark.parametrize("layout", ["paper", "reference"])


@pytest.fixture(scope="module")
def found() -> list[dict]:
    """What each of the two processes found."""
    return output_of("sharded_blocks.py")


@pytest.mark.parametrize("layout", ["paper", "reference", "rotary", "biased", "talking", "windows"])
@pytest.mark.parametrize("rows", ["all", "class"])
def test_a_unit_per_block_gives_the_gradients_of_ddp(found: list[dict], layout: str, rows: str) -> None:
    for each in found:
        gradients = each[f"{layout}, {rows}"]
        assert gradients["sharded"] > 0 and gradients["error"] < 1e-9, gradients


@LAYOUTS
def test_the_trainer_shards_each_block_and_trains_like_ddp(found: list[dict], layout: str) -> None:
    """By Accelerate's TRANSFORMER_BASED_WRAP, with an average of the weights and gradient checkpointing."""
    blocks = {"paper": 2 + 1, "reference": 2 + 2 + 1}  # of the backbone, SA, GLCA
    for each in found:
        trainer = each[f"{layout}, trainer"]
        assert trainer["units"] == blocks[layout] + 1, "and the rest of the model"
        assert max(trainer["errors"].values()) < 1e-6 < 1e-4 < trainer["moved"], trainer["errors"]
        for ours, expected in zip(*trainer["histories"], strict=True):
            assert ours == pytest.approx(expected, rel=1e-5)


@LAYOUTS
def test_ddp_without_pairs_trains_with_a_frozen_pwca_head(found: list[dict], layout: str) -> None:
    assert all(each[f"{layout}, no pairs"] for each in found)
