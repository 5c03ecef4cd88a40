"""A finished run in a second: result files drawn from the truth, scored by the real steps."""

import importlib
from html.parser import HTMLParser

import numpy as np

from data import image_names, open_dataset
from data.base import Dataset
from data.files import save_json
from data.images import save_grey, save_mask, voc_palette
from data.results import save_cam, save_instances
from misc.report.build import build
from misc.run import outputs
from misc.run.arguments import parse
from misc.run.provenance import describe_call
from misc.run.runner import choose
from run_sample import STEPS

SIZE = ["--shapes_train", "12", "--shapes_val", "4", "--shapes_size", "32", "--limit", "12", "--num_workers", "0"]
EVERY = "eval_cam,eval_rib_cam,eval_sem_seg,eval_ins_seg"


def arguments(work_dir, *argv):
    """The parsed arguments of a command line on twelve tiny images."""
    return parse(STEPS, [*SIZE, "--work_dir", str(work_dir), *argv])


def finished(work_dir, *argv, steps=EVERY, seed=0):
    """Writes a run and scores it by `steps`; returns its arguments."""
    args, sources = arguments(work_dir, *argv, *(["--steps", steps] if steps else []))
    dataset = open_dataset(args)
    for i, name in enumerate(image_names(args, dataset, "infer")):
        write_image(args, dataset, name, np.random.default_rng([seed, i]))
    save_json(work_dir / "args.json", {**describe_call(args, sources, ["--steps", steps]), "earlier": []})
    if steps:
        outputs.record(args, "train_cam", {"seconds": 3.0, "images": 12, "loss": [0.7, 0.4, 0.3]})
        outputs.record(args, "make_rib_cam", {"seconds": 6.0, "images": 12, "of": 12, "RIB_steps": {"10": 12}})
        for step in choose(STEPS, args):
            values = importlib.import_module(step.module).run(args, dataset, **step.options)
            outputs.record(args, step.name, {"seconds": 1.5, **values})
    return args


def write_image(args, dataset: Dataset, name, draw):
    """CAMs, labels, boundary map, pseudo mask and instances of an image: the truth, somewhat spoilt."""
    truth, keys = dataset.mask(name), np.flatnonzero(dataset.label(name))
    right = np.stack([truth == key + 1 for key in keys]).astype(np.float32)
    for argument, strength in (("cam_out_dir", 0.3), ("cam_rib_out_dir", 0.9)):
        maps = right * strength * draw.random(right.shape, np.float32) * (draw.random(right.shape) > 0.1)
        save_cam(outputs.result_file(args, argument, name, ".npy"), keys, maps[:, ::4, ::4], maps)
    label, mask = truth.copy(), truth.copy()
    label[: draw.integers(4, 10)] = 255
    mask[:, : draw.integers(0, 20)] = 0
    for argument, drawn in (("ir_label_out_dir", label), ("sem_seg_out_dir", mask)):
        save_mask(outputs.result_file(args, argument, name, ".png"), drawn, voc_palette())
    save_grey(outputs.result_file(args, "edge_out_dir", name, ".png"), draw.random((8, 8)))
    detected = {"score": draw.random(len(keys)), "mask": right > 0, "class": keys}
    save_instances(outputs.result_file(args, "ins_seg_out_dir", name, ".npy"), detected)


class Page(HTMLParser):
    """What a page holds: its start tags, and the text of every element with `data-key`."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.shown, self.open = [], [], []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, name, attributes):
        self.tags.append((name, dict(attributes)))
        if "data-key" in self.tags[-1][1]:
            self.shown.append([self.tags[-1][1]["data-key"], ""])
            self.open.append(name)

    def handle_endtag(self, name):
        if self.open and self.open[-1] == name:
            self.open.pop()

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] not in ("style", "script"):
            self.text += data
        if self.open:
            self.shown[-1][1] += data

    def cards(self):
        return [attributes for _, attributes in self.tags if attributes.get("class") == "card"]


def page_of(args, measured=None):
    dataset = open_dataset(args)
    names = image_names(args, dataset, "infer")
    return build(args, dataset, outputs.metrics(args) if measured is None else measured, names)
