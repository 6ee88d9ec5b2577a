"""Speaking to one registry: TLS, tokens, redirects, proxies, and patience.

Registries hand out tokens in a dance of their own: a 401 names a realm, a service and a scope, and the realm
gives a bearer token for them (distribution/spec/auth/token.md). A proxy is taken from the environment as
curl does (https_proxy, no_proxy …), never for loopback.

What is never done: plain HTTP, unless the host is loopback, was named insecure or stands as http:// in a
hosts.toml; sending credentials or tokens to another host than the one they are for, also across redirects
(blobs usually lie on a CDN).
"""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.utils import DEFAULT_CA_BUNDLE_PATH

from runtime.images import challenges
from runtime.images.credentials import Credentials
from runtime.images.errors import (
    ManifestError,
    PullError,
    PullNotFound,
    PullUnauthorized,
    RegistryUnavailable,
)
from runtime.images.hosts import Endpoint
from runtime.images.reference import DEFAULT_DOMAIN, Reference

log = logging.getLogger(__name__)

BROKEN = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError, requests.Timeout)
"""How requests says that a transfer broke off."""

SENSELESS = (requests.RequestException, urllib3.exceptions.HTTPError, ValueError)
"""What else comes of answers that no registry gives: addresses that are none, lengths below 0, bytes that are
not compressed as they say. To be caught behind BROKEN."""

CHUNK = 1 << 18
_READ_SECONDS = 60.0
_ATTEMPTS = 4
_LONGEST_WAIT = 10.0
_REDIRECTS = 5
_PASSING = frozenset({429, 500, 502, 503, 504})
_MAX_TOKEN = 1 << 20
_NO_TLS = " (it does not speak TLS: name it as http:// in its hosts.toml, or pull with --insecure)"
_HINTS = {
    "CERTIFICATE_VERIFY_FAILED": " (trust it by `ca` in its hosts.toml, or pull with --ca-file)",
    "WRONG_VERSION_NUMBER": _NO_TLS,
    "RECORD_LAYER_FAILURE": _NO_TLS,
}
# What requests takes for "not even from the environment".
_NO_PROXY: Any = {"http": None, "https": None, "all": None}


def _no_netrc(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Given as `auth`, so that requests does not look for passwords in ~/.netrc."""
    return request


class Session(requests.Session):
    """Redirects are ours to follow. requests, told not to, still makes ready for the next request: it reads
    all of the answer's body, however much comes, and fails on an address that is none."""

    def resolve_redirects(self, *_: Any, **__: Any) -> Iterator[Any]:
        """Where requests would go on: nowhere."""
        return iter(())


class Channel:
    """One server, for one repository, with the credentials for it. Safe for several threads.

    `verb` is pull or push: it decides the scope asked for, and stands in messages.
    """

    def __init__(
        self,
        session: requests.Session,
        endpoint: Endpoint,
        reference: Reference,
        credentials: Credentials,
        *,
        verb: str,
        insecure: bool,
        ca_file: str | None,
        sleep: Callable[[float], None],
        stop: threading.Event | None = None,
    ) -> None:
        """Once `stop` is set, nothing more is asked."""
        self.endpoint, self.sleep = endpoint, sleep
        self.what = f"Could not {verb} {reference}"
        self._session, self._reference, self._credentials = session, reference, credentials
        self._actions = "pull" if verb == "pull" else "pull,push"
        self._insecure, self._stop = insecure, stop or threading.Event()
        if ca_file:
            open(ca_file, "rb").close()  # requests would only notice in the middle of the first request
        self._trust = trust_file(endpoint.ca) if endpoint.ca else -1
        own = f"/proc/self/fd/{self._trust}" if self._trust >= 0 else True
        self._verify: bool | str = False if insecure or endpoint.skip_verify else (ca_file or own)
        self._timeout = (endpoint.connect_seconds, _READ_SECONDS)
        self._authorization = f"Bearer {credentials.registry_token}" if credentials.registry_token else ""
        self._lock = threading.Lock()
        self._base_lock = threading.Lock()
        self._base = endpoint.base

    def close(self) -> None:
        if self._trust >= 0:
            os.close(self._trust)

    @property
    def base(self) -> str:
        """The URL up to /v2; found out on first use. Raises RegistryUnavailable."""
        with self._base_lock:
            if not self._base:
                domain = self._reference.domain
                host = "registry-1.docker.io" if domain == DEFAULT_DOMAIN else domain
                self._base = f"{self._find_scheme(host)}://{host}/v2"
            return self._base

    def url(self, rest: str) -> str:
        """The address of something in the repository, such as `blobs/sha256:…`."""
        return f"{self.base}/{self._reference.path}/{rest}"

    def get(self, url: str, what: str, headers: Mapping[str, str] | None = None) -> requests.Response:
        """GET, patiently; raises the PullError tree for every answer but 200 and 206."""
        response = self.send("GET", url, what, headers=headers)
        if response.status_code in (200, 206):
            return response
        with response:
            raise self.refused(response, what)

    def send(
        self,
        method: str,
        url: str,
        what: str,
        *,
        headers: Mapping[str, str] | None = None,
        data: Any = None,
        patient: bool = True,
    ) -> requests.Response:
        """A request with authentication; any answer is returned, the body unread.

        Where `patient`, failures that pass are tried again with growing pauses (Retry-After is heeded up to
        10 s); `data` must then be bytes. Raises RegistryUnavailable, PullUnauthorized.
        """
        attempts = _ATTEMPTS if patient else 1
        return self._again(attempts, what, lambda: self._authorized(method, url, what, headers or {}, data))

    def _again(self, attempts: int, what: str, ask: Callable[[], requests.Response]) -> requests.Response:
        for attempt in range(1, attempts + 1):
            pause = min(0.25 * 2**attempt, _LONGEST_WAIT)
            try:
                response = ask()
            except BROKEN as error:
                if attempt == attempts or _hopeless(error):
                    raise self.unreachable(what, error) from error
                log.info("Asked again what=%s attempt=%d reason=%s", what, attempt, type(error).__name__)
            else:
                if response.status_code not in _PASSING or attempt == attempts:
                    return response
                asked = _seconds(response.headers.get("Retry-After", ""), pause)
                pause = min(max(0.0, asked), _LONGEST_WAIT)  # in this order nan is nothing
                log.info("Asked again what=%s attempt=%d status=%d", what, attempt, response.status_code)
                response.close()
            self.sleep(pause)
        raise AssertionError("unreachable")

    def _authorized(
        self, method: str, url: str, what: str, headers: Mapping[str, str], data: Any
    ) -> requests.Response:
        used = self._authorization
        response = self._follow(method, url, headers, data)
        # Another server, to which we were redirected, may not say where our credentials go (CVE-2020-15157).
        if response.status_code == 401 and self._is_own(response.url):
            challenge = response.headers.get("WWW-Authenticate", "")
            response.close()
            self._authenticate(challenge, what, used)
            response = self._follow(method, url, headers, data)
        return response

    def _follow(self, method: str, url: str, headers: Mapping[str, str], data: Any) -> requests.Response:
        origin = urlsplit(self.base)
        for _ in range(_REDIRECTS + 1):
            sent = dict(headers)
            # Bytes are hashed as stored: no transfer compression may come between.
            sent["Accept-Encoding"] = "identity"
            query = {}
            if self._is_own(url):
                sent |= dict(self.endpoint.headers)
                if self._authorization:
                    sent["Authorization"] = self._authorization
                if self.endpoint.mirror_of:
                    query["ns"] = self.endpoint.mirror_of
            response = self._request(method, url, headers=sent, params=query, data=data, stream=True)
            location = response.headers.get("Location", "")
            if method not in ("GET", "HEAD") or not location:
                return response
            if response.status_code not in (301, 302, 303, 307, 308):
                return response
            response.close()
            try:
                url = urljoin(url, location)
            except ValueError as error:
                raise PullError(f"{self.what}: redirected to {location[:200]!r}: {error}") from error
            scheme = urlsplit(url).scheme
            if scheme not in ("http", "https"):
                raise PullError(f"{self.what}: redirected to {url[:200]!r}")
            if scheme != "https" and origin.scheme == "https":
                raise PullError(f"{self.what}: redirected from https to {url[:200]}")
        raise PullError(f"{self.what}: more than {_REDIRECTS} redirects")

    def _is_own(self, url: str) -> bool:
        """Whether it is the registry itself that is asked there."""
        target, origin = urlsplit(url), urlsplit(self.base)
        return (target.scheme, target.netloc) == (origin.scheme, origin.netloc)

    def _request(self, method: str, url: str, **settings: Any) -> requests.Response:
        if self._stop.is_set():
            raise PullError(f"{self.what}: it was given up")
        try:
            return self._session.request(
                method,
                url,
                auth=_no_netrc,
                timeout=self._timeout,
                allow_redirects=False,
                verify=self._verify,
                cert=self.endpoint.client,
                proxies=_NO_PROXY if is_loopback(urlsplit(url).netloc) else None,
                **settings,
            )
        except BROKEN:
            raise
        except SENSELESS as error:
            raise PullError(f"{self.what}: could not ask {url[:200]!r}: {error}") from error

    def _find_scheme(self, host: str) -> str:
        """https, or http where that is allowed and TLS is not spoken."""
        if not (self._insecure or is_loopback(host)):
            return "https"
        try:
            self._request("GET", f"https://{host}/v2/").close()
        except requests.exceptions.ProxyError:
            return "http"  # the proxy, asked for a tunnel, reached nobody who would speak TLS
        except requests.exceptions.SSLError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise self.unreachable("answer", error) from error
            return "http"
        except (requests.ConnectionError, requests.Timeout) as error:
            raise self.unreachable("answer", error) from error
        return "https"

    # -- authentication ------------------------------------------------------------------------------

    def _authenticate(self, challenge: str, what: str, used: str) -> None:
        chosen = challenges.choose(challenges.parse(challenge))
        with self._lock:
            if self._authorization != used:
                return  # another thread was faster
            if chosen is None:
                raise PullUnauthorized(f"{self.what}: unknown challenge {challenge[:80]!r}")
            if chosen.scheme == "bearer":
                self._authorization = f"Bearer {self._token(chosen.fields)}"
                return
            if self._credentials.empty:
                raise PullUnauthorized(f"{self.what}: no credentials for {what}")
            self._authorization = self._credentials.basic()

    def _token(self, fields: Mapping[str, str]) -> str:
        realm = fields["realm"]
        try:
            parts = urlsplit(realm)
        except ValueError as error:
            raise PullUnauthorized(f"{self.what}: its token service {realm[:200]!r}: {error}") from error
        plain_allowed = urlsplit(self.base).scheme == "http" and (
            self._insecure or is_loopback(parts.netloc)
        )
        if parts.scheme != "https" and not (parts.scheme == "http" and plain_allowed):
            raise PullUnauthorized(
                f"{self.what}: its token service {realm[:200]} is not https"
            )
        scope = fields.get("scope") or f"repository:{self._reference.path}:{self._actions}"
        service = fields.get("service", "")
        # A token service is as busy as its registry, and may be another machine.
        ask = self._again(_ATTEMPTS, "token", lambda: self._ask_token(realm, service, scope))
        with ask as response:
            if response.status_code != 200:
                raise self.refused(response, "token")
            try:
                answer = json.loads(self.read_small(response, _MAX_TOKEN, "token"))
                token = answer.get("token") or answer.get("access_token")
            except (ValueError, RecursionError, AttributeError) as error:
                raise PullError(
                    f"{self.what}: the token service did not send JSON"
                ) from error
        if not isinstance(token, str) or not token.isascii() or not token.isprintable() or not token:
            raise PullUnauthorized(f"{self.what}: the token service sent no token")
        return token

    def _ask_token(self, realm: str, service: str, scope: str) -> requests.Response:
        if self._credentials.identity_token:
            form = {
                "grant_type": "refresh_token",
                "refresh_token": self._credentials.identity_token,
                "service": service,
                "scope": scope,
                "client_id": "kubelet-py",
            }
            return self._request("POST", realm, data=form)
        headers = {} if self._credentials.empty else {"Authorization": self._credentials.basic()}
        # Several scopes, as for mounting across repositories, are as many parameters.
        query = {"service": service, "scope": scope.split()}
        return self._request("GET", realm, params=query, headers=headers)

    # -- answers -------------------------------------------------------------------------------------

    def read_small(self, response: requests.Response, limit: int, what: str) -> bytes:
        """The whole body, of at most `limit` bytes."""
        data = bytearray()  # of bytes, each piece would be a copy of all before it; and pieces may be bytes
        try:
            for chunk in response.iter_content(CHUNK):
                data += chunk
                if len(data) > limit:
                    raise ManifestError(f"{self.what}: {what} has more than {limit} bytes")
        except BROKEN as error:
            raise self.unreachable(what, error) from error
        except SENSELESS as error:
            raise self.senseless(what, error) from error
        return bytes(data)

    def senseless(self, what: str, error: Exception) -> PullError:
        """The exception for a body that cannot be read, whoever asks again."""
        return PullError(f"{self.what}: could not read {what}: {error}")

    def refused(self, response: requests.Response, what: str) -> PullError:
        """The exception for an answer that is no success."""
        detail = _error_text(response)
        text = f"{self.what}: {what}: {response.status_code} {response.reason}{detail}"
        if response.status_code == 404:
            return PullNotFound(f"{text} (check the name and the tag)")
        if response.status_code in (401, 403):
            return PullUnauthorized(f"{text} (the repository may not exist or may require credentials)")
        if response.status_code == 429 or response.status_code >= 500:
            return RegistryUnavailable(text)
        return PullError(text)

    def unreachable(self, what: str, error: Exception) -> RegistryUnavailable:
        """The exception for a connection that failed, with the system's reason and what to do."""
        cause: BaseException = error
        while (inner := cause.__cause__ or cause.__context__) is not None:
            cause = inner
        hint = next((hint for sign, hint in _HINTS.items() if sign in str(cause)), "")
        request = getattr(error, "request", None)
        host = urlsplit(getattr(request, "url", "") or "").netloc
        where = f"{what} from {host}" if host else what
        return RegistryUnavailable(f"{self.what}: {where}: {cause}{hint}")


def _seconds(retry_after: str, otherwise: float) -> float:
    """Seconds or a date (RFC 9110, section 10.2.3), as seconds from now."""
    try:
        return float(retry_after)
    except ValueError:
        pass
    try:
        # A date without a zone is of the form that HTTP has from C's asctime; all its dates are UTC.
        date = parsedate_to_datetime(retry_after)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time()
    except (ValueError, OverflowError):
        return otherwise


def _error_text(response: requests.Response) -> str:
    try:
        first = next(response.iter_content(4096), b"")
        errors = json.loads(first)["errors"]
        return f": {errors[0]['message']}" if errors else ""
    except (ValueError, RecursionError, KeyError, TypeError, IndexError, requests.RequestException):
        return ""  # the status line says enough; error bodies are optional in the specification


def is_loopback(host: str) -> bool:
    """Whether `host`, with or without a port, is this machine by its name."""
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def trust_file(files: Collection[str]) -> int:
    """A file in memory with the system's certificates and these: requests takes one file. OSError."""
    data = Path(DEFAULT_CA_BUNDLE_PATH).read_bytes()
    for name in files:
        data += b"\n" + Path(name).read_bytes()
    descriptor = os.memfd_create("registry-certificates")
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    return descriptor


def _hopeless(error: Exception) -> bool:
    """Nobody listens, no such name, or a certificate that will not change: asking again only takes time."""
    if isinstance(error, (requests.exceptions.SSLError, requests.exceptions.ProxyError)):
        return True
    text = str(error)
    return "refused" in text or "NameResolutionError" in text or "Failed to resolve" in text
