"""Coverage-guided fuzzing of the readers of settings, plans and records, with atheris.

    pip install atheris
    python benchmarks/fuzz.py settings --seconds 480 --work /tmp/fuzz

Atheris is no dependency of the project. Targets: `settings` (a YAML file), `plan` (decisions for operators, as YAML and
as JSON), `records` (a TFRecord file, and the bytes of one record). Inputs that reach new code are kept in WORK/TARGET,
where the next call goes on; what a reader raises other than a TunerError is told once for each place that raises it,
with the input kept in WORK/TARGET-findings. Inputs that take 30 s or 2 GB end the run, as libFuzzer says.

The last lines tell how many inputs were tried and how many places of the code (libFuzzer's `cov`) they reached, at
first and at last.
"""

import argparse
import hashlib
import json
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["tuner", "yaml"]):
    from tuner.config import load_config, parse_config, pinned_yaml, read_yaml
    from tuner.errors import TunerError
    from tuner.precision import Dtype, Granularity, OpPrecision, Output, PrecisionPlan, RangeAlgorithm, Scheme

CONFIGS = Path(__file__).parents[1] / "configs"
PLAN = PrecisionPlan(
    {
        "a/Conv2D": OpPrecision(),
        "b": OpPrecision(weight_granularity=Granularity.PER_TENSOR, activation_algorithm=RangeAlgorithm.KL),
    }
)
Target = Callable[[bytes], None]


def settings_target(scratch: Path) -> tuple[Target, list[bytes]]:
    """Read a settings file; what is accepted must be accepted again as it is dumped."""

    def read(content: bytes) -> None:
        path = scratch / "f.yaml"
        path.write_bytes(content)
        config = load_config(path)
        dumped = config.model_dump(mode="json", by_alias=True, exclude_unset=True)
        if parse_config(dumped, "dumped", Path("/")) != config:
            raise AssertionError("the settings are others once they were dumped and read again")

    return read, [path.read_bytes() for path in CONFIGS.glob("*.yaml")]


def plan_target(scratch: Path) -> tuple[Target, list[bytes]]:
    """Read the decisions of a plan, as a run's plan.yaml and as its canonical JSON have them."""

    def read(content: bytes) -> None:
        path = scratch / "plan.yaml"
        path.write_bytes(content)
        value = read_yaml(path)
        refusals = []
        try:
            parse_config({"model": {"name": "m"}, "quantization": {"op_wise": value}}, "plan.yaml")
        except TunerError as error:
            refusals.append(error)
        plan = PrecisionPlan.from_json(value)
        if PrecisionPlan.from_json(json.loads(json.dumps(plan.to_json()))) != plan:
            raise AssertionError("the plan is another once it was written and read again")
        for error in refusals:
            raise error

    written = read_yaml_text(pinned_yaml(parse_config({"model": {"name": "m"}}, "f"), PLAN, 4, ()), scratch)
    return read, [json.dumps(PLAN.to_json()).encode(), json.dumps(written["quantization"]["op_wise"]).encode()]


def read_yaml_text(text: str, scratch: Path) -> dict[str, Any]:
    """The mapping that a YAML text holds."""
    path = scratch / "text.yaml"
    path.write_text(text)
    value = read_yaml(path)
    assert isinstance(value, dict)
    return value


def records_target(scratch: Path) -> tuple[Target, list[bytes]]:
    """Read bytes as one record, and as a file of one sound frame and whatever follows."""
    import tensorflow as tf  # noqa: PLC0415 - takes seconds, and is not instrumented

    with atheris.instrument_imports(include=["tuner.data", "tuner.detections", "tuner.masks"]):
        from tuner.data.record_files import read_record_files  # noqa: PLC0415
        from tuner.data.records import decode_example  # noqa: PLC0415

    def read(content: bytes) -> None:
        path = scratch / "f.record"
        # As the content of a sound frame, and as what follows it.
        with tf.io.TFRecordWriter(str(path)) as writer:
            writer.write(content)
        with path.open("ab") as file:
            file.write(content)
        for _ in read_record_files([path], None, masks=True):
            pass
        decode_example(content, "record")

    whole = (CONFIGS.parent / "datasets/shapes/evaluation.record").resolve()
    seeds = []
    for record in tf.data.TFRecordDataset(str(whole)).take(3):
        example = tf.train.Example.FromString(record.numpy())
        image = example.features.feature["image/encoded"].bytes_list
        image.value[0] = image.value[0][:16]  # Nothing is decoded here.
        seeds.append(example.SerializeToString())
    with tf.io.TFRecordWriter(str(scratch / "seed.record")) as writer:
        for seed in seeds[:2]:
            writer.write(seed)
    return read, [*seeds, (scratch / "seed.record").read_bytes()]


WORDS = {
    "settings": sorted(set(re.findall(r"\w{3,}", "".join(path.read_text() for path in CONFIGS.glob("*.*"))))),
    "plan": [*OpPrecision.__dataclass_fields__, *Dtype, *Granularity, *RangeAlgorithm, *Scheme, *Output, "algorithm"],
    "records": ["image/encoded", "image/object/class/text", "image/object/bbox/xmin", "image/object/mask"],
}
TARGETS = {"settings": settings_target, "plan": plan_target, "records": records_target}


class Findings:
    """What left a reader that should not have: each place that raises once, with its input."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)

    def note(self, error: Exception, content: bytes) -> None:
        """Keep the input and print where the error was raised, the first time."""
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{type(error).__name__} at {frames[-1].filename}:{frames[-1].lineno}"
        if place not in self.places:
            self.places.add(place)
            name = hashlib.sha256(content).hexdigest()[:16]
            (self.folder / name).write_bytes(content)
            print(f"FOUND {place}: {str(error)[:200]!r}: {self.folder / name}", file=sys.stderr, flush=True)


def main() -> None:
    """Fuzz one target; libFuzzer ends the process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=int, default=480)
    parser.add_argument("--seed", type=int, default=9527)
    parser.add_argument("--work", type=Path, default=Path("fuzz"))
    asked = parser.parse_args()
    inputs, scratch = asked.work / asked.target, asked.work / f"{asked.target}-scratch"
    for folder in (inputs, scratch):
        folder.mkdir(parents=True, exist_ok=True)
    read, seeds = TARGETS[asked.target](scratch)
    for seed in seeds:
        (inputs / hashlib.sha256(seed).hexdigest()).write_bytes(seed)
    findings = Findings(asked.work / f"{asked.target}-findings")

    def try_one(content: bytes) -> None:
        try:
            read(content)
        except TunerError as error:
            if len(str(error).splitlines()) != 1:
                findings.note(AssertionError(f"not one line: {error}"), content)
        except Exception as error:
            findings.note(error, content)

    words = scratch / "words.txt"
    words.write_text("".join(f'"{word}"\n' for word in WORDS[asked.target]))
    limits = [f"-max_total_time={asked.seconds}", f"-seed={asked.seed}", "-timeout=30", "-rss_limit_mb=2048"]
    told = ["-print_final_stats=1", f"-artifact_prefix={findings.folder}/", f"-dict={words}", "-max_len=20000"]
    atheris.Setup([sys.argv[0], *limits, *told, str(inputs)], try_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
