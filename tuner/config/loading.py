"""From a YAML file to a `TuningConfig`. The file is only read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import Field, ValidationError

from tuner.config.evaluation import EvaluationConfig
from tuner.config.model import ModelConfig
from tuner.config.quantization import QuantizationConfig
from tuner.config.refusal import EMPTY, Refusal, SettingError, describe
from tuner.config.section import Section
from tuner.config.setting import OneOf, Version
from tuner.config.tuning import TuningSettings
from tuner.errors import ConfigError

MAX_BYTES = 1_000_000
# A handful of anchors is a convenience; nested ones multiply, and thirty can stand for 3**10 values.
MAX_ALIASES = 30
MAX_PROBLEMS = 5


class TuningConfig(Section):
    """Everything a run is told: the model, its quantisation, the criterion and its measurement."""

    model: ModelConfig = Field(description="which detector")
    device: Annotated[
        Literal["cpu"], OneOf({"cpu": "cpu"}, {"gpu": "the int8 kernels are for processors only: use cpu"})
    ] = Field(default="cpu", description="what it runs on")
    quantization: QuantizationConfig = Field(
        default_factory=QuantizationConfig, description="how the model becomes int8"
    )
    tuning: TuningSettings = Field(
        default_factory=TuningSettings, description="how much may be lost, and how the search goes"
    )
    evaluation: EvaluationConfig = Field(
        default_factory=EvaluationConfig, description="how accuracy and speed are measured"
    )
    version: Version = Field(default="1.0", description="the version of the schema that the file was written for")

    refused: ClassVar = {
        "pruning": Refusal("this tool quantises and does not prune: remove the section", EMPTY),
        "graph_optimization": Refusal(
            "bf16 alone is what `tuner quantize --mode bf16` makes: remove the section", EMPTY
        ),
        "model_conversion": Refusal(
            "conversion of a model trained with quantisation is not available in this version: remove the section",
            EMPTY,
        ),
    }


def load_config(path: str | Path) -> TuningConfig:
    """Read a YAML file. Relative paths in it start from the file's own folder.

    Raises ConfigError, in one line, for a file that cannot be read or a setting that cannot be honoured.
    """
    path = Path(path)
    return parse_config(read_yaml(path), str(path), path.absolute().parent)


def parse_config(settings: object, source: str, folder: Path = Path()) -> TuningConfig:
    """Make a config of parsed YAML. `source` names it in errors; relative paths start from `folder`.

    Raises ConfigError that names the settings at fault, in one line.
    """
    try:
        return TuningConfig.model_validate(settings, context={"folder": folder})
    except ValidationError as error:
        problems = [_in_words(problem) for problem in error.errors(include_url=False)]
        if len(problems) > MAX_PROBLEMS:
            problems[MAX_PROBLEMS:] = [f"and {len(problems) - MAX_PROBLEMS} more"]
        raise ConfigError(_one_line(f"{source}: {'; '.join(problems)}")) from None


def read_yaml(path: Path) -> object:
    """What a YAML file holds. Raises ConfigError for a file that is not one, is too large, or names a key twice."""
    try:
        if not path.is_file():
            raise ConfigError(_one_line(f"{path}: {'is not a file' if path.exists() else 'no such file'}"))
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError(_one_line(f"{path}: larger than {MAX_BYTES} bytes, which no settings file is"))
        return _StrictLoader(content.decode("utf-8-sig")).get_single_data()
    except OSError as error:
        raise ConfigError(_one_line(f"{path}: cannot be read: {error.strerror or error}")) from None
    except UnicodeDecodeError as error:
        raise ConfigError(_one_line(f"{path}: not UTF-8 text: byte {error.start}: {error.reason}")) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        raise ConfigError(_one_line(f"{path}: {place}{error.problem}")) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ConfigError(_one_line(f"{path}: not YAML: {' '.join(str(error).split())}")) from None
    except RecursionError:
        raise ConfigError(_one_line(f"{path}: nested too deeply")) from None


class _StrictLoader(yaml.SafeLoader):
    """A SafeLoader that takes no key twice and not many aliases."""

    aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > MAX_ALIASES:
                raise yaml.YAMLError(f"more than {MAX_ALIASES} aliases")
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"key {key.value!r} is given twice", problem_mark=key.start_mark)
                seen.add(key.value)
        return node

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> str:
        text: str = super().construct_scalar(node)
        try:
            # JSON writes some characters as two halves.
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise yaml.MarkedYAMLError(problem="half of a character", problem_mark=node.start_mark) from None


_EXPECTED = {
    "bool_type": "true or false",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than_equal": "a number of at least {ge}",
    "int_type": "a whole number",
    "less_than_equal": "a number of at most {le}",
    "string_too_short": "a name",
    "string_type": "text",
}


def _in_words(problem: Mapping[str, Any]) -> str:
    """One of pydantic's findings as `key.path: got value; expected ...`."""
    path = [key if isinstance(key, str) else describe(key) for key in problem["loc"] if key != "[key]"]
    context = problem.get("ctx", {})
    error = context.get("error")
    if isinstance(error, SettingError):
        path, text = [*path, *filter(None, [error.key])], error.text
    elif problem["type"] == "missing":
        text = "missing, and required"
    elif problem["type"] in _EXPECTED:
        text = f"got {describe(problem['input'])}; expected {_EXPECTED[problem['type']].format(**context)}"
    else:
        text = f"got {describe(problem['input'])}; {problem['msg']}"
    return f"{'.'.join(path)}: {text}" if path else text


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
