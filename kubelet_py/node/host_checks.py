"""What the configuration asks of this process and of the host before the agent does anything: how loud its
log is, and that there is no swap where there must be none (failSwapOn).
"""

from __future__ import annotations

import logging
from pathlib import Path

from kubelet_py.config import Options, verbosity
from kubelet_py.errors import ConfigError
from kubelet_py.server.handlers import level_of

log = logging.getLogger(__name__)
SWAPS = Path("/proc/swaps")


def prepare(options: Options, swaps: Path = SWAPS, logger: logging.Logger | None = None) -> Options:
    """The same options, when the agent may start with them. Raises ConfigError, with upstream's words."""
    config = options.config
    (logger or logging.getLogger()).setLevel(level_of(verbosity(config)))
    if config.without_effect:
        log.warning("Found settings that have no effect here keys=%s", ",".join(config.without_effect))
    if config.fail_swap_on and (found := swap_on(swaps)):
        raise ConfigError(
            "Could not start: running with swap on is not supported, please disable swap or set failSwapOn "
            f"to false; /proc/swaps contained: {found}"
        )
    return options


def swap_on(swaps: Path = SWAPS) -> list[str]:
    """The lines of /proc/swaps below its heading."""
    try:
        lines = swaps.read_text().splitlines()[1:]
    except OSError:
        return []  # a kernel without swap has no such file
    return [line for line in lines if line.strip()]
