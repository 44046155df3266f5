"""A per-operator precision decision as a value: what one operator computes in, and the plan of all of them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeVar

from tuner.errors import ConfigError
from tuner.files import json_sha256


class Dtype(StrEnum):
    """The number format in which an operator multiplies."""

    INT8 = "int8"
    BF16 = "bf16"
    FP32 = "fp32"


class Granularity(StrEnum):
    """How many scales a weight tensor has: one, or one for each output channel."""

    PER_TENSOR = "per_tensor"
    PER_CHANNEL = "per_channel"


class RangeAlgorithm(StrEnum):
    """How the range of an activation follows from its values over the calibration images.

    From extreme to extreme, between the means of the images' minima and maxima, or cut where a percentile lies, where
    the codes' distribution is nearest to the values' (Kullback-Leibler), or where the mean squared error is least.
    """

    MINMAX = "minmax"
    MEAN = "mean"
    PERCENTILE = "percentile"
    KL = "kl"
    MSE = "mse"


class Scheme(StrEnum):
    """Which values an activation's codes may span: as many below zero as above, or what was observed, if finer."""

    SYM = "sym"
    ASYM = "asym"


class Output(StrEnum):
    """How an int8 operator's result leaves it: as codes where an int8 operator reads it, or as exact 32-bit sums."""

    INT8 = "int8"
    EXACT = "exact"


class Correction(StrEnum):
    """A change of float weights and biases after which rounding costs less, in the order in which they are made."""

    EQUALIZATION = "cross_layer_equalization"
    SPLITTING = "outlier_channel_splitting"
    ROUNDING = "weight_rounding"
    BIAS = "bias_correction"


@dataclass(frozen=True, slots=True)
class OpPrecision:
    """How one operator is computed. All but `dtype` has a meaning for int8 only.

    activation_algorithm: how the range of its input is chosen. output: how its result leaves it.
    activation_scheme: whether the codes of its input may have a zero point.
    """

    dtype: Dtype = Dtype.INT8
    weight_granularity: Granularity = Granularity.PER_CHANNEL
    activation_algorithm: RangeAlgorithm = RangeAlgorithm.MINMAX
    output: Output = Output.INT8
    activation_scheme: Scheme = Scheme.ASYM

    def to_json(self) -> dict[str, str]:
        """The decision as a JSON object, without what has no meaning for the dtype.

        All but these two are left out where they are the default: plans hash as they did before they had them.
        """
        if self.dtype is not Dtype.INT8:
            return {"dtype": self.dtype.value}
        decided = {"dtype": self.dtype.value, "weight_granularity": self.weight_granularity.value}
        if self.activation_algorithm is not RangeAlgorithm.MINMAX:
            decided["activation_algorithm"] = self.activation_algorithm.value
        if self.output is not Output.INT8:
            decided["output"] = self.output.value
        if self.activation_scheme is not Scheme.ASYM:
            decided["activation_scheme"] = self.activation_scheme.value
        return decided

    @classmethod
    def from_json(cls, value: object, where: str) -> "OpPrecision":
        """Read `to_json` back. `where` names the place in error messages. Raises ConfigError."""
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected a mapping with the key dtype, got {value!r}")
        unknown = sorted(set(map(str, value)) - _KINDS.keys())
        if unknown:
            raise ConfigError(f"{where}: unknown key {unknown[0]!r}; allowed are {', '.join(_KINDS)}")
        decided: dict[str, Any] = {key: _member(_KINDS[key], found, f"{where}.{key}") for key, found in value.items()}
        return cls(**decided)


_KINDS: Mapping[str, type[StrEnum]] = {
    "dtype": Dtype,
    "weight_granularity": Granularity,
    "activation_algorithm": RangeAlgorithm,
    "output": Output,
    "activation_scheme": Scheme,
}
_Choice = TypeVar("_Choice", bound=StrEnum)

FP32 = OpPrecision(Dtype.FP32)
BF16 = OpPrecision(Dtype.BF16)
INT8 = OpPrecision(Dtype.INT8)


@dataclass(frozen=True)
class PrecisionPlan(Mapping[str, OpPrecision]):
    """One decision for every quantisable operator, by the operator's node name; the rest of a graph is float."""

    ops: Mapping[str, OpPrecision] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ops", MappingProxyType(dict(sorted(self.ops.items()))))

    def __getitem__(self, op: str) -> OpPrecision:
        return self.ops[op]

    def __iter__(self) -> Iterator[str]:
        return iter(self.ops)

    def __len__(self) -> int:
        return len(self.ops)

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PrecisionPlan) and dict(self.ops) == dict(other.ops)

    @cached_property
    def sha256(self) -> str:
        """Hex SHA-256 of the canonical JSON form: equal plans have equal hashes on any machine."""
        return json_sha256(self.to_json())

    @property
    def is_float(self) -> bool:
        """Whether every operator is float32: what there was before."""
        return all(precision == FP32 for precision in self.ops.values())

    def with_ops(self, ops: Iterable[str], precision: OpPrecision) -> "PrecisionPlan":
        """A copy in which each of `ops` is decided as `precision`. Raises ConfigError for an op not in the plan."""
        changed = dict(self.ops)
        for op in ops:
            if op not in changed:
                raise ConfigError(f"op {op!r} is not in the plan of {len(self)} ops")
            changed[op] = precision
        return PrecisionPlan(changed)

    def count(self) -> dict[Dtype, int]:
        """How many operators each dtype has; every dtype is a key."""
        found = Counter(precision.dtype for precision in self.ops.values())
        return {dtype: found[dtype] for dtype in Dtype}

    def to_json(self) -> dict[str, dict[str, str]]:
        """The plan as a JSON object, op name -> decision, sorted by name."""
        return {op: precision.to_json() for op, precision in self.ops.items()}

    @classmethod
    def from_json(cls, value: object, where: str = "plan") -> "PrecisionPlan":
        """Read `to_json` back. Raises ConfigError naming `where` and the op."""
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected a mapping of op names to decisions, got {type(value).__name__}")
        return cls({str(op): OpPrecision.from_json(entry, f"{where}.{op}") for op, entry in value.items()})


def _member(kind: type[_Choice], value: Any, where: str) -> _Choice:
    try:
        return kind(value)
    except ValueError:
        raise ConfigError(f"{where}: got {value!r}; expected one of {', '.join(kind)}") from None
