"""Instance result files: `ins_seg/NAME.npy`, a pickled dict(score, mask, class), as the IRN family writes them."""

from functools import partial
from pathlib import Path

import numpy as np

from data.camfile import CamFileError, check_classes, load_dict, save_dict


def save(path: Path, detected: dict[str, np.ndarray]) -> None:
    """Writes score float32 [n], mask bool [n, H, W] and class int64 [n] (0-based), as `misc.instances.detect`."""
    kinds = {"score": np.float32, "mask": bool, "class": np.int64}
    save_dict(path, {name: np.ascontiguousarray(detected[name], kind) for name, kind in kinds.items()})


def load(path: Path, size: tuple[int, int] | None = None, n_classes: int | None = None) -> dict[str, np.ndarray]:
    """The arrays of an instance file as `save` takes them; CamFileError names the file and what is wrong with it.

    size: (H, W) of the image that it must belong to. n_classes: of the dataset, which must have every class.
    """
    return load_dict(path, "instance", ("score", "mask", "class"), partial(_arrays, size, n_classes))


def _arrays(size: tuple[int, int] | None, n_classes: int | None, value: dict) -> dict[str, np.ndarray]:
    score = np.asarray(value["score"]).astype(np.float32).reshape(-1)
    mask = np.asarray(value["mask"]).astype(bool, copy=False)
    kind = np.asarray(value["class"]).astype(np.int64).reshape(-1)
    if mask.ndim != 3 or not len(score) == len(mask) == len(kind):
        raise CamFileError(f"shapes do not fit: score {score.shape}, mask {mask.shape}, class {kind.shape}")
    if size is not None and mask.shape[1:] != tuple(size):
        raise CamFileError(f"is of an image of {mask.shape[1:]}, wanted {tuple(size)} (height, width)")
    if not np.isfinite(score).all():
        raise CamFileError("holds scores that are not finite")
    check_classes("classes", kind, n_classes)
    return {"score": score, "mask": mask, "class": kind}
