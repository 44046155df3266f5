"""From an address to a cluster that is connected, and back."""

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray._private import worker as ray_worker
from ray.exceptions import RayError

from tuner.cluster.address import ClusterAddress
from tuner.cluster.pool import in_one_line
from tuner.errors import ClusterError

# What names the cluster that this machine belongs to, if anything does.
_ADDRESS = "RAY_ADDRESS"
PROBE_S = 10.0
# What Ray does unless it is told otherwise: it phones home, and its workers have the lowest priority, at which latency
# would not be what it is without a cluster.
_DEFAULTS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}


@contextmanager
def connected(address: ClusterAddress) -> Iterator[None]:
    """Connect to a cluster, or start one on this machine; leaving the context ends what was started for it.

    Raises ClusterError where there is none, or where this process is connected to one already.
    """
    if ray.is_initialized():
        raise ClusterError("--cluster: this process is connected to a cluster already; disconnect with ray.shutdown()")
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    # Ray would end this process by its own way at SIGTERM, past what a run does when it is ended.
    before = signal.getsignal(signal.SIGTERM)
    # What Ray tells of lost nodes, twenty lines of it, goes to stdout; the pool tells it in one line.
    told = ray_worker._worker_logs_enabled
    ray_worker._worker_logs_enabled = False
    # With `configure_logging` off, nobody else tells Ray how much to say, which has a line about each token.
    log, level = logging.getLogger("ray"), logging.getLogger("ray").level
    log.setLevel(logging.ERROR)
    # A terminal that closes tells its whole group; what is started here ends after the run, as Ray has it for Ctrl-C.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        try:
            _connect(address)
        except SystemExit:
            # Ray's own answer to SIGTERM; the run has another one.
            _handle_again(before)
            signal.raise_signal(signal.SIGTERM)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            # Ray has put a handler of its own there.
            _handle_again(before)
        yield
    finally:
        ray.shutdown()
        ray_worker._worker_logs_enabled = told
        log.setLevel(level)
        _handle_again(before)


def _connect(address: ClusterAddress) -> None:
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": False}
    try:
        if address.local_workers:
            # Without an address it would connect to a cluster that runs here.
            ray.init(address="local", num_cpus=address.local_workers, include_dashboard=False, **quiet)
        else:
            _probe(address)
            ray.init(address=address.text, **quiet)
    except (RayError, RuntimeError, ValueError, OSError) as error:
        with_token = "; where it has a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
        cure = "" if address.local_workers else with_token
        raise ClusterError(f"--cluster={address.text}: cannot be reached: {in_one_line(error)}{cure}") from error


def _probe(address: ClusterAddress) -> None:
    """Raise OSError where nobody listens: Ray would try for minutes."""
    host, _, port = os.environ.get(_ADDRESS, "").rpartition(":")
    if address.text == "auto" and host and port.isdigit():
        socket.create_connection((host, int(port)), PROBE_S).close()


def _handle_again(handler: object) -> None:
    try:
        signal.signal(signal.SIGTERM, handler)  # type: ignore[arg-type]
    except ValueError:
        logging.getLogger(__name__).debug("not in the main thread: signals stay as they are")
