"""Which models of timm serve as backbones: the names, the reasons against the others, and small siblings."""

import sys
from typing import Any, NamedTuple

import cait_streams
import timm
import timm_streams
import torch
from timm_streams import narrow_model, randomized
from torch import nn

from dca_triton.model.backbone import FAMILIES, Backbone, _patch, layout_faults

LAYOUTS = ("paper", "reference")
PARTNERS = torch.tensor([1, 2, -1])
REFUSALS = (
    "it has no class token, and it pools by ",
    "its blocks are ",
    "its attention is ",
)


class Entry(NamedTuple):
    """A name, timm's class, its patch, head width, what stands for an image, the name of the norm of what is
    read, and the reasons against each layout.
    """

    name: str
    kind: str
    patch: tuple[int, int]
    head_dim: int
    reads: str
    norm: str
    reasons: dict[str, list[str]]


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
    """Built on the meta device, without weights, with one block."""
    with torch.device("meta"):
        model: Any = timm.create_model(name, num_classes=0, depth=1, **keys_of(name, None))
    attention: Any = next(m for m in model.blocks.modules() if hasattr(m, "num_heads"))
    reasons = {layout: layout_faults(model, layout) for layout in LAYOUTS}
    reads = "class" if model.cls_token is not None else model.global_pool
    norms = [
        norm
        for norm in ("norm", "fc_norm")
        if not isinstance(getattr(model, norm, nn.Identity()), nn.Identity)
    ]
    kind, norm = type(model).__name__, norms[0] if norms else "none"
    return Entry(name, kind, _patch(model), round(attention.scale**-2), reads, norm, reasons)


def small_sizes(entry: Entry) -> dict[str, Any]:
    """Two narrow blocks of the same construction; some MLPs need a width that their ratio divides."""
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
    sizes, size = small_sizes(entry), tuple(n * side for n, side in zip((2, 3), entry.patch, strict=True))
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


def close(found: object, expected: object) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
