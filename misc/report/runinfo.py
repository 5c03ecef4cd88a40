"""The run in words: settings that differ from the preset, hardware, seconds per step."""

import json
from pathlib import Path

from data.errors import DataError, UserError
from data.files import load_json
from misc.report.markup import Html, html, join, measured_cell, number, tag
from misc.run.made_by import NAME, read
from misc.run.presets import preset
from misc.run.workdir import PLACES, beside

# Arguments that say where and how to run, not what is computed.
ELSEWHERE = (
    "data_root", "work_dir", "config", "steps", "list_steps", "dry_run", "check_data", "overwrite", "skip_bad",
    "compare", "tensorboard", "num_workers", "coco_json", "dataset", "help",
)  # fmt: skip


def calls(folder: Path) -> list[dict]:
    """What args.json says of every call that wrote into a work_dir, the oldest first."""
    last = load_json(Path(folder) / "args.json")
    return [*last.pop("earlier", []), last] if last else []


def settings(folder: Path) -> dict[str, object]:
    """Arguments that are not as the preset of the dataset has them, as the records of the results in `folder` say.

    Of arguments that no record tells of: what some call set, of several values the last. Where results were made with
    several values, the text of all, each with the results.
    """
    out: dict[str, object] = {}
    known: dict[str, tuple[object, str]] = {}
    for call in calls(folder):
        given = call.get("arguments", {})
        known = _preset(given.get("dataset", ""))
        for name, value in given.items():
            source = call.get("sources", {}).get(name, "default")
            if name in ELSEWHERE or name.endswith(("_pass", "_out_dir")):
                continue
            if source == "command line" or source.startswith("config "):
                wanted, _ = known.get(name, (None, ""))
                if json.loads(json.dumps(wanted)) != value:
                    out[name] = value
                else:
                    out.pop(name, None)
    for name, values in _told(folder).items():  # a call that was refused has made nothing
        wanted = json.loads(json.dumps(known[name][0])) if name in known else None
        if (name not in known and name not in out) or all(value == wanted for value in values.values()):
            out.pop(name, None)
        elif len({shown(value) for value in values.values()}) == 1:
            out[name] = next(iter(values.values()))
        else:
            out[name] = ", ".join(f"{shown(value)} ({where})" for where, value in values.items())
    return dict(sorted(out.items()))


def _told(folder: Path) -> dict[str, dict[str, object]]:
    """Argument -> the results below `folder` that were made with it, and its value there."""
    found: dict[str, dict[str, object]] = {}
    for argument, entry in PLACES.items():
        path = Path(folder) / entry.path
        try:
            record = read(path / NAME if argument.endswith("_out_dir") else beside(path, NAME))
        except UserError:  # damaged
            continue
        for key, value in (record or {}).get("arguments", {}).items():
            name = key.removeprefix("--")
            if name != key and name not in ELSEWHERE and not name.endswith("_list"):
                found.setdefault(name, {})[entry.path] = value
    return found


def _preset(dataset: str) -> dict[str, tuple[object, str]]:
    try:
        return preset(dataset)
    except DataError:  # the user's own file, moved since
        return {}


def shown(value: object) -> str:
    """A setting as it would be typed."""
    if isinstance(value, list | tuple):
        return ",".join(map(shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def hardware(folder: Path) -> str:
    """The machines that took part."""
    texts = []
    for call in calls(folder):
        machine = call.get("hardware", {})
        on_cpu = call.get("arguments", {}).get("device") == "cpu" or not machine.get("gpu")
        cores = f"{machine.get('cores')} cores"
        text = f"{machine.get('cpu')}, {cores}" if on_cpu else f"{machine['gpu']} ({cores})"
        if machine and text not in texts:
            texts.append(text)
    return "; ".join(texts)


def steps(measured: dict) -> dict[str, dict]:
    """The steps that metrics.json has something of, but for the report itself."""
    return {name: values for name, values in measured.items() if isinstance(values, dict) and name != "report"}


def line(folder: Path, dataset: str, n_images: int, measured: dict) -> Html:
    """The run in one line."""
    changed = ", ".join(f"{name} {shown(value)}" for name, value in settings(folder).items())
    seconds = {name: values["seconds"] for name, values in steps(measured).items() if "seconds" in values}
    parts = [
        tag("b", dataset),
        f"{n_images} images",
        f"settings: {changed}" if changed else "settings: those of the preset",
        hardware(folder) or "hardware not recorded",
        tag("span", ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items()) or "no step has run"),
    ]
    if seconds:
        parts.append(f"{sum(seconds.values()):.0f} s together")
    return tag("p", join(parts, Html(" · ")), class_="run")


def details(folder: Path, measured: dict) -> Html:
    """Tables of the steps and of the settings, and the commands that were given."""
    rows = []
    for name, values in steps(measured).items():
        images, seconds = values.get("images"), values.get("seconds")
        rate = images / seconds if images and seconds else None
        rows.append(
            tag(
                "tr",
                tag("th", name, scope="row"),
                measured_cell(measured, f"{name}.images", 0, 1),
                measured_cell(measured, f"{name}.seconds", 1, 1),
                tag("td", number(rate, 2 if rate and rate < 10 else 1, 1), class_="n"),
                tag("td", _remark(values)),
            )
        )
    head = tag("tr", *(tag("th", text, scope="col") for text in ("step", "images", "seconds", "images/s", "")))
    parts = [tag("div", tag("table", tag("thead", head), tag("tbody", *rows), class_="plain"), class_="scroll")]
    if not rows:
        parts = [tag("p", "No step has stored a figure yet.", class_="note")]
    changed = [tag("li", tag("code", f"--{name} {shown(value)}")) for name, value in settings(folder).items()]
    parts.append(tag("h3", "Settings that differ from the preset"))
    parts.append(tag("ul", *changed, class_="settings") if changed else tag("p", "None.", class_="note"))
    runs = [
        tag("li", tag("code", call.get("command", "")), html(f" · {call.get('started', '')} · {_versions(call)}"))
        for call in calls(folder)
    ]
    if runs:
        parts.append(tag("details", tag("summary", f"Commands, {len(runs)} in all"), tag("ol", *runs, class_="small")))
    return join(parts)


def _versions(call: dict) -> str:
    commit = str(call.get("git_commit") or "unknown")
    versions = call.get("versions", {})
    return f"commit {commit[:12]} · Python {versions.get('python')}, torch {versions.get('torch')}"


def _remark(values: dict) -> str:
    """What else a step stored, in a few words."""
    if "average_precision" in values:
        found = [value for value in values["average_precision"].values() if value is not None]
        return f"mean average precision on the validation images {number(sum(found) / len(found))}" if found else ""
    if "RIB_steps" in values:
        return "RIB steps: " + ", ".join(f"{n} in {count} images" for n, count in values["RIB_steps"].items())
    return ""
