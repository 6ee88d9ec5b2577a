"""What can go wrong outside of a request: making certificates, opening the store, binding the port.

    ControlPlaneError
    ├── AuthorityError     a key, certificate or kubeconfig could not be made or read
    ├── StoreError         the database could not be opened, read or written
    └── ServeError         the API server could not start to serve

What goes wrong inside of a request is a Kubernetes Status: see `controlplane.apiserver.errors`.
"""

from __future__ import annotations


class ControlPlaneError(Exception):
    """Root of the tree; the text is one line that says what to do."""


class AuthorityError(ControlPlaneError):
    """A key, certificate or kubeconfig could not be made or read."""


class StoreError(ControlPlaneError):
    """The database could not be opened, read or written."""


class ServeError(ControlPlaneError):
    """The API server could not start to serve."""
