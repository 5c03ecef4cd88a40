"""Which image files a folder holds, and what is to be said of files that are none."""

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from data.base import alike, plain
from data.formats import not_read


class Listing(NamedTuple):
    """Name (path below the folder without ending) -> path, of its image files; problems.

    others: of the other files, by path and by name.
    """

    folder: Path
    files: dict[str, str]
    others: dict[str, str]
    problems: list[str]

    def reason(self, text: str) -> str | None:
        """Why the file that a name or path means is none of `files`; None if there is no such file."""
        path = self._other(text)
        if path is None:
            return None
        kind = os.path.splitext(path)[1] or "a file without an ending"
        return f"{path} {not_read(self.folder / path) or f'exists, but {kind} is not read; convert it to PNG'}"

    def _other(self, text: str) -> str | None:
        parts = plain(text.strip()).replace("\\", "/").split("/")
        ends = ["/".join(parts[i:]) for i in range(len(parts))]
        return next((self.others[end] for end in (*ends, *map(_stem, ends)) if end in self.others), None)

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
    return Listing(folder, files, others, problems)


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
