"""What tells nodes apart on which results would differ."""

from types import MappingProxyType

import pytest

from tuner.cluster.facts import NodeFacts, differences, read_facts


def test_a_machine_is_like_itself_whatever_its_name() -> None:
    here = read_facts()
    assert differences(NodeFacts("another", here.facts), here) == ""
    assert {"CPU instructions", "tensorflow version", "numpy version", "pycocotools version"} <= here.facts.keys()


@pytest.mark.parametrize("name", list(read_facts().facts))
def test_each_difference_is_told(name: str) -> None:
    here = read_facts()
    other = NodeFacts("other", MappingProxyType({**here.facts, name: "another"}))
    assert differences(other, here) == f"{name}: another, here {here.facts[name]}"


def test_kernels_are_another_choice_where_the_environment_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    here = read_facts()
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    told = differences(read_facts(), here)
    assert told == "TF_ENABLE_ONEDNN_OPTS: 0, here not set; ONEDNN_MAX_CPU_ISA: AVX2, here not set"
