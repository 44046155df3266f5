"""freeze, transform and place from the command line: what is written, what is printed, and mistakes in one line."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tuner.cli import main
from tuner.model.loading import load_model
from tuner.model.runner import ModelRunner

tf1 = tf.compat.v1

TENSORS = np.arange(6, dtype=np.float32).reshape(1, 6)


@pytest.fixture(autouse=True)
def written() -> None:
    """In the current folder: graph.pb with model.ckpt beside it, frozen.pb, priors.npy."""
    with tf.Graph().as_default() as graph, tf1.Session() as session:
        x = tf1.placeholder(tf.float32, [None, 6], name="x")
        with tf1.variable_scope("net", use_resource=False):
            weights = tf1.get_variable("weights", initializer=np.eye(6, dtype=np.float32) * 2)
        tf.identity(tf.stop_gradient(tf.matmul(x, weights)), name="locations")
        session.run(weights.initializer)
        tf1.train.Saver().save(session, "./model.ckpt", write_meta_graph=False)
        frozen = tf1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ["locations"])
    Path("graph.pb").write_bytes(graph.as_graph_def().SerializeToString())
    Path("frozen.pb").write_bytes(frozen.SerializeToString())
    np.save("priors.npy", np.ones(6))
    np.save("huge.npy", np.full(6, 1e300))


def write_checkpoint(prefix: str, scale: float) -> None:
    """The same network with other weights, as a checkpoint with its `.meta`."""
    with tf.Graph().as_default(), tf1.Session() as session:
        x = tf1.placeholder(tf.float32, [None, 6], name="x")
        with tf1.variable_scope("net", use_resource=False):
            weights = tf1.get_variable("weights", initializer=np.eye(6, dtype=np.float32) * scale)
        tf.identity(tf.matmul(x, weights), name="locations")
        session.run(weights.initializer)
        tf1.train.Saver().save(session, f"./{prefix}")


def result(path: str) -> np.ndarray:
    with ModelRunner(load_model(Path(path))) as runner:
        (value,) = runner.run(TENSORS).values()
    return value


OLD = "--input_checkpoint=model.ckpt --output_node_names=locations"


@pytest.mark.parametrize(
    "arguments",
    [
        f"--input_graph=graph.pb {OLD} --input_binary --output_graph=out.pb",
        f"--input_binary=true --input_graph graph.pb {OLD} --output_graph out.pb",
        f"--input_graph graph.pb {OLD} --output_graph out.pb --input_binary",
        f"--input_graph=graph.pb {OLD} --input_binary false out.pb",
        f"--input_graph=graph.pb {OLD} --input-binary out.pb",
        "graph.pb out.pb --input_checkpoint=. --outputs=locations:0",
        "frozen.pb out.pb",
        "frozen.pb --output_graph=out.pb --inputs=x",
    ],
)
def test_freeze(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["freeze", *arguments.split()]) == 0
    np.testing.assert_array_equal(result("out.pb"), TENSORS * 2)
    out, errors = capsys.readouterr()
    rows = [line.split() for line in out.splitlines()]
    assert ["nodes", "4"] in rows
    assert ["outputs", "locations:0"] in rows
    assert ["graph", "out.pb"] in rows
    assert errors == ""


@pytest.mark.parametrize(
    "arguments",
    [
        "--input_graph trained.ckpt.meta --input_checkpoint {} --output_graph out.pb --input_binary",
        "trained.ckpt.meta out.pb --input_checkpoint {}",
        "--input_checkpoint {} --output_graph=out.pb",
    ],
)
@pytest.mark.parametrize("checkpoint", ["trained.ckpt", "trained.ckpt.index"])
def test_freeze_a_meta_graph(arguments: str, checkpoint: str) -> None:
    write_checkpoint("trained.ckpt", scale=3)
    assert main(["freeze", *arguments.format(checkpoint).split(), "--output_node_names=locations"]) == 0
    np.testing.assert_array_equal(result("out.pb"), TENSORS * 3)


def test_freeze_a_meta_graph_with_another_checkpoint() -> None:
    write_checkpoint("trained.ckpt", scale=3)
    flags = "--input_graph trained.ckpt.meta --output_graph out.pb"
    assert main(["freeze", *flags.split(), *OLD.split()]) == 0
    np.testing.assert_array_equal(result("out.pb"), TENSORS * 2)


def test_freeze_adds_a_constant() -> None:
    added = "--add-constant priors=priors.npy --add-to locations --as predicted_locations"
    assert main(["freeze", "frozen.pb", "out.pb", *added.split()]) == 0
    assert load_model(Path("out.pb")).outputs == ("predicted_locations:0",)
    np.testing.assert_array_equal(result("out.pb"), TENSORS * 2 + 1)


def test_transform(capsys: pytest.CaptureFixture[str]) -> None:
    named = ["--inputs=x", "--outputs=locations", "--transforms", "optimizing_for_deployment", "--shape=1,6"]
    assert main(["transform", "frozen.pb", "out.pb", *named]) == 0
    np.testing.assert_array_equal(result("out.pb"), TENSORS * 2)
    out, errors = capsys.readouterr()
    assert errors == ""
    assert "before" in out and "graph  out.pb" in out
    assert main(["transform", "frozen.pb", "out.pb", "--transforms", "sort_by_execution_order fold_constants"]) == 0


def test_place(capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["--op", "MatMul", "--type=Placeholder", "--regex=^loc", "--device=/device:CPU:0"]
    assert main(["place", "frozen.pb", "out.pb", *texts]) == 0
    placed = {node.name: node.device for node in load_model(Path("out.pb")).graph_def.node if node.device}
    assert placed == dict.fromkeys(["x", "MatMul", "locations"], "/device:CPU:0")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["MatMul", "1"] in rows and ["all", "3"] in rows


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("freeze", "a model and an output are needed; for example: tuner freeze"),
        ("freeze frozen.pb", "a model and an output are needed"),
        ("freeze a.pb b.pb --output_graph=c.pb", "b.pb is one path too many"),
        ("freeze frozen.pb frozen.pb", "frozen.pb: the output would replace the input model"),
        ("freeze frozen.pb out.pbtxt", "out.pbtxt: a frozen graph is written to a name ending in .pb"),
        ("freeze . saved_model.pb", "saved_model.pb: the output would replace the input model"),
        ("freeze frozen.pb out.pb --input_binary=maybe", "--input_binary: got 'maybe'; expected true or false"),
        ("freeze graph.pb out.pb", "graph.pb: 1 unfrozen variables"),
        ("freeze --input_checkpoint model.ckpt --output_graph out.pb", "model.ckpt: model.ckpt.meta is missing"),
        ("freeze --input_checkpoint model.ckpt", "a model and an output are needed"),
        ("freeze a.meta out.pb --input_checkpoint model.ckpt", "a.meta: checkpoint model.ckpt cannot be restored"),
        ("freeze frozen.pb out.pb --add-constant p=priors.npy --add-to locations --as a^b", "'a^b' cannot be the name"),
        ("freeze frozen.pb out.pb --add-constant ^p=priors.npy --add-to locations --as a", "'^p' cannot be the name"),
        (
            "freeze frozen.pb out.pb --add-constant p=huge.npy --add-to locations --as a",
            "holds 1e+300: out of the range",
        ),
        ("freeze frozen.pb out.pb --add-to locations", "--add-constant, --add-to and --as go together"),
        ("freeze frozen.pb out.pb --add-constant p=p.pkl --add-to x --as y", "open('p.pkl', 'rb'))"),
        ("transform frozen.pb out.pb", "Missing option '--transforms'"),
        ("transform frozen.pb frozen.pb --transforms fold_constants", "the output would replace the input model"),
        ("transform frozen.pb out.pb --transforms fold_constant", "(did you mean 'fold_constants'?)"),
        ("transform frozen.pb out.pb --transforms fold_constants --shape 1,2", "a shape goes with one of the lists"),
        ("transform missing.pb out.pb --transforms fold_constants", "missing.pb: no such file or folder"),
        ("place frozen.pb out.pb --op MatMul", "Missing option '--device'"),
        ("place frozen.pb out.pb --device=/device:CPU:0", "no op to place"),
        ("place frozen.pb out.pb --op matmul --device=/device:CPU:0", "did you mean the type MatMul?"),
        ("place frozen.pb out.pb --op MatMul --device=gpu", "device: got 'gpu'; expected /device:TYPE:NUMBER"),
        ("place frozen.pb frozen.pb --op MatMul --device=/device:CPU:0", "the output would replace the input model"),
    ],
)
def test_a_mistake_is_one_line(arguments: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("frozen.pb").read_bytes()
    assert main(arguments.split()) == 2
    out, errors = capsys.readouterr()
    assert (out, errors.count("\n")) == ("", 1)
    assert errors.startswith("error: ") and said in errors
    assert Path("frozen.pb").read_bytes() == before
    assert not Path("out.pb").exists()


@pytest.mark.parametrize("command", ["freeze", "transform", "place"])
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"tuner {command}" in capsys.readouterr().out.partition("Example")[2]
