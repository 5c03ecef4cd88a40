"""Labels, lists and masks made out of a tiny COCO 2014, and what is said when its JSON files are damaged."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

import coco14.prepare
from coco14 import CATEGORIES, COCO14
from coco14.dataset import N_IMAGES
from coco14.prepare import main, prepare
from data.errors import DataError
from data.images import voc_palette
from tests.coco_mini import decode, make_coco

MASK_VALUE = {category: i + 1 for i, category in enumerate(sorted(CATEGORIES))}


@pytest.fixture
def mini(tmp_path):
    return make_coco(tmp_path)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def painted(mini, name):
    """The mask of an image, painted with pycocotools' own decoding: the smaller region on top, crowds 255."""
    mask = np.zeros(mini.sizes[name], np.uint8)
    regions = [(decode(annotation, mini.sizes[name]), annotation) for annotation in mini.of(name)]
    for region, annotation in sorted(regions, key=lambda pair: -pair[0].sum()):
        mask[region] = 255 if annotation["iscrowd"] else MASK_VALUE[annotation["category_id"]]
    return mask


def test_masks_are_those_of_pycocotools(mini):
    done = prepare(mini.root)
    assert done.n_made == len(mini.all_names) == 12
    for name in mini.all_names:
        with Image.open(mini.root / "coco14/masks" / f"{name}.png") as png:
            assert png.mode == "P" and png.getpalette()[:60] == voc_palette()[:20].ravel().tolist()
            np.testing.assert_array_equal(np.array(png), painted(mini, name))
    assert not painted(mini, mini.empty).any()
    values = np.unique(np.concatenate([painted(mini, name).ravel() for name in mini.all_names]))
    assert 255 in values and 80 in values  # crowds, and the class behind all the gaps
    forms = [a["segmentation"] for annotations in mini.annotations.values() for a in annotations]
    kinds = {list if isinstance(form, list) else type(form["counts"]).__name__ for form in forms}
    assert kinds == {list, "str", "list"}  # polygons and both forms of run lengths were there
    # A crowd lies upon what is larger and below what is smaller.
    mask = COCO14(mini.root).mask(mini.crowded)
    large, _, small = mini.of(mini.crowded)
    assert mask[3, mask.shape[1] // 2] == MASK_VALUE[large["category_id"]]
    assert mask[30, 30] == 255 and mask[18, 18] == MASK_VALUE[small["category_id"]]


def test_labels_and_counts_are_those_of_the_json(mini):
    done = prepare(mini.root)
    coco = COCO14(mini.root)
    assert done.n_images == {"train": 8, "val": 4} and done.n_empty["train"] == 1
    for split in ("train", "val"):
        official = COCO(str(mini.json(split)))
        assert coco.names(split) == [f"{i:012d}" for i in sorted(official.getImgIds())] == mini.names[split]
        assert (mini.root / "coco14" / f"{split}.txt").read_text().split() == mini.names[split]
        counts = coco.labels(mini.names[split]).sum(0)
        for i, category in enumerate(sorted(official.getCatIds())):
            assert counts[i] == len(official.getImgIds(catIds=[category]))  # crowds count too
    assert not coco.label(mini.empty).any()


def test_objects_are_the_instances(mini):
    prepare(mini.root)
    coco = COCO14(mini.root)
    for name in mini.all_names:
        instances, values = coco.instances(name)
        mask = coco.mask(name)
        assert (np.concatenate([[0], values])[instances] == np.where(mask == 255, 0, mask)).all()
        visible = [region for region in mini.of(name) if not region["iscrowd"]]
        assert len(values) <= len(visible)
    _, values = coco.instances(mini.crowded)
    assert sorted(values) == sorted(MASK_VALUE[mini.of(mini.crowded)[i]["category_id"]] for i in (0, 2))


def test_an_interrupted_run_is_not_taken_for_a_finished_one_and_goes_on(mini, tmp_path, monkeypatch):
    other = make_coco(tmp_path / "other")
    prepare(other.root, num_workers=2)
    wanted = files(other.root / "coco14")

    def interrupted(path, *rest, save=coco14.prepare.save_mask):
        if path.name == f"{mini.all_names[7]}.png":
            raise KeyboardInterrupt
        save(path, *rest)

    monkeypatch.setattr(coco14.prepare, "save_mask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(mini.root)
    with pytest.raises(DataError, match=r"index\.npz does not exist.*python -m coco14\.prepare"):
        COCO14(mini.root)
    monkeypatch.undo()
    (mini.root / "coco14/masks/.17.0123456789abcdef.tmp").write_bytes(b"")  # of a killed run
    assert prepare(mini.root).n_made == 5
    assert files(mini.root / "coco14") == wanted


def test_whole_masks_are_kept_and_damaged_ones_made_again(mini):
    prepare(mini.root)
    masks = mini.root / "coco14" / "masks"
    cut, gone, kept = (masks / f"{name}.png" for name in mini.all_names[:3])
    time, whole = kept.stat().st_mtime_ns, cut.read_bytes()
    cut.write_bytes(whole[:60])
    gone.unlink()
    assert prepare(mini.root).n_made == 2
    assert cut.read_bytes() == whole and kept.stat().st_mtime_ns == time
    assert prepare(mini.root).n_made == 0 and prepare(mini.root, overwrite=True).n_made == 12
    mini.change("val", lambda content: content["annotations"].pop())
    with pytest.raises(DataError, match="made from other JSON files; add --overwrite"):
        prepare(mini.root)
    assert prepare(mini.root, overwrite=True).n_made == 12


def lose_a_jpeg(mini):
    next(mini.root.rglob(f"*{mini.names['train'][5]}.jpg")).unlink()


BAD = [
    (lambda m: m.json("train").write_text("{"), r"train2014\.json is damaged \(JSONDecodeError: .*data\.download"),
    (lambda m: m.json("val").unlink(), r"instances_val2014\.json does not exist\. Get COCO 2014 with .*data\.download"),
    (lambda m: m.change("train", lambda c: c["annotations"][2].update(category_id=12)), "the 80 categories"),
    (lose_a_jpeg, r"1 images .* none of JPEGImages, train2014"),
]


@pytest.mark.parametrize(("damage", "message"), BAD)
def test_bad_input_is_named_and_nothing_is_written(mini, damage, message):
    damage(mini)
    before = set(mini.root.iterdir())
    with pytest.raises(DataError, match=message) as error:
        prepare(mini.root)
    assert str(mini.root) in str(error.value)
    assert set(mini.root.iterdir()) == before


def test_annotations_without_area_are_labels_only(mini):
    def change(content):
        content["annotations"][0].update(segmentation=[], category_id=78)
        content["annotations"][1].update(segmentation=[[1, 1, 5, 5]], category_id=78)

    mini.change("train", change)
    prepare(mini.root)
    coco, index = COCO14(mini.root), MASK_VALUE[78] - 1
    content = json.loads(mini.json("train").read_text())
    for name in {f"{annotation['image_id']:012d}" for annotation in content["annotations"][:2]}:
        assert coco.label(name)[index] and not (coco.mask(name) == index + 1).any()


def test_command_line(mini, capsys):
    def done(code, root=mini.root):
        assert main(["--data_root", str(root), "--num_workers", "1"]) == code
        out, err = capsys.readouterr()
        assert err.count("\n") == (code != 0)
        return out + err

    said = done(0)
    assert f"train: 8 images, but COCO 2014 has {N_IMAGES['train']:,}; 1 of them without any object" in said
    assert "12 masks, 12 made now" in said
    assert "python -m data.download coco2014" in done(2, mini.root / "nowhere")
    shutil.rmtree(mini.root / "coco14")
    name = mini.names["train"][6]
    Image.new("RGB", (7, 5)).save(next(mini.root.rglob(f"*{name}.jpg")))
    assert f"{name}.jpg is " in (said := done(2)) and "its image is 7 x 5" in said
    assert not (mini.root / "coco14" / "index.npz").exists()
