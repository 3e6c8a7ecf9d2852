"""The trainer passes the cameras and views of a batch to the model, those of partners too."""

from types import SimpleNamespace

import pytest
import torch
from small_training import Photos, bits, small_model, small_trainer
from torch import Tensor

from dca_triton.checkpoint import load_checkpoint, save_checkpoint
from dca_triton.evaluation import embed, flip_averaged
from dca_triton.training import PairSampler, training_loader
from dca_triton.training.parameter_groups import parameter_groups


class SeenPhotos(Photos):
    """Photos with a camera and a view, which can be read off the first two pixels."""

    def __getitem__(self, index: int) -> dict:
        item = super().__getitem__(index)
        item["image"][0, 0, :2] = torch.tensor([index % 3 + 5, index % 2])
        return item | {"camera": index % 3 + 5, "view": index % 2}


def seeing(**options):
    sides = {"task_type": "reid", "cameras": [5, 6, 7], "views": [0, 1]}
    return small_model(**(sides | options))


def trainer(photos: type[Photos] = SeenPhotos, model=None, **options):
    batches = training_loader(photos(), 8, per_identity=2, workers=0)
    return small_trainer(batches, seeing() if model is None else model, **options)


def test_a_step_is_that_of_the_batchs_cameras(tmp_path) -> None:
    seen: list[dict] = []
    run = trainer(pairs=PairSampler("hard_negative"))
    run.model.register_forward_pre_hook(
        lambda _, x, kwargs: seen.append({"x": x[0], **kwargs}), with_kwargs=True
    )
    before = run.model.sie.table.clone()
    run.train(1, tmp_path)
    assert len(seen) >= 4  # hard negatives are chosen by an evaluation
    for call in seen:
        assert torch.equal(call["cameras"], call["x"][:, 0, 0, 0].long())
        assert torch.equal(call["views"], call["x"][:, 0, 0, 1].long())
    assert (run.model.sie.table != before).all()


def test_batches_without_cameras_are_refused(tmp_path) -> None:
    reason = "cameras must be given in training, as the model has embeddings of cameras, got None; views must"
    with pytest.raises(ValueError, match=reason):
        trainer(Photos).train(1, tmp_path)


def test_partners_of_other_processes_bring_their_cameras() -> None:
    run = trainer(gather_partners=True)
    run.objective.accelerator = SimpleNamespace(
        num_processes=2,
        process_index=1,
        device=torch.device("cpu"),
        gather=lambda t: torch.cat([t.flip(0), t]),
        pad_across_processes=lambda t: t,
    )
    batch = next(iter(run.run.batches))
    sides, draws = run.model.sides_of(batch), torch.Generator().manual_seed(0)
    found: dict[str, Tensor] = run.objective._pair(batch["image"], batch["label"], sides, draws, draws)
    assert found.keys() == {"x_pair", "pair_cameras", "pair_views"}
    assert torch.equal(found["pair_cameras"], found["x_pair"][:, 0, 0, 0].long())
    assert torch.equal(found["pair_views"], found["x_pair"][:, 0, 0, 1].long())
    assert not torch.equal(found["pair_cameras"], batch["camera"])
    run.model(batch["image"], **found, **sides)


def test_a_resumed_run_has_the_bits_of_a_whole_one(tmp_path) -> None:
    trainer().train(1, tmp_path / "parts")
    trainer().train(2, tmp_path / "parts", resume="auto")
    trainer().train(2, tmp_path / "whole")
    parts, whole = (load_checkpoint(tmp_path / run / "checkpoint.pt") for run in ("parts", "whole"))
    assert bits(parts["model_state_dict"]) == bits(whole["model_state_dict"])
    with pytest.raises(ValueError, match=r"model.cameras\[2\] must be 7, got 8"):
        trainer(model=seeing(cameras=[5, 6, 8])).train(3, tmp_path / "parts", resume="auto")


def test_a_run_of_an_earlier_version_had_no_cameras(tmp_path) -> None:
    plain = small_model(task_type="reid")
    trainer(model=plain).train(1, tmp_path)
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    for name in ("cameras", "views", "sie_weight", "patch_stride"):
        del state["model_arguments"][name]
    save_checkpoint(tmp_path / "checkpoint.pt", state)
    trainer(model=small_model(task_type="reid")).train(2, tmp_path, resume="auto")
    state["model_arguments"]["patch_stride"] = 4
    save_checkpoint(tmp_path / "checkpoint.pt", state)
    with pytest.raises(ValueError, match=r"model\.patch_stride must be 4, got None"):
        trainer(model=small_model(task_type="reid")).train(3, tmp_path, resume="auto")


def test_the_embeddings_have_the_full_rate_and_no_decay() -> None:
    model = seeing()
    groups = parameter_groups(model, 0.05, weight_decay_exclude_1d=True, layer_decay=0.5)
    (own,) = [group for group in groups if any(p is model.sie.table for p in group["params"])]
    assert own["lr_scale"] == 1.0 and own["weight_decay"] == 0.0
    (decayed,) = parameter_groups(model, 0.05)
    assert any(p is model.sie.table for p in decayed["params"])
    backbone, on_top = model.get_parameter_groups(1.0, 2.0)
    assert any(p is model.sie.table for p in on_top["params"]) and len(backbone["params"]) > 0


@torch.no_grad()
def test_embed_and_flip_averaging_pass_cameras() -> None:
    model = seeing().eval()
    (batch,) = training_loader(SeenPhotos(8), 8, workers=0)
    images, sides = batch["image"], model.sides_of(batch)
    truth = model.extract_features(images, **sides)
    found = embed(model, [batch], progress=False)
    torch.testing.assert_close(found.features, truth)
    assert not torch.allclose(found.features, embed(model, [{**batch, "camera": -sides["cameras"]}]).features)
    mirrored = model.extract_features(images.flip(-1), **sides)
    flipped = embed(flip_averaged(model), [batch], progress=False).features
    torch.testing.assert_close(flipped, (truth + mirrored) / 2)
