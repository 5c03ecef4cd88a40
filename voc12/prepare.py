"""Makes SegmentationClassAug and train_aug.txt of VOC 2012 out of VOC's own masks and those of SBD.

`python -m voc12.prepare --data_root DIR [--sbd_root DIR]`. The union follows the published set: VOC's own mask wins
where both have one, and images of VOC val have VOC masks only (SBD: Hariharan et al., ICCV 2011).
"""

import argparse
import logging
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.io import loadmat

from data.base import read_list, shortened
from data.errors import DataError
from data.failures import one_line
from data.files import sweep, write_atomic
from data.images import check_size, image_size, mask_exists, read_mask, save_mask, voc_palette
from data.process import cores
from data.progress import progress_map
from voc12.dataset import CLASSES, LISTS, MASK_FOLDERS, N_TRAIN_AUG, find_folder

SBD_LAYOUTS = ("benchmark_RELEASE/dataset/cls", "dataset/cls", "cls")


class Summary(NamedTuple):
    """What was done: masks by origin, how many were made in this run, and the names of train_aug."""

    n_voc: int
    n_sbd: int
    n_made: int
    train_aug: list[str]


def prepare(data_root: Path, sbd_root: Path | None = None, num_workers: int = 0, overwrite: bool = False) -> Summary:
    """Writes SegmentationClassAug/*.png and ImageSets/Segmentation/train_aug.txt into the VOC 2012 of `data_root`.

    sbd_root: where SBD lies (default: data_root); num_workers: processes, 0 for this one alone. Existing masks are
    skipped unless `overwrite`. DataError names a file that is missing, damaged or of a wrong size.
    """
    folder = find_folder(Path(data_root))
    mat_folder = find_sbd(Path(sbd_root or data_root))
    own = {path.stem: path for path in (folder / "SegmentationClass").glob("*.png")}
    val = set(read_list(folder / LISTS / "val.txt"))
    _check_own(folder, own, [*val, *read_list(folder / LISTS / "train.txt")])
    sbd = {path.stem: path for path in mat_folder.glob("*.mat") if path.stem not in own and path.stem not in val}
    jpegs = {path.stem: path for path in (folder / "JPEGImages").glob("*.jpg")}
    orphans = sorted(name for name in sbd if name not in jpegs)
    if orphans:
        logging.warning(f"{len(orphans)} masks of SBD have no JPEG in {folder}, left out: {shortened(orphans)}")
    sources = own | {name: path for name, path in sbd.items() if name in jpegs}
    sweep(folder / MASK_FOLDERS[0])
    ordered = [source for _, source in sorted(sources.items())]
    n_made = sum(progress_map(partial(_make, folder, overwrite), ordered, "masks", num_workers))
    train_aug = sorted(set(sources) - val)
    write_atomic(folder / LISTS / "train_aug.txt", lambda file: file.write("\n".join([*train_aug, ""]).encode()))
    return Summary(len(own), len(sources) - len(own), n_made, train_aug)


def find_sbd(root: Path) -> Path:
    """The folder of SBD's .mat files in `root`, in any of the SBD_LAYOUTS."""
    for layout in SBD_LAYOUTS:
        if next((root / layout).glob("*.mat"), None) is not None:
            return root / layout
    raise DataError(
        f"no SBD in {root}: wanted .mat files in {', '.join(SBD_LAYOUTS)}. Get it with "
        f"`python -m data.download sbd --data_root {root}`, or name its folder with --sbd_root"
    )


def read_mat(path: Path) -> np.ndarray:
    """uint8 [H, W], the mask (0 background, 1..20) of a .mat file of SBD: GTcls.Segmentation."""
    try:
        with open(path, "rb") as file:
            mask = np.asarray(loadmat(file, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0])
    except Exception as error:  # a damaged file can raise anything
        problem = f"{type(error).__name__}: {error}"
        raise DataError(f"SBD file {path} is damaged ({problem}); unpack SBD again or delete the file") from error
    if mask.ndim != 2 or mask.dtype != np.uint8 or mask.max(initial=0) > len(CLASSES):
        raise DataError(f"SBD file {path}: GTcls.Segmentation is not uint8 [H, W] with values 0..{len(CLASSES)}")
    return mask


def _check_own(folder: Path, own: dict[str, Path], wanted: list[str]) -> None:
    absent = sorted(name for name in wanted if name not in own)
    if absent:
        raise DataError(
            f"{len(absent)} images of train and val have no mask in {folder / 'SegmentationClass'}: "
            f"{shortened(absent)}; get VOC's own masks with `python -m data.download voc2012 --data_root DIR`"
        )


def _make(folder: Path, overwrite: bool, source: Path) -> bool:
    """Writes the mask of a PNG of VOC or a .mat of SBD; False if it exists."""
    size = image_size(folder / "JPEGImages" / f"{source.stem}.jpg")
    target = folder / MASK_FOLDERS[0] / f"{source.stem}.png"
    if not overwrite and mask_exists(target, len(CLASSES), size):
        return False
    mask = read_mat(source) if source.suffix == ".mat" else read_mask(source, len(CLASSES))
    check_size(f"mask {source}", mask.shape, size)
    save_mask(target, mask, voc_palette())
    return True


def main(arguments: list[str] | None = None) -> int:
    """The command line; its exit code, 2 after a message if something is missing or damaged."""
    parser = argparse.ArgumentParser(prog="python -m voc12.prepare", description=__doc__.splitlines()[0])
    parser.add_argument("--data_root", type=Path, required=True, help="folder with VOC 2012")
    parser.add_argument("--sbd_root", type=Path, help="folder with SBD (default: data_root)")
    parser.add_argument("--num_workers", type=int, default=cores(), help="processes (default: all cores)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing masks")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return one_line("voc12.prepare", lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    done = prepare(args.data_root, args.sbd_root, args.num_workers, args.overwrite)
    n = len(done.train_aug)
    verdict = "as published" if n == N_TRAIN_AUG else f"but the published set has {N_TRAIN_AUG:,}: is SBD complete?"
    print(
        f"SegmentationClassAug: {done.n_voc + done.n_sbd:,} masks ({done.n_voc:,} of VOC, {done.n_sbd:,} of SBD; "
        f"{done.n_made:,} made now). train_aug: {n:,} images, {verdict}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
