"""TensorBoard, where `--tensorboard` asks for it: like logging, opened once and written to from anywhere."""

import numbers
from pathlib import Path

from data.errors import UserError

_open: list = []  # the writer, if there is one


def start(folder: Path) -> None:
    """Begins to write below `folder`; UserError if tensorboard is not installed. A writer that is open is closed."""
    stop()
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            f"--tensorboard needs the package tensorboard ({error}); pip install tensorboard, or leave the flag out"
        ) from error
    _open.append(SummaryWriter(str(folder)))


def stop() -> None:
    """Closes what `start` opened."""
    while _open:
        _open.pop().close()


def scalars(group: str, values: dict[str, float], step: int) -> None:
    """Draws numbers as GROUP/NAME over `step`; nothing happens unless `start` was called."""
    for writer in _open:
        for name, value in values.items():
            writer.add_scalar(f"{group}/{name}", value, step)


def scores(step_name: str, values: dict) -> None:
    """Draws every mIoU and mean average precision that a step measured, and its sweep over thresholds in percent."""
    scalars(step_name, dict(_scores(values)), 0)
    for threshold, value in values.get("sweep", {}).items():
        scalars(step_name, {"sweep": value}, round(100 * float(threshold)))
    for writer in _open:
        writer.flush()


def _scores(values: dict, prefix: str = ""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _scores(value, f"{prefix}{key}/")
        elif key.startswith(("miou", "map_")) and isinstance(value, numbers.Real):
            yield f"{prefix}{key}", float(value)
