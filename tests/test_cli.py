"""The command line: which steps run, which values win and where they come from, and what a mistake looks like."""

import json
import os
import re
import subprocess
import sys
import types

import pytest
import yaml

from data.errors import UserError
from misc.run.arguments import parse
from misc.run.options import OPTIONS, preset
from misc.run.runner import Step, choose
from run_sample import STEPS
from tests.helpers import ROOT, run_cli

ALL = [step.name for step in STEPS if step.number is not None]


def parsed(*argv):
    return parse(STEPS, argv)


def chosen(*argv):
    return [step.name for step in choose(STEPS, parsed(*argv)[0])]


@pytest.fixture
def config(tmp_path):
    def write(content):
        path = tmp_path / "config.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return f"--config={path}"

    return write


# which steps


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        ("", ALL),
        *[(f"--{name}_pass", [name]) for name in ALL],
        *[(f"--train_cam_pass{yes}", ["train_cam"]) for yes in (" True", "=true", " 1")],
        ("--train_cam_pass --overwrite --eval_cam_pass", ["train_cam", "eval_cam"]),
        ("--steps 3 --train_cam_pass", ["train_cam", "eval_cam"]),
        *[(f"--{no}", ALL[1:]) for no in ("train_cam_pass False", "train_cam_pass=no", "no-train_cam_pass")],
        ("--no-train_cam_pass --steps 1-2", ["make_cam"]),
        ("--no-train_cam_pass --eval_cam_pass", ["eval_cam"]),
        ("--steps 3-6", ["eval_cam", "make_rib_cam", "eval_rib_cam", "cam_to_ir_label"]),
        ("--steps=make_cam-make_rib_cam", ["make_cam", "eval_cam", "make_rib_cam"]),
        ("--steps 2-eval_cam", ["make_cam", "eval_cam"]),
        ("--steps eval_cam,1", ["train_cam", "eval_cam"]),  # always in their own order
        ("--steps 1,1-2,", ["train_cam", "make_cam"]),
        *[(argv, ["ablate"]) for argv in ("--steps ablate", "--ablate_pass")],  # without a number: only by its name
        ("--steps 13-report,toy", ["eval_seg", "report", "toy"]),
    ],
)
def test_steps_and_flags_choose(argv, wanted):
    assert chosen(*argv.split()) == wanted


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ({"steps": 3}, ["eval_cam"]),
        ({"steps": [3, "train_cam"]}, ["train_cam", "eval_cam"]),
        ({"steps": "2-3", "make_cam_pass": False}, ["eval_cam"]),
        ({"make_cam_pass": "no"}, [ALL[0], *ALL[2:]]),
    ],
)
def test_a_config_chooses_steps(config, content, wanted):
    assert chosen(config(content)) == wanted
    assert chosen(config({"steps": "2-3"}), "--steps", "1") == ["train_cam"]


# which values


def test_values_of_the_dataset_win_over_the_published_ones():
    args, sources = parsed()
    values = preset("shapes")
    assert values["cam_scales"] == ((1.0, 0.5), "found on shapes") and values["explode_th"][0] == 0.3
    for name, (value, source) in values.items():
        assert getattr(args, name) == value and sources[name] == source, name
    assert (args.dataset, args.work_dir, args.seed) == ("shapes", "result/shapes", 0)
    assert sources["seed"] == sources["dataset"] == "default"
    args, sources = parsed("--dataset", "voc12")
    assert (args.RIB_lr, args.RIB_iter, args.RIB_batch_size, args.score_th, args.stop_th) == (8e-6, 10, 20, 0.4, 600)
    assert (args.cam_network, args.infer_list, args.work_dir) == ("resnet50", "train_aug", "result/voc12")
    assert sources["dataset"] == "command line" and sources["score_th"] == "RIB, section 5.1: tau"


def test_command_line_wins_over_config_over_preset(config):
    given = config({"RIB_lr": 0.5, "RIB_iter": 7, "cam_scales": [1.0, 0.5, 2.0], "overwrite": True})
    args, sources = parsed(given, "--RIB_iter=3", "--cam_resize_long", "10,20")
    assert (args.RIB_lr, sources["RIB_lr"]) == (0.5, given.removeprefix("--").replace("=", " "))
    assert (args.RIB_iter, sources["RIB_iter"]) == (3, "command line")
    assert (args.cam_resize_long, sources["cam_resize_long"]) == ((10, 20), "command line")
    assert (args.score_th, sources["score_th"]) == preset("shapes")["score_th"]
    assert (args.cam_scales, args.overwrite) == ((1.0, 0.5, 2.0), True)
    given = config({"dataset": "voc12", "RIB_iter": 7})  # brings the preset of that dataset
    for argv, wanted in (((), ("voc12", 8e-6, 7)), (("--dataset", "shapes"), ("shapes", 1e-4, 7))):
        args, _ = parsed(given, *argv)
        assert (args.dataset, args.RIB_lr, args.RIB_iter) == wanted


def test_empty_configs_change_nothing_and_numbers_may_be_words_of_yaml(config):
    plain = vars(parsed()[0])
    for content in ("# nothing\n", "limit:\nRIB_lr: null\ndataset: ~\n"):
        args, sources = parsed(config(content))
        assert {**vars(args), "config": None} == plain and sources["RIB_lr"] == preset("shapes")["RIB_lr"][1]
    assert parsed(config("RIB_lr: 1e-4\n"))[0].RIB_lr == 1e-4  # YAML reads 1e-4 as text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("RIB_itre: 3", "there is no argument 'RIB_itre'; see --help_all"),
        ("help: true", "there is no argument 'help'"),
        ("RIB_iter: many", "RIB_iter cannot be 'many'"),
        ("RIB_iter: 0", "RIB_iter cannot be 0: 0 is not at least 1"),
        ("overwrite: maybe", "overwrite cannot be 'maybe': 'maybe' is neither True nor False"),
        ("cam_resize_long: [1, 2, 3]", "cam_resize_long cannot be [1, 2, 3]: '1,2,3' has 3 values, wanted 2"),
        ("pooling: max", "pooling is 'max'; choose from gndp, gap"),
        ("just text", "holds no mapping"),
        ("a: [1", "is not YAML"),
    ],
)
def test_bad_configs(config, content, message):
    with pytest.raises(UserError) as error:
        parsed(config(content))
    assert message in str(error.value) and "config.yaml" in str(error.value) and "\n" not in str(error.value)


# mistakes

MISTAKES = [
    (["--steps", "99"], "--steps: there is no step '99'; there are 1 train_cam, 2 make_cam,"),
    (["--steps", "1-nosuch"], "--steps: there is no step 'nosuch'; there are"),
    (["--steps", "make_rib_cam-2"], "--steps: make_rib_cam-2 runs backwards"),
    (["--steps", "13-ablate"], "--steps: 13-ablate is no range; a step without a number"),
    (["--steps="], "--steps names no step"),
    (["--beta", "x"], "argument --beta: invalid number value: 'x'"),
    (["--beta", "0"], "0 is not above 0"),
    (["--steps", "1", "--no-train_cam_pass"], "all selected steps are switched off"),
    (["--RIB_iter", "0"], "argument --RIB_iter: 0 is not at least 1"),
    (["--RIB_batch_size", "-1"], "argument --RIB_batch_size/--RIB_batch: -1 is not at least 0"),
    (["--cam_resize_long", "320"], "argument --cam_resize_long: '320' has 1 values, wanted 2 joined by commas"),
    (["--cam_scales", "0.5,1.0"], "--cam_scales is (0.5, 1.0); wanted the first 1.0 and the second 0.5"),
    (["--cam_eval_sweep", "0.5,0.1,0.1"], "wanted LO <= HI and STEP above 0"),
    (["--irn_crop_size", "97"], "--irn_crop_size is 97; wanted a multiple of 4"),
    (["--cam_weight_decay=-1e-4"], "--cam_weight_decay: -1e-4 is not at least 0"),
    (["--seg_crf", "0,3,67,3,4"], "wanted deviations (1st, 3rd, 4th) above 0"),
    (["--seg_crop_size", "32", "--seg_msc_scales", "1,0.2"], "--seg_crop_size is 32; wanted at least 8 pixels at the"),
    (["--pooling", "max"], "argument --pooling: invalid choice: 'max'"),
    (["--cam_network", "efficientnet_b0"], "is none of resnet50, resnet14, timm:NAME; maybe timm:efficientnet_b0"),
    (["--train_cam_pass", "maybe"], "'maybe' is neither True nor False"),
    (["--dataset", "imagenet"], "there are shapes, photos, voc12"),
    (["--no_such", "1"], "unrecognized arguments: --no_such 1"),
    (["--prec", "bf16"], "unrecognized arguments: --prec bf16"),  # nothing is guessed
    (["--config", "no.yaml"], "--config no.yaml cannot be read"),
]


@pytest.mark.parametrize(("argv", "message"), MISTAKES, ids=[" ".join(argv) for argv, _ in MISTAKES])
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    assert run_cli(*argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("run_sample.py: ") and err.count("\n") == 1 and err.endswith("\n")
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_dry_run_and_list_steps_say_the_plan_and_do_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_cli("--dry_run", "--steps", "2-3", "--work_dir", "out") == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "dataset shapes, results in out" and err == ""
    assert [line.split()[:2] for line in lines[2:]] == [["2", "make_cam"], ["3", "eval_cam"]]
    assert "sess/res50_cam.pth" in lines[2] and "cam/NAME.npy" in lines[2]
    assert run_cli("--list_steps") == 0
    for step, line in zip(STEPS, capsys.readouterr().out.splitlines()[1:], strict=True):
        assert " ".join(line.split()).startswith(f"{step.title} ") and step.reads in line and step.writes in line
    assert list(tmp_path.iterdir()) == []


def help_text(capsys, *argv):
    with pytest.raises(SystemExit) as exit_:
        run_cli(*argv)
    assert exit_.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_shows_the_values_of_the_dataset(capsys, config):
    text = help_text(capsys, "--help_all", "--dataset", "voc12")
    for flag, value in (("RIB_batch_size", "20"), ("cam_scales", "1,0.5,1.5,2"), ("infer_list", "train_aug")):
        assert re.search(rf"--{flag}\b[^(]*\(default: {value}\)", text)
    assert "use only the first N images of every list --max_side" in text  # without a default
    assert "disjoint images per step; 0: none (default: 3)" in help_text(capsys, "-h", config({"RIB_batch_size": 3}))


def test_the_short_help_leaves_out_what_is_seldom_changed(capsys):
    short, everything = help_text(capsys, "--help"), help_text(capsys, "--help_all")
    assert "--RIB_lr" in short and "--explode_ratio" not in short and "steps one by one:" in everything
    assert all(f"--{option.name}" in everything for options in OPTIONS.values() for option in options)


def test_published_names_are_accepted(config):
    args, sources = parsed(*"--RIB_batch 7 --np_power 2 --voc12_root somewhere --chainer_eval_set val".split())
    assert (args.RIB_batch_size, args.cam_power, args.data_root, args.eval_list) == (7, 2.0, "somewhere", "val")
    assert sources["RIB_batch_size"] == "command line"
    assert parsed(config({"RIB_batch": 9}))[0].RIB_batch_size == 9


# running steps


@pytest.fixture
def ran(monkeypatch):
    """Steps `one`, `two`, `three` of a module made up here; gives what was called."""
    calls = []

    def step(args, dataset, say, error, values):
        calls.append((say, args.seed))
        if error is not None:
            raise error
        return values

    monkeypatch.setitem(sys.modules, "made_up_step", types.SimpleNamespace(run=step))
    return calls


def run_made_up(tmp_path, *argv, **errors):
    values = {"one": {"images": 4}, "two": None, "three": {"images": 4}}
    options = [{"say": name, "error": errors.get(name), "values": values[name]} for name in values]
    steps = [Step(i, of["say"], "made_up_step", "", "", of) for i, of in enumerate(options, 1)]
    return run_cli("--work_dir", tmp_path / "out", *argv, steps=steps)


def test_steps_run_in_order_and_what_they_measure_is_kept(ran, tmp_path):
    for steps in ("1", "3,2"):  # the second run adds to the first
        assert run_made_up(tmp_path, "--seed", "3", "--steps", steps) == 0
    assert ran == [("one", 3), ("two", 3), ("three", 3)]
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(metrics) == ["schema", "one", "three"]
    assert metrics["one"]["images"] == 4 and metrics["one"]["seconds"] >= 0
    assert "step 2 two took" in (tmp_path / "out" / "log.txt").read_text()
    kept = json.loads((tmp_path / "out" / "args.json").read_text())
    assert kept["arguments"]["seed"] == kept["seed"] == 3 and kept["sources"]["seed"] == "command line"
    assert (kept["arguments"]["RIB_iter"], kept["sources"]["RIB_iter"]) == preset("shapes")["RIB_iter"]
    assert kept["command"] == f"python run_sample.py --work_dir {tmp_path / 'out'} --seed 3 --steps 3,2"
    assert kept["versions"]["torch"] and kept["hardware"]["cores"]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [(UserError("x.npy is missing"), 2, "x.npy is missing"), (KeyboardInterrupt(), 130, "run the same command")],
)
def test_a_step_that_stops_is_one_line_and_an_exit_code(ran, tmp_path, capsys, error, code, message):
    assert run_made_up(tmp_path, two=error) == code
    assert [name for name, _ in ran] == ["one", "two"]
    assert re.search(f"^run_sample.py: .*{message}", capsys.readouterr().err.splitlines()[-1])


def test_a_work_dir_that_cannot_be_written(ran, tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    assert run_made_up(tmp_path) == 2
    assert re.search(r"--work_dir .*out cannot be written: .*; choose another", capsys.readouterr().err)
    assert not ran


def test_a_rank_that_fails_ends_at_once(tmp_path):
    # The others wait for it, so nothing that waits for them may run at its end.
    code = "import atexit, sys, run_sample as r; atexit.register(lambda: print('at exit'));"
    code += "sys.exit(r.main(r.STEPS, ['--steps', 'no_such_step']))"
    for ranks, at_exit in (("1", "at exit\n"), ("2", "")):
        environment = {**os.environ, "WORLD_SIZE": ranks}
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, at_exit) and "no_such_step" in done.stderr
