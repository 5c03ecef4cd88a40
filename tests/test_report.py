"""The page: what it shows equals metrics.json, from any subset of steps, for any name, and it stays small."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.base import Dataset
from data.files import save_json
from data.images import save_mask, voc_palette
from misc.report import experiments, gallery, pictures, runinfo
from misc.report.charts import Line, confusion_table, line_chart
from misc.report.markup import Html, at, tag
from misc.report.page import FOLDER, build
from misc.report.published import REFERENCES, reference
from misc.report.stages import stage_table
from misc.run import made_by, metricsfile, workdir
from step import report
from tests.report_mini import Page, arguments, finished, page_of

MB = 1_000_000


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return finished(folder, "--RIB_iter", "3")


def test_every_figure_equals_metrics_json(run):
    measured = metricsfile.metrics(run)
    page = Page(page_of(run))
    assert len(page.shown) > 60
    digits = {"threshold": (2, 1), "images": (0, 1)}
    for path, text in page.shown:
        kind = path.rsplit(".", 1)[1]
        places, factor = digits.get(kind, (None, 1 if kind == "seconds" else 100))
        value = factor * at(measured, path)
        assert text in {f"{value:.{places}f}"} if places is not None else {f"{value:.0f}", f"{value:.1f}"}, path
    shown = {path for path, _ in page.shown}
    for stage in ("eval_cam.best", "eval_cam.fixed", "eval_rib_cam.best", "eval_sem_seg", "eval_sem_seg.ir_label"):
        assert f"{stage}.miou" in shown
    assert {"eval_sem_seg.foreground.recall", "eval_rib_cam.best.iou.rings", "eval_sem_seg.iou.background"} <= shown
    ap = measured["eval_ins_seg"]["map_50"]
    assert f"AP at IoU 0.5 {100 * ap:.1f}" in page.text


def test_the_run_in_one_line(run):
    page = Page(page_of(run))
    line = re.search(r"shapes · 12 images · (.*)", page.text)[1]
    assert "RIB_iter 3" in line and "shapes_train 12" in line and "limit 12" in line
    assert "make_rib_cam 6 s" in line and "cores" in line
    assert "num_workers" not in line and "work_dir" not in line


def test_settings_of_all_calls_count(tmp_path):
    def call(source, **values):
        given = {"dataset": "shapes", "RIB_iter": 10, "cam_scales": [1.0, 0.5, 1.5, 2.0], "steps": "report", **values}
        return {"arguments": given, "sources": {name: source for name in given}}

    earlier = [call("command line", RIB_iter=4), call("config x.yaml", beta=3.0, sem_seg_out_dir="x")]
    save_json(tmp_path / "args.json", {**call("default", RIB_iter=5), "earlier": earlier[:1]})
    assert runinfo.settings(tmp_path) == {"RIB_iter": 4}
    save_json(tmp_path / "args.json", {**earlier[1], "earlier": earlier[:1]})
    assert runinfo.settings(tmp_path) == {"beta": 3.0}  # set back to the preset's 10 steps
    assert runinfo.settings(tmp_path / "nothing") == {}


def test_settings_are_those_that_made_the_results(tmp_path):
    """Not those of a call that was refused, or that made something else."""
    call = {"arguments": {"dataset": "shapes", "beta": 3.0, "RIB_iter": 4}, "sources": {"beta": "command line"}}
    save_json(tmp_path / "args.json", call)
    assert runinfo.settings(tmp_path) == {"beta": 3.0}
    record = {"arguments": {"--beta": 10.0, "--exp_times": 3}, "inputs": {}, "code": {}}
    save_json(tmp_path / "sem_seg" / made_by.NAME, record)
    assert runinfo.settings(tmp_path) == {"exp_times": 3}
    save_json(tmp_path / "ins_seg" / made_by.NAME, {**record, "arguments": {"--beta": 3.0, "--exp_times": 3}})
    assert runinfo.settings(tmp_path) == {"beta": "10 (sem_seg), 3 (ins_seg)", "exp_times": 3}
    (tmp_path / "cam").mkdir()
    (tmp_path / "cam" / made_by.NAME).write_text("{")
    assert runinfo.settings(tmp_path)["exp_times"] == 3


def test_same_bytes_again(run):
    assert page_of(run) == page_of(run)


@pytest.mark.parametrize("steps", ["eval_cam", "eval_rib_cam", "eval_sem_seg", "eval_ins_seg", "eval_cam,eval_sem_seg"])
def test_any_subset_of_steps(run, steps):
    measured = {name: values for name, values in metricsfile.metrics(run).items() if name in steps.split(",")}
    page = Page(page_of(run, measured))
    assert {path.split(".")[0] for path, _ in page.shown} == set(steps.split(","))
    assert len(page.cards()) == 12


def test_without_any_step(tmp_path):
    args, _ = arguments(tmp_path)
    page = Page(page_of(args))
    assert "Nothing has been scored yet" in page.text and "No step has stored a figure yet" in page.text
    assert len(page.cards()) == 12 and not page.shown


def test_step_report_writes_and_prints(run, capsys):
    assert report.run(run) == {"images": 12}
    printed = capsys.readouterr().out
    measured = metricsfile.metrics(run)
    rows = {"seed, RIB": "eval_rib_cam.best.miou", "CRF labels": "eval_sem_seg.ir_label.miou"}
    rows |= {"pseudo mask": "eval_sem_seg.miou", "instances, AP at 0.5": "eval_ins_seg.map_50"}
    for label, path in rows.items():
        assert re.search(rf"{label} +{100 * at(measured, path):.1f} ", printed)
    folder = Path(run.work_dir)
    assert (folder / "report.html").read_text() == page_of(run)
    assert Image.open(folder / "overview.png").width > 0 and Image.open(folder / "thresholds.png").width > 0


def test_nothing_is_fetched_and_no_other_script_runs(run):
    text = page_of(run)
    page = Page(text)
    for name, attributes in page.tags:
        assert name not in ("link", "iframe", "object") or attributes.get("href") == "data:,"
        assert attributes.get("src", "data:").startswith("data:")
        assert not any(key.startswith("on") for key in attributes)
    assert not re.search(r"url\((?!data:)", text) and "@import" not in text
    assert [name for name, _ in page.tags].count("script") == 1


class Odd(Dataset):
    """Images whose names and classes are attacks. noise: pictures that do not compress."""

    name = "<script>alert(1)</script>"
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


def test_what_is_written_on_the_page_is_escaped(tmp_path):
    args, sources = arguments(tmp_path)
    dataset = Odd()
    attack = "--x=<script>alert(4)</script>"
    call = {"arguments": {**vars(args), "cam_init": attack}, "sources": {**sources, "cam_init": "command line"}}
    save_json(tmp_path / "args.json", {**call, "command": attack, "hardware": {"cpu": attack, "cores": attack}})
    counted = np.eye(4, dtype=int).tolist()
    iou = dict.fromkeys(("background", *dataset.classes), 0.5)
    measured = {"eval_sem_seg": {"miou": 0.5, "iou": iou, "confusion": counted, "images": 4, "seconds": 1}}
    page = Page(build(args, dataset, measured, dataset.names("train")))
    names = [name for name, _ in page.tags]
    assert names.count("script") == 1 and "b" in names
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    assert [attributes["data-name"] for attributes in page.cards()] == dataset.names("train")
    assert all(c in page.text for c in dataset.classes) and page.text.count(attack) >= 3


def test_tags_escape_what_is_not_markup():
    assert tag("p", "<a>", Html("<b>"), title='"', hidden=True, id=None) == '<p title="&quot;" hidden>&lt;a&gt;<b></p>'
    assert tag("line", x_1=3) == '<line x-1="3"/>' and tag("img", src="data:") == '<img src="data:">'


def test_a_thousand_images_stay_below_15_mb(tmp_path, monkeypatch):
    args, _ = arguments(tmp_path)
    dataset = Odd(1000, (375, 500), noise=True)
    names = dataset.names("train")
    save_json(tmp_path / "per_image.json", {"schema": 1, "sem_seg": {n: i / 1000 for i, n in enumerate(names)}})
    text = build(args, dataset, {}, names)
    assert 1 * MB < len(text) < 15 * MB
    page = Page(text)
    shown = [card["data-name"] for card in page.cards()]
    assert re.search(rf"{len(shown)} of 1000 images, a sample: the best", page.text)
    assert set(names[:6]) | set(names[-6:]) <= set(shown)
    monkeypatch.setattr(gallery, "MOST_BYTES", 1 * MB)  # one that would be too large is left out
    smaller = build(args, dataset, {}, names)
    assert len(smaller) < 1.3 * MB and len(Page(smaller).cards()) < len(shown)


def test_the_sample_has_every_class_before_it_is_full(tmp_path):
    class Many(Odd):
        classes = tuple(f"class {c}" for c in range(80))

        def label(self, name):
            return np.eye(80, dtype=np.float32)[int(name[1:]) % 80]

    args, _ = arguments(tmp_path)
    dataset = Many(4000, noise=True)
    names = dataset.names("train")
    save_json(tmp_path / "per_image.json", {"sem_seg": {n: i / 4000 for i, n in enumerate(names)}})
    chosen = gallery.sample(args, dataset, names)
    assert len(chosen) == gallery.MOST
    assert {int(name[1:]) % 80 for name in chosen} == set(range(80))
    assert [name for name, groups in chosen.items() if "best" in groups] == names[:-7:-1]
    assert [name for name, groups in chosen.items() if "worst" in groups] == names[5::-1]


def test_the_sample_says_what_it_counts_and_unscored_images_come_last(tmp_path):
    class Few(Odd):
        def names(self, split):
            return [f"v{i}" for i in range(2)] if split == "val" else super().names(split)

        def mask(self, name):
            return {"i0000": None, "i0001": np.full(self.shape, 255, np.uint8)}.get(name, super().mask(name))

    args, _ = arguments(tmp_path)
    dataset = Few(4, noise=True)
    names = dataset.names("train")

    def text_and_cards():
        page = Page(gallery.gallery(args, {}, dataset, names))
        orders = [attributes["data-value"] for name, attributes in page.tags if name == "button"]
        return page.text, [card["data-name"] for card in page.cards()], {"down", "up"} <= set(orders)

    text, shown, ordered = text_and_cards()
    assert text.startswith("All 4 images. Point") and shown == names and not ordered
    perfect = dataset.mask("i0002")
    for kind, name, mask in (
        ("sem_seg", "i0000", perfect), ("sem_seg", "i0001", perfect), ("sem_seg", "i0002", perfect * 0),
        ("sem_seg", "i0003", perfect), ("seg", "v0", perfect), ("seg", "v1", perfect * 0),
    ):  # fmt: skip
        save_mask(workdir.result_file(args, f"{kind}_out_dir", name, ".png"), mask, voc_palette())
    text, shown, ordered = text_and_cards()
    assert text.startswith("All 4 images; besides them 2 validation images. Point")
    assert shown == ["i0003", "v0", "i0002", "v1", "i0000", "i0001"] and ordered
    for name in names[:3]:
        workdir.result_file(args, "sem_seg_out_dir", name, ".png").unlink()
    names, dataset.mask = names[3:], lambda name: perfect
    text, shown, ordered = text_and_cards()
    assert text.startswith("All 1 image; besides") and ordered
    workdir.result_file(args, "seg_out_dir", "v1", ".png").unlink()
    text, shown, ordered = text_and_cards()
    assert shown == ["i0003", "v0"] and ordered  # all of them perfect: mIoU 1


ATTACK = "<script>alert(5)</script>"


def apart(claim):
    """metrics.json of a toy experiment and ablations, with invented values."""
    measured = {"G_6": [0.35, 0.4]}
    entry = {"claim": claim, "condition": "HGR <= 0.2", "measured": measured, "holds_in": "0 of 2 seeds"}
    point = {"best": 0.512, "best_threshold": 0.07, "fixed": 0.4}
    curve = {"best": [0.1, 0.2, 0.3], "best_threshold": [0.01, 0.02, 0.03], "fixed": [0.11, None, 0.33]}
    toy = {
        "seconds": 1.0, "images": 4, "seeds": [0, 1], "digits": "rendered", "accuracy": [1.0, 0.987], "threshold": 0.2,
        "hgr": {"none": {"non-discriminative": {"mean": [1.0, 1.0, 1.0, 1.0, 0.875, 0.5]}}},
        "fall": {"none": {"mean": 0.375, "std": 0.011, "relative": 0.43}},
        "logit": {"none": {"mean": 16.0}}, "whole_output": {"none": {"mean": 0.553}}, "notes": [claim],
        "by_threshold": {"0.3": {"reproduced": [True, False, True], "hgr": {
            "trained": {"non-discriminative": [1, 1, 1, 1, 0.624, 0.172]},
            "none": {"non-discriminative": [1, 1, 1, 1, 0.7, 0.682]},
        }}},
        "claims": [{**entry, "reproduced": False}, {**entry, "claim": "it stays", "reproduced": True}],
    }  # fmt: skip
    studies = {"steps": curve, "pooling": {f"score_th={claim}": point}, f"../{claim}": {"x": point}}
    return {"toy": toy, "ablate": {"seconds": 1.0, "images": 4, "of": 4, "points": 2, "studies": studies}}


def test_experiments_apart_have_sections_where_they_ran(run, tmp_path):
    args, _ = arguments(tmp_path)
    measured = apart(ATTACK)
    text = Page(page_of(args, measured)).text
    assert "98.7 percent" in text and "1 of the paper's 2 claims are reproduced" in text
    assert f"1 not reproduced{ATTACK}HGR <= 0.2G_6 0.35, 0.400 of 2 seeds" in text and "2 reproducedit stays" in text
    assert "fine-tuned: none16.00.8750.5000.3750.011430.553" in text and f"Note: {ATTACK}." in text
    assert "0.30.6240.1720.7000.6821 3" in text
    assert "after 0 updates (CAM)10.00.0111.0" in text and "after 1 updates (make_rib_cam)20.00.02\u2013" in text
    assert f"score_th={ATTACK}51.20.0740.0" in text
    for left, other, heading in (("toy", "ablate", "Toy experiment"), ("ablate", "toy", "Ablations")):
        page = Page(page_of(args, {left: measured[left]}))
        ids = [attributes.get("id") for name, attributes in page.tags if name == "section"]
        assert left in ids and other not in ids and page.text.count(heading) == 2  # in the links too
    assert not {"Toy experiment", "Ablations"} & set(re.findall(r"<h2>([^<]+)</h2>", page_of(run)))


def test_figures_of_experiments_are_in_the_page_and_nothing_runs(tmp_path, monkeypatch):
    args, _ = arguments(tmp_path)
    for path in ("toy/curves.png", "ablate/pooling.png", f"{ATTACK.replace('/', '_')}.png"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        Image.new("RGB", (5, 3), (10, 20, 30)).save(tmp_path / path)
    attack = ATTACK.replace("/", "_")
    page = Page(page_of(args, apart(attack)))
    names = [name for name, _ in page.tags]
    assert names.count("script") == 1 and page.text.count(attack) >= 3
    figures = [attributes for name, attributes in page.tags if name == "img" and "class" not in attributes]
    assert [pixels(figure["src"]).shape for figure in figures] == [(3, 5, 4)] * 2  # those of toy/ and ablate/
    monkeypatch.setattr(experiments, "LARGEST", 10)
    page = Page(page_of(args, apart("x")))
    assert "toy/curves.png in the folder of the run shows this" in page.text
    assert not [1 for name, attributes in page.tags if name == "img" and "class" not in attributes]


def pixels(uri):
    return np.array(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGBA"))


def test_layers_draw_what_they_should():
    mask = np.zeros((40, 60), np.uint8)
    mask[:10], mask[-10:] = 3, 255
    drawn = pixels(pictures.mask_layer(mask, {3: (1, 2, 3)}))
    assert (drawn[:10] == (1, 2, 3, 255)).all() and (drawn[10:30, :, 3] == 0).all()
    hatched = drawn[-10:]
    white = (hatched == 255).all(-1)
    assert 0.2 < white.mean() < 0.5 and (hatched[~white] == (40, 40, 40, 130)).all()
    cams = np.zeros((2, 10, 15), np.float32)
    cams[1, 3, 4] = 1
    heat = pixels(pictures.heat_layer(cams, (40, 60)))
    assert np.unravel_index(heat[..., 3].argmax(), (10, 15)) == (3, 4) and heat[3, 4, 3] > 1.8 * heat[0, 0, 3]
    edge = pixels(pictures.edge_layer(np.array([[0, 255]], np.uint8)))
    assert edge[0, 0, :3].sum() == 0 and edge[0, 1].tolist() == [255, 236, 150, 255]
    masks = np.zeros((3, 40, 60), bool)
    masks[0, 5:15, 5:15] = masks[1, 5:15, 12:30] = masks[2, 30:] = True
    drawn = pixels(pictures.instance_layer(masks, np.array([0.9, 0.4, 0.0])))
    grown = drawn.shape[1] / 60
    surest, other, none = (drawn[round(y * grown), round(x * grown)] for y, x in ((10, 13), (10, 22), (35, 30)))
    assert surest[3] == other[3] == 255 and none[3] == 0 and tuple(surest) != tuple(other)
    assert (drawn == 255).all(-1).any()
    before, after, truth = (np.array([row], np.uint8) for row in ([0, 1, 1, 1], [0, 0, 2, 1], [0, 1, 2, 255]))
    orange, blue, clear = [230, 159, 0, 255], [86, 180, 233, 255], [0, 0, 0, 0]
    assert pixels(pictures.change_layer(before, after, truth))[0].tolist() == [clear, orange, blue, clear]
    assert pixels(pictures.change_layer(before, after, None))[0, 1].tolist() == [190, 190, 190, 255]


def simulate(colours, matrix):
    """CIELAB of sRGB colours as an eye sees them whose deficiency has this matrix in linear RGB."""
    import cv2

    share = np.array(colours, np.float64) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ np.array(matrix).T, 0, 1)
    seen = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return cv2.cvtColor(seen.astype(np.float32)[None], cv2.COLOR_RGB2LAB)[0]


# Machado, Oliveira and Fernandes 2009, severity 1: nothing, protanopia, deuteranopia, tritanopia.
EYES = {
    "none": np.eye(3),
    "red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


@pytest.mark.parametrize("eye", EYES)
def test_colours_can_be_told_apart(eye):
    style = (FOLDER / "page.css").read_text()
    found = re.findall(r"--(?:cam|rib|label|mask|seg): light-dark\(#(\w{6}), #(\w{6})\)", style)
    series = [[tuple(bytes.fromhex(pair[i])) for pair in found] for i in (0, 1)]
    assert len(found) == 5
    for colours in (pictures.COLOURS, *series):
        seen = simulate(colours, EYES[eye])
        apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + 1000 * np.eye(len(colours))
        assert apart.min() > 10, (eye, colours[apart.min(1).argmin()])


def test_classes_of_an_image_differ_in_colour():
    for classes in ([1, 8, 15], [2, 3, 9, 10, 16, 17, 23], [5]):
        assert len(set(pictures.colours_of(classes).values())) == len(classes)
    assert pictures.colours_of([4])[4] == pictures.colours_of([1, 4])[4]


def test_reference_numbers_stand_beside_their_dataset_only(run):
    assert reference("shapes", "rib") is None and reference("folder", "mask_rib") is None
    assert set(REFERENCES) == {"voc12", "coco14"}
    assert "paper" not in Page(page_of(run)).text

    class Voc(Odd):
        name = "voc12"

    text = Page(build(run, Voc(), metricsfile.metrics(run), Voc().names("train"))).text
    assert "56.5 (train) *" in text and "70.6 (train) *" in text and "not checked against the paper's tables" in text
    assert "66.3" not in text  # that of masks from CAM seeds


def test_segmentation_network_and_its_variants(run, tmp_path):
    seg = {"images": 4, "scored": 4, "miou": 0.613, "iou": {"background": 0.9}, "before_crf": {"miou": 0.602}}
    measured = {
        "train_seg": {"seconds": 9, "images": 12, "loss": {"rib": [2.0, 1.0], "truth": [2.0, 0.5]}},
        "eval_seg": {**seg, "comparison": {"rib": 0.613, "truth": 0.7}, "seconds": 2},
    }
    text = Page(page_of(run, measured)).text
    for words in ("segmentation network61.3", "before CRF60.2", "from truth70.0", "loss from truth, 0.5 at the end"):
        assert words in text
    table = stage_table("x", measured)
    assert re.search(r"segmentation network +61\.3 .* 4 +9\n", table) and re.search(r"before CRF +60\.2", table)


def test_confusions_of_many_classes_are_a_picture_and_a_list():
    counts = np.eye(81, dtype=int) * 90
    counts[3, 5], counts[7, 0] = 10, 60
    names = [f"c{i}" for i in range(81)]
    page = Page(confusion_table(counts, names, "x"))
    assert "The 1 largest confusions between classes" in page.text and "c3c510.010" in page.text
    (picture,) = [attributes["src"] for name, attributes in page.tags if name == "img"]
    assert pixels(picture).shape == (81, 81, 4)


def test_line_chart_has_round_ticks_and_every_point():
    chart = line_chart([Line("cam", "CAM", [0.0, 0.1, 0.2], [31.0, 52.0, float("nan")], 1)], "x", "y", "t", (0.1, "r"))
    assert re.findall(r">([\d.]+)</text>", chart) == "30 35 40 45 50 55 0 0.05 0.1 0.15 0.2".split()
    assert chart.count("<circle") == 2 and "CAM: 52 at 0.1" in chart and 'r="5"' in chart


@pytest.mark.parametrize("y", [[1e-12, 2e-12], [5e-324, 0.0], [1e14, 1e14 + 1], [3.0, 3.0], [0.0, 0.0], [-1e15, 1e15]])
def test_line_chart_of_values_that_hardly_differ_or_very_much(y):
    chart = line_chart([Line("cam", "CAM", [0.0, 1.0], y)], "x", "y", "t")
    assert chart.count("<circle") == 2 and "nan" not in chart and "inf" not in chart


def test_results_that_do_not_belong_together_are_told(tmp_path, monkeypatch):
    args = finished(tmp_path, steps="eval_sem_seg")
    assert "Mixed results" not in page_of(args)
    monkeypatch.setattr("misc.report.page.outdated", lambda args: ["sem_seg was made from seeds <gone>"])
    assert 'class="warning">Mixed results: sem_seg was made from seeds &lt;gone&gt;.' in page_of(args)
