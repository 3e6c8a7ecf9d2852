"""The three operations on their own: one layer of PWCA, rollout over three layers, and one layer of GLCA.

Run it with `python examples/operations.py`. It uses a GPU if PyTorch finds one.
"""

import torch

from dca_triton import local_attention, pair_attention, rollout_row
from dca_triton.reference import select_local

B, N, H, D = 4, 197, 3, 64  # images, tokens, heads, width of a head


def main() -> None:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    # Views of a packed projection, as timm's `qkv` gives it. No copy is needed.
    layers = [torch.randn(B, N, 3, H, D, device=device).unbind(2) for _ in range(3)]
    q, k, v = layers[-1]

    # PWCA: image 0 also attends to image 1, and so on; the last image has no distractor.
    partner = torch.tensor([1, 0, 3, -1], device=device)
    out, lse = pair_attention(q, k, v, partner_index=partner)
    print("pair_attention ", tuple(out.shape), "log-sum-exp", tuple(lse.shape))

    # The share of each query's attention that falls on the distractor, without an attention map.
    own_lses = [pair_attention(q, k, v)[1] for q, k, v in layers]
    share = 1 - torch.exp(own_lses[-1] - lse)
    print("on distractors ", [f"{image:.2f}" for image in share.mean((1, 2)).tolist()])

    # Rollout of the class token through all layers, first to last: (B, N), each row sums to 1.
    row = rollout_row([q for q, _, _ in layers], [k for _, k, _ in layers], own_lses)
    print("rollout_row    ", tuple(row.shape), "sums to", f"{row.sum(1).mean():.4f}")

    # GLCA: the class token and the 10 % of the patches with the highest rollout attend to all tokens.
    index = select_local(row, num_prefix=1, top_k_ratio=0.1)
    local = local_attention(q, k, v, index=index)
    print("local_attention", tuple(local.shape), "selected", index[0, :5].tolist(), "...")


if __name__ == "__main__":
    main()
