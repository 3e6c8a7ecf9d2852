"""Which models of timm serve as backbones: the names, the reasons against the others, and small siblings."""

import sys
from types import NoneType
from typing import Any, NamedTuple

import cait_streams
import timm
import timm_streams
import torch
from timm_streams import narrow_model, randomized
from timm_windows import slow_windows
from torch import Tensor, nn

from dca_triton.branches import BRANCHES, Branch
from dca_triton.model.backbone import Backbone
from dca_triton.model.creation import patch_of
from dca_triton.model.families import FAMILIES, family_of, layout_faults

LAYOUTS = ("paper", "reference")
PARTNERS = torch.tensor([1, 2, -1])
REFUSALS = (
    "it has no class token, and it pools by ",
    "its blocks are ",
    "its attention is ",
    "its windows and stages give no rollout",
)


class Entry(NamedTuple):
    """A name, timm's class, its patch, head width, what stands for an image, the name of the norm of what is
    read, the branches of the paper's layout, and the reasons against each layout.
    """

    name: str
    kind: str
    patch: tuple[int, int]
    head_dim: int
    reads: str
    norm: str
    branches: tuple[Branch, ...]
    reasons: dict[str, list[str]]

    @property
    def has_stages(self) -> bool:
        return self.kind.startswith("Swin")

    def cell(self, layout: str) -> str:
        """What the page says of a layout."""
        some = " and ".join(branch.upper() for branch in self.branches)
        return "; ".join(self.reasons[layout]) or ("yes" if self.branches == BRANCHES else some)


def names() -> list[str]:
    """All names of timm's modules that use the class of a family."""
    found = []
    for module in timm.list_modules():
        if f"timm.models.{module}" not in sys.modules:  # models that others registered, as the demo does
            continue
        used = vars(sys.modules[f"timm.models.{module}"]).values()
        if any(value is family.model for value in used for family in FAMILIES):
            found += timm.list_models(module=module)
    return sorted(found)


def keys_of(name: str, *shared: int | None) -> dict[str, Any]:
    """How many heads of keys each block of a Sapiens2 has."""
    return {"num_kv_heads": shared} if "sapiens2" in name else {}


def entry_of(name: str) -> Entry:
    """Built on the meta device, without weights, with one block in each stage."""
    depth = {"depths": (1, 1, 1, 1)} if name.startswith("swin") else {"depth": 1, **keys_of(name, None)}
    with torch.device("meta"):
        model: Any = timm.create_model(name, num_classes=0, **depth)
    blocks = model.layers if hasattr(model, "layers") else model.blocks
    attention: Any = next(m for m in blocks.modules() if hasattr(m, "scale") or hasattr(m, "logit_scale"))
    cosine = hasattr(attention, "logit_scale")
    width = attention.dim // attention.num_heads if cosine else round(attention.scale**-2)
    reasons = {layout: layout_faults(model, layout) for layout in LAYOUTS}
    reads = "class" if getattr(model, "cls_token", None) is not None else model.global_pool
    norms = [
        norm
        for norm in ("norm", "fc_norm")
        if type(getattr(model, norm, None)) not in (NoneType, nn.Identity)
    ]
    kind, norm = type(model).__name__, norms[0] if norms else "none"
    family = family_of(model)
    branches = BRANCHES if family is None else family.branches
    return Entry(name, kind, patch_of(model), width, reads, norm, branches, reasons)


def small_sizes(entry: Entry) -> dict[str, Any]:
    """Two narrow blocks of the same construction; some MLPs need a width that their ratio divides."""
    if entry.has_stages:
        return {"embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
    options: dict[str, Any] = {"depth": 2, "num_heads": 4, **keys_of(entry.name, None, 2)}
    for width in (64, 96, 192):
        try:
            with torch.device("meta"):
                timm.create_model(entry.name, num_classes=0, embed_dim=width, **options)
            return options | {"embed_dim": width}
        except AssertionError:
            continue
    return {"depth": 2}  # a stem of a fixed width


def check(entry: Entry) -> None:
    """Raise AssertionError unless what each layout computes is what timm's own modules do, in float64.

    In the paper's layout SA, PWCA, GLCA and the rollout; in the reference's the tokens that its blocks take.
    """
    torch.manual_seed(0)
    sizes, grid = small_sizes(entry), (9, 13) if entry.has_stages else (2, 3)
    size = tuple(n * side for n, side in zip(grid, entry.patch, strict=True))
    images = torch.randn(3, 3, *size, dtype=torch.float64)
    plain: Any = timm.create_model(entry.name, num_classes=0, img_size=size, **sizes)
    randomized(plain).double().eval()
    with torch.no_grad():
        tokens = plain.forward_features(images)
        if entry.reads == "class":
            after = plain.fc_norm if entry.norm == "fc_norm" else nn.Identity()
            expected = after(tokens[:, 0])
        else:
            expected = plain.forward_head(tokens, pre_logits=True)
        if entry.has_stages:
            check_windows(entry, sizes, size, plain, images, expected)
            return
        backbone = Backbone(entry.name, "reference", False, size, **sizes).double().eval()
        backbone.model.load_state_dict(plain.state_dict())
        close(backbone(images), tokens)
        if entry.reads != "class":
            close(backbone.read_out(tokens, "class"), expected)
        if entry.reasons["paper"]:
            return
        model = randomized(narrow_model(entry.name, sizes, img_size=size)).double().eval()
        model.backbone.model.load_state_dict(plain.state_dict(), strict=False)
        slow_streams = cait_streams.slow_streams if entry.kind == "Cait" else timm_streams.slow_streams
        slow = slow_streams(model, plain, images, PARTNERS)
        streams = model.sa_and_pwca(images, partner_index=PARTNERS)
        close((streams.sa, streams.pwca, model.local_branch(streams, slow.selected)), slow[:3])
        close(model.rollout(streams).double(), slow.rollout)
        close(model.read_out_sa(streams.sa), expected)


def check_windows(
    entry: Entry, sizes: dict[str, Any], size: tuple[int, ...], plain: Any, images: Tensor, expected: Tensor
) -> None:
    """SA, PWCA and the embedding of a Swin."""
    model = narrow_model(entry.name, sizes, img_size=size, branches=entry.branches).double().eval()
    model.backbone.model.load_state_dict(plain.state_dict())
    streams = model.sa_and_pwca(images, partner_index=PARTNERS)
    close(model.read_out_sa(streams.sa), expected)
    close([streams.sa, streams.pwca], slow_windows(plain, model.pwca_blocks, images, PARTNERS))


def close(found: object, expected: object) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
