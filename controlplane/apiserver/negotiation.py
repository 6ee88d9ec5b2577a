"""What the client sends and what it wants back: Content-Type in, Accept out.

Bodies come as JSON, YAML or protobuf (kubectl and client-go post the last without a fallback); JSON is also
what a missing Content-Type means. Answers are JSON or YAML; `as=Table` and `as=PartialObjectMetadata` are
transformations that a client may prefer, in the order in which it lists them (apiserver
pkg/endpoints/handlers/negotiation).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from controlplane.apiserver.errors import bad_request, not_acceptable, unsupported_media_type

Object = dict[str, Any]
Form = Literal["Object", "Table", "PartialObjectMetadata"]

JSON = "application/json"
YAML = "application/yaml"
PROTOBUF = "application/vnd.kubernetes.protobuf"
_AS: dict[str, Form] = {
    "Table": "Table",
    "PartialObjectMetadata": "PartialObjectMetadata",
    "PartialObjectMetadataList": "PartialObjectMetadata",
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """The form of an answer; `version` is that of meta.k8s.io for the two transformations."""

    form: Form = "Object"
    version: str = "v1"
    yaml: bool = False


OBJECT = Wanted()

# What a YAML body may come to once its aliases are written out: some lines can stand for gigabytes.
_EXPANDED = 6 * 1024 * 1024
_DEEPEST = 250  # orjson's own limit is a little more


def wanted(accept: str, *, tabular: bool = True) -> Wanted:
    """The first media range of an Accept header that we can serve. Raises StatusError (406)."""
    if not accept or accept in ("*/*", JSON):
        return OBJECT
    for item in accept.split(","):
        media, *parameters = (part.strip() for part in item.split(";"))
        if media not in (JSON, YAML, "*/*", "application/*"):
            continue
        pairs = dict(part.partition("=")[::2] for part in parameters)
        kind = pairs.get("as")
        if not kind:
            return Wanted(yaml=media == YAML)
        served = tabular and pairs.get("g") == "meta.k8s.io" and pairs.get("v") in ("v1", "v1beta1")
        if kind in _AS and served:
            return Wanted(_AS[kind], pairs["v"], media == YAML)
    raise not_acceptable()


def media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def decode(body: bytes, content_type: str, kind: str) -> Object:
    """The object in a request's body. Raises StatusError (400, 415)."""
    media = media_type(content_type) or JSON
    if media == JSON:
        return _mapping(body, orjson.loads, kind)
    if media == YAML:
        return _mapping(body, _load_yaml, kind)
    if media == PROTOBUF:
        from controlplane.apiserver.protobuf import decode as decode_protobuf

        return _mapping(body, decode_protobuf, kind)
    raise unsupported_media_type()


def _mapping(body: bytes, load: Callable[[bytes], Any], kind: str) -> Object:
    lead = f"the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; "
    try:
        found = load(body)
    except (ValueError, OverflowError) as error:  # a time in protobuf may be after the last year
        raise bad_request(f"{lead}json parse error: {error} ({_excerpt(body)})") from error
    if not isinstance(found, dict):
        raise bad_request(f"{lead}json parse error: an object was expected ({_excerpt(body)})")
    return found


def _load_yaml(body: bytes) -> Any:
    import yaml

    try:
        loader = _yaml_loader()(body)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _weigh(node, {}, 0)
            found = loader.construct_document(node)
        finally:
            loader.dispose()
        return orjson.loads(orjson.dumps(found))
    except (yaml.YAMLError, orjson.JSONEncodeError) as error:
        raise ValueError(str(error).replace("\n", " ")) from error


def _weigh(node: Any, known: dict[int, int], depth: int) -> int:
    """How long the node is with its aliases written out. Raises ValueError for more than any body may have.

    An alias is the very node that it stands for, so each is weighed once, however often it is counted.
    """
    if depth > _DEEPEST:
        raise ValueError("exceeded max depth")
    weight = known.get(id(node))
    if weight is None:
        weight = 1
        if isinstance(node.value, str):
            weight += len(node.value)
        else:
            for part in node.value:
                for child in part if isinstance(part, tuple) else (part,):
                    weight += _weigh(child, known, depth + 1)
                if weight > _EXPANDED:
                    raise ValueError("yaml: document contains excessive aliasing")
        known[id(node)] = weight
    return weight


def _yaml_loader() -> Any:
    """YAML's safe subset without timestamps: JSON has none, and `2026-01-01` must stay a string."""
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):  # type: ignore[misc]
        yaml_implicit_resolvers = {
            letter: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:timestamp"]
            for letter, pairs in base.yaml_implicit_resolvers.items()
        }

    return Loader


def to_yaml(body: bytes) -> bytes:
    """An answer's JSON as YAML."""
    import yaml

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text: str = yaml.dump(orjson.loads(body), Dumper=dumper, sort_keys=False, allow_unicode=True)
    return text.encode()


def _excerpt(body: bytes) -> str:
    return body[:60].decode("utf-8", errors="replace")
