"""A user's own images: what is read from the folder, what is said of mistakes in it, and the check of the data."""

import argparse
import pickle
import shutil
import unicodedata

import numpy as np
import pytest
from PIL import Image

import data
from data import image_names, open_dataset
from data.base import Dataset
from data.errors import DataError
from data.folder import Folder
from misc.run.beforehand import possible
from run_sample import STEPS
from tests.folder_mini import CLASSES, TURNED, make_folder
from tests.helpers import said
from tests.voc_devkit import make_devkit


@pytest.fixture
def mini(tmp_path):
    return make_folder(tmp_path / "own data")


def label_set(folder, name):
    return set(np.flatnonzero(folder.label(name)))


@pytest.mark.parametrize(("header", "ending"), [(True, True), (False, False)])
def test_classes_names_and_labels_are_those_of_the_files(mini, header, ending):
    mini.write_csv(header, ending)
    folder = Folder(mini.root)
    assert isinstance(folder, Dataset) and folder.name == "folder" and folder.classes == CLASSES and folder.has_masks
    assert folder.names("train") == folder.names("val") == folder.names("all") == sorted(mini.names)
    assert [label_set(folder, name) for name in mini.names] == [mini.labels[name] for name in mini.names]
    again = pickle.loads(pickle.dumps(folder)).labels(mini.names)  # for worker processes
    assert again.dtype == np.float32 and again.shape == (10, 3) and np.array_equal(again, folder.labels(mini.names))


def test_images_of_every_ending_and_name_are_read_upright(mini):
    folder = Folder(mini.root)
    for name in mini.names:
        image = folder.image(name)
        assert image.dtype == np.uint8 and image.shape == mini.images[name].shape, name
        difference = np.abs(image.astype(int) - mini.images[name])
        assert difference.mean() < (0.1 if mini.paths[name].endswith(("png", "webp")) else 10), name
    with Image.open(mini.root / "images" / mini.paths[TURNED]) as raw:
        assert raw.size[0] < raw.size[1] and folder.image(TURNED).shape[0] < folder.image(TURNED).shape[1]


def test_masks_palette_and_grey(mini):
    folder = Folder(mini.root)
    for name in mini.names:
        assert np.array_equal(folder.mask(name), mini.masks[name]) and folder.has_mask(name)
    (mini.root / "masks" / f"{mini.names[0]}.png").unlink()
    folder = Folder(mini.root)
    assert folder.mask(mini.names[0]) is None and not folder.has_mask(mini.names[0]) and folder.has_masks
    shutil.rmtree(mini.root / "masks")
    assert not Folder(mini.root).has_masks


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("images/plain.jpg,cat", "plain"),
        (" plain.jpg , cat ; ", "plain"),
        ('"plain",cat;cat', "plain"),
        ("sub\\deep er\\picture.png,cat", "sub/deep er/picture"),  # as Windows writes it
        (unicodedata.normalize("NFD", "Brücke é.jpg,cat"), "Brücke é"),  # as macOS does
    ],
)
def test_forms_of_a_line(mini, line, name):
    mini.csv.write_text(f"\ufeffBild-Name,Klassen\r\n\r\n{line}\r\n", encoding="utf-8")
    assert label_set(Folder(mini.root), name) == {0} and Folder(mini.root).names("train") == [name]


def test_without_classes_txt_they_come_from_the_labels_by_the_alphabet(tmp_path):
    mini = make_folder(tmp_path, classes=False)
    folder = Folder(mini.root)
    assert folder.classes == ("Käse", "cat", "hot dog")
    assert any("no classes.txt" in note for note in folder.notes)


def test_splits(mini):
    splits = mini.root / "splits"
    splits.mkdir()
    (splits / "val.txt").write_text(f"{mini.paths['LOUD']}\nsub/plain\n\n", encoding="utf-8")
    folder = Folder(mini.root)
    assert folder.names("val") == ["LOUD", "sub/plain"]
    assert folder.names("train") == sorted(set(mini.names) - {"LOUD", "sub/plain"})
    (splits / "train.txt").write_text("日本語 😀.png\ntwo words.jpeg\nv1.2 (final).tar.png", encoding="utf-8")
    wanted = ["日本語 😀", "two words", "v1.2 (final).tar"]
    assert folder.names("train") == folder.names_of(str(splits / "train.txt")) == wanted
    with pytest.raises(DataError, match=r"splits/test\.txt does not exist; splits are all, train, val"):
        folder.names("test")
    (splits / "train.txt").unlink()
    (splits / "val.txt").write_text("".join(f"{name}\n" for name in mini.names), encoding="utf-8")
    with pytest.raises(DataError, match=r"no labelled image is left for split train: .*val\.txt has them all"):
        Folder(mini.root).names("train")


def test_images_without_a_line_are_left_out(mini):
    mini.write_csv(names=mini.names[:7])
    folder = Folder(mini.root)
    assert folder.names("train") == sorted(mini.names[:7])
    assert any("3 images have no line in labels.csv and are not used" in note for note in folder.notes)
    split("plain\nturned.jpg\n")(mini)
    args = argparse.Namespace(train_list="train", limit=None)
    for read in (lambda: folder.label("turned"), lambda: image_names(args, Folder(mini.root), "train")):
        with pytest.raises(DataError, match=r"'turned' has no line in .*labels\.csv"):
            read()


# mistakes


def write(name, text):
    return lambda mini: (mini.root / name).write_text(text, encoding="utf-8")


def add_line(line):
    return lambda mini: mini.csv.write_text(mini.csv.read_text() + line, encoding="utf-8")


def split(text):
    def damage(mini):
        (mini.root / "splits").mkdir()
        (mini.root / "splits/train.txt").write_text(text, encoding="utf-8")

    return damage


BAD = [
    (lambda m: shutil.rmtree(m.root / "images"), r"has no images; wanted"),
    (lambda m: m.csv.write_bytes(b"plain.jpg,K\xe4se\n"), r"labels\.csv is not UTF-8 text .*save it as UTF-8"),
    (write("labels.csv", "name,classes\n"), r"labels\.csv names no image; wanted .*name,class1;class2"),
    (add_line("nowhere.jpg,cat\n"), r"labels\.csv line 12: 'nowhere\.jpg' is not in .*images \(with ending"),
    (write("classes.txt", "cat\ncat\nKäse\nhot dog\n"), r"classes\.txt line 2: class 'cat' is also in line 1"),
    (write("classes.txt", "cat\n\nKäse\nhot dog\n"), r"classes\.txt line 2 is empty; line k is the class with"),
    (
        lambda m: shutil.copy(m.root / "images/plain.jpg", m.root / "images/plain.png"),
        r"has 'plain\.jpg' and 'plain\.png', both 'plain'; rename one",
    ),
    (split("plain\nnowhere.jpg\n"), r"splits/train\.txt line 2: 'nowhere\.jpg' is not in .*images"),
    (split("plain\n\nturned\nplain.jpg\n"), r"splits/train\.txt line 4: 'plain' is also in line 1"),
    (split("plain\n" + "\n".join(f"x{i}" for i in range(9))), r"line 6: .*; and 4 more: --check_data lists them"),
]


@pytest.mark.parametrize(("damage", "message"), BAD)
def test_mistakes_name_file_and_line(mini, damage, message):
    damage(mini)
    with pytest.raises(DataError, match=message) as error:
        Folder(mini.root).names("train")
    assert str(mini.root) in str(error.value)


def test_masks_that_do_not_fit(mini):
    path, mask = mini.root / "masks" / "plain.png", mini.masks["plain"].copy()
    mask[5, 5] = 4
    for content, message in (
        (mask, r"plain\.png holds the value 4; wanted .*1\.\.3 classes"),
        (mask[1:], r"plain\.png is 76 x 59, its image is 76 x 60"),
    ):
        Image.fromarray(content).save(path)
        with pytest.raises(DataError, match=message):
            Folder(mini.root).mask("plain")


def test_roots_that_are_none(tmp_path):
    with pytest.raises(DataError, match="needs --data_root DIR, a folder with images/"):
        data.open_dataset(argparse.Namespace(dataset="folder", data_root=None))
    with pytest.raises(DataError, match="nowhere is not a folder"):
        Folder(tmp_path / "nowhere")


# --check_data


def check(mini, *argv, dataset="folder", code=0):
    return said("--dataset", dataset, "--data_root", mini.root, "--check_data", "--num_workers", "0", *argv, code=code)


def number(out, title):
    line = next(line for line in out.splitlines() if line.startswith(title))
    return int(line[len(title) :].split()[0].replace(",", ""))


def test_check_of_a_folder_where_all_is_well(mini, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    out = check(mini, "--num_workers", "2")
    assert out.endswith("nothing is wrong, 3 warnings above\n")
    counts = {"images": 10, "classes": 3, "without any class": 1, "--train_list": 10, "--val_list": 10}
    counts |= dict.fromkeys(("missing", "unreadable", "unlabelled", "bad masks", "without mask"), 0)
    assert {title: number(out, title) for title in counts} == counts
    assert "64 to 76 pixels wide, 52 to 60 high" in out
    for c, name in enumerate(CLASSES):
        n = sum(c in found for found in mini.labels.values())
        assert f"{c + 1:>10}  {n:>9}  {name}" in out.splitlines()
    assert not (tmp_path / "result").exists()


def test_check_finds_everything_at_once(mini):
    mini.write_csv(names=mini.names[:8])
    with open(mini.csv, "a", encoding="utf-8") as file:
        file.write("gone.jpg,cat\nplain,cat\nv1.2 (final).tar,dgo\n")
    (mini.root / "images/LOUD.JPG").write_bytes(b"no image")
    (mini.root / "masks/plain.png").unlink()
    Image.fromarray(np.full((60, 76), 9, np.uint8)).save(mini.root / "masks/sub/plain.png")
    split("two words\nplain\nnot there\nturned\n")(mini)
    (mini.root / "splits/val.txt").write_text("LOUD\nplain\nplain\n")
    out = check(mini, code=2)
    counts = {"images": 10, "missing": 2, "unreadable": 1, "unlabelled": 1, "bad masks": 1, "without mask": 1}
    assert {title: number(out, title) for title in counts} == counts
    problems = [line for line in out.splitlines() if line.startswith("problem: ")]
    wanted = [
        "labels.csv line 10: 'gone.jpg' is not in", "labels.csv line 11: image 'plain' is also in line 2",
        "labels.csv line 12: class 'dgo' is not in", "LOUD.JPG cannot be read as an image",
        "sub/plain.png holds the value 9", "train.txt line 3: 'not there' is not in",
        "val.txt line 3: 'plain' is also in line 2", "image 'turned' has no line in",
    ]  # fmt: skip
    for text in wanted:
        assert sum(text in line for line in problems) == 1, text
    assert len(problems) == len(wanted) and f"\n{len(wanted)} problems to fix, " in out


def test_check_of_an_own_folder_without_masks_and_of_the_other_datasets(tmp_path):
    mini = make_folder(tmp_path / "own", masks=False, classes=False)
    mini.write_csv(names=mini.names[:8])
    out = check(mini)
    assert number(out, "unlabelled") == 2 and number(out, "without mask") == 10
    assert "note: 2 images have no line in labels.csv and are not used" in out
    out = said("--check_data", "--shapes_train", "8", "--shapes_val", "3", "--num_workers", "0")
    assert number(out, "images") == 11 and number(out, "classes") == 6
    kit = make_devkit(tmp_path / "voc")
    check(kit, dataset="voc12")
    (kit.folder / "JPEGImages" / f"{kit.val[0]}.jpg").unlink()
    (kit.folder / "Annotations" / f"{kit.train[0]}.xml").unlink()
    out = check(kit, dataset="voc12", code=2)
    assert number(out, "missing") == 1 and number(out, "unlabelled") == 1


# a dataset in a file of its own


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("PRESET = {}\n", "offers no open_dataset; see docs/adding_a_dataset.md"),
        ("x = 1 +\n", "cannot be loaded: SyntaxError"),
        ("PRESET = {'RIB_itre': (1, 'x')}\ndef open_dataset(args): pass\n", "has RIB_itre; there are train_list"),
        (None, "does not exist; wanted a Python file, or one of shapes"),
        ("PRESET = {'RIB_iter': (3, 'tried')}\ndef open_dataset(args): pass\n", None),
    ],
)
def test_a_file_offers_a_dataset_or_one_line_says_why_not(tmp_path, text, message):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    told = said("--dataset", path, "--dry_run", code=2 if message else 0)
    assert (message or f"dataset {path}, results in result/mine") in told and (not message or told.count("\n") == 1)


def test_masks_for_other_images_than_those_to_be_scored_leave_scoring_out(mini, caplog):
    for name in mini.names[1:]:
        (mini.root / "masks" / f"{name}.png").unlink(missing_ok=True)
    split(f"{mini.names[1]}\n")(mini)
    (mini.root / "splits" / "val.txt").write_text(f"{mini.names[0]}\n", encoding="utf-8")
    args = argparse.Namespace(
        dataset="folder", data_root=str(mini.root), eval_list="train", limit=None, seg_init="imagenet"
    )
    left = [step.name for step in possible(args, open_dataset(args), STEPS)]
    assert "make_rib_cam" in left and not {"eval_cam", "eval_rib_cam", "eval_sem_seg"} & set(left)
    assert "no masks for --eval_list train: left out eval_cam" in caplog.text
    args.eval_list = "val"
    assert [step.name for step in possible(args, open_dataset(args), STEPS)] == [step.name for step in STEPS]
