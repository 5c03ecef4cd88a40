"""What a step is, and which ones a command line asks for."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field

from data.errors import UserError


@dataclass(frozen=True)
class Step:
    """One step: its number and name, the module whose run(args, **options) does it, what it reads and writes.

    number: None for a step that stands apart from the chain and runs only where it is asked for by its name.
    needs_masks: it is left out for a dataset without ground truth. needs_dataset: without it, it runs without any.
    """

    number: int | None
    name: str
    module: str
    reads: str
    writes: str
    options: dict = field(default_factory=dict)
    needs_masks: bool = False
    needs_dataset: bool = True

    @property
    def title(self) -> str:
        """Number and name."""
        return self.name if self.number is None else f"{self.number} {self.name}"


def choose(steps: Sequence[Step], args: argparse.Namespace) -> list[Step]:
    """The steps to run, in order. UserError for a step that there is not."""
    flags = {step.name: getattr(args, f"{step.name}_pass") for step in steps}
    if args.steps is not None:
        chosen = _select(steps, args.steps)
        chosen |= {name for name, flag in flags.items() if flag}
    elif any(flags.values()):
        chosen = {name for name, flag in flags.items() if flag}
    else:
        chosen = {step.name for step in steps if step.number is not None}
    plan = [step for step in steps if step.name in chosen and flags[step.name] is not False]
    if not plan:
        raise UserError("no step is left to run: every one that was asked for is also switched off")
    return plan


def _select(steps: Sequence[Step], text: str) -> set[str]:
    keys = {key: i for i, step in enumerate(steps) for key in (_number(step), step.name) if key}

    def index(key: str) -> int:
        if key not in keys:
            known = ", ".join(step.title for step in steps)
            raise UserError(f"--steps: there is no step {key!r}; there are {known}")
        return keys[key]

    chosen: set[str] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, dash, last = part.partition("-")
        begin, end = index(first.strip()), index((last if dash else first).strip())
        if begin > end:
            raise UserError(f"--steps: {part} runs backwards; steps always run in their own order")
        if dash and None in (steps[begin].number, steps[end].number):
            raise UserError(f"--steps: {part} is no range; a step without a number is asked for by its name alone")
        chosen |= {step.name for step in steps[begin : end + 1]}
    if not chosen:
        raise UserError("--steps names no step; see --list_steps")
    return chosen


def _number(step: Step) -> str:
    return "" if step.number is None else str(step.number)


def table(steps: Sequence[Step]) -> str:
    """The steps as text."""
    rows = [("", "step", "reads", "writes"), *((_number(s), s.name, s.reads, s.writes) for s in steps)]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
