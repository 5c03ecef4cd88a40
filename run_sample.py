#!/usr/bin/env python3
"""RIB from images with image-level labels to pseudo masks and a segmentation network: the steps in order."""

import sys

from misc.run.runner import Step, main

RIB_SEEDS = {"folder": "cam_rib_out_dir"}
ANY = {"needs_labels": False}  # of new images, which only a trained network knows
STEPS = (
    Step(1, "train_cam", "step.train_cam", "images, labels", "sess/res50_cam.pth"),
    Step(2, "make_cam", "step.make_cam", "images, sess/res50_cam.pth", "cam/NAME.npy"),
    Step(3, "eval_cam", "step.eval_cam", "cam/NAME.npy, masks", "metrics.json", needs_masks=True),
    Step(4, "make_rib_cam", "step.make_rib_cam", "images, labels, sess/res50_cam.pth", "cam_rib/NAME.npy"),
    Step(5, "eval_rib_cam", "step.eval_cam", "cam_rib/NAME.npy, masks", "metrics.json", RIB_SEEDS, needs_masks=True),
    Step(6, "cam_to_ir_label", "step.cam_to_ir_label", "images, seeds", "ir_label/NAME.png"),
    Step(7, "train_irn", "step.train_irn", "images, ir_label/NAME.png", "sess/res50_irn.pth"),
    Step(8, "make_sem_seg", "step.make_sem_seg", "images, seeds, sess/res50_irn.pth", "sem_seg/NAME.png"),
    Step(9, "eval_sem_seg", "step.eval_sem_seg", "sem_seg/NAME.png, masks", "metrics.json", needs_masks=True),
    Step(10, "make_ins_seg", "step.make_ins_seg", "images, seeds, sess/res50_irn.pth", "ins_seg/NAME.npy"),
    Step(11, "eval_ins_seg", "step.eval_ins_seg", "ins_seg/NAME.npy, true instances", "metrics.json", needs_masks=True),
    Step(12, "train_seg", "step.train_seg", "images, sem_seg/NAME.png", "sess/deeplabv2.pth"),
    Step(
        13,
        "eval_seg",
        "step.eval_seg",
        "images, sess/deeplabv2.pth, masks if any",
        "seg/NAME.png, metrics.json",
        needs_labels=False,
    ),
    Step(None, "strips", "step.strips", "images, labels, sess/res50_cam.pth", "strips/NAME.png, strips.jpg"),
    Step(
        14,
        "report",
        "step.report",
        "whatever is there",
        "report.html, overview.png, thresholds.png",
        needs_labels=False,
    ),
    Step(None, "ablate", "step.ablate", "images, masks, sess/res50_cam.pth", "ablate/STUDY.png", needs_masks=True),
    Step(None, "toy", "step.toy", "nothing, or --mnist_root", "toy/table.txt, three figures", needs_dataset=False),
)


if __name__ == "__main__":
    sys.exit(main(STEPS))
