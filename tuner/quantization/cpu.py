"""What this CPU multiplies fast, and the one case in which int8 products do not come out right."""

import logging
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

LOGGER = logging.getLogger(__name__)
CPUINFO = Path("/proc/cpuinfo")

INT8_FLAGS = ("avx512_vnni", "avx_vnni", "amx_int8")
BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16")
# The instruction sets that oneDNN chooses its kernels by, as Linux spells them.
FLAGS = ("avx2", "avx512f", *INT8_FLAGS, *BFLOAT16_FLAGS)

WITHOUT_VNNI = (
    "this CPU has no VNNI instructions (%s): u8 * s8 products are added in pairs in 16 bits, where sums outside "
    "-32768..32767 saturate, so int8 accuracy measured here can be lower than on a CPU with VNNI, and int8 gains less "
    "speed; pairs of codes up to 255 * 64 or 128 * 127 cannot saturate"
)


@dataclass(frozen=True, slots=True)
class CpuFeatures:
    """The instruction sets of a CPU that matter here. flags: those of FLAGS that it has."""

    flags: frozenset[str]

    @property
    def has_vnni(self) -> bool:
        """Whether products of 8-bit numbers are added in 32 bits."""
        return not self.flags.isdisjoint(INT8_FLAGS)

    @property
    def has_bfloat16(self) -> bool:
        """Whether bfloat16 numbers are multiplied as they are, not by way of float32."""
        return not self.flags.isdisjoint(BFLOAT16_FLAGS)


def read_cpu_features(cpuinfo: Path = CPUINFO) -> CpuFeatures | None:
    """The instruction sets that every core of this machine has; None where the system does not tell.

    cpuinfo: a file as Linux writes it for x86 CPUs.
    """
    try:
        text = cpuinfo.read_text(encoding="utf-8")
    except OSError:
        return None
    cores = [frozenset(line.split()) for line in re.findall(r"^flags\s*:(.*)$", text, re.MULTILINE)]
    return CpuFeatures(frozenset(FLAGS).intersection(*cores)) if cores else None


@cache
def warn_without_vnni(features: CpuFeatures | None) -> None:
    """Say once for a process what int8 on this CPU cannot promise. Nothing for a CPU with VNNI, or not known."""
    if features is not None and not features.has_vnni:
        LOGGER.warning(WITHOUT_VNNI, ", ".join(sorted(features.flags)) or "no AVX2 either")
