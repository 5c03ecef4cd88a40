"""Pseudo masks: seeds spread by a random walk that the boundary map holds back (IRN, step/make_sem_seg_labels.py)."""

import argparse

from data.base import Dataset
from misc.run.masks import make_pseudo_masks
from misc.run.outputs import seeds_argument


def run(args: argparse.Namespace, dataset: Dataset) -> dict:
    """Writes `sem_seg/NAME.png` and `edge/NAME.png` (boundary map, stride 4) for every image of the inference list."""
    return make_pseudo_masks(args, dataset, seeds_argument(args), "sem_seg_out_dir")
