"""Every checkpoint layout in, and what is said about files that do not fit."""

import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from net import resnet50_cam, resnet50_irn, weights
from net.weights import WeightsError
from tests.helpers import golden_state

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


# The published networks as module lists: attribute -> what it holds, by its name here.
CLASSIFIER_STAGES = (
    ("conv1", "bn1", None, None, "layer1"),  # conv1, bn1, relu, maxpool, layer1
    ("layer2",), ("layer3",), ("layer4",),
)  # fmt: skip
IRN_STAGES = (("conv1", "bn1", None, None), ("layer1",), ("layer2",), ("layer3",), ("layer4",))


def published(kind, state, originals=True):
    """The state dict of the published network; originals: with the tensors' own names beside the duplicates."""
    out = {}
    for name, value in state.items():
        head, _, rest = name.partition(".")
        if name.startswith("classifier."):
            out[f"newly_added.0.{rest}"] = value
        elif name.startswith(("fc_edge", "fc_dp")):
            branch = "edge" if name.startswith("fc_edge") else "dp"
            i = int(head[len(f"fc_{branch}") :]) - 1
            out[f"{branch}_layers.{i}.{rest}"] = value
            if name == "fc_dp7.4.running_mean":
                out["mean_shift.running_mean"] = value
        else:
            for i, stage in enumerate(CLASSIFIER_STAGES if kind == "classifier" else IRN_STAGES):
                if head in stage:
                    out[f"stage{i + 1}.{stage.index(head)}.{rest}"] = value
                    out[f"backbone.{i}.{stage.index(head)}.{rest}"] = value
            if originals:
                out[f"resnet50.{name}"] = value
            continue
        if originals:
            out[name] = value
    return out


def only(state, *prefixes):
    return {name: value for name, value in state.items() if name.startswith(prefixes)}


def backbone(state):
    return {name: value for name, value in state.items() if not name.startswith(("classifier.", "fc_"))}


def heads(state):
    return {name: value for name, value in state.items() if name.startswith(("classifier.", "fc_"))}


def check(model, state, chosen=None):
    for name in chosen or values(model):
        assert torch.equal(model.state_dict()[name], state[name]), name


LAYOUTS = {
    "own names": lambda kind, state: state,
    "without counters": lambda kind, state: {
        n: v for n, v in state.items() if not n.endswith("num_batches_tracked")
    },
    "published": published,
    "duplicates only": lambda kind, state: published(kind, state, originals=False),
    "stages only": lambda kind, state: only(
        published(kind, state, originals=False), "stage", "newly_added", "edge_layers", "dp_layers"
    ),
    "list of stages only": lambda kind, state: only(
        published(kind, state, originals=False), "backbone", "newly_added", "edge_layers", "dp_layers"
    ),
    "resnet50 and heads": lambda kind, state: {
        **{f"resnet50.{name}": value for name, value in backbone(state).items()}, **heads(state)
    },
    "plain backbone": lambda kind, state: {
        **{f"backbone.{name}": value for name, value in backbone(state).items()}, **heads(state)
    },
}  # fmt: skip


@pytest.mark.parametrize("parallel", [False, True], ids=["", "module"])
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_every_layout_loads(kind, state, model, layout, parallel):
    given = LAYOUTS[layout](kind, state)
    if parallel:
        given = {f"module.{name}": value for name, value in given.items()}
    weights.load(model, given)
    check(model, state)


def test_published_layouts_hold_what_they_are_said_to():
    """The builder above against names copied from published files."""
    names = published("classifier", golden_state(NETWORKS["classifier"]()))
    for name in (
        "resnet50.conv1.weight", "stage1.0.weight", "stage1.1.running_var", "stage1.4.0.conv1.weight",
        "stage2.0.0.downsample.0.weight", "stage4.0.0.bn3.bias", "backbone.0.0.weight", "backbone.3.0.0.conv2.weight",
        "newly_added.0.weight", "classifier.weight",
    ):  # fmt: skip
        assert name in names
    names = published("irn", golden_state(NETWORKS["irn"]()))
    for name in (
        "stage1.0.weight", "stage1.1.bias", "stage2.0.0.conv1.weight", "stage5.0.0.conv3.weight",
        "backbone.4.0.0.conv3.weight", "edge_layers.5.bias", "dp_layers.6.3.weight", "dp_layers.0.1.weight",
        "mean_shift.running_mean", "fc_dp7.4.running_mean",
    ):  # fmt: skip
        assert name in names


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


# files


@pytest.mark.parametrize("key", [None, "state_dict", "model"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_files(kind, state, model, tmp_path, key, zipped):
    content = published(kind, state)
    torch.save(
        {key: content, "epoch": 3} if key else content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped
    )
    weights.load(model, tmp_path / "w.pth")
    check(model, state)
    model = NETWORKS[kind]()
    weights.load_backbone(model, str(tmp_path / "w.pth"))
    check(model, state, backbone(values(model)))


def test_the_doubled_name_is_found(kind, state, model, tmp_path):
    torch.save(state, tmp_path / "w.pth.pth")
    weights.load(model, tmp_path / "w.pth")
    check(model, state)
    torch.save({}, tmp_path / "w.pth")
    with pytest.raises(WeightsError):  # the file itself comes first
        weights.load(model, tmp_path / "w.pth")


def test_a_missing_file_is_named(model, tmp_path):
    with pytest.raises(WeightsError, match=r"w\.pth does not exist"):
        weights.load(model, tmp_path / "w.pth")


def test_missing_tensors_are_named(state, model, tmp_path):
    names = list(values(model))
    torch.save({name: state[name] for name in names[5:]}, tmp_path / "w.pth")
    with pytest.raises(WeightsError) as error:
        weights.load(model, tmp_path / "w.pth")
    wanted = f"{tmp_path / 'w.pth'} lacks 5 of {len(names)} tensors: {', '.join(names[:4])} and 1 more"
    assert str(error.value) == f"{wanted}; is it for this network?"


def test_nothing_is_loaded_from_a_file_that_does_not_fit(state, model):
    before = {name: value.clone() for name, value in values(model).items()}
    last = list(before)[-1]
    for given in ({n: v for n, v in state.items() if n != last}, {**state, last: torch.zeros(7, 7)}):
        with pytest.raises(WeightsError, match=last):
            weights.load(model, given)
        check(model, before)


def test_another_number_of_classes_is_said():
    given = golden_state(resnet50_cam.Net(20, "resnet14"))
    wanted = r"classifier\.weight is \(20, (\d+), 1, 1\), wanted \(4, \1, 1, 1\); it was trained for another number of"
    with pytest.raises(WeightsError, match=wanted):
        weights.load(NETWORKS["classifier"](), given)
    with pytest.raises(WeightsError, match=wanted):
        weights.load(NETWORKS["classifier"](), published("classifier", given, originals=False))


def test_another_shape_is_said(state, model):
    with pytest.raises(
        WeightsError, match=r"does not fit the network: conv1\.weight is \(1, 2\), wanted \(\d+, 3, 7, 7\)$"
    ):
        weights.load(model, {**state, "conv1.weight": torch.zeros(1, 2)})


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_file_with_code_is_refused_and_not_run(state, model, tmp_path, zipped):
    trace = tmp_path / "trace"
    torch.save({**state, "more": Payload(trace)}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"w\.pth holds more than tensors, or is damaged, and is refused"):
        weights.load(model, tmp_path / "w.pth")
    assert not trace.exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_truncated_file_is_named(tmp_path, zipped):
    path = tmp_path / "w.pth"
    torch.save({"a": torch.zeros(100)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for length in (0, 1, 10, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(
            WeightsError, match=r"w\.pth (is not a whole checkpoint|holds more than tensors, or is damaged)"
        ):
            weights.read(path)


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(2), {"a": 1}, {"state_dict": {"a": [torch.zeros(1)]}}])
def test_a_file_of_something_else_is_named(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth holds no state dict"):
        weights.read(tmp_path / "w.pth")


def test_something_else_than_a_checkpoint_is_named(tmp_path):
    for body in (b"<html>not found</html>", b"\x89PNG\r\n\x1a\n" + bytes(50), b"PK\x03\x04" + bytes(50)):
        (tmp_path / "w.pth").write_bytes(body)
        with pytest.raises(
            WeightsError, match=r"w\.pth (is not a whole checkpoint|holds more than tensors, or is damaged)"
        ):
            weights.read(tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["backbone", "backbone.0", "edge_layers.x.weight", "stage1", "module.", ""])
def test_strange_names_are_passed_over(state, model, name):
    weights.load(model, {**state, name: torch.zeros(1)})
    check(model, state)


def test_imagenet_weights_without_a_network_say_what_to_do(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    model = torch.nn.Module()
    model.arch_name = "resnet50"
    with pytest.raises(WeightsError, match=r"no route\); without a network, put https://.*\.pth into .*checkpoints"):
        weights.load_backbone(model, "imagenet")


def test_values_that_are_not_finite_are_named(state, model, tmp_path):
    name = next(name for name in state if state[name].is_floating_point())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = {**state, name: torch.full_like(state[name], float("nan"))}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=rf"w\.pth holds values that are not finite in {name}; fetch or make it"):
        weights.load(model, tmp_path / "w.pth")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_turned_bit_is_noticed(tmp_path):
    """In the middle of the numbers, where the file stays readable and the number finite."""
    torch.save({"a": torch.arange(4000.0)}, tmp_path / "w.pth")
    data = bytearray((tmp_path / "w.pth").read_bytes())
    data[data.index(np.arange(4000, dtype=np.float32).tobytes()) + 5000] ^= 1
    (tmp_path / "w.pth").write_bytes(data)
    assert torch.load(tmp_path / "w.pth", weights_only=True)["a"].isfinite().all()  # which takes it
    with pytest.raises(WeightsError, match=r"the checksum of .* is wrong"):
        weights.read(tmp_path / "w.pth")


class Larger:
    """A tensor of more numbers than its storage has, which may be made larger: by what lies in memory."""

    def __init__(self, storage, size):
        self.storage, self.size = storage, size

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (self.storage, 0, self.size, (1,), False, OrderedDict())


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("zipped", [True, False])
def test_a_tensor_beyond_its_storage_is_refused(tmp_path, zipped):
    value = {"a": Larger(torch.ones(4).storage(), (100_000,))}
    torch.save(value, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="not a whole checkpoint"):
        weights.read(tmp_path / "w.pth")


def test_a_file_that_grows_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1_000_000)}, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as old, zipfile.ZipFile(tmp_path / "w.pth", "w", 8) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(WeightsError, match="it claims more than it holds"):
        weights.read(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")  # how torch reads the file of this test
def test_tensors_of_other_kinds_are_refused(tmp_path):
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="not plain numbers"):
        weights.read(tmp_path / "w.pth")
