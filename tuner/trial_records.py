"""A trial as Optuna keeps it: what is read of its attributes, and how it is known that they are what was written."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from optuna.trial import FrozenTrial

from tuner.errors import ConfigError
from tuner.files import json_sha256
from tuner.precision import PrecisionPlan
from tuner.trial import CompletedTrial, FailedTrial, Measurement, Proposal, RejectedTrial, Rejection, Trial

_log = logging.getLogger(__name__)

# What a finished trial has one of; without, it was cut off.
ENDINGS = {"cause", "measurement", "rejection"}


def is_damaged(trial: FrozenTrial) -> bool:
    """Whether a trial is not what was recorded; one from before there were checksums is believed."""
    sealed = trial.user_attrs.get("sha256")
    return sealed is not None and sealed != attributes_sha256(trial.number, trial.user_attrs)


def attributes_sha256(number: int, attributes: Mapping[str, Any]) -> str:
    """Hex SHA-256 of all that a trial of this number keeps, but for the checksum itself."""
    return json_sha256([number, {name: value for name, value in attributes.items() if name != "sha256"}])


def read_trial(trial: FrozenTrial) -> Trial | None:
    """A finished trial; None where it was cut off, or its record is damaged."""
    attributes: dict[str, Any] = trial.user_attrs
    if is_damaged(trial):
        _log.warning("trial %d is left out: its record is damaged", trial.number)
        return None
    if not ENDINGS & attributes.keys():
        return None
    with _damage_is_left_out(trial.number):
        return _finished(trial.number, attributes)
    return None


def read_unfinished(trial: FrozenTrial) -> Proposal | None:
    """The proposal of a trial that was cut off; None of another, and where it cannot be read."""
    if "proposal" in trial.user_attrs and not ENDINGS & trial.user_attrs.keys():
        with _damage_is_left_out(trial.number):
            return Proposal.from_json(trial.user_attrs["proposal"])
    return None


@contextmanager
def _damage_is_left_out(number: int) -> Iterator[None]:
    """What is not sealed may be damaged too: then it cannot be read."""
    try:
        yield
    except (ConfigError, LookupError, TypeError, ValueError, AttributeError):
        _log.warning("trial %d is left out: its record cannot be read", number)


def _finished(number: int, attributes: Mapping[str, Any]) -> Trial:
    proposal = Proposal.from_json(attributes["proposal"])
    if "cause" in attributes:
        return FailedTrial(number, proposal, attributes["cause"])
    made = PrecisionPlan.from_json(attributes["applied"]), attributes["graph_sha256"]
    quantize_s = attributes["quantize_s"]
    if "rejection" in attributes:
        rejection = Rejection.from_json(attributes["rejection"])
        return RejectedTrial(number, proposal, *made, rejection, quantize_s)
    measurement = Measurement.from_json(attributes["measurement"])
    return CompletedTrial(number, proposal, *made, measurement, quantize_s)
