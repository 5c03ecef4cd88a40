"""A user's own images: what is read from the folder, what is said of mistakes in it, and the check of the data."""

import argparse
import pickle
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data
from data import open_dataset
from data.base import Dataset
from data.errors import DataError
from data.folder import Folder
from misc.run.runner import main
from run_sample import STEPS
from tests.folder_mini import CLASSES, TURNED, make_folder


@pytest.fixture
def mini(tmp_path):
    return make_folder(tmp_path / "own data")


def label_set(folder, name):
    return set(np.flatnonzero(folder.label(name)))


def test_is_a_dataset_with_the_classes_of_the_file(mini):
    folder = Folder(mini.root)
    assert isinstance(folder, Dataset) and folder.name == "folder" and folder.classes == CLASSES and folder.has_masks
    assert folder.names("train") == folder.names("val") == folder.names("all") == sorted(mini.names)


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


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("ending", [True, False])
def test_labels_with_and_without_header_and_ending(mini, header, ending):
    mini.write_csv(header, ending)
    folder = Folder(mini.root)
    for name in mini.names:
        assert label_set(folder, name) == mini.labels[name] and folder.label(name).dtype == np.float32
    assert not folder.label(mini.names[1]).any()
    assert folder.labels(mini.names).shape == (10, 3)


@pytest.mark.parametrize(
    "line", ["images/plain.jpg,cat", "./plain.jpg,cat", " plain.jpg , cat ; ", '"plain",cat;cat', "plain.jpg,cat,,,"]
)
def test_forms_of_a_line(mini, line):
    mini.csv.write_text(f"\ufeffFile-Name,labels\r\n\r\n{line}\r\n", encoding="utf-8")
    assert label_set(Folder(mini.root), "plain") == {0} and Folder(mini.root).names("train") == ["plain"]


def test_any_header_is_one_but_a_row_with_a_wrong_name_is_not(mini):
    (mini.root / "classes.txt").unlink()
    mini.csv.write_text("Bild,Klassen\nplain,cat\nturned,hot dog\n")
    assert Folder(mini.root).names("train") == ["plain", "turned"]
    for row in ("plane,cat", "plane,"):
        mini.csv.write_text(f"{row}\nplain,cat\nturned,hot dog\n")
        with pytest.raises(DataError, match=r"labels\.csv line 1: 'plane' is not in"):
            Folder(mini.root)


def test_paths_of_windows_and_decomposed_text(mini):
    decomposed = unicodedata.normalize("NFD", "Brücke é.jpg,Käse")
    mini.csv.write_text(f"sub\\deep er\\picture.png,cat\n{decomposed}\n", encoding="utf-8")
    folder = Folder(mini.root)
    assert label_set(folder, "sub/deep er/picture") == {0} and label_set(folder, "Brücke é") == {1}


def test_a_picture_called_like_a_header_is_a_picture(mini):
    shutil.copy(mini.root / "images/plain.jpg", mini.root / "images/image.jpg")
    mini.csv.write_text("image,cat\nplain,hot dog\n")
    assert Folder(mini.root).names("train") == ["image", "plain"]


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
    odd = ["日本語 😀.png", "a, b; 'c' \"d\"", "two words.jpeg", "v1.2 (final).tar.png"]
    (splits / "train.txt").write_text("\n".join(odd), encoding="utf-8")
    wanted = ["日本語 😀", "a, b; 'c' \"d\"", "two words", "v1.2 (final).tar"]
    assert folder.names("train") == folder.names_of(str(splits / "train.txt")) == wanted
    (splits / "val.txt").unlink()
    assert folder.names("val") == wanted
    with pytest.raises(DataError, match=r"splits/test\.txt does not exist; splits are all, train, val"):
        folder.names("test")


def test_linked_folders_are_followed(mini):
    elsewhere = mini.root.parent / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(mini.root / "images/plain.jpg", elsewhere)
    (mini.root / "images" / "linked").symlink_to(elsewhere, target_is_directory=True)
    mini.csv.write_text("linked/plain,cat\nplain,hot dog\n")
    assert Folder(mini.root).names("train") == ["linked/plain", "plain"]


def test_images_without_a_line_are_left_out(mini):
    mini.write_csv(names=mini.names[:7])
    folder = Folder(mini.root)
    assert folder.names("train") == sorted(mini.names[:7])
    assert any("3 images have no line in labels.csv and are not used" in note for note in folder.notes)
    with pytest.raises(DataError, match=r"'turned' has no line in .*labels\.csv"):
        folder.label("turned")


def test_survives_pickling_for_worker_processes(mini):
    folder = Folder(mini.root)
    again = pickle.loads(pickle.dumps(folder))
    assert np.array_equal(again.labels(mini.names), folder.labels(mini.names))


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


def second(path, of="plain.jpg", folder="images"):
    return lambda mini: shutil.copy(mini.root / folder / of, mini.root / folder / path)


BAD = [
    (lambda m: m.csv.unlink(), r"own data has no labels\.csv; wanted images in images/"),
    (lambda m: shutil.rmtree(m.root / "images"), r"has no images; wanted"),
    (lambda m: [p.unlink() for p in (m.root / "images").rglob("*.*")], r"images holds no image; wanted \.jpg"),
    (lambda m: m.csv.write_bytes(b"plain.jpg,K\xe4se\n"), r"labels\.csv is not UTF-8 text .*save it as UTF-8"),
    (write("labels.csv", "name,classes\n"), r"labels\.csv names no image; wanted .*name,class1;class2"),
    (lambda m: [write("labels.csv", "plain,\n")(m), (m.root / "classes.txt").unlink()], r"labels\.csv names no class;"),
    (add_line("nowhere.jpg,cat\n"), r"labels\.csv line 12: 'nowhere\.jpg' is not in .*images \(with ending"),
    (write("labels.csv", "nowhere,cat\nplain,cat\n"), r"labels\.csv line 1: 'nowhere' is not in .*images"),
    (write("labels.csv", "plain.png,cat\n"), r"labels\.csv line 1: 'plain\.png' is not in"),
    (write("labels.csv", "../images/plain.jpg,cat\n"), r"labels\.csv line 1: '\.\./images/plain\.jpg' is not in"),
    (add_line("plain,dgo\n"), r"labels\.csv line 12: image 'plain' is also in line 2"),
    (write("labels.csv", "name,label\nplain,cat;dgo\n"), r"labels\.csv line 2: class 'dgo' is not in .*classes\.txt"),
    (write("labels.csv", '"plain\n",cat\nplain,cat\nturned,x'), r"line 3: image 'plain' is also in line 2; .*line 4"),
    (write("labels.csv", "plain,Background\n"), r"labels\.csv line 1: background is no class"),
    (write("labels.csv", "plain;cat\n"), r"labels\.csv line 1 has 1 columns, wanted 2: name,class1;class2"),
    (write("labels.csv", "plain,cat,dog\n"), r"labels\.csv line 1 has 3 columns, wanted 2: .* in double quotes"),
    (write("labels.csv", 'plain,"cat\n'), r"labels\.csv line \d: unexpected end of data"),
    (write("classes.txt", "cat\ncat\nKäse\nhot dog\n"), r"classes\.txt line 2: class 'cat' is also in line 1"),
    (write("classes.txt", "Background\ncat\nKäse\nhot dog\n"), r"classes\.txt line 1: background is no class, it is"),
    (write("classes.txt", "cat\n\nKäse\nhot dog\n"), r"classes\.txt line 2 is empty; line k is the class with"),
    (write("classes.txt", "\n"), r"classes\.txt names no class"),
    (second("plain.png"), r"has 'plain\.jpg' and 'plain\.png', both 'plain'; rename one"),
    (second("plain.JPG"), r"has 'plain\.JPG' and 'plain\.jpg', both 'plain'"),
    (second("plain.gif", "plain.png", "masks"), r"masks has 'plain\.gif' and 'plain\.png', both"),
    (split("plain\nnowhere.jpg\n"), r"splits/train\.txt line 2: 'nowhere\.jpg' is not in .*images"),
    (split("plain\n\nturned\nplain.jpg\n"), r"splits/train\.txt line 4: 'plain' is also in line 1"),
    (split("\n\n"), r"splits/train\.txt names no image"),
    (split("plain\n" + "\n".join(f"x{i}" for i in range(9))), r"line 6: .*; and 4 more: --check_data lists them"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), BAD)
def test_mistakes_name_file_and_line(mini, damage, message):
    damage(mini)
    with pytest.raises(DataError, match=message) as error:
        Folder(mini.root).names("train")
    assert str(mini.root) in str(error.value)


def test_a_split_with_an_image_that_has_no_label(mini):
    mini.write_csv(names=mini.names[:7])
    split("plain\nturned.jpg\n")(mini)
    with pytest.raises(DataError, match=r"train\.txt line 2: 'turned' has no line in .*labels\.csv"):
        Folder(mini.root).names("train")
    shutil.rmtree(mini.root / "splits")
    (mini.root / "splits").mkdir()
    (mini.root / "splits/val.txt").write_text("".join(f"{name}\n" for name in mini.names[:7]))
    with pytest.raises(DataError, match=r"no labelled image is left for split train: .*val\.txt has them all"):
        Folder(mini.root).names("train")


def test_masks_that_do_not_fit(mini):
    path = mini.root / "masks" / "plain.png"
    mask = mini.masks["plain"].copy()
    mask[5, 5] = 4
    Image.fromarray(mask).save(path)
    with pytest.raises(DataError, match=r"plain\.png holds the value 4; wanted .*1\.\.3 classes"):
        Folder(mini.root).mask("plain")
    Image.fromarray(mask[1:]).save(path)
    with pytest.raises(DataError, match=r"plain\.png is 76 x 59, its image is 76 x 60"):
        Folder(mini.root).mask("plain")
    path.unlink()
    Image.fromarray(mini.images["plain"]).save(mini.root / "masks" / "plain.jpg")
    with pytest.raises(DataError, match=r"masks/plain\.jpg cannot be read as an image .*wanted PNG"):
        Folder(mini.root).mask("plain")


def test_roots_that_are_none(tmp_path):
    with pytest.raises(DataError, match="needs --data_root DIR, a folder with images/"):
        data.open_dataset(argparse.Namespace(dataset="folder", data_root=None))
    with pytest.raises(DataError, match="nowhere is not a folder"):
        Folder(tmp_path / "nowhere")


# --check_data


def check(mini, capsys, *argv, dataset="folder"):
    code = main(STEPS, ["--dataset", dataset, "--data_root", str(mini.root), "--check_data", *argv])
    out, err = capsys.readouterr()
    return code, out, err


def number(out, title):
    line = next(line for line in out.splitlines() if line.startswith(title))
    return int(line[len(title) :].split()[0].replace(",", ""))


def test_check_of_a_folder_where_all_is_well(mini, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, err = check(mini, capsys, "--num_workers", "2")
    assert code == 0 and out.endswith("nothing is wrong\n") and err == ""
    counts = {
        "images": 10,
        "classes": 3,
        "without any class": 1,
        "without mask": 0,
        "--train_list": 10,
        "--val_list": 10,
    }
    assert {title: number(out, title) for title in counts} == counts
    for title in ("missing", "unreadable", "unlabelled", "bad masks"):
        assert number(out, title) == 0
    assert "64 to 76 pixels wide, 52 to 60 high" in out
    for c, name in enumerate(CLASSES):
        n = sum(c in found for found in mini.labels.values())
        assert f"{c + 1:>10}  {n:>9}  {name}" in out.splitlines()
    assert not (tmp_path / "result").exists()


def test_check_finds_everything_at_once(mini, capsys):
    mini.write_csv(names=mini.names[:8])
    with open(mini.csv, "a", encoding="utf-8") as file:
        file.write("gone.jpg,cat\nplain,cat\nv1.2 (final).tar,dgo\n")
    (mini.root / "images/LOUD.JPG").write_bytes(b"no image")
    (mini.root / "masks/plain.png").unlink()
    Image.fromarray(np.full((60, 76), 9, np.uint8)).save(mini.root / "masks/sub/plain.png")
    split("two words\nplain\nnot there\n")(mini)
    (mini.root / "splits/val.txt").write_text("turned\nplain\nplain\n")
    code, out, _ = check(mini, capsys, "--num_workers", "0")
    assert code == 2
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
    assert len(problems) == len(wanted) and out.endswith(f"{len(wanted)} problems to fix\n")


def test_check_without_masks_and_with_unlabelled_images(tmp_path, capsys):
    mini = make_folder(tmp_path, masks=False, classes=False)
    mini.write_csv(names=mini.names[:8])
    code, out, _ = check(mini, capsys)
    assert code == 0 and number(out, "unlabelled") == 2 and number(out, "without mask") == 10
    assert "note: 2 images have no line in labels.csv and are not used" in out


def test_check_of_what_cannot_be_opened(mini, capsys):
    mini.csv.unlink()
    code, out, err = check(mini, capsys)
    assert code == 2 and out == "" and "has no labels.csv" in err and err.count("\n") == 1


def test_check_of_the_other_datasets(tmp_path, capsys):
    code = main(STEPS, ["--check_data", "--shapes_train", "8", "--shapes_val", "3", "--num_workers", "0"])
    out = capsys.readouterr().out
    assert code == 0 and number(out, "images") == 11 and number(out, "classes") == 6
    from tests.voc_devkit import make_devkit

    kit = make_devkit(tmp_path)
    assert check(kit, capsys, "--num_workers", "0", dataset="voc12")[0] == 0
    (kit.folder / "JPEGImages" / f"{kit.val[0]}.jpg").unlink()
    (kit.folder / "Annotations" / f"{kit.train[0]}.xml").unlink()
    code, out, _ = check(kit, capsys, "--num_workers", "0", dataset="voc12")
    assert code == 2 and number(out, "missing") == 1 and number(out, "unlabelled") == 1


# a dataset in a file of its own

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("PRESET = {}\n", "offers no open_dataset; see docs/adding_a_dataset.md"),
        ("x = 1 +\n", "cannot be loaded: SyntaxError"),
        ("import no_such_package_at_all\n", "cannot be loaded: ModuleNotFoundError: No module named"),
        ("PRESET = {'RIB_itre': (1, 'x')}\ndef open_dataset(args): pass\n", "has RIB_itre; there are train_list"),
        (None, "does not exist; wanted a Python file, or one of shapes"),
    ],
)
def test_files_that_offer_no_dataset(tmp_path, capsys, text, message):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    assert main(STEPS, ["--dataset", str(path), "--dry_run"]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_results_of_a_dataset_file_lie_under_its_name(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text("PRESET = {'RIB_iter': (3, 'tried')}\ndef open_dataset(args): pass\n")
    assert main(STEPS, ["--dataset", str(path), "--dry_run"]) == 0
    assert f"dataset {path}, results in result/mine" in capsys.readouterr().out


def test_masks_for_other_images_than_those_to_be_scored_leave_scoring_out(tmp_path, caplog):
    from misc.run.runner import _possible

    for name in ("a", "b"):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "labels.csv").write_text("a,cat\nb,cat\n")
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.ones((8, 9), np.uint8)).save(tmp_path / "masks" / "b.png")
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "train.txt").write_text("a\n")
    (tmp_path / "splits" / "val.txt").write_text("b\n")
    args = argparse.Namespace(dataset="folder", data_root=str(tmp_path), eval_list="train", limit=None)
    left = [step.name for step in _possible(args, open_dataset(args), STEPS)]
    assert "make_rib_cam" in left and not {"eval_cam", "eval_rib_cam", "eval_sem_seg"} & set(left)
    assert "no masks for --eval_list train: left out eval_cam" in caplog.text
    args.eval_list = "val"
    assert [step.name for step in _possible(args, open_dataset(args), STEPS)] == [step.name for step in STEPS]
