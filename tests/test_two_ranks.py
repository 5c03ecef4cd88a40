"""Two ranks give what one gives, in every training and every step."""

import json

import numpy as np
import pytest

from tests.helpers import assert_mixed, said, small_arguments, started, torchrun
from tests.kill_pipeline import compare

TOY = "--toy_seeds 3 --toy_train 16 --toy_test 2 --toy_epochs 1 --toy_batch_size 8 --toy_rib_iter 2".split()
STEPS = (
    "make_cam-cam_to_ir_label,make_sem_seg-eval_ins_seg,eval_seg,ablate,toy", "--ablate", "steps", "--ablate_limit", "3"
)  # fmt: skip
KINDS = ("cam", "cam_rib", "ir_label", "sem_seg", "ins_seg", "seg")


def losses(work_dir):
    """Step -> the losses of its epochs; of train_seg those on pseudo masks."""
    metrics = json.loads((work_dir / "metrics.json").read_text())
    return {
        "train_cam": metrics["train_cam"]["loss"],
        "train_irn": metrics["train_irn"]["loss"],
        "train_seg": metrics["train_seg"]["loss"]["pseudo"],
    }


def test_trainings(tmp_path, small_run):
    """Gradients and losses are means over the images of all ranks and parts; other sums differ in the last digits."""
    learnt = small_run / "sess" / "res50_cam.pth"
    arguments = (
        "--steps", "train_cam,train_irn,train_seg", "--num_workers", "0",
        "--cam_init", learnt, "--cam_optimizer", "sgd", "--cam_learning_rate", "0.01", "--cam_num_epoches", "2",
        "--irn_backbone", learnt, "--ir_label_out_dir", small_run / "ir_label",
        "--seg_init", learnt, "--sem_seg_out_dir", small_run / "sem_seg", "--seg_labels", "pseudo", "--seg_loss", "ce",
        "--seg_iter", "4", "--seg_checkpoint_every", "2",
    )  # fmt: skip
    said(*small_arguments(tmp_path / "one", *arguments))
    parts = ("--cam_accumulate", "2", "--irn_accumulate", "2")
    told = started(*small_arguments(tmp_path / "two", *arguments, *parts), "--ranks", "2")
    assert "deprecated" not in told and "FutureWarning" not in told
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert {step: len(values) for step, values in one.items()} == {"train_cam": 2, "train_irn": 2, "train_seg": 2}
    for step, values in one.items():
        assert two[step] == pytest.approx(values, rel=1e-5), step
        assert values[1] != pytest.approx(values[0], rel=1e-3), f"{step} has learnt nothing"


def test_steps(tmp_path, small_run):
    """From the same given weights on, every file has the same bytes and every figure is the same."""
    weights = [
        word
        for name, file in (("cam", "res50_cam"), ("irn", "res50_irn"), ("seg", "deeplabv2"))
        for word in (f"--{name}_weights_name", small_run / "sess" / f"{file}.pth")
    ]
    arguments = ("--num_workers", "0", *weights, "--seg_labels", "pseudo", *TOY, "--steps", *STEPS)
    said(*small_arguments(tmp_path / "one", *arguments))
    told = torchrun(*small_arguments(tmp_path / "two", *arguments))
    assert [seed for seed in range(3) if f"seed {seed}: accuracy" in told] == [0, 2]  # rank 0 alone tells what it does
    compare(tmp_path / "two", tmp_path / "one")
    assert {kind: len(list((tmp_path / "two" / kind).glob("[!.]*"))) for kind in KINDS} == dict.fromkeys(KINDS, 8)
    assert len(list((tmp_path / "two" / "ablate").rglob("train_*.npz"))) == 3
    assert_mixed(tmp_path / "two", ("ir_label", "sem_seg", "seg"))
    metrics = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert metrics["make_cam"]["images"] == 8 and len(metrics["toy"]["accuracy"]) == 3
    assert np.sum(metrics["eval_sem_seg"]["confusion"]) == np.sum(metrics["eval_seg"]["confusion"]) == 8 * 48**2
