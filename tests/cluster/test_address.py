"""What `--cluster` may say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.cluster.address import ClusterAddress, parse_address
from tuner.errors import ConfigError


@given(st.integers(1, 9999))
def test_workers_of_this_machine(count: int) -> None:
    assert parse_address(f"local:{count}") == ClusterAddress(f"local:{count}", count)


@pytest.mark.parametrize("text", ["auto", "ray://10.0.0.7:10001", "ray://head.example:10001", "ray://[::1]:10001"])
def test_clusters_that_run(text: str) -> None:
    assert parse_address(text) == ClusterAddress(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "local", "local:", "local:0", "local:-1", "local:10000", "local: 2", "local:2\n", "Auto", "auto\n"),
        *("10.0.0.7:6379", "ray://", "ray://user@host:1", "ray://host:1/path", "ray://host:1?token=secret"),
    ],
)
def test_what_is_no_address_is_told_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--cluster: got .*; expected local:N .*, auto .* or ray://HOST:PORT$"):
        parse_address(text)


@given(st.text())
def test_whatever_is_typed_is_an_address_or_an_error_in_one_line(text: str) -> None:
    try:
        assert parse_address(text).text == text
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1
