"""Where images live: documents by digest, layers unpacked, names in one file.

    root/blobs/sha256/<hex>   manifests and image configs (an image's id is the digest of its config)
    root/layers/<diff id>/    one unpacked layer each, shared by all images that have it
    root/tapes/<diff id>      what rebuilds a layer's archive from its folder, for export and push
    root/archives/<diff id>   the archive itself, for the rare layers that a tape cannot rebuild
    root/ingest/<random>/     work in progress, each held by a lock of its writer
    root/partial/<digest>     blobs on their way in, shared by all pulls (partial.py)
    root/locks/<diff id>      held by who unpacks that layer
    root/images.json          ids, names, sizes; replaced atomically
    root/lock                 serialises changes of images.json between processes

Compressed layers are not kept: once unpacked and checked against their diffID they would only double the
disk's bill. Several processes use one store (the agent pulls while a person imports), so whatever appears
under layers/ or blobs/ gets there by rename, complete, and a crash leaves only an unlocked ingest folder,
which the next writer sweeps away. That holds for a power cut, too: what is renamed is on the disk before
(durable.py), and the names are before images.json speaks of them.
"""

from __future__ import annotations

import builtins
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from runtime.images import durable, locks
from runtime.images import reference as names
from runtime.images import tape as tapes
from runtime.images.errors import (
    DigestMismatch,
    ImageError,
    ImageInUse,
    ImageNotFound,
    InvalidReference,
)
from runtime.images.manifest import check_digest, digest_of, parse_config
from runtime.images.partial import Partials
from runtime.images.plain import decompress
from runtime.images.unpack import Limits, unpack_layer
from runtime.removal import remove_tree

log = logging.getLogger(__name__)

_PATIENCE = 300.0  # for another process to unpack a layer
_KEPT = ("layers", "tapes", "archives", "blobs/sha256")
_SHORT_ID = re.compile(r"(?:sha256:)?([a-f0-9]{6,64})")


@dataclass(frozen=True, slots=True)
class Image:
    """An image that is complete on disk.

    `repo_tags` and `repo_digests` are full names (`docker.io/library/busybox:latest`); `size` is what the
    layers weigh as distributed, in bytes; `config` is the image config's `config` object (Env, Entrypoint,
    Cmd, User, WorkingDir, StopSignal …); `layers` are folders, top first, as overlayfs' lowerdir wants them.
    """

    id: str
    repo_tags: tuple[str, ...]
    repo_digests: tuple[str, ...]
    size: int
    config: Mapping[str, Any]
    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LayerSource:
    """One layer on its way in: its diffID, its weight, and how to open the (compressed) archive."""

    diff_id: str
    size: int
    open: Callable[[], BinaryIO]


class ImageStore:
    """The images of one node; safe for use by several threads and processes."""

    def __init__(self, root: Path, *, limits: Limits | None = None) -> None:
        self._root = root
        self._limits = limits
        self._index_file = root / "images.json"
        self.partials = Partials(root / "partial")
        self._cache: tuple[tuple[int, int, int], dict[str, Any]] | None = None
        self._thread_lock = threading.Lock()

    # -- reading -------------------------------------------------------------------------------------

    def list(self) -> list[Image]:
        """All images, by their first name."""
        images = [self._image(image_id, record) for image_id, record in self._records().items()]
        return sorted(images, key=lambda image: image.repo_tags or image.repo_digests or (image.id,))

    def lookup(self, name: str) -> Image | None:
        """The image with this name, digest reference, id or unambiguous start of an id; else None."""
        records = self._records()
        found = _find(records, name)
        return self._image(found, records[found]) if found else None

    def document(self, digest: str) -> bytes:
        """A stored config or manifest; raises ImageNotFound. Its digest is checked."""
        try:
            data = self._blob(digest).read_bytes()
        except FileNotFoundError:
            raise ImageNotFound(f"Could not read {digest}: it is not in the store") from None
        check_digest(data, digest, f"stored document {digest}")
        return data

    def has_layer(self, diff_id: str) -> bool:
        return self._layer(diff_id).is_dir()

    def manifests(self, image_id: str) -> builtins.list[bytes]:
        """The manifests and indexes under which the image came; none when it came in a docker-archive."""
        return [self.document(digest) for digest in self._records()[image_id]["documents"]]

    def diff_ids(self, image_id: str) -> tuple[str, ...]:
        """The image's layers by their digests, bottom first."""
        return tuple(self._records()[image_id]["diffIds"])

    def layer_length(self, diff_id: str) -> int:
        """The bytes of a layer's plain archive; raises ImageNotFound."""
        kept = self._kept("archives", diff_id)
        if kept.exists():
            with open(kept, "rb") as source:
                return sum(len(chunk) for chunk in decompress(source))
        return tapes.length(self._tape(diff_id))

    def read_layer(self, diff_id: str) -> Iterator[bytes]:
        """A layer's plain archive in chunks, as it was once distributed.

        Raises ImageNotFound, and DigestMismatch after the last chunk when the store was tampered with.
        """
        sha = hashlib.sha256()
        for chunk in self._layer_chunks(diff_id):
            sha.update(chunk)
            yield chunk
        if f"sha256:{sha.hexdigest()}" != diff_id:
            raise DigestMismatch(f"Could not read layer {diff_id}: its files were changed in the store")

    # -- writing -------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def ingest(self) -> Iterator[Path]:
        """A private folder on the store's file system, gone afterwards; crashed writers' are swept first."""
        parent = self._root / "ingest"
        for name in ("ingest", "locks", *_KEPT):
            (self._root / name).mkdir(parents=True, exist_ok=True)
        os.chmod(self._root, 0o700)  # setuid files of layers must not be reachable by users of the host
        with self._locked():
            self._sweep(parent)
            folder = Path(tempfile.mkdtemp(dir=parent))
            holder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(holder, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            remove_tree(folder)
            os.close(holder)

    def add(
        self,
        folder: Path,
        *,
        config: bytes,
        layers: Sequence[LayerSource],
        tags: Sequence[str] = (),
        digests: Sequence[str] = (),
        documents: Sequence[bytes] = (),
    ) -> Image:
        """Unpack what is missing and record the image under its names (full names; tags move to it).

        `folder` comes from `ingest()`; `layers` are bottom first and are only opened when needed;
        `documents` are the manifests to keep. Raises DigestMismatch, UnpackError, ManifestError.
        """
        diff_ids = parse_config(config).diff_ids
        if tuple(layer.diff_id for layer in layers) != diff_ids:
            raise DigestMismatch("Could not add image: its layers are not those its config names")
        image_id = digest_of(config)
        while True:
            for layer in layers:
                self._ensure_layer(folder, layer)
            with self._locked():
                # Another process may have removed the last other image that had one of these layers.
                if all(self.has_layer(diff_id) for diff_id in diff_ids):
                    return self._record(folder, image_id, config, layers, tags, digests, documents)

    def tag(self, name: str, tags: Sequence[str]) -> Image:
        """Give an image that is present further names; raises ImageNotFound."""
        with self._locked():
            records = self._records()
            image_id = _find(records, name)
            if image_id is None:
                raise ImageNotFound(f"Could not tag {name}: no such image")
            records = _with_names(records, image_id, records[image_id], tags, ())
            self._write(records)
            return self._image(image_id, records[image_id])

    def note_digest(self, image_id: str, name: str) -> None:
        """Remember that a registry knows the image as `repository@digest`."""
        with self._locked():
            records = self._records()
            if image_id in records:
                self._write(_with_names(records, image_id, records[image_id], (), (name,)))

    def remove(self, name: str, *, in_use: Collection[str] = ()) -> Image:
        """Remove a name, and with the last name the image; an id removes all names. Returns what it was.

        `in_use` are ids of images on which containers stand: those are refused with ImageInUse.
        Raises ImageNotFound.
        """
        with self._locked():
            records = self._records()
            image_id = _find(records, name)
            if image_id is None:
                raise ImageNotFound(f"Could not remove {name}: no such image")
            record = dict(records[image_id])
            image = self._image(image_id, record)
            full = _full_name(name)
            if full in record["repoTags"] and len(record["repoTags"]) > 1:
                record["repoTags"] = [tag for tag in record["repoTags"] if tag != full]
                self._write({**records, image_id: record})
                return image
            if image_id in in_use:
                raise ImageInUse(f"Could not remove {name}: containers use it (remove them first)")
            remaining = {key: value for key, value in records.items() if key != image_id}
            self._write(remaining)
            doomed = self._unreferenced(record, remaining, image_id)
        # Deleting thousands of files takes time; nobody can find them any more.
        _delete(doomed)
        log.info("Removed image image=%s id=%s", name, image_id)
        return image

    def sweep(self) -> int:
        """Delete layers and documents that no image has, and broken-off downloads; returns how many layers.

        An image that is being added at this moment notices and fetches its layer again.
        """
        with self._locked():
            records = self._records()
            wanted = {digest for record in records.values() for digest in record["diffIds"]}
            files = {digest for key, record in records.items() for digest in (key, *record["documents"])}
            doomed = []
            for kind in _KEPT:
                folder, needed = self._root / kind, files if kind.startswith("blobs") else wanted
                for stray in list(folder.iterdir()) if folder.is_dir() else ():
                    if f"sha256:{stray.name}" in needed:
                        continue
                    if kind == "layers":
                        doomed.append(self._hidden(stray))
                    else:
                        stray.unlink()
        _delete(doomed)
        self.partials.drop(older_than=0)
        return len(doomed)

    def import_archive(self, fileobj: BinaryIO, tag: str | None = None) -> builtins.list[Image]:
        """Import a docker-archive or OCI layout tar, plain or compressed; see archive.py."""
        from runtime.images import archive

        return archive.import_archive(self, fileobj, tag)

    def from_binary(
        self, path: Path, name: str, *, links: Sequence[str] | None = None, cmd: Sequence[str] | None = None
    ) -> Image:
        """Make an image from one static binary; see archive.py."""
        from runtime.images import archive

        return archive.from_binary(self, path, name, links=links, cmd=cmd)

    # -- inside --------------------------------------------------------------------------------------

    def _blob(self, digest: str) -> Path:
        algorithm, _, value = digest.partition(":")
        return self._root / "blobs" / algorithm / value

    def _layer(self, diff_id: str) -> Path:
        return self._root / "layers" / diff_id.partition(":")[2]

    def _kept(self, kind: str, diff_id: str) -> Path:
        return self._root / kind / diff_id.partition(":")[2]

    def _tape(self, diff_id: str) -> Path:
        tape = self._kept("tapes", diff_id)
        if not tape.exists() or not self.has_layer(diff_id):
            raise ImageNotFound(
                f"Could not read layer {diff_id}: it has no tape (remove the image and get it again)"
            )
        return tape

    def _layer_chunks(self, diff_id: str) -> Iterator[bytes]:
        kept = self._kept("archives", diff_id)
        if kept.exists():
            with open(kept, "rb") as source:
                yield from decompress(source)
        else:
            yield from tapes.play(self._tape(diff_id), self._layer(diff_id))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._root.mkdir(parents=True, exist_ok=True)
        # flock is per open file: the thread lock only keeps threads from queueing in the kernel.
        with self._thread_lock, open(self._root / "lock", "w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _records(self) -> dict[str, Any]:
        try:
            status = os.stat(self._index_file)
        except FileNotFoundError:
            return {}
        key = (status.st_ino, status.st_mtime_ns, status.st_size)
        cached = self._cache
        if cached is not None and cached[0] == key:
            return cached[1]
        try:
            images: dict[str, Any] = json.loads(self._index_file.read_bytes())["images"]
        except (ValueError, KeyError) as error:
            raise ImageError(
                f"Could not read {self._index_file}: damaged ({error}) (remove the folder and import again)"
            ) from error
        self._cache = (key, images)
        return images

    def _write(self, records: Mapping[str, Any]) -> None:
        """Replace images.json, in space put by the last time: images can go from a full disk, too."""
        spare = self._index_file.with_suffix(".json.new")
        data = json.dumps({"version": 1, "images": records}, indent=1, sort_keys=True).encode()
        with open(os.open(spare, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "wb") as handle:
            handle.write(data)
            handle.truncate()
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(spare, self._index_file)
        durable.sync(self._root)
        try:
            with open(spare, "wb") as handle:
                os.posix_fallocate(handle.fileno(), 0, len(data))
        except OSError as error:
            log.info("Put no space by for the next change error=%s", error.strerror)

    def _image(self, image_id: str, record: Mapping[str, Any]) -> Image:
        return Image(
            id=image_id,
            repo_tags=tuple(record["repoTags"]),
            repo_digests=tuple(record["repoDigests"]),
            size=record["size"],
            config=record["config"],
            # Overlayfs refuses a lower folder named twice; of equal layers the upper one hides the other.
            layers=tuple(str(self._layer(diff_id)) for diff_id in dict.fromkeys(reversed(record["diffIds"]))),
        )

    def _ensure_layer(self, folder: Path, layer: LayerSource) -> None:
        if self.has_layer(layer.diff_id):
            return
        with locks.held(self._kept("locks", layer.diff_id), _PATIENCE):
            if not self.has_layer(layer.diff_id):  # else another one has unpacked it meanwhile
                with durable.written(folder):
                    kind, tape_file, target = self._unpack(folder, layer)
                self._publish(layer.diff_id, kind, tape_file, target)

    def _unpack(self, folder: Path, layer: LayerSource) -> tuple[str, Path, Path]:
        """The layer's folder, and what rebuilds its archive: a tape or, rarely, the archive itself."""
        target = Path(tempfile.mkdtemp(dir=folder))
        os.chmod(target, 0o755)  # the mode of a container's "/" when the layer does not say
        tape_file = folder / f"tape-{target.name}"
        with layer.open() as source, open(tape_file, "wb") as handle:
            tape = tapes.TapeWriter(handle)
            found = unpack_layer(source, target, self._limits, tape)
        if found.diff_id != layer.diff_id:
            raise DigestMismatch(
                f"Could not accept layer {layer.diff_id}: it unpacks to {found.diff_id} (image damaged)"
            )
        kind = "tapes"
        if tape.broken:
            kind = "archives"
            with layer.open() as source, open(tape_file, "wb") as handle:
                shutil.copyfileobj(source, handle, 1 << 20)
        return kind, tape_file, target

    def _publish(self, diff_id: str, kind: str, tape_file: Path, target: Path) -> None:
        with self._locked():  # so that `sweep` sees both or neither
            if not self.has_layer(diff_id):
                os.replace(tape_file, self._kept(kind, diff_id))
                os.rename(target, self._layer(diff_id))

    def _record(
        self,
        folder: Path,
        image_id: str,
        config: bytes,
        layers: Sequence[LayerSource],
        tags: Sequence[str],
        digests: Sequence[str],
        documents: Sequence[bytes],
    ) -> Image:
        for document in (config, *documents):
            target = self._blob(digest_of(document))
            if not target.exists():
                temporary = folder / f"document-{target.name}"
                temporary.write_bytes(document)
                durable.sync(temporary)
                os.replace(temporary, target)
        for kind in _KEPT:
            durable.sync(self._root / kind)
        records = self._records()
        parsed = parse_config(config)
        old = records.get(image_id, {})
        record = {
            "repoTags": old.get("repoTags", []),
            "repoDigests": old.get("repoDigests", []),
            "size": sum(layer.size for layer in layers) + len(config),
            "created": parsed.created,
            "config": parsed.process,
            "diffIds": list(parsed.diff_ids),
            "documents": sorted({*old.get("documents", []), *(digest_of(item) for item in documents)}),
        }
        records = _with_names(records, image_id, record, tags, digests)
        self._write(records)
        return self._image(image_id, records[image_id])

    def _unreferenced(
        self, record: Mapping[str, Any], remaining: Mapping[str, Any], image_id: str
    ) -> builtins.list[Path]:
        """Move what only the removed image needed out of sight; returns the folders to delete."""
        doomed = []
        needed = {
            digest for other in remaining.values() for digest in (*other["diffIds"], *other["documents"])
        }
        for digest in {image_id, *record["documents"]} - needed:
            self._blob(digest).unlink(missing_ok=True)
        for diff_id in set(record["diffIds"]) - needed:
            with contextlib.suppress(FileNotFoundError):
                doomed.append(self._hidden(self._layer(diff_id)))
            for kind in ("tapes", "archives"):
                self._kept(kind, diff_id).unlink(missing_ok=True)
        return doomed

    def _hidden(self, layer: Path) -> Path:
        """Take a layer away by renaming it: a folder for it to lie in would take space."""
        (self._root / "ingest").mkdir(exist_ok=True)
        target = self._root / "ingest" / f"{layer.name}-{secrets.token_hex(4)}"
        os.rename(layer, target)
        return target

    def _sweep(self, parent: Path) -> None:
        self.partials.drop()
        for lock in (self._root / "locks").iterdir():
            locks.drop_if_free(lock)
        for leftover in parent.iterdir():
            try:
                holder = os.open(leftover, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_tree(leftover)
            except (BlockingIOError, FileNotFoundError):
                continue  # its writer lives, or was deleting it at this moment
            finally:
                os.close(holder)


def _delete(folders: Sequence[Path]) -> None:
    for folder in folders:
        # A writer that starts at this moment may take it for a crashed one's, and sweep it with us.
        with contextlib.suppress(FileNotFoundError):
            remove_tree(folder)


def _full_name(name: str) -> str:
    try:
        return str(names.parse(name))
    except InvalidReference:
        return name


def _find(records: Mapping[str, Any], name: str) -> str | None:
    full = _full_name(name)
    for image_id, record in records.items():
        if full in record["repoTags"] or full in record["repoDigests"] or name == image_id:
            return image_id
    short = _SHORT_ID.fullmatch(name)
    if short is None:
        return None
    matches = [image_id for image_id in records if image_id.startswith(f"sha256:{short[1]}")]
    return matches[0] if len(matches) == 1 else None


def _with_names(
    records: Mapping[str, Any],
    image_id: str,
    record: Mapping[str, Any],
    tags: Sequence[str],
    digests: Sequence[str],
) -> dict[str, Any]:
    """The records with `record` under its new names; a tag that another image had moves over."""
    taken = {
        other: {**value, "repoTags": [tag for tag in value["repoTags"] if tag not in tags]}
        for other, value in records.items()
        if other != image_id
    }
    merged = {
        **record,
        "repoTags": sorted({*record["repoTags"], *tags}),
        "repoDigests": sorted({*record["repoDigests"], *digests}),
    }
    return {**taken, image_id: merged}
