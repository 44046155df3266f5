"""optimize, summarize and quantize on a small detector: what they print, write and refuse."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tuner import measure
from tuner.cli import main, model_commands
from tuner.config import parse_config, pinned_yaml
from tuner.errors import DatasetError
from tuner.graph import equivalence
from tuner.model.loading import load_model
from tuner.precision import FP32, INT8, PrecisionPlan


@pytest.fixture
def net(tmp_path: Path, float_graph: Any) -> str:
    """The name of a graph of three convolutions with BatchNorm over images of 40 x 50."""
    sketch = float_graph(channels=3, size=(40, 50))
    y = sketch.x
    for name in ("first", "second", "last"):
        y = sketch.batch_norm(sketch.convolve(y, name, out=96), f"{name}_norm").y
        with sketch.graph.as_default():
            y = tf.nn.relu(y)
    sketch.named(y, "out")
    (tmp_path / "net.pb").write_bytes(sketch.graph.as_graph_def().SerializeToString())
    return "net.pb"


@pytest.fixture
def images(tmp_path: Path) -> str:
    """The name of an annotation file with three images beside it."""
    (tmp_path / "images").mkdir()
    listed = []
    for number in (1, 2, 3):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), np.uint8)
        (tmp_path / "images" / f"{number}.jpg").write_bytes(tf.io.encode_jpeg(pixels).numpy())
        listed.append({"id": number, "file_name": f"{number}.jpg", "height": 40, "width": 50})
    table = {"images": listed, "annotations": [], "categories": [{"id": 1, "name": "one"}]}
    (tmp_path / "instances.json").write_text(json.dumps(table))
    return "instances.json"


def ops_of(path: str) -> set[str]:
    return {node.op for node in load_model(Path(path)).graph_def.node}


def test_optimize(net: str, images: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["optimize", net, "out.pb", "--dataset_location", images, "--iters=2"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"FusedBatchNormV3 +3 +0 *\n", out)
    assert re.search(r"BiasAdd +0 +3 *\n", out)
    assert re.search(r"graph size +0\.\d\d MB +0\.\d\d MB", out)
    assert re.search(r"latency, median +[\d.]+ ms +[\d.]+ ms", out)
    assert re.search(r"out:0 differs by at most \d\.\de-0[678]\nof its largest value, on 7 images", out)
    assert "FusedBatchNormV3" not in ops_of("out.pb")


def test_optimize_to_a_saved_model_unchecked_and_untimed(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["optimize", net, "folder", "--no-verify", "--iters=0"]) == 0
    out = capsys.readouterr().out
    assert "differs" not in out and "latency" not in out
    assert "BiasAdd" in ops_of("folder")
    assert main(["optimize", "folder", "again.pb", "--outputs=last", "--iters=0"]) == 0
    assert load_model(Path("again.pb")).outputs == ("last:0",)


def test_a_model_of_another_picture_size_is_timed_on_that(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["optimize", net, "out.pb"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "latency, median" in out
    assert "not measured" not in out


@pytest.fixture
def scaled(tmp_path: Path, float_graph: Any) -> str:
    """The name of a graph whose image is scaled before its two convolutions, `last` the smaller one."""
    sketch = float_graph(channels=3, size=(40, 50))
    with sketch.graph.as_default():
        x = tf.divide(sketch.x, 255.0, name="Preprocessor/normalized")
    y = sketch.batch_norm(sketch.convolve(x, "first", out=96), "norm").y
    sketch.convolve(y, "last", out=4)
    (tmp_path / "scaled.pb").write_bytes(sketch.graph.as_graph_def().SerializeToString())
    return "scaled.pb"


def test_an_input_that_is_no_placeholder(scaled: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["optimize", scaled, "out.pb", "--inputs", "Preprocessor/normalized", "--iters=1"]) == 0
    out = capsys.readouterr().out
    assert "last:0 differs by at most" in out and re.search(r"latency, median +[\d.]+ ms +[\d.]+ ms", out)


def test_an_input_that_would_be_folded_away(
    tmp_path: Path, float_graph: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    sketch = float_graph(channels=3)
    sketch.convolve(sketch.named(sketch.x, "fed"), "out")
    (tmp_path / "net.pb").write_bytes(sketch.graph.as_graph_def().SerializeToString())
    assert main(["optimize", "net.pb", "out.pb", "--inputs=fed", "--no-verify"]) == 2
    out, errors = capsys.readouterr()
    assert errors == "error: net.pb: input fed:0 would be folded away; name the tensor before it\n"
    assert (out, Path("out.pb").exists()) == ("", False)


def test_both_graphs_are_timed_with_the_endpoints_given(
    scaled: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = []

    def remember(models: Any, image: Any, *, iterations: int) -> list[float]:
        timed.extend(model.outputs for model in models)
        raise DatasetError("nothing to see")

    monkeypatch.setattr(measure, "median_latencies_ms", remember)
    assert main(["optimize", scaled, "out.pb", "--outputs= first , last", "--iters=1"]) == 0
    assert timed == [("first:0", "last:0")] * 2
    assert "latency not measured: nothing to see" in capsys.readouterr().out
    assert Path("out.pb").exists()


def test_weights_in_8_bits_stay_so(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", net, "q.pb", "--mode=weights"]) == 0
    assert main(["optimize", "q.pb", "again.pb", "--iters=0"]) == 0
    assert Path("again.pb").stat().st_size <= Path("q.pb").stat().st_size
    capsys.readouterr()
    assert main(["summarize", "again.pb", "--shape=1,40,50,3"]) == 0
    assert f"{9 * (3 * 96 + 2 * 96 * 96):,}, multiplied out to float32" in capsys.readouterr().out
    assert main(["quantize", "again.pb", "third.pb", "--mode=weights"]) == 2
    assert capsys.readouterr() == ("", "error: again.pb: its weights are stored in 8 bits already\n")
    assert not Path("third.pb").exists()


def test_a_failed_check_writes_nothing(
    net: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(equivalence.check_same_results, "__defaults__", (0.0,))
    assert main(["optimize", net, "out.pb"]) == 2
    out, errors = capsys.readouterr()
    assert re.fullmatch(r"error: net.pb: out:0 differs by \S+ of its largest value on image 1; allowed are 0\n", errors)
    assert (out, Path("out.pb").exists()) == ("", False)


def test_summarize(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summarize", net, "--shape=2,40,50,3"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"input +x:0  float32  \? x 40 x 50 x 3", out)
    products = 2 * 2 * 40 * 50 * 9 * (3 * 96 + 2 * 96 * 96)
    assert f"{products / 1e9:.3f} at 2 x 40 x 50 x 3" in out
    assert re.search(r"can be int8 +3, cannot: 0", out)
    assert main(["summarize", net, "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert (table["ops"]["FusedBatchNormV3"], table["precisions"]["fp32"]) == (3, 3)


@pytest.mark.parametrize(("mode", "share"), [("weights", 0.3), ("bf16", 0.6), ("eightbit", 0.35)])
def test_quantize(mode: str, share: float, net: str, images: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--calibration-location", images] if mode == "eightbit" else []
    assert main(["quantize", net, "q.pb", "--mode", mode, *flags]) == 0
    out = capsys.readouterr().out
    assert {"weights": "ops in fp32   3", "bf16": "ops in bf16   2", "eightbit": "ops in int8   3"}[mode] in out
    assert Path("q.pb").stat().st_size < share * Path(net).stat().st_size


def test_a_plan_is_followed(net: str, images: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loader = {"dataset": {"COCORaw": {"root": str(tmp_path / images)}}}
    settings = {"model": {"name": "m"}, "quantization": {"calibration": {"dataloader": loader}}}
    plan = PrecisionPlan({"first": FP32, "second": INT8, "last": INT8})
    Path("plan.yaml").write_text(pinned_yaml(parse_config(settings, "f.yaml"), plan, 2, ()))
    graphs = []
    for name in ("a.pb", "b.pb"):
        assert main(["quantize", net, name, "--mode=eightbit", "--plan=plan.yaml"]) == 0
        graphs.append(Path(name).read_bytes())
    assert graphs[0] == graphs[1]
    out = capsys.readouterr().out
    assert "ops in int8   2" in out and "ranges from 2 images" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("optimize net.pb net.pb", "net.pb: the output would replace the input model"),
        ("optimize none.pb out.pb", "none.pb: "),
        ("optimize net.pb out.pb --outputs=nothing", "net.pb: output 'nothing' is not in the graph"),
        ("optimize net.pb out.pb --dataset_location=none.json", "none.json"),
        ("optimize net.pb out.pb --dataset_location=none.json --no-verify", "none.json"),
        ("summarize net.pb --shape=1,x,3", "--shape: got '1,x,3'; expected numbers from 1 on"),
        ("summarize net.pb --shape=1,0,8,3", "--shape: got '1,0,8,3'; "),
        ("summarize net.pb --shape=1,8,8", "input x:0 takes the shape (None, 40, 50, 3); got [1, 8, 8]"),
        ("quantize net.pb q.pb", "Missing option '--mode'"),
        ("quantize net.pb q.pb --mode=int4", "'int4' is not one of 'eightbit', 'weights', 'bf16'"),
        ("quantize net.pb q.pb --mode=eightbit", "quantization.calibration: no images"),
        ("quantize net.pb q.pb --mode=bf16 --calibration_location=x", "--calibration_location: --mode bf16 needs no"),
        ("quantize net.pb q.pb --mode=weights --plan=p.yaml", "--plan: --mode weights needs no images"),
        ("quantize net.pb q.pb --mode=eightbit --plan=p.yaml --config=c.yaml", "--plan: got it with --config"),
        ("quantize net.pb q.pb --mode=eightbit --plan=p.yaml", "p.yaml: no such file"),
        ("quantize net.pb net.pb --mode=bf16", "net.pb: the output would replace the input model"),
    ],
)
def test_mistakes(arguments: str, message: str, net: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path(net).read_bytes()
    assert main(arguments.split()) == 2
    out, errors = capsys.readouterr()
    assert errors.startswith("error: ") and message in errors and errors.count("\n") == 1
    assert (out, Path(net).read_bytes(), Path("out.pb").exists(), Path("q.pb").exists()) == ("", before, False, False)


@pytest.mark.parametrize("command", ["optimize", "summarize", "quantize"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    example = getattr(model_commands, f"{command.upper()}_EXAMPLE")
    assert any(line.strip().startswith(example[:70]) for line in capsys.readouterr().out.splitlines())
