"""The body of /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from latentkv.server.protocol.body import Body
from latentkv.server.protocol.sampling import SamplingBody

MAX_TOP_LOGPROBS = 20
MAX_TOOLS = 128
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class TextPart(Body):
    """A piece of a message; text is the only kind there is."""

    type: Literal["text"]
    text: str


class CalledFunction(Body):
    """A function and its arguments, which are JSON written as a string."""

    name: Name
    arguments: str


class ToolCall(Body):
    """A call that the assistant made earlier in the conversation."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Body):
    """One turn of the conversation."""

    refused: ClassVar = {
        "audio": "text is the only kind of content.",
        "function_call": "use tool_calls.",
        "refusal": "templates have no place for it.",
    }

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: Name | None = None
    tool_calls: list[ToolCall] | None = Field(None, max_length=MAX_TOOLS)
    tool_call_id: str | None = None

    def text(self) -> str:
        """The content as one string."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "".join(part.text for part in self.content)


class FunctionTool(Body):
    """What a function is called and takes; `parameters` is a JSON schema."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(None, description="Obeyed where a call is forced by tool_choice.")


class Tool(Body):
    """A function that the model may call."""

    type: Literal["function"]
    function: FunctionTool


class NamedFunction(Body):
    """The name of a function."""

    name: Name


class NamedTool(Body):
    """The choice of one tool by name."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Body):
    """A named JSON schema that the answer follows."""

    name: Name
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = Field(None, description="The schema is always enforced.")


class TextFormat(Body):
    """Free text."""

    type: Literal["text"]


class JsonObjectFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(Body):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class ChatBody(SamplingBody):
    """A conversation to be answered."""

    refused: ClassVar = {
        "audio": "text is the only kind of output.",
        "function_call": "use tool_choice.",
        "functions": "use tools.",
        "metadata": "nothing is stored that it could be attached to.",
        "modalities": "text is the only kind of output.",
        "prediction": "predicted outputs are not supported.",
        "prompt_cache_retention": "how long prompts stay cached is not up to a request.",
        "reasoning_effort": "models here have no such setting.",
        "service_tier": "there is one tier.",
        "store": "completions are not stored.",
        "verbosity": "models here have no such setting.",
        "web_search_options": "there is no web search.",
    }
    neutral: ClassVar = {"modalities": (["text"],), "service_tier": ("auto", "default"), "store": (False,)}

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1, lt=2**31, description="What the context has room for, when left out.")
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31, description="The newer name of max_tokens.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = Field(None, description="A hint; prefixes are found without it.")
    safety_identifier: str | None = Field(None, description="The client's own mark; it changes nothing.")
