"""docs/arguments.md from the program's own options: `python -m misc.report.arguments > docs/arguments.md`."""

from data import DATASETS, data_module
from misc.report.tables import Table
from misc.run.options import OPTIONS
from misc.run.provenance import shown

INTRODUCTION = """# Arguments

`python run_sample.py --help` shows the usual ones, `--help_all` all, with the values of the chosen dataset. The command
line wins over `--config FILE.yaml`, that over the dataset's preset, and that over the defaults below. In a YAML file,
names stand without dashes. "Also" are names of the published code that mean the same. Every step has a flag of its
own too: `--STEP_pass` runs only the steps so named, `--no-STEP_pass` leaves one out.
"""


def arguments() -> str:
    """Every argument in a table per group: default, presets that differ, meaning and source of the value."""
    presets = {name: data_module(name).PRESET for name in DATASETS}
    parts = [INTRODUCTION]
    for title, options in OPTIONS.items():
        rows = []
        for option in options:
            # The number of workers is that of the machine's cores.
            unset = option.default is None or option.default is False or option.name == "num_workers"
            default = "" if unset else shown(option.default)
            own = {name: shown(preset[option.name][0]) for name, preset in presets.items() if option.name in preset}
            own = [f"{name}: {value}" for name, value in own.items() if value != default]
            text = option.help + (f" (choices: {', '.join(option.choices)})" if option.choices else "")
            text += "".join(f". Also: --{name}" for name in option.also)
            rows.append([f"--{option.name}", "; ".join([default, *own]).strip("; "), text, option.source])
        table = Table(title[0].upper() + title[1:], ("argument", "default; by dataset", "meaning", "source"), rows)
        parts.append(table.markdown().replace("---:", "---"))
    return "\n".join(parts)


if __name__ == "__main__":
    print(arguments(), end="")
