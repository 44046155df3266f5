"""What `--cluster` says: a cluster started here for this run, the one that is running here, or one far away."""

import re
from dataclasses import dataclass

from tuner.address import without_secrets
from tuner.errors import ConfigError

ALLOWED = "local:N (N workers on this machine), auto (the cluster that runs here) or ray://HOST:PORT"
_LOCAL = re.compile(r"local:([0-9]{1,4})")
_FAR = re.compile(r"ray://[^\s/?#@]+")


@dataclass(frozen=True, slots=True)
class ClusterAddress:
    """Where workers are. text: as it was asked for. local_workers: of a cluster to start here, 0 for one that runs."""

    text: str
    local_workers: int = 0


def parse_address(text: str) -> ClusterAddress:
    """Read an address. Raises ConfigError for what is none."""
    local = _LOCAL.fullmatch(text)
    if local is not None and int(local[1]) > 0:
        return ClusterAddress(text, int(local[1]))
    if text == "auto" or _FAR.fullmatch(text):
        return ClusterAddress(text)
    raise ConfigError(f"--cluster: got {without_secrets(text)!r}; expected {ALLOWED}")
