"""The base of every request body: JSON types are taken as they are, unknown fields are errors.

Fields of OpenAI's API that this server cannot obey are refused by name with the reason, unless the value says what
happens here anyway (null, or the neutral value in the table).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError


class Body(BaseModel):
    """A JSON object with a fixed set of fields.

    refused: fields that are known and not obeyed, with the reason
    neutral: values of those that ask for nothing, and may therefore be given
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())
    refused: ClassVar[Mapping[str, str]] = {}
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        for name in [name for name in cls.refused if name in value]:
            # repr tells False from 0.
            if value[name] is not None and repr(value[name]) not in map(repr, cls.neutral.get(name, ())):
                raise PydanticCustomError("refused_field", "{reason}", {"field": name, "reason": cls.refused[name]})
        return {name: given for name, given in value.items() if name not in cls.refused}
