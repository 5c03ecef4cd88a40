"""Each oddity of the published code, "fixed" in a copy of the project: some test must notice.

make slow                              all of it
python -m tests.test_mutations         the table: which test caught which mutation
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TESTS = ("tests/test_golden.py", "tests/test_rib.py", "tests/test_torchutils.py", "tests/test_metrics.py")

# what is "fixed": file, then (as it is, as mutated) pairs
MUTATIONS = {
    "momentum 0.9 instead of the weight decay": (
        "misc/torchutils.py",
        [("lr, momentum=weight_decay, **", "lr, momentum=0.9, **")],
    ),
    "GNDRP divided by the kept positions": (
        "misc/rib.py",
        [("return (cam * mask).mean((-2, -1))", "return (cam * mask).sum((-2, -1)) / mask.sum((-2, -1)).clamp(min=1)")],
    ),
    "all scales added at an explosion": (
        "misc/rib.py",
        [("range(1 if exploded else len(cams))", "range(len(cams))")],
    ),
    "the first step may explode": (
        "misc/rib.py",
        [("exploded = k > 0 and coverage", "exploded = coverage")],
    ),
    "relu before pooling": (
        "misc/rib.py",
        [("gndrp(cam, self.score_th)", "gndrp(torch.relu(cam), self.score_th)")],
    ),
    "stop threshold on one scale's logits": (
        "misc/rib.py",
        [("for _, target, _ in outcomes[: len(image) - 1])", "for _, target, _ in outcomes[:1])")],
    ),
    "scale 0.5 in the loss": (
        "misc/rib.py",
        [("learns and i != 1", "learns")],
    ),
    "nothing": ("misc/rib.py", []),
    "ties to the class in the sweep": (
        "misc/metrics.py",
        [('value, side="left")', 'value, side="right")')],
    ),
    "loss averaged instead of summed": (
        "misc/rib.py",
        [("(self.activation(logits) * y).sum()", "(self.activation(logits) * y).mean()")],
    ),
}


def caught_by(name):
    """The tests that fail when a mutation is applied to a copy of the project."""
    file, replacements = MUTATIONS[name]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".venv", ".git", "result", "__pycache__"))
        text = (copy / file).read_text()
        for old, new in replacements:
            assert text.count(old) == 1, f"{file} no longer holds {old!r} once"
            text = text.replace(old, new)
        (copy / file).write_text(text)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rf", "--tb=no", *TESTS]
        printed = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=900).stdout
    assert re.search(r"\d+ passed", printed), printed
    return re.findall(r"^FAILED \S+::(\S+)", printed, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_mutation_is_noticed(name):
    assert bool(caught_by(name)) == (name != "nothing")


if __name__ == "__main__":
    for mutation in MUTATIONS:
        print(f"| {mutation} | {', '.join(caught_by(mutation))} |", flush=True)
