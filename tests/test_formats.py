"""Image files as cameras, scanners and microscopes write them: what is read, how it is scaled, what is named."""

import os

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from data.errors import DataError, MissingFile
from data.folder import Folder
from data.formats import whites_of_set
from data.images import image_size, read_image
from data.listing import walk

DEEP = np.random.default_rng(0).integers(0, 4096, (12, 18, 3)).astype(np.uint16)  # of 12 bits
BYTES = (DEEP >> 4).astype(np.uint8)
TWELVE = {"u": 4095.0, "i": 4095.0, "f": 1.0}
LZW = [cv2.IMWRITE_TIFF_COMPRESSION, 5]


def tiff(values, **options):
    return lambda path: tifffile.imwrite(path, values, **options)


def pillow(mode="RGB", **options):
    return lambda path: Image.fromarray(BYTES).convert(mode).save(path, **options)


RGB = {"photometric": "rgb"}
COLOUR = {
    "8.tif": pillow(), "8_lzw.tif": pillow(compression="tiff_lzw"), "8.bmp": pillow(), "8_cmyk.tif": pillow("CMYK"),
    "8_pages.tiff": pillow(save_all=True, append_images=[Image.new("RGB", (9, 9))]), "8_alpha.bmp": pillow("RGBA"),
    "8_planes.tif": tiff(np.moveaxis(BYTES, 2, 0), planarconfig="separate", **RGB), "16.tif": tiff(DEEP, **RGB),
    "16_planes.tif": tiff(np.moveaxis(DEEP, 2, 0), planarconfig="separate", **RGB),
    "16_deflate.tif": tiff(DEEP, compression="zlib", **RGB), "16_tiles.tif": tiff(DEEP, tile=(16, 16), **RGB),
    "16_pages.tif": tiff(np.stack([DEEP, 0 * DEEP]), **RGB), "16_big_endian.tif": tiff(DEEP, byteorder=">", **RGB),
    "16_lzw.tif": lambda path: cv2.imwrite(str(path), DEEP[..., ::-1], LZW),
    "16_bigtiff.tif": tiff(DEEP, bigtiff=True, **RGB),
    "16.png": lambda path: cv2.imwrite(str(path), DEEP[..., ::-1]),
    "16_alpha.png": lambda path: cv2.imwrite(str(path), np.dstack([DEEP[..., ::-1], DEEP[..., 0]])),
}  # fmt: skip
FIRST = DEEP[..., 0]
GREY = {
    "8.tif": lambda path: Image.fromarray(BYTES[..., 0]).save(path), "16.tif": tiff(FIRST),
    "16.png": lambda path: Image.fromarray(FIRST).save(path), "signed.tif": tiff(FIRST.astype(np.int16)),
    "32.tif": tiff(FIRST.astype(np.uint32)), "float.tif": tiff((FIRST / 4095).astype(np.float32)),
    "half.tif": tiff((FIRST / 4095).astype(np.float16)), "double.tif": tiff(FIRST / 4095),
    "float_lzw.tif": lambda path: cv2.imwrite(str(path), (FIRST / 4095).astype(np.float32), LZW),
}  # fmt: skip


@pytest.mark.parametrize("name", COLOUR)
def test_colour_images_of_every_kind_are_read(tmp_path, name):
    COLOUR[name](tmp_path / name)
    image = read_image(tmp_path / name, whites=TWELVE)
    assert image.dtype == np.uint8 and np.array_equal(image, BYTES)
    assert image_size(tmp_path / name) == (12, 18)


@pytest.mark.parametrize("name", GREY)
def test_grey_images_of_every_kind_are_read(tmp_path, name):
    GREY[name](tmp_path / name)
    image = read_image(tmp_path / name, whites=TWELVE)
    assert image.shape == (12, 18, 3) and np.ptp(image, axis=2).max() == 0
    assert np.abs(image[..., 0].astype(int) - BYTES[..., 0]).max() <= ("f" in name)  # rounded instead of cut


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_deep_images_are_turned_as_others(tmp_path, orientation):
    tags = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "deep.tif", DEEP, photometric="rgb", extratags=tags)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("x.tif", "x.png"):
        Image.fromarray(BYTES).save(tmp_path / name, exif=exif)
    wanted = read_image(tmp_path / "x.png", exif=True)
    assert not np.array_equal(wanted, BYTES)
    for name in ("deep.tif", "x.tif", "x.png"):
        assert np.array_equal(read_image(tmp_path / name, exif=True, whites=TWELVE), wanted)
        assert image_size(tmp_path / name, exif=True) == wanted.shape[:2]


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.zeros((5, 8, 8), np.uint8), {"photometric": "minisblack", "planarconfig": "separate"}, "has 5 channels"),
        (FIRST, {"photometric": "miniswhite"}, "has the colours MINISWHITE; wanted grey or RGB"),
        (FIRST.astype(np.int16) - 4096, {}, "holds values below 0"),
        (np.full((8, 8), np.nan, np.float32), {}, "holds .*or no numbers"),
        (FIRST[:1, :1], {}, r"has 1 x 1 pixels; wanted at least 2 x 2"),
        (BYTES[:1], RGB, r"has 18 x 1 pixels; wanted at least 2 x 2"),
    ],
)
def test_what_would_be_nonsense_is_named(tmp_path, values, options, message):
    tifffile.imwrite(tmp_path / "x.tif", values, **options)
    with pytest.raises(DataError, match=rf"x\.tif {message}"):
        read_image(tmp_path / "x.tif")


@pytest.mark.parametrize(
    ("peak", "white"), [(0, 255), (255, 255), (256, 1023), (1023, 1023), (4000, 4095), (16383, 16383), (16384, 65535)]
)
def test_the_range_is_that_of_the_set(tmp_path, peak, white):
    """One dark image does not become bright: all are scaled alike."""
    dark, bright = np.full((4, 4), peak // 8, np.uint16), np.full((4, 4), peak, np.uint16)
    paths = [tmp_path / "dark.png", tmp_path / "bright.tif", tmp_path / "grey.jpg"]
    Image.fromarray(dark).save(paths[0])
    tifffile.imwrite(paths[1], bright)
    Image.fromarray(BYTES).save(paths[2])
    (tmp_path / "damaged.tif").write_bytes(b"II*\0 cut short")
    whites = whites_of_set([*paths, tmp_path / "damaged.tif"])
    assert whites == {"u": white} and whites_of_set(paths[2:]) == {}
    for path, value in zip(paths, (peak // 8, peak), strict=False):
        assert (read_image(path, whites=whites) == value * 256 // (white + 1)).all()
    above = np.full((4, 4), 65535, np.uint16)  # not in the sample
    tifffile.imwrite(paths[1], above)
    assert (read_image(paths[1], whites=whites) == 255).all()


def test_floats_up_to_255_are_those(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", np.array([[0, 1, 3], [100, 200, 254]], np.float32))
    whites = whites_of_set([tmp_path / "x.tif"])
    assert whites == {"f": 255}
    assert read_image(tmp_path / "x.tif", whites=whites)[..., 0].tolist() == [[0, 1, 3], [100, 200, 254]]


def make_set(root, names):
    (root / "images").mkdir(parents=True)
    for name in names:
        Image.fromarray(BYTES).save(root / "images" / name)
    (root / "labels.csv").write_text("".join(f"{name},{'ab'[i % 2]}\n" for i, name in enumerate(names)))


def test_a_set_says_its_range_and_keeps_it_with_its_results(tmp_path):
    make_set(tmp_path, ["a.jpg", "b.bmp", "c.TIF", "d.png"])
    folder = Folder(tmp_path)
    assert folder.names("train") == ["a", "b", "c", "d"] and "white" not in folder.identity
    tifffile.imwrite(tmp_path / "images/c.TIF", DEEP, photometric="rgb")
    folder = Folder(tmp_path)
    assert folder.identity["white"] == {"u": 4095}
    assert "images of more than 8 bits: 4095 is read as white, by the largest value of a sample" in folder.notes
    assert np.array_equal(folder.image("c"), BYTES) and np.array_equal(folder.image("d"), BYTES)


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("x.jp2", None, "JPEG 2000"), ("x.avif", None, "AVIF"), ("x.gif", None, "GIF"), ("x.heic", HEIC, "HEIC"),
        ("x.jxl", b"\xff\x0a\0\0", "JPEG XL"), ("x.ppm", None, "Netpbm"), ("x.psd", b"8BPS\0\x01", "Photoshop"),
        ("x.dng", b"II*\0\x08\0\0\0", "camera raw"), ("x.pdf", b"%PDF-1.7", "PDF"),
        ("x.dcm", b"\0" * 128 + b"DICM", "DICOM"),
        ("x.svg", b"<?xml version='1.0'?>\n<svg/>", "SVG"), ("x.xyz", b"1 2 3", r"\.xyz"),
    ],
)  # fmt: skip
def test_other_formats_are_named_for_what_they_are(tmp_path, name, content, kind):
    make_set(tmp_path, ["a.png", "b.png"])
    if content is None:
        Image.fromarray(BYTES).save(tmp_path / "images" / name)
    else:
        (tmp_path / "images" / name).write_bytes(content)
    notes = [note for note in Folder(tmp_path).notes if name in note]
    assert len(notes) == (name != "x.xyz")  # which may be anything
    message = rf"x\.\w+ exists, but {kind} is not read; convert it to PNG"
    for text in (name, "x", f"images/{name}"):
        (tmp_path / "labels.csv").write_text(f"a.png,a\nb.png,b\n{text},a\n")
        with pytest.raises(DataError, match=rf"labels\.csv line 3: {message}") as error:
            Folder(tmp_path)
        assert not isinstance(error.value, MissingFile) and str(error.value).count("labels.csv") == 1
    if kind in ("AVIF", "HEIC", "GIF"):  # often under a false name
        (tmp_path / "images" / name).rename(tmp_path / "x.jpg")
        with pytest.raises(DataError, match=rf"x\.jpg exists, but {kind} is not read; convert it to PNG"):
            read_image(tmp_path / "x.jpg")


def test_a_folder_of_nothing_else_says_so_once(tmp_path):
    make_set(tmp_path, ["a.gif", "b.gif", "c.jp2"])
    message = (
        r"holds no image; wanted \.jpg, .*\.bmp; a\.gif exists, but GIF is not read; convert it to PNG \(and 1 more"
    )
    with pytest.raises(DataError, match=rf"{message} like it\); c\.jp2 exists, but JPEG 2000 is not read"):
        Folder(tmp_path)


def test_animations_and_false_names(tmp_path):
    frames = {"save_all": True, "append_images": [Image.new("RGB", (18, 12))], "duration": 100}
    for name in ("x.webp", "x.png"):
        Image.fromarray(BYTES).save(tmp_path / name, **frames)
    assert np.array_equal(read_image(tmp_path / "x.png"), BYTES)  # has one image for readers of PNG
    with pytest.raises(DataError, match=r"x\.webp exists, but an animation is not read; convert it to PNG"):
        read_image(tmp_path / "x.webp")
    Image.fromarray(BYTES).save(tmp_path / "x.jpg", format="BMP")
    assert np.array_equal(read_image(tmp_path / "x.jpg"), BYTES)


def test_links_are_followed_but_not_in_circles(tmp_path):
    real, images = tmp_path / "real", tmp_path / "images"
    (real / "deep").mkdir(parents=True)
    (real / "deep/x.png").touch()
    images.mkdir()
    for name in ("first", "second"):  # two names, two folders
        (images / name).symlink_to(real)
    (images / "self").symlink_to(images)
    (images / "broken").symlink_to(tmp_path / "nowhere")
    (images / "loop").symlink_to("loop")
    (real / "deep/up").symlink_to(real)
    (real / "deep/back").symlink_to(images)
    files = sorted(walk(images))
    own = ["broken", "first/deep/x.png", "loop", "second/deep/x.png"]
    assert files == own
    assert sorted(walk(tmp_path / "nowhere")) == [] and os.readlink(images / "loop") == "loop"
