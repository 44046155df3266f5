"""What a search is told of plans before they are tried: measured once, kept on disk, asked for when it is needed."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from numpy.typing import NDArray

from tuner.cache import Cache
from tuner.config import Objective, TuningConfig
from tuner.criterion import cost
from tuner.engine import Engine, as_failure
from tuner.errors import ModelError, QuantizationError
from tuner.meter import Meter
from tuner.model.detection_model import DetectionModel
from tuner.precision import BF16, FP32, Dtype, PrecisionPlan
from tuner.progress import Clock
from tuner.quantization.latency_model import SCHEMA as LATENCY_SCHEMA
from tuner.quantization.latency_model import LatencyModel, measure_latency_model, reference_plans
from tuner.quantization.op_costs import op_costs
from tuner.quantization.quantize import quantize
from tuner.quantization.ranges import Ranges, first_images
from tuner.quantization.sensitivity import measure_sensitivity
from tuner.search.space import Foresight, SearchSpace
from tuner.timing import latency_threads
from tuner.trial import Proposal

SENSITIVITY_IMAGES = 4

_log = logging.getLogger(__name__)


@dataclass
class Foreseer:
    """Makes a search's foresight for one model.

    What cannot be foreseen, since TensorFlow or the lowering fails, is not known: the search finds out by trying.
    images: for calibration, each [1, H, W, 3]. meter: with the baseline, and what times depend on.
    """

    config: TuningConfig
    space: SearchSpace
    prepared: DetectionModel
    engine: Engine
    ranges: Ranges
    images: Sequence[NDArray[Any]]
    images_sha256: str
    meter: Meter
    cache: Cache
    clock: Clock
    _damage: dict[tuple[str, int], Mapping[str, float]] = field(default_factory=dict)

    def foresight(self, *, times_graphs: bool = True) -> Foresight:
        """What the search asks. Of costs nothing is told where engines take long to make a graph.

        times_graphs: false where int8 graphs may crash this process, so that none runs outside a trial.
        """
        if self.config.quantization.engine == "inc" or not times_graphs:
            return Foresight(self.damage, lambda proposal: None, dict, knows_costs=False)
        # Where speed is no objective no clock decides what is tried, and equal runs find the same.
        gains = self.gains if Objective.PERFORMANCE in self.config.tuning.weights else dict
        return Foresight(self.damage, self.cost, gains, self._knows_costs)

    def damage(self, proposal: Proposal) -> Mapping[str, float]:
        """Of each int8 operator of a plan: how much more wrong the results are with it in int8."""
        plan = proposal.plan.sha256, proposal.calibration_images
        if plan not in self._damage:
            try:
                with as_failure():
                    self._damage[plan] = self._measured_damage(proposal)
            except (QuantizationError, ModelError) as error:
                _log.warning("sensitivities are not known: %s", error)
                self._damage[plan] = {}
        return self._damage[plan]

    def cost(self, proposal: Proposal) -> float | None:
        """The objective's cost; None where accuracy or memory is part of it, which only a trial tells."""
        weights = self.config.tuning.weights
        if not self._knows_costs:
            return None
        latency_ms, size_bytes = 0.0, 0
        plan, images = proposal.plan, proposal.calibration_images
        try:
            with as_failure():
                if Objective.PERFORMANCE in weights:
                    latency_ms = self._latency_model.predict_ms(self._traceable(plan, images))
                if Objective.MODELSIZE in weights:
                    # The corrections that a search chooses by itself change numbers, not nodes.
                    size_bytes = self.engine.quantize(replace(proposal, corrections=self.space.corrections)).size_bytes
        except (QuantizationError, ModelError) as error:
            _log.warning("the cost of %s is not known: %s", proposal.idea, error)
            return None
        baseline = self.meter.baseline
        foreseen = replace(baseline, latency_ms=latency_ms, size_bytes=size_bytes)
        return cost(weights, self.config.tuning.accuracy_criterion, baseline, foreseen)

    def gains(self) -> Mapping[str, float]:
        """Of each operator that may leave int8: the time that int8 saves there, in microseconds."""
        matmul_kernel = self.config.quantization.has_matmul_kernel
        try:
            with as_failure():
                costs = op_costs(
                    self._latency_model, self.prepared, self._references, self.ranges, matmul_kernel=matmul_kernel
                )
        except (QuantizationError, ModelError) as error:
            _log.warning("what int8 saves is not known: %s", error)
            return {}
        self.cache.write_json("costs", self._dependencies, {op: asdict(of_op) for op, of_op in costs.items()})
        return {
            op: min(costs[op].bf16_us if way == BF16 else costs[op].fp32_us for way in ways) - costs[op].int8_us
            for op, ways in self.space.ways_out().items()
        }

    def _measured_damage(self, proposal: Proposal) -> Mapping[str, float]:
        dependencies = [*self._dependencies, proposal.plan.sha256, str(proposal.calibration_images)]
        found: Mapping[str, float] | None = self.cache.read_json("damage", dependencies)
        if found is None:
            with self.clock.stage("sensitivity") as stage:
                observed = first_images(self.ranges, proposal.calibration_images)
                images = self.images[:SENSITIVITY_IMAGES]
                found = measure_sensitivity(self.prepared, proposal.plan, observed, images)
                stage.note(f"{len(found)} ops on {len(images)} images")
            self.cache.write_json("damage", dependencies, found)
        return found

    @cached_property
    def _latency_model(self) -> LatencyModel:
        """Times of the nodes of this model's graphs on this machine."""
        graphs = [self._traceable(plan, self.space.most_images) for plan in self._references]
        dependencies = [
            *(graph.sha256 for graph in graphs),
            *(f"{name} {value}" for name, value in self.meter.environment.items()),
            f"schema {LATENCY_SCHEMA}",
        ]
        kept = self.cache.read_json("latency", dependencies)
        if kept is not None:
            return LatencyModel.from_json(kept)
        with self.clock.stage("timing") as stage:
            intra, inter = latency_threads(self.config)
            measure = partial(measure_latency_model, intra_op_threads=intra, inter_op_threads=inter)
            found = self.meter.workers.alone(measure, graphs, self.images[0])
            foreseen = (
                f"{name} {found.predict_ms(self._traceable(plan, self.space.most_images)):.1f} ms"
                for name, plan in self.space.anchors().items()
            )
            stage.note(f"predicted: {', '.join(foreseen)}")
        self.cache.write_json("latency", dependencies, found.to_json())
        return found

    @property
    def _references(self) -> list[PrecisionPlan]:
        """The plans whose graphs are traced: those of `reference_plans`, without what is not allowed."""
        choices = self.space.choices
        dtypes = {op: {Dtype.FP32, *(decision.dtype for decision in allowed)} for op, allowed in choices.items()}
        has_bfloat16 = any(Dtype.BF16 in allowed for allowed in dtypes.values())
        return [
            PrecisionPlan({op: decision if decision.dtype in dtypes[op] else FP32 for op, decision in plan.items()})
            for plan in reference_plans(list(choices), has_bfloat16=has_bfloat16)
        ]

    def _traceable(self, plan: PrecisionPlan, calibration_images: int) -> DetectionModel:
        """The graph of a plan in which nodes are called alike whatever the plan."""
        return quantize(
            self.prepared,
            plan,
            first_images(self.ranges, calibration_images),
            matmul_kernel=self.config.quantization.has_matmul_kernel,
            full_names=True,
        )

    @property
    def _knows_costs(self) -> bool:
        return self.config.tuning.weights.keys() <= {Objective.PERFORMANCE, Objective.MODELSIZE}

    @property
    def _dependencies(self) -> list[str]:
        return [self.prepared.sha256, self.images_sha256]
