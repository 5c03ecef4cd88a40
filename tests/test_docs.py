"""README and docs name only what exists: pages, files, functions, modules, make targets, steps and arguments."""

import re
import shlex

import pytest
import yaml

from misc.report.arguments import arguments
from misc.run.arguments import build_parser, parse
from misc.run.runner import choose
from run_sample import STEPS
from tests.helpers import ROOT

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = "benchmarks|coco14|data|docs|examples|misc|net|step|tests|voc12"
OTHERS = {  # arguments of other programs
    "--nproc_per_node", "--nnodes", "--rdzv_backend", "--rdzv_endpoint", "--rdzv_id", "--kill-on-bad-exit",
    "--shm-size", "--ipc", "--nodes", "--ntasks-per-node", "--gpus-per-node", "--cpus-per-task", "--time", "--requeue",
    "--open-mode", "--signal",
}  # fmt: skip


def code_of(page):
    """Its blocks of code and code within lines."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```.*?^```$", text, re.MULTILINE | re.DOTALL)
    return blocks + re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_only_what_exists(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#([^)]*))?\)", page.read_text(encoding="utf-8"))
    assert [link for link, _ in links if not (page.parent / link).exists()] == []
    for link, anchor in links:
        if anchor:
            titles = re.findall(r"^#+ (.*)$", (page.parent / link).read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
    known = {word for action in build_parser(STEPS)._actions for word in action.option_strings} | OTHERS
    for path in (path for folder in ("tests", "data") for path in (ROOT / folder).glob("*.py")):
        known |= set(re.findall(r'"(--\w[\w-]*)"', path.read_text(encoding="utf-8")))  # pytest and data.convert
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for code in code_of(page):
        words = set(re.findall(r"(?<![\w-])--[A-Za-z][\w-]*", code)) - {"--STEP_pass", "--no-STEP_pass"}
        assert words <= known, code
        for module in re.findall(r"python -m ([\w.]+)", code):
            path = ROOT / module.replace(".", "/")
            assert module == "pip" or path.with_suffix(".py").is_file(), code
        for target in re.findall(r"^make (\w+)", code, re.MULTILINE):
            assert re.search(f"^{target}:", makefile, re.MULTILINE), code
        for command in re.findall(r"^python run_sample\.py( .*?)?(?:  .*)?$", re.sub(r"\\\n *", "", code), re.M):
            if ".py" not in command and "--help" not in command:  # .py: a dataset that the page lets the reader write
                assert choose(STEPS, parse(STEPS, shlex.split(command))[0])
        for steps in re.findall(r"--steps ([a-z0-9_,-]+)", code):
            assert choose(STEPS, parse(STEPS, ["--steps", steps])[0])
        if page.name == "arguments.md" or code.startswith("```"):  # its sources are files of the published code
            continue
        for path, names in re.findall(rf"^((?:{FOLDERS})/[\w/.-]*\w|run_sample\.py)(?:: ([\w.]+))?$", code):
            assert (ROOT / path).exists(), code
            for name in filter(None, names.split(".")):
                assert re.search(rf"^ *(def|class) {name}\b", (ROOT / path).read_text(encoding="utf-8"), re.M), code


def test_the_table_of_arguments_is_that_of_the_program():
    assert (ROOT / "docs" / "arguments.md").read_text() == arguments(), "make it again, as misc.report.arguments says"


def test_the_citation_names_the_paper():
    paper = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == ["Lee", "Choi", "Mok", "Yoon"]
    assert (paper["year"], paper["url"]) == (2021, "https://arxiv.org/abs/2110.06530")


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 200
