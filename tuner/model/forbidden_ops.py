"""Ops of a model file that reach outside of the computation: into files, the network, other processes, or code.

A TensorFlow graph is a program. What detectors compute with is stateless, but for variables, tables, arrays, random
numbers and control flow. So of the ops that TensorFlow's registry calls stateful, only those known to be harmless pass,
and of the stateless ones all but the few that read files or run what lies in a string.
"""

from collections.abc import Iterable, Iterator, Sequence

import tensorflow as tf
from tensorflow.python.framework import op_def_registry

from tuner.errors import ModelError

_SHOWN = 3

# Stateful ops that pass.
_OF_VARIABLES = (
    "Variable VariableV2 VarHandleOp _VarHandlesOp VarIsInitializedOp ReadVariableOp _ReadVariablesOp VariableShape "
    "AssignVariableOp AssignAddVariableOp AssignSubVariableOp ResourceGather ResourceGatherNd TemporaryVariable "
    "DisableCopyOnRead DestroyResourceOp Empty"
)
_OF_TABLES = (
    "HashTable HashTableV2 AnonymousHashTable MutableHashTable MutableHashTableV2 AnonymousMutableHashTable "
    "MutableHashTableOfTensors MutableHashTableOfTensorsV2 AnonymousMutableHashTableOfTensors MutableDenseHashTable "
    "MutableDenseHashTableV2 AnonymousMutableDenseHashTable InitializeTableV2 LookupTableFindV2 LookupTableSizeV2 "
    "LookupTableExportV2 LookupTableImportV2 LookupTableInsertV2 LookupTableRemoveV2"
)
_OF_ARRAYS = (
    "TensorArray TensorArrayV2 TensorArrayV3 TensorArrayGrad TensorArrayGradV2 TensorArrayGradV3 "
    "TensorArrayGradWithShape TensorArrayCloseV3 TensorArrayConcatV3 TensorArrayGatherV3 TensorArrayReadV3 "
    "TensorArrayScatterV3 TensorArraySizeV3 TensorArraySplitV3 TensorArrayWriteV3 "
    "Stack StackV2 StackPushV2 StackPopV2 StackCloseV2"
)
_RANDOM = (
    "RandomUniform RandomUniformInt RandomStandardNormal TruncatedNormal ParameterizedTruncatedNormal RandomShuffle "
    "RandomCrop RandomGamma RandomPoisson RandomPoissonV2 Multinomial NonDeterministicInts SampleDistortedBoundingBox "
    "SampleDistortedBoundingBoxV2 StatefulUniform StatefulUniformInt StatefulUniformFullInt StatefulStandardNormal "
    "StatefulStandardNormalV2 StatefulTruncatedNormal StatefulRandomBinomial StatelessRandomGetAlg RngSkip "
    "RngReadAndSkip"
)
_CALLING = "If _If While _While Case StatefulPartitionedCall _Arg _Retval DeviceIndex"
_CHECKING = "Assert CheckNumerics CheckNumericsV2 GuaranteeConst Print GraphDefVersion Timestamp"
# Function libraries hold recurrent layers in a form for each device.
_RECURRENT = "CudnnRNN CudnnRNNV2 CudnnRNNV3"
_HARMLESS = frozenset(
    " ".join((_OF_VARIABLES, _OF_TABLES, _OF_ARRAYS, _RANDOM, _CALLING, _CHECKING, _RECURRENT)).split()
)

# Stateless ops that do not pass: they read files, call back into Python, run what a string holds, or tell others.
_IN_FILES = (
    "ReadFile MatchingFiles ImmutableConst InitializeTableFromTextFile GenerateVocabRemapping DecodeProtoV2 EncodeProto"
)
_IN_OTHER_CODE = "PyFuncStateless DatasetFromGraph XlaCustomCall XlaCustomCallV2 MlirPassthroughOp TPUPartitionedCall"
_TOLD = "RegisterDataset RegisterDatasetV2 Copy CopyHost DebugIdentity DebugNanCount DebugNumericSummary"
_REACHING = frozenset(" ".join((_IN_FILES, _IN_OTHER_CODE, _TOLD)).split())
_RESTORE = ("Restore", "RestoreSlice", "RestoreV2")

_Named = Iterable[tuple[str, tf.compat.v1.NodeDef]]


def check_before_import(graph_def: tf.compat.v1.GraphDef) -> None:
    """Raise ModelError for stateless ops that reach outside, wherever in the graph or its functions they stand.

    While TensorFlow imports a graph it computes what shapes depend on, as far as ops are stateless and inputs constant:
    a `ReadFile` reads its file then, before anything is run.
    """
    functions = {function.signature.name: function for function in graph_def.library.function}
    nodes = [*_of_graph(graph_def.node), *_of_functions(functions.values())]
    _refuse([(name, node) for name, node in nodes if node.op in _REACHING])


def check_before_run(graph_def: tf.compat.v1.GraphDef, roots: Iterable[str], restored_from: str = "") -> None:
    """Raise ModelError for ops that reach outside and are run when the nodes or tensors `roots` are.

    Looks into all functions that are called on the way. restored_from: the tensor that is fed the path of the
    checkpoint; ops that restore variables from there pass.
    """
    nodes = _needed(graph_def, roots)
    found = [(name, node) for name, node in _of_graph(nodes) if _reaches_out(node, restored_from)]
    called = _called(graph_def.library, nodes)
    _refuse([*found, *((name, node) for name, node in _of_functions(called) if _reaches_out(node))])


def check_functions(library: tf.compat.v1.GraphDef, names: Iterable[str]) -> None:
    """Raise ModelError for ops that reach outside in the functions `names` of a graph, and in those that they call.

    library: the graph's function library, a FunctionDefLibrary.
    """
    called = _called(library, (), names)
    _refuse([(name, node) for name, node in _of_functions(called) if _reaches_out(node)])


def _refuse(found: Sequence[tuple[str, tf.compat.v1.NodeDef]]) -> None:
    if not found:
        return
    shown = ", ".join(f"{name!r} ({node.op})" for name, node in found[:_SHOWN])
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    raise ModelError(
        f"{len(found)} ops reach files, the network or code outside of the graph: {shown}{more}; "
        "give --allow-ops (allow_ops=True) if you trust the model with all that you may do"
    )


def _reaches_out(node: tf.compat.v1.NodeDef, restored_from: str = "") -> bool:
    if node.op in _REACHING or "Dataset" in node.op:
        return True
    if node.op == "PrintV2":
        stream = node.attr.get("output_stream")
        return stream is not None and not stream.s.startswith((b"stdout", b"stderr", b"log("))
    if restored_from and node.op in _RESTORE:
        return not node.input or _tensor(node.input[0]) != _tensor(restored_from)
    definition = op_def_registry.get(node.op)
    # An op that TensorFlow does not know is a function's name, or refused by name when the graph is imported.
    return definition is not None and definition.is_stateful and node.op not in _HARMLESS


def _needed(graph_def: tf.compat.v1.GraphDef, roots: Iterable[str]) -> list[tf.compat.v1.NodeDef]:
    """The nodes that `roots` depend on. Names that no node has are passed over: they are told where they are used."""
    nodes = {node.name: node for node in graph_def.node}
    needed: dict[str, tf.compat.v1.NodeDef] = {}
    pending = [_node(name) for name in roots]
    while pending:
        name = pending.pop()
        if name in nodes and name not in needed:
            needed[name] = nodes[name]
            pending += map(_node, nodes[name].input)
    return list(needed.values())


def _called(
    library: tf.compat.v1.GraphDef, nodes: Iterable[tf.compat.v1.NodeDef], names: Iterable[str] = ()
) -> list[tf.compat.v1.GraphDef]:
    """The functions of a library that `nodes` and the functions `names` call, directly or not.

    Besides, those that TensorFlow may put in the place of another: gradients, and forms of one interface.
    """
    functions = {function.signature.name: function for function in library.function}
    pending = [*names, *(name for node in nodes for name in _calls(node))]
    pending += [gradient.gradient_func for gradient in library.gradient]
    pending += [name for name, function in functions.items() if "api_implements" in function.attr]
    called: dict[str, tf.compat.v1.GraphDef] = {}
    while pending:
        name = pending.pop()
        if name in functions and name not in called:
            called[name] = functions[name]
            pending += [other for node in functions[name].node_def for other in _calls(node)]
    return list(called.values())


def _calls(node: tf.compat.v1.NodeDef) -> Iterator[str]:
    """The functions that a node names. Its own op is one where it calls a function directly."""
    yield node.op
    for value in node.attr.values():
        if value.HasField("func"):
            yield value.func.name
        yield from (function.name for function in value.list.func)


def _of_graph(nodes: Iterable[tf.compat.v1.NodeDef]) -> _Named:
    return ((node.name, node) for node in nodes)


def _of_functions(functions: Iterable[tf.compat.v1.GraphDef]) -> _Named:
    return ((f"{one.signature.name}/{node.name}", node) for one in functions for node in one.node_def)


def _node(name: str) -> str:
    return name.removeprefix("^").partition(":")[0]


def _tensor(name: str) -> str:
    return name.removesuffix(":0")
