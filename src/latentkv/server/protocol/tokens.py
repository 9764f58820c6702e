"""The bodies of /tokenize and /detokenize."""

from __future__ import annotations

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from latentkv.server.protocol.body import Body
from latentkv.server.protocol.chat import Message, Tool
from latentkv.server.protocol.sampling import TokenId


class TokenizeBody(Body):
    """A text, or a conversation that goes through the chat template."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1)
    tools: list[Tool] | None = None
    add_special_tokens: bool | None = Field(None, description="Of a text: begin as the model expects.")
    add_generation_prompt: bool | None = Field(None, description="Of a conversation: open the answer.")

    @model_validator(mode="after")
    def _one_of_both(self) -> TokenizeBody:
        if (self.prompt is None) == (self.messages is None):
            raise PydanticCustomError(
                "refused_field", "{reason}", {"field": "prompt", "reason": "give either prompt or messages."}
            )
        return self


class DetokenizeBody(Body):
    """Token ids to be made text."""

    model: str | None = None
    tokens: list[TokenId]
