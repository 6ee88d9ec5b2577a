"""Layers and manifests written by strangers: checklist "Images", I01 and I02.

More of the same, with what images need to keep working, is in tests/privileged/images.
"""

from __future__ import annotations

import gzip
import http.server
import io
import json
import stat
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.images import manifest as documents
from runtime.images import registry
from runtime.images.errors import DigestMismatch, ManifestError, PullError, UnpackError
from runtime.images.store import ImageStore
from runtime.images.unpack import Limits, unpack_layer
from tests.unit.images.build import digest, docker_archive, info, layer, oci_layout, tar_of

pytestmark = pytest.mark.privileged

Member = tuple[tarfile.TarInfo, bytes]


def file(name: str, content: bytes = b"evil", **fields: object) -> Member:
    return info(name, **fields), content


def link(name: str, where: str, kind: bytes = tarfile.SYMTYPE) -> Member:
    return info(name, kind, linkname=where), b""


def folder(name: str) -> Member:
    return info(name, tarfile.DIRTYPE, mode=0o755), b""


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A folder for a layer, two below a neighbour that must stay as it is."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_text("untouched")
    made = tmp_path / "a/layer"
    made.mkdir(parents=True)
    return made


def state(base: Path) -> dict[str, tuple[int, int]]:
    """Everything beside the layer: type and mode, number of links."""
    found = {}
    for path in [base, *base.rglob("*")]:
        if path.is_relative_to(base / "a/layer"):
            continue
        status = path.lstat()
        found[str(path.relative_to(base))] = (status.st_mode, status.st_nlink)
    return found


ATTACKS: dict[str, list[Member]] = {
    "dots": [file("../outside/x")],
    "dots in the middle": [folder("d"), file("d/../../../outside/x")],
    "absolute": [file("/outside/x")],
    "ancestor is a relative link": [link("up", "../../outside"), file("up/x")],
    "ancestor is an absolute link": [link("up", "{outside}"), file("up/x")],
    "ancestor is a chain": [folder("d"), link("d/up", "../../.."), link("on", "d/up/outside"), file("on/x")],
    "file through a link": [link("f", "{outside}/file"), file("f")],
    "folder through a link": [link("f", "{outside}"), folder("f"), file("f/x")],
    "mode through a link": [link("f", "{outside}/file"), (info("f", tarfile.REGTYPE, mode=0o4777), b"")],
    "hard link by dots": [link("h", "../../outside/file", tarfile.LNKTYPE), file("h")],
    "hard link, absolute": [link("h", "{outside}/file", tarfile.LNKTYPE), file("h")],
    "hard link through a link": [link("s", "{outside}"), link("h", "s/file", tarfile.LNKTYPE), file("h")],
    "hard link to a link": [link("s", "{outside}/file"), link("h", "s", tarfile.LNKTYPE), file("h")],
    "device": [(info("sda", tarfile.BLKTYPE, devmajor=8, devminor=0), b"")],
    "whiteout of dots": [folder("d"), file("d/.wh...", b"")],
    "whiteout through a link": [link("up", "{outside}"), file("up/.wh.file", b"")],
    "opaque through a link": [link("up", "{outside}"), file("up/.wh..wh..opq", b"")],
    "link replaces a folder": [folder("d"), file("d/f"), link("d", "{outside}"), file("d/x")],
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_I01_a_layer_stays_in_its_folder(target: Path, attack: str) -> None:
    """I01, CVE-2007-4559, CVE-2025-4517, CVE-2025-4330, CVE-2025-4138: refused, or it lands inside."""
    base = target.parent.parent
    members = []
    for member, content in ATTACKS[attack]:
        member = tarfile.TarInfo.frombuf(member.tobuf(), "utf-8", "strict")
        member.linkname = member.linkname.replace("{outside}", str(base / "outside"))
        members.append((member, content))
    before = state(base)
    try:
        unpack_layer(io.BytesIO(tar_of(members)), target)
    except UnpackError:
        pass
    assert state(base) == before and (base / "outside/file").read_text() == "untouched"
    assert not [path for path in target.rglob("*") if stat.S_ISBLK(path.lstat().st_mode)]


@pytest.mark.parametrize("name", ["../x", "a/../../x", "..", "a/.."])
def test_I01_names_with_dots_are_refused(target: Path, name: str) -> None:
    """I01, CVE-2007-4559: no archive needs them, so they are not even resolved."""
    with pytest.raises(UnpackError, match="leads out"):
        unpack_layer(io.BytesIO(tar_of([file(name)])), target)


def test_I01_a_later_entry_replaces_an_earlier_one(target: Path) -> None:
    """I01: twice the same name, the second time as a link, then through it."""
    evil = [file("x", b"1"), link("x", str(target.parent.parent / "outside/file")), file("x", b"2")]
    unpack_layer(io.BytesIO(tar_of(evil)), target)
    assert (target / "x").read_bytes() == b"2" and not (target / "x").is_symlink()


def test_I01_attributes_that_steer_overlayfs_are_refused(target: Path) -> None:
    """I01: trusted.overlay.redirect would show another folder of the host's."""
    member, content = file("f")
    member.pax_headers = {"SCHILY.xattr.trusted.overlay.redirect": "/etc"}
    with pytest.raises(UnpackError, match="reserved"):
        unpack_layer(io.BytesIO(tar_of([(member, content)])), target)


def test_I01_devices_of_the_machine_are_refused(target: Path) -> None:
    """I01: null and its kind are in each container anyway; disks and memory are the machine's."""
    unpack_layer(io.BytesIO(tar_of([(info("n", tarfile.CHRTYPE, devmajor=1, devminor=3), b"")])), target)
    for kind, major, minor in ((tarfile.BLKTYPE, 8, 0), (tarfile.CHRTYPE, 1, 1), (tarfile.CHRTYPE, 0, 0)):
        member = info("sda", kind, devmajor=major, devminor=minor), b""
        with pytest.raises(UnpackError, match=f"device {major}:{minor} outside of /dev"):
            unpack_layer(io.BytesIO(tar_of([member])), target)
    assert [path.name for path in target.iterdir()] == ["n"]


def test_I01_a_sparse_file_has_the_layers_limit(target: Path) -> None:
    """I01: a map of some bytes may announce petabytes; quotas and backups would take them for real."""
    member = info("huge")
    member.pax_headers = {"GNU.sparse.size": str(1 << 40), "GNU.sparse.map": "0,4"}
    with pytest.raises(UnpackError, match=f"a sparse file of {1 << 40} bytes"):
        unpack_layer(io.BytesIO(tar_of([(member, b"data")])), target)
    assert sum(path.stat().st_size for path in target.iterdir()) <= 4


def test_I01_setuid_is_kept_only_where_the_layer_says_so(target: Path) -> None:
    """I01: an entry's mode is exact, whatever was there before."""
    members = [file("su", mode=0o4755), file("plain", mode=0o4755), file("plain", mode=0o755)]
    unpack_layer(io.BytesIO(tar_of(members)), target)
    modes = [stat.S_IMODE((target / name).stat().st_mode) for name in ("su", "plain")]
    assert modes == [0o4755, 0o755]


@pytest.mark.parametrize(
    ("limits", "why"), [(Limits(entries=2), "2 entries"), (Limits(bytes=65536), "65536 bytes")]
)
def test_I01_a_layer_has_limits(target: Path, limits: Limits, why: str) -> None:
    """I01: entries, and bytes when decompressed: a gzip bomb ends there, not when the disk is full."""
    data = tar_of([file(str(number), bytes(1 << 20)) for number in range(3)])
    with pytest.raises(UnpackError, match=why):
        unpack_layer(io.BytesIO(gzip.compress(data)), target, limits)
    assert sum(path.stat().st_size for path in target.rglob("*")) < (3 << 20)


def test_I01_a_layer_that_is_not_the_announced_one_is_refused(tmp_path: Path) -> None:
    """I01: the diffID of the unpacked bytes must be the config's."""
    members = dict(oci_layout([layer([("file", b"content")])], "app:v1"))
    other = gzip.compress(layer([("file", b"CONTENT")]), 1, mtime=0)
    name = next(name for name, data in members.items() if data[:2] == b"\x1f\x8b")
    members[name] = other
    data = tar_of((info(name), content) for name, content in members.items())
    store = ImageStore(tmp_path / "store")
    with pytest.raises(DigestMismatch, match="Could not import archive: blob"):
        store.import_archive(io.BytesIO(data))
    # A docker-archive names its layers by number: only what they unpack to tells.
    plain = [(name, layer([("file", b"X")]) if name == "0/layer.tar" else content)
             for name, content in docker_archive([layer([("file", b"content")])])]  # fmt: skip
    with pytest.raises(DigestMismatch, match="it unpacks to"):
        store.import_archive(io.BytesIO(tar_of((info(name), content) for name, content in plain)))
    assert store.list() == []


# -- I02: documents and connections -----------------------------------------------------------------------


class Registry(http.server.ThreadingHTTPServer):
    """Serves one image over plain HTTP on loopback; `change` makes it lie about one kind of request."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        members = dict(oci_layout([layer([("file", b"content")])]))
        self.blobs = {digest(data): data for name, data in members.items() if name.startswith("blobs/")}
        top = json.loads(members["index.json"])["manifests"][0]
        self.manifest, self.media_type = self.blobs[top["digest"]], top["mediaType"]
        self.redirect = ""
        self.seen: list[dict[str, str]] = []
        super().__init__((address, 0), Handler)

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self.server_port}/app:v1"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Registry

    def do_GET(self) -> None:
        self.server.seen.append(dict(self.headers))
        body, kind = b"{}", "application/json"
        if "/manifests/" in self.path:
            body, kind = self.server.manifest, self.server.media_type
        elif "/blobs/" in self.path:
            if self.server.redirect:
                self.send_response(307)
                self.send_header("Location", self.server.redirect)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body, kind = self.server.blobs[self.path.rpartition("/")[2]], "application/octet-stream"
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def lying() -> Iterator[Registry]:
    server = Registry()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_I02_the_test_registry_is_believed_while_it_tells_the_truth(lying: Registry, tmp_path: Path) -> None:
    """I02: or else the refusals below would prove nothing."""
    image = registry.pull(ImageStore(tmp_path / "store"), lying.name)
    assert Path(image.layers[0], "file").read_bytes() == b"content"


def test_I02_a_changed_blob_is_refused(lying: Registry, tmp_path: Path) -> None:
    """I02: the digest of every blob is checked, before it is unpacked."""
    for name, data in list(lying.blobs.items()):
        if data[:2] == b"\x1f\x8b":
            changed = gzip.compress(layer([("file", b"Content")]), 1, mtime=0)
            lying.blobs[name] = changed.ljust(len(data), b"\0")[: len(data)]
    store = ImageStore(tmp_path / "store")
    with pytest.raises(DigestMismatch, match="Could not accept blob"):
        registry.pull(store, lying.name)
    assert store.list() == []


def test_I02_a_manifest_that_is_not_the_asked_one_is_refused(lying: Registry, tmp_path: Path) -> None:
    """I02: a pull by digest gets that digest or nothing."""
    with pytest.raises(DigestMismatch):
        registry.pull(ImageStore(tmp_path / "s"), lying.name.replace(":v1", "@sha256:" + "0" * 64))


def test_I02_a_manifest_has_a_size_limit(lying: Registry, tmp_path: Path) -> None:
    """I02: a registry cannot fill the memory."""
    lying.manifest = lying.manifest.rstrip() + b" " * (documents.MAX_MANIFEST + 1)
    with pytest.raises(ManifestError, match=f"has more than {documents.MAX_MANIFEST} bytes"):
        registry.pull(ImageStore(tmp_path / "store"), lying.name)


def test_I02_a_media_type_that_contradicts_its_document_is_refused() -> None:
    """I02, CVE-2021-41190: an index and a manifest in one mean two things to two readers."""
    both = json.dumps({"schemaVersion": 2, "manifests": [], "config": {}, "layers": []}).encode()
    with pytest.raises(ManifestError):
        documents.kind_of(both, "application/vnd.oci.image.index.v1+json")
    with pytest.raises(ManifestError):
        documents.kind_of(both, "application/vnd.oci.image.manifest.v1+json")


def test_I02_credentials_stay_with_their_host(lying: Registry, tmp_path: Path) -> None:
    """I02: a redirected blob request carries neither password nor token."""
    from runtime.images.credentials import Credentials

    class Stranger(Registry):
        pass

    stranger = Stranger()
    stranger.blobs = lying.blobs
    thread = threading.Thread(target=stranger.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    layer_digest = next(name for name, data in lying.blobs.items() if data[:2] == b"\x1f\x8b")
    lying.redirect = f"http://127.0.0.1:{stranger.server_port}/v2/app/blobs/{layer_digest}"
    try:
        registry.pull(
            ImageStore(tmp_path / "store"), lying.name, credentials=Credentials(registry_token="t0ken")
        )
    except (PullError, DigestMismatch):
        pass  # the config's request is redirected to the layer as well, which is not what was asked for
    finally:
        stranger.shutdown()
        stranger.server_close()
        thread.join()
    assert any(headers.get("Authorization") == "Bearer t0ken" for headers in lying.seen)
    assert stranger.seen and not any("Authorization" in headers for headers in stranger.seen)


def test_I02_there_is_no_way_down_to_plain_http(tmp_path: Path) -> None:
    """I02: a registry elsewhere that only speaks HTTP is not asked, unless it was named insecure."""
    address = ["192.0.2.7/32", "dev", "lo"]
    subprocess.run(["ip", "address", "add", *address], check=True)
    server = Registry("192.0.2.7")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    name = f"192.0.2.7:{server.server_port}"
    try:
        with pytest.raises((PullError, OSError)):
            registry.pull(ImageStore(tmp_path / "one"), f"{name}/app:v1", sleep=lambda _: None)
        assert server.seen == []
        assert registry.pull(ImageStore(tmp_path / "two"), f"{name}/app:v1", insecure=[name])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        subprocess.run(["ip", "address", "del", *address], check=True)
