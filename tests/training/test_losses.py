"""Branch losses and their weighting, against numbers by hand and slow loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dca_triton.branches import BRANCHES
from dca_triton.training import BranchLoss, UncertaintyWeightedLoss


def scalars(**losses: float) -> dict[str, Tensor]:
    return {name: torch.tensor(value) for name, value in losses.items()}


def weighting(*log_vars: float) -> UncertaintyWeightedLoss:
    loss = UncertaintyWeightedLoss()
    loss.load_state_dict({"log_vars": torch.tensor(log_vars)})
    return loss


def test_weighting_by_hand() -> None:
    # exp(-log 2) = 1/2 and exp(log 4) = 4: (1/2 * 3 + log 2) / 2 + (1 * 5 + 0) / 2 + (4 * 7 - log 4) / 2
    loss = weighting(math.log(2), 0.0, -math.log(4))
    answer = loss(scalars(sa_loss=3.0, glca_loss=5.0, pwca_loss=7.0))
    assert answer["total_loss"].item() == pytest.approx(17.25 - math.log(2) / 2)
    assert answer["weighted_losses"]["sa_loss"].item() == pytest.approx(0.75 + math.log(2) / 2)
    by_hand = {
        "sa_loss_weight": 0.5,
        "sa_loss_log_var": math.log(2),
        "glca_loss_weight": 1.0,
        "glca_loss_log_var": 0.0,
        "pwca_loss_weight": 4.0,
        "pwca_loss_log_var": -math.log(4),
    }
    assert {name: w.item() for name, w in answer["weights"].items()} == pytest.approx(by_hand)
    assert not any(w.requires_grad for w in answer["weights"].values())
    assert loss.get_current_weights() == pytest.approx(by_hand)


def test_log_vars_start_at_zero_and_are_the_whole_state() -> None:
    state = UncertaintyWeightedLoss().state_dict()
    assert list(state) == ["log_vars"] and state["log_vars"].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("initial", [[0.1, -0.2, 0.3], (0, 1, -2), torch.tensor([0.5, 0.25, -1.0])])
@pytest.mark.parametrize("num_tasks", [1, 2, 3])
def test_tasks_and_initial_values(num_tasks: int, initial) -> None:
    loss = UncertaintyWeightedLoss(num_tasks, initial[:num_tasks])
    assert loss.log_vars.dtype == torch.float32 and loss.log_vars.requires_grad
    assert loss.log_vars.tolist() == pytest.approx([float(x) for x in initial[:num_tasks]])
    names = [f"{branch}_loss" for branch in BRANCHES[:num_tasks]]
    current = loss.get_current_weights()
    assert list(current) == [f"{name}_{what}" for name in names for what in ("weight", "log_var")]
    answer = loss(dict.fromkeys(names, torch.tensor(2.0)))
    for name, w in zip(names, initial, strict=False):
        assert answer["weighted_losses"][name].item() == pytest.approx(math.exp(-w) + w / 2)
        assert current[f"{name}_log_var"] == pytest.approx(float(w))
    for branch in BRANCHES[num_tasks:]:
        with pytest.raises(ValueError, match=f"names in losses must be of sa.*, got '{branch}_loss'"):
            loss({f"{branch}_loss": torch.tensor(1.0)})


def test_initial_values_are_copied() -> None:
    initial = torch.zeros(3)
    loss = UncertaintyWeightedLoss(3, initial)
    with torch.no_grad():
        loss.log_vars += 1
    assert not initial.any()


@pytest.mark.parametrize("num_tasks", [0, 4, -1, True, 2.0, "3", None])
def test_numbers_of_tasks_that_are_refused(num_tasks) -> None:
    with pytest.raises(ValueError, match="num_tasks must be 1, 2 or 3, got"):
        UncertaintyWeightedLoss(num_tasks)


@pytest.mark.parametrize(
    "initial",
    [[0.0] * 2, [0.0] * 4, [math.nan, 0, 0], [0, math.inf, 0], 1.0, "abc", [[0.0] * 3], {}, ["a"] * 3],
)
def test_initial_values_that_are_refused(initial) -> None:
    with pytest.raises(ValueError, match=r"^init_log_vars must be 3 finite numbers or None, got"):
        UncertaintyWeightedLoss(3, initial)
    with pytest.raises(ValueError, match=r"num_tasks must be .*; init_log_vars must be num_tasks finite"):
        UncertaintyWeightedLoss(9, ["a"])  # type: ignore[list-item]


@given(
    names=st.lists(st.sampled_from(BRANCHES), min_size=1, unique=True),
    suffix=st.sampled_from(["", "_loss"]),
    log_vars=st.lists(st.floats(-3, 3, width=32), min_size=3, max_size=3),
    values=st.lists(st.floats(0, 100, width=32), min_size=3, max_size=3),
)
@settings(deadline=None)
def test_any_subset_in_any_order(
    names: list[str], suffix: str, log_vars: list[float], values: list[float]
) -> None:
    loss = weighting(*log_vars)
    given_losses = {
        i + suffix: torch.tensor(x, requires_grad=True) for i, x in zip(names, values, strict=False)
    }
    answer = loss(given_losses)
    answer["total_loss"].backward()
    total, slopes = 0.0, [0.0] * 3
    for name, value in zip(names, values, strict=False):
        w = log_vars[BRANCHES.index(name)]
        total += (math.exp(-w) * value + w) / 2
        slopes[BRANCHES.index(name)] = (1 - math.exp(-w) * value) / 2
        grad = given_losses[name + suffix].grad
        assert grad is not None and grad.item() == pytest.approx(math.exp(-w) / 2, rel=1e-5)
    assert list(answer["weighted_losses"]) == list(given_losses)
    expected = [f"{name}_{what}" for name in given_losses for what in ("weight", "log_var")]
    assert list(answer["weights"]) == expected
    assert answer["total_loss"].item() == pytest.approx(total, rel=1e-4, abs=1e-4)
    assert loss.log_vars.grad is not None
    assert loss.log_vars.grad.tolist() == pytest.approx(slopes, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("losses", "sentence"),
    [
        ({}, "losses must hold at least one of sa, glca, pwca, got none"),
        (scalars(cls_loss=1.0), "names in losses must be of sa, glca, pwca, .* got 'cls_loss'"),
        (scalars(sa=1.0, sa_loss=1.0), "^losses must name 'sa' once, got it with and without '_loss'$"),
        (
            {"sa": torch.ones(1)},
            r"losses\['sa'\] must be a dense .* tensor \(\), got a float32 tensor \(1,\)",
        ),
        ({"sa": 1.0}, r"losses\['sa'\] must be a dense floating-point tensor \(\), got 1.0"),
        ({"x": torch.ones(2)}, r"got 'x'; losses\['x'\] must be .* got a float32 tensor \(2,\)"),
        ({5: torch.ones(())}, r"names in losses must be .* got 5"),
    ],
)
def test_weighting_refuses(losses: dict[str, Tensor], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        UncertaintyWeightedLoss()(losses)


def branch_outputs(B: int, K: int, seed: int = 0, names: tuple[str, ...] = BRANCHES) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    outputs = {}
    for name in names:
        outputs[f"{name}_logits"] = torch.randn(B, K, generator=draw, dtype=torch.float64)
        outputs[f"{name}_features"] = torch.randn(B, 3, 4, generator=draw, dtype=torch.float64)
    return outputs


def slow_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> float:
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        normalizer = math.log(sum(math.exp(x) for x in row))
        for k, x in enumerate(row):
            total += ((1 - smoothing) * (k == label) + smoothing / len(row)) * (normalizer - x)
    return total / len(labels)


def slow_triplet(cls: Tensor, labels: Tensor, margin: float) -> float:
    points, names, violations = cls.tolist(), labels.tolist(), []
    for a, point in enumerate(points):
        positives = [
            math.dist(point, points[j]) for j in range(len(points)) if names[j] == names[a] and j != a
        ]
        negatives = [math.dist(point, points[j]) for j in range(len(points)) if names[j] != names[a]]
        if positives and negatives:
            violations.append(max(0.0, max(positives) - min(negatives) + margin))
    violations = [x for x in violations if x > 0]
    return sum(violations) / len(violations) if violations else 0.0


@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=9),
    seed=st.integers(0, 2**20),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    margin=st.sampled_from([0.0, 0.3, 5.0]),
    task=st.sampled_from(["fgvc", "reid"]),
    names=st.sampled_from([BRANCHES, ("sa", "glca")]),
)
@settings(deadline=None)
def test_branches_against_loops(
    labels: list[int], seed: int, smoothing: float, margin: float, task: str, names: tuple[str, ...]
) -> None:
    target = torch.tensor(labels)
    outputs = branch_outputs(len(labels), 4, seed, names)
    losses = BranchLoss(task, smoothing, margin)(outputs, target)  # type: ignore[arg-type]
    assert list(losses) == list(names)
    for name, loss in losses.items():
        expected = slow_cross_entropy(outputs[f"{name}_logits"], target, smoothing)
        if task == "reid":
            expected += slow_triplet(outputs[f"{name}_features"][:, 0], target, margin)
        assert loss.item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_triplet_by_hand() -> None:
    # On a line: 0 and 3 are one person, 4 another. Anchor 0: 3 - 4 + 0.3 < 0, anchor 3: 3 - 1 + 0.3 = 2.3;
    # 4 has no positive. The logits are all equal: cross entropy is log 2.
    features = torch.tensor([[[0.0], [9.0]], [[3.0], [9.0]], [[4.0], [9.0]]], requires_grad=True)
    outputs = {f"{i}_logits": torch.zeros(3, 2) for i in ("sa", "glca")}
    outputs |= {f"{i}_features": features for i in ("sa", "glca")}
    loss = BranchLoss("reid")(outputs, torch.tensor([0, 0, 1]))["sa"]
    assert loss.item() == pytest.approx(math.log(2) + 2.3)
    loss.backward()
    assert features.grad is not None
    assert features.grad[:, 0, 0].tolist() == [-1.0, 2.0, -1.0] and not features.grad[:, 1].any()


def test_half_precision_features_do_not_overflow() -> None:
    outputs = {f"{i}_logits": torch.zeros(3, 2) for i in ("sa", "glca")}
    far = torch.tensor([0.0, 60000.0, -60000.0], dtype=torch.float16).reshape(3, 1, 1)
    outputs |= {f"{i}_features": far for i in ("sa", "glca")}
    loss = BranchLoss("reid")(outputs, torch.tensor([0, 1, 1]))["sa"]
    assert loss.item() == pytest.approx(math.log(2) + 120000 - 60000 + 0.3, rel=1e-3)


@pytest.mark.parametrize("label", [-1, 4, -100])
def test_labels_out_of_range(label: int) -> None:
    with pytest.raises(ValueError, match=rf"labels .*{label}"):
        BranchLoss()(branch_outputs(2, 4), torch.tensor([1, label]))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"glca_logits": torch.zeros(3, 4)},
            r"outputs\['glca_logits'\] must be .* \(B, K\) with B = 2, K = 4, got .* \(3, 4\)",
        ),
        (
            {"pwca_logits": torch.zeros(2, 5)},
            r"outputs\['pwca_logits'\] must be .* with B = 2, K = 4, got a float32 tensor \(2, 5\)",
        ),
        (
            {"sa_features": torch.zeros(2, 4)},
            r"outputs\['sa_features'\] must be .* \(B, N_sa, C\) with B = 2, .* got .* \(2, 4\)",
        ),
        (
            {"sa_features": torch.zeros(2, 0, 4)},
            r"outputs\['sa_features'\] must be .* sizes >= 1, got a float32 tensor \(2, 0, 4\)",
        ),
        (
            {"sa_logits": torch.zeros(2, 4, device="meta")},
            r"outputs\['sa_logits'\] must be on the device of labels, cpu, got meta",
        ),
    ],
)
def test_wrong_outputs(change: dict[str, Tensor], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        BranchLoss("reid")(branch_outputs(2, 4) | change, torch.tensor([0, 1]))


def test_the_triplet_takes_the_embedding_where_there_is_one() -> None:
    outputs, labels = branch_outputs(6, 4), torch.tensor([0, 0, 1, 1, 2, 2])
    loss = BranchLoss("reid")
    before = loss(outputs, labels)
    other = torch.randn(6, 4, generator=torch.Generator().manual_seed(7))
    after = loss(outputs | {"glca_embedding": other}, labels)
    assert torch.equal(before["sa"], after["sa"]) and not torch.equal(before["glca"], after["glca"])
    as_features = loss(outputs | {"glca_features": other[:, None]}, labels)
    assert torch.equal(after["glca"], as_features["glca"])
    wide = torch.randn(6, 8, generator=torch.Generator().manual_seed(7))
    loss(outputs | {"glca_embedding": wide}, labels)  # a readout of both has 2C features


@pytest.mark.parametrize("task", ["fgvc", "reid"])
def test_a_branch_that_the_model_lacks_has_no_loss(task: str) -> None:
    outputs, labels = branch_outputs(4, 4), torch.tensor([0, 0, 1, 1])
    alone = {name: value for name, value in outputs.items() if not name.startswith("glca")}
    losses, whole = BranchLoss(task)(alone, labels), BranchLoss(task)(outputs, labels)
    assert losses.keys() == {"sa", "pwca"} and whole.keys() == {"sa", "glca", "pwca"}
    assert torch.equal(losses["sa"], whole["sa"])


def test_missing_outputs_and_wrong_labels() -> None:
    outputs = branch_outputs(2, 4)
    del outputs["pwca_features"], outputs["glca_logits"]
    with pytest.raises(ValueError, match="outputs must hold glca_logits, pwca_features for 'reid', got"):
        BranchLoss("reid")(outputs, torch.tensor([0, 1]))
    for labels in (torch.tensor([0.0, 1.0]), torch.tensor([[0, 1]]), torch.tensor(0)):
        with pytest.raises(
            ValueError, match=r"labels must be a dense int64 tensor \(B,\) with sizes >= 1, got a"
        ):
            BranchLoss()(branch_outputs(2, 4), labels)


def test_arguments_are_refused_together() -> None:
    with pytest.raises(
        ValueError,
        match=r"task_type must .* got 'x'; label_smoothing must .* got 2; triplet_margin must .* got nan",
    ):
        BranchLoss("x", 2, math.nan)  # type: ignore[arg-type]
