"""Labels, lists and masks made out of a tiny COCO 2014, and what is said when its JSON files are not as they should."""

import json
import logging
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from coco14 import CATEGORIES, COCO14
from coco14.dataset import N_IMAGES
from coco14.prepare import MAX_OBJECTS, Object, main, paint, prepare, read_annotations
from data.base import DataError, voc_palette
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
    square = [np.array([2, 2, 8, 2, 8, 8, 2, 8], float)]
    objects = [Object(7, 3, False, square), Object(5, 1, False, square), Object(6, 2, False, None)]
    mask, numbers = paint((10, 12), objects)
    assert set(np.unique(mask)) == {0, 4} and set(np.unique(numbers)) == {0, 2}


def test_more_objects_than_a_map_can_hold():
    square = [np.array([0, 0, 2, 0, 2, 2, 0, 2], float)]
    objects = [Object(i, 0, False, [square[0] + np.tile([i % 30 * 4, i // 30 * 4], 4)]) for i in range(MAX_OBJECTS + 3)]
    mask, numbers = paint((60, 130), objects)
    assert set(np.unique(numbers)) == set(range(256)) and (numbers[mask == 0] == 0).all()


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
    killed = mini.root / "coco14/masks/.x.png.1.2.tmp"  # what a run leaves that could not even clean up
    killed.write_bytes(b"")
    os.utime(killed, (0, 0))
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


def edit(key, index, **values):
    return lambda content: content[key][index].update(values)


def cut_short(mini):
    text = mini.json("train").read_text()
    mini.json("train").write_text(text[: len(text) // 2])


def without(mini, name):
    next(path for path in mini.root.rglob(f"*{name}.jpg")).unlink()


BAD = [
    (cut_short, r"instances_train2014\.json line 1 column \d+ \(character [\d,]+ of [\d,]+\) is not JSON: .*cut short"),
    (lambda m: m.json("val").write_bytes(b"\xff\xfe{"), r"instances_val2014\.json is not JSON"),
    (lambda m: m.json("val").write_text("[" * 100_000), r"instances_val2014\.json is not JSON"),
    (lambda m: m.json("val").write_text("[]"), r"has no list 'images'; wanted the official"),
    (lambda m: m.json("val").unlink(), r"instances_val2014\.json does not exist\. Get COCO 2014 with .*data\.download"),
    (lambda m: m.change("val", lambda c: c.pop("categories")), "has no list 'categories'"),
    (lambda m: m.change("val", lambda c: c["images"].clear()), "lists no image"),
    (edit("annotations", 2, category_id=12), r"annotations\[2\] \(id \d+\) has category_id 12, .* 80 categories"),
    (edit("annotations", 2, category_id="cat"), r"annotations\[2\] \(id \d+\) has no whole number 'category_id'"),
    (edit("annotations", 3, image_id=999_999), r"annotations\[3\] \(id \d+\) belongs to image_id 999999, which"),
    (edit("annotations", 0, id=None), r"annotations\[0\] has no whole number 'id'"),
    (lambda m: m.change("train", lambda c: c["annotations"].append(c["annotations"][1])),
     r"annotations\[\d+\] \(id \d+\) has the id of annotations\[1\]"),
    (lambda m: m.change("train", lambda c: c["annotations"].insert(0, 7)), r"annotations\[0\] has no whole number"),
    (edit("categories", 11, id=12), r"categories\[11\] is 'stop sign' with id 12; in COCO there is no such id"),
    (edit("categories", 0, name="people"), r"categories\[0\] is 'people' with id 1; in COCO 1 is 'person'"),
    (edit("images", 1, height=0), r"images\[1\] \(id \d+\) claims to be \d+ x 0"),
    (edit("images", 1, width=10**9), r"images\[1\] \(id \d+\) claims to be 1000000000 x"),
    (edit("images", 1, id=10**12), r"images\[1\] has id 1000000000000; ids have up to 12 digits"),
    (lambda m: m.change("train", lambda c: c["images"].append(c["images"][0])), r"images\[8\] has the id \d+ of an"),
    (lambda m: without(m, m.names["train"][5]), r"1 images of .*train2014\.json are in none of JPEGImages, train2014"),
    (lambda m: shutil.copy(m.json("val"), m.json("train")), r"train2014\.json and .*val2014\.json both have the image"),
    (edit("annotations", 0, segmentation=None), r"annotations\[0\] \(id \d+\) has no segmentation"),
    (edit("annotations", 0, segmentation=[[1, 2, 3, 4, 5, "x"]]), "has a polygon that is not a list of numbers"),
    (edit("annotations", 0, segmentation=[[1, 2, 3, 4, 5, float("nan")]]), "has a polygon that is not"),
    (edit("annotations", 0, segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "has a polygon that is not"),
    (edit("annotations", 0, segmentation=[5]), "has a polygon that is not"),
    (edit("annotations", 0, segmentation=[[1, 2, 3, 4, 5, 1e9]]), r"has a corner at 1\.\.1e\+09, far outside"),
    (edit("annotations", 0, segmentation={"size": [1, 2], "counts": [2]}), r"has run lengths of size \[1, 2\]; its"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), BAD)
def test_bad_input_names_file_and_entry_and_writes_nothing(mini, damage, message):
    mini.change("train", damage) if damage.__qualname__.startswith("edit") else damage(mini)
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
    with pytest.raises(
        DataError, match=r"\.jpg is \d+ x \d+, the annotation of image \d+ is \d+ x \d+ \(width x height\)"
    ):
        prepare(mini.root)
    assert not (mini.root / "coco14" / "index.npz").exists()


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([10, 20], "add up to 30; its image has"),
        ([-5, 10], "add up to 5; its image has"),
        ([1.5], "neither a list of whole numbers nor text"),
        (None, "neither a list of whole numbers nor text"),
        ("é", "are not COCO's compressed text"),
        ("o" * 20, "are not COCO's compressed text"),
        ("1o", "end in the middle of a number"),
        ("11", "add up to 2; its image has"),
    ],
)
def test_bad_run_lengths(mini, counts, message):
    def damage(content):
        image = content["images"][4]
        content["annotations"][0].update(
            image_id=image["id"], segmentation={"size": [image["height"], image["width"]], "counts": counts}
        )

    mini.change("train", damage)
    with pytest.raises(DataError, match=message):
        prepare(mini.root)


def test_annotations_without_area_are_labels_only(mini, caplog):
    def change(content):
        content["annotations"][0].update(segmentation=[], category_id=78)
        content["annotations"][1].update(segmentation=[[1, 1, 5, 5]], category_id=78)

    mini.change("train", change)
    with caplog.at_level(logging.WARNING):
        images = read_annotations(mini.json("train"))
    assert "2 annotations have no area" in caplog.text
    prepare(mini.root)
    coco = COCO14(mini.root)
    index = MASK_VALUE[78] - 1
    named = [f"{image.image_id:012d}" for image in images if index in image.classes]
    assert named and all(coco.label(name)[index] for name in named)
    assert not any((coco.mask(name) == index + 1).any() for name in named)


JUNK = (None, -1, 0, 1.5, 1e300, float("nan"), "x", [], {}, [[]], True, 10**30, [1, 2], {"a": 1})


def test_no_mutation_of_the_json_gives_anything_but_a_data_error(mini):
    def places(value, path=()):
        for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            yield (*path, key)
            yield from places(value[key], (*path, key))

    rng = np.random.default_rng(0)
    text = mini.json("train").read_text()
    every = list(places(json.loads(text)))
    refused = 0
    for i in range(300):
        if i % 3:
            content = json.loads(text)
            *parents, last = every[rng.integers(len(every))]
            target = content
            for key in parents:
                target = target[key]
            target[last] = JUNK[rng.integers(len(JUNK))]
            mini.json("train").write_text(json.dumps(content))
        else:
            data = bytearray(text.encode())
            data[rng.integers(len(data))] = rng.integers(256)
            mini.json("train").write_bytes(data)
        try:
            for image in read_annotations(mini.json("train")):
                if np.prod(image.size) < 1e6:
                    paint(image.size, image.objects)
        except DataError as error:
            assert str(mini.json("train")) in str(error)
            refused += 1
    assert refused > 200


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
    assert "category_id 26" in err and err.count("\n") == 1
    assert main(["--data_root", str(mini.root / "nowhere")]) == 2
    assert "python -m data.download coco2014" in capsys.readouterr().err


def test_an_error_in_a_worker_process_is_one_line(mini, capsys):
    name = mini.names["train"][6]
    path = next(path for path in mini.root.rglob(f"*{name}.jpg"))
    path.write_bytes(b"nothing")
    assert main(["--data_root", str(mini.root), "--num_workers", "2"]) == 2
    err = capsys.readouterr().err
    assert f"{name}.jpg cannot be read as an image" in err and err.count("\n") == 1
