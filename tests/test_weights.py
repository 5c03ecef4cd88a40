"""Every checkpoint layout in, and what is said about files that do not fit."""

import numpy as np
import pytest
import torch

from net import resnet50_cam, resnet50_irn, weights
from net.weights import WeightsError
from tests.helpers import Payload, golden_state, published

NETWORKS = {
    "classifier": lambda: resnet50_cam.Net(4, "resnet14"),
    "irn": lambda: resnet50_irn.Net("resnet14"),
}


def values(model):
    return {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}


@pytest.fixture(scope="module", params=list(NETWORKS))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def state(kind):
    """Golden weights by the names used here; every tensor differs from every other of its shape."""
    return golden_state(NETWORKS[kind]())


@pytest.fixture
def model(kind):
    return NETWORKS[kind]()


HEADS = ("newly_added", "edge_layers", "dp_layers")


def only(state, *prefixes):
    return {name: value for name, value in state.items() if name.startswith(prefixes)}


def heads(state):
    return only(state, "classifier.", "fc_")


def backbone(state):
    return {name: value for name, value in state.items() if name not in heads(state)}


def check(model, state, chosen=None):
    for name in chosen or values(model):
        assert torch.equal(model.state_dict()[name], state[name]), name


def refused(given, message, model=None):
    """A state or a file is refused with `message`, in one line and without a change of the network."""
    model = model or NETWORKS["classifier"]()
    before = {name: value.clone() for name, value in values(model).items()}
    with pytest.raises(WeightsError, match=message) as error:
        weights.load(model, given)
    assert "\n" not in str(error.value)
    check(model, before)


LAYOUTS = {
    "own names": lambda kind, state: state,
    "published": published,
    "duplicates only": lambda kind, state: published(kind, state, originals=False),
    "stages only": lambda kind, state: only(published(kind, state, originals=False), "stage", *HEADS),
    "list of stages only": lambda kind, state: only(published(kind, state, originals=False), "backbone", *HEADS),
    "resnet50 and heads": lambda kind, state: {
        **{f"resnet50.{name}": value for name, value in backbone(state).items()}, **heads(state)
    },
}  # fmt: skip


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_every_layout_loads(kind, state, model, layout):
    given = LAYOUTS[layout](kind, state)
    for prefix in ("", "module."):
        model.load_state_dict(NETWORKS[kind]().state_dict())
        weights.load(model, {f"{prefix}{name}": value for name, value in given.items()})
        check(model, state)


PUBLISHED_NAMES = {
    "classifier": "resnet50.conv1.weight stage1.4.0.conv1.weight stage4.0.0.bn3.bias backbone.3.0.0.conv2.weight "
    "newly_added.0.weight",
    "irn": "stage1.1.bias stage5.0.0.conv3.weight backbone.4.0.0.conv3.weight edge_layers.5.bias dp_layers.6.3.weight "
    "mean_shift.running_mean fc_dp7.4.running_mean",
}


def test_published_layouts_hold_what_they_are_said_to(kind, state):
    """The builder above against names copied from published files."""
    assert set(PUBLISHED_NAMES[kind].split()) <= set(published(kind, state))


def test_the_mean_displacement_comes_from_its_duplicate():
    model = NETWORKS["irn"]()
    state = {n: v for n, v in golden_state(model).items() if n != "fc_dp7.4.running_mean"}
    weights.load(model, {**state, "mean_shift.running_mean": torch.tensor([3.0, 4.0])})
    assert model.mean_shift.running_mean.tolist() == [3.0, 4.0]


def test_own_names_win_over_duplicates(kind, state, model):
    names = ("conv1.weight", "layer4.0.bn3.bias", "classifier.weight" if kind == "classifier" else "fc_edge6.weight")
    others = published(kind, {name: torch.zeros_like(value) for name, value in state.items()}, originals=False)
    for given in ({**others, **state}, {**state, **others}):  # in either order
        weights.load(model, given)
        check(model, state, names)


def test_a_classifier_loads_into_the_boundary_network(tmp_path):
    """The start of `--irn_backbone cam`, from our file and from the published one."""
    state = golden_state(NETWORKS["classifier"]())
    for given in (state, published("classifier", state, originals=False)):
        model = NETWORKS["irn"]()
        before = {name: value.clone() for name, value in heads(values(model)).items()}
        weights.load(model, given, backbone_only=True)
        check(model, state, backbone(values(model)))
        check(model, before, before)
        with pytest.raises(WeightsError, match=rf"lacks {len(before)} of \d+ tensors: fc_edge1\.0\.weight"):
            weights.load(model, given)


@pytest.mark.parametrize(
    ("key", "prefix"),
    [(None, ""), ("model_state_dict", ""), ("net", "module."), ("state_dict", "model."), ("model", "module.model.")],
)
def test_a_classifier_of_torchvision_loads(tmp_path, key, prefix):
    """Whose head is a linear layer `fc`, with a bias that a CAM has no use for; in half precision."""
    model = NETWORKS["classifier"]()
    state = {name: value.half().float() for name, value in golden_state(model).items()}
    theirs = {**backbone(state), "fc.weight": state["classifier.weight"].flatten(1), "fc.bias": torch.ones(4)}
    theirs = {f"{prefix}{name}": value.half() for name, value in theirs.items()}
    torch.save({"epoch": 3, "optimizer": {}, key: theirs} if key else theirs, tmp_path / "w.pth")
    weights.load(model, tmp_path / "w.pth")
    check(model, state)


def test_a_classifiers_own_head_wins_over_that_of_imagenet():
    """In the published files `fc` is still there."""
    model = NETWORKS["classifier"]()
    state = golden_state(model)
    weights.load(model, {"resnet50.fc.weight": torch.zeros(1000, 512), **published("classifier", state)})
    check(model, state)


# files


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_file_with_code_is_refused_and_not_run(state, model, tmp_path, zipped):
    torch.save(
        {**state, "more": Payload(tmp_path / "trace")}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped
    )
    refused(tmp_path / "w.pth", r"w\.pth holds more than tensors, or is damaged, and is refused", model)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_files(kind, state, model, tmp_path, zipped):
    """By the doubled name that the published scripts write."""
    torch.save(published(kind, state), tmp_path / "w.pth.pth", _use_new_zipfile_serialization=zipped)
    weights.load_backbone(model, str(tmp_path / "w.pth"))
    check(model, state, backbone(values(model)))
    weights.load(model, tmp_path / "w.pth")
    check(model, state)


def another_network(state):
    return golden_state(resnet50_cam.Net(20, "resnet14"))


N_CLASSES = r"classifier\.weight is \(20, .*, wanted \(4, .*; it was trained for another number of"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: dict(list(s.items())[1:]),
            r"lacks 1 of \d+ tensors: conv1\.weight; is it for this network\?",
        ),
        (lambda s: {**s, "conv1.weight": torch.zeros(1, 2)}, r"conv1\.weight is \(1, 2\), wanted \(\d+, 3, 7, 7\)$"),
        (another_network, N_CLASSES),
        (lambda s: published("classifier", another_network(s), originals=False), N_CLASSES),
        (lambda s: {**s, "conv1.weight": s["conv1.weight"] / 0}, r"not finite in conv1\.weight; fetch or make it"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_change_nothing(tmp_path, change, message):
    torch.save(change(golden_state(NETWORKS["classifier"]())), tmp_path / "w.pth")
    refused(tmp_path / "w.pth", rf"w\.pth .*{message}")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_damaged_files_and_files_of_something_else_are_named(tmp_path, zipped):
    path = tmp_path / "w.pth"
    refused(path, r"w\.pth does not exist")
    for content in ([1, 2], {"a": 1}):
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        refused(path, r"w\.pth holds no state dict")
    torch.save({"a": torch.zeros(100)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for body in (b"", whole[:100], whole[: len(whole) // 2], whole[:-1], b"<html>not found</html>"):
        path.write_bytes(body)
        refused(path, r"w\.pth (is not a whole checkpoint|holds more than tensors, or is damaged)")


def test_imagenet_weights_without_a_network_say_what_to_do(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    model = torch.nn.Module()
    model.arch_name = "resnet50"
    with pytest.raises(WeightsError, match=r"no route\); without a network, put https://.*\.pth into .*checkpoints"):
        weights.load_backbone(model, "imagenet")


def test_a_turned_bit_is_noticed(tmp_path):
    """In the middle of the numbers, where the file stays readable and the number finite."""
    torch.save({"a": torch.arange(4000.0)}, tmp_path / "w.pth")
    data = bytearray((tmp_path / "w.pth").read_bytes())
    data[data.index(np.arange(4000, dtype=np.float32).tobytes()) + 5000] ^= 1
    (tmp_path / "w.pth").write_bytes(data)
    assert torch.load(tmp_path / "w.pth", weights_only=True)["a"].isfinite().all()  # which takes it
    with pytest.raises(WeightsError, match=r"the checksum of .* is wrong"):
        weights.read(tmp_path / "w.pth")
