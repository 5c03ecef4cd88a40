"""Which image files a folder holds, and what is to be said of files that are none."""

import os
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from data.base import alike, plain
from data.formats import not_read

FILE = re.compile(r".*\.(jpe?g|png|webp|tiff?|bmp|gif)", re.IGNORECASE)


class Listing(NamedTuple):
    """Name (path below the folder without ending) -> path, of its image files; problems.

    names: path or name -> name. others: of the other files, by path and by name.
    """

    folder: Path
    files: dict[str, str]
    names: dict[str, str]
    others: dict[str, str]
    problems: list[str]

    def find(self, text: str, in_list: bool = True) -> str | None:
        """The name of the image that a text means by name or path.

        in_list: it is one name, so it may also be a path that ends in one, `C:\\mine\\x`, or have another ending.
        """
        return next((self.names[form] for form in self._forms(text, in_list) if form in self.names), None)

    def reason(self, text: str) -> str | None:
        """Why the file that a name or path means is none of `files`; None if there is no such file."""
        path = self._other(text)
        if path is None:
            return None
        kind = os.path.splitext(path)[1] or "a file without an ending"
        return f"{path} {not_read(self.folder / path) or f'exists, but {kind} is not read; convert it to PNG'}"

    def _other(self, text: str) -> str | None:
        return next((self.others[form] for form in self._forms(text) if form in self.others), None)

    def _forms(self, text: str, in_list: bool = True) -> list[str]:
        """What a text may mean, the likeliest first."""
        forms = [plain(text), plain(text.strip()), plain(text.strip().replace("\\", "/"))]
        forms.append(forms[-1].removeprefix("./").removeprefix(f"{self.folder.name}/"))
        if in_list:
            forms += [_stem(forms[-1])] if FILE.fullmatch(forms[-1]) else []
            for parts in [path.split("/") for path in forms[3:]]:
                forms += ["/".join(parts[i:]) for i in range(1, len(parts))]
        return forms

    def other_formats(self, named: Collection[str] = ()) -> list[str]:
        """One line for each known format of images that is not read, of files that are not in `named`."""
        lines: dict[str, list[str]] = {}
        for path in sorted(set(self.others.values()) - set(map(self._other, named))):
            if reason := not_read(self.folder / path):
                lines.setdefault(reason, []).append(f"{path} {reason}")
        return [alike(texts) for texts in lines.values()]


def list_files(folder: Path, endings: Sequence[str]) -> Listing:
    """The files below a folder, if there is one, with these endings and without."""
    files: dict[str, str] = {}
    others: dict[str, str] = {}
    problems = []
    for path in sorted(walk(folder)):
        name, ending = plain(_stem(path)), os.path.splitext(path)[1]
        if ending.lower() not in endings:
            others |= {name: path, plain(path): path}
        elif name in files:
            problems.append(f"{folder} has {files[name]!r} and {path!r}, both {name!r}; rename one")
        else:
            files[name] = path
    names = {name: name for name in files} | {plain(path): name for name, path in files.items()}
    return Listing(folder, files, names, others, problems)


def _stem(path: str) -> str:
    return os.path.splitext(path)[0]


def walk(folder: Path | str, above: frozenset[str] = frozenset()) -> Iterator[str]:
    """Paths below `folder` of all files that are not hidden, also in linked folders, unless the link leads upwards.

    above: the real paths of the folders that it is found in.
    """
    real = os.path.realpath(folder)
    if real in above or not os.path.isdir(folder):
        return
    for entry in os.scandir(folder):
        if entry.name[0] != ".":
            if os.path.isdir(entry.path):
                yield from (os.path.join(entry.name, path) for path in walk(entry.path, above | {real}))
            else:
                yield entry.name
