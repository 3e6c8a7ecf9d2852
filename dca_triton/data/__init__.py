"""Datasets in their published layouts, the paper's transforms, and the sampler of identities."""

from dca_triton.data.records import ImageDataset, ImageRecord, read_image
from dca_triton.data.sampler import IdentitySampler
from dca_triton.data.splits import Splits, load_dataset
from dca_triton.data.transforms import fgvc_test, fgvc_train, reid_test, reid_train, whole_batch_affine

__all__ = [
    "IdentitySampler",
    "ImageDataset",
    "ImageRecord",
    "Splits",
    "fgvc_test",
    "fgvc_train",
    "load_dataset",
    "read_image",
    "reid_test",
    "reid_train",
    "whole_batch_affine",
]
