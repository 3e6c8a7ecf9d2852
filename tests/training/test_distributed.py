"""Two processes train as one: gradients of the joint batch, photos shared out, one writer, one stop."""

from itertools import chain

import pytest
from programs import output_of


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    """What the processes found, by the name of a test."""
    return output_of("two_processes.py", tmp_path_factory.mktemp("two processes"))


def test_gradients_equal_those_of_one_process_on_the_joint_batch(found):
    errors = found["gradients"]
    assert len(errors) == 8
    assert all(error < 1e-5 for each in errors.values() for error in each), errors


def test_training(found):
    runs = found["training"]

    for name in ("shuffled", "identities", "averaged"):
        first, second = runs[name]
        assert first["weights"] == second["weights"] and first["history"] == second["history"]
        assert first["files"] and not second["files"], "rank 0 alone writes"
        assert len(first["photos"]) == len(second["photos"])
    assert "best.pt" in runs["averaged"][0]["files"] and runs["averaged"][0]["history"][-1]["top1"] == 0.0

    first, second = (run["photos"] for run in runs["shuffled"])
    assert [len(batch) for batch in first] == [len(batch) for batch in second] == [4, 4, 2] * 2
    for epoch in (slice(0, 3), slice(3, 6)):
        seen = list(chain(*first[epoch], *second[epoch]))
        assert set(seen) == set(range(19)) and len(seen) == 20

    first, second = (run["photos"] for run in runs["identities"])
    for epoch in (slice(0, 4), slice(4, 8)):
        seen = list(chain(*first[epoch], *second[epoch]))
        assert len(seen) == len(set(seen)) == 32, "a photo went to both processes"
    assert all(len({photo % 4 for photo in batch}) == 2 for batch in first + second)

    assert runs["unequal"][0] == runs["unequal"][1]
    assert runs["alone"][0] == runs["alone"][1] and runs["alone"][0]["loss"] > 0
    same = "a sampler for 2 processes, as the launch has, got one for 1"
    assert all(len(said) == 2 and all(same in each for each in said) for said in runs["same_photos"])
    assert runs["stopped"] == [[1, True], [1, True]]

    for said in runs["stop"]:
        assert (
            "at epoch 1, step 1 the loss is nan; the batch holds 10.jpg, 11.jpg" in said
            and "00.jpg" not in said
        )
    first, second = runs["skip"]
    assert first == second and first["skipped"] == 1 and first["loss"] < 10


def test_fsdp2_trains_like_ddp(found):
    runs = found["sharding"]
    for replicated, sharded, resumed in zip(
        runs["replicated"], runs["sharded"], runs["resumed"], strict=True
    ):
        assert sharded["weights"] == replicated["weights"] == resumed["weights"]
        assert sharded["history"] == replicated["history"] == resumed["history"]
    clipped, sharded = (runs[name][0]["history"] for name in ("clipped", "sharded_and_clipped"))
    for ours, truth in zip(sharded, clipped, strict=True):  # shards sum the norm in another order
        assert ours == pytest.approx(truth, rel=1e-4)
    assert runs["same checkpoint"] == [True, True, True]
    assert not runs["sharded"][1]["files"]
    assert runs["same average"] == [True, True, True]
    for average, sharded, resumed in zip(
        runs["average"], runs["sharded_average"], runs["resumed_average"], strict=True
    ):
        assert average["weights"] == sharded["weights"] == resumed["weights"]
        assert average["history"] == sharded["history"] == resumed["history"]
        assert average["history"][0]["top1"] != average["history"][1]["top1"]
