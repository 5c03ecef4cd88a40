"""Fetches datasets and weights: `python -m data.download` lists them, `... KEY [KEY ...] --data_root DIR` fetches.

A transfer that was cut off goes on where it stopped. Size and sha256 of every file are kept in DIR/.downloads.json and
checked the next time. Archives are unpacked only after every member has been found to stay inside its folder.
"""

import argparse
import contextlib
import fcntl
import hashlib
import http.client
import logging
import os
import re
import shutil
import stat
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tqdm import tqdm

from data.base import DataError
from data.errors import UserError
from data.failures import one_line
from data.files import load_json, save_json

RECORDS = ".downloads.json"
TIMEOUT_S = 60  # without a byte for so long, a connection counts as broken
ATTEMPTS, PAUSE_S = 4, 3.0  # connections in a row that bring nothing; the pause between them doubles
CHUNK = 1 << 20
DRIVE = "https://drive.google.com/uc?id="
COCO = "http://images.cocodataset.org"


class File(NamedTuple):
    """One file to be fetched: `target` is the folder it unpacks into, None where the file itself is wanted.

    name: path below the data root; url: http(s), Google Drive's beginning with DRIVE; size: as published, in words.
    """

    name: str
    url: str
    size: str
    target: str | None = None
    md5: str | None = None


class Item(NamedTuple):
    """What a key stands for."""

    what: str
    files: tuple[File, ...]


class NetworkError(Exception):
    """The transfer broke; what has arrived is kept."""


def catalogue() -> dict[str, Item]:
    """Everything that can be fetched. Address and md5 of VOC 2012 and SBD are those that torchvision knows."""
    from torchvision.datasets import SBDataset
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    voc = DATASET_YEAR_DICT["2012"]

    def drive(name: str, drive_id: str, target: str | None = None) -> tuple[File]:
        return (File(name, DRIVE + drive_id, "?", target),)

    return {
        "voc2012": Item(
            "PASCAL VOC 2012, train and val",
            (File(voc["filename"], voc["url"], "2.0 GB", "VOCdevkit/VOC2012", voc["md5"]),),
        ),
        "sbd": Item(
            "SBD, the masks of the augmented training set; then run voc12.prepare",
            (File(SBDataset.filename, SBDataset.url, "1.4 GB", "benchmark_RELEASE", SBDataset.md5),),
        ),
        "voc2012_seg_aug": Item(
            "VOC 2012 with augmented masks, as the authors of RIB packed it",
            drive("VOC2012_SEG_AUG.archive", "1jhtdjj3xrEp60zO3B7jZ14yxxZkCJMeM", "VOC2012_SEG_AUG"),
        ),
        "coco2014": Item(
            "MS COCO 2014, images and annotations",
            (
                File("train2014.zip", f"{COCO}/zips/train2014.zip", "13 GB", "train2014"),
                File("val2014.zip", f"{COCO}/zips/val2014.zip", "6 GB", "val2014"),
                File(
                    "annotations_trainval2014.zip",
                    f"{COCO}/annotations/annotations_trainval2014.zip",
                    "241 MB",
                    "annotations",
                ),
            ),
        ),
        "coco_masks": Item(
            "semantic masks of COCO 2014, as the authors of RIB packed them",
            drive("coco_masks.archive", "1pRE9SEYkZKVg0Rgz2pi9tg48j7GlinPV", "coco_masks"),
        ),
        "voc_classifier": Item(
            "classifier for VOC 2012, trained by the authors of RIB",
            drive("weights/voc_classifier.pth", "1evRxPD4PhcdGySGFXDoOAtOiUVg4oNXk"),
        ),
        "coco_classifier": Item(
            "classifier for COCO 2014, trained by the authors of RIB",
            drive("weights/coco_classifier.pth", "1SDKjPzzuXR4PX_H1l3Kw5NY8d20FmG4X"),
        ),
        "deeplab_imagenet": Item(
            "ImageNet start of the segmentation network, from the authors of RIB",
            drive("weights/deeplab_imagenet.pth", "14soMKDnIZ_crXQTlol9sNHVPozcQQpMn"),
        ),
    }


def obtain(file: File, root: Path, url: str | None = None, remove_archive: bool = False) -> str:
    """Fetches, checks and unpacks one file unless that is done already, and returns a line that says what is there.

    url: another place to fetch it from. A file that lies at its path without a record (put there by hand) is taken as
    it is, after its md5 where that is known. DataError says what failed and what to do.
    """
    path = root / file.name
    target = root / file.target if file.target else None
    record = _records(root).get(file.name, {})
    unpacked = target is not None and record.get("unpacked") == file.target and target.is_dir()
    if unpacked and not path.is_file():
        return f"already there: {target} (its archive {file.name} is gone, so the checksum cannot be verified)"
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path):
        is_new = not path.is_file()
        if is_new:
            _fetch_any(url or file.url, path)
        size, sha256 = _verify(file, path, {} if is_new else record)
        if is_new and record and record["sha256"] != sha256:
            logging.warning(f"{file.name} is no longer the file that was fetched before (sha256 {record['sha256']})")
            unpacked = False
        record = {"url": url or file.url, "size": size, "sha256": sha256}
        if unpacked:
            record["unpacked"] = file.target
        _remember(root, file.name, record)
        if target is not None and not unpacked:
            unpack(path, root, file.target)
            _remember(root, file.name, {**record, "unpacked": file.target})
    if target is not None and remove_archive:
        path.unlink()
    state = "fetched" if is_new else "already there" if target is None or unpacked else "unpacked"
    return f"{state}: {target or path} ({path.name}: {size:,} bytes, sha256 {sha256})"


def fetch(url: str, path: Path, attempts: int = ATTEMPTS, pause_s: float = PAUSE_S) -> None:
    """Downloads `url` (http or https) to `path`; bytes arrive in `path`.part, which a later call continues.

    DataError if the server refuses, the disk is too small, or `attempts` connections in a row bring nothing new.
    """
    part, tag = path.with_name(path.name + ".part"), path.with_name(path.name + ".part.tag")
    failures = 0
    while True:
        before = _size(part)
        try:
            _transfer(url, part, tag)
            break
        except NetworkError as error:
            failures = 1 if _size(part) > before else failures + 1
            if failures >= attempts:
                raise DataError(
                    f"{url} could not be fetched: {error}. Run the same command again to go on "
                    f"({_bytes(_size(part))} are kept), or {_by_hand(url, path)}"
                ) from error
            logging.info(f"{path.name}: {error}; trying again")
            time.sleep(pause_s * 2 ** (failures - 1))
    os.replace(part, path)
    tag.unlink(missing_ok=True)


def fetch_drive(url: str, path: Path) -> None:
    """Downloads a file of Google Drive to `path` by way of gdown, which keeps and continues its own partial file."""
    try:
        import gdown
    except ImportError as error:
        raise DataError(
            f"files on Google Drive need the package gdown: pip install 'gdown>=5'; or {_by_hand(url, path)}"
        ) from error
    try:
        gdown.download(url, str(path), quiet=not sys.stderr.isatty(), resume=True)
    except Exception as error:  # gdown's own errors have other names in every major version
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{url} could not be fetched from Google Drive: {reason}. Run the same command again to go on, or "
            f"{_by_hand(url, path)}"
        ) from error
    if not path.is_file():
        raise DataError(f"{url} gave no file (Google Drive refuses files asked for too often): {_by_hand(url, path)}")


def unpack(archive: Path, root: Path, target: str) -> None:
    """Unpacks a zip or tar file so that its contents lie in `root`/`target`, by way of a temporary folder in `root`.

    `target` may or may not be named inside the archive. DataError if the archive is damaged, needs more space than
    there is, or has a member that would leave the folder, a link or a device file; then nothing is left of it.
    """
    temporary = root / f".{archive.name}.unpacking"
    shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
    temporary.mkdir(parents=True)
    try:
        _extract(archive, temporary)
        if next(temporary.iterdir(), None) is None:
            raise DataError(f"{archive} holds no file; delete it and run the same command again")
        _move(_contents(temporary, target), root / target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def table(items: dict[str, Item]) -> str:
    """The catalogue as text: key, what it is, then per file size, source and where it ends."""
    lines = []
    for key, item in items.items():
        lines.append(f"{key:<17}{item.what}")
        lines += [f"{'':<17}{f.size:>7}  {f.url} -> DIR/{f.target or f.name}" for f in item.files]
    return "\n".join(lines)


def _fetch_any(url: str, path: Path) -> None:
    if url.startswith(DRIVE):
        fetch_drive(url, path)
    else:
        fetch(url, path)


def _transfer(url: str, part: Path, tag: Path) -> None:
    """One connection: appends to `part` what is missing; `tag` holds the server's mark of the version begun."""
    have = _size(part)
    headers = {"User-Agent": "rib-download"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if tag.is_file():  # a file that has changed meanwhile comes whole, not as a tail for the old beginning
            headers["If-Range"] = tag.read_text()
    try:
        with _network():
            response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing after what we have: it is complete, or belongs to another version
            if error.headers.get("Content-Range", "").endswith(f"/{have}"):
                return
            part.unlink()
            raise NetworkError("the partial file does not fit the server's and was dropped") from error
        if error.code >= 500 or error.code == 429:
            raise NetworkError(f"the server answers {error.code} {error.reason}") from error
        raise DataError(
            f"{url} could not be fetched: the server answers {error.code} {error.reason}; {_by_hand(url, _whole(part))}"
        ) from error
    with response:
        length = response.headers.get("Content-Length")
        if response.status == 206:
            start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
            if start is None or int(start[1]) != have:
                part.unlink()
                raise NetworkError("the server continued at another place than asked; the partial file was dropped")
        else:
            have = 0
            mark = response.headers.get("ETag", "")
            mark = response.headers.get("Last-Modified", "") if not mark or mark.startswith("W/") else mark
            tag.write_text(mark) if mark else tag.unlink(missing_ok=True)
        total = have + int(length) if length is not None else None
        if total is not None:
            _need(total - have, part.parent)
        _receive(response, part, have, total)


def _receive(response: http.client.HTTPResponse, part: Path, have: int, total: int | None) -> None:
    with open(part, "ab") as file, _bar(total, _whole(part).name, have) as progress:
        file.truncate(have)
        while True:
            with _network():
                chunk = response.read(CHUNK)
            if not chunk:
                break
            file.write(chunk)
            progress.update(len(chunk))
        size = file.tell()
    if total is not None and size != total:
        raise NetworkError(f"the connection ended after {_bytes(size)} of {_bytes(total)}")


@contextlib.contextmanager
def _network() -> Iterator[None]:
    """Turns what a connection fails with into NetworkError, so that it is told from what a disk fails with."""
    try:
        yield
    except urllib.error.HTTPError:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise NetworkError(str(getattr(error, "reason", "") or error) or type(error).__name__) from error


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """DataError while another process fetches the same file."""
    lock = path.with_name(f".{path.name}.lock")
    with open(lock, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"another process is fetching {path}; wait for it to finish") from error
        except OSError as error:
            logging.info(f"no lock on {lock} ({error}): see to it that nothing else fetches {path}")
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _verify(file: File, path: Path, record: dict) -> tuple[int, str]:
    """(size, sha256) of a file, after comparing with its record and the published md5."""
    again = f"delete it and run the same command again, or {_by_hand(file.url, path)}"
    size = path.stat().st_size
    with open(path, "rb") as stream:
        if stream.read(256).lstrip().lower().startswith((b"<!doctype", b"<html")):
            raise DataError(f"{path} is a web page, not the file that was asked for; {again}")
    if record and record["size"] != size:
        raise DataError(f"{path} has {size:,} bytes; it had {record['size']:,} when it was fetched; {again}")
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as stream, _bar(size, f"checking {path.name}") as progress:
        while chunk := stream.read(CHUNK):
            sha256.update(chunk)
            if file.md5:
                md5.update(chunk)
            progress.update(len(chunk))
    if record and record["sha256"] != sha256.hexdigest():
        raise DataError(
            f"{path} has sha256 {sha256.hexdigest()}; it had {record['sha256']} when it was fetched; {again}"
        )
    if file.md5 and md5.hexdigest() != file.md5:
        raise DataError(f"{path} has md5 {md5.hexdigest()}, wanted {file.md5}; {again}")
    return size, sha256.hexdigest()


def _extract(archive: Path, folder: Path) -> None:
    try:
        if zipfile.is_zipfile(archive):
            _extract_zip(archive, folder)
        elif tarfile.is_tarfile(archive):
            _extract_tar(archive, folder)
        else:
            raise DataError(f"{archive} is neither a zip nor a tar file; delete it and run the same command again")
    except (DataError, MemoryError):
        raise
    except Exception as error:  # zip, tar and four ways to compress: a damaged file can raise anything
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"{archive} cannot be unpacked in {folder.parent} ({error})") from error
        raise DataError(f"{archive} is damaged ({error}); delete it and run the same command again") from error


def _extract_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        for member in members:
            kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where the zip was not made on Unix
            _check_member(archive, member.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR))
            file.fp.seek(member.header_offset + 14)  # the checksum stands there too, unless it was not known yet
            if not member.flag_bits & 8 and file.fp.read(4) != member.CRC.to_bytes(4, "little"):
                raise zipfile.BadZipFile(f"{member.filename!r} has two checksums")
        _need(sum(member.file_size for member in members), folder)
        for member in _files_bar(members, len(members), archive):
            file.extract(member, folder)


def _extract_tar(archive: Path, folder: Path) -> None:
    need = 0
    free = shutil.disk_usage(folder).free
    with tarfile.open(archive) as file:
        for member in _files_bar(file, None, archive):  # one pass: going through a .tgz twice takes minutes
            _check_member(archive, member.name, member.isreg() or member.isdir())
            need += member.size
            if need > free:
                raise DataError(f"{archive} unpacks to more than the {_bytes(free)} that are free in {folder.parent}")
            safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # the members are checked above anyway
            file.extract(member, folder, **safe)
        while file.fileobj.read(CHUNK):  # to the end, where a compressed file keeps its checksum
            pass


def _check_member(archive: Path, name: str, is_plain: bool) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", name):
        problem = "would be written outside the folder"
    elif not is_plain:
        problem = "is a link or a device, not a file"
    else:
        return
    raise DataError(f"{archive} is refused: its member {name!r} {problem}. Is this the file that was asked for?")


def _contents(unpacked: Path, target: str) -> Path:
    """The folder of an unpacked archive that is to become `target`: so named, or its only folder, or all of it."""
    if (unpacked / target).is_dir():
        return unpacked / target
    inside = [entry for entry in unpacked.iterdir() if entry.name != "__MACOSX" and not entry.name.startswith(".")]
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else unpacked


def _move(source: Path, target: Path) -> None:
    """Moves a file or folder; folders that are there already are filled up, files replaced."""
    if source.is_dir() and target.is_dir():
        for child in list(source.iterdir()):
            _move(child, target / child.name)
    elif target.exists() and source.is_dir() != target.is_dir():
        raise DataError(f"{target} is in the way (a file for a folder, or a folder for a file); move it elsewhere")
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(source, target)


def _records(root: Path) -> dict[str, dict]:
    try:
        records = load_json(root / RECORDS)
        if not all({"size", "sha256"} <= record.keys() for record in records.values()):
            raise ValueError("a record lacks size or sha256")
    except (UserError, AttributeError, TypeError, ValueError) as error:
        raise DataError(
            f"{root / RECORDS} cannot be used ({error}); delete it: files are then taken as they are"
        ) from error
    return records


def _remember(root: Path, name: str, record: dict) -> None:
    save_json(root / RECORDS, {**_records(root), name: record})


def _need(size: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise DataError(
            f"{_bytes(size)} are needed in {folder}, {_bytes(free)} are free; make room or name another folder"
        )


def _by_hand(url: str, path: Path) -> str:
    return f"download {url} with a browser, put it at {path} and run the same command again"


def _whole(part: Path) -> Path:
    return part.with_name(part.name.removesuffix(".part"))


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _bytes(size: int) -> str:
    return f"{size:,} bytes" if size < 10**6 else f"{size / 1e6:,.1f} MB" if size < 10**9 else f"{size / 1e9:,.2f} GB"


def _bar(total: int | None, title: str, initial: int = 0) -> tqdm:
    quiet = not sys.stderr.isatty()
    return tqdm(total=total, initial=initial, desc=title, unit="B", unit_scale=True, dynamic_ncols=True, disable=quiet)


def _files_bar(members, total: int | None, archive: Path) -> tqdm:
    quiet = not sys.stderr.isatty()
    return tqdm(members, total=total, desc=f"unpacking {archive.name}", unit="file", dynamic_ncols=True, disable=quiet)


def main(arguments: list[str] | None = None) -> int:
    """The command line; its exit code, 2 after a message where something could not be fetched."""
    parser = argparse.ArgumentParser(prog="python -m data.download", description=__doc__.splitlines()[0])
    parser.add_argument("keys", nargs="*", metavar="KEY", help="what to fetch; without any, a list is printed")
    parser.add_argument("--data_root", type=Path, metavar="DIR", help="the folder to put it in")
    parser.add_argument("--base_url", metavar="URL", help="a mirror (http or https) that holds the same file names")
    parser.add_argument("--remove_archives", action="store_true", help="delete archives once they are unpacked")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return one_line("data.download", lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    items = catalogue()
    if not args.keys:
        print(table(items))
        print("\nFetch with: python -m data.download KEY [KEY ...] --data_root DIR")
        return
    unknown = [key for key in args.keys if key not in items]
    if unknown:
        raise DataError(f"nothing is known under {', '.join(unknown)}; there are {', '.join(items)}")
    if args.data_root is None:
        raise DataError("--data_root DIR is missing: the folder to put the files in")
    if args.base_url is not None and not re.match(r"https?://", args.base_url):
        raise DataError(f"--base_url is {args.base_url!r}; wanted an address that begins with http:// or https://")
    for key in dict.fromkeys(args.keys):
        for file in items[key].files:
            url = f"{args.base_url.rstrip('/')}/{Path(file.name).name}" if args.base_url else None
            print(f"{key}: {obtain(file, args.data_root, url, args.remove_archives)}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
