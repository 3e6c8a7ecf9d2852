"""Readouts, branches and PWCA's blocks survive saving, loading, resuming, exporting and compiling."""

from pathlib import Path

import pytest
import torch
from small_training import bits, small_model, small_trainer

from dca_triton import DualAttentionModel
from dca_triton.evaluation import evaluate_fgvc
from dca_triton.model import export_program
from dca_triton.training import BranchLoss

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
PARTNERS = torch.tensor([1, -1, 0])
OPTIONS = [
    {"sa_readout": "both", "glca_readout": "local", "pwca_blocks": (2, 2)},
    {"branches": ("sa", "glca"), "glca_readout": "both"},
    {"branches": ("sa", "pwca"), "pwca_blocks": (1, 1), "sa_readout": "local"},
    {"num_glca_blocks": 2, "glca_readout": "both"},
]
CASES = pytest.mark.parametrize("options", OPTIONS, ids=str)
LAYOUTS = pytest.mark.parametrize("layout", ["reference", "paper"])


def built(layout: str, options: dict, **more: object) -> DualAttentionModel:
    return small_model(**({"layout": layout, "depth": 1 if layout == "reference" else 2} | options | more))


@LAYOUTS
@CASES
def test_saved_and_loaded(layout: str, options: dict, tmp_path: Path) -> None:
    model = built(layout, options, task_type="reid").eval()
    model.save_pretrained(tmp_path)
    again = DualAttentionModel.from_pretrained(tmp_path)
    assert (again.branches, again.pwca_blocks) == (model.branches, model.pwca_blocks)
    torch.testing.assert_close(again(IMAGES), model(IMAGES), rtol=0, atol=0)


@LAYOUTS
@CASES
def test_trained_resumed_and_scored(layout: str, options: dict, tmp_path: Path) -> None:
    ends = []
    for epochs in ([2], [1, 2]):
        folder = tmp_path / str(len(epochs))
        for number, count in enumerate(epochs):
            trainer = small_trainer(model=built(layout, options))
            history = trainer.train(count, folder, resume="auto" if number else None)
        ends.append(bits(trainer.model.state_dict()))
        losses = {name for name in history[-1] if name.endswith("_loss")} - {"total_loss"}
        weights = {name for name in history[-1] if name.endswith("_weight")}
        assert losses == {f"{branch}_loss" for branch in trainer.model.branches}
        assert weights == {f"{loss}_weight" for loss in losses}
    assert ends[0] == ends[1]
    again = DualAttentionModel.from_pretrained(folder)
    assert bits(again.state_dict()) == ends[1]
    scores = evaluate_fgvc(again, [{"image": IMAGES, "label": torch.tensor([0, 1, 2])}], progress=False)
    assert {name.partition("_")[0] for name in scores} == {*again.branches, "sum"} - {"pwca"}


def test_another_choice_is_another_run(tmp_path: Path) -> None:
    small_trainer(model=small_model()).train(1, tmp_path)
    for options, words in (
        ({"glca_readout": "local"}, "glca_readout"),
        ({"pwca_blocks": (2, 2)}, "pwca_blocks"),
    ):
        with pytest.raises(ValueError, match=words):
            small_trainer(model=small_model(**options)).train(2, tmp_path, resume="auto")


@LAYOUTS
@CASES
@pytest.mark.parametrize("class_tokens_only", [False, True])
def test_exported(layout: str, options: dict, class_tokens_only: bool) -> None:
    # Two blocks where their number matters; tracing takes long.
    one = {} if "pwca_blocks" in options else {"depth": 1, "num_sa_blocks": 1}
    model = built(layout, options, **one)
    program = export_program(model, class_tokens_only)
    outputs = program.module()(IMAGES[:2], class_tokens_only=class_tokens_only)
    torch.testing.assert_close(outputs, model.eval()(IMAGES[:2], class_tokens_only=class_tokens_only))


@LAYOUTS
def test_compiled(layout: str) -> None:
    torch.compiler.reset()
    model = built(layout, OPTIONS[0], drop_path_rate=0.0).train()
    given = {"partner_index": PARTNERS}
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    gradients = []
    for way in (compiled, model):
        model.zero_grad()
        losses = BranchLoss()(way(IMAGES, **given, class_tokens_only=True), torch.tensor([0, 1, 1]))
        sum(losses.values()).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*gradients)
    torch.compiler.reset()


@LAYOUTS
@CASES
def test_checkpointed_blocks_give_the_same_gradients(layout: str, options: dict) -> None:
    model = built(layout, options, drop_path_rate=0.4).train()
    given = {"partner_index": PARTNERS} if "pwca" in model.branches else {}
    gradients = []
    for checkpoints in (False, True):
        model.set_grad_checkpointing(checkpoints)
        model.zero_grad()
        torch.manual_seed(3)  # of the images that stochastic depth drops
        outputs = model(IMAGES, **given, class_tokens_only=True)
        sum(x.square().sum() for name, x in outputs.items() if name.endswith("_logits")).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*gradients)
