"""Files that are either whole or not there."""

import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from misc.errors import UserError


def write_atomic(path: Path, write: Callable[[Any], None]) -> None:
    """Calls write(binary file) on a temporary file beside `path` and renames it; on an error nothing is left."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the name in it: that may be as long as the system allows.
    temporary = path.with_name(f".{os.getpid()}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON."""
    text = json.dumps(value, indent=2, sort_keys=False) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()))


def load_json(path: Path) -> Any:
    """The value of a JSON file, {} where there is none."""
    return json.loads(Path(path).read_text()) if Path(path).is_file() else {}


def save_mask(path: Path, mask: np.ndarray, palette: np.ndarray) -> None:
    """Writes uint8 [H, W] as a palette PNG; palette: uint8 [256, 3]."""
    image = Image.fromarray(np.ascontiguousarray(mask, np.uint8))
    image.putpalette(palette.astype(np.uint8).tobytes())
    write_atomic(path, lambda file: image.save(file, format="PNG"))


def save_grey(path: Path, values: np.ndarray) -> None:
    """Writes [H, W] in [0, 1] as an 8-bit grey PNG."""
    image = Image.fromarray((np.clip(values, 0, 1) * 255).round().astype(np.uint8))
    write_atomic(path, lambda file: image.save(file, format="PNG", compress_level=1))


def load_mask(path: Path) -> np.ndarray:
    """uint8 [H, W] of a palette or grey PNG."""
    try:
        with Image.open(path) as image:
            return np.array(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} is not a whole mask ({error}); delete it and make it again") from error


def find_doubled(path: Path) -> Path | None:
    """`path`, or the doubled `.pth.pth` that the published scripts write, or None where neither is there."""
    both = (Path(path), Path(f"{path}.pth"))
    return next((candidate for candidate in both if candidate.is_file()), None)


def save_torch(path: Path, value: Any) -> None:
    """torch.save, whole or not at all."""
    write_atomic(path, lambda file: torch.save(value, file))
