"""The fields that chat and text completions share, and how they become the engine's SamplingParams."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from latentkv.engine.sampling_params import SamplingParams
from latentkv.server.protocol.body import Body

MAX_CHOICES = 64
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1024

Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class StreamOptions(Body):
    """What a stream contains besides its pieces."""

    include_usage: bool | None = Field(None, description="End the stream with a chunk that counts tokens.")


class SamplingBody(Body):
    """Fields about how tokens are chosen and when the output ends."""

    model: str = Field(description="A name that /v1/models lists.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy; 1 when left out.")
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES, description="Choices for each prompt; they share its pages.")
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Bias] | None = Field(None, max_length=1024)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="Whose request this is: equally urgent users share the machine.")

    top_k: int | None = Field(None, ge=0, lt=2**31, description="Extension: only the K likeliest; 0 is off.")
    min_p: float | None = Field(None, ge=0, le=1, description="Extension: least probability relative to the best.")
    repetition_penalty: float | None = Field(None, gt=0, le=100, description="Extension: above 1 avoids repetition.")
    priority: int | None = Field(None, ge=-100, le=100, description="Extension: less is more urgent; 0 if left out.")
    min_tokens: int | None = Field(None, ge=0, lt=2**31, description="Extension: no end before this many tokens.")
    ignore_eos: bool | None = Field(None, description="Extension: the model's end of text does not end the output.")
    stop_token_ids: list[TokenId] | None = Field(None, max_length=1024, description="Extension: tokens that end it.")

    @property
    def choices(self) -> int:
        """Choices for each prompt."""
        return self.n if self.n is not None else 1

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling_params(self, *, max_tokens: int, logprobs: int | None, choice: int = 0) -> SamplingParams:
        """The engine's parameters for one choice; a seed gives each choice another, repeatable one.

        Raises OptionError, which names the field first, where fields contradict each other.
        """
        given: dict[str, Any] = {name: value for name in _SAME_NAME if (value := getattr(self, name)) is not None}
        if self.seed is not None:
            given["seed"] = (self.seed + choice) % 2**63
        if self.logit_bias is not None:
            given["logit_bias"] = {int(token): bias for token, bias in self.logit_bias.items()}
        return SamplingParams(**given, max_tokens=max_tokens, logprobs=logprobs)


_SAME_NAME = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "min_tokens",
)
