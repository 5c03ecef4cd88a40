"""Every argument once: name, default, type, help, and where a value of the method comes from.

Precedence: the command line, then `--config`, then the dataset's PRESET, then the defaults here.
"""

import argparse
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from data import DATASETS, DatasetNames, data_module
from data.errors import UserError
from data.process import cores

RIB, IRN, DEEPLAB = "RIB, section 5.1", "IRN, run_sample.py", "DeepLab-v2"
SEG_NETWORKS = "deeplabv2_resnet101", "deeplabv2_resnet14", "deeplabv3_resnet101", "deeplabv3_resnet50"
RIB_STEP, RIB_RUN, AUTHORS = "RIB, step/make_rib_cam.py", "RIB, run_sample.py", "RIB, as its authors report"


class Option(NamedTuple):
    """One argument. source: of the default, for values of the method. basic: shown by `--help`, the rest by
    `--help_all`. also: other names, those of the published code."""

    name: str
    default: Any
    kind: Callable[[str], Any] | None
    metavar: str | None
    help: str
    source: str = ""
    basic: bool = True
    choices: Any = None
    also: tuple[str, ...] = ()


def number(kind: type, low: float = -math.inf, open_low: bool = False, high: float = math.inf) -> Callable[[str], Any]:
    """A type of finite numbers: at least `low` (above it if open_low), below `high`."""

    def parse(text: str) -> Any:
        value = kind(text)
        wanted = f"{'above' if open_low else 'at least'} {low:g}" + (f" and below {high:g}" if high < math.inf else "")
        if not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{text} is not a finite number")
        if value < low or (open_low and value == low) or value >= high:
            raise argparse.ArgumentTypeError(f"{text} is not {wanted}")
        return value

    parse.__name__ = "whole number" if kind is int else "number"
    return parse


def listed(kind: Callable[[str], Any], count: int | None = None) -> Callable[[str], tuple]:
    """A type of values joined by commas, at least one, exactly `count` of them if given."""

    def parse(text: str) -> tuple:
        values = tuple(kind(part.strip()) for part in text.strip("()[] ").split(",") if part.strip())
        if values and isinstance(values[0], str):
            values = tuple(dict.fromkeys(values))  # a word counts once
        if not values:
            raise argparse.ArgumentTypeError(f"{text!r} holds no value, wanted at least one")
        if count is not None and len(values) != count:
            raise argparse.ArgumentTypeError(f"{text!r} has {len(values)} values, wanted {count} joined by commas")
        return values

    parse.__name__ = "list of values joined by commas"
    return parse


def one_of(*choices: str, timm: str = "") -> Callable[[str], str]:
    """A type of words out of `choices`; timm: what stands before the name of a network of timm, which is one too."""

    def parse(text: str) -> str:
        if text in choices or (timm and text.startswith(timm)):
            return text
        hint = f", {timm}NAME; maybe {timm}{text}" if timm else ""
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(choices)}{hint}")

    return parse


def boolean(text: str) -> bool:
    """True or False, in the usual spellings."""
    values = {"true": True, "yes": True, "1": True, "on": True, "false": False, "no": False, "0": False, "off": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return values[text.lower()]


POSITIVE, COUNT = number(int, 1), number(int, 0)
FINITE, RATE, NOT_NEGATIVE = number(float), number(float, 0, True), number(float, 0)
RATES, FLOATS2, INTS2 = listed(RATE), listed(FINITE, 2), listed(int, 2)
ABLATIONS = ("steps", "pooling", "activation", "companions", "learning_rate")
FLAG = "flag"  # in place of a type: no value follows


def _more(*row: Any, **others: Any) -> Option:
    """An option that only `--help_all` shows."""
    return Option(*row, **others)._replace(basic=False)


OPTIONS: dict[str, list[Option]] = {
    "what to run": [
        Option("dataset", "shapes", None, "NAME", "; ".join(f"{name}: {text}" for name, (_, text) in DATASETS.items())
               + "; or a Python file that offers one", choices=DatasetNames(DATASETS)),
        Option("data_root", None, None, "DIR", "folder of the dataset", also=("voc12_root",)),
        Option("work_dir", None, None, "DIR", "folder of all results (default: result/DATASET)"),
        Option("config", None, None, "FILE.yaml", "values by argument name; the command line wins over them"),
        Option("photo", None, None, "FILE", "write FILE.rib.png (CAM, RIB, IRN label) of one photograph, and exit"),
        Option("label", None, listed(str), "NAME,...", "what --photo shows, in ImageNet's words (default: as seen)"),
        Option("steps", None, None, "LIST", "steps by number or name, with ranges: 3-6 or train_cam,eval_cam"),
        Option("list_steps", False, FLAG, None, "list number, name, input and output of every step, and exit"),
        Option("dry_run", False, FLAG, None, "print the plan and exit"),
        Option("check_data", False, FLAG, None, "read every image, label and mask, print a summary, and exit"),
        Option("preview", None, None, "NAME,...", "write strips/NAME.png (image, CAM, RIB, masks) of these, and exit"),
        Option("overwrite", False, FLAG, None, "delete the old results of the chosen steps and make them again"),
        Option("skip_bad", False, FLAG, None, "read every image and mask first and leave out the unreadable ones"),
        Option("compare", None, None, ("RUN_A", "RUN_B"), "compare two work_dirs in a table (compare.md), and exit"),
        Option("tensorboard", False, FLAG, None, "log losses, learning rates and scores to WORK_DIR/tensorboard"),
    ],
    "machine": [
        Option("device", "auto", None, None, "auto: a GPU if there is one", choices=("auto", "cpu", "cuda")),
        Option("ranks", 1, POSITIVE, "N", "processes that share the work: one per GPU, or several on a CPU, where "
               "small networks use few cores; for several machines use torchrun"),
        Option("precision", "fp32", None, None, "numeric precision of the networks", choices=("fp32", "tf32", "bf16")),
        _more("deterministic", False, FLAG, None, "on a GPU, RIB gives the same bits in every run; slower in fp32"),
        Option("seed", 0, number(int, 0, high=2**63), "N", "seed of every random draw, and of the images of shapes"),
        Option("num_workers", min(8, cores()), COUNT, "N", "processes that read images; 0: none"),
    ],
    "data": [
        Option("train_list", "train", None, "LIST", "images to train the classifier on: a split or a list file",
               "every image with labels"),
        Option("infer_list", "train", None, "LIST", "images that get seeds and pseudo masks",
               "every image that gets a pseudo mask"),
        Option("eval_list", "train", None, "LIST", "images on which seeds and pseudo masks are scored",
               "the images on which seeds and pseudo masks are scored", also=("chainer_eval_set",)),
        Option("val_list", "val", None, "LIST", "images on which classifier and segmentation are scored",
               "the images on which the segmentation network is scored", also=("split",)),
        Option("limit", None, POSITIVE, "N", "use only the first N images of every list"),
        Option("max_side", None, POSITIVE, "PX", "work on images scaled down to this long side; masks are stored and "
               "scored at the images' own size, CAM files stay small"),
        _more("photos_size", 576, POSITIVE, "PX", "photos and --photo: long side of the images", "found on photos"),
        _more("shapes_train", 320, POSITIVE, "N", "shapes: training images"),
        _more("shapes_val", 80, POSITIVE, "N", "shapes: validation images"),
        _more("shapes_size", 192, POSITIVE, "PX", "shapes: side of the images; the preset is for 192"),
    ],
    "classifier and CAM (steps 1 to 3)": [
        Option("cam_network", "resnet50", one_of("resnet50", "resnet14", timm="timm:"), "NAME",
               "backbone of classifier and IRN: resnet50, resnet14, or timm:NAME, a network of timm", RIB),
        Option("cam_init", "imagenet", None, "INIT", "imagenet, scratch (every layer learns), or a weights file; "
               "head:imagenet or head:FILE: a classifier with its head, nothing is trained", "IRN, step/train_cam.py"),
        _more("cam_head_centred", True, boolean, "BOOL", "head:imagenet: subtract the mean row of all categories",
              "this program"),
        _more("cam_optimizer", "sgd", None, None, "sgd: as published; adamw: one-cycle schedule",
              "IRN, misc/torchutils.py: PolyOptimizer", choices=("sgd", "adamw")),
        _more("cam_crop_size", 512, POSITIVE, "PX", "side of the training crops", IRN),
        _more("cam_resize_long", (320, 640), INTS2, "LO,HI", "range of the long side", "IRN, step/train_cam.py"),
        Option("cam_batch_size", 16, POSITIVE, "N", "images per step, over all ranks", IRN),
        _more("cam_accumulate", 1, POSITIVE, "N", "parts in which a step is computed, to save memory; the same step, "
              "except that --cam_init scratch normalises every part by itself"),
        Option("cam_num_epoches", 5, POSITIVE, "N", "epochs", IRN),
        Option("cam_learning_rate", 0.1, RATE, "LR", "learning rate of the backbone; sgd: head 10x", IRN),
        _more("cam_weight_decay", 1e-4, NOT_NEGATIVE, "W", "weight decay", IRN),
        _more("cam_scales", (1.0, 0.5, 1.5, 2.0), RATES, "S,...", "image scales; the first 1.0, the second 0.5", IRN),
        _more("cam_dtype", "float32", None, None, "of CAM files; float16 halves them", choices=("float32", "float16")),
        _more("cam_eval_thres", 0.15, FINITE, "T", "fixed background threshold that is reported", IRN),
        _more("cam_eval_sweep", (0.20, 0.49, 0.01), listed(FINITE, 3), "LO,HI,STEP", "background thresholds to sweep",
              "RIB, step/eval_cam.py"),
    ],
    "RIB (steps 4 and 5)": [
        Option("RIB_lr", 8e-6, RATE, "LR", "learning rate of the backbone (head 10x)", RIB),
        Option("RIB_iter", 10, POSITIVE, "K", "steps per image", "RIB, section 5.1: K"),
        Option("RIB_batch_size", 20, COUNT, "B", "disjoint images per step; 0: none", "RIB, section 5.1: B",
               also=("RIB_batch",)),
        _more("RIB_companions", "fresh", None, None, "fresh: new crops in every step, as published; pool: drawn from "
              "--RIB_pool_size crops whose features are kept, faster", RIB_STEP, choices=("fresh", "pool")),
        _more("RIB_pool_size", 400, POSITIVE, "N", "crops in the pool",
              "two images' worth of steps and companions: 1.7 GB of features in bf16"),
        _more("RIB_crop_size", 512, POSITIVE, "PX", "side of the disjoint images' crops", RIB_STEP),
        _more("RIB_resize_long", (320, 640), INTS2, "LO,HI", "range of their long side, pixels", RIB_STEP),
        _more("RIB_weight_decay", 1e-4, NOT_NEGATIVE, "W", "weight decay", RIB_STEP),
        Option("pooling", "gndp", None, None, "gndp: non-discriminative regions only; gap: average",
               "RIB, section 4.2", choices=("gndp", "gap")),
        Option("score_th", 0.4, FINITE, "TAU", "positions below this fraction of the maximum count", f"{RIB}: tau"),
        Option("stop_th", 600.0, FINITE, "M", "stop once |sum of target logits| exceeds it", RIB_STEP),
        _more("explode_th", 0.3, FINITE, "T", "normalised CAM above which a position is covered", RIB_STEP),
        _more("explode_ratio", 0.7, FINITE, "R", "fraction of covered positions that ends an image", RIB_STEP),
        _more("RIB_activation", "none", None, None, "activation of the logits in RIB's loss; none: as published",
              "RIB, section 4.1", choices=("none", "sigmoid", "softsign", "tanh", "relu")),
    ],
    "IRN label (step 6)": [
        Option("seeds", "cam_rib", None, None, "seeds that steps 6 to 10 start from", choices=("cam", "cam_rib")),
        _more("crf_backend", "auto", None, None, "dense CRF; auto: torch on a GPU, else scipy; all give the same",
              choices=("auto", "scipy", "torch", "pydensecrf")),
        Option("conf_fg_thres", 0.35, FINITE, "T", "background threshold for confident foreground",
               f"{RIB_RUN} (IRN itself has 0.30)"),
        Option("conf_bg_thres", 0.17, FINITE, "T", "background threshold for confident background",
               f"{RIB_RUN} (IRN itself has 0.05)"),
    ],
    "IRN (step 7)": [
        Option("irn_backbone", "imagenet", None, "INIT", "imagenet, cam (the classifier's), or a weights file",
               "IRN, net/resnet50_irn.py"),
        _more("irn_crop_size", 512, POSITIVE, "PX", "side of the training crops, a multiple of 4", IRN),
        _more("irn_rescale", (0.5, 1.5), FLOATS2, "LO,HI", "range of the image scale", "IRN, step/train_irn.py"),
        Option("irn_batch_size", 32, POSITIVE, "N", "images per step, over all ranks", IRN),
        _more("irn_accumulate", 1, POSITIVE, "N", "parts in which a step is computed, to save memory; the same step"),
        Option("irn_num_epoches", 3, POSITIVE, "N", "epochs", IRN),
        Option("irn_learning_rate", 0.1, RATE, "LR", "learning rate of the edge branch", IRN),
        _more("irn_displacement_lr", 1.0, RATE, "LR", "learning rate of the displacement branch",
              "IRN, step/train_irn.py: 10x"),
        _more("irn_weight_decay", 1e-4, NOT_NEGATIVE, "W", "weight decay", IRN),
        _more("irn_radius", 10, POSITIVE, "R", "radius of the training pairs, at stride 4", "IRN, step/train_irn.py"),
        _more("irn_infer_pad", 512, COUNT, "PX", "side to which images are padded at inference; 0: none",
              "IRN, net/resnet50_irn.py: EdgeDisplacement"),
    ],
    "pseudo masks (steps 8 and 9)": [
        Option("beta", 10.0, RATE, "B", "power of the affinity in the random walk", IRN),
        Option("exp_times", 8, COUNT, "N", "the walk takes 2^N steps", IRN),
        _more("cam_power", 1.3, RATE, "P", "power of the CAM before the walk", "RIB, step/make_sem_seg.py",
              also=("np_power",)),
        _more("walk_radius", 5, POSITIVE, "R", "radius of the walk, at stride 4", "IRN, misc/indexing.py"),
        Option("sem_seg_bg_thres", 0.27, FINITE, "T", "background threshold of the pseudo masks", RIB_RUN),
    ],
    "instance masks (steps 10 and 11; the walk as in step 8)": [
        _more("ins_seg_bg_thres", 0.25, FINITE, "T", "background threshold of the instance masks", IRN),
        _more("ins_seg_dp_thres", 2.5, FINITE, "D", "displacement below which centroids lie, at stride 4",
              "IRN, step/make_ins_seg_labels.py: cluster_centroids"),
        _more("ins_seg_min_area", 0.01, FINITE, "R", "fraction of the image below which a fragment scores 0",
              "IRN, step/make_ins_seg_labels.py: max_fragment_size"),
        _more("coco_json", None, None, "DIR", "also write COCO files there: pseudo.json, results.json, truth.json"),
    ],
    "segmentation network (steps 12 and 13)": [
        Option("seg_model", "deeplabv2_resnet101", one_of(*SEG_NETWORKS, timm="deeplabv2_timm:"), "NAME",
               f"{', '.join(SEG_NETWORKS)}, or deeplabv2_timm:NAME; v2 as published, v3 is torchvision's", RIB),
        Option("seg_labels", ("pseudo",), listed(one_of("pseudo", "cam", "truth")), "WORD,...", "one network for each, "
               "the first is the result: pseudo (step 8's masks), cam (the same walk from the plain CAMs), truth (the "
               "dataset's masks)", RIB),
        Option("seg_init", "imagenet", None, "INIT", "backbone: imagenet, coco (torchvision's DeepLab-v3), cam (the "
               "classifier's), scratch, or a file", f"{AUTHORS} (DeepLab-v2 itself starts from COCO)"),
        _more("seg_loss", "balanced", None, None, "balanced: average foreground and background separately, then add",
              f"{AUTHORS}; DSRG, CVPR 2018", choices=("ce", "balanced")),
        _more("seg_crop_size", 321, POSITIVE, "PX", "side of the training crops", DEEPLAB),
        _more("seg_scales", (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0), RATES, "S,...", "image scales in training, one is "
              "drawn", f"{AUTHORS} (DeepLab-v2: to 1.5)"),
        Option("seg_batch_size", 10, POSITIVE, "N", "images per step, over all ranks and --seg_accumulate",
               f"{DEEPLAB}; {AUTHORS}"),
        _more("seg_accumulate", 2, POSITIVE, "N", "parts in which a step is computed; --seg_loss ce averages over each",
              f"{DEEPLAB}: 2 x 5 images"),
        Option("seg_iter", 30_000, POSITIVE, "N", "training steps", f"{AUTHORS} (DeepLab-v2: 20,000)"),
        Option("seg_lr", 2.5e-4, RATE, "LR", "learning rate of the backbone (classifier 10x, its biases 20x)", DEEPLAB),
        _more("seg_momentum", 0.9, NOT_NEGATIVE, "M", "momentum of SGD", DEEPLAB),
        _more("seg_weight_decay", 5e-4, NOT_NEGATIVE, "W", "weight decay (biases: none)", DEEPLAB),
        _more("seg_checkpoint_every", 1000, POSITIVE, "N", "steps between two checkpoints", "this program"),
        _more("seg_msc_scales", (1.0, 0.75, 0.5), RATES, "S,...", "v2: scales within the network; the first 1.0",
              DEEPLAB),
        _more("seg_aspp_rates", (6, 12, 18, 24), listed(POSITIVE), "R,...", "v2: dilations of the classifier", DEEPLAB),
        _more("seg_test_scales", (1.0,), RATES, "S,...", "image scales at inference, averaged",
              f"{DEEPLAB}: the network has scales of its own"),
        _more("seg_test_mirror", False, boolean, "BOOL", "average with the mirror image", DEEPLAB),
        _more("seg_crf", (1.0, 3.0, 67.0, 3.0, 4.0), listed(FINITE, 5), "S,C,S,S,C", "CRF: Gaussian deviation (px) and "
              "weight; bilateral deviation (px), deviation (grey values) and weight", DEEPLAB),
        _more("seg_crf_iter", 10, COUNT, "N", "iterations of the CRF; 0: no CRF", DEEPLAB),
    ],
    "ablations and strips (steps that run only by name)": [
        _more("ablate", ABLATIONS, listed(one_of(*ABLATIONS)), "LIST", "settings that are compared"),
        _more("ablate_limit", 8, POSITIVE, "N", "images that every point takes"),
        _more("strips_images", "12", None, "NAMES|N", "images that get a strip: names, or how many"),
    ],
    "toy experiment (step toy; it does not depend on --dataset)": [
        _more("mnist_root", None, None, "DIR", "take digits from MNIST in DIR, fetched if missing"),
        _more("toy_seeds", 3, POSITIVE, "N", "repetitions: --seed, --seed + 1, ..."),
        _more("toy_train", 2400, POSITIVE, "N", "training images"),
        _more("toy_test", 60, POSITIVE, "N", "test images, all with a mark"),
        _more("toy_batch_size", 50, POSITIVE, "N", "images per training step"),
        _more("toy_epochs", 12, POSITIVE, "N", "epochs"),
        _more("toy_lr", 2e-3, RATE, "LR", "learning rate of Adam, one cycle"),
        _more("toy_weight_decay", 1e-2, NOT_NEGATIVE, "W", "weight decay of Adam (L2)"),
        _more("toy_rib_lr", 1e-3, RATE, "LR", "fine-tuning's learning rate of the convolutions (head 10x)"),
        _more("toy_rib_iter", 10, POSITIVE, "K", "fine-tuning steps per image"),
        _more("toy_stop_th", 100.0, RATE, "M", "fine-tuning ends once |logit| exceeds it"),
        _more("toy_threshold", 0.2, number(float, 0, True, 1), "T", "fraction of the maximum above which G_k is high"),
    ],
    "files (default: below --work_dir)": [
        *(_more(f"{name}_weights_name", None, None, "FILE", text) for name, text in (
            ("cam", "classifier weights"), ("irn", "IRN weights"),
            ("seg", "segmentation network trained on --seg_labels pseudo"),
            ("seg_cam", "on cam"), ("seg_truth", "on truth"))),
        *(_more(f"{name}_out_dir", None, None, "DIR", f"folder of the {name} files") for name in
          "cam cam_rib ir_label sem_seg sem_seg_cam edge ins_seg seg seg_cam seg_truth".split()),
    ],
}  # fmt: skip


def preset(dataset: str) -> dict[str, tuple[object, str]]:
    """The values of the method, and its own steps, for a dataset: name -> (value, source); UserError for others."""
    known = {o.name: (o.default, o.source) for options in OPTIONS.values() for o in options if o.source}
    own = data_module(dataset).PRESET
    unknown = sorted(set(own) - set(known) - {"steps"})
    if unknown:
        raise UserError(f"the PRESET of dataset {dataset} has {', '.join(unknown)}; there are {', '.join(known)}")
    return {**known, **own}
