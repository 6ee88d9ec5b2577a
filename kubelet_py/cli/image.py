"""`kubelet-py image …`: the node's images by hand.

It works on the store itself, with or without a running agent, so that a node without a registry can be
filled (`import`, `from-binary`) before anything is started. The table looks like `crictl images`. Mirrors and
plain-HTTP registries are named in etc/kubelet-py/registries/<host>/hosts.toml, which the agent reads as well.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from kubelet_py.cli.errors import CommandError
from kubelet_py.cli.progress import Progress, human
from kubelet_py.paths import NodePaths
from runtime.errors import errno_name
from runtime.images import reference
from runtime.images.errors import ImageError, ImageNotFound
from runtime.images.store import Image, ImageStore

_VERBS = {"ls": "list", "rm": "remove", "from-binary": "make"}
_HINTS = {
    errno.EACCES: " (run it as root)",
    errno.EPERM: " (run it as root)",
    errno.EISDIR: " (give the path of a file)",
    errno.ENOSPC: " (free some disk space)",
    errno.EDQUOT: " (free some disk space)",
    errno.EROFS: " (give a --root that can be written to)",
}


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `image` command and its actions to the command line."""
    parser = subparsers.add_parser(
        "image",
        help="list, import, pull and remove images of this node",
        description="The images of this node, by hand: with a running node or before its first start.",
        epilog="Examples: kubelet-py image from-binary /bin/busybox --name busybox; kubelet-py image pull "
        "nginx:1.27; kubelet-py image import saved.tar; kubelet-py image ls",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    action = _action(actions, "ls", _ls, "list images")
    action.add_argument("-o", "--output", choices=("table", "json"), default="table", help="how to print")
    action.add_argument("-q", "--quiet", action="store_true", help="print only ids")
    action.add_argument("--no-trunc", action="store_true", help="print whole ids")

    action = _action(actions, "import", _import, "import a docker-archive or OCI layout tar")
    action.add_argument("file", metavar="FILE", help="the archive, plain, gzip or zstd; - for standard input")
    action.add_argument("--name", help="name for the image, when the archive holds one")

    action = _action(actions, "pull", _pull, "pull an image from its registry")
    action.add_argument("name", metavar="NAME", help="busybox, nginx:1.27, ghcr.io/owner/name@sha256:…")
    _registry_flags(action)

    action = _action(actions, "push", _push, "push an image to its registry, or under another name")
    action.add_argument("name", metavar="NAME", help="the image, by name or id")
    action.add_argument("target", metavar="TARGET", nargs="?", help="the name to push it as")
    _registry_flags(action)

    action = _action(actions, "export", _export, "write images to an archive that others can load")
    action.add_argument("names", metavar="NAME", nargs="+", help="a name, or an id for all its names")
    action.add_argument("-o", "--output", required=True, metavar="FILE", help="- for standard output")
    action.add_argument(
        "--format",
        choices=("docker-archive", "oci-archive"),
        default="docker-archive",
        help="of the archive (default docker-archive)",
    )

    action = _action(actions, "tag", _tag, "give an image further names")
    action.add_argument("name", metavar="NAME", help="the image, by name or id")
    action.add_argument("tags", metavar="TAG", nargs="+", help="busybox:mine, localhost:5000/busybox:1")

    action = _action(actions, "prune", _prune, "remove images without a name, and what killed pulls left")
    action.add_argument("-a", "--all", action="store_true", help="every image that no container uses")

    action = _action(actions, "inspect", _inspect, "print everything about an image as JSON")
    action.add_argument("names", metavar="NAME", nargs="+", help="images, by name or id")

    action = _action(actions, "rm", _rm, "remove images by name or id")
    action.add_argument("names", metavar="NAME", nargs="+", help="an image goes with its last name, or by id")

    action = _action(
        actions,
        "from-binary",
        _from_binary,
        "make an image from one static binary",
        "It needs no registry: Debian's busybox-static has a shell and some 300 commands in one. Pods use it "
        "with imagePullPolicy IfNotPresent or Never.",
    )
    action.add_argument("path", metavar="PATH", type=Path, help="the program, such as /bin/busybox")
    action.add_argument("--name", required=True, help="the image's name, such as busybox or tools:1.0")
    action.add_argument(
        "--link",
        action="append",
        default=None,
        metavar="NAME",
        help="hard link in /bin (busybox: all applets)",
    )


def _registry_flags(action: argparse.ArgumentParser) -> None:
    action.add_argument("--insecure", action="store_true", help="allow plain HTTP and unknown certificates")
    action.add_argument("--ca-file", help="certificates to trust for this registry")
    action.add_argument(
        "--auth-file",
        type=Path,
        help="credentials: a docker config.json (default: $REGISTRY_AUTH_FILE, $DOCKER_CONFIG/config.json"
        " or ~/.docker/config.json)",
    )
    action.add_argument("-q", "--quiet", action="store_true", help="print no progress")


def _action(
    actions: Any, name: str, run: Callable[[argparse.Namespace], int], text: str, more: str = ""
) -> argparse.ArgumentParser:
    whole = f"{text[0].upper()}{text[1:]}. {more}"
    parser: argparse.ArgumentParser = actions.add_parser(name, help=text, description=whole)
    parser.add_argument("--root", type=Path, default=Path("/"), help="prefix of all paths (default /)")
    parser.set_defaults(handler=lambda args: _plainly(run, args))
    return parser


def _plainly(run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """What the system refuses anywhere below is one line that names the file and what to do."""
    try:
        return run(args)
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = errno_name(error.errno) if error.errno else str(error)
        where = f" of {error.filename}" if isinstance(error.filename, str) else ""
        said = vars(args)
        names = said.get("names") or [said.get("name") or said.get("file") or "images"]
        hint = _HINTS.get(error.errno or 0, "")
        verb = _VERBS.get(args.action, args.action)
        raise CommandError(f"Could not {verb} {' '.join(names)}: {reason}{where}{hint}") from error
    except ImageError as error:
        raise CommandError(str(error)) from error


def _guarded(names: Iterable[str], do: Callable[[str], None]) -> int:
    """Do something for every name; report each failure and go on."""
    code = 0
    for name in names:
        try:
            do(name)
        except ImageError as error:
            print(f"kubelet-py image: {error}", file=sys.stderr)
            code = 1
    return code


def _store(args: argparse.Namespace) -> ImageStore:
    return ImageStore(NodePaths(args.root).images)


def _ls(args: argparse.Namespace) -> int:
    images = _store(args).list()
    if args.output == "json":
        print(json.dumps({"images": [_as_json(image) for image in images]}, indent=2))
    elif args.quiet:
        for image in images:
            print(image.id)
    else:
        _table(images, whole=args.no_trunc)
    return 0


def _import(args: argparse.Namespace) -> int:
    def read(name: str) -> None:
        store = _store(args)
        if name == "-":
            images = store.import_archive(sys.stdin.buffer, args.name)
        else:
            try:
                with open(name, "rb") as handle:
                    images = store.import_archive(handle, args.name)
            except FileNotFoundError:
                raise ImageError(f"Could not open {name}: ENOENT (give the path of an archive)") from None
        for image in images:
            print(f"{' '.join(image.repo_tags) or '<none>'} {image.id}")

    return _guarded([args.file], read)


def _pull(args: argparse.Namespace) -> int:
    from runtime.images import registry

    def fetch(name: str) -> None:
        with _transfer(args, name, "downloading") as settings:
            progress: Progress | None = settings["progress"]
            waiting = progress.waiting if progress is not None else None
            image = registry.pull(_store(args), name, waiting=waiting, **settings)
        print(f"{reference.parse(name)} {image.id}")

    return _guarded([args.name], fetch)


def _push(args: argparse.Namespace) -> int:
    from runtime.images import push

    def send(name: str) -> None:
        target = args.target or name
        with _transfer(args, target, "uploading") as settings:
            done = push.push(_store(args), name, target=target, **settings)
        counts = f"{done.sent} sent, {done.mounted} mounted, {done.present} already there"
        print(f"{reference.parse(target)} {done.digest} (blobs: {counts})")

    return _guarded([args.name], send)


@contextlib.contextmanager
def _transfer(args: argparse.Namespace, name: str, verb: str) -> Iterator[dict[str, Any]]:
    """The arguments that `pull` and `push` share, with progress while the block runs."""
    from runtime.images import login
    from runtime.images.credentials import InvalidCredentials

    parsed = reference.parse(name)
    file = args.auth_file or login.default_file(os.environ)
    try:
        found = login.credentials_for(parsed, file) if file is not None else []
    except OSError as error:
        raise CommandError(f"Could not read {file}: {error.strerror}") from error
    except InvalidCredentials as error:
        raise CommandError(f"{error} (in {file})") from error
    with contextlib.ExitStack() as stack:
        # Where a certificate is not looked at, somebody has said so; the library would repeat it each time.
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message="Unverified HTTPS request")
        yield {
            "credentials": found[0] if found else None,
            "insecure": [parsed.domain] if args.insecure else [],
            "ca_file": args.ca_file,
            "hosts_dir": NodePaths(args.root).config / "registries",
            "progress": None if args.quiet else stack.enter_context(Progress(sys.stderr, verb)),
        }


def _export(args: argparse.Namespace) -> int:
    from runtime.images.export import export_images

    def write(output: str) -> None:
        store = _store(args)
        if output == "-":
            export_images(store, args.names, sys.stdout.buffer, args.format)
            return
        try:
            with _whole_file(output) as handle:
                export_images(store, args.names, handle, args.format)
        except OSError as error:
            raise ImageError(f"Could not write {output}: {error.strerror}") from error

    return _guarded([args.output], write)


@contextlib.contextmanager
def _whole_file(name: str) -> Iterator[BinaryIO]:
    """A file that gets its name when all of it is written: half an archive is none, and one that was there
    before outlives an export that fails. Pipes and devices are written to as they are."""
    target = os.path.realpath(name)
    if os.path.exists(target) and not os.path.isfile(target):
        with open(target, "wb") as handle:
            yield handle
        return
    part = f"{target}.part-{os.getpid()}"
    with open(part, "xb") as handle:
        try:
            yield handle
            handle.flush()
            os.replace(part, target)
        except BaseException:
            os.unlink(part)
            raise


def _tag(args: argparse.Namespace) -> int:
    def name_it(name: str) -> None:
        full = [str(reference.parse(tag)) for tag in args.tags]
        if any("@" in tag for tag in full):
            raise ImageError(f"Could not tag {name}: a digest is no tag")
        image = _store(args).tag(name, full)
        print(f"{' '.join(full)} {image.id}")

    return _guarded([args.name], name_it)


def _prune(args: argparse.Namespace) -> int:
    store = _store(args)
    used = _images_in_use(store, NodePaths(args.root).containers)
    idle = [image for image in store.list() if image.id not in used and (args.all or not image.repo_tags)]

    def remove(image_id: str) -> None:
        # A container may have come since, or another one have removed it.
        used = _images_in_use(store, NodePaths(args.root).containers)
        if image_id not in used:
            with contextlib.suppress(ImageNotFound):
                print(f"Deleted: {store.remove(image_id, in_use=used).id}")

    code = _guarded([image.id for image in idle], remove)
    if swept := store.sweep():
        print(f"Deleted: {swept} layers of no image")
    return code


def _inspect(args: argparse.Namespace) -> int:
    store = _store(args)
    found: list[dict[str, Any]] = []

    def look(name: str) -> None:
        image = store.lookup(name)
        if image is None:
            raise ImageNotFound(
                f"Could not inspect {name}: no such image (kubelet-py image ls shows what there is)"
            )
        found.append(
            {**_as_json(image), "layers": image.layers, "config": json.loads(store.document(image.id))}
        )

    code = _guarded(args.names, look)
    print(json.dumps(found, indent=2))
    return code


def _rm(args: argparse.Namespace) -> int:
    store = _store(args)
    used = _images_in_use(store, NodePaths(args.root).containers)

    def remove(name: str) -> None:
        image = store.remove(name, in_use=used)
        stays = store.lookup(image.id) is not None
        print(f"Untagged: {reference.parse(name)}" if stays else f"Deleted: {image.id}")

    return _guarded(args.names, remove)


def _images_in_use(store: ImageStore, containers: Path) -> set[str]:
    """Ids of the images that containers stand on, as the runtime wrote them down.

    A pulled image is written down by its repository digest, as the CRI shows it: the store knows its id.
    """
    found = set()
    for file in containers.glob("*/config.json"):
        try:
            name = str(json.loads(file.read_bytes()).get("config", {}).get("image_id"))
            image = store.lookup(name)
            found.add(image.id if image is not None else name)
        except FileNotFoundError:
            continue  # removed while we looked
        except ValueError as error:
            raise CommandError(f"Could not read {file}: {error} (remove the container first)") from error
    return found


def _from_binary(args: argparse.Namespace) -> int:
    def make(name: str) -> None:
        image = _store(args).from_binary(args.path, name, links=args.link)
        print(f"{image.repo_tags[0]} {image.id}")

    return _guarded([args.name], make)


def _as_json(image: Image) -> dict[str, Any]:
    return {
        "id": image.id,
        "repoTags": list(image.repo_tags),
        "repoDigests": list(image.repo_digests),
        "size": str(image.size),  # a string, as the CRI's JSON has it
    }


def _table(images: Iterable[Image], *, whole: bool) -> None:
    rows = [("IMAGE", "TAG", "IMAGE ID", "SIZE")]
    for image in images:
        identifier = image.id if whole else image.id.removeprefix("sha256:")[:13]
        named = [tuple(tag.rsplit(":", 1)) for tag in image.repo_tags]
        untagged = [(digest.partition("@")[0], "<none>") for digest in image.repo_digests[:1]]
        for repository, tag in named or untagged or [("<none>", "<none>")]:
            rows.append((repository, tag, identifier, human(image.size)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        print("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
