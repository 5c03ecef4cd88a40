"""Reference numbers of the datasets of the paper: what was published, and what users of the published code got.

Shown beside the measured values by the report, for these datasets only. mIoU in percent.
"""

from typing import NamedTuple


class Reference(NamedTuple):
    """What others got at a stage. paper, rerun: texts; checked: whether the paper's own table was looked at."""

    paper: str = ""
    rerun: str = ""
    checked: bool = True


UNCHECKED = "* not checked against the paper's tables"
# dataset -> stage -> Reference. Sources: "RIB" is arXiv 2110.06530, issues are those of its published repository.
REFERENCES: dict[str, dict[str, Reference]] = {
    "voc12": {
        "cam": Reference("48.8 (IRN baseline, train)", "48.1 (train)", checked=False),
        "rib": Reference("56.5 (train)", checked=False),
        "mask_cam": Reference("66.3 (IRN baseline, train)", "64.9 (train)", checked=False),
        "mask_rib": Reference("70.6 (train)", "69.x before CRF (train)", checked=False),
        "seg": Reference("68.3 val, 68.6 test", "65.3 val (issue 5, weak pseudo labels)"),
    },
    "coco14": {
        "rib": Reference("36.5 (train)", "34.8 at threshold 0.31 (issue 6, train)", checked=False),
        "mask_rib": Reference("45.6 (train)", "39.9 (issue 6, train)", checked=False),
        "seg": Reference("43.8 val"),
    },
}


def reference(dataset: str, stage: str) -> Reference | None:
    """What others got, or None for a dataset or stage that nobody reported. dataset: its `name`."""
    return REFERENCES.get(dataset, {}).get(stage)
