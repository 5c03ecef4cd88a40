"""Every checkpoint layout in: ours, torchvision's ImageNet files, and those of the published code."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from data.errors import UserError

IMAGENET = "IMAGENET1K_V1"  # what the published code was trained from
COCO = "COCO_WITH_VOC_LABELS_V1"  # torchvision's DeepLab-v3, trained with COCO's masks


class WeightsError(UserError):
    """A checkpoint cannot be read or does not fit the network; the message names keys and shapes."""


def load(model: nn.Module, source: Path | str | Mapping[str, torch.Tensor], backbone_only: bool = False) -> None:
    """Loads a checkpoint of any known layout into `model`.

    source: a file, or a state dict. Known layouts: parameter names as here (torchvision's for the backbone); with
    `resnet50.`, `backbone.` and `newly_added.` prefixes and the published duplicates `stage*.`; each with or without
    `module.`, alone or under "state_dict" or "model". backbone_only: the heads may be absent and are left alone.
    Raises WeightsError naming what is missing or of the wrong shape.
    """
    named = "the state dict" if isinstance(source, Mapping) else str(find_file(source))
    state = canonical(source if isinstance(source, Mapping) else read(source), model)
    wanted = {
        name: value for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked") and not (backbone_only and _is_head(name))
    }  # fmt: skip
    missing = [name for name in wanted if name not in state]
    wrong = [
        f"{name} is {tuple(state[name].shape)}, wanted {tuple(value.shape)}"
        for name, value in wanted.items() if name in state and state[name].shape != value.shape
    ]  # fmt: skip
    if wrong:
        hint = ""
        if any(text.startswith("classifier.") for text in wrong):
            hint = "; it was trained for another number of classes: check --dataset"
        raise WeightsError(f"{named} does not fit the network: {_some(wrong)}{hint}")
    if missing:
        raise WeightsError(
            f"{named} lacks {len(missing)} of {len(wanted)} tensors: {_some(missing)}; is it for this network?"
        )
    broken = [name for name in wanted if not torch.isfinite(state[name]).all()]
    if broken:
        raise WeightsError(f"{named} holds values that are not finite in {_some(broken)}; fetch or make it again")
    model.load_state_dict({name: state[name] for name in wanted}, strict=False)


def read(path: Path | str) -> Mapping[str, torch.Tensor]:
    """The state dict of a file; no code in it is run. WeightsError if it is not a whole checkpoint."""
    path = find_file(path)
    try:
        if zipfile.is_zipfile(path):
            _check_sums(path)
        value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} holds more than tensors, or is damaged, and is refused: {_first_line(error)}"
        ) from error
    except Exception as error:  # a damaged file can raise anything
        raise WeightsError(
            f"{path} is not a whole checkpoint ({_first_line(error)}); fetch or make it again"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]
    if not isinstance(value, Mapping) or not all(isinstance(v, torch.Tensor) for v in value.values()):
        raise WeightsError(f"{path} holds no state dict (a mapping from names to tensors)")
    if not all(v.layout == torch.strided and v.device.type == "cpu" and not v.is_quantized for v in value.values()):
        raise WeightsError(f"{path} holds tensors that are not plain numbers; wanted the state dict of a network")
    return value


def _check_sums(path: Path) -> None:
    """ValueError for a turned bit: torch.save writes a checksum of every part, which torch.load does not look at.

    For parts that grow too: torch.save does not compress.
    """
    with zipfile.ZipFile(path) as file:
        if sum(part.file_size for part in file.infolist()) > path.stat().st_size:
            raise ValueError("it claims more than it holds")
        damaged = file.testzip()
    if damaged:
        raise ValueError(f"the checksum of {damaged} is wrong")


def find_doubled(path: Path) -> Path | None:
    """`path`, or the doubled `.pth.pth` that the published scripts write, or None where neither is there."""
    both = (Path(path), Path(f"{path}.pth"))
    return next((candidate for candidate in both if candidate.is_file()), None)


def find_file(path: Path | str) -> Path:
    """`path`, or the doubled `.pth.pth` that the published scripts write."""
    found = find_doubled(path)
    if found is None:
        raise WeightsError(f"weights file {path} does not exist")
    return found


def canonical(state: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict with the names that `model` uses; a tensor's own name wins over its published duplicates."""
    wanted = model.state_dict()
    names = {name: _strip(name, ("module.", "resnet50.")) for name in state}
    stages = _STAGES_IRN if any(n.startswith(("stage5.", "backbone.4.")) for n in names.values()) else _STAGES_CAM
    out: dict[str, torch.Tensor] = {names[name]: state[name] for name in state if names[name] in wanted}
    for name, value in state.items():
        original = _original(names[name], stages)
        if original in wanted:
            out.setdefault(original, value)
    return out


def load_backbone(model: nn.Module, source: str) -> None:
    """The backbone's start: "imagenet" or "coco" through torchvision, or a file of any known layout."""
    if source not in ("imagenet", "coco"):
        load(model, source, backbone_only=True)
        return
    from torchvision.models import get_model_weights, list_models

    title, name, version = {
        "imagenet": ("ImageNet", model.arch_name, IMAGENET),
        "coco": ("COCO", f"deeplabv3_{model.arch_name}", COCO),
    }[source]
    if name not in list_models():
        raise WeightsError(f"there are no {title} weights for {model.arch_name}; start from scratch or from a file")
    weights = get_model_weights(name)[version]
    try:
        state = weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise WeightsError(
            f"the {title} weights could not be fetched ({error}); without a network, put {weights.url} into {folder}"
        ) from error
    load(model, state, backbone_only=True)


# The published networks register their layers a second and third time: as stages (the classifier's first one runs up to
# layer1, the IRN's ends at the max pooling), as the list of stages `backbone`, and the heads as lists.
_STAGES_CAM = {
    "stage1.0.": "conv1.", "stage1.1.": "bn1.", "stage1.4.": "layer1.",
    "stage2.0.": "layer2.", "stage3.0.": "layer3.", "stage4.0.": "layer4.",
}  # fmt: skip
_STAGES_IRN = {
    "stage1.0.": "conv1.", "stage1.1.": "bn1.", "stage2.0.": "layer1.",
    "stage3.0.": "layer2.", "stage4.0.": "layer3.", "stage5.0.": "layer4.",
}  # fmt: skip
_LISTS = {"newly_added.0.": "classifier.", "mean_shift.": "fc_dp7.4."}


def _strip(name: str, prefixes: tuple[str, ...]) -> str:
    while name.startswith(prefixes):
        name = name.split(".", 1)[1]
    return name


def _original(name: str, stages: Mapping[str, str]) -> str:
    """The name under which a published duplicate stands here; other names as they are, less a `backbone.` in front."""
    parts = name.split(".", 2)
    if len(parts) == 3 and parts[1].isdecimal():
        branch = {"edge_layers": "fc_edge", "dp_layers": "fc_dp", "backbone": "stage"}.get(parts[0])
        if branch:
            name = f"{branch}{int(parts[1]) + 1}.{parts[2]}"
    for duplicate, original in {**stages, **_LISTS}.items():
        if name.startswith(duplicate):
            return original + name[len(duplicate) :]
    return name.removeprefix("backbone.")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _is_head(name: str) -> bool:
    return name.startswith(("classifier.", "fc_edge", "fc_dp"))


def _some(items: list[str], n: int = 4) -> str:
    return ", ".join(items[:n]) + (f" and {len(items) - n} more" if len(items) > n else "")
