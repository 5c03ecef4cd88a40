#!/usr/bin/env python3
"""RIB from images with image-level labels to pseudo masks: the steps in order, and their arguments."""

import argparse
import sys

from misc.run.argtypes import above_zero, boolean, finite, floats, integers, not_negative, positive, share, words
from misc.run.runner import Step, main

RIB_SEEDS = {"folder": "cam_rib_out_dir"}
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
    Step(13, "eval_seg", "step.eval_seg", "images, sess/deeplabv2.pth, masks if any", "seg/NAME.png, metrics.json"),
    Step(14, "report", "step.report", "whatever is there", "report.html, overview.png, thresholds.png"),
    Step(None, "ablate", "step.ablate", "images, masks, sess/res50_cam.pth", "ablate/STUDY.png", needs_masks=True),
    Step(None, "strips", "step.strips", "images, labels, sess/res50_cam.pth", "strips/NAME.png"),
    Step(None, "toy", "step.toy", "nothing, or --mnist_root", "toy/table.txt, three figures", needs_dataset=False),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the steps. Values of the method come from the dataset's preset, so none has a default here."""
    group = parser.add_argument_group("data")
    group.add_argument("--train_list", metavar="LIST", help="images the classifier learns from: a split or a list file")
    group.add_argument("--infer_list", metavar="LIST", help="images that get seeds and pseudo masks")
    group.add_argument("--eval_list", metavar="LIST", help="images on which seeds and pseudo masks are scored")
    group.add_argument(
        "--val_list", "--split", metavar="LIST", help="images on which the classifier and the segmentation are scored"
    )
    group.add_argument("--limit", type=positive, metavar="N", help="only the first N images of every list")
    group.add_argument("--shapes_train", type=positive, default=320, metavar="N", help="shapes: training images")
    group.add_argument("--shapes_val", type=positive, default=80, metavar="N", help="shapes: validation images")
    group.add_argument("--shapes_size", type=positive, default=96, metavar="PX", help="shapes: side of the images")

    group = parser.add_argument_group("classifier and CAM (steps 1 to 3)")
    group.add_argument("--cam_network", choices=("resnet50", "resnet14"), help="backbone, also of the boundary network")
    group.add_argument("--cam_init", metavar="INIT", help="imagenet, scratch (every layer learns), or a weights file")
    group.add_argument("--cam_optimizer", choices=("sgd", "adamw"), help="sgd: as published; adamw: one cycle")
    group.add_argument("--cam_crop_size", type=positive, metavar="PX", help="side of the training crops")
    group.add_argument("--cam_resize_long", type=integers(2), metavar="LO,HI", help="range of the long side, pixels")
    group.add_argument("--cam_batch_size", type=positive, metavar="N", help="images per step, over all ranks")
    group.add_argument("--cam_num_epoches", type=positive, metavar="N", help="passes over the training list")
    group.add_argument("--cam_learning_rate", type=above_zero, metavar="LR", help="of the backbone; sgd: head 10x")
    group.add_argument("--cam_weight_decay", type=finite, metavar="W", help="weight decay")
    group.add_argument(
        "--cam_scales", type=floats(), metavar="S,...", help="image scales; the first 1.0, the second 0.5"
    )
    group.add_argument(
        "--cam_eval_thres", type=finite, metavar="T", help="the fixed background threshold that is reported"
    )
    group.add_argument("--cam_eval_sweep", type=floats(3), metavar="LO,HI,STEP", help="the thresholds that are tried")

    group = parser.add_argument_group("RIB (steps 4 and 5)")
    group.add_argument("--RIB_lr", type=above_zero, metavar="LR", help="learning rate of the backbone (head 10x)")
    group.add_argument("--RIB_iter", type=positive, metavar="K", help="steps per image")
    group.add_argument("--RIB_batch_size", type=not_negative, metavar="B", help="companion images per step; 0: none")
    group.add_argument(
        "--RIB_companions",
        choices=("fresh", "pool"),
        help="fresh: new crops in every step, as published; pool: from --RIB_pool_size crops, features kept, faster",
    )
    group.add_argument("--RIB_pool_size", type=positive, metavar="N", help="crops in the pool")
    group.add_argument("--RIB_crop_size", type=positive, metavar="PX", help="side of the companions' crops")
    group.add_argument("--RIB_resize_long", type=integers(2), metavar="LO,HI", help="range of their long side, pixels")
    group.add_argument("--RIB_weight_decay", type=finite, metavar="W", help="weight decay")
    group.add_argument("--pooling", choices=("gndp", "gap"), help="gndp: non-discriminative regions only; gap: average")
    group.add_argument(
        "--score_th", type=finite, metavar="TAU", help="share of the maximum below which a position counts"
    )
    group.add_argument("--stop_th", type=finite, metavar="M", help="stop once |sum of target logits| exceeds it")
    group.add_argument(
        "--explode_th", type=finite, metavar="T", help="normalised CAM above which a position is covered"
    )
    group.add_argument(
        "--explode_ratio", type=finite, metavar="R", help="share of covered positions that ends an image"
    )
    activations = ("none", "sigmoid", "softsign", "tanh", "relu")
    group.add_argument("--RIB_activation", choices=activations, help="of the logits in the loss; none: RIB")

    group = parser.add_argument_group("ablations and strips (steps that run only by name)")
    group.add_argument(
        "--ablate", metavar="LIST", help="studies: steps, pooling, activation, companions, learning_rate (default: all)"
    )
    group.add_argument("--ablate_limit", type=positive, default=8, metavar="N", help="images that every point takes")
    group.add_argument(
        "--strips_images", default="12", metavar="NAMES|N", help="images that get a strip: names, or how many"
    )

    group = parser.add_argument_group("labels for the boundary network (step 6)")
    group.add_argument("--seeds", choices=("cam", "cam_rib"), default="cam_rib", help="what steps 6 to 10 start from")
    backends = ("auto", "pydensecrf", "torch")
    group.add_argument(
        "--crf_backend",
        default="auto",
        choices=backends,
        help="torch computes the same on any device; auto: torch on a GPU or where pydensecrf is not installed",
    )
    group.add_argument("--conf_fg_thres", type=finite, metavar="T", help="background score of the foreground's CRF run")
    group.add_argument("--conf_bg_thres", type=finite, metavar="T", help="background score of the background's CRF run")

    group = parser.add_argument_group("boundary network (step 7)")
    group.add_argument("--irn_backbone", metavar="INIT", help="imagenet, cam (the classifier's), or a weights file")
    group.add_argument(
        "--irn_crop_size", type=positive, metavar="PX", help="side of the training crops, a multiple of 4"
    )
    group.add_argument("--irn_rescale", type=floats(2), metavar="LO,HI", help="range of the image scale")
    group.add_argument("--irn_batch_size", type=positive, metavar="N", help="images per step, over all ranks")
    group.add_argument("--irn_num_epoches", type=positive, metavar="N", help="passes over the inference list")
    group.add_argument("--irn_learning_rate", type=above_zero, metavar="LR", help="of the edge branch")
    group.add_argument("--irn_displacement_lr", type=above_zero, metavar="LR", help="of the displacement branch")
    group.add_argument("--irn_weight_decay", type=finite, metavar="W", help="weight decay")
    group.add_argument("--irn_radius", type=positive, metavar="R", help="radius of the training pairs, stride-4 steps")
    group.add_argument(
        "--irn_infer_pad", type=not_negative, metavar="PX", help="side to which images are padded at inference; 0: no"
    )

    group = parser.add_argument_group("pseudo masks (steps 8 and 9)")
    group.add_argument("--beta", type=above_zero, metavar="B", help="power of the affinity in the random walk")
    group.add_argument("--exp_times", type=not_negative, metavar="N", help="the walk takes 2^N steps")
    group.add_argument("--cam_power", type=above_zero, metavar="P", help="power of the CAM before the walk")
    group.add_argument("--walk_radius", type=positive, metavar="R", help="radius of the walk, stride-4 steps")
    group.add_argument("--sem_seg_bg_thres", type=finite, metavar="T", help="background score of the pseudo masks")

    group = parser.add_argument_group("instance masks (steps 10 and 11; the walk as in step 8)")
    group.add_argument("--ins_seg_bg_thres", type=finite, metavar="T", help="background score of the instance masks")
    group.add_argument(
        "--ins_seg_dp_thres", type=finite, metavar="D", help="displacement below which centroids lie, stride-4 steps"
    )
    group.add_argument(
        "--ins_seg_min_area", type=finite, metavar="R", help="share of the image below which a fragment scores 0"
    )
    group.add_argument(
        "--coco_json",
        metavar="DIR",
        help="also write COCO files there: pseudo.json (annotations), results.json and truth.json (for pycocotools)",
    )

    group = parser.add_argument_group("segmentation network (steps 12 and 13)")
    models = ("deeplabv2_resnet101", "deeplabv2_resnet14", "deeplabv3_resnet101", "deeplabv3_resnet50")
    group.add_argument("--seg_model", choices=models, help="v2 as published; v3 is torchvision's")
    group.add_argument(
        "--seg_labels",
        type=words("pseudo", "cam", "truth"),
        metavar="WORD,...",
        help="one network for each, the first is the result: pseudo (step 8's masks), cam (the same walk from the "
        "plain CAMs), truth (the dataset's masks)",
    )
    group.add_argument(
        "--seg_init",
        metavar="INIT",
        help="backbone: imagenet, coco (torchvision's, from COCO's masks), cam (the classifier's), scratch, or a file",
    )
    group.add_argument("--seg_loss", choices=("ce", "balanced"), help="balanced: fore- and background averaged apart")
    group.add_argument("--seg_crop_size", type=positive, metavar="PX", help="side of the training crops")
    group.add_argument("--seg_scales", type=floats(), metavar="S,...", help="image scales in training, one is drawn")
    group.add_argument(
        "--seg_batch_size", type=positive, metavar="N", help="images per step, over all ranks and --seg_accumulate"
    )
    group.add_argument("--seg_accumulate", type=positive, metavar="N", help="parts in which a step is computed")
    group.add_argument("--seg_iter", type=positive, metavar="N", help="training steps")
    group.add_argument(
        "--seg_lr", type=above_zero, metavar="LR", help="of the backbone (classifier 10x, its biases 20x)"
    )
    group.add_argument("--seg_momentum", type=finite, metavar="M", help="momentum of SGD")
    group.add_argument("--seg_weight_decay", type=finite, metavar="W", help="weight decay (biases: none)")
    group.add_argument("--seg_checkpoint_every", type=positive, metavar="N", help="steps between two checkpoints")
    group.add_argument(
        "--seg_msc_scales", type=floats(), metavar="S,...", help="v2: scales within the network; the first 1.0"
    )
    group.add_argument("--seg_aspp_rates", type=integers(), metavar="R,...", help="v2: dilations of the classifier")
    group.add_argument("--seg_test_scales", type=floats(), metavar="S,...", help="image scales at inference, averaged")
    group.add_argument("--seg_test_mirror", type=boolean, metavar="BOOL", help="average with the mirror image")
    group.add_argument(
        "--seg_crf",
        type=floats(5),
        metavar="S,C,S,S,C",
        help="CRF: Gaussian deviation (px) and weight; bilateral deviation (px), deviation (grey values) and weight",
    )
    group.add_argument("--seg_crf_iter", type=not_negative, metavar="N", help="iterations of the CRF; 0: no CRF")
    _add_toy(parser)

    group = parser.add_argument_group("files (default: below --work_dir)")
    group.add_argument("--cam_weights_name", metavar="FILE", help="classifier weights")
    group.add_argument("--irn_weights_name", metavar="FILE", help="boundary network weights")
    for name, labels in (("seg", "pseudo"), ("seg_cam", "cam"), ("seg_truth", "truth")):
        text = f"segmentation network weights, learnt from --seg_labels {labels}"
        group.add_argument(f"--{name}_weights_name", metavar="FILE", help=text)
    folders = "cam cam_rib ir_label sem_seg sem_seg_cam edge ins_seg seg seg_cam seg_truth"
    for name in folders.split():
        group.add_argument(f"--{name}_out_dir", metavar="DIR", help=f"folder of the {name} files")


def _add_toy(parser: argparse.ArgumentParser) -> None:
    """The paper gives marks, layers and losses of the toy experiment, none of these values: found by trial."""
    group = parser.add_argument_group("the toy experiment (step toy; it does not depend on --dataset)")
    group.add_argument("--mnist_root", metavar="DIR", help="take digits from MNIST in DIR, fetched if missing")
    group.add_argument(
        "--toy_seeds", type=positive, default=3, metavar="N", help="repetitions: --seed, --seed + 1, ..."
    )
    group.add_argument("--toy_train", type=positive, default=2400, metavar="N", help="training images")
    group.add_argument("--toy_test", type=positive, default=60, metavar="N", help="test images, all with a mark")
    group.add_argument("--toy_batch_size", type=positive, default=50, metavar="N", help="images per training step")
    group.add_argument("--toy_epochs", type=positive, default=12, metavar="N", help="passes over the training images")
    group.add_argument("--toy_lr", type=above_zero, default=2e-3, metavar="LR", help="of Adam, one cycle")
    group.add_argument("--toy_weight_decay", type=finite, default=1e-2, metavar="W", help="of Adam (L2)")
    group.add_argument(
        "--toy_rib_lr", type=above_zero, default=1e-3, metavar="LR", help="of the fine-tuning's convolutions (head 10x)"
    )
    group.add_argument("--toy_rib_iter", type=positive, default=10, metavar="K", help="fine-tuning steps per image")
    group.add_argument(
        "--toy_stop_th", type=above_zero, default=100.0, metavar="M", help="fine-tuning ends once |logit| exceeds it"
    )
    group.add_argument(
        "--toy_threshold",
        type=share,
        default=0.2,
        metavar="T",
        help="share of the maximum, within 0 and 1, above which G_k is high",
    )


if __name__ == "__main__":
    sys.exit(main(STEPS, add_arguments))
