"""Constants that lie in files of their own: what is read, what is refused, and what the sum is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework.graph_pb2 import GraphDef

from tuner.errors import ModelError
from tuner.graph.added_constant import AddedConstant, add_constant, read_constant
from tuner.model.frozen_graph import import_graph

tf1 = tf.compat.v1

PRIORS = np.arange(8, dtype=np.float64).reshape(2, 4) / 8


@pytest.fixture(scope="module")
def graph_def() -> GraphDef:
    with tf.Graph().as_default() as graph:
        x = tf1.placeholder(tf.float32, [None, 2, 4], name="x")
        first, _ = tf.split(tf.concat([x, x], 1), 2, axis=1, name="split")
        tf.identity(first * 2.0, name="locations")
        tf.identity(tf.cast(x, tf.int32), name="whole")
        tf.identity(x > 0, name="truth")
        tf.square(graph.get_tensor_by_name("locations:0"), name="reader")
    return graph.as_graph_def()


def run(graph_def: GraphDef, output: str) -> Any:
    x = np.arange(16, dtype=np.float32).reshape(2, 2, 4)
    with tf.Graph().as_default(), tf1.Session() as session:
        import_graph(graph_def)
        return session.run(output, {"x:0": x}), x


@pytest.mark.parametrize("written", ["p.npy", "p.npz", "p.npz:priors"])
def test_what_is_read(tmp_path: Path, written: str) -> None:
    np.save(tmp_path / "p.npy", PRIORS)
    others = {"other": PRIORS + 1} if ":" in written else {}
    np.savez(tmp_path / "p.npz", priors=PRIORS, **others)
    name, value = read_constant(f"priors={tmp_path / written}")
    assert name == "priors"
    np.testing.assert_array_equal(value, PRIORS)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("p.npy", "a constant is NAME=FILE.npy, NAME=FILE.npz or NAME=FILE.npz:KEY; got 'p.npy'"),
        ("priors=", "got 'priors='"),
        ("priors=missing.npy", "missing.npy: cannot be read: No such file or directory"),
        ("priors=text.npy", "text.npy: not an array of numbers, or a damaged one"),
        ("priors=text.npz", "text.npz: not an array of numbers, or a damaged one"),
        ("priors=empty.npy", "empty.npy: not an array of numbers, or a damaged one"),
        ("priors=objects.npy", "objects.npy: not an array of numbers, or a damaged one"),
        ("priors=words.npy", "words.npy: holds <U1, expected numbers"),
        ("priors=two.npz", "two.npz: holds first, second; name one as two.npz:KEY"),
        ("priors=two.npz:frist", "two.npz: no 'frist'; it holds first, second (did you mean 'first'?)"),
        ("priors=p.txt", "p.txt: expected a .npy or .npz file, got '.txt'"),
    ],
)
def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("text.npy", "text.npz"):
        Path(name).write_text("not numbers")
    Path("empty.npy").touch()
    np.save("objects.npy", np.array([{}], object))
    np.save("words.npy", np.array(["a"]))
    np.savez("two.npz", first=PRIORS, second=PRIORS)
    with pytest.raises(ModelError) as error:
        read_constant(given)
    assert str(error.value).endswith(said)


def test_a_pickle_is_refused_with_the_lines_that_convert_it() -> None:
    with pytest.raises(ModelError) as error:
        read_constant("priors=my/priors.pkl")
    first, second = str(error.value).splitlines()
    assert first.endswith("import numpy, pickle;")
    assert second == "numpy.save('my/priors.npy', pickle.load(open('my/priors.pkl', 'rb')))"


@pytest.mark.parametrize("to", ["locations", "locations:0"])
def test_the_sum(graph_def: GraphDef, to: str) -> None:
    before = graph_def.SerializeToString(deterministic=True)
    added = add_constant(graph_def, AddedConstant("priors", PRIORS, to, "predicted_locations"))
    found, x = run(added, "predicted_locations:0")
    np.testing.assert_array_equal(found, x * 2 + PRIORS.astype(np.float32))
    np.testing.assert_array_equal(run(added, "reader:0")[0], (x * 2) ** 2)
    assert graph_def.SerializeToString(deterministic=True) == before


def test_the_sum_of_a_second_output(graph_def: GraphDef) -> None:
    found, x = run(add_constant(graph_def, AddedConstant("c", np.float32(1), "split:1", "sum")), "sum:0")
    np.testing.assert_array_equal(found, x + 1)


def test_the_sum_takes_the_name_of_the_tensor_itself(graph_def: GraphDef) -> None:
    added = add_constant(graph_def, AddedConstant("priors", PRIORS, "locations", "locations"))
    found, x = run(added, "locations:0")
    np.testing.assert_array_equal(found, x * 2 + PRIORS.astype(np.float32))
    np.testing.assert_array_equal(run(added, "reader:0")[0], (x * 2) ** 2)


def test_whole_numbers_may_be_added_to_whole_numbers(graph_def: GraphDef) -> None:
    found, x = run(add_constant(graph_def, AddedConstant("c", np.int64(3), "whole", "sum")), "sum:0")
    np.testing.assert_array_equal(found, x.astype(np.int32) + 3)


@pytest.mark.parametrize(
    ("constant", "said"),
    [
        (
            AddedConstant("c", PRIORS[:, :3], "locations", "sum"),
            "of float64 [2, 3] cannot be broadcast with locations:0",
        ),
        (AddedConstant("c", PRIORS, "location", "sum"), "(did you mean 'locations'?)"),
        (AddedConstant("c", PRIORS, "locations:1", "sum"), "'locations' has 1 outputs"),
        (AddedConstant("c", PRIORS, "locations:x", "sum"), "'locations' has 1 outputs"),
        (AddedConstant("x", PRIORS, "locations", "sum"), "the graph has a node 'x' already"),
        (AddedConstant("c", PRIORS, "locations", "reader"), "the graph has a node 'reader' already"),
        (AddedConstant("same", PRIORS, "locations", "same"), "the graph has a node 'same' already"),
        (AddedConstant("c", PRIORS, "whole", "sum"), "cannot be added to whole:0, which holds int32"),
        (AddedConstant("c", PRIORS, "truth", "sum"), "cannot be added to truth:0, which holds bool"),
    ],
)
def test_sums_that_are_refused(graph_def: GraphDef, constant: AddedConstant, said: str) -> None:
    with pytest.raises(ModelError) as error:
        add_constant(graph_def, constant)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
