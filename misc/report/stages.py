"""The stages that were scored, from image-level seeds to the segmentation network, and their table as text."""

from typing import NamedTuple

from misc.report.markup import at, number


class Stage(NamedTuple):
    """A stage that metrics.json has figures of.

    key: short name, also of its colour; path: where in metrics.json its figures lie; maker: the step whose seconds
    are its cost; swept: whether it is scored at a best and at a fixed threshold.
    """

    key: str
    label: str
    path: str
    maker: str
    swept: bool = False

    @property
    def best(self) -> str:
        """The path of the figures that stand for the stage: those at the best threshold where there are several."""
        return f"{self.path}.best" if self.swept else self.path


STAGES = (
    Stage("cam", "seed, CAM", "eval_cam", "make_cam", swept=True),
    Stage("rib", "seed, RIB", "eval_rib_cam", "make_rib_cam", swept=True),
    Stage("label", "CRF labels", "eval_sem_seg.ir_label", "cam_to_ir_label"),
    Stage("mask", "pseudo mask", "eval_sem_seg", "make_sem_seg"),
    Stage("seg", "segmentation network", "eval_seg", "train_seg"),
)
INSTANCES = Stage("instances", "instances", "eval_ins_seg", "make_ins_seg")
AP_NAMES = {"map_50": "AP at IoU 0.5", "map_70": "at 0.7", "map_50_95": "over 0.50:0.95"}


def scored(measured: dict) -> list[Stage]:
    """The stages with a mIoU, in order. measured: the content of metrics.json."""
    return [stage for stage in STAGES if at(measured, f"{stage.best}.miou") is not None]


def variants(measured: dict) -> list[tuple[str, str]]:
    """Further figures of the segmentation network: (label, path): before the CRF, or trained on other masks."""
    found = [("network, before CRF", "eval_seg.before_crf.miou")]
    for labels in at(measured, "eval_seg.comparison") or {}:
        found.append((f"network from {labels}", f"eval_seg.comparison.{labels}"))
    return [(label, path) for label, path in found if isinstance(at(measured, path), int | float)]


def instance_text(measured: dict) -> str:
    """The APs of the instance masks in one line."""
    values = measured[INSTANCES.path]
    return ", ".join(f"{name} {number(values[key])}" for key, name in AP_NAMES.items() if key in values)


def stage_table(name: str, measured: dict) -> str:
    """The stages with their mIoU in percent, seeds at the best threshold of the sweep and at the fixed one."""
    lines = [f"{name:<24}{'mIoU':>7}{'at':>8}{'fixed':>8}{'at':>7}{'images':>9}{'seconds':>9}"]
    for stage in scored(measured):
        scores = f"{100 * at(measured, f'{stage.best}.miou'):7.1f}"
        if stage.swept:
            best, fixed = (at(measured, f"{stage.path}.{key}") for key in ("best", "fixed"))
            scores += f"{best['threshold']:8.2f}{number(fixed['miou']):>8}{fixed['threshold']:7.2f}"
        seconds = measured.get(stage.maker, {}).get("seconds", float("nan"))
        lines.append(f"{stage.label:<24}{scores:<30}{at(measured, f'{stage.path}.images') or 0:9d}{seconds:9.0f}")
        if stage.key == "label":
            lines[-1] += f"  {number(at(measured, f'{stage.path}.ignored'), 0)}% of the pixels left open"
    lines += [f"{label:<24}{number(at(measured, path)):>7}" for label, path in variants(measured)]
    if at(measured, "eval_ins_seg.map_50") is not None:
        seconds = measured.get(INSTANCES.maker, {}).get("seconds", float("nan"))
        ap = number(measured["eval_ins_seg"]["map_50"])
        lines.append(f"{'instances, AP at 0.5':<24}{ap:>7}{'':23}{measured['eval_ins_seg']['images']:9d}{seconds:9.0f}")
    return "\n".join(lines)
