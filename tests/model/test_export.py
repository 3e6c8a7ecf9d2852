"""The model as one graph: compiled without breaks or recompilations, free of host syncs, exported."""

import sys
from unittest import mock

import pytest
import torch
from called_operators import CalledOperators
from small_training import small_model
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from dca_triton.model import export, export_onnx, export_program
from dca_triton.ops import launch_table
from dca_triton.training import BranchLoss, UncertaintyWeightedLoss

LAYOUTS = pytest.mark.parametrize("layout", ["reference", "paper"])
DEPTHS = {"reference": 1, "paper": 2}  # below the reference's own two blocks, or with them


def photos(size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    images = torch.randn(size, 3, 16, 16, generator=generator)
    return images, torch.arange(size) % 4, torch.arange(size).roll(1)


class Step(torch.nn.Module):
    """A training step's loss."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.model = small_model(layout=layout, depth=DEPTHS[layout], drop_path_rate=0.4)
        self.weighting = UncertaintyWeightedLoss()
        self.branch_loss = BranchLoss()

    def forward(self, images, labels, partners):
        outputs = self.model(images, partner_index=partners, class_tokens_only=True)
        return self.weighting(self.branch_loss(outputs, labels))["total_loss"]


@pytest.fixture
def compiler():
    """A fresh one that counts, and refuses to compile anything a second time."""
    torch.compiler.reset()
    counters.clear()
    yield counters
    torch.compiler.reset()


@LAYOUTS
def test_the_training_step_compiles_once_for_all_batch_sizes(layout, compiler):
    step = Step(layout).train()
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (4, 3, 7):
        # With symbolic floats Dynamo would compile everything twice.
        with torch._dynamo.config.patch(error_on_recompile=size != 4, specialize_float=True):
            gradients = []
            for way in (compiled, step):
                step.zero_grad()
                torch.manual_seed(size)  # of the images that stochastic depth drops
                loss = way(*photos(size))
                loss.backward()
                gradients.append([loss.detach(), *(p.grad for p in step.parameters())])
        for ours, eager in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-6)
    assert compiler["stats"]["unique_graphs"] == 1
    assert not compiler["graph_break"]


@LAYOUTS
def test_evaluation_compiles_once_for_all_batch_sizes(layout, compiler):
    model = small_model(layout=layout, depth=DEPTHS[layout]).eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    with torch.no_grad():
        for size in (4, 3, 7):
            with torch._dynamo.config.patch(error_on_recompile=size != 4):
                outputs = compiled(photos(size)[0])
            for name, value in model(photos(size)[0]).items():
                torch.testing.assert_close(outputs[name], value, rtol=1e-4, atol=1e-5)
    assert compiler["stats"]["unique_graphs"] == 1
    assert not compiler["graph_break"]


class Called(CalledOperators):
    """Counts operators, and those for which the host waits: for values, or for copies from the device."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[str] = []

    def look(self, name, inputs, outputs):
        devices = [{x.device.type for x in part if isinstance(x, torch.Tensor)} for part in (inputs, outputs)]
        asks = any(word in name for word in ("_local_scalar_dense", "nonzero", "masked_select", "unique"))
        if asks or ("cuda" in devices[0] and devices[1] == {"cpu"}):
            self.waiting.append(name)


@pytest.fixture
def fake_gpu():
    """Tensors on a GPU that is not there: shapes without values, so a host sync would fail."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    capability = mock.patch.object(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    gpu = mock.patch.object(launch_table, "gpu_of", lambda _: launch_table.Gpu("Fake", "sm_90"))
    with capability, gpu, FakeTensorMode(allow_non_fake_inputs=True):
        yield
    torch.__future__.set_overwrite_module_params_on_conversion(before)


@LAYOUTS
@pytest.mark.parametrize("training", [True, False])
def test_the_host_never_waits_for_a_gpu(layout, training, fake_gpu):
    """In eager mode, through the Triton operators: what a CUDA graph can capture."""
    pytest.importorskip("triton")
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        step = Step(layout)
    step.model.cache = None
    step.to_empty(device="cuda").train(training)
    images, labels, partners = (tensor.cuda() for tensor in photos(4))
    with Called() as called:
        if training:
            step(images, labels, partners)
        else:
            step.model(images)
    assert not called.waiting
    assert called.names["dca_triton.attention.default"] >= 3
    assert called.names["dca_triton.rollout_row.default"] == (0 if training else 1)


@LAYOUTS
@pytest.mark.parametrize("class_tokens_only", [True, False])
def test_partners_are_inverted_once_a_step(layout, class_tokens_only, fake_gpu):
    """By a sort; in the paper's layout the last block has PWCA rows alone, whose partners are others."""
    pytest.importorskip("triton")
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        model = small_model(layout=layout, depth=4, num_sa_blocks=4, drop_path_rate=0.0)
    model.to_empty(device="cuda").train()
    images, _, partners = (tensor.cuda() for tensor in photos(4))
    with Called() as called:
        model(images, partner_index=partners, class_tokens_only=class_tokens_only)
    sorts = 2 if layout == "paper" and class_tokens_only else 1
    assert called.names["aten.sort.stable"] == sorts


def test_a_wait_is_seen(fake_gpu):
    images = photos(4)[0].cuda()
    with pytest.raises(DataDependentOutputException):
        images.sum().item()
    with Called() as called:
        images.to("cpu")
    assert called.waiting == ["aten._to_copy.default"]


@LAYOUTS
@pytest.mark.parametrize("class_tokens_only", [False, True])
def test_exported_program(layout, class_tokens_only):
    model = small_model(layout=layout, depth=DEPTHS[layout], backend="triton")
    program = export_program(model, class_tokens_only).module()
    assert model.backend == "triton"
    model.backend = "torch"
    for size in (1, 5):
        images = photos(size)[0]
        with torch.no_grad():
            ours, truth = (
                program(images, class_tokens_only=class_tokens_only),
                model(images, class_tokens_only=class_tokens_only),
            )
        assert list(ours) == list(truth)
        for name, value in truth.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout, task", [("reference", "fgvc"), ("paper", "reid")])
def test_onnx(layout, task, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    own = {"depth": 1, "num_sa_blocks": 1, "num_glca_blocks": 2} if layout == "reference" else {}
    model = small_model(layout=layout, task_type=task, **own)
    export_onnx(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for size in (1, 5):
        images = photos(size)[0]
        with torch.no_grad():
            truth = model(images)
        assert [output.name for output in session.get_outputs()] == list(truth)
        outputs = session.run(None, {"x": images.numpy()})
        for ours, (name, value) in zip(outputs, truth.items(), strict=True):
            torch.testing.assert_close(torch.from_numpy(ours), value, rtol=1e-4, atol=1e-5, msg=name)


def test_onnx_is_refused_before_any_work(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    model = small_model()
    monkeypatch.setattr(export, "export_program", mock.Mock(side_effect=AssertionError("work was done")))
    for path, told in (("m.pt", r"end in \.onnx"), ("no/m.onnx", "be in a folder that exists")):
        with pytest.raises(ValueError, match=f"path must {told}"):
            export_onnx(model, tmp_path / path)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"onnxscript must be installed.*dca-triton\[export\]"):
        export_onnx(model, tmp_path / "m.onnx")
    monkeypatch.undo()
    (tmp_path / "m.onnx").write_text("an older one")
    monkeypatch.setattr(export, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="weights must be less than 2 GiB in an ONNX file"):
        export_onnx(model, tmp_path / "m.onnx")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("m.onnx", "an older one")]
