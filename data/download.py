"""Fetches datasets and weights: `python -m data.download` lists them, `... KEY [KEY ...] --data_root DIR` fetches.

An interrupted transfer resumes. What exists is skipped; an archive's folder appears once it is completely unpacked.
"""

import argparse
import logging
import platform
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import gdown
from torchvision.datasets import SBDataset
from torchvision.datasets.utils import check_integrity
from torchvision.datasets.voc import DATASET_YEAR_DICT

from data.errors import DataError
from data.failures import one_line

DRIVE = "https://drive.google.com/uc?id="
COCO = "http://images.cocodataset.org"
VOC = DATASET_YEAR_DICT["2012"]
RETRIES, TIMEOUT_S = 3, 60


class File(NamedTuple):
    """A file at `url`, to be put at `name` below the data root; an archive is unpacked into the folder `target`."""

    name: str
    url: str
    size: str
    target: str = ""
    md5: str | None = None


class Item(NamedTuple):
    """What a key stands for."""

    what: str
    files: tuple[File, ...]


def _drive(what: str, drive_id: str, name: str, target: str = "") -> Item:
    return Item(f"{what}, from the authors of RIB", (File(name, DRIVE + drive_id, "?", target),))


# fmt: off
CATALOGUE = {
    "voc2012": Item("PASCAL VOC 2012, train and val",
                    (File(VOC["filename"], VOC["url"], "2.0 GB", "VOCdevkit/VOC2012", VOC["md5"]),)),
    "sbd": Item("SBD, the masks of the augmented training set; then run voc12.prepare",
                (File(SBDataset.filename, SBDataset.url, "1.4 GB", "benchmark_RELEASE", SBDataset.md5),)),
    "voc2012_seg_aug": _drive("VOC 2012 with augmented masks", "1jhtdjj3xrEp60zO3B7jZ14yxxZkCJMeM",
                              "VOC2012_SEG_AUG.archive", "VOC2012_SEG_AUG"),
    "coco2014": Item("MS COCO 2014, images and annotations; then run coco14.prepare", (
        File("train2014.zip", f"{COCO}/zips/train2014.zip", "13 GB", "train2014"),
        File("val2014.zip", f"{COCO}/zips/val2014.zip", "6 GB", "val2014"),
        File("annotations_trainval2014.zip", f"{COCO}/annotations/annotations_trainval2014.zip", "241 MB",
             "annotations"))),
    "coco_masks": _drive("semantic masks of COCO 2014", "1pRE9SEYkZKVg0Rgz2pi9tg48j7GlinPV", "coco_masks.archive",
                         "coco_masks"),
    "voc_classifier": _drive("classifier for VOC 2012", "1evRxPD4PhcdGySGFXDoOAtOiUVg4oNXk",
                             "weights/voc_classifier.pth"),
    "coco_classifier": _drive("classifier for COCO 2014", "1SDKjPzzuXR4PX_H1l3Kw5NY8d20FmG4X",
                              "weights/coco_classifier.pth"),
    "deeplab_imagenet": _drive("ImageNet start of the segmentation network", "14soMKDnIZ_crXQTlol9sNHVPozcQQpMn",
                               "weights/deeplab_imagenet.pth"),
}
# fmt: on


def obtain(file: File, root: Path, url: str | None = None, remove_archive: bool = False) -> str:
    """Fetches, checks and unpacks a file unless that is done; returns a line about it. url: instead of its own.

    DataError if the file cannot be fetched, has another md5 or cannot be unpacked.
    """
    path, target = root / file.name, root / (file.target or file.name)
    if target.exists():
        return f"{target} exists, skipping (to fetch it again, delete it)"
    if not path.is_file():
        fetch(url or file.url, path)
    if not check_integrity(path, file.md5):
        raise DataError(f"{path} does not have md5 {file.md5}; delete it and run the command again")
    if file.target:
        unpack(path, target)
        if remove_archive:
            path.unlink()
    return f"{target} is complete"


def fetch(url: str, path: Path) -> None:
    """Downloads `url`, also of Google Drive, to `path`; DataError if that fails, a later call resumes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    quiet = not sys.stderr.isatty()
    try:
        gdown.download(url, str(path), quiet=quiet, resume=True, retries=RETRIES, timeout=TIMEOUT_S)
    except Exception as error:  # those of gdown and requests
        if isinstance(error, OSError) and error.errno:  # a full or read-only disk
            raise
        reason = " ".join(str(error).split())
        raise DataError(
            f"{url} could not be downloaded ({reason}). Run the command again to resume, or download it with a browser "
            f"and put it at {path}"
        ) from error


def unpack(archive: Path, target: Path) -> None:
    """Unpacks a zip or tar file; its folder of the name of `target`, else its only folder, else all becomes `target`.

    DataError if the archive is damaged or, for tar, would write outside the folder; then nothing is left of it.
    """
    temporary = target.with_name(f".{target.name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed run
    temporary.mkdir(parents=True)
    logging.info(f"unpacking {archive}")
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                file.extractall(temporary)  # drops ".." and drive letters from names
        else:
            if not hasattr(tarfile, "data_filter"):
                raise ValueError(
                    f"Python {platform.python_version()} unpacks tar files unsafely: update to its newest patch"
                )
            with tarfile.open(archive) as file:
                file.extractall(temporary, filter="data")
        if not any(temporary.iterdir()):
            raise ValueError("it holds no file")
        named = [path for path in temporary.rglob(target.name) if path.is_dir()]
        folders = sorted(named, key=lambda path: len(path.parts)) or list(temporary.iterdir())
        only = named or (len(folders) == 1 and folders[0].is_dir())
        (folders[0] if only else temporary).rename(target)
    except Exception as error:  # a damaged archive can raise anything
        if isinstance(error, OSError) and error.errno:
            raise
        reason = " ".join(str(error).split())
        raise DataError(f"{archive} cannot be unpacked ({reason}); delete it and run the command again") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def main(arguments: list[str] | None = None) -> int:
    """The command line; its exit code, 2 after a message if something could not be fetched."""
    parser = argparse.ArgumentParser(prog="python -m data.download", description=__doc__.splitlines()[0])
    parser.add_argument("keys", nargs="*", metavar="KEY", help="what to fetch; without any, a list is printed")
    parser.add_argument("--data_root", type=Path, metavar="DIR", help="the folder to put it in")
    parser.add_argument("--base_url", metavar="URL", help="a mirror that has the same file names")
    parser.add_argument("--remove_archives", action="store_true", help="delete archives once they are unpacked")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return one_line("data.download", lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    if not args.keys:
        for key, item in CATALOGUE.items():
            print(f"{key:<17}{item.what}")
            for file in item.files:
                print(f"{'':<17}{file.size:>7}  {file.url} -> DIR/{file.target or file.name}")
        print("\nFetch with: python -m data.download KEY [KEY ...] --data_root DIR")
        return
    unknown = [key for key in args.keys if key not in CATALOGUE]
    if unknown:
        raise DataError(f"there is no {', '.join(unknown)}; choose from {', '.join(CATALOGUE)}")
    if args.data_root is None:
        raise DataError("--data_root DIR is missing: the folder to put the files in")
    for key in dict.fromkeys(args.keys):
        for file in CATALOGUE[key].files:
            url = f"{args.base_url.rstrip('/')}/{Path(file.name).name}" if args.base_url else None
            print(f"{key}: {obtain(file, args.data_root, url, args.remove_archives)}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
