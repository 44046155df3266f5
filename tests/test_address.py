import subprocess
import sys
from pathlib import Path

import pytest

from tuner.address import Address, place, without_secrets
from tuner.errors import ConfigError

SIGNED = "https://me:p@ss/word@host.org:8080/a/val.record?X-Amz-Signature=0a1b&token=t"


@pytest.mark.parametrize("text", ["val.record", "/data/val-*", "a:b", "C:/data", "://x", "s3:/b/x", "../x://y"])
def test_what_begins_with_no_protocol_is_a_local_path(text: str) -> None:
    assert place(text) == Path(text)
    assert place(text, Path("/settings")) == Path("/settings") / text


@pytest.mark.parametrize("text", ["s3://bucket//val.record", "gs://b/x-?????-of-00010", "file:///data/x", SIGNED])
def test_an_address_is_kept_to_the_letter(text: str) -> None:
    found = place(text, Path("/settings"))
    assert isinstance(found, Address) and found.url == text


@pytest.mark.parametrize(
    ("url", "protocol", "name"),
    [
        ("s3://bucket/a/val-00000-of-00002", "s3", "val-00000-of-00002"),
        ("gs://bucket/val-?????-of-*", "gs", "val-?????-of-*"),
        ("HTTPS://host/a/val.record?sig=/x", "https", "val.record"),
        ("file:///data/sets/", "file", "sets"),
    ],
)
def test_its_parts(url: str, protocol: str, name: str) -> None:
    assert (Address(url).protocol, Address(url).name) == (protocol, name)


def test_a_chain_of_file_systems_is_refused_without_its_password() -> None:
    with pytest.raises(ConfigError, match=r"^zip://.*\*\*\*@host/x.zip: is a chain") as error:
        place("zip://*::https://me:secret@host/x.zip")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://bucket/val-?????-of-00010", "s3://bucket/val-?????-of-00010"),
        ("abfs://container@account.net/x", "abfs://container@account.net/x"),
        ("sftp://me:secret@host/x", "sftp://me:***@host/x"),
        ("sftp://:secret@host/x", "sftp://:***@host/x"),
        (SIGNED, "https://me:***@host.org:8080/a/val.record?X-Amz-Signature=***&token=***"),
        ("403, url='https://me:secret@host/x?sig=s', again", "403, url='https://me:***@host/x?sig=***', again"),
        ("--dataset_location=https://me:secret@host/x", "--dataset_location=https://me:***@host/x"),
        ("--objective=latency?a=b", "--objective=latency?a=b"),
    ],
)
def test_secrets_are_hidden(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


def test_no_secret_is_in_what_python_prints_of_an_address() -> None:
    found = Address(SIGNED)
    for shown in (str(found), repr(found), f"{[found]}"):
        assert "ss/word" not in shown and "0a1b" not in shown and "host.org" in shown


def test_a_local_set_needs_neither_fsspec_nor_its_checksums(tmp_path: Path) -> None:
    shapes = Path(__file__).parents[1] / "datasets/shapes/evaluation.record"
    code = (
        "import sys; from pathlib import Path; from tuner.data.dataset import open_dataset\n"
        f"open_dataset(Path({str(shapes)!r}), limit=1).sha256\n"
        "sys.exit(' '.join({'fsspec', 'google_crc32c', 'aiohttp'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
