"""A model's scores on a dataset: top-1 of each branch for FGVC, mAP and rank-1 for Re-ID."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .metrics import reid_metrics, topk_accuracy
from .model import DualAttentionModel

Batch = dict[str, Any]


@torch.no_grad()
def predict(model: DualAttentionModel, batches: Iterable[Batch], progress: bool = True) -> dict[str, Tensor]:
    """Evaluate every batch: sa and glca class probabilities (S, K), embeddings (S, C or 2C), labels, cameras
    (S,).

    Args:
        model: Left in evaluation mode.
        batches: Dicts of "image" (B, 3, h, w), "label" (B,) and optionally "camera" (B,).
        progress: Show a progress bar.
    """
    model.eval()
    device = next(model.parameters()).device
    parts: dict[str, list[Tensor]] = {name: [] for name in ("sa", "glca", "embedding", "label", "camera")}
    for batch in tqdm(batches, desc="evaluate", leave=False, disable=not progress):
        outputs = model(batch["image"].to(device), class_tokens_only=True)
        parts["sa"].append(outputs["sa_logits"].float().softmax(1).cpu())
        parts["glca"].append(outputs["glca_logits"].float().softmax(1).cpu())
        embedding = outputs.get("combined_features", outputs["sa_features"][:, 0])
        parts["embedding"].append(embedding.float().cpu())
        parts["label"].append(torch.as_tensor(batch["label"]))
        parts["camera"].append(torch.as_tensor(batch.get("camera", torch.zeros(len(outputs["sa_logits"])))))
    if not parts["label"]:
        raise ValueError("batches is empty; evaluation needs at least one batch")
    return {name: torch.cat(part) for name, part in parts.items()}


def evaluate_fgvc(
    model: DualAttentionModel, test: Iterable[Batch], progress: bool = True
) -> dict[str, float]:
    """Top-1 and top-5 of SA, GLCA and the sum of their probabilities, the paper's prediction, in [0, 1]."""
    found = predict(model, test, progress)
    scores: dict[str, float] = {}
    predictions = {"sa": found["sa"], "glca": found["glca"], "sum": found["sa"] + found["glca"]}
    for name, probabilities in predictions.items():
        top = topk_accuracy(probabilities, found["label"], ks=(1, 5))
        scores |= {f"{name}_top{k}": value for k, value in top.items()}
    return scores


def evaluate_reid(
    model: DualAttentionModel, query: Iterable[Batch], gallery: Iterable[Batch], progress: bool = True
) -> dict[str, float]:
    """mAP, rank-1, rank-5, rank-10 and mINP of the SA and GLCA class tokens side by side, in [0, 1]."""
    q, g = predict(model, query, progress), predict(model, gallery, progress)
    result = reid_metrics(
        q["embedding"], q["label"], q["camera"], g["embedding"], g["label"], g["camera"], metric="cosine"
    )
    return {"mAP": result.mAP, **{f"rank{k}": v for k, v in result.cmc.items()}, "mINP": result.mINP}
