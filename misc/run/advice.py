"""What to change where a step runs out of memory."""

import argparse
import contextlib
from collections.abc import Iterator

from data.errors import UserError
from misc.memory import out_of_memory
from misc.run.outputs import OUTPUTS


@contextlib.contextmanager
def within_memory(args: argparse.Namespace, step: str) -> Iterator[None]:
    """Where memory runs out, UserError with what this step can save; what changes its results needs `--overwrite`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        what = (str(error).splitlines() or ["out of memory"])[0].rstrip(".")
        raise UserError(f"step {step}: {what}; {_advice(args, step)}") from error


def _advice(args: argparse.Namespace, step: str) -> str:
    resume, redo = "run the command again; it resumes", f"--steps {step}-report --overwrite"
    if step.startswith("train_"):
        kind = step.removeprefix("train_")
        same = step == "train_irn" or (step == "train_cam" and args.cam_init != "scratch")
        return f"raise --{kind}_accumulate and {resume if same else f'use {redo}'}"
    advice, less = f"use --device cpu or fewer --num_workers and {resume}", []
    if any(o.step == step and "precision" in o.arguments for o in OUTPUTS.values()):
        less += ["--max_side PX", "--precision bf16"][: 1 + (args.precision != "bf16")]
    if step == "make_rib_cam":
        less += ["a smaller --RIB_crop_size", "a smaller --RIB_pool_size"][: 1 + (args.RIB_companions == "pool")]
    return f"{advice}; or {' or '.join(less)} with {redo}" if less else advice
