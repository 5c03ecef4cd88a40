"""The constants of the method, once: value and source. A dataset's preset overrides what is particular to it.

Order of precedence: the command line, then `--config`, then the dataset's PRESET, then PUBLISHED.
"""

from data import data_module
from data.errors import UserError

PUBLISHED: dict[str, tuple[object, str]] = {
    # classifier
    "cam_network": ("resnet50", "RIB, section 5.1"),
    "cam_init": ("imagenet", "IRN, step/train_cam.py"),
    "cam_optimizer": ("sgd", "IRN, misc/torchutils.py: PolyOptimizer"),
    "cam_crop_size": (512, "IRN, run_sample.py"),
    "cam_resize_long": ((320, 640), "IRN, step/train_cam.py"),
    "cam_batch_size": (16, "IRN, run_sample.py"),
    "cam_num_epoches": (5, "IRN, run_sample.py"),
    "cam_learning_rate": (0.1, "IRN, run_sample.py"),
    "cam_weight_decay": (1e-4, "IRN, run_sample.py"),
    "cam_scales": ((1.0, 0.5, 1.5, 2.0), "IRN, run_sample.py"),
    # evaluation of seeds
    "cam_eval_thres": (0.15, "IRN, run_sample.py"),
    "cam_eval_sweep": ((0.20, 0.49, 0.01), "RIB, step/eval_cam.py"),
    # RIB
    "RIB_lr": (8e-6, "RIB, section 5.1"),
    "RIB_iter": (10, "RIB, section 5.1: K"),
    "RIB_batch_size": (20, "RIB, section 5.1: B"),
    "RIB_companions": ("fresh", "RIB, step/make_rib_cam.py"),
    "RIB_pool_size": (400, "two images' worth of steps and companions: 1.7 GB of features in bf16"),
    "RIB_crop_size": (512, "RIB, step/make_rib_cam.py"),
    "RIB_resize_long": ((320, 640), "RIB, step/make_rib_cam.py"),
    "RIB_weight_decay": (1e-4, "RIB, step/make_rib_cam.py"),
    "pooling": ("gndp", "RIB, section 4.2"),
    "score_th": (0.4, "RIB, section 5.1: tau"),
    "RIB_activation": ("none", "RIB, section 4.1"),
    "stop_th": (600.0, "RIB, step/make_rib_cam.py"),
    "explode_th": (0.3, "RIB, step/make_rib_cam.py"),
    "explode_ratio": (0.7, "RIB, step/make_rib_cam.py"),
    # labels for the boundary network
    "conf_fg_thres": (0.35, "RIB, run_sample.py (IRN itself has 0.30)"),
    "conf_bg_thres": (0.17, "RIB, run_sample.py (IRN itself has 0.05)"),
    # boundary network
    "irn_backbone": ("imagenet", "IRN, net/resnet50_irn.py"),
    "irn_crop_size": (512, "IRN, run_sample.py"),
    "irn_rescale": ((0.5, 1.5), "IRN, step/train_irn.py"),
    "irn_batch_size": (32, "IRN, run_sample.py"),
    "irn_num_epoches": (3, "IRN, run_sample.py"),
    "irn_learning_rate": (0.1, "IRN, run_sample.py"),
    "irn_displacement_lr": (1.0, "IRN, step/train_irn.py: 10x"),
    "irn_weight_decay": (1e-4, "IRN, run_sample.py"),
    "irn_radius": (10, "IRN, step/train_irn.py"),
    "irn_infer_pad": (512, "IRN, net/resnet50_irn.py: EdgeDisplacement"),
    # pseudo masks
    "beta": (10.0, "IRN, run_sample.py"),
    "exp_times": (8, "IRN, run_sample.py"),
    "cam_power": (1.3, "RIB, step/make_sem_seg.py"),
    "walk_radius": (5, "IRN, misc/indexing.py"),
    "sem_seg_bg_thres": (0.27, "RIB, run_sample.py"),
    # instance masks
    "ins_seg_bg_thres": (0.25, "IRN, run_sample.py"),
    "ins_seg_dp_thres": (2.5, "IRN, step/make_ins_seg_labels.py: cluster_centroids"),
    "ins_seg_min_area": (0.01, "IRN, step/make_ins_seg_labels.py: max_fragment_size"),
    # segmentation network
    "seg_model": ("deeplabv2_resnet101", "RIB, section 5.1"),
    "seg_labels": (("pseudo",), "RIB, section 5.1"),
    "seg_init": ("imagenet", "RIB, as its authors report (DeepLab-v2 itself starts from COCO)"),
    "seg_loss": ("balanced", "RIB, as its authors report; DSRG, CVPR 2018"),
    "seg_crop_size": (321, "DeepLab-v2"),
    "seg_scales": ((0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0), "RIB, as its authors report (DeepLab-v2: to 1.5)"),
    "seg_batch_size": (10, "DeepLab-v2; RIB, as its authors report"),
    "seg_accumulate": (2, "DeepLab-v2: 2 x 5 images"),
    "seg_iter": (30_000, "RIB, as its authors report (DeepLab-v2: 20,000)"),
    "seg_lr": (2.5e-4, "DeepLab-v2"),
    "seg_momentum": (0.9, "DeepLab-v2"),
    "seg_weight_decay": (5e-4, "DeepLab-v2"),
    "seg_checkpoint_every": (1000, "ours"),
    "seg_msc_scales": ((1.0, 0.75, 0.5), "DeepLab-v2"),
    "seg_aspp_rates": ((6, 12, 18, 24), "DeepLab-v2"),
    "seg_test_scales": ((1.0,), "DeepLab-v2: the network has scales of its own"),
    "seg_test_mirror": (False, "DeepLab-v2"),
    "seg_crf": ((1.0, 3.0, 67.0, 3.0, 4.0), "DeepLab-v2"),
    "seg_crf_iter": (10, "DeepLab-v2"),
    # lists: a split of the dataset or a file
    "train_list": ("train", "every image with labels"),
    "infer_list": ("train", "every image that gets a pseudo mask"),
    "eval_list": ("train", "the images on which seeds and pseudo masks are scored"),
    "val_list": ("val", "the images on which the segmentation network is scored"),
}


def preset(name: str) -> dict[str, tuple[object, str]]:
    """The published constants with the dataset's own in place: argument -> (value, source)."""
    own = data_module(name).PRESET
    unknown = sorted(set(own) - set(PUBLISHED))
    if unknown:
        raise UserError(f"the PRESET of dataset {name} has {', '.join(unknown)}; there are {', '.join(PUBLISHED)}")
    return {**PUBLISHED, **own}
