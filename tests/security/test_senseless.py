"""Archives and answers that no tool makes: checklist "Images", I01 and I02.

A crash of who reads them would be told as an internal error, and tried again as if the node were at fault; a
reader that takes hours over a few megabytes keeps the agent's other threads waiting.
"""

from __future__ import annotations

import gzip
import io
import json
import socket
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.images import manifest as documents
from runtime.images import registry
from runtime.images.credentials import ANONYMOUS
from runtime.images.errors import DigestMismatch, ImageError, ManifestError, PullNotFound, UnpackError
from runtime.images.hosts import Endpoint
from runtime.images.plain import decompress
from runtime.images.reference import parse
from runtime.images.store import ImageStore
from runtime.images.tape import TapeWriter
from runtime.images.transport import Channel, Session
from runtime.images.unpack import Limits, unpack_layer
from tests.security.test_images import Registry, lying
from tests.security.test_registries import Answer, Server, pull, server
from tests.unit.images.build import digest, info, tar_of

__all__ = ["lying", "server"]

pytestmark = pytest.mark.privileged


def with_pax(member: tarfile.TarInfo, **fields: str) -> bytes:
    member.pax_headers = fields
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8") + bytes(1024)


def with_size(field: bytes) -> bytes:
    """A file whose header has this in the place of its size."""
    header = bytearray(info("file").tobuf(tarfile.USTAR_FORMAT))
    header[124:136], header[148:156] = field, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(1024)


def sparse_without_end() -> bytes:
    """The old GNU format: a map whose blocks hold nothing and announce one more, each."""
    header = bytearray(info("file").tobuf(tarfile.GNU_FORMAT))
    header[156:157], header[482], header[148:156] = b"S", 1, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + (bytes(504) + b"\1" + bytes(7)) * 5000 + bytes(1024)


LAYERS = {
    "NUL in a link": with_pax(info("link", tarfile.SYMTYPE), linkpath="/etc\0/passwd"),
    "NUL in a name": with_pax(info("file"), path="a\0b"),
    "NUL in an attribute's name": with_pax(info("file"), **{"SCHILY.xattr.user.a\0b": "value"}),
    "size of 100 bits, pax": with_pax(info("file"), size="9" * 30),
    "size of 88 bits, GNU": with_size(b"\x80" + b"\xff" * 11),
    "sparse map without end": sparse_without_end(),
}


@pytest.mark.parametrize("attack", LAYERS)
def test_I01_a_layer_that_makes_no_sense_is_refused_in_words(tmp_path: Path, attack: str) -> None:
    """I01: what Python's own functions do not take is refused as what it is, with and without a tape."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with pytest.raises(UnpackError, match=r"^Could not read archive: "):
        unpack_layer(io.BytesIO(LAYERS[attack]), tmp_path / "one")
    with pytest.raises(UnpackError, match=r"^Could not read archive: "):
        unpack_layer(io.BytesIO(LAYERS[attack]), tmp_path / "two", tape=TapeWriter(io.BytesIO()))


def test_I01_a_long_name_ends_at_its_nul(tmp_path: Path) -> None:
    """I01: as for Go's reader; GNU tar itself never writes what follows."""
    name = b"/etc\0/passwd"
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGLINK, len(name)
    data = long.tobuf(tarfile.GNU_FORMAT) + name.ljust(512, b"\0")
    data += info("link", tarfile.SYMTYPE, linkname="x").tobuf(tarfile.GNU_FORMAT) + bytes(1024)
    unpack_layer(io.BytesIO(data), tmp_path)
    assert (tmp_path / "link").readlink() == Path("/etc")


DEEP = "a/" * 2000 + "file"


@pytest.fixture
def pit(tmp_path: Path) -> Iterator[Path]:
    """A folder that may become too deep for shutil.rmtree, by which pytest clears old sessions' away."""
    yield tmp_path
    subprocess.run(["rm", "-rf", tmp_path], check=True)


def test_I01_folders_left_out_may_be_deeper_than_our_stack(pit: Path) -> None:
    """I01: one name of 4,000 bytes is 2,000 folders that the archive does not mention."""
    unpack_layer(io.BytesIO(tar_of([(info(DEEP), b"content")])), pit)
    assert (pit / DEEP).read_bytes() == b"content"


def test_I01_folders_left_out_count(pit: Path) -> None:
    """I01: else two million entries could make four billion folders."""
    with pytest.raises(UnpackError, match="more than 1000 folders"):
        unpack_layer(io.BytesIO(tar_of([(info(DEEP), b"")])), pit, Limits(entries=1000))


def test_I01_a_layer_of_a_million_gzip_members_is_read() -> None:
    """I01: where the rest is copied after each, 20 MB of members of 20 bytes take hours."""
    nothing = gzip.compress(b"", mtime=0)
    data = nothing * 1_000_000 + gzip.compress(b"content") + bytes(100_000)
    assert b"".join(decompress(io.BytesIO(data))) == b"content"


# -- I02 ------------------------------------------------------------------------------------------------

TARGETS = (
    "file:///etc/shadow", "gopher://x/", "http://[::1", "http://127.0.0.1:abc/", "http://.../", "http://\x7f/",
    f"http://{'a' * 70}.example/", "http://\xe9.example/",
)  # fmt: skip
ANSWERS: dict[str, Answer] = {
    **{f"sent to {target!a}": (307, b"", [("Location", target)]) for target in TARGETS},
    **{
        f"token from {target!a}": (401, b"", [("WWW-Authenticate", f'Bearer realm="{target}"')])
        for target in TARGETS
    },
    **{
        f"a digest {name}": (200, b"{}", [("Docker-Content-Digest", name)])
        for name in ("junk", "shake_128:00", "md5:99914b932bd37a50b983c5e7c90ae93b", ":")
    },
    "no gzip": (200, b"junk", [("Content-Encoding", "gzip")]),
    "gzip fifty times": (200, b"junk", [("Content-Encoding", ", ".join(["gzip"] * 50))]),
}


@pytest.mark.parametrize("which", ANSWERS)
def test_I02_an_answer_that_makes_no_sense_is_refused_in_words(
    server: Server, tmp_path: Path, which: str
) -> None:
    """I02: as what the registry did, not as a crash of who pulls."""
    server.answer = lambda path: ANSWERS[which]
    with pytest.raises(ImageError, match=r"^Could not (pull|accept) "):
        pull(tmp_path, f"{server.address}/app:v1")


@pytest.mark.parametrize("which", ["no gzip", f"sent to {TARGETS[0]!a}"])
def test_I02_nor_a_senseless_answer_for_a_layer(
    lying: Registry, server: Server, tmp_path: Path, which: str
) -> None:
    """I02: nor where it is a blob that was asked for."""
    server.answer = lambda path: ANSWERS[which]
    lying.redirect = f"http://{server.address}/"
    with pytest.raises(ImageError, match=r"^Could not pull "):
        pull(tmp_path, lying.name)


@pytest.mark.parametrize("token", ["a\r\nHost: elsewhere", "\u2603", "\ud800"])
def test_I02_a_token_that_fits_no_header_is_none(server: Server, tmp_path: Path, token: str) -> None:
    """I02: a token with a line end would be a header of the token service's own making."""

    def answer(path: str) -> Answer:
        if path.startswith("/token"):
            return 200, json.dumps({"token": token}).encode(), []
        return 401, b"", [server.challenge()]

    server.answer = answer
    with pytest.raises(ImageError, match="sent no token"):
        pull(tmp_path, f"{server.address}/app:v1")


def test_I02_a_config_of_another_size_is_refused(lying: Registry, tmp_path: Path) -> None:
    """I02: the size in the manifest counts for the config as well."""
    changed = json.loads(lying.manifest)
    changed["config"]["size"] += 1
    lying.manifest = json.dumps(changed).encode()
    store = ImageStore(tmp_path / "store")
    with pytest.raises(DigestMismatch, match=r"blob sha256:\w+ has \d+ bytes, not \d+"):
        registry.pull(store, lying.name)
    assert store.list() == []


def test_I02_what_comes_with_a_redirect_is_not_read(tmp_path: Path) -> None:
    """I02: a body without end would fill the memory of who follows."""
    piece, most = b"10000\r\n" + bytes(0x10000) + b"\r\n", 128 << 20
    sent = [0]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        name = f"127.0.0.1:{listener.getsockname()[1]}"

        def serve() -> None:
            first, _ = listener.accept()
            with first:  # TLS is tried before
                first.recv(65536)
                first.sendall(b"HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n")
            first, _ = listener.accept()
            with first:
                first.recv(65536)
                first.sendall(f"HTTP/1.1 307 Go\r\nLocation: http://{name}/on\r\n".encode())
                first.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
                while sent[0] < most:
                    try:
                        first.sendall(piece)
                    except OSError:
                        break
                    sent[0] += len(piece)
            second, _ = listener.accept()
            with second:
                second.recv(65536)
                second.sendall(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with pytest.raises(PullNotFound):
                pull(tmp_path, f"{name}/app:v1")
        finally:
            thread.join()
    assert sent[0] < most


class Trickle:
    """An answer that comes byte by byte, as with chunks of one."""

    def __init__(self, size: int) -> None:
        self._size = size

    def iter_content(self, _: int) -> Iterator[bytes]:
        for _ in range(self._size):
            yield b" "


def test_I02_a_document_that_comes_byte_by_byte_is_read(make_channel: Callable[[], Channel]) -> None:
    """I02: where all is copied for each byte, four megabytes take a processor hours."""
    channel = make_channel()
    data = channel.read_small(Trickle(documents.MAX_MANIFEST), documents.MAX_MANIFEST, "it")  # type: ignore[arg-type]
    assert digest(data) == digest(b" " * documents.MAX_MANIFEST)
    with pytest.raises(ManifestError, match="has more than"):
        channel.read_small(Trickle(11), 10, "it")  # type: ignore[arg-type]


@pytest.fixture
def make_channel() -> Callable[[], Channel]:
    def make() -> Channel:
        return Channel(
            Session(), Endpoint("http://127.0.0.1/v2"), parse("127.0.0.1/app"), ANONYMOUS,
            verb="pull", insecure=False, ca_file=None, sleep=lambda _: None,
        )  # fmt: skip

    return make
