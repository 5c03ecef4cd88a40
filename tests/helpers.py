"""What several tests share: golden files, the seeded weights they were recorded with, run_sample.py in this process."""

import contextlib
import io
import logging
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from data.images import read_mask

RECORDED: list[tuple[str, float]] = []  # (test, relative error), for the table of `--golden_table`
ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"
SCRATCH = ("--config", str(ROOT / "tests" / "scratch.yaml"))  # networks that need no weights
MASKS = ("ir_label", "sem_seg", "sem_seg_cam", "seg", "seg_cam", "seg_truth")


def golden(name: str) -> dict[str, np.ndarray]:
    """The arrays of tests/golden/NAME.npz: outputs of the published code on small seeded inputs, float32, CPU."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def golden_tensor(name: str, shape: tuple[int, ...], seed: int = 1) -> torch.Tensor:
    """The seeded weight that the golden files were recorded with, by parameter name."""
    z = np.random.RandomState((zlib.crc32(name.encode()) + 7919 * seed) % 2**32).randn(*shape)
    if name.endswith("running_mean"):
        z = 0.1 * z
    elif name.endswith("running_var"):
        z = 1 + 0.1 * np.abs(z)
    elif name.endswith("bias"):
        z = 0.05 * z
    elif len(shape) == 1:
        z = 0.3 + 0.05 * z if "bn3" in name else 1 + 0.1 * z
    elif name == "classifier.weight":
        z = 0.02 * z + 0.005
    else:
        z = z * np.sqrt(2 / np.prod(shape[1:]))
    return torch.from_numpy(z.astype(np.float32))


def golden_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A state dict for `model` of golden weights; counters stay as they are."""
    return {
        name: value if name.endswith("num_batches_tracked") else golden_tensor(name, tuple(value.shape))
        for name, value in model.state_dict().items()
    }


# The published networks as module lists: attribute -> what it holds, by its name here.
CLASSIFIER_STAGES = (
    ("conv1", "bn1", None, None, "layer1"),  # conv1, bn1, relu, maxpool, layer1
    ("layer2",), ("layer3",), ("layer4",),
)  # fmt: skip
IRN_STAGES = (("conv1", "bn1", None, None), ("layer1",), ("layer2",), ("layer3",), ("layer4",))


def published(kind: str, state: dict[str, torch.Tensor], originals: bool = True) -> dict[str, torch.Tensor]:
    """The state dict of the published network, `classifier` or `irn`.

    originals: with the tensors' own names beside the duplicates.
    """
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


def relative_error(got, wanted) -> float:
    """Largest absolute difference over the largest absolute value wanted."""
    got, wanted = (np.asarray(torch.as_tensor(x).detach().double()) for x in (got, wanted))
    assert got.shape == wanted.shape, f"{got.shape} against {wanted.shape}"
    error = float(np.abs(got - wanted).max() / np.abs(wanted).max())
    RECORDED.append((os.environ["PYTEST_CURRENT_TEST"].split("::")[-1].split(" ")[0], error))
    return error


def run_cli(*argv: str, steps: Sequence | None = None) -> int:
    """run_sample.py without the start of a process, with its own steps or others: its exit code.

    Logging is left as it was.
    """
    from misc.run.runner import main
    from run_sample import STEPS

    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        return main(STEPS if steps is None else steps, [str(word) for word in argv])
    finally:
        for handler in set(root.handlers) - set(before):
            handler.close()
        root.handlers[:] = before
        root.setLevel(level)


def said(*argv: str, code: int = 0) -> str:
    """What run_sample.py says in this process, on both streams; its exit code must be `code`."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        got = run_cli(*argv)
    assert got == code, f"exit code {got}: {err.getvalue()[-3000:]}"
    return out.getvalue() + err.getvalue()


def write_classifier(work_dir: Path, n_classes: int, arch: str = "resnet14") -> None:
    """A classifier of golden weights where `--work_dir` has that of train_cam; it has learnt nothing."""
    from net.resnet50_cam import CAM

    state = golden_state(CAM(n_classes, arch))
    state["classifier.weight"] -= 0.005  # mean 0: raw CAMs of both signs
    (work_dir / "sess").mkdir(parents=True)
    torch.save(state, work_dir / "sess" / "res50_cam.pth")


def write_networks(work_dir: Path, n_classes: int, arch: str = "resnet14") -> None:
    """All three networks of golden weights where `--work_dir` has them."""
    from net.deeplabv2 import build
    from net.resnet50_irn import EdgeDisplacement

    write_classifier(work_dir, n_classes, arch)
    torch.save(golden_state(EdgeDisplacement(0, arch=arch)), work_dir / "sess" / "res50_irn.pth")
    network = build(f"deeplabv2_{arch}", n_classes + 1, (1.0,), (1, 2, 3, 4), True)
    torch.save(golden_state(network), work_dir / "sess" / "deeplabv2.pth")


def small_arguments(work_dir: Path, *arguments: str) -> list[str]:
    """Arguments that take the whole pipeline through 8 small shapes in well under a minute.

    The classifier learns enough for masks that hold background and foreground (`assert_mixed`).
    """
    small = (
        "--device cpu --shapes_train 12 --shapes_val 8 --shapes_size 48 --limit 8 --num_workers 1 --cam_num_epoches 16 "
        "--cam_crop_size 48 --cam_batch_size 4 --RIB_iter 2 --RIB_batch_size 2 --RIB_crop_size 48 "
        "--conf_fg_thres 0.35 --conf_bg_thres 0.2 --irn_num_epoches 2 --irn_crop_size 48 --irn_batch_size 4 "
        "--exp_times 2 --sem_seg_bg_thres 0.35 --seg_iter 12 --seg_lr 1e-4 --seg_checkpoint_every 4 "
        "--seg_batch_size 4 --seg_crop_size 48 --seg_crf_iter 2"
    ).split()
    return ["--work_dir", str(work_dir), *SCRATCH, *small, *map(str, arguments)]


def small_command(work_dir: Path, *arguments: str) -> list[str]:
    """The command line with `small_arguments`, for what needs a process of its own."""
    return [sys.executable, "run_sample.py", *small_arguments(work_dir, *arguments)]


def torchrun(*argv: str, ranks: int = 2) -> str:
    """run_sample.py as `ranks` processes of torchrun with one thread each: what they wrote to standard error."""
    return started(*argv, launch=("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"))


def started(*argv: str, launch: Sequence[str] = ()) -> str:
    """run_sample.py as a process of its own, with one thread: what it wrote to standard error."""
    command = [sys.executable, *launch, "run_sample.py", *map(str, argv)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def children(pid: int) -> list[int]:
    """Process ids of the children of a process, whichever of its threads started them (Linux)."""
    files = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(number) for file in files for number in file.read_text().split()]


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def undocumented(step: str, values: dict) -> list[str]:
    """Those of a step's own keys in metrics.json that docs/metrics.md leaves out."""
    known = {".".join(key.split(".")[:2]) for key in documented()}
    return [key for key in values if not {f"{step}.{key}", f"STEP.{key}"} & known]


def documented() -> list[str]:
    """The key patterns of docs/metrics.md."""
    return re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)


def assert_mixed(work_dir: Path, kinds: Sequence[str] = MASKS) -> None:
    """AssertionError unless in each folder most masks hold background and foreground: equal bytes then say something.

    A mask of one value is what nearly any mistake in the steps before it would give too.
    """
    for kind in kinds:
        masks = [read_mask(path) for path in sorted((work_dir / kind).glob("*.png"))]
        mixed = sum(bool((mask == 0).any() and ((mask > 0) & (mask < 255)).any()) for mask in masks)
        assert 2 * mixed > len(masks), f"{kind}: {mixed} of {len(masks)} masks hold background and foreground"
