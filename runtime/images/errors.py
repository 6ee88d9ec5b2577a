"""What can go wrong between a registry or an archive and a folder of layers.

ImageError
├── InvalidReference        the name cannot be an image name        (upstream: InvalidImageName)
├── ManifestError           a document is broken, too large or of an unknown kind
│   └── NoMatchingPlatform  an index without an entry for this machine
├── DigestMismatch          bytes are not what their digest says
├── UnpackError             a layer that is damaged, hostile or too large
├── ArchiveError            a file that is neither docker-archive nor OCI layout
├── ImageNotFound           the store has no such image
├── ImageInUse              containers still use it
└── PullError
    ├── PullNotFound        the registry does not know name, tag or digest
    ├── PullUnauthorized    credentials are missing or refused
    └── RegistryUnavailable no connection, a timeout, or a 5xx answer  (upstream: RegistryUnavailable)
"""

from __future__ import annotations


class ImageError(Exception):
    """Base of everything this package raises on purpose."""


class InvalidReference(ImageError):
    """The text does not follow the grammar of image names."""


class ManifestError(ImageError):
    """A manifest, index or image config that cannot be used."""


class NoMatchingPlatform(ManifestError):
    """The index has no manifest for this machine's architecture."""


class DigestMismatch(ImageError):
    """Content does not have the digest or the size under which it was announced."""


class UnpackError(ImageError):
    """A layer archive that was refused; nothing of it was kept."""


class ArchiveError(ImageError):
    """An image archive that cannot be imported."""


class ImageNotFound(ImageError):
    """No image of that name, digest or id is in the store."""


class ImageInUse(ImageError):
    """The image cannot be removed while containers stand on its layers."""


class PullError(ImageError):
    """The registry did not give the image."""


class PullNotFound(PullError):
    """The registry answered 404 for the manifest or a blob."""


class PullUnauthorized(PullError):
    """The registry or its token service answered 401 or 403."""


class RegistryUnavailable(PullError):
    """The registry could not be reached or was failing; trying again later may help."""
