"""Large images at a working size (`--max_side`), with results at their own."""

import numpy as np

from data.base import Dataset, Wrapped
from data.transforms import rescale_size, resize


class Scaled(Wrapped):
    """A dataset that hands out its images with a long side of at most `max_side`; ground truth stays as it is."""

    def __init__(self, dataset: Dataset, max_side: int):
        super().__init__(dataset)
        self.max_side = max_side

    @property
    def identity(self) -> dict[str, object]:
        return {**self.dataset.identity, "--max_side": self.max_side}

    def image(self, name: str) -> np.ndarray:
        image = self.dataset.image(name)
        return resize(image, *self.working_size(image.shape[:2]))

    def working_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return rescale_size(size, min(1.0, self.max_side / max(size)))

    def full_size(self, name: str, masks: np.ndarray) -> np.ndarray:
        size = self.dataset.image(name).shape[:2]
        flat = masks.reshape(-1, *masks.shape[-2:]).astype(np.uint8)
        resized = [resize(mask, *size, nearest=True) for mask in flat]
        return np.array(resized, masks.dtype).reshape(*masks.shape[:-2], *size)
