"""SegmentationClassAug and train_aug.txt made out of a tiny VOC devkit and SBD files as MATLAB writes them."""

import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_matrix

from data.errors import DataError
from data.images import voc_palette
from tests.voc_devkit import make_devkit, write_png
from voc12 import VOC12
from voc12.prepare import SBD_LAYOUTS, find_sbd, main, prepare, read_mat


def write_mat(path, mask):
    """A .mat file of SBD: struct GTcls with Segmentation, sparse Boundaries per class and CategoriesPresent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    boundaries = np.empty((20, 1), object)
    boundaries[:, 0] = [csc_matrix(mask == c + 1) for c in range(20)]
    present = np.setdiff1d(mask, 0).astype(np.uint8)
    savemat(path, {"GTcls": {"Boundaries": boundaries, "Segmentation": mask, "CategoriesPresent": present}})


@pytest.fixture
def kit(tmp_path):
    """A devkit without SegmentationClassAug; SBD in ROOT/benchmark_RELEASE has a constant mask for every image."""
    kit = make_devkit(tmp_path)
    shutil.rmtree(kit.folder / "SegmentationClassAug")
    for i, name in enumerate(kit.names):
        write_mat(tmp_path / SBD_LAYOUTS[0] / f"{name}.mat", np.full_like(kit.masks[name], i + 1))
    return kit


@pytest.mark.parametrize("num_workers", [0, 2])
def test_union_of_voc_and_sbd(kit, num_workers, caplog):
    write_mat(kit.root / SBD_LAYOUTS[0] / "2011_999999.mat", np.ones((3, 4), np.uint8))
    done = prepare(kit.root, num_workers=num_workers)
    assert "1 masks of SBD have no JPEG" in caplog.text and "2011_999999" in caplog.text
    assert (done.n_voc, done.n_sbd, done.n_made) == (8, 4, 12) and done.train_aug == kit.train_aug
    made = kit.folder / "SegmentationClassAug"
    assert sorted(path.stem for path in made.iterdir()) == kit.names  # nothing temporary is left
    voc = VOC12(kit.root)
    for i, name in enumerate(kit.names):
        assert (voc.mask(name) == (i + 1 if name in kit.extra else kit.masks[name])).all()
        with Image.open(made / f"{name}.png") as png:
            assert png.mode == "P" and png.getpalette()[:60] == voc_palette()[:20].ravel().tolist()
    assert (kit.folder / "ImageSets/Segmentation/train_aug.txt").read_text().split() == kit.train_aug
    assert voc.names("train_aug") == kit.train_aug


def test_whole_files_are_kept_and_damaged_ones_made_again(kit):
    prepare(kit.root)
    made = kit.folder / "SegmentationClassAug"
    untouched, cut, other_size, gone = (made / f"{name}.png" for name in kit.extra)
    before = untouched.stat().st_mtime_ns
    cut.write_bytes(cut.read_bytes()[:60])
    write_png(other_size, np.zeros((5, 5), np.uint8))
    gone.unlink()
    assert prepare(kit.root).n_made == 3
    assert VOC12(kit.root).mask(kit.extra[1]).max() == 10 and gone.is_file()
    assert untouched.stat().st_mtime_ns == before
    assert prepare(kit.root).n_made == 0 and prepare(kit.root, overwrite=True).n_made == 12


@pytest.mark.parametrize("layout", SBD_LAYOUTS)
def test_sbd_is_found_in_its_layouts(tmp_path, layout):
    write_mat(tmp_path / layout / "x.mat", np.ones((3, 4), np.uint8))
    assert find_sbd(tmp_path) == tmp_path / layout
    assert np.array_equal(read_mat(find_sbd(tmp_path) / "x.mat"), np.ones((3, 4), np.uint8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"GTcls": {"Segmentation": np.full((4, 5), 21, np.uint8)}}, r".*with values 0\.\.20"),
        ({"GTcls": {"Segmentation": np.ones((4, 5))}}, "GTcls.Segmentation is not uint8"),
    ],
)
def test_bad_mat_files_are_named(tmp_path, content, message):
    savemat(tmp_path / "2008_000008.mat", content)
    with pytest.raises(DataError, match=rf"2008_000008\.mat:? {message}"):
        read_mat(tmp_path / "2008_000008.mat")


def test_what_is_missing_or_does_not_fit_is_named(kit, tmp_path):
    name = kit.extra[0]
    height, width = kit.masks[name].shape
    write_mat(kit.root / SBD_LAYOUTS[0] / f"{name}.mat", np.ones((7, 9), np.uint8))
    with pytest.raises(DataError, match=rf"{name}\.mat is 9 x 7, its image is {width} x {height}"):
        prepare(kit.root)
    with pytest.raises(DataError, match=r"no SBD in .*data\.download sbd"):
        prepare(kit.root, tmp_path / "elsewhere")
    (kit.folder / "SegmentationClass" / f"{kit.val[0]}.png").unlink()
    with pytest.raises(DataError, match=rf"1 images of train and val have no mask .*{kit.val[0]}"):
        prepare(kit.root)


def test_command_line(kit, capsys):
    assert main(["--data_root", str(kit.root), "--num_workers", "1"]) == 0
    out = capsys.readouterr().out
    assert "12 masks (8 of VOC, 4 of SBD; 12 made now). train_aug: 8 images, but the published set has 10,582" in out
    (kit.root / SBD_LAYOUTS[0] / f"{kit.extra[0]}.mat").write_bytes(b"nothing")
    assert main(["--data_root", str(kit.root), "--num_workers", "1", "--overwrite"]) == 2
    assert f"{kit.extra[0]}.mat is damaged" in capsys.readouterr().err
