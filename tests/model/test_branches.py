"""Readouts, branches, several GLCA blocks and the blocks of PWCA, against the formulas in float64."""

import pytest
import torch
from torch import Tensor, nn

from dca_triton import DualAttentionModel, reference
from dca_triton.model import explain
from dca_triton.model.inspection import distractor_share

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
PARTNERS = torch.tensor([2, 2, -1, 0])
PAIR = IMAGES.flip(0) * 0.7
LAYOUTS = ["reference", "paper"]
L = 4


def build(layout: str, **options: object) -> DualAttentionModel:
    """A float64 model with registers and random norms, biases and LayerScale, so that nothing is a no-op."""
    torch.manual_seed(0)
    sizes = {"depth": L} if layout == "paper" else {"depth": 1, "num_sa_blocks": L, "num_heads": 4}
    arguments = (
        {"img_size": 32, "pretrained": False, "drop_path_rate": 0.0, "top_k_ratio": 0.3} | sizes | options
    )
    model = (
        DualAttentionModel("test_vit", 5, layout=layout, reg_tokens=2, init_values=0.5, **arguments)
        .double()
        .train()
    )
    for p in model.parameters():
        nn.init.normal_(p, 1.0 if p.dim() == 1 else 0.0, 0.3) if p.dim() < 2 else None
    return model


def attend(
    block: nn.Module, x: Tensor, context: Tensor, partner: Tensor | None, paired: Tensor | None
) -> Tensor:
    """A block whose rows x attend to `context` and, where `paired`, also to the partner's tokens."""
    attn, (q, k, v) = block.attn, (None, None, None)
    q, _, _ = attn.project(block.norm1(x))
    _, k, v = attn.project(block.norm1(context))
    index = pk = pv = None
    if partner is not None:
        _, pk, pv = attn.project(block.norm1(partner))
        index = torch.where(paired, torch.arange(len(x)), -1)
    out, _ = reference.pair_attention(q, k, v, pk, pv, index, attn.scale)
    x = x + block.ls1(attn.proj(attn.norm(out.flatten(2))))
    return x + block.ls2(block.mlp(block.norm2(x)))


def attention_map(block: nn.Module, x: Tensor) -> Tensor:
    q, k, _ = block.attn.project(block.norm1(x))
    return reference.attention_weights(q, k, block.attn.scale)


def streams(
    model: DualAttentionModel, images: Tensor, partners: Tensor, span: tuple[int, int], pair: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """SA, PWCA and GLCA's input, one stream after the other, nothing shared; and the selected rows."""
    paper = model.layout == "paper"
    blocks = model.backbone.model.blocks if paper else model.sa_blocks
    x = model.backbone(images)
    own = x
    others = x[partners.clamp(min=0)] if pair is None else model.backbone(pair)
    paired = partners >= 0 if pair is None else torch.ones(len(x), dtype=torch.bool)
    sa, pwca, back, maps = x, x, others, []
    for number, block in enumerate(blocks, 1):
        within = span[0] <= number <= span[1]
        maps.append(attention_map(block, sa))
        if paper and pair is None:
            others = pwca[partners.clamp(min=0)]
        elif paper:
            others = back
        pwca_next = attend(block, pwca, pwca, others if within else None, paired)
        if paper and pair is not None:  # the pair's own PWCA stream attends back
            back = attend(block, back, back, pwca if within else None, paired)
        sa, pwca = attend(block, sa, sa, None, None), pwca_next
    row = reference.rollout(maps)[:, 0].detach()
    selected = reference.select_local(row, model.backbone.num_prefix_tokens, model.top_k_ratio)
    return sa, pwca, sa if paper else own, selected


def rows_of(x: Tensor, rows: Tensor) -> Tensor:
    return torch.take_along_dim(x, rows[:, :, None], 1)


def eager(
    model: DualAttentionModel,
    images: Tensor,
    partners: Tensor,
    span: tuple[int, int],
    pair: Tensor | None = None,
) -> dict[str, Tensor]:
    """Embeddings of every branch as the text of the paper reads."""
    P, norm = model.backbone.num_prefix_tokens, model.backbone.norm
    sa, pwca, local, selected = streams(model, images, partners, span, pair)
    if model.layout == "paper":
        sa, pwca, rows = norm(sa), norm(pwca), rows_of(local, selected)
        for block in model.glca_blocks:
            rows = attend(block, rows, local, None, None)
        rows = norm(rows)
    else:
        x = local
        for block in model.glca_blocks:
            x = block(x, selected)  # tests/model/test_blocks.py holds it to the formula
        rows = rows_of(x, selected)
    embeddings = {
        "sa": reference.read_out(sa, sa[:, P:], model.sa_readout),
        "glca": reference.read_out(rows, rows[:, 1:], model.glca_readout),
        "pwca": reference.read_out(pwca, pwca[:, P:], model.sa_readout),
    }
    return {name: embeddings[name] for name in model.branches}


def embeddings_of(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the heads read; row 0 of the features where no other readout was chosen."""
    names = [name.removesuffix("_logits") for name in outputs if name.endswith("_logits")]
    return {b: outputs.get(f"{b}_embedding", outputs[f"{b}_features"][:, 0]) for b in names}


def loss_of(embeddings: dict[str, Tensor]) -> Tensor:
    """Different weights for each feature, so that no two can be exchanged."""
    return sum(
        (i + 1) * (e * torch.linspace(1, 2, e.numel()).view_as(e)).sin().sum()
        for i, e in enumerate(embeddings.values())
    )


OPTIONS = [
    {},
    {"glca_readout": "local"},
    {"sa_readout": "local"},
    {"sa_readout": "both", "glca_readout": "both"},
    {"sa_readout": "both", "num_glca_blocks": 2},
    {"glca_readout": "local", "num_glca_blocks": 3},
    {"branches": ("sa",)},
    {"branches": ("sa", "glca"), "glca_readout": "both"},
    {"branches": ["pwca", "sa"], "pwca_blocks": (2, 3)},
    {"pwca_blocks": (2, 3)},
    {"pwca_blocks": (1, 2), "glca_readout": "local"},
    {"pwca_blocks": (1, 1)},
    {"pwca_blocks": (L, L)},
    {"pwca_blocks": [3, L], "sa_readout": "both"},
    {"pwca_blocks": (2, L), "glca_readout": "both", "sa_readout": "local"},
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("by", ["partner_index", "x_pair"])
def test_embeddings_and_gradients_equal_the_formulas(layout: str, options: dict, by: str) -> None:
    model = build(layout, **options)
    span = tuple(options.get("pwca_blocks", (1, L)))
    pair = PAIR if by == "x_pair" else None
    given = (
        {}
        if "pwca" not in model.branches
        else {"x_pair": pair}
        if pair is not None
        else {"partner_index": PARTNERS}
    )
    expected = eager(model, IMAGES, PARTNERS, span, pair)
    exact = torch.autograd.grad(loss_of(expected), [*model.parameters()], allow_unused=True)
    for only in (False, True):
        outputs = model(IMAGES, **given, class_tokens_only=only)
        embeddings = embeddings_of(outputs)
        assert tuple(embeddings) == model.branches
        torch.testing.assert_close(embeddings, expected, rtol=1e-9, atol=1e-9)
        for branch, embedding in embeddings.items():
            head = getattr(model, f"{branch}_head")
            torch.testing.assert_close(outputs[f"{branch}_logits"], head(embedding))
        gradients = torch.autograd.grad(loss_of(embeddings), [*model.parameters()], allow_unused=True)
        for (name, _), gradient, right in zip(model.named_parameters(), gradients, exact, strict=True):
            assert (gradient is None) == (right is None), name
            if right is not None:
                torch.testing.assert_close(
                    gradient, right, rtol=1e-7, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}"
                )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("number", range(len(OPTIONS)))
def test_every_parameter_is_trained(layout: str, number: int) -> None:
    """DistributedDataParallel waits for the gradient of every parameter."""
    options, task = OPTIONS[number], ("fgvc", "reid")[number % 2]
    model = build(layout, task_type=task, **options)
    given = {"partner_index": PARTNERS} if "pwca" in model.branches else {}
    outputs = model(IMAGES, **given, class_tokens_only=True)
    sum(logits.square().sum() for name, logits in outputs.items() if name.endswith("_logits")).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    C = model.embed_dim
    widths = {"class": C, "local": C, "both": 2 * C}
    if task == "reid":
        parts = [widths[model.sa_readout]] + [widths[model.glca_readout]] * ("glca" in model.branches)
        assert outputs["combined_features"].shape == (4, sum(parts))
    embedding = model.eval().extract_features(IMAGES)
    assert embedding.shape == (4, sum(parts) if task == "reid" else widths[model.sa_readout])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("readout", ["class", "local", "both"])
@pytest.mark.parametrize("blocks", [1, 2])
def test_the_selection_reaches_what_it_should(
    monkeypatch: pytest.MonkeyPatch, layout: str, readout: str, blocks: int
) -> None:
    """Other patches change GLCA's logits and gradients with a local readout, not with the class token's.

    In the reference's layout a second block carries them to the class token.
    """
    model = build(layout, glca_readout=readout, num_glca_blocks=blocks)

    def results() -> tuple[dict[str, Tensor], list[Tensor]]:
        outputs = model(IMAGES, partner_index=PARTNERS, class_tokens_only=True)
        loss = sum(x.square().sum() for name, x in outputs.items() if name.endswith("_logits"))
        return outputs, list(torch.autograd.grad(loss, [*model.parameters()]))

    before, gradients = results()

    def scrambled(row: Tensor, num_prefix: int, ratio: float) -> Tensor:
        return reference.select_local(-row, num_prefix, ratio)

    monkeypatch.setattr("dca_triton.model.streams.select_local", scrambled)
    after, others = results()
    reaches = readout != "class" or (layout == "reference" and blocks > 1)
    assert torch.equal(before["glca_logits"], after["glca_logits"]) != reaches
    assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True)) != reaches
    assert torch.equal(before["sa_logits"], after["sa_logits"])
    assert torch.equal(before["pwca_logits"], after["pwca_logits"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_gradient_flows_through_the_rollout(layout: str) -> None:
    """With the same selection given, the gradients are the same."""
    model = build(layout, glca_readout="local")
    outputs = model(IMAGES, class_tokens_only=True)
    _, _, _, selected = streams(model, IMAGES, PARTNERS, (1, L), None)
    held = torch.autograd.grad(outputs["glca_logits"].sum(), [*model.parameters()], allow_unused=True)
    given = model.sa_and_pwca(IMAGES, traced=False)
    rows = model.local_branch(given, selected, only_selected=True)
    expected = torch.autograd.grad(
        model.glca_head(rows[:, 1:].mean(1)).sum(), [*model.parameters()], allow_unused=True
    )
    for a, b in zip(held, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("span", [(1, L), (2, 3), (3, L), (L, L)])
def test_sa_and_pwca_are_computed_once_before_they_part(
    layout: str, span: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(layout, pwca_blocks=span)
    blocks = model.backbone.model.blocks if layout == "paper" else model.sa_blocks
    seen: list[tuple[int, int]] = []
    for block in blocks:
        block.norm1.register_forward_hook(lambda _, args, out: seen.append((len(args[0]), args[0].shape[1])))
    model(IMAGES, partner_index=PARTNERS)
    rows = [n for n, _ in seen]
    B, first = len(IMAGES), span[0]
    assert rows[: first - 1] == [B] * (first - 1)
    own = [n for n in rows if n == 2 * B]
    assert len(own) == L - first, "the first block of PWCA norms each image once, later ones both streams"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_stochastic_depth_keeps_its_expectation_with_a_shared_prefix(layout: str) -> None:
    """Each stream's mean over the draws is that of streams which draw on their own."""
    torch.manual_seed(0)
    mean = {}
    for span in ((1, L), (3, L)):
        model = build(layout, pwca_blocks=span, drop_path_rate=0.5)
        same = model(IMAGES.repeat(150, 1, 1, 1), class_tokens_only=True)  # no pairs: SA alone
        again = model(
            IMAGES.repeat(150, 1, 1, 1), partner_index=torch.full((600,), -1), class_tokens_only=True
        )
        mean[span] = [
            x.view(150, 4, -1).mean(0)
            for x in (same["sa_features"], again["sa_features"], again["pwca_features"])
        ]
    spread = same["sa_features"].view(150, 4, -1).std(0).amax() / 150**0.5
    for alone, sa, pwca in mean.values():
        assert (alone - sa).abs().amax() < 6 * spread
        assert (alone - pwca).abs().amax() < 6 * spread


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shares_on_a_distractor_are_those_of_the_chosen_blocks(layout: str) -> None:
    whole = build(layout).float()
    part = build(layout, pwca_blocks=(1, 2)).float()
    images, others = IMAGES.float(), PAIR.float()
    torch.testing.assert_close(
        distractor_share(part, images, others), distractor_share(whole, images, others)[:, :2]
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inspection_follows_readouts_and_branches(layout: str) -> None:
    model = build(layout, sa_readout="both", glca_readout="local").eval()
    seen, outputs = explain(model, IMAGES), model(IMAGES)
    torch.testing.assert_close(seen.sa, outputs["sa_logits"].float().softmax(1))
    torch.testing.assert_close(seen.glca, outputs["glca_logits"].float().softmax(1))
    alone = build(layout, branches=("sa",)).eval()
    seen = explain(alone, IMAGES)
    assert seen.glca is None and seen.rollout.shape[1] == alone(IMAGES)["sa_features"].shape[1]
    assert alone.get_attention_maps(IMAGES)["glca_attention_maps"] == {}
    with pytest.raises(ValueError, match=r"model must have a PWCA branch, got the branches sa$"):
        distractor_share(alone, IMAGES, PAIR)
    with pytest.raises(ValueError, match="must be None for a model without PWCA"):
        alone.train()(IMAGES, PAIR)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("head", ["linear", "mlp", "bnneck"])
def test_heads_by_name(layout: str, head: str) -> None:
    """Each branch has one; the embedding that the metric loss sees comes before it."""
    model = build(layout, head=head, sa_readout="both", task_type="reid")
    outputs = model(IMAGES, partner_index=PARTNERS, class_tokens_only=True)
    for branch in model.branches:
        own = getattr(model, f"{branch}_head")
        torch.testing.assert_close(outputs[f"{branch}_logits"], own(outputs[f"{branch}_embedding"]))
        assert (own[0].bias.requires_grad is False) if head == "bnneck" else own is not None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_glca_blocks_are_no_glca_branch(layout: str) -> None:
    none, without = build(layout, num_glca_blocks=0), build(layout, branches=("sa", "pwca"))
    assert none.branches == without.branches == ("sa", "pwca")
    assert [*none.state_dict()] == [*without.state_dict()]
    assert not any("glca" in name for name in none.state_dict())


REFUSED = [
    ({"branches": ("glca",)}, "branches must be a list of different branches"),
    ({"branches": ("sa", "sa")}, "branches must be a list of different branches"),
    ({"branches": "sa"}, "branches must be a list"),
    ({"branches": [["sa"]]}, "branches must be a list"),
    ({"head": "neck"}, "head must be 'linear' or 'mlp' or 'bnneck' or None, got 'neck'"),
    ({"sa_readout": "mean"}, "sa_readout must be 'class' or 'local' or 'both', got 'mean'"),
    ({"glca_readout": None}, "glca_readout must be"),
    ({"pwca_blocks": (0, 2)}, "pwca_blocks must be a first and a last block"),
    ({"pwca_blocks": (3, 2)}, "pwca_blocks must be a first and a last block"),
    ({"pwca_blocks": (1, True)}, "pwca_blocks must be a first and a last block"),
    (
        {"pwca_blocks": (2, L + 1)},
        rf"pwca_blocks must be in \[1, {L}\], the model's SA blocks, got \(2, {L + 1}\)",
    ),
    ({"num_glca_blocks": -1}, "num_glca_blocks must be an integer >= 0"),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options, message", REFUSED)
def test_bad_options_are_refused(layout: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(layout, **options)
