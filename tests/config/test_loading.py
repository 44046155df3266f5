"""Files: the committed ones, the exact form of LPOT's, and those that are no settings at all."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tuner.config import TuningConfig, load_config, parse_config
from tuner.errors import ConfigError
from tuner.precision import Dtype

CONFIGS = Path(__file__).parents[2] / "configs"
README = (CONFIGS / "README.md").read_text()
WORDS = README.replace(".", " ").replace("`", " ").split()


def load(tmp_path: Path, content: str | bytes) -> TuningConfig:
    path = tmp_path / "f.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return load_config(path)


def test_ssd_resnet50_v1() -> None:
    config = load_config(CONFIGS / "ssd_resnet50_v1.yaml")
    assert config.model.name == "ssd_resnet50_v1"
    assert config.model.inputs == ("image_tensor",)
    assert config.model.outputs == ("num_detections", "detection_boxes", "detection_scores", "detection_classes")
    assert config.quantization.calibration.sampling_sizes == (100,)
    assert {op: rule.dtypes for op, rule in config.quantization.op_wise.items()} == {
        "FeatureExtractor/resnet_v1_50/fpn/bottom_up_block5/Conv2D": (Dtype.FP32,),
        "WeightSharedConvolutionalBoxPredictor_2/ClassPredictionTower/conv2d_0/Conv2D": (Dtype.FP32,),
    }
    assert (config.tuning.accuracy_criterion.kind, config.tuning.accuracy_criterion.limit) == ("relative", 0.01)
    assert (config.tuning.exit_policy.timeout_s, config.tuning.exit_policy.max_trials) == (0, 100)
    assert config.tuning.random_seed == 9527


def test_shapes() -> None:
    config = load_config(str(CONFIGS / "shapes.yaml"))
    calibration, evaluation = config.quantization.calibration.dataset, config.evaluation.accuracy.dataset
    assert calibration is not None and evaluation is not None
    records = CONFIGS.resolve().parent / "datasets/shapes"
    assert calibration.source.root.resolve() == records / "calibration.record"
    assert evaluation.source.root.resolve() == records / "evaluation.record"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_loading_leaves_the_file_as_it_is(path: Path) -> None:
    before = path.read_bytes(), path.stat().st_mtime_ns
    load_config(path)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_paths_start_from_the_folder_of_the_file(tmp_path: Path) -> None:
    config = load(tmp_path, "model: {name: m}\ntuning: {workspace: {path: ../w, resume: /x}}")
    assert config.tuning.workspace.path == tmp_path / "../w"
    assert config.tuning.workspace.resume == Path("/x")


@pytest.mark.parametrize(
    "content",
    [
        "\ufeffmodel: {name: m}",
        "model:\n  name: m\n  inputs:\nquantization:\ntuning:\n  exit_policy:\nevaluation:\npruning:\n",
        "model: &a {name: m}\ntuning: {accuracy_criterion: {relative: 1%}}",
        "model: {<<: {name: n}, name: m}",
        "model: &m {<<: &n {name: n}, name: m}\nquantization: {op_wise: {a: &r {weight: {dtype: int8}}, b: *r}}",
    ],
)
def test_accepted_yaml(content: str, tmp_path: Path) -> None:
    assert load(tmp_path, content).model.name == "m"


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "model: missing, and required"),
        ("- model", "got ['model']; expected a mapping with keys of model, "),
        ("just text", "got 'just text'; expected a mapping"),
        ("model: {name: m", "line 1, column 16: expected ',' or '}', but got '<stream end>'"),
        ("model:\n\tname: m", "line 2, column 1: found character '\\t' that cannot start any token"),
        ("model: {name: m}\nmodel: {name: n}", "line 2, column 1: key 'model' is given twice"),
        ("model:\n  name: m\n  name: n", "line 3, column 3: key 'name' is given twice"),
        ("model: *a", "line 1, column 8: found undefined alias 'a'"),
        ("model: !!python/object:os.system {}", "line 1, column 8: could not determine a constructor for the tag"),
        ("a: 1\n---\nb: 2", "line 2, column 1: but found another document"),
        ("{[1]: 2}", "found unhashable key"),
        ("model: 2020-13-45", "not YAML: month must be in 1..12"),
        (b"model: {name: \xff}", "not UTF-8 text: byte 14: invalid start byte"),
        (b"model: \0", "not YAML: unacceptable character #x0000"),
        (b"#" * 1_000_001, "larger than 1000000 bytes"),
        ("[" * 5000, "nested too deeply"),
        ('model: {name: "\\ud83d"}', "line 1, column 15: half of a character"),
        ('"\\ude00": 1', "line 1, column 1: half of a character"),
        ("a: &a [1]\nb: [" + "*a," * 31 + "]", "not YAML: more than 30 aliases"),
        ("model: &a [*a]", "model: got [["),
        ("model: {name: " + "9" * 5000 + "}", "not YAML: Exceeds the limit"),
        ("? 0x" + "f" * 5000 + "\n: 1", "a number of thousands of digits: unknown key with the value 1"),
        ("model: {name: 0x" + "f" * 5000 + "}", "model.name: got a number of thousands of digits; expected text"),
    ],
)
def test_refused_yaml(content: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, content)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path}/f.yaml: ") and message in text and "\n" not in text and len(text) < 600


def test_a_character_that_json_writes_as_two_halves(tmp_path: Path) -> None:
    assert load(tmp_path, r'{"model": {"name": "\ud83d\ude00 é \u4e2d"}}').model.name == "😀 é 中"


def test_nested_aliases_end_soon(tmp_path: Path) -> None:
    laughs = "a0: &a0 [x, x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 11))
    with pytest.raises(ConfigError, match="a0: unknown key"):
        load(tmp_path, laughs)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file$"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"is not a file$"):
        load_config(tmp_path)


def test_loading_needs_no_tensorflow() -> None:
    code = (
        "import sys; from tuner.config import load_config; load_config(sys.argv[1]); print('tensorflow' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(CONFIGS / "shapes.yaml")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([5000]).map(lambda digits: 16**digits),
    st.floats(),
    st.text(max_size=8),
    st.dates(),
    st.binary(max_size=4),
    st.sampled_from(WORDS),
)
keys = st.one_of(st.sampled_from(WORDS), scalars)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=4)),
    max_leaves=20,
)


def under_real_keys(paths: list[list[str]]) -> st.SearchStrategy[Any]:
    """Anything under keys that exist: what a section checks first is whether its keys do."""
    keys_here = {path[0] for path in paths if path}
    if not keys_here:
        return values
    below = {key: [path[1:] for path in paths if path and path[0] == key] for key in sorted(keys_here)}
    return st.fixed_dictionaries({}, optional={key: under_real_keys(rest) for key, rest in below.items()})


HONOURED = [line.split("`")[1].split(".") for line in README.splitlines() if "` | honoured |" in line]


@settings(deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))
@given(st.one_of(values, under_real_keys(HONOURED)))
def test_anything_is_a_config_or_a_config_error(anything: object) -> None:
    try:
        parse_config(anything, "f.yaml")
    except ConfigError as error:
        assert str(error).startswith("f.yaml: ")
        assert str(error).isprintable()
