"""The page: what it shows equals metrics.json, from any subset of steps, for any name, and it stays small."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import open_dataset
from data.base import Dataset
from data.files import save_json
from data.images import save_mask, voc_palette
from misc.report import pictures, plots
from misc.report.build import build, settings
from misc.report.tables import Table, at, stage_table
from misc.run import outputs
from step import report
from tests.report_mini import Page, arguments, finished, page_of
from tests.test_ablate import study

MB = 1_000_000
ATTACK = "<script>alert('5')</script>"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("run"), "--RIB_iter", "3")


@pytest.fixture(scope="module")
def text(run):
    return page_of(run)


@pytest.mark.parametrize("steps", ["eval_rib_cam", "eval_sem_seg", "eval_cam,eval_sem_seg", ""])
def test_any_subset_of_steps(run, steps):
    measured = {name: values for name, values in outputs.metrics(run).items() if name in steps.split(",")}
    page = Page(page_of(run, measured))
    assert {path.split(".")[0] for path, _ in page.shown} == set(filter(None, steps.split(",")))
    assert len(page.cards()) == 12 and ("Nothing has been scored yet" in page.text) == (not steps)


def test_every_figure_equals_metrics_json(run, text):
    measured, page = outputs.metrics(run), Page(text)
    assert len(page.shown) > 60
    for path, shown in page.shown:
        kind = path.rsplit(".", 1)[1]
        factor = 1 if kind in ("threshold", "images", "seconds") else 100
        value, digits = at(measured, path), len(shown.partition(".")[2])
        assert shown == f"{factor * value:.{digits}f}" and digits == {"threshold": 2, "images": 0}.get(kind, digits)
        assert digits > 0 or kind in ("images", "seconds"), path
    shown = {path for path, _ in page.shown}
    for stage in ("eval_cam.best", "eval_cam.fixed", "eval_rib_cam.best", "eval_sem_seg", "eval_sem_seg.ir_label"):
        assert f"{stage}.miou" in shown
    assert {"eval_sem_seg.iou.background", "eval_ins_seg.map_50", "eval_cam.best.threshold"} <= shown
    ignored = measured["eval_sem_seg"]["ir_label"]["ignored"]
    assert f"IRN label: {100 * ignored:.0f}% of pixels ignored, the others scored." in page.text


def test_curves_and_confusions_show_what_was_measured(run, text):
    measured, page = outputs.metrics(run), Page(text)
    sweep = measured["eval_cam"]["sweep"]
    best = max(sweep.values())
    threshold = next(float(t) for t, value in sweep.items() if value == best)
    assert f"CAM, best {100 * best:.1f} at {threshold:.2f}" in page.text and "loss, 0.3 at the end" in page.text
    (curve, _, rule) = plots.sweeps(measured, 0.15).axes[0].lines[::2]
    np.testing.assert_allclose(curve.get_ydata(), 100 * np.array(list(sweep.values())))
    assert list(rule.get_xdata()) == [0.15, 0.15]
    counts = measured["eval_sem_seg"]["confusion"]
    titles = [attributes["title"] for name, attributes in page.tags if name == "td" and "title" in attributes]
    names = list(measured["eval_sem_seg"]["iou"])
    for i, row in enumerate(counts):  # the last stage stands first
        for j, count in enumerate(row):
            words = f"{names[i]} as {names[j]}: {count} pixels, {100 * count / max(1, sum(row)):.1f}%"
            assert titles[i * len(names) + j] == words


def test_settings_are_those_that_made_the_results(tmp_path):
    """Those of all calls, but not of one that was refused, or that made something else."""

    def call(source, **values):
        given = {"dataset": "shapes", "RIB_iter": 10, "cam_scales": [1.0, 0.5], "steps": "report", **values}
        return {"arguments": given, "sources": {name: source for name in given}}

    args, _ = arguments(tmp_path)
    earlier = [call("command line", RIB_iter=4)]
    save_json(tmp_path / "args.json", {**call("default", RIB_iter=5), "earlier": earlier})
    assert settings(args) == {"RIB_iter": "4"}
    save_json(tmp_path / "args.json", {**call("config x.yaml", beta=3.0, sem_seg_out_dir="x"), "earlier": earlier})
    assert settings(args) == {"beta": "3"}  # set back to the preset's 10 steps
    record = {"arguments": {"--beta": 10.0, "--exp_times": 3}, "inputs": {}, "code": {}}
    save_json(outputs.record_file(args, "sem_seg_out_dir"), record)
    assert settings(args) == {"exp_times": "3"}
    save_json(outputs.record_file(args, "ins_seg_out_dir"), {**record, "arguments": {"--beta": 3.0, "--exp_times": 3}})
    assert settings(args) == {"beta": "10 and 3", "exp_times": "3"}


def test_step_report_writes_and_prints(run, text, capsys):
    assert report.run(run, open_dataset(run)) == {"images": 12}
    printed, measured = capsys.readouterr().out, outputs.metrics(run)
    rows = {"seed, RIB": "eval_rib_cam.best.miou", "IRN label": "eval_sem_seg.ir_label.miou"}
    rows |= {"pseudo mask": "eval_sem_seg.miou", "instances": "eval_ins_seg.map_50"}
    for label, path in rows.items():
        assert re.search(rf"{label} +{100 * at(measured, path):.1f}\b", printed)
    assert printed.splitlines()[1].split() == ["stage", "mIoU", "threshold", "AP50", "seconds"]
    folder = Path(run.work_dir)
    assert (folder / "report.html").read_text() == text
    with Image.open(folder / "overview.png") as overview, Image.open(folder / "thresholds.png") as thresholds:
        assert overview.size == (24 + 8 * 176, 48 + 6 * 176) and thresholds.width > 400


class Odd(Dataset):
    """Images whose names and classes are attacks. noise: pictures that do not compress."""

    name = "<script>alert(1)</script> $x_{1$"
    classes = ("<script>alert(2)</script>", '"><img src=x onerror=alert(3)>', "a'b&c\\d")

    def __init__(self, n=4, shape=(24, 32), noise=False):
        self.count, self.shape, self.noise = n, shape, noise

    def names(self, split):
        return [f'</script><b onclick="x">{i}' if not self.noise else f"i{i:04d}" for i in range(self.count)]

    def image(self, name):
        draw = np.random.default_rng(len(name) + int(re.sub(r"\D", "", name)))
        return draw.integers(0, 256, (*self.shape, 3), np.uint8)

    def label(self, name):
        return np.array([1, 1, 0], np.float32)

    def mask(self, name):
        out = np.zeros(self.shape, np.uint8)
        out[: self.shape[0] // 2], out[-5:, 5:9] = 1, 255
        return out


def test_what_is_written_on_the_page_stays_text(tmp_path):
    args, sources = arguments(tmp_path)
    dataset, attack = Odd(), "--x=<script>alert(4)</script>"
    call = {"arguments": {**vars(args), "cam_init": attack}, "sources": {**sources, "cam_init": "command line"}}
    call |= {"command": attack, "hardware": {"cpu": attack, "cores": attack}, "versions": {}}
    save_json(tmp_path / "args.json", call)
    iou = dict.fromkeys(("background", *dataset.classes), 0.5)
    measured = {
        "eval_sem_seg": {"miou": 0.5, "iou": iou, "confusion": np.eye(4, dtype=int).tolist(), "images": 4},
        "train_seg": {"loss": {ATTACK: [2.0, 1.0], "$x_{$": [2.0, 1.0]}},
    }
    text = build(args, dataset, measured, dataset.names("train"))
    page = Page(text)
    for name, attributes in page.tags:  # nothing is fetched
        assert name not in ("link", "iframe", "object") or attributes.get("href") == "data:,"
        assert attributes.get("src", "data:").startswith("data:")
    assert not re.search(r"url\((?!data:|#)", text) and "@import" not in text
    names = [name for name, _ in page.tags]
    assert names.count("script") == 1 and names.count("img") == 5  # a layer per image, the truth, and the example
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    assert [attributes["data-name"] for attributes in page.cards()] == dataset.names("train")
    assert all(c in page.text for c in (*dataset.classes, f"{ATTACK}, 1 at the end", "$x_{$, 1 at the end"))
    assert page.text.count(attack) >= 3
    assert "| &lt;a\\|b&gt; |" in Table("t", ("x",), [["<a|b>"]]).markdown()


def test_a_thousand_images_stay_below_15_mb(tmp_path):
    args, _ = arguments(tmp_path)
    dataset = Odd(1000, (375, 500), noise=True)
    names = dataset.names("train")
    save_json(tmp_path / "per_image.json", {"schema": 1, "sem_seg": {n: i / 1000 for i, n in enumerate(names)}})
    text = build(args, dataset, {}, names)
    assert 1 * MB < len(text) < 15 * MB
    page = Page(text)
    shown = [card["data-name"] for card in page.cards()]
    assert f"{len(shown)} of 1000 images, a sample: the best" in page.text
    assert set(names[:6]) | set(names[-6:]) <= set(shown)


def test_the_gallery_says_what_it_shows_and_gives_the_script_what_it_filters_by(tmp_path):
    class Few(Odd):
        def names(self, split):
            return [f"v{i}" for i in range(2)] if split == "val" else super().names(split)

        def mask(self, name):
            return {"i0000": None, "i0001": np.full(self.shape, 255, np.uint8)}.get(name, super().mask(name))

    args, _ = arguments(tmp_path)
    dataset = Few(4, noise=True)
    names = dataset.names("train")
    page = Page(build(args, dataset, {}, names))
    assert "All 4 images. Point" in page.text and [card["data-name"] for card in page.cards()] == names
    perfect = dataset.mask("i0002")
    for kind, name, mask in (
        ("sem_seg", "i0000", perfect), ("sem_seg", "i0001", perfect), ("sem_seg", "i0002", perfect * 0),
        ("sem_seg", "i0003", perfect), ("seg", "v0", perfect), ("seg", "v1", perfect * 0),
    ):  # fmt: skip
        save_mask(outputs.result_file(args, f"{kind}_out_dir", name, ".png"), mask, voc_palette())
    page = Page(build(args, dataset, {}, names))
    assert "All 4 images; also 2 validation images. Point" in page.text
    cards = {card["data-name"]: card for card in page.cards()}
    assert list(cards) == ["i0003", "v0", "i0002", "v1", "i0000", "i0001"]  # unscored images come last
    assert cards["v0"]["data-groups"] == "val" and cards["i0003"]["data-groups"] == "class"
    assert all(card["data-classes"] == "0 1" for card in cards.values())
    values = [attributes["data-value"] for _, attributes in page.tags if "data-value" in attributes]
    assert values == ["", "class", "val", "", "0", "1"]


def experiments(folder, claim):
    """metrics.json and files of a toy experiment and ablations, with invented values."""
    entry = {"claim": claim, "condition": "HGR <= 0.2", "measured": {"G_6": [0.35, 0.4]}, "holds_in": "0 of 2 seeds"}
    hgr = {"non-discriminative": {"mean": [1.0, 1.0, 1.0, 1.0, 0.875, 0.5]}}
    fall = {"mean": 0.375, "std": 0.011, "relative": 0.43, "seeds": [0.3, 0.4]}
    toy = {
        "seconds": 1.0, "images": 4, "seeds": [0, 1], "digits": "rendered", "accuracy": [1.0, 0.987], "threshold": 0.2,
        "hgr": {"none": hgr, "trained": hgr}, "fall": {"none": fall, "trained": fall},
        "logit": {"none": {"mean": 16.0}, "trained": {"mean": 9.0}}, "notes": [claim],
        "whole_output": {"none": {"mean": 0.553}, "trained": {"mean": 0.1}},
        "claims": [{**entry, "reproduced": False}, {**entry, "claim": "it stays", "reproduced": True}],
        "by_threshold": {"0.3": {"reproduced": [False, True]}},
    }  # fmt: skip
    for name in ("toy/curves.png", "ablate/pooling.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (5, 3), (10, 20, 30)).save(folder / name)
    save_json(folder / "ablate" / "results.json", {"studies": {"pooling": study(title=claim)}})
    return {"toy": toy, "ablate": {"seconds": 1.0, "images": 4}}


def test_experiments_have_sections_where_they_ran(run, text, tmp_path):
    args, _ = arguments(tmp_path)
    page = Page(page_of(args, experiments(tmp_path, ATTACK)))
    for words in (
        "accuracy 100.0, 98.7%", f"1 NOT REPRODUCED{ATTACK}HGR <= 0.2G_6 0.35, 0.400 of 2 seeds", f"Note: {ATTACK}.",
        "2 reproducedit stays", "fine-tuned: none16.00.8750.5000.3750.01143%0.553", "hold by threshold: 0.3: 2.",
        f"pooling: {ATTACK}", "score_th=0.4 *50.00.2025.0300",
    ):  # fmt: skip
        assert words in page.text
    figures = [attributes for name, attributes in page.tags if name == "img" and "class" not in attributes]
    assert [pixels(figure["src"]).shape for figure in figures] == [(3, 5, 4)] * 2
    assert not {"Toy experiment", "Ablations"} & set(re.findall(r"<h2>([^<]+)</h2>", text))


def pixels(uri):
    return np.array(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGBA"))


def test_layers_draw_what_they_should():
    mask = np.zeros((40, 60), np.uint8)
    mask[:10], mask[-10:] = 3, 255
    layer = pictures.mask_layer(mask, {3: (1, 2, 3)})
    drawn = pixels(pictures.layer_uri(layer))
    assert (drawn[:10] == (1, 2, 3, 255)).all() and (drawn[10:30, :, 3] == 0).all()
    white = (drawn[-10:] == 255).all(-1)
    assert 0.2 < white.mean() < 0.5 and (drawn[-10:][~white] == (40, 40, 40, 130)).all()
    image = np.full((40, 60, 3), (90, 100, 110), np.uint8)
    assert pictures.over(image, layer, 0.5)[[0, 20], 0].tolist() == [[50, 51, 51], [100, 100, 100]]
    cams = np.zeros((2, 10, 15), np.float32)
    cams[1, 3, 4] = 1
    heat = pixels(pictures.layer_uri(pictures.heat_layer(cams)))
    assert np.unravel_index(heat[..., 3].argmax(), (10, 15)) == (3, 4) and heat[3, 4, 3] > 1.8 * heat[0, 0, 3]
    masks = np.zeros((3, 40, 60), bool)
    masks[0, 5:15, 5:15] = masks[1, 5:15, 12:30] = masks[2, 30:] = True
    drawn = pixels(pictures.layer_uri(pictures.instance_layer(masks, np.array([0.9, 0.4, 0.0]))))
    assert drawn[10, 13, 3] == drawn[10, 22, 3] == 255 and drawn[35, 30, 3] == 0


def test_networks_are_named_by_what_they_learnt_from_and_no_figure_stands_twice():
    comparison = {"rib": 0.7, "cam": 0.6, "truth": 0.8}
    seg = {"miou": 0.7, "labels": "pseudo", "before_crf": {"miou": 0.65}, "comparison": comparison}
    measured = {"eval_seg": seg, "train_seg": {"seconds": 90.0}}
    rows = [["RIB masks", "70.0"], ["CAM masks", "60.0"], ["ground truth", "80.0"]]
    table = stage_table(measured)
    assert table.head == ["stage", "mIoU"] and table.notes == ["Training of the 3 networks: 90 seconds."]
    assert table.rows == [[f"network trained on {labels}", value] for labels, value in rows]
    del seg["comparison"]
    assert stage_table(measured).rows == [["network trained on pseudo masks", "70.0", "90"]]
    voc = stage_table(measured, dataset="voc12", full=True)
    assert voc.head[3:] == ["before CRF", "paper"] and voc.rows[0][3:] == ["65.0", "68.3 val, 68.6 test"]
