"""The training loop: exact resume, and a stop on a loss that is not finite."""

import argparse
import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import run_sample
from data.errors import UserError
from misc.run.arguments import parse
from misc.run.trainloop import check_batches, fit, loader_by_epoch
from misc.torchutils import PolyOptimizer
from tests.helpers import relative_error, said, small_arguments

EPOCHS, BATCHES = 4, 3


def train(checkpoint, kind, cut_before=None, settings=None, bad_batch=None):
    """Trains a small network with batch normalisation; returns its state and the losses."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    scheduler = None
    if kind == "sgd":
        optimizer = PolyOptimizer(model.parameters(), 0.1, 1e-4, max_step=EPOCHS * BATCHES)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=EPOCHS * BATCHES)

    class Loader:
        n_epochs = EPOCHS

        def epochs(self, first):
            for epoch in range(first, EPOCHS):
                if epoch == cut_before:
                    raise KeyboardInterrupt
                images = torch.randn(2 * BATCHES, 3, 6, 6, generator=torch.Generator().manual_seed(epoch))
                if bad_batch is not None:
                    images[2 * bad_batch] = float("nan")
                labels = (images.mean((1, 2, 3)) > 0).long()
                yield epoch, BATCHES, zip(images.split(2), labels.split(2), strict=True)

    def loss_of(model, part, batch):
        return F.cross_entropy(model(part[0]), part[1])

    training = SimpleNamespace(checkpoint=checkpoint, provenance=settings or {"arguments": {"a": 1}})
    losses = fit(model, loss_of, optimizer, Loader(), training, "train", scheduler)
    return model.state_dict(), losses


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("cut", [1, 3])
def test_going_on_gives_the_same_bits(tmp_path, kind, cut):
    wanted, losses = train(tmp_path / "whole", kind)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", kind, cut_before=cut)
    got, again = train(tmp_path / "cut", kind)
    assert again == losses and len(losses) == EPOCHS
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_other_settings_are_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "x", "sgd", cut_before=2)
    with pytest.raises(UserError, match=r"was created with a 1, now 2.*--overwrite"):
        train(tmp_path / "x", "sgd", settings={"arguments": {"a": 2}})
    (tmp_path / "x").write_bytes(b"broken")
    with pytest.raises(UserError, match="is damaged; delete it"):
        train(tmp_path / "x", "sgd")


@pytest.mark.parametrize("refused", [PermissionError(13, "no"), MemoryError(), torch.OutOfMemoryError("full")])
def test_what_the_machine_refuses_is_no_broken_checkpoint(tmp_path, monkeypatch, refused):
    def load(*of, **how):
        raise refused

    (tmp_path / "x").write_bytes(b"whole")
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(type(refused)):
        train(tmp_path / "x", "sgd")


def test_a_loss_that_is_not_finite_stops(tmp_path):
    with pytest.raises(FloatingPointError, match="epoch 1, batch 2"):
        train(tmp_path / "x", "sgd", bad_batch=1)
    assert not (tmp_path / "x").exists()


def test_a_batch_that_cannot_be_filled():
    args = argparse.Namespace(seed=0, num_workers=0)
    with pytest.raises(UserError, match="3 images do not fill one batch of 4"):
        loader_by_epoch(None, ["a", "b", "c"], 4, 1, args, False)


def test_parts_make_up_the_same_step(tmp_path, small_run):
    """Classifier with frozen normalisation and IRN, whose losses are means over the pairs of a whole batch."""
    learnt = small_run / "sess" / "res50_cam.pth"
    arguments = (
        "--steps", "train_cam,train_irn", "--num_workers", "0", "--cam_init", learnt, "--cam_optimizer", "sgd",
        "--cam_learning_rate", "0.01", "--cam_num_epoches", "2", "--irn_backbone", learnt,
        "--ir_label_out_dir", small_run / "ir_label",
    )  # fmt: skip
    said(*small_arguments(tmp_path / "whole", *arguments))
    said(*small_arguments(tmp_path / "parts", *arguments, "--cam_accumulate", "2", "--irn_accumulate", "4"))
    for name in ("res50_cam.pth", "res50_irn.pth"):
        whole, parts = (torch.load(tmp_path / kind / "sess" / name, weights_only=True) for kind in ("whole", "parts"))
        assert any(not torch.equal(parts[key], value) for key, value in whole.items())
        assert max(relative_error(parts[key], value) for key, value in whole.items() if value.any()) < 1e-4
    losses = [json.loads((tmp_path / kind / "metrics.json").read_text()) for kind in ("whole", "parts")]
    for step in ("train_cam", "train_irn"):
        assert losses[1][step]["loss"] == pytest.approx(losses[0][step]["loss"], rel=1e-5)
    text = said(*small_arguments(tmp_path / "parts", *arguments, "--irn_accumulate", "2"))
    assert text.count("exists, skipping the training") == 2  # the parts may change
    text = said(*small_arguments(tmp_path / "parts", *arguments, "--cam_init", "scratch"), code=2)
    assert "was created with --cam_init" in text


def test_batches_are_checked_for_what_is_still_to_be_trained(tmp_path, monkeypatch):
    argv = "--cam_batch_size 3 --irn_batch_size 4 --seg_batch_size 10 --seg_accumulate 2 --seg_labels pseudo".split()
    args, _ = parse(run_sample.STEPS, ["--work_dir", str(tmp_path), *argv])
    steps = ["train_cam", "train_irn", "train_seg", "make_cam"]
    check_batches(args, steps)
    monkeypatch.setattr("misc.torchutils.world_size", lambda: 2)
    with pytest.raises(UserError, match="--cam_batch_size 3 cannot be shared equally by 2 ranks; choose a multiple"):
        check_batches(args, steps)
    (tmp_path / "sess").mkdir()
    (tmp_path / "sess" / "res50_cam.pth").write_bytes(b"x")
    with pytest.raises(UserError, match=r"--seg_batch_size 10 .* 2 ranks in 2 parts each; choose a multiple of 4"):
        check_batches(args, steps)
    check_batches(args, steps[:2])
    args.seg_accumulate = 1
    check_batches(args, steps)
