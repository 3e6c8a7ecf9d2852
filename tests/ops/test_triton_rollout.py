"""rollout_row as PyTorch's compiler sees it, and what it launches; its numbers are in tests/interpreted."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

pytest.importorskip("triton")

from dca_triton.ops import launch_table, triton_rollout
from dca_triton.tuning.meter.capture import capture


def test_is_traced_as_one_operator_without_a_graph_for_the_backward() -> None:
    with FakeTensorMode():
        q = torch.empty(2, 9, 3, 16, device="cuda", dtype=torch.float16, requires_grad=True)
        lse = torch.empty(2, 3, 9, device="cuda")
        graph = make_fx(lambda q, lse: triton_rollout.rollout_row([q, q], [q, q], [lse, lse], 0.25, None))(
            q, lse
        )
    (call,) = (node for node in graph.graph.nodes if node.op == "call_function")
    assert call.target == torch.ops.dca_triton.rollout_row.default
    output = call.meta["val"]
    assert output.shape == (2, 9)
    assert output.dtype == torch.float32
    assert output.device.type == "cuda"
    assert not output.requires_grad


@pytest.mark.parametrize("layers", [1, 3])
def test_one_pass_over_the_scores_per_block_and_one_row_of_the_last(layers: int) -> None:
    B, N, H, D = 2, 197, 3, 64

    def run() -> None:
        q = torch.empty(B, N, H, D, device="cuda", dtype=torch.float16)
        lse = torch.empty(B, H, N, device="cuda")
        triton_rollout.launch([q] * layers, [q] * layers, [lse] * layers, 0.125, None)

    with launch_table.forced({("rollout_row", "step"): launch_table.Config(64, 128, 4, 2)}):
        launches = capture(run, "sm_90")
    columns = [launch for launch in launches if launch.name == "rollout_columns"]
    assert [launch.arguments["M"] for launch in columns] == [1] + [N] * (layers - 1)
    assert len(launches) == 2 * layers + 1
