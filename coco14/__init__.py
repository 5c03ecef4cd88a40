"""MS COCO 2014: class names, folders, index, labels, masks and its part of the preset."""

from coco14.dataset import CATEGORIES, CLASSES, COCO14, PRESET, open_dataset

__all__ = ["CATEGORIES", "CLASSES", "COCO14", "PRESET", "open_dataset"]
