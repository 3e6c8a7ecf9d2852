"""Hugging Face's way to keep a model: config.json, model.safetensors and a card, on disk or on the Hub."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..checkpoint import load_checkpoint, load_weights
from ..description import Description

# They name files; a config that came from elsewhere must not choose which files are opened.
FILE_ARGUMENTS = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
MAX_CONFIG_BYTES = 2**20
RUN_CHECKPOINT = "checkpoint.pt"  # the newest of a training run

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
            pretrained_model_name_or_path: A folder of `save_pretrained`, the folder of a training run (its
                newest checkpoint, with averaged weights where it has them), or a repository on the Hub.
            map_location: The model's device.
            force_download: As `token`, `cache_dir`, `local_files_only` and `revision` in `huggingface_hub`.
            **options: Override the constructor's arguments. The weights must still fit entirely.

        Raises:
            FileNotFoundError: The folder holds neither.
            ValueError: Files that are damaged or do not fit each other.
        """
        name = str(pretrained_model_name_or_path)
        folder = Path(name)
        if folder.is_dir() and not (folder / CONFIG_NAME).exists():
            path = folder / RUN_CHECKPOINT
            if not path.exists():
                raise FileNotFoundError(
                    f"{name!r} must be a folder with {CONFIG_NAME} or {path.name}, got neither"
                )
            model = cls.from_checkpoint(path, load_checkpoint(path), **options)
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
        if not isinstance(arguments, Mapping):
            raise ValueError(
                f"checkpoint {path} must hold model_arguments, got none: it was written by another program "
                "or an older version (build its model, then load_weights loads the weights)"
            )
        own = {str(k): v for k, v in arguments.items() if k not in FILE_ARGUMENTS}
        model = _build(cls, own | options, f"model_arguments of checkpoint {path}")
        load_weights(model, evaluation_weights(path, state))
        if state.get("description") is not None:
            model.description = Description.of(state["description"], f"checkpoint {path}")
        return model

    @classmethod
    def _of_files(cls, name: str, config: Path, file: Path, options: dict[str, Any]) -> Self:
        arguments = _read_config(config, name)
        if named := [key for key in FILE_ARGUMENTS if key in arguments]:
            raise ValueError(f"config.json of {name} must not name files, got {', '.join(named)}")
        described = arguments.pop("description", None)
        if file.is_file():
            _check_size(cls, arguments | options, file, name)
        model = _build(cls, arguments | options, f"config.json of {name}")
        if not file.is_file():
            load_weights(model, file)  # says that it does not exist
        load_weights(model, _with_ties(model, load_checkpoint(file)))
        if described is not None:
            model.description = Description.of(described, f"config.json of {name}")
        return model


def evaluation_weights(path: Path, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The weights that training's own scores are of: averaged where the run has them.

    Raises:
        ValueError: They are not a mapping of tensors.
    """
    weights = state.get("ema_state_dict") or state.get("model_state_dict", state)
    if not isinstance(weights, Mapping):
        raise ValueError(f"checkpoint {path} must hold a mapping of weights, got a {type(weights).__name__}")
    return weights


def _build(cls: Any, arguments: Mapping[str, Any], source: str) -> Any:
    """The model of these arguments, never pretrained: its weights come next."""
    arguments = {k: v for k, v in arguments.items() if k != "pretrained"}
    if isinstance(arguments.get("img_size"), list):  # JSON knows no tuples
        arguments["img_size"] = tuple(arguments["img_size"])
    try:
        try:
            return cls(**arguments, pretrained=False)
        except TypeError as error:
            if "'pretrained'" not in str(error):
                raise
            return cls(**arguments)  # a subclass that takes none, or gives it itself
    except Exception as error:  # untrusted values of any type reach timm's constructors
        raise ValueError(f"{source} does not fit: {str(error) or type(error).__name__}") from error


def _read_config(file: Path, name: str) -> dict[str, Any]:
    try:
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"over {MAX_CONFIG_BYTES} bytes")
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"config.json of {name} must be a JSON object, got {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"config.json of {name} must be a JSON object, got a {type(config).__name__}")
    return config


def _check_size(cls: Any, arguments: Mapping[str, Any], file: Path, name: str) -> None:
    """Refuse a config whose model is far larger than its weights, before memory for it is taken."""
    try:
        with safe_open(file, framework="pt") as weights:
            shapes = [weights.get_slice(key).get_shape() for key in weights.keys()]  # noqa: SIM118
    except SafetensorError:
        return  # load_weights says what is wrong
    counts = {key: arguments.get(key) for key in ("depth", "num_sa_blocks", "num_glca_blocks")}
    held = sum(map(math.prod, shapes))
    with torch.device("meta"):
        if any(isinstance(n, int) and n > len(shapes) for n in counts.values()):
            needed: float = math.inf
        else:
            model = _build(cls, arguments, f"config.json of {name}")
            needed = sum(value.numel() for value in model.state_dict().values())
    if needed > 2 * held:
        raise ValueError(
            f"config.json of {name} must fit its weights of {held} values, got a model of {needed} values"
        )


def _with_ties(model: nn.Module, weights: Mapping[str, Any]) -> dict[str, Any]:
    """Add the names that safetensors leaves out because they share their tensor with another name."""
    own = model.state_dict()
    names: dict[tuple, list[str]] = {}
    for key, value in own.items():
        names.setdefault(_place(value), []).append(key)
    filled = dict(weights)
    for key, value in own.items():
        twin = next((n for n in names[_place(value)] if n in weights), None)
        if key not in weights and twin is not None:
            filled[key] = weights[twin]
    return filled


def _place(value: Tensor) -> tuple:
    return value.data_ptr(), value.shape, value.stride()
