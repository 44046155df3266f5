"""One mapping of the YAML file: its keys are typed fields, or refused by name; any other key is an error."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator

from tuner.config.refusal import Refusal, SettingError, choices, describe


class Section(BaseModel):
    """A frozen, strict section. A null section, and a null under any key, mean that nothing is set there."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", protected_namespaces=())

    refused: ClassVar[Mapping[str, Refusal]] = {}

    @model_validator(mode="before")
    @classmethod
    def _keep_honoured_keys(cls, value: Any) -> Any:
        if isinstance(value, cls):
            return value
        if value is None:
            return {}
        honoured = [field.alias or name for name, field in cls.model_fields.items()]
        if not isinstance(value, Mapping):
            keys = f"keys of {', '.join(honoured or cls.refused)}" if honoured or cls.refused else "no keys"
            raise SettingError(f"got {describe(value)}; expected a mapping with {keys}")
        kept = {}
        for key, setting in value.items():
            refusal = cls.refused.get(key) if isinstance(key, str) else None
            if refusal is None and key not in honoured:
                name = key if isinstance(key, str) else describe(key)
                nearest = choices(name, honoured or cls.refused, cls.refused)
                raise SettingError(f"unknown key with the value {describe(setting)}; {nearest}", name)
            if refusal is None and setting is not None:
                kept[key] = setting
            if refusal is not None and not refusal.accepts(setting):
                raise SettingError(f"got {describe(setting)}; {refusal.reason}", key)
        return kept
