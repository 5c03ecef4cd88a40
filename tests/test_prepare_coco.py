"""Labels, lists and masks made out of a tiny COCO 2014, and what is said when its JSON files are damaged."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from coco14 import CATEGORIES, COCO14
from coco14.dataset import N_IMAGES
from coco14.prepare import main, paint, prepare
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
    kinds = {type(a["segmentation"]).__name__ + str(type(a["segmentation"][0]) if isinstance(a["segmentation"], list)
             else type(a["segmentation"]["counts"])) for some in mini.annotations.values() for a in some}  # fmt: skip
    assert len(kinds) == 3  # polygons and both forms of run lengths were there


def test_a_crowd_lies_upon_what_is_larger_and_below_what_is_smaller(mini):
    prepare(mini.root)
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


def test_regions_of_one_area_lie_in_the_order_of_their_ids():
    square = {"image_id": 1, "iscrowd": 0, "segmentation": [[2, 2, 8, 2, 8, 8, 2, 8]]}
    annotations = [{**square, "id": 7, "category_id": 4}, {**square, "id": 5, "category_id": 2}]
    mask, objects = paint({"id": 1, "height": 10, "width": 12}, annotations)
    assert set(np.unique(mask)) == {0, 4} and set(np.unique(objects)) == {0, 2}


def test_processes_make_the_same(mini, tmp_path):
    prepare(mini.root)
    other = make_coco(tmp_path / "other")
    prepare(other.root, num_workers=2)
    assert files(mini.root / "coco14") == files(other.root / "coco14")
    assert not [path for path in files(mini.root) if path.suffix == ".tmp"]


def test_an_interrupted_run_is_not_taken_for_a_finished_one_and_goes_on(mini, monkeypatch):
    wanted = prepare(mini.root) and files(mini.root / "coco14")
    shutil.rmtree(mini.root / "coco14")
    import coco14.prepare as module

    def interrupted(path, *rest, save=module.save_mask):
        if path.name == f"{mini.all_names[7]}.png":
            raise KeyboardInterrupt
        save(path, *rest)

    monkeypatch.setattr(module, "save_mask", interrupted)
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


def test_masks_of_other_annotations_are_not_mixed_in(mini):
    prepare(mini.root)
    mini.change("val", lambda content: content["annotations"].pop())
    with pytest.raises(DataError, match="made from other JSON files; add --overwrite"):
        prepare(mini.root)
    assert prepare(mini.root, overwrite=True).n_made == 12


def cut_short(mini):
    text = mini.json("train").read_text()
    mini.json("train").write_text(text[: len(text) // 2])


BAD = [
    (cut_short, r"instances_train2014\.json is damaged \(JSONDecodeError: .*python -m data\.download coco2014"),
    (lambda m: m.json("val").write_text("[]"), r"instances_val2014\.json is damaged"),
    (lambda m: m.json("val").unlink(), r"instances_val2014\.json does not exist\. Get COCO 2014 with .*data\.download"),
    (lambda m: m.change("val", lambda c: c["images"].clear()), r"val2014\.json does not have images and the 80"),
    (lambda m: m.change("val", lambda c: c["categories"].pop()), "the 80 categories"),
    (lambda m: m.change("train", lambda c: c["annotations"][2].update(category_id=12)), "the 80 categories"),
    (lambda m: m.change("train", lambda c: c["annotations"][0].pop("segmentation")), "is damaged .*segmentation"),
    (
        lambda m: next(m.root.rglob(f"*{m.names['train'][5]}.jpg")).unlink(),
        r"1 images .* none of JPEGImages, train2014",
    ),
]


@pytest.mark.parametrize(("damage", "message"), BAD)
def test_bad_input_is_named_and_nothing_is_written(mini, damage, message):
    damage(mini)
    before = set(mini.root.iterdir())
    with pytest.raises(DataError, match=message) as error:
        prepare(mini.root)
    assert str(mini.root) in str(error.value)
    assert set(mini.root.iterdir()) == before


def test_an_image_of_another_size_than_the_json_says(mini):
    def change(content):
        content["images"][4]["width"] += 1
        content["annotations"].clear()

    mini.change("train", change)
    with pytest.raises(DataError, match=r"the annotation of .*\.jpg is \d+ x \d+, its image is \d+ x \d+"):
        prepare(mini.root)
    assert not (mini.root / "coco14" / "index.npz").exists()


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
    assert main(["--data_root", str(mini.root), "--num_workers", "1"]) == 0
    out = capsys.readouterr().out
    assert f"train: 8 images, but COCO 2014 has {N_IMAGES['train']:,}; 1 of them without any object" in out
    assert "12 masks, 12 made now" in out
    content = json.loads(mini.json("val").read_text())
    content["annotations"][0]["category_id"] = 26
    mini.json("val").write_text(json.dumps(content))
    assert main(["--data_root", str(mini.root), "--num_workers", "1"]) == 2
    err = capsys.readouterr().err
    assert "80 categories" in err and err.count("\n") == 1
    assert main(["--data_root", str(mini.root / "nowhere")]) == 2
    assert "python -m data.download coco2014" in capsys.readouterr().err


def test_an_error_in_a_worker_process_is_one_line(mini, capsys):
    name = mini.names["train"][6]
    path = next(path for path in mini.root.rglob(f"*{name}.jpg"))
    path.write_bytes(b"nothing")
    assert main(["--data_root", str(mini.root), "--num_workers", "2"]) == 2
    err = capsys.readouterr().err
    assert f"{name}.jpg cannot be read as an image" in err and err.count("\n") == 1
