"""Damaged and hostile files, over every reader: a UserError or a sound value, soon, and no code of theirs is run."""

import argparse
import atexit
import contextlib
import io
import logging
import os
import pickle
import shutil
import signal
import sys
import tarfile
import tempfile
import warnings
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, features
from scipy.io import savemat

from coco14.dataset import Index
from coco14.prepare import paint, prepare, read_annotations
from data import camfile, insfile
from data.base import read_list, voc_palette
from data.download import unpack
from data.errors import UserError
from data.files import load_json, load_mask, save_json
from data.folder import Folder
from data.reading import image_size, read_image, read_mask
from misc.report.compare import compare
from misc.run import outputs
from misc.run.arguments import parse
from misc.run.trainloop import fit
from net import weights
from run_sample import STEPS
from step import ablate, report
from tests.coco_mini import make_coco
from tests.folder_mini import make_folder
from tests.report_mini import Page, finished
from tests.test_ablate import study
from tests.voc_devkit import make_devkit
from voc12.dataset import VOC12
from voc12.prepare import read_mat

EACH, A_FEW = 26, 3  # mutations of every reader's file, in the slow run and in every one
LONGEST_S = 20  # a read takes milliseconds
RNG = np.random.default_rng(0)


class Hang(BaseException):
    """A reader takes too long; not an Exception, so that no reader can swallow it."""


class Reader:
    """A file of one kind and how it is read: `file` is what gets damaged, `read` gives a value, `sound` judges it."""

    def __init__(self, file, read, sound):
        self.file, self.read, self.sound = Path(file), read, sound


def shapes(value):
    """Kind and shape of the arrays of a dict."""
    return {name: (array.dtype, array.shape) for name, array in value.items()}


def same(got, want):
    """For files with a checksum: nothing but the very content is accepted."""
    return got.dtype == want.dtype and np.array_equal(got, want)


def cam_file(folder):
    path = folder / "x.npy"
    camfile.save(path, np.arange(2), RNG.random((2, 6, 5)), RNG.random((2, 24, 20)))
    return Reader(path, lambda: shapes(camfile.load(path)), lambda got, want: got == want)


def published_cam_file(folder):
    path = folder / "x.npy"
    value = {"keys": torch.arange(2), "cam": torch.rand(2, 6, 5), "high_res": RNG.random((2, 24, 20), np.float32)}
    np.save(path, value, allow_pickle=True)
    return Reader(path, lambda: shapes(camfile.load(path)), lambda got, want: got == want)


def instance_file(folder):
    path = folder / "x.npy"
    insfile.save(path, {"score": RNG.random(3), "mask": RNG.random((3, 9, 8)) > 0.5, "class": np.arange(3)})
    return Reader(path, lambda: shapes(insfile.load(path)), lambda got, want: got == want)


def weights_file(folder):
    path = folder / "x.pth"
    torch.save(torch.nn.Linear(3, 2).state_dict(), path)
    model = torch.nn.Linear(3, 2)

    def read():
        weights.load(model, path)
        return np.concatenate([value.numpy().ravel() for value in model.state_dict().values()])

    return Reader(path, read, same)


def checkpoint(folder):
    path = folder / "x.checkpoint"
    settings = {"arguments": {"--a": (1, 2)}, "inputs": {}, "code": {}}

    def train(epochs):
        model = torch.nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        batches = [torch.ones(2, 3)]
        return fit(model, lambda m, x: m(x).square().sum(), optimizer, lambda _: batches, epochs, path, "t", settings)

    train(2)
    return Reader(path, lambda: train(2), lambda got, want: len(got) == len(want))


def mask_file(folder):
    path = folder / "x.png"
    png = Image.fromarray(RNG.integers(0, 4, (20, 24), dtype=np.uint8))
    png.putpalette(voc_palette().tobytes())
    png.save(path)
    return path


def truth_mask(folder):
    path = mask_file(folder)
    return Reader(path, lambda: read_mask(path, 20), same)


def own_mask(folder):
    path = mask_file(folder)
    return Reader(path, lambda: load_mask(path), same)


def photograph(ending, **options):
    def make(folder):
        path = folder / f"x.{ending}"
        Image.fromarray(RNG.integers(0, 255, (40, 36, 3), dtype=np.uint8)).save(path, **options)
        sound = lambda got, _: got.dtype == np.uint8 and got.ndim == 3 and got.shape[2] == 3  # noqa: E731
        return Reader(path, lambda: read_image(path, exif=True), sound)

    return make


def own_images(file):
    def make(folder):
        mini = make_folder(folder / "own")

        def read():
            dataset = Folder(mini.root)
            names = dataset.names("train")
            return names, dataset.labels(names)

        return Reader(mini.root / file, read, lambda got, _: got[1].shape[0] == len(got[0]) > 0)

    return make


def list_file(folder):
    path = folder / "list.txt"
    path.write_text("/JPEGImages/a.jpg /Masks/a.png\nb\n\nKäse\n", encoding="utf-8")
    return Reader(path, lambda: read_list(path), lambda got, _: all(isinstance(name, str) for name in got))


def annotation(folder):
    kit = make_devkit(folder, n=4)
    path = kit.folder / "Annotations" / f"{kit.names[0]}.xml"
    return Reader(path, lambda: VOC12(kit.root).label(kit.names[0]), lambda got, _: got.shape == (20,) and got.any())


def coco_json(folder):
    mini = make_coco(folder, 4, 1)
    path = mini.json("train")

    def read():
        images = read_annotations(path)
        return [paint(image.size, image.objects)[0].shape == image.size for image in images]

    return Reader(path, read, lambda got, _: all(got))


def coco_index(folder):
    mini = make_coco(folder, 4, 1)
    prepare(mini.root)
    path = next(mini.root.rglob("*.npz"))
    return Reader(path, lambda: np.concatenate([array.ravel() for array in Index.load(path)]), same)


def sbd(folder):
    path = folder / "x.mat"
    savemat(path, {"GTcls": {"Segmentation": RNG.integers(0, 20, (20, 24), dtype=np.uint8)}}, do_compression=True)
    return Reader(path, lambda: read_mat(path), lambda got, _: got.ndim == 2 and got.max() <= 20)


def config(folder):
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump({"RIB_iter": 3, "cam_scales": [1.0, 0.5], "overwrite": True, "seeds": "cam"}))
    read = lambda: parse(STEPS, ["--config", str(path)])[0]  # noqa: E731
    return Reader(path, read, lambda got, _: got.RIB_iter >= 1 and got.cam_scales[0] == 1.0)


def metrics(folder):
    args = argparse.Namespace(work_dir=str(folder))
    outputs.record(args, "make_rib_cam", {"seconds": 4.0, "images": 3, "of": 5, "RIB_steps": {"2": 1, "10": 2}})
    best = {"threshold": 0.1, "miou": 0.5}
    outputs.record(args, "eval_cam", {"seconds": 1.0, "images": 5, "best": best, "fixed": best, "sweep": {"0.1": 0.5}})
    path = folder / "metrics.json"

    def read():
        outputs.record(args, "make_rib_cam", {"seconds": 1.0, "images": 2, "of": 5, "RIB_steps": {"10": 2}})
        return outputs.metrics(args)

    return Reader(path, read, lambda got, _: isinstance(got["make_rib_cam"]["seconds"], float))


def arguments_file(folder):
    path = folder / "args.json"
    save_json(path, {"command": "python", "arguments": {"beta": 1.0}, "earlier": [{}]})
    return Reader(path, lambda: load_json(path), lambda got, _: isinstance(got, dict))


@cache
def finished_run():
    """A run of three images, scored, in a folder that lasts as long as this process."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return finished(Path(folder.name), "--limit", "3")


def copy_of_run(folder):
    """A copy of it: its arguments."""
    shutil.copytree(finished_run().work_dir, folder / "run")
    return argparse.Namespace(**{**vars(finished_run()), "work_dir": str(folder / "run")})


def left_out(work):
    """What work() warns that it leaves out, as an error; else None."""
    told = []
    logger, handler = logging.getLogger(), logging.Handler()
    handler.emit = lambda message: told.append(message.getMessage())
    logger.addHandler(handler)
    try:
        work()
    finally:
        logger.removeHandler(handler)
    return UserError(told[0]) if told else None


def reported(file):
    """The report from a run with this file damaged. It leaves out results, and says so; figures it needs."""

    def make(folder):
        args = copy_of_run(folder)
        path = next(Path(args.work_dir).glob(file))

        def read():
            with contextlib.redirect_stdout(io.StringIO()):
                told = left_out(lambda: report.run(args))
            return told or len(Page((Path(args.work_dir) / "report.html").read_text()).cards())

        return Reader(path, read, lambda got, want: 0 < got <= want == 3)  # scores choose the images

    return make


def compared(file):
    """Two runs compared, one with this file damaged."""

    def make(folder):
        args = copy_of_run(folder)
        args.compare, args.num_workers = (finished_run().work_dir, args.work_dir), 0
        path = next(Path(args.work_dir).glob(file))

        def read():
            with contextlib.redirect_stdout(io.StringIO()):
                return compare(args, folder).stat().st_size

        return Reader(path, read, lambda got, _: got > 0)

    return make


def ablations(folder):
    path = folder / "results.json"
    steps = study(argument=None, points=study()["points"][1:2])
    save_json(path, {"own": "k", "studies": {"pooling": study(), "steps": steps}})

    def read():
        with contextlib.redirect_stdout(io.StringIO()):
            return ablate._report(folder, "shapes", "k", {}, load_json(path))

    return Reader(path, read, lambda got, _: isinstance(got, dict))


def record(folder):
    path = folder / made_by.NAME
    now = {"step": "x", "arguments": {"--a": [1, 2]}, "inputs": {"--b": "c"}, "code": {"torch": "2"}}
    save_json(path, now)
    return Reader(path, lambda: str(made_by.differences(made_by.read(path), now)), lambda got, _: isinstance(got, str))


def archive(compression):
    def make(folder):
        path = folder / "x.zip"
        with zipfile.ZipFile(path, "w", compression) as file:
            for name in ("in/a.txt", "in/b.txt"):
                file.writestr(name, RNG.bytes(200) + bytes(200))
        return archived(folder, path)

    return make


def tar_archive(folder):
    path = folder / "x.tgz"
    with tarfile.open(path, "w:gz") as file:
        for name in ("in/a.txt", "in/b.txt"):
            data = RNG.bytes(200)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return archived(folder, path)


def archived(folder, path):
    def read():
        shutil.rmtree(folder / "root", ignore_errors=True)
        unpack(path, folder / "root", "out")
        files = [file for file in folder.rglob("*") if file.is_file() and file != path]
        return {str(file.relative_to(folder)): file.read_bytes() for file in files}

    def sound(got, want):  # zip and gzip have checksums of the content; names in a zip have none
        return all(name.startswith("root/out") for name in got) and set(got.values()) <= set(want.values())

    return Reader(path, read, sound)


READERS = {
    "CAM": cam_file, "CAM as published": published_cam_file, "instances": instance_file, "weights": weights_file,
    "checkpoint": checkpoint, "ground truth": truth_mask, "own mask": own_mask, "JPEG": photograph("jpg", quality=90),
    "PNG": photograph("png"), "WebP": photograph("webp"), "labels.csv": own_images("labels.csv"),
    "classes.txt": own_images("classes.txt"), "list": list_file, "XML": annotation, "COCO JSON": coco_json,
    "COCO index": coco_index, "SBD": sbd, "YAML": config, "metrics.json": metrics, "args.json": arguments_file,
    "record": record, "zip": archive(zipfile.ZIP_DEFLATED), "zip of LZMA": archive(zipfile.ZIP_LZMA),
    "zip of bzip2": archive(zipfile.ZIP_BZIP2), "tar": tar_archive,
    **{f"report: {file}": reported(file) for file in (
        "metrics.json", "per_image.json", "args.json", "cam/*.npy", "ins_seg/*.npy", "sem_seg/*.png", "edge/*.png",
    )},
    **{f"compare: {file}": compared(file) for file in ("metrics.json", "args.json", "sem_seg/*.png")},
    "ablate/results.json": ablations,
}  # fmt: skip


def mutated(data: bytes, draw: np.random.Generator) -> bytes:
    """The bytes with some bits turned, cut short, with a piece from elsewhere or of noise in them, or of zeros."""
    out = bytearray(data)
    at, length = int(draw.integers(len(out))), int(draw.integers(1, max(2, len(out) // 8)))
    kind = draw.choice(["bits", "bits", "cut", "splice", "noise", "zeros", "drop", "twice"])
    if kind == "bits":
        for position in draw.integers(len(out), size=int(draw.integers(1, 9))):
            out[position] ^= 1 << int(draw.integers(8))
    elif kind == "cut":
        del out[at:]
    elif kind == "splice":
        source = int(draw.integers(len(out)))
        out[at : at + length] = data[source : source + length]
    elif kind == "noise":
        out[at : at + length] = draw.bytes(length)
    elif kind == "zeros":
        out[at : at + length] = bytes(len(out[at : at + length]))
    elif kind == "drop":
        del out[at : at + length]
    else:
        out[at:at] = data[at : at + length]
    return bytes(out)


WATCHED = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn", "socket.connect")
_ran: list[str] | None = None  # what a reader did that none should, while it is watched


def _audit(event, _):
    if _ran is not None and event.startswith(WATCHED):
        _ran.append(event)


sys.addaudithook(_audit)


def guarded(reader):
    """What reading gives: the value, or the UserError. Anything else is the test's failure."""
    global _ran

    def late(*_):
        raise Hang(f"{reader.file} takes over {LONGEST_S} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LONGEST_S)
    _ran = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return reader.read()
    except UserError as error:
        return error
    finally:
        ran, _ran = _ran, None
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        assert not ran, ran


def damage(folder, kind, n):
    """Reads n mutations of a file: each is refused, or gives a sound value; how many are refused."""
    reader = READERS[kind](folder)
    whole = reader.file.read_bytes()
    wanted = guarded(reader)
    assert reader.sound(wanted, wanted)
    refused = 0
    for i in range(n):
        reader.file.write_bytes(mutated(whole, np.random.default_rng([sorted(READERS).index(kind), i])))
        got = guarded(reader)
        if isinstance(got, UserError):
            refused += 1
            assert str(got).strip() and "Traceback" not in str(got)
        else:
            assert reader.sound(got, wanted), f"mutation {i} of {kind} gives {got}"
    return refused


# Every mutation of a run's files makes a whole report.
MOST_KINDS = [pytest.param(kind, marks=pytest.mark.slow) if kind.startswith("report") else kind for kind in READERS]


@pytest.mark.parametrize("kind", MOST_KINDS)
def test_a_few_damaged_files(tmp_path, kind):
    damage(tmp_path, kind, A_FEW)


@pytest.mark.slow
def test_over_500_damaged_files(tmp_path, capsys):
    refused = {kind: damage(new_folder(tmp_path), kind, EACH) for kind in READERS}
    assert all(refused.values())  # something is noticed, by every reader
    tried = EACH * len(READERS)
    assert tried > 500
    with capsys.disabled():
        print(f"\n{tried} mutations over {len(READERS)} readers: {sum(refused.values())} refused, the others harmless")


def new_folder(folder):
    path = folder / str(len(list(folder.iterdir())))
    path.mkdir()
    return path


@pytest.mark.parametrize("kind", MOST_KINDS)
def test_files_that_are_empty_or_something_else(tmp_path, kind):
    reader = READERS[kind](tmp_path)
    wanted = guarded(reader)
    for content in (b"", b"\x00" * 4096, b"\xff\xfe" * 50, b"[" * 100_000, b'{"a": ' * 50_000, pickle.dumps({"a": 1})):
        reader.file.write_bytes(content)
        got = guarded(reader)
        if not isinstance(got, UserError):
            assert reader.sound(got, wanted), content[:20]


class Payload:
    """Unpickled by anything that is not careful, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("kind", ["CAM", "instances", "weights", "checkpoint"])
def test_code_is_not_run(tmp_path, kind):
    trace = tmp_path / "it_ran"
    reader = READERS[kind](tmp_path)
    for value in (Payload(trace), {"keys": Payload(trace), "mask": Payload(trace), "model": Payload(trace)}):
        if reader.file.suffix == ".npy":
            np.save(reader.file, np.array(value, dtype=object), allow_pickle=True)
            careless = lambda: np.load(reader.file, allow_pickle=True)  # noqa: E731
        else:
            torch.save(value, reader.file)
            careless = lambda: torch.load(reader.file, weights_only=False)  # noqa: E731
        assert isinstance(guarded(reader), UserError)
        assert not trace.exists()
        careless()  # it would have run
        assert trace.exists()
        trace.unlink()


def test_an_image_of_20_000_pixels_a_side_is_not_decoded(tmp_path):
    path = tmp_path / "x.png"
    Image.new("1", (20_000, 20_000)).save(path)
    with pytest.raises(UserError, match="the limit is 100 megapixels; scale the image down"):
        read_image(path)
    with pytest.raises(UserError, match="megapixels"):
        read_mask(path, 20)
    with pytest.raises(UserError, match="not a whole mask"):
        load_mask(path)
    Image.new("1", (12_000, 12_000)).save(path)
    with pytest.raises(UserError, match="12000 x 12000 pixels, over the limit of 100 megapixels"):
        read_image(path)


def test_a_cam_file_of_another_image(tmp_path):
    reader = cam_file(tmp_path)
    assert camfile.load(reader.file, (24, 20))["high_res"].shape == (2, 24, 20)
    with pytest.raises(
        UserError, match=r"x\.npy is not a whole CAM file: is of an image of \(24, 20\), wanted \(20, 24"
    ):
        camfile.load(reader.file, (20, 24))


@pytest.mark.parametrize("keys", [[0, 0], [-1, 2], [3, 300]])
def test_a_cam_file_of_no_classes(tmp_path, keys):
    camfile.save(tmp_path / "x.npy", np.array(keys), np.zeros((2, 6, 5)), np.zeros((2, 24, 20)))
    with pytest.raises(UserError, match="are not classes"):
        camfile.load(tmp_path / "x.npy")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_cam_file_of_no_numbers(tmp_path, value):
    camfile.save(tmp_path / "x.npy", np.arange(2), np.full((2, 6, 5), value), np.zeros((2, 24, 20)))
    with pytest.raises(UserError, match="not finite"):
        camfile.load(tmp_path / "x.npy")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "1", "I;16", "LA"])
def test_masks_of_another_kind(tmp_path, mode):
    Image.new(mode, (5, 4)).save(tmp_path / "x.png")
    with pytest.raises(UserError, match=f"its mode is {mode}, wanted"):
        load_mask(tmp_path / "x.png")


@pytest.mark.parametrize(
    "values", ["1", "[]", '{"seconds": "x"}', '{"seconds": [1]}', '{"RIB_steps": {"x": 1}}', '{"images": {"1": 2}}']
)
def test_metrics_of_another_kind(tmp_path, values):
    reader = metrics(tmp_path)
    reader.file.write_text(f'{{"make_rib_cam": {values}}}')
    assert isinstance(guarded(reader), UserError)


@pytest.mark.parametrize("name", ["../out.txt", "/tmp/out.txt", "a/../../out.txt", "C:\\out.txt", "..\\out.txt"])
def test_members_that_leave_the_folder(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr(name, "x")
    with pytest.raises(UserError, match="outside the folder"):
        unpack(tmp_path / "x.zip", tmp_path / "root", "out")
    assert not [path for path in tmp_path.rglob("out.txt")]


def test_words_that_grow(tmp_path):
    """A few lines of XML or YAML that stand for billions of words."""
    kit = make_devkit(tmp_path, n=4)
    entities = "".join(f'<!ENTITY e{i + 1} "{f"&e{i};" * 10}">' for i in range(12))
    path = kit.folder / "Annotations" / f"{kit.names[0]}.xml"
    path.write_text(f'<!DOCTYPE x [<!ENTITY e0 "cat">{entities}]><a><object><name>&e12;</name></object></a>')
    reader = Reader(path, lambda: VOC12(kit.root).label(kit.names[0]), None)
    assert isinstance(guarded(reader), UserError)
    grow = ["x:", "  - &a0 [x, x]", *(f"  - &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]" for i in range(12))]
    config = tmp_path / "c.yaml"
    reader = Reader(config, lambda: parse(STEPS, ["--config", str(config)]), None)
    for key in ("cam_scales", "seed", "3"):
        config.write_text("\n".join([grow[0].replace("x", key), *grow[1:]]))
        assert isinstance(guarded(reader), UserError)
    config.write_text(f"cam_scales: {'[' * 3000}{']' * 3000}")
    assert isinstance(guarded(reader), UserError)


@pytest.mark.parametrize("kind", ["EPS", "AVIF", "BMP", "GIF", "TIFF", "DDS", "ICO", "PPM"])
def test_only_the_formats_that_are_promised_are_read(tmp_path, kind):
    """Whatever a file is called, Pillow goes by its content; EPS is handed to another program."""
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow cannot write AVIF")
    path, mask = tmp_path / "x.jpg", tmp_path / "x.png"
    Image.new("RGB", (16, 16), (200, 3, 3)).save(path, format=kind)
    Image.new("L", (16, 16), 3).save(mask, format=kind if kind in ("BMP", "GIF", "TIFF", "PPM") else "JPEG")
    for read, wanted in (
        (lambda: read_image(path), "x.jpg cannot be read as an image: it is no JPEG or PNG or WEBP"),
        (lambda: image_size(path), "x.jpg cannot be read as an image"),
        (lambda: read_mask(mask, 20), "x.png cannot be read as an image: it is no PNG"),
        (lambda: load_mask(mask), "x.png is not a whole mask"),
    ):
        got = guarded(Reader(path, read, None))
        assert isinstance(got, UserError) and wanted in str(got)


@pytest.mark.parametrize("error", [RuntimeError("x"), AttributeError("x"), AssertionError("x")])
def test_whatever_a_damaged_image_raises_is_one_line_with_its_name(tmp_path, monkeypatch, error):
    reader = photograph("png")(tmp_path)

    def fail(*_):
        raise error

    monkeypatch.setattr(Image.Image, "convert", fail)
    assert "x.png cannot be read as an image (x)" in str(guarded(reader))
