"""Hugging Face's way to keep a model: config.json, model.safetensors and a card, on disk or on the Hub."""

from pathlib import Path
from typing import Any, Self

from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE
from torch import nn

from .checkpoint import load_weights

# They name files; a config that came from elsewhere must not choose which files are opened.
OF_FILES = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")

CARD = """---
{{ card_data }}
---

# {{ model_name | default("DCAL model", true) }}

Dual cross-attention learning (Zhu et al., CVPR 2022) on a vision transformer, trained with dca-triton.

```python
from dca_triton import DualAttentionModel

model = DualAttentionModel.from_pretrained("this repository or a local folder").eval()
outputs = model(images)  # (B, 3, h, w), normalised as in training
```

config.json holds the constructor's arguments, model.safetensors the weights; nothing in them is executed.

- Data and recipe: {{ training | default("[to be told]", true) }}
- Results: {{ results | default("[to be told]", true) }}
- Intended use and limits: {{ limits | default("[to be told]", true) }}
- Paper: {{ paper_url }}
"""


class HubMixin(
    PyTorchModelHubMixin,
    library_name="dca-triton",
    pipeline_tag="image-feature-extraction",
    tags=["dcal", "fine-grained", "re-identification", "vision-transformer"],
    paper_url="https://arxiv.org/abs/2205.02151",
    model_card_template=CARD,
):
    """Adds `save_pretrained`, `from_pretrained` and `push_to_hub` to a model.

    The config is the constructor's arguments as JSON, so layers are to be given by timm's names
    (norm_layer="rmsnorm"). `from_pretrained` takes a local folder, offline, or a repository on the Hub, with
    keyword arguments that override the config's; weights must fit entirely.
    """

    _not_json: list[str]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        model = super().__new__(cls, *args, **kwargs)
        model._not_json = sorted(name for name, value in kwargs.items() if not cls._is_jsonable(value))
        return model

    def _save_pretrained(self, save_directory: Path) -> None:
        if self._not_json:
            raise ValueError(
                f"{', '.join(self._not_json)} cannot be written to config.json; allowed are plain values, "
                "layers by their names in timm"
            )
        config = dict(self._hub_mixin_config or {})  # type: ignore[arg-type]
        self._hub_mixin_config = {k: v for k, v in config.items() if k not in OF_FILES} | {
            "pretrained": False
        }
        super()._save_pretrained(save_directory)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, map_location: str = "cpu", **options: Any) -> Self:
        hub = {
            k: options.pop(k)
            for k in ("revision", "cache_dir", "force_download", "local_files_only", "token")
        }
        if named := [name for name in OF_FILES if name in options]:
            raise ValueError(
                f"config.json of {model_id} gives {', '.join(named)}; allowed are none that name files"
            )
        if isinstance(options.get("img_size"), list):
            options["img_size"] = tuple(options["img_size"])
        try:
            model = cls(**options | {"pretrained": False})
        except TypeError as error:
            raise ValueError(f"config.json of {model_id} does not fit: {error}") from error
        if Path(model_id).is_dir():
            file = str(Path(model_id) / SAFETENSORS_SINGLE_FILE)
        else:
            file = hf_hub_download(model_id, SAFETENSORS_SINGLE_FILE, **hub)
        assert isinstance(model, nn.Module)
        load_weights(model, file)
        return model.to(map_location).eval()
