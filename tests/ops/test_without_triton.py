"""A machine where Triton cannot be imported: everything except the kernels works, and messages say so."""

import subprocess
import sys

WITHOUT_TRITON = """
import sys

import torch  # first: its own probes for triton expect find_spec to answer None

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton":
            raise ModuleNotFoundError("no triton here")

sys.meta_path.insert(0, Absent())
from dca_triton import DualAttentionModel, ops, reference
from dca_triton.cli import main

q, k, v = torch.randn(2, 9, 3, 1, 16, requires_grad=True).unbind(2)
out, lse = ops.pair_attention(q, k, v, partner_index=torch.tensor([1, -1]))
expected, _ = reference.pair_attention(q, k, v, partner_index=torch.tensor([1, -1]))
torch.testing.assert_close(out, expected)
ops.rollout_row([q], [k], [lse])
try:
    ops.local_attention(q, k, v, backend="triton")
except RuntimeError as error:
    assert "no triton here" in str(error), error
else:
    raise AssertionError("nothing was raised")

model = DualAttentionModel("test_vit", 3, layout="paper", img_size=64, pretrained=False)
model(torch.randn(2, 3, 64, 64), partner_index=torch.tensor([1, 0]))["pwca_logits"].sum().backward()
main(["info"])
assert "triton" not in sys.modules
main(["tune", "--target=sm_90"])
"""


def test_without_triton() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "backend: torch, because triton cannot be imported (no triton here)" in done.stdout
    assert (
        done.stderr == "dca-triton: tune must run where Triton is installed, got no Triton (no triton here)\n"
    )
