"""The ablations: which points they have, recordings of RIB, and the step as a user runs it."""

import argparse
import json

import numpy as np
import pytest
import torch
from PIL import Image

from data.results import load_cam
from data.shapes import Shapes
from misc.metrics import ThresholdSweep, mean_iou
from misc.report.tables import ablation_tables
from misc.rib import ACTIVATIONS, RIB
from misc.run.arguments import parse
from misc.run.options import ABLATIONS
from misc.run.recording import open_rib, record
from misc.run.studies import STUDIES, points_of
from run_sample import STEPS
from tests.folder_mini import make_folder
from tests.helpers import SCRATCH, relative_error, run_cli, torchrun, undocumented, write_classifier

# which points a study has


def arguments(**changes):
    """Those of a run on `shapes`."""
    return argparse.Namespace(**{**vars(parse(STEPS, [])[0]), **changes})


def labels_of(name, **changes):
    return [point.label for point in points_of(STUDIES[name], arguments(**changes), Shapes(12, 4, 48))]


def test_points_are_in_order_and_hold_the_setting_of_the_run():
    assert labels_of("learning_rate") == [f"RIB_lr={v}" for v in ("2.5e-05", "5e-05", "0.0001", "0.0002", "0.0004")]
    assert labels_of("companions", RIB_batch_size=20)[-2:] == ["RIB_batch_size=10", "RIB_batch_size=20"]
    pooling = labels_of("pooling", score_th=0.45)
    assert pooling[0] == "pooling=gap" and pooling[3:5] == ["pooling=gndp, score_th=0.4", "score_th=0.45"]
    assert labels_of("activation") == [f"RIB_activation={name}" for name in ACTIVATIONS]
    assert list(STUDIES) == list(ABLATIONS) and parse(STEPS, ["--ablate", "activation, steps"])[0].ablate[1] == "steps"


def test_the_key_of_a_point_is_what_its_results_depend_on(tmp_path):
    dataset = Shapes(12, 4, 48)

    def key(study="steps", **changes):
        return [point.key for point in points_of(STUDIES[study], arguments(**changes), dataset)]

    (own,) = key()
    assert key(num_workers=0) == key(make_rib_cam_pass=True) == key(RIB_pool_size=7) == [own]
    (tmp_path / "other.pth").write_bytes(b"weights")
    changes = ({"RIB_lr": 2e-4}, {"seed": 1}, {"pooling": "gap"}, {"cam_weights_name": str(tmp_path / "other.pth")})
    assert len({own, *(key(**changed)[0] for changed in changes), key(cam_eval_thres=0.3)[0]}) == 6
    for name in ("pooling", "activation", "companions", "learning_rate"):
        assert key(name).count(own) == 1


# the step


SMALL = (
    f"{' '.join(SCRATCH)} "
    "--shapes_train 12 --shapes_val 4 --shapes_size 48 --num_workers 0 --device cpu --RIB_iter 2 --RIB_batch_size 2 "
    "--RIB_crop_size 48 --RIB_resize_long 40,56 --RIB_lr 3e-5 --cam_scales 1.0,0.5,1.5"
).split()
POINTS = 5  # steps has one of those of activation


def ablate(work_dir, *argv, images=2):
    chosen = ("--steps", "ablate", "--ablate", "steps,activation", "--ablate_limit", images)
    return run_cli("--work_dir", work_dir, *SMALL, *chosen, *argv)


def results(work_dir):
    return json.loads((work_dir / "ablate" / "results.json").read_text())["studies"]


@pytest.fixture
def work_dir(tmp_path):
    write_classifier(tmp_path, 6)
    return tmp_path


@pytest.fixture
def runs(monkeypatch):
    """`runs.count`: the images that RIB ran on; at `runs.stop_at` it is interrupted."""
    plain, state = RIB.run, argparse.Namespace(count=0, stop_at=None)

    def counted(self, *args, **options):
        if state.count == state.stop_at:
            raise KeyboardInterrupt
        state.count += 1
        return plain(self, *args, **options)

    monkeypatch.setattr(RIB, "run", counted)
    return state


def test_ablate_gives_what_the_steps_give(work_dir, capsys):
    assert ablate(work_dir) == 0
    printed = capsys.readouterr().out
    assert printed == (work_dir / "ablate" / "table.txt").read_text()
    assert run_cli("--work_dir", work_dir, *SMALL, "--steps", "make_cam,make_rib_cam") == 0
    studies = results(work_dir)
    own = studies["steps"]["points"][0]
    names, dataset = studies["steps"]["names"], Shapes(12, 4, 48)
    assert len(set(names)) == 2 and own["setting"]["--RIB_iter"] == 2 and own["setting"]["--RIB_activation"] == "none"
    assert [len(own["curve"][key]) for key in ("best", "best_threshold", "fixed")] == [3, 3, 3]
    for k, kind in ((0, "cam"), (own["written"], "cam_rib")):
        sweep = ThresholdSweep(np.arange(61) / 100, 7)
        for name in names:
            file = load_cam(work_dir / kind / f"{name}.npy")
            sweep.add(file["keys"], file["high_res"], dataset.mask(name))
        miou = [mean_iou(confusion) for confusion in sweep.confusions()]
        assert own["curve"]["best"][k] == pytest.approx(max(miou), abs=1e-3)
        assert own["curve"]["fixed"][k] == pytest.approx(miou[15], abs=1e-3)
        assert f"{100 * own['curve']['best'][k]:.1f}" in printed
    points = {point["label"]: point for point in studies["activation"]["points"]}
    assert points["RIB_activation=none"]["curve"] == own["curve"] and points["RIB_activation=none"]["own"]
    assert points["RIB_activation=sigmoid"]["setting"]["--RIB_activation"] == "sigmoid"
    assert points["RIB_activation=sigmoid"]["curve"]["best"][0] == own["curve"]["best"][0]  # the CAM is the CAM
    metrics = json.loads((work_dir / "metrics.json").read_text())["ablate"]
    assert metrics["images"] == metrics["of"] == 2 * POINTS and metrics["points"] == POINTS
    assert undocumented("ablate", metrics) == []
    assert metrics["studies"]["steps"] == {**own["curve"], "ended_early": 0, "not_finite": 0}
    for name in ("steps", "activation"):
        with Image.open(work_dir / "ablate" / f"{name}.png") as picture:
            assert picture.width > 700


def test_ablate_computes_nothing_twice(work_dir, runs, capsys):
    runs.stop_at = 3
    assert ablate(work_dir) == 130
    assert len(list(work_dir.rglob("train_*.npz"))) == 3 and not (work_dir / "ablate" / "results.json").exists()
    runs.stop_at = None
    assert ablate(work_dir) == 0
    files = {path: path.read_bytes() for path in (work_dir / "ablate").rglob("*.*")}
    assert ablate(work_dir) == 0
    assert runs.count == 2 * POINTS
    assert {path: path.read_bytes() for path in (work_dir / "ablate").rglob("*.*")} == files
    assert ablate(work_dir, "--ablate", "steps", images=3) == 0
    assert runs.count == 2 * POINTS + 1
    assert ablate(work_dir, "--RIB_lr", "4e-5", "--ablate", "steps") == 0
    assert runs.count == 2 * POINTS + 3
    assert list(results(work_dir)) == ["steps"]  # those of the other setting do not belong beside it
    assert ablate(work_dir, "--RIB_lr", "4e-5", "--ablate", "steps", "--overwrite", images=1) == 0
    assert runs.count == 2 * POINTS + 4


def test_counts_of_another_dataset_are_not_taken_and_those_of_other_code_are(work_dir, runs, monkeypatch, capsys):
    assert ablate(work_dir, "--ablate", "steps") == 0
    monkeypatch.setattr("step.ablate.code_version", lambda: {"commit": "other"})
    assert ablate(work_dir, "--ablate", "steps") == 0 and runs.count == 2
    assert "created by another version of the code" in capsys.readouterr().err
    monkeypatch.setattr(Shapes, "identity", {"--dataset": "shapes", "classes": ["other"] * 6})
    assert ablate(work_dir, "--ablate", "steps") == 0
    assert runs.count == 4 and len(list(work_dir.rglob("setting.json"))) == 2


def test_a_recording_equals_separate_runs_of_fewer_steps(work_dir):
    """One more step than make_rib_cam, at rates that fall over K as there."""
    dataset, name, cpu = Shapes(12, 4, 48), "train_00003", torch.device("cpu")
    endless = "--stop_th 1e9 --explode_ratio 1.1 --cam_scales 1.0,0.5 --RIB_lr 1e-3 --RIB_iter 4".split()
    args, _ = parse(STEPS, [*SMALL, *endless, "--work_dir", str(work_dir)])
    (recording,) = record(args, dataset, [name], cpu)
    assert len(recording.sums) == 5 and not recording.overflowed

    def run(*n_iter, **settings):
        rib, items, _ = open_rib(args, dataset, [name], cpu, *n_iter)
        assert (rib.n_iter, rib.optimizer.max_step) == (*n_iter, 4, 4)[:2]
        ((_, _, levels, label, others),) = items
        rib = RIB(rib.model, **settings) if settings else rib
        return [sums[recording.keys] for sums in rib.run(levels, label, others, lowered=True)[0]]

    for k, got in enumerate(recording.sums):
        assert all(relative_error(a, b) < 1e-5 for a, b in zip(got, run(k + 1), strict=True))
    plain = run(lr=1e-3, n_iter=4, stop_th=1e9, explode_ratio=1.1)  # as make_rib_cam
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(recording.sums[3], plain, strict=True))
    assert relative_error(plain[0], 4 * recording.sums[0][0]) > 0.1  # the weights do move


def test_images_that_end_early_or_overflow_are_counted(work_dir):
    for settings, wanted in (
        (["--stop_th", "1e-9"], {"ended_early": 2, "not_finite": 0}),
        (["--RIB_lr", "1e30"], {"ended_early": 0, "not_finite": 2}),
    ):
        for _ in range(2):  # measured, then read again
            assert ablate(work_dir, *settings, "--ablate", "steps") == 0
            point = results(work_dir)["steps"]["points"][0]
            assert {key: point[key] for key in wanted} == wanted
    text = (work_dir / "ablate" / "table.txt").read_text()
    assert "make_rib_cam stops with an error there" in text and text.splitlines()[5].split()[-3:] == ["2", "0", "2"]


def study(title="pooling"):
    """A study of three settings as in results.json."""

    def point(label, best, at, **more):
        curve = {"best": [0.4, best], "best_threshold": [0.1, at], "fixed": [0.3, best / 2]}
        values = {"images": 3, "own": False, "ended_early": 0, "not_finite": 0, "written": 1, "curve": curve}
        return {"label": label, **values, **more}

    points = [point("pooling=gap", 0.45, 0.3), point("score_th=0.4", 0.5, 0.2, own=True)]
    points.append(point("score_th=0.8", 0.6, 0.6, ended_early=2))
    return {"title": title, "argument": "score_th", "sweep": [0.0, 0.6], "points": points}


def test_the_table_marks_what_may_mislead():
    (table,) = ablation_tables({"pooling": study()})
    lines = table.text().splitlines()
    assert lines[0] == "pooling: pooling" and lines[2].split() == ["CAM", "40.0", "0.10", "30.0", "3"]
    assert lines[3].split() == ["pooling=gap", "45.0", "0.30", "22.5", "3", "0", "0"]
    assert lines[4].split() == ["score_th=0.4", "*", "50.0", "0.20", "25.0", "3", "0", "0"]
    assert lines[5].split() == ["score_th=0.8", "60.0", "0.60!", "30.0", "3", "2", "0"]
    assert lines[6] == "* the setting of this run" and lines[7].startswith("! an end of the sweep")


def test_mistakes_get_one_line(tmp_path, capsys):
    assert ablate(tmp_path) == 2
    assert "step train_cam makes it" in capsys.readouterr().err.splitlines()[-1]
    write_classifier(tmp_path, 6)
    assert ablate(tmp_path, "--ablate", "steps", images=1) == 0
    path = next(tmp_path.rglob("train_*.npz"))
    path.write_bytes(path.read_bytes()[:100])
    assert ablate(tmp_path, "--ablate", "steps", images=1) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{path} is damaged" in error and "delete it and run the command again" in error
    assert ablate(tmp_path, "--ablate", "poling") == 2
    assert "'poling' is none of steps, pooling" in capsys.readouterr().err.splitlines()[-1]
    mini = make_folder(tmp_path / "data", masks=False)
    assert ablate(tmp_path, "--dataset", "folder", "--data_root", mini.root) == 2
    assert "has no masks, and all of these steps need some: ablate" in capsys.readouterr().err


@pytest.mark.slow
def test_two_ranks_give_what_one_gives(work_dir):
    assert ablate(work_dir, "--ablate", "steps", images=3) == 0
    one = results(work_dir)
    for path in work_dir.rglob("train_*.npz"):
        path.unlink()
    torchrun(*SMALL, "--work_dir", work_dir, "--steps", "ablate", "--ablate", "steps", "--ablate_limit", 3)
    two = results(work_dir)
    assert len(list(work_dir.rglob("train_*.npz"))) == 3
    for key, values in one["steps"]["points"][0]["curve"].items():
        assert two["steps"]["points"][0]["curve"][key] == pytest.approx(values, abs=0.01)
