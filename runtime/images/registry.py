"""Pulling images over the OCI distribution API.

A pull is: the manifest by tag or digest (through an index, by platform), its config, then the layers that
are not on disk yet. Registries hand out tokens in a dance of their own: a 401 names a realm, a service and
a scope, and the realm gives a bearer token for them (distribution/spec/auth/token.md).

What is never done: plain HTTP, unless the host is loopback or was named insecure; sending credentials or
tokens to another host than the one they are for, also across redirects (blobs usually lie on a CDN);
fetching from `urls` in a manifest (CVE-2020-15157); trusting a size or a digest that was not counted.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests

from runtime.images import manifest as documents
from runtime.images.credentials import ANONYMOUS, Credentials
from runtime.images.errors import (
    DigestMismatch,
    ManifestError,
    PullError,
    PullNotFound,
    PullUnauthorized,
    RegistryUnavailable,
)
from runtime.images.reference import DEFAULT_DOMAIN, Reference, parse
from runtime.images.store import Image, ImageStore, LayerSource

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with a blob's digest, the bytes that are here, and the bytes that it has."""

_TIMEOUT = (10.0, 60.0)
_ATTEMPTS = 5
_REDIRECTS = 5
_CHUNK = 1 << 18
_PARALLEL = 3
_MAX_INDEX_DEPTH = 3
_CHALLENGE = re.compile(r'([a-zA-Z]+)="((?:[^"\\]|\\.)*)"')


def pull(
    store: ImageStore,
    name: str,
    *,
    credentials: Credentials | None = None,
    progress: Progress | None = None,
    insecure: Collection[str] = (),
    ca_file: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Image:
    """Pull an image into the store and return it.

    `insecure` are hosts (with port, as in the image name) that may be asked without TLS or with an unknown
    certificate. Layers that are present are not fetched again. Raises the PullError tree, InvalidReference,
    ManifestError, DigestMismatch, UnpackError.
    """
    reference = parse(name)
    with requests.Session() as session:
        client = _Registry(
            session,
            reference,
            credentials or ANONYMOUS,
            insecure=reference.domain in insecure,
            ca_file=ca_file,
            sleep=sleep,
        )
        kept, top_digest = _manifests(client, reference)
        found = documents.parse_manifest(kept[-1])
        config = client.document(found.config, documents.MAX_CONFIG)
        diff_ids = documents.parse_config(config).diff_ids
        if len(diff_ids) != len(found.layers):
            raise ManifestError(f"Could not pull {reference}: manifest and config disagree about the layers")
        with store.ingest() as folder:
            files = _fetch_layers(client, store, folder, found, diff_ids, progress)
            layers = [
                LayerSource(diff_id, layer.size, _opener(client, folder, files, layer))
                for diff_id, layer in zip(diff_ids, found.layers, strict=True)
            ]
            image = store.add(
                folder,
                config=config,
                layers=layers,
                tags=[] if reference.digest else [str(reference)],
                digests=[f"{reference.repository}@{top_digest}"],
                documents=kept,
            )
    log.info("Pulled image image=%s id=%s", reference, image.id)
    return image


def _manifests(client: _Registry, reference: Reference) -> tuple[list[bytes], str]:
    """The documents from the name down to the manifest, and the digest of the first."""
    wanted = documents.host_platform()
    kept: list[bytes] = []
    top_digest, selector, size = "", reference.selector, -1
    for _ in range(_MAX_INDEX_DEPTH):
        data, digest, content_type = client.manifest(selector)
        if 0 <= size != len(data):
            raise DigestMismatch(
                f"Could not pull {reference}: manifest {digest} has {len(data)} bytes, not {size}"
            )
        kept.append(data)
        top_digest = top_digest or digest
        if documents.kind_of(data, content_type) == "manifest":
            return kept, top_digest
        entry = documents.select(documents.parse_index(data), wanted)
        selector, size = entry.digest, entry.size
    raise ManifestError(f"Could not pull {reference}: indexes are nested too deeply")


def _fetch_layers(
    client: _Registry,
    store: ImageStore,
    folder: Path,
    found: documents.Manifest,
    diff_ids: tuple[str, ...],
    progress: Progress | None,
) -> dict[str, Path]:
    """Download, some at a time, the layers that the store lacks; files by digest."""
    missing = {
        layer.digest: layer
        for diff_id, layer in zip(diff_ids, found.layers, strict=True)
        if not store.has_layer(diff_id)
    }
    if not missing:
        return {}
    with ThreadPoolExecutor(max_workers=_PARALLEL, thread_name_prefix="image-pull") as pool:
        files = pool.map(lambda layer: client.blob(layer, folder, progress), missing.values())
        return dict(zip(missing, files, strict=True))


def _opener(
    client: _Registry, folder: Path, files: dict[str, Path], layer: documents.Descriptor
) -> Callable[[], Any]:
    def open_layer() -> Any:
        # A layer that was present may have been removed in the meantime: fetch it after all.
        if layer.digest not in files:
            files[layer.digest] = client.blob(layer, folder, None)
        return open(files[layer.digest], "rb")

    return open_layer


def _no_netrc(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Given as `auth`, so that requests does not look for passwords in ~/.netrc."""
    return request


class _Registry:
    """One repository of one registry, with the credentials for it."""

    def __init__(
        self,
        session: requests.Session,
        reference: Reference,
        credentials: Credentials,
        *,
        insecure: bool,
        ca_file: str | None,
        sleep: Callable[[float], None],
    ) -> None:
        self._session, self._reference, self._credentials = session, reference, credentials
        self._insecure, self._sleep = insecure, sleep
        self._verify: bool | str = False if insecure else (ca_file or True)
        self._authorization = f"Bearer {credentials.registry_token}" if credentials.registry_token else ""
        self._lock = threading.Lock()
        host = "registry-1.docker.io" if reference.domain == DEFAULT_DOMAIN else reference.domain
        self._base = self._find_base(host)

    def manifest(self, selector: str) -> tuple[bytes, str, str]:
        """A manifest or index by tag or digest: its bytes, digest and content type."""
        what = f"manifest {selector}"
        url = f"{self._base}/v2/{self._reference.path}/manifests/{selector}"
        with self._get(url, what, {"Accept": documents.ACCEPT}) as response:
            data = self._read_small(response, documents.MAX_MANIFEST, what)
            content_type = response.headers.get("Content-Type", "")
            announced = response.headers.get("Docker-Content-Digest", "")
        digest = selector if ":" in selector else announced
        if digest:
            documents.check_digest(data, digest, what)
        return data, digest or documents.digest_of(data), content_type

    def document(self, descriptor: documents.Descriptor, limit: int) -> bytes:
        """A small blob, checked."""
        if descriptor.size > limit:
            raise ManifestError(
                f"Could not pull {self._reference}: config of {descriptor.size} bytes (limit {limit})"
            )
        what = f"blob {descriptor.digest}"
        with self._get(self._blob_url(descriptor), what, {}) as response:
            data = self._read_small(response, limit, what)
        documents.check_digest(data, descriptor.digest, what)
        return data

    def blob(self, descriptor: documents.Descriptor, folder: Path, progress: Progress | None) -> Path:
        """Download a blob into `folder`, resuming broken transfers; returns the checked file."""
        algorithm, _, value = descriptor.digest.partition(":")
        path = folder / f"blob-{value}"
        digest, done = hashlib.new(algorithm), 0
        with open(path, "wb") as handle:
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    for chunk in self._blob_chunks(descriptor, done):
                        done += len(chunk)
                        if done > descriptor.size:
                            raise DigestMismatch(
                                f"Could not accept blob {descriptor.digest}: over its {descriptor.size} bytes"
                            )
                        digest.update(chunk)
                        handle.write(chunk)
                        if progress is not None:
                            progress(descriptor.digest, done, descriptor.size)
                    if done == descriptor.size:
                        break
                    reason = "the connection ended early"
                except (
                    requests.ConnectionError,
                    requests.exceptions.ChunkedEncodingError,
                    requests.Timeout,
                ) as error:
                    reason = type(error).__name__
                if attempt == _ATTEMPTS:
                    raise RegistryUnavailable(
                        f"Could not pull {self._reference}: blob {descriptor.digest} stopped at {done} of"
                        f" {descriptor.size} bytes, {attempt} times ({reason})"
                    )
                self._sleep(0.2 * 2**attempt)
        if f"{algorithm}:{digest.hexdigest()}" != descriptor.digest:
            raise DigestMismatch(
                f"Could not accept blob {descriptor.digest}: it is {algorithm}:{digest.hexdigest()}"
            )
        return path

    # -- requests ------------------------------------------------------------------------------------

    def _blob_url(self, descriptor: documents.Descriptor) -> str:
        return f"{self._base}/v2/{self._reference.path}/blobs/{descriptor.digest}"

    def _blob_chunks(self, descriptor: documents.Descriptor, start: int) -> Iterator[bytes]:
        headers = {"Range": f"bytes={start}-"} if start else {}
        if start == descriptor.size and start:
            return
        with self._get(self._blob_url(descriptor), f"blob {descriptor.digest}", headers) as response:
            skip = start if response.status_code == 200 else 0  # a server without ranges starts over
            for chunk in response.iter_content(_CHUNK):
                if skip >= len(chunk):
                    skip -= len(chunk)
                    continue
                yield chunk[skip:]
                skip = 0

    def _get(self, url: str, what: str, headers: Mapping[str, str]) -> requests.Response:
        """GET with authentication; raises for every answer but 200 and 206."""
        try:
            response = self._follow(url, headers)
            if response.status_code == 401:
                challenge = response.headers.get("WWW-Authenticate", "")
                response.close()
                self._authenticate(challenge, what)
                response = self._follow(url, headers)
        except (requests.ConnectionError, requests.Timeout) as error:
            raise self._unreachable(what, error) from error
        if response.status_code in (200, 206):
            return response
        with response:
            raise self._refused(response, what)

    def _follow(self, url: str, headers: Mapping[str, str]) -> requests.Response:
        origin = urlsplit(self._base)
        for _ in range(_REDIRECTS + 1):
            sent = dict(headers)
            # Bytes are hashed as stored: no transfer compression may come between.
            sent["Accept-Encoding"] = "identity"
            target = urlsplit(url)
            if self._authorization and (target.scheme, target.netloc) == (origin.scheme, origin.netloc):
                sent["Authorization"] = self._authorization
            response = self._session.get(
                url,
                headers=sent,
                auth=_no_netrc,
                timeout=_TIMEOUT,
                stream=True,
                allow_redirects=False,
                verify=self._verify,
            )
            location = response.headers.get("Location", "")
            if response.status_code not in (301, 302, 303, 307, 308) or not location:
                return response
            response.close()
            url = urljoin(url, location)
            if urlsplit(url).scheme != "https" and origin.scheme == "https":
                raise PullError(f"Could not pull {self._reference}: redirected from https to {url[:200]}")
        raise PullError(f"Could not pull {self._reference}: more than {_REDIRECTS} redirects")

    def _find_base(self, host: str) -> str:
        """https, or http where that is allowed and TLS is not spoken."""
        if not (self._insecure or _is_loopback(host)):
            return f"https://{host}"
        try:
            url = f"https://{host}/v2/"
            self._session.get(
                url, timeout=_TIMEOUT, auth=_no_netrc, allow_redirects=False, verify=self._verify
            ).close()
        except requests.exceptions.SSLError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise self._unreachable("registry", error) from error
            return f"http://{host}"
        except (requests.ConnectionError, requests.Timeout) as error:
            raise self._unreachable("registry", error) from error
        return f"https://{host}"

    # -- authentication ------------------------------------------------------------------------------

    def _authenticate(self, challenge: str, what: str) -> None:
        scheme, _, rest = challenge.partition(" ")
        fields = {key.lower(): value for key, value in _CHALLENGE.findall(rest)}
        with self._lock:
            if scheme.lower() == "basic":
                if self._credentials.empty:
                    raise PullUnauthorized(f"Could not pull {self._reference}: no credentials for {what}")
                self._authorization = self._credentials.basic()
            elif scheme.lower() == "bearer" and "realm" in fields:
                self._authorization = f"Bearer {self._token(fields)}"
            else:
                raise PullUnauthorized(
                    f"Could not pull {self._reference}: unknown challenge {challenge[:80]!r}"
                )

    def _token(self, fields: Mapping[str, str]) -> str:
        realm = fields["realm"]
        parts = urlsplit(realm)
        plain_allowed = urlsplit(self._base).scheme == "http" and (
            self._insecure or _is_loopback(parts.netloc)
        )
        if parts.scheme != "https" and not (parts.scheme == "http" and plain_allowed):
            raise PullUnauthorized(
                f"Could not pull {self._reference}: its token service {realm[:200]} is not https"
            )
        scope = fields.get("scope") or f"repository:{self._reference.path}:pull"
        service = fields.get("service", "")
        with self._ask_token(realm, service, scope) as response:
            if response.status_code != 200:
                raise self._refused(response, "token")
            try:
                answer = response.json()
                token = answer.get("token") or answer.get("access_token")
            except (ValueError, AttributeError) as error:
                raise PullError(
                    f"Could not pull {self._reference}: the token service did not send JSON"
                ) from error
        if not isinstance(token, str) or not token:
            raise PullUnauthorized(f"Could not pull {self._reference}: the token service sent no token")
        return token

    def _ask_token(self, realm: str, service: str, scope: str) -> requests.Response:
        settings: dict[str, Any] = {
            "timeout": _TIMEOUT,
            "auth": _no_netrc,
            "allow_redirects": False,
            "verify": self._verify,
        }
        if self._credentials.identity_token:
            form = {
                "grant_type": "refresh_token",
                "refresh_token": self._credentials.identity_token,
                "service": service,
                "scope": scope,
                "client_id": "kubelet-py",
            }
            return self._session.post(realm, data=form, **settings)
        headers = {} if self._credentials.empty else {"Authorization": self._credentials.basic()}
        query = {"service": service, "scope": scope}
        return self._session.get(realm, params=query, headers=headers, **settings)

    # -- answers -------------------------------------------------------------------------------------

    def _read_small(self, response: requests.Response, limit: int, what: str) -> bytes:
        data = b""
        try:
            for chunk in response.iter_content(_CHUNK):
                data += chunk
                if len(data) > limit:
                    raise ManifestError(
                        f"Could not pull {self._reference}: {what} has more than {limit} bytes"
                    )
        except (
            requests.ConnectionError,
            requests.exceptions.ChunkedEncodingError,
            requests.Timeout,
        ) as error:
            raise self._unreachable(what, error) from error
        return data

    def _refused(self, response: requests.Response, what: str) -> PullError:
        detail = _error_text(response)
        text = f"Could not pull {self._reference}: {what}: {response.status_code} {response.reason}{detail}"
        if response.status_code == 404:
            return PullNotFound(f"{text} (check the name and the tag)")
        if response.status_code in (401, 403):
            return PullUnauthorized(f"{text} (the repository may not exist or may require credentials)")
        if response.status_code == 429 or response.status_code >= 500:
            return RegistryUnavailable(text)
        return PullError(text)

    def _unreachable(self, what: str, error: Exception) -> RegistryUnavailable:
        cause: BaseException = error
        while (inner := cause.__cause__ or cause.__context__) is not None:
            cause = inner
        return RegistryUnavailable(f"Could not pull {self._reference}: {what}: {cause}")


def _error_text(response: requests.Response) -> str:
    try:
        first = next(response.iter_content(4096), b"")
        errors = json.loads(first)["errors"]
        return f": {errors[0]['message']}" if errors else ""
    except (ValueError, KeyError, TypeError, IndexError, requests.RequestException):
        return ""  # the status line says enough; error bodies are optional in the specification


def _is_loopback(host: str) -> bool:
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
