"""What the last bits of a result depend on besides the graph: nodes that differ in it cannot share a run."""

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass

from tuner.quantization.cpu import read_cpu_features

# oneDNN chooses other kernels where these are set.
_KERNEL_SETTINGS = ("TF_ENABLE_ONEDNN_OPTS", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
_PACKAGES = ("tensorflow", "numpy", "pycocotools", "tuner")


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """A machine as results see it. host: its name. facts: by name, in words."""

    host: str
    facts: Mapping[str, str]


def read_facts() -> NodeFacts:
    """Those of the machine that this process runs on."""
    features = read_cpu_features()
    versions = {f"{name} version": importlib.metadata.version(name) for name in _PACKAGES}
    settings = {name: os.environ.get(name, "not set") for name in _KERNEL_SETTINGS}
    flags = "unknown" if features is None else " ".join(sorted(features.flags))
    return NodeFacts(platform.node(), {"CPU instructions": flags, **versions, **settings})


def differences(found: NodeFacts, expected: NodeFacts) -> str:
    """What is not as expected, in words; empty where all is."""
    return "; ".join(
        f"{name}: {found.facts.get(name)}, here {value}"
        for name, value in expected.facts.items()
        if found.facts.get(name) != value
    )
