"""Constants that lie in files of their own: what is read, what is refused, and what the sum is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.core.framework.node_def_pb2 import NodeDef

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


def test_a_damaged_archive_is_refused_in_one_line_wherever_the_damage_is(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    np.savez_compressed(path, priors=np.arange(4.0))
    content = path.read_bytes()
    refused = 0
    for where, byte in enumerate(content):
        path.write_bytes(content[:where] + bytes([byte ^ 0xFF]) + content[where + 1 :])
        try:
            # A date or an attribute of the archive may be damaged without harm to the numbers.
            np.testing.assert_array_equal(read_constant(f"priors={path}")[1], np.arange(4.0))
        except ModelError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > len(content) / 2


def test_compressed_numbers_that_do_not_unpack(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    np.savez_compressed(path, priors=np.zeros(1000))
    content = bytearray(path.read_bytes())
    content[60:70] = b"\xff" * 10
    path.write_bytes(content)
    with pytest.raises(ModelError, match="not an array of numbers, or a damaged one"):
        read_constant(f"priors={path}")


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
        (AddedConstant("c", np.array([1.0, 1e300, 2, 3]), "locations", "sum"), "holds 1e+300: out of the range"),
        (AddedConstant("c", np.float64(-1e39), "locations", "sum"), "which holds float32"),
        (AddedConstant("c", np.int64(2**31), "whole", "sum"), "holds 2147483648: out of the range of whole:0"),
        (AddedConstant("c", np.array([0, -(2**40), 0, 0]), "whole", "sum"), "which holds int32"),
    ],
)
def test_sums_that_are_refused(graph_def: GraphDef, constant: AddedConstant, said: str) -> None:
    with pytest.raises(ModelError) as error:
        add_constant(graph_def, constant)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_infinity_that_was_asked_for_is_added(graph_def: GraphDef) -> None:
    with np.errstate(all="raise"):
        constant = AddedConstant("c", np.array([np.inf, -np.inf, np.nan, 0.1]), "locations", "sum")
        found, x = run(add_constant(graph_def, constant), "sum:0")
    np.testing.assert_array_equal(found, x * 2 + constant.value.astype(np.float32))


@pytest.mark.parametrize("name", ["bad name", "^x", "_x", "x:0", "a\\b", "a>", "a>_b", "a\n", "é", ""])
def test_names_that_no_node_can_have(name: str) -> None:
    with pytest.raises(ModelError, match="cannot be the name of a node") as error:
        AddedConstant("c", PRIORS, "locations", name)
    assert "\n" not in str(error.value)
    with pytest.raises(ModelError, match="cannot be the name of a node"):
        AddedConstant(name, PRIORS, "locations", "sum")
    # TensorFlow refuses what is refused.
    with tf.Graph().as_default(), pytest.raises(ValueError, match="invalid characters"):
        import_graph(GraphDef(node=[NodeDef(name=name, op="NoOp")]))


@pytest.mark.parametrize("name", ["9", ".a", "a/b_c-1.x", "a>b", "a/"])
def test_names_that_a_node_can_have(graph_def: GraphDef, name: str) -> None:
    added = add_constant(graph_def, AddedConstant("priors", PRIORS, "locations", name))
    found, x = run(added, f"{name}:0")
    np.testing.assert_array_equal(found, x * 2 + PRIORS.astype(np.float32))
