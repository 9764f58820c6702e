"""The body of /v1/completions."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from latentkv.server.protocol.sampling import SamplingBody, TokenId

DEFAULT_MAX_TOKENS = 16
MAX_PROMPTS = 1024
TokenIds = Annotated[list[TokenId], Field(min_length=1)]


class CompletionBody(SamplingBody):
    """A text completion: prompts as text or as token ids, continued as they are."""

    refused: ClassVar = {
        "suffix": "text cannot be filled in between; put everything into the prompt.",
        "best_of": "only n choices are made; ask for n.",
    }
    neutral: ClassVar = {"best_of": (1,)}

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
    ) = Field(description="A text, texts, token ids, or lists of token ids.")
    max_tokens: int | None = Field(None, ge=1, lt=2**31, description="16 when left out.")
    logprobs: int | None = Field(None, ge=0, le=20, description="This many likeliest tokens beside each chosen one.")
    echo: bool | None = Field(None, description="Begin each text with its prompt; not together with logprobs.")

    def prompts(self) -> list[str | list[int]]:
        """The prompts, one or many, in order."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [item for item in self.prompt if not isinstance(item, int)]
