"""Fetching from a server on this machine: resume, checksums, unpacking, and what is said when it fails."""

import hashlib
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from data import download
from data.download import CATALOGUE, DRIVE, File, fetch, main, obtain, unpack
from data.errors import DataError

BODY = bytes(range(256)) * 400


@pytest.fixture
def server(monkeypatch):
    """`files` by name at `url`, with Range support; each answer breaks off after `cut` bytes; `asked`: what was."""
    server = SimpleNamespace(files={}, cut=None, asked=[])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name, part = self.path.lstrip("/"), self.headers.get("Range")
            server.asked.append((name, part))
            if name not in server.files:
                return self.send_error(404)
            body = server.files[name]
            start = int(part.removeprefix("bytes=").removesuffix("-")) if part else 0
            self.send_response(206 if part else 200)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            self.wfile.write(body[start:][: server.cut])

        def log_message(self, *args):
            pass

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "RETRIES", 0)
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_port}"
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    http.shutdown()
    http.server_close()


def archive(folder, kind, members):
    """The bytes of an archive (zip, tar, gztar) of files with this content; `folder` is for the making."""
    for name, body in members.items():
        (folder / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "in" / name).write_bytes(body)
    path = Path(shutil.make_archive(folder / "made", kind, folder / "in"))
    shutil.rmtree(folder / "in")
    body = path.read_bytes()
    path.unlink()
    return body


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_an_interrupted_download_resumes_in_the_next_call(server, tmp_path):
    body = BODY * 20  # 2 MB; gdown writes blocks of 512 KiB
    server.files["a.bin"], server.cut = body, 10**6
    by_hand = f"put it at {tmp_path}/a.bin"
    with pytest.raises(DataError, match=rf"{server.url}/a\.bin could not be downloaded .* to resume, .*{by_hand}"):
        fetch(f"{server.url}/a.bin", tmp_path / "a.bin")
    (part,) = tree(tmp_path).values()
    assert not (tmp_path / "a.bin").exists() and len(part) >= 2**19 and body.startswith(part)
    server.cut = None
    fetch(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert server.asked[-1] == ("a.bin", f"bytes={len(part)}-") and tree(tmp_path) == {"a.bin": body}


def test_md5_is_checked_and_what_cannot_be_had_is_one_line(server, tmp_path):
    server.files["a.bin"] = BODY
    good, bad = hashlib.md5(BODY).hexdigest(), "0" * 32
    assert obtain(File("good/a.bin", f"{server.url}/a.bin", "?", md5=good), tmp_path).endswith("is complete")
    with pytest.raises(DataError, match=rf"bad/a\.bin does not have md5 {bad}; delete it"):
        obtain(File("bad/a.bin", f"{server.url}/a.bin", "?", md5=bad), tmp_path)
    for url in (server.url, "http://127.0.0.1:9"):  # no such file, no server
        with pytest.raises(
            DataError, match=rf"none\.bin could not be downloaded \(.+\)\. .*put it at {tmp_path}"
        ) as error:
            fetch(f"{url}/none.bin", tmp_path / "none.bin")
        assert "\n" not in str(error.value)


def test_google_drive_goes_through_gdown_with_resume(tmp_path, monkeypatch):
    asked = []

    def fake(url, output, resume, **_):
        asked.append((url, resume))
        with open(output, "wb") as file:
            file.write(BODY)

    monkeypatch.setattr(download.gdown, "download", fake)
    (file,) = CATALOGUE["voc_classifier"].files
    assert obtain(file, tmp_path) == f"{tmp_path}/weights/voc_classifier.pth is complete"
    assert asked == [(f"{DRIVE}1evRxPD4PhcdGySGFXDoOAtOiUVg4oNXk", True)]
    assert "voc_classifier.pth exists, skipping" in obtain(file, tmp_path) and len(asked) == 1


def test_an_archive_put_there_by_hand_is_unpacked_and_an_unpacked_one_is_skipped(server, tmp_path):
    (tmp_path / "a.zip").write_bytes(archive(tmp_path, "zip", {"set/x.txt": b"x"}))
    file = File("a.zip", f"{server.url}/a.zip", "?", "set")
    assert obtain(file, tmp_path, remove_archive=True) == f"{tmp_path}/set is complete"
    assert tree(tmp_path) == {"set/x.txt": b"x"}
    assert obtain(file, tmp_path).startswith(f"{tmp_path}/set exists, skipping") and not server.asked


@pytest.mark.parametrize(
    ("kind", "top"), [("zip", "another/"), ("zip", ""), ("tar", "VOCdevkit/VOC2012/"), ("gztar", "")]
)
def test_unpacks_into_the_target_whatever_the_archive_calls_it(tmp_path, kind, top):
    path = tmp_path / "archive"
    path.write_bytes(archive(tmp_path, kind, {f"{top}JPEGImages/a.jpg": b"a", f"{top}list.txt": b"names"}))
    unpack(path, tmp_path / "VOCdevkit/VOC2012")
    path.unlink()
    assert tree(tmp_path) == {"VOCdevkit/VOC2012/JPEGImages/a.jpg": b"a", "VOCdevkit/VOC2012/list.txt": b"names"}


def test_damaged_archives_are_named_and_leave_nothing(tmp_path):
    cut, whole = archive(tmp_path, "gztar", {"set/a": BODY})[:300], archive(tmp_path, "zip", {"set/a": BODY})
    flipped = whole[:100] + bytes([whole[100] ^ 255]) + whole[101:]
    for body in (b"neither one nor the other", cut, flipped):
        (tmp_path / "a").write_bytes(body)
        with pytest.raises(DataError, match=r"/a cannot be unpacked .*delete it"):
            unpack(tmp_path / "a", tmp_path / "set")
        assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_without_arguments_it_lists_what_there_is(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    for key, item in CATALOGUE.items():
        assert f"\n{key} " in f"\n{out}" and all(file.url in out for file in item.files)
    assert "VOCtrainval_11-May-2012.tar -> DIR/VOCdevkit/VOC2012" in out and "13 GB" in out


def test_coco_from_a_mirror(server, tmp_path, capsys):
    for split in ("train", "val"):
        image = {f"{split}2014/COCO_{split}2014_000000000009.jpg": split.encode()}
        server.files[f"{split}2014.zip"] = archive(tmp_path, "zip", image)
    server.files["annotations_trainval2014.zip"] = archive(
        tmp_path, "zip", {"annotations/instances_val2014.json": b"{}"}
    )
    arguments = ["coco2014", "--data_root", str(tmp_path), "--base_url", server.url, "--remove_archives"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.count(" is complete") == 3
    assert tree(tmp_path) == {
        "annotations/instances_val2014.json": b"{}",
        "train2014/COCO_train2014_000000000009.jpg": b"train",
        "val2014/COCO_val2014_000000000009.jpg": b"val",
    }
    assert main(arguments) == 0
    assert capsys.readouterr().out.count(" exists, skipping") == 3


def test_mistakes_end_with_code_2_and_one_line(capsys):
    for arguments, message in (
        (["voc2013", "--data_root", "x"], "there is no voc2013; choose from voc2012, sbd,"),
        (["voc2012"], "--data_root DIR is missing"),
    ):
        assert main(arguments) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1
