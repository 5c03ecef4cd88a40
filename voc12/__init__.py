"""PASCAL VOC 2012 with the augmented masks: class names, folders, lists, labels and its part of the preset."""

from voc12.dataset import CLASSES, N_TRAIN_AUG, PRESET, VOC12, find_folder, open_dataset

__all__ = ["CLASSES", "N_TRAIN_AUG", "PRESET", "VOC12", "find_folder", "open_dataset"]
