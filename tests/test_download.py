"""Fetching from a server on this machine: resume, checksums, unpacking, and what is said when it fails."""

import errno
import hashlib
import io
import json
import random
import shutil
import stat
import sys
import tarfile
import threading
import types
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from data import download
from data.base import DataError
from data.download import DRIVE, RECORDS, File, catalogue, fetch, main, obtain, unpack


class Server:
    """Files by name with Range and ETag support; `cut` bytes of body are sent per answer before it breaks off."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.cut: int | None = None
        self.ranges = True
        self.etag: str | None = None  # default: of the content
        self.status: list[int] = []  # answers to give before serving
        self.asked: list[tuple[str, str | None]] = []  # (name, Range header)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, request):
        name = request.path.lstrip("/")
        asked = request.headers.get("Range")
        self.asked.append((name, asked))
        if self.status or name not in self.files:
            request.send_error(self.status.pop(0) if self.status else 404)
            return
        body = self.files[name]
        etag = self.etag or f'"{hashlib.md5(body).hexdigest()}"'
        start = 0
        if asked and self.ranges and request.headers.get("If-Range", etag) == etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                request.send_response(416)
                request.send_header("Content-Range", f"bytes */{len(body)}")
                request.end_headers()
                return
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            request.send_response(200)
        request.send_header("Content-Length", str(len(body) - start))
        request.send_header("ETag", etag)
        request.end_headers()
        request.wfile.write(body[start : None if self.cut is None else start + self.cut])


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


BODY = bytes(range(256)) * 400


def make_zip(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        for name, body in members.items():
            file.writestr(name, body)
    return stream.getvalue()


def make_tar(path, members: dict[str, bytes], mode: str = "w:gz"):
    with tarfile.open(path, mode) as file:
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            file.addfile(info, io.BytesIO(body))
    return path


def tree(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# transfer


def test_fetch(server, tmp_path):
    server.files["a.bin"] = BODY
    fetch(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert tree(tmp_path) == {"a.bin": BODY} and server.asked == [("a.bin", None)]


def test_an_interrupted_download_resumes_in_the_next_call(server, tmp_path):
    server.files["a.bin"], server.cut = BODY, 1000
    with pytest.raises(DataError, match=r"ended after 1,000 bytes of 102,400 bytes\. Run the same command again"):
        fetch(f"{server.url}/a.bin", tmp_path / "a.bin", attempts=1)
    assert not (tmp_path / "a.bin").exists() and (tmp_path / "a.bin.part").read_bytes() == BODY[:1000]
    server.cut = None
    fetch(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert server.asked[-1] == ("a.bin", "bytes=1000-") and tree(tmp_path) == {"a.bin": BODY}


def test_as_long_as_bytes_arrive_it_goes_on_by_itself(server, tmp_path):
    server.files["a.bin"], server.cut = BODY, 20_000
    fetch(f"{server.url}/a.bin", tmp_path / "a.bin", attempts=2)
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert [asked for _, asked in server.asked] == [None] + [f"bytes={20_000 * i}-" for i in range(1, 6)]


def test_a_file_that_changed_meanwhile_starts_anew(server, tmp_path):
    server.files["a.bin"], server.cut = BODY, 1000
    with pytest.raises(DataError):
        fetch(f"{server.url}/a.bin", tmp_path / "a.bin", attempts=1)
    server.files["a.bin"], server.cut = BODY[::-1], None
    fetch(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY[::-1]


def test_a_server_without_ranges_starts_anew(server, tmp_path):
    server.files["a.bin"], server.ranges = BODY, False
    (tmp_path / "a.bin.part").write_bytes(b"x" * 50)
    fetch(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_a_partial_file_that_is_complete_or_too_long(server, tmp_path):
    server.files["a.bin"] = BODY
    for part in (BODY, BODY + b"more"):
        (tmp_path / "a.bin.part").write_bytes(part)
        fetch(f"{server.url}/a.bin", tmp_path / "a.bin")
        assert (tmp_path / "a.bin").read_bytes() == BODY


def test_server_errors_are_tried_again_and_refusals_are_not(server, tmp_path):
    server.files["a.bin"], server.status = BODY, [503, 500]
    fetch(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY and len(server.asked) == 3
    path = tmp_path / "none.bin"
    with pytest.raises(DataError, match=rf"none\.bin could not be fetched: the server answers 404 .*put it at {path}"):
        fetch(f"{server.url}/none.bin", path)
    assert len(server.asked) == 4


def test_no_server_at_all(server, tmp_path):
    server.http.server_close()
    with pytest.raises(DataError, match=rf"could not be fetched: .*refused.*put it at {tmp_path}/a\.bin"):
        fetch(f"{server.url}/a.bin", tmp_path / "a.bin")


def test_a_full_disk_is_foreseen(server, tmp_path, monkeypatch):
    server.files["a.bin"] = BODY
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=100_000))
    with pytest.raises(DataError, match=r"102,400 bytes are needed in .*, 100,000 bytes are free"):
        fetch(f"{server.url}/a.bin", tmp_path / "a.bin")
    (tmp_path / "a.bin.part").write_bytes(BODY[:5000])
    fetch(f"{server.url}/a.bin", tmp_path / "a.bin")  # 97,400 bytes are enough for the rest
    assert (tmp_path / "a.bin").read_bytes() == BODY


# records and checksums


def test_size_and_sha256_are_kept_and_verified(server, tmp_path):
    server.files["w.pth"] = BODY
    file = File("weights/w.pth", f"{server.url}/w.pth", "?")
    sha256 = hashlib.sha256(BODY).hexdigest()
    assert obtain(file, tmp_path) == f"fetched: {tmp_path}/weights/w.pth (w.pth: 102,400 bytes, sha256 {sha256})"
    record = {"url": file.url, "size": 102_400, "sha256": sha256}
    assert json.loads((tmp_path / RECORDS).read_text()) == {"weights/w.pth": record}
    assert obtain(file, tmp_path).startswith("already there: ") and len(server.asked) == 1
    path = tmp_path / "weights/w.pth"
    path.write_bytes(BODY[:-1])
    with pytest.raises(DataError, match=r"w\.pth has 102,399 bytes; it had 102,400 .*delete it"):
        obtain(file, tmp_path)
    path.write_bytes(b"?" + BODY[1:])
    with pytest.raises(DataError, match=rf"w\.pth has sha256 .*it had {sha256}"):
        obtain(file, tmp_path)
    path.unlink()
    assert obtain(file, tmp_path).startswith("fetched: ")
    assert sorted(p.name for p in path.parent.iterdir()) == ["w.pth"]  # no lock, no part


def test_md5_is_checked_and_a_web_page_is_not_taken_for_a_file(server, tmp_path):
    server.files["a.bin"], server.files["page.pth"] = BODY, b"\n<!DOCTYPE html><html>quota</html>"
    good, bad = hashlib.md5(BODY).hexdigest(), "0" * 32
    assert obtain(File("a.bin", f"{server.url}/a.bin", "?", md5=good), tmp_path).startswith("fetched")
    with pytest.raises(DataError, match=rf"a\.bin has md5 {good}, wanted {bad}; delete it"):
        obtain(File("a.bin", f"{server.url}/a.bin", "?", md5=bad), tmp_path)
    with pytest.raises(DataError, match=r"page\.pth is a web page"):
        obtain(File("page.pth", f"{server.url}/page.pth", "?"), tmp_path)


def test_a_file_put_there_by_hand_is_taken_and_unpacked(server, tmp_path):
    (tmp_path / "a.zip").write_bytes(make_zip({"set/x.txt": b"x"}))
    file = File("a.zip", f"{server.url}/a.zip", "?", "set")
    assert obtain(file, tmp_path).startswith(f"unpacked: {tmp_path}/set") and not server.asked
    assert (tmp_path / "set/x.txt").read_bytes() == b"x"
    assert obtain(file, tmp_path).startswith("already there")


def test_an_archive_is_unpacked_again_where_its_folder_is_gone(server, tmp_path):
    server.files["a.zip"] = make_zip({"set/x.txt": b"x"})
    file = File("a.zip", f"{server.url}/a.zip", "?", "set")
    obtain(file, tmp_path)
    shutil.rmtree(tmp_path / "set")
    assert obtain(file, tmp_path).startswith("unpacked") and (tmp_path / "set/x.txt").is_file()
    assert obtain(file, tmp_path, remove_archive=True).startswith("already there")
    assert not (tmp_path / "a.zip").exists()
    assert "archive a.zip is gone" in obtain(file, tmp_path) and len(server.asked) == 1


def test_damaged_records_are_reported(server, tmp_path):
    for text in ("{", "[]", '{"a": {}}'):
        (tmp_path / RECORDS).write_text(text)
        with pytest.raises(DataError, match=r"\.downloads\.json cannot be used .*delete it"):
            obtain(File("a.bin", f"{server.url}/a.bin", "?"), tmp_path)


def test_two_processes_do_not_fetch_the_same_file(server, tmp_path, monkeypatch):
    def busy(*_):
        raise BlockingIOError(errno.EAGAIN, "busy")

    monkeypatch.setattr(download.fcntl, "flock", busy)
    with pytest.raises(DataError, match=r"another process is fetching .*a\.bin"):
        obtain(File("a.bin", f"{server.url}/a.bin", "?"), tmp_path)


# archives


@pytest.mark.parametrize("kind", ["zip", "tar", "tgz"])
@pytest.mark.parametrize("top", ["VOCdevkit/VOC2012/", "another/", ""])
def test_unpacks_into_the_target_whatever_the_archive_calls_it(tmp_path, kind, top):
    members = {f"{top}JPEGImages/a.jpg": b"a", f"{top}list.txt": b"names"}
    archive = tmp_path / "archive"
    if kind == "zip":
        archive.write_bytes(make_zip(members))
    else:
        make_tar(archive, members, "w" if kind == "tar" else "w:gz")
    unpack(archive, tmp_path, "VOCdevkit/VOC2012")
    archive.unlink()
    assert tree(tmp_path) == {"VOCdevkit/VOC2012/JPEGImages/a.jpg": b"a", "VOCdevkit/VOC2012/list.txt": b"names"}


def test_unpacking_fills_up_a_folder_that_is_there(tmp_path):
    (tmp_path / "set/sub").mkdir(parents=True)
    (tmp_path / "set/own.txt").write_bytes(b"own")
    (tmp_path / "set/sub/old.txt").write_bytes(b"old")
    (tmp_path / "a.zip").write_bytes(make_zip({"set/sub/old.txt": b"new", "set/more/x": b"x"}))
    unpack(tmp_path / "a.zip", tmp_path, "set")
    assert tree(tmp_path / "set") == {"own.txt": b"own", "sub/old.txt": b"new", "more/x": b"x"}


@pytest.mark.parametrize("name", ["../evil.txt", "set/../../evil.txt", "/tmp/evil.txt", "..\\evil.txt", "C:evil.txt"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_that_would_leave_the_folder_are_refused(tmp_path, kind, name):
    root = tmp_path / "root"
    root.mkdir()
    archive = root / "archive"
    members = {"set/good.txt": b"good", name: b"evil"}
    if kind == "zip":
        archive.write_bytes(make_zip(members))
    else:
        make_tar(archive, members)
    with pytest.raises(DataError, match=r"is refused: its member .*evil\.txt' would be written outside"):
        unpack(archive, root, "set")
    assert [p.name for p in root.iterdir()] == ["archive"] and [p.name for p in tmp_path.iterdir()] == ["root"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        info = tarfile.TarInfo("set/odd")
        info.type, info.linkname = kind, "good.txt"
        file.addfile(info)
    with pytest.raises(DataError, match=r"member 'set/odd' is a link or a device"):
        unpack(tmp_path / "a.tar", tmp_path, "set")
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar"]


def test_links_in_a_zip_are_refused(tmp_path):
    info = zipfile.ZipInfo("set/link")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match=r"member 'set/link' is a link or a device"):
        unpack(tmp_path / "a.zip", tmp_path, "set")


def test_damaged_archives_are_named_and_leave_nothing(tmp_path):
    noise = random.Random(0).randbytes(200_000)
    whole = make_zip({"set/a": noise})
    make_tar(tmp_path / "t", {"set/a": noise})
    cases = {
        "not": b"neither one nor the other",
        "empty.tar": bytes(10_240),
        "cut.tgz": (tmp_path / "t").read_bytes()[:100_000],
        "flipped.zip": whole[:1000] + bytes([whole[1000] ^ 255]) + whole[1001:],
    }
    (tmp_path / "t").unlink()
    for name, body in cases.items():
        (tmp_path / name).write_bytes(body)
        with pytest.raises(DataError, match=rf"{name} (is damaged|is neither|holds no file).*delete it"):
            unpack(tmp_path / name, tmp_path, "set")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(cases)


@pytest.mark.parametrize("kind", ["zip of LZMA", "zip with two checksums", "tar with another checksum"])
def test_damage_that_the_libraries_pass_over_or_name_otherwise(tmp_path, kind):
    noise, path = random.Random(0).randbytes(2000), tmp_path / "x"
    if kind == "tar with another checksum":
        make_tar(path, {"set/a": noise})
        path.write_bytes(path.read_bytes()[:-8] + bytes(4) + path.read_bytes()[-4:])
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as file:
            file.writestr("set/a", noise)
        data = bytearray(path.read_bytes())
        if kind == "zip of LZMA":
            data[50:60] = bytes(10)
        else:  # in the directory at the end alone: an empty file
            at = data.index(b"PK\1\2") + 16
            data[at : at + 12] = bytes(12)
        path.write_bytes(data)
    with pytest.raises(DataError, match=r"x is damaged .*delete it"):
        unpack(path, tmp_path, "set")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_unpacking_more_than_the_disk_holds_is_refused(tmp_path, kind, monkeypatch):
    members = {"set/zeros": bytes(10**6)}  # packs to almost nothing
    if kind == "zip":
        (tmp_path / "a").write_bytes(make_zip(members))
    else:
        make_tar(tmp_path / "a", members)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=500_000))
    with pytest.raises(DataError, match=r"500,000 bytes (are|that are) free"):
        unpack(tmp_path / "a", tmp_path, "set")
    assert not (tmp_path / "set").exists()


# Google Drive


def test_drive_goes_through_gdown_with_resume(tmp_path, monkeypatch):
    asked = []

    def fake(url, output, quiet, resume):
        asked.append((url, resume))
        with open(output, "wb") as file:
            file.write(BODY)

    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=fake))
    (file,) = catalogue()["voc_classifier"].files
    assert obtain(file, tmp_path).startswith(f"fetched: {tmp_path}/weights/voc_classifier.pth")
    assert asked == [("https://drive.google.com/uc?id=1evRxPD4PhcdGySGFXDoOAtOiUVg4oNXk", True)]
    assert obtain(file, tmp_path).startswith("already there") and len(asked) == 1


def test_drive_failures_say_what_to_do_by_hand(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("Cannot retrieve\n\tthe public link")

    file = File("weights/w.pth", f"{DRIVE}abc", "?")
    by_hand = rf"download https://drive\.google\.com/uc\?id=abc with a browser, put it at {tmp_path}/weights/w\.pth"
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(DataError, match=rf"pip install 'gdown>=5'; or {by_hand}"):
        obtain(file, tmp_path)
    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=fails))
    with pytest.raises(DataError, match=rf"Cannot retrieve the public link\. .*{by_hand}"):
        obtain(file, tmp_path)
    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=lambda *_, **__: None))
    with pytest.raises(DataError, match=rf"gave no file .*{by_hand}"):
        obtain(file, tmp_path)


# command line


def test_without_arguments_it_lists_what_there_is(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    for key, item in catalogue().items():
        assert f"\n{key} " in f"\n{out}" and all(file.url in out for file in item.files)
    assert "VOCtrainval_11-May-2012.tar -> DIR/VOCdevkit/VOC2012" in out and "13 GB" in out
    assert list(catalogue()) == [
        "voc2012", "sbd", "voc2012_seg_aug", "coco2014", "coco_masks", "voc_classifier", "coco_classifier",
        "deeplab_imagenet",
    ]  # fmt: skip


def test_coco_from_a_mirror(server, tmp_path, capsys):
    for split in ("train", "val"):
        server.files[f"{split}2014.zip"] = make_zip({f"{split}2014/COCO_{split}2014_000000000009.jpg": split.encode()})
    server.files["annotations_trainval2014.zip"] = make_zip({"annotations/instances_val2014.json": b"{}"})
    arguments = ["coco2014", "--data_root", str(tmp_path), "--base_url", server.url, "--remove_archives"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("coco2014: fetched: ") == 3
    found = tree(tmp_path)
    assert found.pop(RECORDS) and found == {
        "annotations/instances_val2014.json": b"{}",
        "train2014/COCO_train2014_000000000009.jpg": b"train",
        "val2014/COCO_val2014_000000000009.jpg": b"val",
    }
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("coco2014: already there: ") == 3


def test_a_wrong_md5_ends_with_code_2(server, tmp_path, capsys):
    server.files["VOCtrainval_11-May-2012.tar"] = BODY
    assert main(["voc2012", "--data_root", str(tmp_path), "--base_url", server.url]) == 2
    assert "md5 " in capsys.readouterr().err and not (tmp_path / "VOCdevkit").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["voc2013", "--data_root", "x"], "nothing is known under voc2013; there are voc2012, sbd,"),
        (["voc2012"], "--data_root DIR is missing"),
        (["voc2012", "--data_root", "x", "--base_url", "file:///etc"], "wanted an address that begins with http"),
    ],
)
def test_mistakes_end_with_code_2_and_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_a_broken_network_ends_with_code_2_and_one_line(server, tmp_path, capsys):
    server.files["train2014.zip"], server.cut = BODY, 0
    assert main(["coco2014", "--data_root", str(tmp_path), "--base_url", server.url]) == 2
    err = capsys.readouterr().err
    assert "train2014.zip could not be fetched" in err and len(server.asked) == download.ATTEMPTS


def test_interruption_by_the_user_ends_with_code_130(tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "fetch", interrupted)
    assert main(["sbd", "--data_root", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "data.download: interrupted; to resume, run the same command again\n"
