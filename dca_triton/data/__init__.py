"""Datasets in their published layouts, the paper's transforms, and the sampler of identities."""

from .folder import photos_in
from .records import ImageDataset, ImageRecord, read_image
from .sampler import IdentitySampler
from .splits import Splits, load_dataset
from .transforms import fgvc_test, fgvc_train, reid_test, reid_train, whole_batch_affine

__all__ = [
    "IdentitySampler",
    "ImageDataset",
    "ImageRecord",
    "Splits",
    "fgvc_test",
    "fgvc_train",
    "load_dataset",
    "photos_in",
    "read_image",
    "reid_test",
    "reid_train",
    "whole_batch_affine",
]
