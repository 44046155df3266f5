import logging
from pathlib import Path

import pytest

from tuner.quantization.cpu import CpuFeatures, read_cpu_features, warn_without_vnni


@pytest.mark.parametrize(
    "flags, has_vnni, has_bfloat16",
    [
        ("fpu avx2", False, False),
        ("fpu avx2 avx512f avx512bw", False, False),
        ("avx2 avx_vnni", True, False),
        ("avx2 avx512f avx512_vnni", True, False),
        ("avx2 avx512f avx512_vnni avx512_bf16", True, True),
        ("avx2 avx512f amx_tile amx_int8 amx_bf16", True, True),
        ("avx512_vnni_not avx512_bf16x", False, False),
    ],
)
def test_flags(tmp_path: Path, flags: str, has_vnni: bool, has_bfloat16: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: none\n", encoding="utf-8")
    features = read_cpu_features(cpuinfo)
    assert features is not None
    assert features.flags <= set(flags.split())
    assert (features.has_vnni, features.has_bfloat16) == (has_vnni, has_bfloat16)


def test_cores_that_differ_have_what_all_have(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags\t: avx2 avx_vnni\n\nflags\t: avx2\n", encoding="utf-8")
    assert read_cpu_features(cpuinfo) == CpuFeatures(frozenset({"avx2"}))


@pytest.mark.parametrize("content", [None, "", "Features\t: fp asimd\n"])
def test_not_known(tmp_path: Path, content: str | None) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    if content is not None:
        cpuinfo.write_text(content, encoding="utf-8")
    assert read_cpu_features(cpuinfo) is None


@pytest.mark.parametrize(
    "features, warnings",
    [
        (None, 0),
        (CpuFeatures(frozenset({"avx2", "avx_vnni"})), 0),
        (CpuFeatures(frozenset({"avx2", "avx512f"})), 1),
        (CpuFeatures(frozenset()), 1),
    ],
)
def test_warns_once(features: CpuFeatures | None, warnings: int, caplog: pytest.LogCaptureFixture) -> None:
    warn_without_vnni.cache_clear()
    with caplog.at_level(logging.WARNING):
        warn_without_vnni(features)
        warn_without_vnni(features)
    assert len(caplog.records) == warnings
    for record in caplog.records:
        assert "16 bits" in record.getMessage()
        assert "\n" not in record.getMessage()


def test_what_cannot_saturate_does_not() -> None:
    assert 2 * 255 * 64 <= 32767 < 2 * 255 * 127
    assert 2 * 128 * 127 <= 32767
