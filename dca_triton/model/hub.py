"""Hugging Face's way to keep a model: config.json, model.safetensors and a card, on disk or on the Hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE

from ..arguments import shown
from ..checkpoint import load_checkpoint, load_weights
from ..description import Description
from ..run_folder import RunFolder
from .hub_files import build, check_size, evaluation_weights, read_config, sizes_of, with_ties

# They name files; a config that came from elsewhere must not choose which files are opened.
FILE_ARGUMENTS = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")

CARD = """---
{{ card_data }}
---

# {{ model_name | default("DCAL model", true) }}

Dual cross-attention learning (Zhu et al., CVPR 2022) on a vision transformer, trained with dca-triton.

```python
from dca_triton import DualAttentionModel

model = DualAttentionModel.from_pretrained("this repository or a local folder").eval()
outputs = model(images)  # (B, 3, h, w), normalized as in training
```

`model.description` holds the classes, the size and the normalization. config.json holds the constructor's
arguments, model.safetensors the weights; nothing in them is executed.

- Data and recipe: {{ training | default("[not given]", true) }}
- Results: {{ results | default("[not given]", true) }}
- Intended use and limits: {{ limits | default("[not given]", true) }}
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

    config.json holds the constructor's arguments, so layers must be given by their names in timm
    (norm_layer="rmsnorm"), and the model's description.

    Attributes:
        description: Classes, size and normalization of a trained model; None where they are unknown.
    """

    description: Description | None = None
    _not_json: list[str]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        model = super().__new__(cls, *args, **kwargs)
        model._not_json = sorted(name for name, value in kwargs.items() if not cls._is_jsonable(value))
        return model

    def save_pretrained(
        self, save_directory: str | Path, *, config: Any = None, **options: Any
    ) -> str | None:
        """Write config.json, model.safetensors and README.md, a card, to a folder.

        Args:
            save_directory: Made if it does not exist; an edited card in it is kept.
            config: Instead of the constructor's arguments.
            **options: As in `huggingface_hub.PyTorchModelHubMixin.save_pretrained`, e.g. model_card_kwargs.

        Raises:
            ValueError: Arguments that JSON cannot hold.
        """
        return super().save_pretrained(save_directory, config=config or self._config(), **options)

    def _config(self) -> dict[str, Any]:
        if self._not_json:
            raise ValueError(
                f"{', '.join(self._not_json)} must be plain values, which config.json can hold (layers by "
                "their names in timm), got objects"
            )
        arguments: Mapping[str, Any] = self._hub_mixin_config or {}  # type: ignore[assignment]
        config = {name: value for name, value in arguments.items() if name not in FILE_ARGUMENTS}
        described = {} if self.description is None else {"description": self.description.plain()}
        return config | {"pretrained": False} | described

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        map_location: str = "cpu",
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        **options: Any,
    ) -> Self:
        """Load a model in evaluation mode; nothing in its files is executed.

        Args:
            pretrained_model_name_or_path: A folder of `save_pretrained`, the folder of a training run, or a
                repository on the Hub. Of a run, the newest undamaged checkpoint is read, with averaged
                weights if it has them. If a folder is both, the run's checkpoint is read.
            map_location: The model's device.
            force_download: As in `huggingface_hub`; so are `token`, `cache_dir`, `local_files_only` and
                `revision`.
            **options: Override the constructor's arguments. The weights must still fit entirely.

        Raises:
            FileNotFoundError: The folder holds neither.
            ValueError: A file, or files that are damaged or do not fit each other.
        """
        name = str(pretrained_model_name_or_path)
        if not name:
            raise ValueError("pretrained_model_name_or_path must be a folder or a repository, got ''")
        folder = Path(name)
        if folder.is_file():
            raise ValueError(
                f"pretrained_model_name_or_path must be a folder or a repository, got {name!r}, a file; "
                "load_weights takes a checkpoint"
            )
        run = RunFolder(folder).find("auto")
        if run is not None:
            model = cls.from_checkpoint(*run, **options)
        elif folder.is_dir() and not (folder / CONFIG_NAME).exists():
            raise FileNotFoundError(
                f"{name!r} must be a folder with {CONFIG_NAME} or checkpoint.pt, got neither"
            )
        else:
            hub: dict[str, Any] = {
                "force_download": force_download,
                "token": token,
                "cache_dir": cache_dir,
                "local_files_only": local_files_only,
                "revision": revision,
            }
            config, file = (
                folder / part if folder.is_dir() else Path(str(hf_hub_download(name, part, **hub)))
                for part in (CONFIG_NAME, SAFETENSORS_SINGLE_FILE)
            )
            model = cls._of_files(name, config, file, options)
        return model.to(map_location).eval()  # type: ignore[attr-defined]

    @classmethod
    def from_checkpoint(cls, path: Path, state: Mapping[str, Any], **options: Any) -> Self:
        """A model with the weights of a run's checkpoint, averaged ones where it has them.

        Args:
            path: The checkpoint's file, for errors.
            state: What `load_checkpoint` read from it; it must hold "model_arguments".
            **options: Override the arguments.

        Raises:
            ValueError: The checkpoint does not describe its model, or its weights do not fit.
        """
        arguments = state.get("model_arguments")
        if arguments is None:
            raise ValueError(
                f"checkpoint {path} must hold model_arguments, got none: it was written by another program "
                "or an older version (build its model, then load_weights loads the weights)"
            )
        if not isinstance(arguments, Mapping):
            raise ValueError(f"model_arguments of checkpoint {path} must be a dict, got {shown(arguments)}")
        own = {str(k): v for k, v in arguments.items() if k not in FILE_ARGUMENTS}
        weights = evaluation_weights(path, state)
        source = f"model_arguments of checkpoint {path}"
        check_size(cls, own, options, sizes_of(weights), source)
        model = build(cls, own, options, source)
        load_weights(model, {"model_state_dict": weights})
        if state.get("description") is not None:
            model.description = Description.of(state["description"], f"checkpoint {path}")
        return model

    @classmethod
    def _of_files(cls, name: str, config: Path, file: Path, options: dict[str, Any]) -> Self:
        arguments = read_config(config, name)
        source = f"config.json of {name}"
        if named := [key for key in FILE_ARGUMENTS if key in arguments]:
            raise ValueError(f"{source} must not name files, got {', '.join(named)}")
        described = arguments.pop("description", None)
        weights = load_checkpoint(file)
        check_size(cls, arguments, options, sizes_of(weights), source)
        model = build(cls, arguments, options, source)
        load_weights(model, with_ties(model, weights))
        if described is not None:
            model.description = Description.of(described, source)
        return model
