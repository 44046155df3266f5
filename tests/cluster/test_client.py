"""A driver far away, by Ray's client: a cluster that the test starts as its administrator would."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, dict[str, str]]]:
    """The port for clients, and the environment that lets one in."""
    # Sockets have short names.
    folder = tmp_path_factory.mktemp("ray")
    token = folder / "token"
    token.write_text("of-the-tests-" + "0" * 32)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    port = free_port()
    head = subprocess.Popen(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", f"--port={free_port()}", "--num-cpus=2"),
            *(f"--ray-client-server-port={port}", "--include-dashboard=false", "--block"),
            *(f"--object-store-memory={150 * 2**20}",),
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as trying:
                if trying.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield port, environment
    finally:
        head.send_signal(signal.SIGTERM)
        try:
            head.wait(30)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(head.pid, signal.SIGKILL)


def evaluate(cluster: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [
        *(sys.executable, "-m", "tuner", "evaluate", str(ROOT / "datasets" / "shapes" / "detector.pb"), "--quiet"),
        f"--config={ROOT / 'configs' / 'shapes.yaml'}",
        *([cluster] if cluster else []),
    ]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)


def figures(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if "latency" not in line]


def test_a_driver_far_away_finds_the_same(cluster: tuple[int, dict[str, str]]) -> None:
    port, environment = cluster
    far = evaluate(f"--cluster=ray://127.0.0.1:{port}", environment)
    assert figures(far) == figures(evaluate("", environment))


def test_without_the_token_nobody_gets_in(cluster: tuple[int, dict[str, str]]) -> None:
    port, environment = cluster
    refused = evaluate(f"--cluster=ray://127.0.0.1:{port}", {**environment, "RAY_AUTH_MODE": "disabled"})
    assert refused.returncode == 2
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert "cannot be reached" in line and "RAY_AUTH_TOKEN_PATH" in line
