"""Records of what made results: another argument, input or code stops a run instead of mixing."""

import argparse
import json
import logging
import shutil

import pytest
import torch
from PIL import Image

from data.errors import DataError, UserError
from data.folder import Folder
from misc.run import made_by, metricsfile, resume, workdir
from misc.run.presets import preset
from misc.run.trainloop import begin, finish, to_train
from run_sample import STEPS
from tests.folder_mini import make_folder

NAMES = [f"train_{i:05d}" for i in range(4)]


def arguments(tmp_path, **changed):
    """The arguments of a run on shapes as the steps get them."""
    places = dict.fromkeys(workdir.PLACES)
    values = {name: value for name, (value, _) in preset("shapes").items()}
    common = {
        "dataset": "shapes", "data_root": None, "work_dir": str(tmp_path), "seed": 0, "precision": "fp32", "limit": 4,
        "overwrite": False, "bad_images": {}, "seeds": "cam_rib", "device": "cpu", "num_workers": 1,
        "crf_backend": "auto", "shapes_train": 8, "shapes_val": 4, "shapes_size": 48,
    }  # fmt: skip
    return argparse.Namespace(**{**values, **places, **common, **changed})


def make(args, argument="cam_out_dir", names=NAMES, suffix=".npy"):
    """Makes what is pending; returns it."""
    todo = resume.pending(args, argument, names, suffix)
    for name in todo:
        path = workdir.result_file(args, argument, name, suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return todo


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "sess" / "res50_cam.pth"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    return path


def test_every_place_belongs_to_a_step_and_names_arguments_that_there_are(tmp_path):
    args = arguments(tmp_path)
    modules = {step.name: step.module for step in STEPS}
    for argument, entry in workdir.PLACES.items():
        assert modules[entry.step] == f"step.{entry.step}"
        record = resume.what_makes(args, argument)
        for pattern in entry.arguments:
            stem = pattern.rstrip("*")
            assert any(key.startswith(f"--{stem}") for key in record["arguments"]), pattern
        assert f"step/{entry.step}.py" in record["code"] and "data/shapes.py" in record["code"]
        assert record["inputs"].keys() == {f"--{name}" for name in entry.inputs}


def test_the_machine_does_not_count(tmp_path, weights):
    changed = {"device": "cuda", "num_workers": 7, "crf_backend": "torch", "limit": None, "overwrite": True}
    for argument in ("cam_out_dir", "ir_label_out_dir", "sem_seg_out_dir"):
        before = resume.what_makes(arguments(tmp_path), argument)
        now = resume.what_makes(arguments(tmp_path, **changed), argument)
        assert not any(made_by.differences(before, now))


def test_the_same_again_goes_on_with_more_images(tmp_path, weights):
    assert make(arguments(tmp_path), names=NAMES[:2]) == NAMES[:2]
    assert make(arguments(tmp_path, limit=None)) == NAMES[2:]
    assert make(arguments(tmp_path)) == []


@pytest.mark.parametrize("there", [2, 4])
@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"cam_scales": (1.0, 0.5)}, "--cam_scales 1,0.5,1.5,2 then, 1,0.5 now"),
        ({"precision": "bf16"}, "--precision fp32 then, bf16 now"),
        ({"seed": 3}, "--seed 0 then, 3 now"),
        ({"shapes_size": 64}, "--shapes_size 48 then, 64 now"),
    ],
)
def test_another_argument_stops(tmp_path, weights, there, changed, told):
    make(arguments(tmp_path), names=NAMES[:there])
    with pytest.raises(UserError) as error:
        resume.pending(arguments(tmp_path, **changed), "cam_out_dir", NAMES, ".npy")
    message = str(error.value)
    assert told in message and "--overwrite" in message and "another --work_dir" in message and "\n" not in message
    assert message.count(" then, ") == 1 + ("labels of" in message)  # another seed draws other shapes
    assert "--steps make_cam-report --overwrite" in message
    assert make(arguments(tmp_path, **changed, work_dir=str(tmp_path / "another"))) == NAMES


def test_a_run_that_made_nothing_binds_nobody(tmp_path, weights):
    resume.pending(arguments(tmp_path), "cam_out_dir", NAMES, ".npy")
    assert make(arguments(tmp_path, cam_scales=(1.0, 0.5)), names=NAMES[:2]) == NAMES[:2]
    with pytest.raises(UserError, match=r"--cam_scales 1,0\.5 then"):
        make(arguments(tmp_path), names=NAMES[2:])  # none of these is there, but others are


def test_other_weights_stop(tmp_path, weights):
    make(arguments(tmp_path), names=NAMES[:2])
    weights.write_bytes(b"WEIGHTS")
    with pytest.raises(UserError, match=r"--cam_weights_name [0-9a-f]{12} then, [0-9a-f]{12} now"):
        make(arguments(tmp_path))


def test_a_change_upstream_goes_down_the_chain(tmp_path, weights):
    make(arguments(tmp_path), "cam_rib_out_dir")
    make(arguments(tmp_path), "ir_label_out_dir", suffix=".png")
    assert make(arguments(tmp_path), "ir_label_out_dir", suffix=".png") == []
    make(arguments(tmp_path, overwrite=True, RIB_iter=3), "cam_rib_out_dir")
    with pytest.raises(UserError, match="ir_label was made otherwise: --seeds"):
        make(arguments(tmp_path, RIB_iter=3), "ir_label_out_dir", suffix=".png")
    with pytest.raises(UserError, match="--seeds cam_rib then, cam now"):
        make(arguments(tmp_path, RIB_iter=3, seeds="cam"), "ir_label_out_dir", suffix=".png")


def test_results_of_inputs_that_were_replaced_are_told(tmp_path, weights):
    args = arguments(tmp_path)
    make(args)
    make(args, "cam_rib_out_dir")
    make(args, "ir_label_out_dir", suffix=".png")
    assert resume.outdated(args) == [] == resume.outdated(arguments(tmp_path, seeds="cam", beta=3.0))
    make(arguments(tmp_path, overwrite=True, RIB_iter=3), "cam_rib_out_dir")
    assert resume.outdated(args) == ["ir_label was made from seeds that have been replaced since"]
    weights.write_bytes(b"other weights")
    told = resume.outdated(args)
    assert len(told) == 3 and "cam was made from classifier weights that have been replaced since" in told
    weights.unlink()  # taken elsewhere: nothing says that it was replaced
    assert resume.outdated(args) == ["ir_label was made from seeds that have been replaced since"]
    (tmp_path / "cam" / made_by.NAME).write_text("{")
    assert resume.outdated(args) == []
    shutil.rmtree(tmp_path / "cam")
    shutil.rmtree(tmp_path / "cam_rib")
    assert resume.outdated(args) == []


def test_where_a_training_began_is_no_result_that_is_replaced(tmp_path):
    trained(arguments(tmp_path, cam_init="scratch"))
    assert resume.outdated(arguments(tmp_path, cam_init="imagenet")) == []


def test_companions_come_from_a_list_that_counts(tmp_path, weights):
    make(arguments(tmp_path), "cam_rib_out_dir", NAMES[:2])
    with pytest.raises(UserError, match=r"--train_list 4 images \(\w+\) then, 8 images \(\w+\) now"):
        make(arguments(tmp_path, limit=None), "cam_rib_out_dir")


@pytest.fixture
def own(tmp_path):
    """A folder of own images, and what reads it from wherever it lies."""
    mini = make_folder(tmp_path / "data" / "one")
    values = {name: value for name, (value, _) in preset("folder").items()}

    def at(root=mini.root, **changed):
        return arguments(tmp_path, **{**values, "dataset": "folder", "data_root": str(root), "limit": None, **changed})

    return mini, at


def test_data_may_lie_elsewhere_but_not_be_others(tmp_path, weights, own):
    mini, at = own
    make(at(), names=mini.names[:2])
    make(at(), "ir_label_out_dir", mini.names[:2], ".png")
    copied = shutil.copytree(mini.root, tmp_path / "scratch" / "job_17")
    assert make(at(copied), names=mini.names[:3]) == mini.names[2:3]
    assert make(at(copied), "ir_label_out_dir", mini.names[:3], ".png") == mini.names[2:3]  # seeds are the same input
    other = make_folder(tmp_path / "data" / "other", seed=1)
    with pytest.raises(UserError, match=r"image Brücke é has other pixels now; --data_root \S* then, \S* now"):
        make(at(other.root), names=mini.names)


def test_an_image_that_was_replaced_stops(tmp_path, weights, own):
    mini, at = own
    make(at(), names=mini.names[:2])
    name = "日本語 😀"  # the last of the list: the first, the middle and the last are looked at
    Image.fromarray(255 - mini.images[name]).save(mini.root / "images" / mini.paths[name])
    with pytest.raises(UserError, match=f"cam was made otherwise: image {name} has other pixels now"):
        make(at(), names=mini.names)


def test_labels_that_were_changed_stop(tmp_path, own):
    mini, at = own
    (tmp_path / "sess").mkdir()
    assert trained(at()) and not trained(at())
    make(at(), "cam_rib_out_dir", mini.names[:2])
    mini.labels[mini.names[0]] ^= {0, 1}
    mini.write_csv()
    with pytest.raises(UserError, match=r"res50_cam\.pth was made otherwise: labels of --train_list 10 x 3 \(\w+\)"):
        trained(at())
    with pytest.raises(UserError, match=r"cam_rib was made otherwise: labels of --train_list"):
        make(at(), "cam_rib_out_dir", mini.names)


def other_code(monkeypatch):
    plain = made_by.of_code
    changed = {"misc/cam.py": "0123456789abcdef"}
    monkeypatch.setattr(made_by, "of_code", lambda *of: {**plain(*of), **changed})


def test_other_code_stops_what_is_unfinished_only(tmp_path, weights, monkeypatch, caplog):
    make(arguments(tmp_path), names=NAMES[:2])
    other_code(monkeypatch)
    with pytest.raises(UserError, match=r"the code of misc/cam\.py has changed"):
        make(arguments(tmp_path))
    assert make(arguments(tmp_path), names=NAMES[:2]) == []
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and "misc/cam.py" in warnings[0].getMessage()


def test_overwrite_makes_all_anew_and_a_cut_leaves_nothing_old(tmp_path, weights):
    make(arguments(tmp_path))
    other = {"cam_scales": (1.0, 0.5)}
    assert resume.pending(arguments(tmp_path, overwrite=True, **other), "cam_out_dir", NAMES, ".npy") == NAMES
    assert [path.name for path in (tmp_path / "cam").iterdir()] == [made_by.NAME]  # cut off here
    assert make(arguments(tmp_path, **other)) == NAMES
    # By the same settings too: images or masks may have changed, of which no record tells.
    assert resume.pending(arguments(tmp_path, overwrite=True, **other), "cam_out_dir", NAMES, ".npy") == NAMES
    assert make(arguments(tmp_path, **other)) == NAMES
    with pytest.raises(UserError, match=r"holds 3 results besides those of this list"):
        make(arguments(tmp_path, overwrite=True), names=NAMES[:1])


def test_overwriting_that_was_cut_off_goes_on_with_later_steps_too(tmp_path, weights, caplog):
    make(arguments(tmp_path))
    make(arguments(tmp_path, seeds="cam"), "ir_label_out_dir", suffix=".png")
    (tmp_path / "sess" / "res50_irn.pth").write_bytes(b"old")
    new = {"cam_scales": (1.0, 0.5), "seeds": "cam"}
    steps = ["make_cam", "cam_to_ir_label", "train_irn"]
    with (
        pytest.raises(KeyboardInterrupt),
        resume.overwriting(args := arguments(tmp_path, overwrite=True, **new), steps),
    ):
        make(args)
        raise KeyboardInterrupt
    moved = tmp_path.rename(tmp_path.parent / f"{tmp_path.name}_moved")  # or mounted elsewhere
    go_on = arguments(moved, **new)
    with resume.overwriting(go_on, steps):
        assert "an earlier --overwrite was cut off before it came to ir_label, sess/res50_irn.pth" in caplog.text
        assert make(go_on) == []
        assert resume.pending(go_on, "ir_label_out_dir", NAMES, ".png") == NAMES
        assert [path.name for path in (moved / "ir_label").iterdir()] == [made_by.NAME]  # cut off once more
        assert make(go_on, "ir_label_out_dir", suffix=".png") == NAMES
        assert make(go_on, "ir_label_out_dir", suffix=".png") == []
        assert to_train(go_on, "irn_weights_name")
        checkpoint, _ = begin(go_on, "irn_weights_name")
        assert not (moved / "sess" / "res50_irn.pth").exists()
        checkpoint.write_bytes(b"half")
        assert to_train(go_on, "irn_weights_name") and begin(go_on, "irn_weights_name")[0].exists()  # it goes on there
    assert not (moved / ".overwrite.json").exists()


def test_overwriting_that_is_refused_leaves_no_note(tmp_path, weights):
    make(arguments(tmp_path))
    other = arguments(tmp_path, overwrite=True, cam_scales=(1.0, 0.5))
    with pytest.raises(UserError, match="would mix them"), resume.overwriting(other, ["make_cam", "cam_to_ir_label"]):
        make(other, names=NAMES[:2])
    assert not (tmp_path / ".overwrite.json").exists() and make(arguments(tmp_path)) == []


def test_overwriting_means_the_networks_that_are_asked_for(tmp_path):
    args = arguments(tmp_path, overwrite=True, seg_labels=("pseudo",))
    with pytest.raises(KeyboardInterrupt), resume.overwriting(args, ["train_seg", "eval_seg"]):
        raise KeyboardInterrupt
    later = arguments(tmp_path, seg_labels=("truth",))
    assert resume.marked(later, "seg_weights_name") and resume.marked(later, "seg_out_dir")
    assert not any(resume.marked(later, f"seg_{name}") for name in ("truth_weights_name", "truth_out_dir"))
    assert not resume.marked(later, "sem_seg_cam_out_dir")
    with resume.overwriting(later, ["train_seg"]):
        pass
    assert resume.marked(later, "seg_weights_name")
    with resume.overwriting(arguments(tmp_path, seg_labels=("pseudo",)), ["train_seg", "eval_seg"]):
        pass
    assert not (tmp_path / ".overwrite.json").exists()


@pytest.mark.parametrize("content", ['{"anew": [[1]]}', '{"anew": 3}', "[", "[]"])
def test_a_damaged_note_is_one_line(tmp_path, content):
    (tmp_path / ".overwrite.json").write_text(content)
    with pytest.raises(UserError, match=r"\.overwrite\.json"):
        resume.marked(arguments(tmp_path), "cam_out_dir")


def test_figures_of_results_that_are_gone_are_forgotten(tmp_path, weights):
    args = arguments(tmp_path)
    scores = {"threshold": 0.1, "miou": 0.5}
    scores = {"best": scores, "fixed": scores, "sweep": {"0.1": 0.5}}
    for step, values in (("make_cam", {"RIB_steps": {"2": 4}}), ("eval_cam", scores), ("make_rib_cam", {})):
        metricsfile.record(args, step, {"seconds": 1.0, "images": 4, "of": 4, **values})
    make(args)
    assert "make_rib_cam" in metricsfile.metrics(args) and "eval_cam" not in metricsfile.metrics(args)
    metricsfile.record(args, "eval_cam", {"seconds": 1.0, "images": 4, **scores})
    make(args)
    assert "eval_cam" in metricsfile.metrics(args)
    resume.pending(arguments(tmp_path, overwrite=True), "cam_out_dir", NAMES, ".npy")
    metricsfile.record(args, "make_cam", {"seconds": 1.0, "images": 1, "of": 4, "RIB_steps": {"3": 1}})
    assert metricsfile.metrics(args)["make_cam"]["RIB_steps"] == {"3": 1} and "eval_cam" not in metricsfile.metrics(
        args
    )


def test_labels_made_anew_cost_the_masks_no_score(tmp_path):
    args = arguments(tmp_path)
    entry = {"seconds": 1.0, "images": 4, "miou": 0.5}
    metricsfile.record(args, "eval_sem_seg", {**entry, "ir_label": {"miou": 0.6}})
    metricsfile.record(args, "eval_seg", entry)
    make(args, "cam_rib_out_dir")
    make(arguments(tmp_path, overwrite=True), "ir_label_out_dir", suffix=".png")
    make(arguments(tmp_path, overwrite=True), "seg_out_dir", suffix=".png")  # those of a test server, say
    assert metricsfile.metrics(args)["eval_sem_seg"] == metricsfile.metrics(args)["eval_seg"] == entry


def test_lists_that_a_step_does_not_need_may_be_missing(tmp_path, weights, own):
    mini, at = own
    args = at(train_list=str(tmp_path / "none.txt"))
    assert make(args, names=mini.names[:2]) == mini.names[:2]
    record = resume.what_makes(at(infer_list=str(tmp_path / "none.txt")), "seg_out_dir")
    assert record["images"] == {}
    assert len(resume.what_makes(at(), "seg_out_dir")["images"]) == 3


def test_images_that_are_left_out_need_no_label(tmp_path, weights, own, monkeypatch):
    mini, at = own
    plain = Folder.label

    def label(self, name):
        if name == mini.names[1]:
            raise DataError(f"{name} has no label")
        return plain(self, name)

    monkeypatch.setattr(Folder, "label", label)
    assert "labels of --train_list" not in resume.what_makes(at(), "cam_out_dir")["arguments"]
    left_out = resume.what_makes(at(bad_images={mini.names[1]: "gone"}), "cam_out_dir")
    assert left_out["arguments"]["labels of --train_list"].startswith("9 x 3")


def test_results_without_record_are_taken_as_they_are(tmp_path, weights, caplog):
    caplog.set_level(logging.INFO)
    folder = tmp_path / "theirs"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.npy").write_bytes(b"theirs")
    args = arguments(tmp_path, cam_out_dir=str(folder))
    assert make(args) == []
    assert "4 results in" in caplog.text and "taken as they are" in caplog.text
    assert not (folder / made_by.NAME).exists()  # nothing is written into it
    more = [*NAMES, "train_00004"]
    assert make(args, names=more) == more[4:]
    assert json.loads((folder / made_by.NAME).read_text())["taken_as_they_were"] == 4
    make(arguments(tmp_path, seeds="cam", cam_out_dir=str(folder)), "ir_label_out_dir", suffix=".png")


def test_results_of_other_images_without_record_are_not_taken_for_own_ones(tmp_path, weights, caplog):
    caplog.set_level(logging.INFO)
    folder = tmp_path / "cam"
    (folder / "below").mkdir(parents=True)
    others = [folder / "other.npy", folder / "below" / "another.npy"]
    for path in others:
        path.write_bytes(b"theirs")
    with pytest.raises(UserError, match="holds 2 results besides those of this list, without a record") as error:
        make(arguments(tmp_path, overwrite=True))
    assert "delete the folder, or choose another" in str(error.value)
    assert [path.read_bytes() for path in others] == [b"theirs"] * 2 and not (folder / made_by.NAME).exists()
    assert make(arguments(tmp_path)) == NAMES and "2 results in" in caplog.text
    assert json.loads((folder / made_by.NAME).read_text())["taken_as_they_were"] == 2
    assert make(arguments(tmp_path, overwrite=True)) == NAMES  # by the same settings: nothing gets mixed


def test_a_record_that_was_deleted_is_a_way_out(tmp_path, weights):
    make(arguments(tmp_path))
    other = arguments(tmp_path, cam_scales=(1.0, 0.5))
    with pytest.raises(UserError) as error:
        make(other)
    path = workdir.record_path(other, "cam_out_dir")
    assert str(error.value).endswith(f"delete {path}")
    path.unlink()
    assert make(other) == []


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"arguments": 1, "inputs": {}, "code": {}}', "\x00"])
def test_a_damaged_record_is_one_line(tmp_path, weights, content):
    make(arguments(tmp_path))
    workdir.record_path(arguments(tmp_path), "cam_out_dir").write_text(content)
    with pytest.raises(UserError, match=r"made_by\.json"):
        make(arguments(tmp_path))


def trained(args):
    """What a training step does around its training."""
    if to_train(args, "cam_weights_name"):
        _, settings = begin(args, "cam_weights_name")
        finish(args, "cam_weights_name", torch.nn.Linear(1, 1), settings, {"images": 4, "loss": [0.5]}, 0.0)
        return True
    return False


def test_trained_weights_have_a_record(tmp_path, monkeypatch, caplog):
    assert trained(arguments(tmp_path)) and not trained(arguments(tmp_path))
    with pytest.raises(UserError, match=r"res50_cam\.pth was made otherwise: --cam_num_epoches 17 then, 2 now"):
        trained(arguments(tmp_path, cam_num_epoches=2))
    with pytest.raises(UserError, match=r"--train_list 4 images"):
        trained(arguments(tmp_path, limit=None))
    assert not trained(arguments(tmp_path, beta=1.0, cam_scales=(1.0, 0.5), cam_power=2.0))  # of later steps
    named = str(tmp_path / "sess" / "res50_cam.pth")
    assert not trained(arguments(tmp_path, cam_num_epoches=2, cam_weights_name=named))
    assert "was named and is taken as it is" in caplog.text
    other_code(monkeypatch)
    caplog.clear()
    assert not trained(arguments(tmp_path)) and "made by other code and is kept" in caplog.text
    assert trained(arguments(tmp_path, cam_num_epoches=2, overwrite=True))
    assert not trained(arguments(tmp_path, cam_num_epoches=2))


def test_what_a_training_measured_is_stored_before_its_weights(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("misc.run.trainloop.save_torch", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(arguments(tmp_path))
    assert metricsfile.metrics(arguments(tmp_path))["train_cam"]["loss"] == [0.5]
    assert to_train(arguments(tmp_path), "cam_weights_name")


def test_overwriting_weights_removes_the_old_ones_first(tmp_path):
    trained(arguments(tmp_path))
    begin(arguments(tmp_path, overwrite=True, cam_num_epoches=2), "cam_weights_name")  # and is cut off
    assert not (tmp_path / "sess" / "res50_cam.pth").exists()
    assert to_train(arguments(tmp_path, cam_num_epoches=2), "cam_weights_name")


def test_overwriting_removes_weights_of_a_doubled_name_too(tmp_path):
    doubled = tmp_path / "sess" / "res50_cam.pth.pth"
    doubled.parent.mkdir()
    doubled.write_bytes(b"theirs")
    begin(arguments(tmp_path, overwrite=True), "cam_weights_name")  # and is cut off
    assert not doubled.exists() and to_train(arguments(tmp_path), "cam_weights_name")


def test_names_with_dots_do_not_share_records_or_checkpoints(tmp_path):
    runs = [arguments(tmp_path, cam_weights_name=str(tmp_path / name)) for name in ("x.1", "x.2", "x.pth")]
    assert [workdir.record_path(args, "cam_weights_name").name for args in runs] == [
        "x.1.made_by.json", "x.2.made_by.json", "x.made_by.json"
    ]  # fmt: skip
    checkpoints = [begin(args, "cam_weights_name")[0].name for args in runs]
    assert checkpoints == ["x.1.checkpoint", "x.2.checkpoint", "x.checkpoint"]


def test_the_start_of_a_training_is_an_input(tmp_path):
    start = tmp_path / "start.pth"
    start.write_bytes(b"one")
    trained(arguments(tmp_path, cam_init=str(start)))
    start.write_bytes(b"two!")
    with pytest.raises(UserError, match="--cam_init"):
        trained(arguments(tmp_path, cam_init=str(start)))


def test_code_is_compared_without_comments(tmp_path):
    plain = tmp_path / "plain.py"
    plain.write_text("from misc import cam\n\ndef f(x):\n    return x + 1\n")
    wordy = tmp_path / "b" / "plain.py"
    wordy.parent.mkdir()
    wordy.write_text('"""Words."""\nfrom misc import cam  # why\n\n\ndef f(x):\n    """More."""\n    return (x + 1)\n')
    other = tmp_path / "c" / "plain.py"
    other.parent.mkdir()
    other.write_text("from misc import cam\n\ndef f(x):\n    return x + 2\n")
    of = [made_by.of_code((), (path,)) for path in (plain, wordy, other)]
    assert of[0] == of[1] != of[2] and "misc/cam.py" in of[0] and "misc/rib.py" not in of[0]


def test_code_follows_imports(tmp_path):
    cam, rib = (set(made_by.of_code((f"step.{name}",))) for name in ("make_cam", "make_rib_cam"))
    assert {"net/resnet50_cam.py", "misc/cam.py", "data/loaders.py", "misc/torchutils.py"} <= cam
    assert "misc/rib.py" in rib - cam and not {"misc/files.py", "misc/workdir.py", "misc/viz.py"} & rib
