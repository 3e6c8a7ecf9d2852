"""The package loads what a name needs, and no more."""

import json
import subprocess
import sys
from importlib.metadata import version

import pytest

import dca_triton

HEAVY = (
    "accelerate",
    "huggingface_hub",
    "jsonargparse",
    "matplotlib",
    "pytorch_metric_learning",
    "scipy",
    "timm",
    "torch",
    "torchvision",
    "triton",
    "xxhash",
)
LOSSES = {"torch", "pytorch_metric_learning", "scipy"}
MODEL = LOSSES | {"timm", "torchvision", "huggingface_hub", "triton", "xxhash"}  # torchvision loads triton
# In this order, in one process: what is loaded after each statement, of others' packages.
ALLOWED = {
    "import dca_triton": set(),
    "dir(dca_triton), dca_triton.__version__": set(),
    "dca_triton.reference.rollout": {"torch"},
    "from dca_triton import pair_attention": {"torch"},
    "from dca_triton import local_attention, rollout_row": {"torch"},
    "from dca_triton import PairSampler": {"torch"},
    "from dca_triton import UncertaintyWeightedLoss": LOSSES,
    "from dca_triton import DualAttentionModel": MODEL,
    "from dca_triton import DualAttentionTrainer": MODEL | {"accelerate"},
    "from dca_triton import *": MODEL | {"accelerate"},
}
PROGRAM = """
import json, sys
after = {{}}
for statement in {statements!r}:
    exec(statement)
    own = [name for name in sys.modules if name.startswith("dca_triton.")]
    after[statement] = [[name for name in {heavy!r} if name in sys.modules], own]
print(json.dumps(after))
"""


def test_a_name_loads_what_it_needs():
    program = PROGRAM.format(statements=list(ALLOWED), heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    after = json.loads(done.stdout)
    for statement, (heavy, own) in after.items():
        assert set(heavy) <= ALLOWED[statement], statement
        assert "dca_triton.ops.triton_backend" not in own
    assert after["dca_triton.reference.rollout"] == [
        ["torch"],
        ["dca_triton.lazy", "dca_triton.version", "dca_triton.reference"],
    ]
    # The control: what the last statement must have loaded.
    assert {"accelerate", "timm", "pytorch_metric_learning"} <= set(after["from dca_triton import *"][0])


def test_every_public_name_is_there_and_listed():
    assert dca_triton._MODULE_OF.keys() == {*dca_triton.__all__, "__version__"}
    for name in dca_triton.__all__:
        assert getattr(dca_triton, name).__name__ == name
        assert name in dir(dca_triton)


def test_an_unknown_name_is_refused_as_by_any_module():
    assert not hasattr(dca_triton, "sparse_attention")
    with pytest.raises(AttributeError, match="module 'dca_triton' has no attribute 'sparse_attention'"):
        _ = dca_triton.sparse_attention
    with pytest.raises(ImportError, match="cannot import name 'sparse_attention'"):
        from dca_triton import sparse_attention  # noqa: F401


def test_the_version_is_that_of_the_installed_package():
    assert dca_triton.__version__ == version("dca-triton")
