"""What goes wrong with a lab is told as CommandError is: one line that says what to do."""

from __future__ import annotations

from kubelet_py.cli.errors import CommandError


class LabError(CommandError):
    """The lab could not do what was asked."""
