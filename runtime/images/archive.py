"""Images from files: `docker save`, `skopeo copy … docker-archive:`, OCI layouts, one static binary.

A docker-archive has a manifest.json that names, per image, a config file, layer files and tags; its layers
are plain tars or links to one another (older versions of docker). An OCI layout has index.json and
blobs/sha256/. Newer dockers write both into one file; then manifest.json decides, as it carries the tags.
The archive may come through a pipe, so it is read once, front to back; members land in the store's ingest
folder under numbers, never under names of the archive's choosing.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import posixpath
import struct
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from runtime.images import manifest as documents
from runtime.images.errors import ArchiveError, DigestMismatch
from runtime.images.plain import decompress
from runtime.images.reference import is_digest, parse
from runtime.images.store import LayerSource
from runtime.images.tarstream import BLOCK, TarReader

if TYPE_CHECKING:
    from runtime.images.store import Image, ImageStore

log = logging.getLogger(__name__)

_MAX_MEMBERS = 100_000
_MAX_JSON = 8 << 20
_PATH_ENV = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ELF_MACHINES = {0x3E: "amd64", 0xB7: "arm64", 0x28: "arm", 0x03: "386", 0xF3: "riscv64", 0x15: "ppc64le"}
_PT_INTERP = 3


@dataclass(frozen=True, slots=True)
class _Member:
    file: Path
    size: int
    digest: str


class _Members:
    """The archive's files by name, links resolved."""

    def __init__(self, files: Mapping[str, _Member], links: Mapping[str, str]) -> None:
        self._files, self._links = files, links

    def __contains__(self, name: str) -> bool:
        return self._resolve(name) in self._files

    def get(self, name: str) -> _Member:
        found = self._files.get(self._resolve(name))
        if found is None:
            raise ArchiveError(f"Could not import archive: it names {name!r}, which it does not contain")
        return found

    def json(self, name: str) -> Any:
        data = self.document(name)
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ArchiveError(f"Could not import archive: {name} is not JSON ({error})") from error

    def document(self, name: str) -> bytes:
        member = self.get(name)
        if member.size > _MAX_JSON:
            raise ArchiveError(
                f"Could not import archive: {name} has {member.size} bytes (at most {_MAX_JSON})"
            )
        return member.file.read_bytes()

    def blob(self, digest: str) -> _Member:
        member = self.get(f"blobs/{digest.replace(':', '/', 1)}")
        if digest.startswith("sha256:") and member.digest != digest:
            raise DigestMismatch(f"Could not import archive: blob {digest} has the digest {member.digest}")
        return member

    def _resolve(self, name: str) -> str:
        for _ in range(16):
            if name not in self._links:
                return name
            name = self._links[name]
        raise ArchiveError(f"Could not import archive: {name!r} is a loop of links")


def import_archive(store: ImageStore, fileobj: BinaryIO, tag: str | None = None) -> list[Image]:
    """Import every image for this platform; `tag` names the image when the archive holds exactly one.

    Raises ArchiveError, ManifestError, DigestMismatch, UnpackError.
    """
    extra = str(parse(tag)) if tag else None
    with store.ingest() as folder:
        members = _read_members(fileobj, folder)
        if "manifest.json" in members:
            images = _import_docker(store, folder, members, extra)
        elif "index.json" in members:
            images = _import_layout(store, folder, members, extra)
        else:
            raise ArchiveError(
                "Could not import archive: neither manifest.json (docker save) nor index.json (OCI) is in it"
            )
    for image in images:
        log.info("Imported image id=%s names=%s", image.id, ",".join(image.repo_tags) or "-")
    return images


def _read_members(fileobj: BinaryIO, folder: Path) -> _Members:
    files: dict[str, _Member] = {}
    links: dict[str, str] = {}
    reader = TarReader(decompress(fileobj))
    for count, entry in enumerate(reader):
        if count >= _MAX_MEMBERS:
            raise ArchiveError(f"Could not import archive: more than {_MAX_MEMBERS} members")
        name = posixpath.normpath(entry.name.decode("utf-8", "surrogateescape").lstrip("/"))
        target = entry.target.decode("utf-8", "surrogateescape")
        if entry.kind == "file":
            sha, path = hashlib.sha256(), folder / f"member-{count}"
            with open(path, "xb") as handle:
                for chunk in reader.content():
                    sha.update(chunk)
                    handle.write(chunk)
            files[name] = _Member(path, entry.size, f"sha256:{sha.hexdigest()}")
        elif entry.kind == "symlink":
            links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
        elif entry.kind == "link":
            links[name] = posixpath.normpath(target)
    if not files:
        raise ArchiveError("Could not import archive: it is empty")
    return _Members(files, links)


def _import_docker(store: ImageStore, folder: Path, members: _Members, extra: str | None) -> list[Image]:
    listed = members.json("manifest.json")
    if not isinstance(listed, list) or not listed or not all(isinstance(item, dict) for item in listed):
        raise ArchiveError("Could not import archive: manifest.json is not a list of images")
    _check_single(len(listed), extra)
    images = []
    for item in listed:
        try:
            config_name, layer_names = str(item["Config"]), [str(name) for name in item["Layers"]]
            tags = [str(parse(name)) for name in item.get("RepoTags") or ()]
        except (KeyError, TypeError) as error:
            raise ArchiveError(f"Could not import archive: manifest.json lacks {error}") from error
        config = members.document(config_name)
        stem = posixpath.basename(config_name).removesuffix(".json")
        if is_digest(f"sha256:{stem}"):
            documents.check_digest(config, f"sha256:{stem}", "image config")
        parsed = documents.parse_config(config)
        if len(parsed.diff_ids) != len(layer_names):
            raise ArchiveError(
                f"Could not import archive: {len(layer_names)} layers, {len(parsed.diff_ids)} in the config"
            )
        layers = [
            _layer(diff_id, members.get(name))
            for diff_id, name in zip(parsed.diff_ids, layer_names, strict=True)
        ]
        images.append(
            store.add(folder, config=config, layers=layers, tags=[*tags, *([extra] if extra else [])])
        )
    return images


def _import_layout(store: ImageStore, folder: Path, members: _Members, extra: str | None) -> list[Image]:
    entries = documents.parse_index(members.document("index.json"))
    if not entries:
        raise ArchiveError("Could not import archive: its index.json is empty")
    wanted = documents.host_platform()
    tops = [entry for entry in entries if _for_us(entry, wanted)]
    if not tops:
        documents.select(entries, wanted)  # raises, naming what there is
    _check_single(len(tops), extra)
    images = []
    for top in tops:
        kept: list[bytes] = []
        entry = top
        for _ in range(4):
            data = members.blob(entry.digest).file.read_bytes()
            kept.append(data)
            if documents.kind_of(data, entry.media_type) == "manifest":
                break
            entry = documents.select(documents.parse_index(data), wanted)
        else:
            raise ArchiveError("Could not import archive: indexes are nested too deeply")
        found = documents.parse_manifest(kept[-1])
        config = members.blob(found.config.digest).file.read_bytes()
        diff_ids = documents.parse_config(config).diff_ids
        if len(diff_ids) != len(found.layers):
            raise ArchiveError("Could not import archive: manifest and config disagree about the layers")
        layers = [
            _layer(diff_id, members.blob(layer.digest))
            for diff_id, layer in zip(diff_ids, found.layers, strict=True)
        ]
        tags = [*_layout_names(top), *([extra] if extra else [])]
        digests = sorted({f"{parse(tag).repository}@{top.digest}" for tag in tags})
        images.append(
            store.add(folder, config=config, layers=layers, tags=tags, digests=digests, documents=kept)
        )
    return images


def _for_us(entry: documents.Descriptor, wanted: documents.Platform) -> bool:
    if entry.media_type and entry.media_type not in documents.MANIFESTS | documents.INDEXES:
        return False
    place = entry.platform
    return place is None or (place.os, place.architecture) == (wanted.os, wanted.architecture)


def _layout_names(entry: documents.Descriptor) -> list[str]:
    """containerd and docker write the full name; others only a tag, or a whole name in its place."""
    annotations = entry.annotations or {}
    full = annotations.get("io.containerd.image.name")
    short = annotations.get("org.opencontainers.image.ref.name")
    if full:
        return [str(parse(full))]
    # A bare tag like "1.36" says nothing about the repository: naming it is then the caller's to do.
    return [str(parse(short))] if short and ("/" in short or ":" in short) else []


def _check_single(count: int, extra: str | None) -> None:
    if extra and count != 1:
        raise ArchiveError(f"Could not name the image {extra}: the archive has {count} (leave the name out)")


def _layer(diff_id: str, member: _Member) -> LayerSource:
    return LayerSource(diff_id, member.size, lambda: open(member.file, "rb"))


# -- an image from one static binary -----------------------------------------------------------------


def from_binary(
    store: ImageStore,
    path: Path,
    name: str,
    *,
    links: Sequence[str] | None = None,
    cmd: Sequence[str] | None = None,
) -> Image:
    """Make an image that holds one static binary in /bin, and hard links to it under further names.

    For a binary called busybox the links default to its applets and the command to `sh`. The same binary
    gives the same image, bit for bit: no time, no owner and no order of the machine enters it.
    Raises ArchiveError when the file is not a static ELF program.
    """
    full = str(parse(name))
    try:
        program = path.read_bytes()
    except OSError as error:
        raise ArchiveError(f"Could not read {path}: {error.strerror}") from error
    architecture = _check_static(program, path)
    if links is None:
        links = _applets(path) if path.name == "busybox" else ()
    if cmd is None:
        cmd = ["sh"] if "sh" in links else [f"/bin/{path.name}"]
    layer = _binary_layer(program, path.name, links)
    diff_id = documents.digest_of(layer)
    config = _encode(
        {
            "architecture": architecture,
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": {"Env": [_PATH_ENV], "Cmd": list(cmd), "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": f"from-binary {path.name}"}],
        }
    )
    with store.ingest() as folder:
        source = LayerSource(diff_id, len(layer), lambda: io.BytesIO(layer))
        return store.add(folder, config=config, layers=[source], tags=[full])


def _applets(path: Path) -> list[str]:
    try:
        done = subprocess.run([str(path.absolute()), "--list"], capture_output=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise ArchiveError(f"Could not list the applets of {path}: {error}") from error
    return [line for line in done.stdout.decode().split() if "/" not in line]


def _check_static(program: bytes, path: Path) -> str:
    """The architecture of a static ELF program; refuses everything else."""
    if program[:4] != b"\x7fELF" or len(program) < 64:
        raise ArchiveError(f"Could not use {path}: not an ELF program")
    order = "<" if program[5] == 1 else ">"
    wide = program[4] == 2
    machine = struct.unpack_from(f"{order}H", program, 18)[0]
    start = struct.unpack_from(f"{order}Q" if wide else f"{order}I", program, 32 if wide else 28)[0]
    size, count = struct.unpack_from(f"{order}HH", program, 54 if wide else 42)
    for index in range(count):
        offset = start + index * size
        if offset + 4 <= len(program) and struct.unpack_from(f"{order}I", program, offset)[0] == _PT_INTERP:
            raise ArchiveError(
                f"Could not use {path}: it is dynamically linked and its libraries would be missing"
                " (Debian and Ubuntu: apt install busybox-static)"
            )
    return _ELF_MACHINES.get(machine, os.uname().machine)


_ETC = {
    "etc/group": "root:x:0:\ndaemon:x:1:\nmail:x:8:\nwww-data:x:33:\nusers:x:100:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "etc/passwd": (
        "root:x:0:0:root:/root:/bin/sh\n"
        "daemon:x:1:1:daemon:/usr/sbin:/bin/false\n"
        "mail:x:8:8:mail:/var/spool/mail:/bin/false\n"
        "www-data:x:33:33:www-data:/var/www:/bin/false\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
    ),
}
_FOLDERS = {
    "bin": 0o755,
    "dev": 0o755,
    "etc": 0o755,
    "home": 0o755,
    "proc": 0o755,
    "root": 0o700,
    "sys": 0o755,
    "tmp": 0o1777,
    "usr": 0o755,
    "usr/bin": 0o755,
    "usr/sbin": 0o755,
    "var": 0o755,
    "var/log": 0o755,
    "var/spool": 0o755,
    "var/spool/mail": 0o755,
    "var/tmp": 0o1777,
    "var/www": 0o755,
}


def _binary_layer(program: bytes, name: str, links: Sequence[str]) -> bytes:
    out = io.BytesIO()
    for folder, mode in sorted(_FOLDERS.items()):
        _member(out, f"{folder}/", b"5", mode)
    for file, text in sorted(_ETC.items()):
        _member(out, file, b"0", 0o644, content=text.encode())
    home = f"bin/{name}"
    _member(out, home, b"0", 0o755, content=program)
    for link in sorted(set(links) - {name}):
        if "/" in link or link in ("", ".", ".."):
            raise ArchiveError(f"Could not make a link {link!r}: links are plain names in /bin")
        _member(out, f"bin/{link}", b"1", 0o755, target=home)
    if "env" in links:
        _member(out, "usr/bin/env", b"1", 0o755, target=home)  # scripts start with #!/usr/bin/env
    out.write(bytes(2 * BLOCK))
    return out.getvalue()


def _member(
    out: io.BytesIO, name: str, kind: bytes, mode: int, *, content: bytes = b"", target: str = ""
) -> None:
    raw_name, raw_target = name.encode(), target.encode()
    if len(raw_name) > 100 or len(raw_target) > 100:
        raise ArchiveError(f"Could not add {name!r}: longer than 100 bytes")
    header = bytearray(BLOCK)
    header[0 : len(raw_name)] = raw_name
    for offset, width, value in (
        (100, 8, mode),
        (108, 8, 0),
        (116, 8, 0),
        (124, 12, len(content)),
        (136, 12, 0),
    ):
        header[offset : offset + width] = f"{value:0{width - 1}o}\0".encode()
    header[148:156] = b" " * 8
    header[156:157] = kind
    header[157 : 157 + len(raw_target)] = raw_target
    header[257:265] = b"ustar\x0000"
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    out.write(header)
    out.write(content)
    out.write(bytes(-len(content) % BLOCK))


def _encode(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
