"""The three operations and other ways to compute them. Inputs are views of a packed projection."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dca_triton import local_attention, pair_attention, reference, rollout_row
from dca_triton.ops import pair_up

from .formulations import attention_map, merged
from .measure import Outputs, Path
from .peers import Attend, peers
from .shapes import DTYPES, OpShape, backend_on

MAPS_HELD = 1000  # tokens; beyond this, precomputed maps would take gigabytes


def pair_paths(shape: OpShape, dtype: str, device: torch.device, training: bool) -> dict[str, Path]:
    """Return the paths of softmax(Q [K; K_partner]ᵀ / √D) [V; V_partner] (B, N, C).

    training: with the gradient.
    """
    packed = _packed(shape, dtype, device).requires_grad_(training)
    partner = torch.arange(shape.B, device=device).roll(1)
    pairs = pair_up(partner, shape.B)  # computed once per step, as in a model
    incoming = torch.randn(shape.B, shape.N, shape.H * shape.D, device=device).to(packed.dtype)

    def cat() -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = packed.permute(2, 0, 3, 1, 4)
        return q, torch.cat([k, k[partner]], 2), torch.cat([v, v[partner]], 2)

    def eager() -> Tensor:
        q, k, v = cat()
        return merged(attention_map(q, k) @ v)

    def sdpa() -> Tensor:
        return merged(F.scaled_dot_product_attention(*cat()))

    def two_sdpa() -> Tensor:
        q, k, v = packed.permute(2, 0, 3, 1, 4)
        (own, own_lse), (pair, pair_lse) = _sdpa_lse(q, k, v), _sdpa_lse(q, k[partner], v[partner])
        share = torch.sigmoid(own_lse - pair_lse)[..., None].to(own.dtype)
        return merged(torch.lerp(pair, own, share))

    def of_peer(attend: Attend) -> Tensor:
        return merged(attend(*cat()))

    def library() -> Tensor:
        q, k, v = packed.unbind(2)
        return pair_attention(q, k, v, partner_index=pairs, backend=backend_on(device))[0].flatten(2)

    ways = {"eager maps": eager, "SDPA on cat": sdpa, "library": library}
    if not training:  # PyTorch's fused kernels have no gradient for the log-sum-exp
        ways["two SDPA merged"] = two_sdpa
    torch.compiler.reset()  # graphs of other benchmarks would count toward the recompilation limit
    others = {name: partial(of_peer, attend) for name, attend in peers(device).items()}

    def run(way: Callable[[], Tensor]) -> Outputs:
        out = way()
        if not training:
            return {"out": out}
        return {"out": out.detach(), "gradient": torch.autograd.grad(out, packed, incoming)[0]}

    own = {name: Path(partial(run, way)) for name, way in ways.items()}
    peer = {name: Path(partial(run, way), peer=True) for name, way in others.items()}
    return own | peer | ({} if training else _graphs(own, device))


def _graphs(paths: dict[str, Path], device: torch.device) -> dict[str, Path]:
    """Return the same paths once more on a GPU, timed as CUDA graphs."""
    if device.type != "cuda":
        return {}
    return {f"{name}, CUDA graph": path._replace(graph=True) for name, path in paths.items()}


def _sdpa_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """PyTorch's fused attention of q, k, v (B, H, N, D) and its log-sum-exp (B, H, N)."""
    if q.device.type == "cuda":
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[:2]
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)


def rollout_paths(shape: OpShape, dtype: str, device: torch.device) -> dict[str, Path]:
    """Return the paths of the class token's row (B, N) of the rollout over L layers."""
    layers = [_packed(shape, dtype, device) for _ in range(shape.L)]
    qs, ks = ([packed[:, :, i] for packed in layers] for i in (0, 1))
    lses = [_sdpa_lse(*packed.permute(2, 0, 3, 1, 4))[1] for packed in layers]
    backend = backend_on(device)

    @torch.no_grad()
    def matrix() -> Outputs:
        maps = [attention_map(*packed.permute(2, 0, 3, 1, 4)[:2]) for packed in layers]
        return {"row": reference.rollout(maps)[:, 0]}

    def matrix_of_maps() -> Outputs:
        return {"row": reference.rollout(maps)[:, 0]}

    def library() -> Outputs:
        return {"row": rollout_row(qs, ks, lses, backend=backend)}

    ways = {"matrix": Path(matrix), "library": Path(library)}
    if shape.N <= MAPS_HELD:
        maps = [reference.attention_weights(q, k) for q, k in zip(qs, ks, strict=True)]
        ways["matrix of given maps"] = Path(matrix_of_maps)
    return ways | _graphs(ways, device)


def local_paths(shape: OpShape, dtype: str, device: torch.device) -> dict[str, Path]:
    """Return the paths of attention of a tenth of the queries to all keys (B, R, C)."""
    packed = _packed(shape, dtype, device)
    index = torch.rand(shape.B, shape.N, device=device).topk(shape.N // 10).indices
    q, k, v = packed.unbind(2)

    def rows() -> Tensor:
        return torch.take_along_dim(q, index[:, :, None, None], 1).transpose(1, 2)

    def eager() -> Outputs:
        return {"out": merged(attention_map(rows(), k.transpose(1, 2)) @ v.transpose(1, 2))}

    def sdpa() -> Outputs:
        return {"out": merged(F.scaled_dot_product_attention(rows(), k.transpose(1, 2), v.transpose(1, 2)))}

    def library() -> Outputs:
        return {"out": local_attention(q, k, v, index, backend=backend_on(device)).flatten(2)}

    ways = {"eager maps": Path(eager), "gather + SDPA": Path(sdpa), "library": Path(library)}
    return ways | _graphs(ways, device)


def _packed(shape: OpShape, dtype: str, device: torch.device) -> Tensor:
    """Return random queries, keys and values (B, N, 3, H, D)."""
    generator = torch.Generator(device).manual_seed(shape.N)
    return torch.randn(shape.B, shape.N, 3, shape.H, shape.D, device=device, generator=generator).to(
        DTYPES[dtype]
    )
