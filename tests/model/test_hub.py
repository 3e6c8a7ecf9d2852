"""Models in folders: saved, loaded offline, described, and refused where they do not fit."""

import copy
import json
import pickle

import pytest
import safetensors.torch
import torch
from small_training import small_model
from torch import nn

from dca_triton.description import Description
from dca_triton.model import DualAttentionModel

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*arguments, **_):
        raise AssertionError(f"requested from the network: {arguments}")

    monkeypatch.setattr("dca_triton.model.hub.hf_hub_download", refuse)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", refuse)


@pytest.mark.parametrize("layout", ["reference", "paper"])
@pytest.mark.parametrize("task", ["fgvc", "reid"])
def test_there_and_back(layout, task, tmp_path):
    model = small_model(seed=3, layout=layout, task_type=task, img_size=(32, 16)).eval()
    model.save_pretrained(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["backbone_name"] == "test_vit" and config["layout"] == layout and config["depth"] == 2
    assert config["pretrained"] is False

    torch.manual_seed(9)
    again = DualAttentionModel.from_pretrained(tmp_path)
    assert not again.training and again.backbone.grid_size == model.backbone.grid_size
    images = torch.randn(2, 3, 32, 16)
    with torch.no_grad():
        for name, value in model(images).items():
            assert torch.equal(again(images)[name], value)
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "config.json").read_text()


def test_card(tmp_path):
    small_model().save_pretrained(
        tmp_path, model_card_kwargs={"model_name": "Birds", "results": "top-1 91 %"}
    )
    card = (tmp_path / "README.md").read_text()
    for text in ("# Birds", "top-1 91 %", "library_name: dca-triton", "arxiv.org/abs/2205.02151", "- dcal"):
        assert text in card


def test_files_of_the_machine_stay_out_of_the_config(tmp_path):
    weights = tmp_path / "weights.pt"
    torch.save(small_model().backbone.model.state_dict(), weights)
    model = small_model(pretrained=True, pretrained_cfg_overlay={"file": str(weights), "num_classes": 0})
    model.save_pretrained(tmp_path / "saved")
    assert str(tmp_path) not in (tmp_path / "saved" / "config.json").read_text()
    weights.unlink()
    again = DualAttentionModel.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.sa_head.weight, model.sa_head.weight)


def test_options_override_the_config(tmp_path):
    small_model().save_pretrained(tmp_path)
    model = DualAttentionModel.from_pretrained(tmp_path, top_k_ratio=0.9, cache_attention_rollout=False)
    assert model.top_k_ratio == 0.9 and model.cache is None


def test_layers_are_given_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"norm_layer must be plain values, .*config\.json .*names in timm"):
        small_model(norm_layer=nn.RMSNorm).save_pretrained(tmp_path)
    small_model(norm_layer="rmsnorm").save_pretrained(tmp_path)
    model = DualAttentionModel.from_pretrained(tmp_path)
    assert "RmsNorm" in type(model.backbone.model.norm).__name__


def test_a_tag_of_timm_names_the_weights(tmp_path):
    model = DualAttentionModel("test_vit.r160_in1k", 4, pretrained=False, img_size=16, num_heads=4)
    model.save_pretrained(tmp_path)
    assert DualAttentionModel.from_pretrained(tmp_path).num_classes == 4


@pytest.mark.parametrize(
    "change, words",
    [
        ({"checkpoint_path": "/etc/passwd"}, "must not name files, got checkpoint_path"),
        ({"pretrained_cfg_overlay": {"file": "../x.pt"}}, "must not name files, got pretrained_cfg_overlay"),
        ({"backbone_name": "hf-hub:someone/model"}, "must be a timm model .*got 'hf-hub:someone/model'"),
        ({"backbone_name": "local-dir:/tmp"}, "must be a timm model .*got 'local-dir:/tmp'"),
        ({"num_classes": 0, "top_k_ratio": 7}, "num_classes must be .*got 0; top_k_ratio must be .*got 7"),
        ({"num_classes": 5}, "does not fit the model: .*of another shape"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_hostile_configs(change, words, tmp_path):
    small_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=words):
        DualAttentionModel.from_pretrained(tmp_path)


def test_weights_must_be_whole_and_all_there(tmp_path):
    model = small_model()
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        DualAttentionModel.from_pretrained(tmp_path)
    state = model.state_dict()
    del state["sa_head.weight"]
    safetensors.torch.save_file(state, file)
    with pytest.raises(ValueError, match=r"1 missing \(sa_head\.weight\)"):
        DualAttentionModel.from_pretrained(tmp_path)
    file.unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors does not exist"):
        DualAttentionModel.from_pretrained(tmp_path)


def test_copies_and_pickles_keep_the_config(tmp_path):
    model = small_model(top_k_ratio=0.25)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        again.save_pretrained(tmp_path / "again")
        assert json.loads((tmp_path / "again" / "config.json").read_text())["top_k_ratio"] == 0.25


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "3",
        '"backbone_name"',
        "null",
        "",
        "{",
        "\ufeff{}",
        "{}",
        '{"backbone_name": null}',
        '{"backbone_name": "test_vit"}',
        '{"backbone_name": ["test_vit"], "num_classes": {"a": 1}}',
        '{"self": 1, "cls": 2, "backbone_name": "test_vit", "num_classes": 4}',
        '{"": 1, "backbone_name": "test_vit", "num_classes": 4}',
        '{"backbone_name": "test_vit", "num_classes": 1' + "0" * 400 + "}",
        '{"backbone_name": "test_vit", "num_classes": 1' + "0" * 5000 + "}",
        '{"backbone_name": "test_vit", "num_classes": 1000000000000}',
        '{"backbone_name": "test_vit", "num_classes": 4, "depth": 1000000000}',
        '{"backbone_name": "test_vit", "num_classes": 4, "num_sa_blocks": 1000000000}',
        '{"backbone_name": "test_vit", "num_classes": 4, "img_size": 1000000, "layout": "paper"}',
        '{"backbone_name": "test_vit", "num_classes": 4, "img_size": [1e9, NaN]}',
        '{"backbone_name": "test_vit", "num_classes": 4, "img_size": []}',
        '{"backbone_name": "test_vit", "num_classes": 4, "description": 3}',
        '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"a": "' + "x" * 2**20 + '"}',
    ],
)
def test_a_config_of_any_shape_ends_in_a_sentence(text, tmp_path):
    small_model().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"config\.json of .*(must|does not fit)|does not fit the model"
    ) as caught:
        DualAttentionModel.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1500


def test_a_description_that_is_damaged(tmp_path):
    model = small_model()
    model.description = Description(
        "fgvc", tuple("abcd"), (16, 16), (0.5,) * 3, (0.5,) * 3, "folder", 20, 8, 4, 0, 0
    )
    model.save_pretrained(tmp_path)
    assert DualAttentionModel.from_pretrained(tmp_path).description == model.description
    assert copy.deepcopy(model).description == model.description
    config = json.loads((tmp_path / "config.json").read_text())
    for change, words in (
        ({"classes": [1, 2]}, "classes must be a list of names, got "),
        (
            {"mean": [0, 0, 1e999], "std": [0, 1, 1]},
            "mean must be 3 finite .*; std must be 3 finite numbers > 0",
        ),
        ({"size": "16"}, "size must be a height and a width"),
        ({"nonsense": 1}, "got .*nonsense"),
    ):
        damaged = config | {"description": config["description"] | change}
        (tmp_path / "config.json").write_text(json.dumps(damaged))
        with pytest.raises(ValueError, match=rf"description in config\.json of .*{words}"):
            DualAttentionModel.from_pretrained(tmp_path)


class TiedHeads(DualAttentionModel):
    """Its heads share one weight, and its constructor takes neither a backbone nor `pretrained`."""

    def __init__(self, num_classes: int) -> None:
        super().__init__("test_vit", num_classes, layout="paper", pretrained=False, img_size=16, depth=2)
        self.glca_head.weight = self.sa_head.weight


class OtherArguments(DualAttentionModel):
    def __init__(self, num_classes: int, **options) -> None:
        super().__init__("test_vit", num_classes, layout="paper", pretrained=False, img_size=16, **options)


class Forwarding(DualAttentionModel):
    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TiedHeads(5),
        lambda: TiedHeads(num_classes=5),
        lambda: OtherArguments(5, depth=2),
        lambda: Forwarding(
            backbone_name="test_vit", num_classes=5, pretrained=False, img_size=16, num_heads=4
        ),
    ],
)
def test_subclasses(make, tmp_path):
    model = make().eval()
    model.save_pretrained(tmp_path)
    torch.manual_seed(1)
    again = type(model).from_pretrained(tmp_path)
    assert type(again) is type(model)
    with torch.no_grad():
        for name, value in model(IMAGES).items():
            assert torch.equal(again(IMAGES)[name], value)
    if isinstance(model, TiedHeads):
        assert again.glca_head.weight is again.sa_head.weight


def crafted(**changes):
    model = small_model()
    state = {
        "model_state_dict": model.state_dict(),
        "ema_state_dict": None,
        "model_arguments": model._hub_mixin_config,
        "description": None,
    }
    return state | changes


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"ema_state_dict": torch.zeros(2)}, r"ema_state_dict of checkpoint .* must be a dict of tensors"),
        ({"ema_state_dict": torch.zeros(1)}, r"ema_state_dict of checkpoint .* must be a dict of tensors"),
        ({"ema_state_dict": {}}, "must fit its weights of 0 values"),
        ({"model_state_dict": "/etc/passwd"}, r"model_state_dict of checkpoint .* must be a dict of tensors"),
        ({"model_arguments": 3}, r"model_arguments of checkpoint .* must be a dict, got 3"),
        (
            {"model_arguments": torch.zeros(2)},
            r"model_arguments of checkpoint .* must be a dict, got a float32",
        ),
        ({"description": torch.zeros(2)}, "description in checkpoint .* must be a dict, got a float32"),
        ({"description": "x"}, "description in checkpoint .* must be a dict, got 'x'"),
    ],
)
def test_crafted_checkpoints(changes, words, tmp_path):
    torch.save(crafted(**changes), tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=words):
        DualAttentionModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("name, value", [("depth", 10**6), ("depth", 50)])
def test_a_checkpoint_for_a_far_larger_model_takes_no_memory(name, value, tmp_path):
    state = crafted()
    state["model_arguments"] = {**state["model_arguments"], name: value}
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"must fit its weights of .* got a model of"):
        DualAttentionModel.from_pretrained(tmp_path)


def test_an_empty_name_is_not_the_current_folder():
    with pytest.raises(ValueError, match="must be a folder or a repository, got ''"):
        DualAttentionModel.from_pretrained("")


def test_a_checkpoint_is_not_looked_up_on_the_hub(tmp_path):
    (tmp_path / "best.pt").touch()
    with pytest.raises(
        ValueError, match=r"must be a folder or a repository, got '.*best\.pt', a file; load_w"
    ):
        DualAttentionModel.from_pretrained(tmp_path / "best.pt")


def test_an_option_of_the_call_is_not_blamed_on_the_file(tmp_path):
    small_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^top_k_ratio must be in \(0, 1\], got nan"):
        DualAttentionModel.from_pretrained(tmp_path, top_k_ratio=float("nan"))
