"""What results were made from, what is still to do, and what was measured: results of two settings are never mixed."""

import argparse
import contextlib
import logging

import pytest
import torch

from data import open_dataset
from data.errors import UserError
from misc.run import outputs
from misc.run.arguments import parse
from misc.run.outputs import OUTPUTS, pending, provenance, record, remove_results, require, result_file
from misc.run.provenance import differences
from misc.run.runner import locked
from misc.run.trainloop import Training
from run_sample import STEPS
from tests.folder_mini import make_folder
from tests.helpers import SCRATCH, run_cli

NAMES = [f"train_{i:05d}" for i in range(4)]


def arguments(tmp_path, *argv, **changed):
    """The arguments of a run on shapes as the steps get them."""
    small = "--limit 4 --shapes_train 8 --shapes_val 4 --shapes_size 48 --device cpu".split()
    args, _ = parse(STEPS, ["--work_dir", str(tmp_path), *SCRATCH, *small, *argv])
    return argparse.Namespace(**{**vars(args), **changed})


def make(args, argument="cam_out_dir", names=NAMES, suffix=".npy"):
    """Makes what is pending; returns it."""
    todo = pending(args, open_dataset(args), argument, names, suffix)
    for name in todo:
        path = result_file(args, argument, name, suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return todo


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "sess" / "res50_cam.pth"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    return path


def test_every_output_belongs_to_a_step_and_names_arguments_that_exist(tmp_path):
    args = arguments(tmp_path)
    modules = {step.name: step.module for step in STEPS}
    for argument, entry in OUTPUTS.items():
        assert modules[entry.step] == f"step.{entry.step}"
        made_of = provenance(args, open_dataset(args), argument)
        for pattern in entry.arguments:
            assert any(key.startswith(f"--{pattern.rstrip('*')}") for key in made_of["arguments"]), pattern
        assert made_of["inputs"].keys() == {f"--{name}" for name in entry.inputs}
        assert made_of["arguments"]["--seed"] == 0 and made_of["code"]["torch"]


def test_the_machine_does_not_count_and_where_a_training_starts_does(tmp_path, weights):
    other = arguments(tmp_path, device="cuda", num_workers=7, crf_backend="torch", limit=None, overwrite=True)
    for argument in ("cam_out_dir", "ir_label_out_dir", "sem_seg_out_dir"):
        before, now = (provenance(args, open_dataset(args), argument) for args in (arguments(tmp_path), other))
        assert differences(before, now) == []
    args = arguments(tmp_path, cam_init=str(weights))
    before = provenance(args, open_dataset(args), "cam_weights_name")
    weights.write_bytes(b"other")
    (difference,) = differences(before, provenance(args, open_dataset(args), "cam_weights_name"))
    assert "--cam_init" in difference


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"cam_scales": (1.0, 0.5)}, "--cam_scales 1,0.5,1.5,2, now 1,0.5"),
        ({"seed": 3}, "--seed 0, now 3"),
        ({"shapes_size": 64}, "--shapes_size 48, now 64"),
    ],
)
@pytest.mark.parametrize("existing", [2, 4])
def test_another_argument_stops(tmp_path, weights, existing, changed, told):
    args = arguments(tmp_path, **changed)
    pending(args, open_dataset(args), "cam_out_dir", NAMES, ".npy")  # a run that made nothing binds nobody
    make(arguments(tmp_path), names=NAMES[:existing])
    with pytest.raises(UserError) as error:
        make(args)
    message = str(error.value)
    assert told in message and "--overwrite" in message and "another --work_dir" in message and "\n" not in message
    assert "--steps make_cam-report --overwrite" in message
    assert make(arguments(tmp_path / "another", **changed)) == NAMES


def test_the_same_again_goes_on_and_other_code_or_no_provenance_is_only_said(tmp_path, weights, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    path = result_file(arguments(tmp_path), "cam_out_dir", NAMES[0], ".npy")
    path.parent.mkdir()
    path.write_bytes(b"published")
    assert make(arguments(tmp_path), names=NAMES[:2]) == NAMES[1:2]
    assert "have no provenance; they are used" in caplog.text
    assert make(arguments(tmp_path), names=NAMES[:3]) == NAMES[2:3] and "another version" not in caplog.text
    monkeypatch.setattr(outputs, "code_version", lambda: {"commit": "other", "python": "3.99", "torch": "9"})
    assert make(arguments(tmp_path)) == NAMES[3:]
    assert "cam was created by another version of the code" in caplog.text


def test_other_weights_stop_and_a_change_goes_down_the_chain(tmp_path, weights):
    args = arguments(tmp_path)
    make(args, "cam_rib_out_dir")
    make(args, "ir_label_out_dir", suffix=".png")
    assert make(args, "ir_label_out_dir", suffix=".png") == []
    weights.write_bytes(b"WEIGHTS")
    with pytest.raises(UserError, match=r"--cam_weights_name [0-9a-f]{12}, now [0-9a-f]{12}"):
        make(args, "cam_rib_out_dir")
    assert outputs.outdated(args) == ["cam_rib was made from sess/res50_cam.pth that has been replaced since"]
    remove_results(args, ["make_rib_cam"])
    assert make(args, "cam_rib_out_dir") == NAMES
    with pytest.raises(UserError, match=r"ir_label was created with --seeds \w{12}, now \w{12}"):
        make(args, "ir_label_out_dir", suffix=".png")
    with pytest.raises(UserError, match="--seeds cam_rib, now cam"):
        make(arguments(tmp_path, seeds="cam"), "ir_label_out_dir", suffix=".png")


def test_labels_and_companions_count_and_where_the_data_lies_does_not(tmp_path, weights):
    mini, copy = make_folder(tmp_path / "data"), make_folder(tmp_path / "copy")

    def own(root, *argv):
        return arguments(tmp_path, "--dataset", "folder", "--data_root", str(root), *argv, limit=None)

    make(own(mini.root), "cam_rib_out_dir", mini.names[:2])
    assert make(own(copy.root), "cam_rib_out_dir", mini.names[:3]) == mini.names[2:3]
    (tmp_path / "fewer.txt").write_text("\n".join(mini.names[:3]))
    with pytest.raises(UserError, match=r"--train_list \d+ images \(\w+\), now 3 images"):
        make(own(mini.root, "--train_list", str(tmp_path / "fewer.txt")), "cam_rib_out_dir")
    mini.labels[mini.names[0]] = {0, 1, 2} - mini.labels[mini.names[0]] or {0}
    mini.write_csv()
    with pytest.raises(UserError, match=r"labels of --train_list .*, now "):
        make(own(mini.root), "cam_rib_out_dir", mini.names)


def test_overwrite_removes_results_of_its_steps_and_their_figures(tmp_path, weights):
    args = arguments(tmp_path)
    make(args)
    make(args, "cam_rib_out_dir")
    for step in ("make_cam", "eval_cam", "make_rib_cam", "eval_rib_cam"):
        record(args, step, {"images": 4})
    remove_results(args, ["make_cam"])
    assert list((tmp_path / "cam").iterdir()) == [] and len(list((tmp_path / "cam_rib").glob("*.npy"))) == 4
    assert list(outputs.metrics(args)) == ["schema", "make_rib_cam", "eval_rib_cam"]
    assert make(arguments(tmp_path, cam_scales=(1.0, 0.5))) == NAMES  # cut off here, the same command goes on


def test_overwrite_means_the_networks_that_are_asked_for_and_none_that_was_named(tmp_path):
    (tmp_path / "sess").mkdir()
    for name in ("deeplabv2", "deeplabv2_cam", "deeplabv2_truth", "res50_cam"):
        (tmp_path / "sess" / f"{name}.pth").write_bytes(b"x")
    (tmp_path / "sess" / "deeplabv2.checkpoint").write_bytes(b"x")
    named = str(tmp_path / "sess" / "res50_cam.pth")
    args = arguments(tmp_path, "--seg_labels", "pseudo,truth", "--cam_weights_name", named)
    remove_results(args, ["train_cam", "train_seg"])
    left = sorted(path.name for path in (tmp_path / "sess").iterdir())
    assert left == ["deeplabv2_cam.pth", "res50_cam.pth"]


def test_trained_weights_know_what_made_them(tmp_path, caplog):
    args = arguments(tmp_path)
    training = Training(args, open_dataset(args), "cam_weights_name")
    assert not training.finished
    training.checkpoint.parent.mkdir()
    training.checkpoint.write_bytes(b"x")
    training.finish(torch.nn.Linear(1, 1), {"images": 4, "loss": [1.0]})
    assert outputs.metrics(args)["train_cam"]["loss"] == [1.0] and not training.checkpoint.exists()
    assert Training(args, open_dataset(args), "cam_weights_name").finished
    other = arguments(tmp_path, cam_num_epoches=3)
    with pytest.raises(UserError, match=r"res50_cam\.pth was created with --cam_num_epoches 17, now 3"):
        Training(other, open_dataset(other), "cam_weights_name")
    other.cam_weights_name = str(training.weights)  # named: used whatever made it
    assert Training(other, open_dataset(other), "cam_weights_name").finished


def test_figures_of_a_run_that_made_nothing_stay(tmp_path):
    args = arguments(tmp_path)
    record(args, "make_cam", {"seconds": 9.0, "images": 4, "of": 4})
    record(args, "make_cam", {"seconds": 0.1, "images": 0, "of": 4, "studies": 1})
    assert outputs.metrics(args)["make_cam"] == {"seconds": 9.0, "images": 4, "of": 4, "studies": 1}
    record(args, "make_cam", {"seconds": 1.0, "images": 2, "of": 4})
    assert outputs.metrics(args)["make_cam"]["images"] == 2 and outputs.metrics(args)["schema"] == 1


def test_missing_inputs_name_the_step_that_makes_them(tmp_path, weights):
    args = arguments(tmp_path)
    require(args, "cam_weights_name")
    weights.rename(weights.with_name("res50_cam.pth.pth"))  # as the published scripts write it
    require(args, "cam_weights_name")
    with pytest.raises(UserError, match=r"res50_irn\.pth is missing; step train_irn makes it: add --steps train_irn"):
        require(args, "irn_weights_name")
    make(args, names=NAMES[:3])
    with pytest.raises(UserError, match=r"1 of 4 files are missing, .*train_00003\.npy first; step make_cam makes"):
        require(args, "cam_out_dir", NAMES)


def test_a_damaged_file_of_ours_is_one_line(tmp_path, weights):
    make(arguments(tmp_path), names=NAMES[:2])
    (tmp_path / "cam" / ".made_by.json").write_text("")
    with pytest.raises(UserError, match=r"\.made_by\.json") as error:
        make(arguments(tmp_path))
    assert "\n" not in str(error.value)


def test_one_run_at_a_time(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("misc.run.runner.LOCK_S", 0.1)
    with locked(tmp_path):
        assert run_cli("--work_dir", tmp_path, "--steps", "1") == 2
        said = capsys.readouterr().err
        assert f"--work_dir {tmp_path} is in use by another run" in said and said.count("\n") == 1
        assert not (tmp_path / "args.json").exists()
        assert run_cli("--work_dir", tmp_path, "--dry_run") == 0  # what only looks takes no lock
    with locked(tmp_path):  # released before
        assert (tmp_path / ".lock").exists()


def test_an_overwrite_that_is_killed_takes_no_old_result_for_a_new_one(tmp_path, weights, monkeypatch):
    changed = {"cam_scales": (1.0, 0.5)}
    for kill_at in range(6):  # before each of four results, the record, and not at all
        args = arguments(tmp_path)
        make(args)
        left, unlink = [kill_at], type(tmp_path).unlink

        def cut(path, missing_ok=False, left=left, unlink=unlink):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            unlink(path, missing_ok=missing_ok)

        with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
            patched.setattr(type(tmp_path), "unlink", cut)
            remove_results(args, ["make_cam"])
        if kill_at < 4:  # some result is left
            with pytest.raises(UserError, match="was created with --cam_scales"):
                make(arguments(tmp_path, **changed))
        remove_results(args, ["make_cam"])
        assert make(arguments(tmp_path, **changed)) == NAMES
        remove_results(args, ["make_cam"])


def test_overwrite_leaves_a_folder_alone_that_this_program_has_not_filled(tmp_path, weights):
    args = arguments(tmp_path, cam_out_dir=str(tmp_path / "mine"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.npy").write_bytes(b"x")
    with pytest.raises(UserError, match=r"--cam_out_dir .*mine was not filled by this program"):
        remove_results(args, ["make_cam"])
    assert (tmp_path / "mine" / "a.npy").exists()


def test_overwrite_is_refused_before_anything_is_removed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("misc.torchutils.world_size", lambda: 2)
    (tmp_path / "sess").mkdir()
    (tmp_path / "sess" / "res50_cam.pth").write_bytes(b"x")
    assert run_cli("--work_dir", tmp_path, "--steps", "train_cam", "--cam_batch_size", "3", "--overwrite") == 2
    assert "--cam_batch_size 3 cannot be shared" in capsys.readouterr().err
    assert (tmp_path / "sess" / "res50_cam.pth").exists()
