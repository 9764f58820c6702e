"""A model and a tokenizer small enough to predict by hand, that still read every row of the cache they are given."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from latentkv.cache.batch import Batch
from latentkv.cache.latent import LatentCache
from latentkv.engine.engine import Engine
from latentkv.engine.sampling_params import SamplingParams
from latentkv.geometry import MLAGeometry

VOCAB_SIZE = 257
EOS = 256
LETTERS = torch.tensor([*range(ord("a"), ord("z") + 1), ord(" ")])


def fold(token_ids: list[int]) -> int:
    """A number that depends on every token and its place."""
    value = 1
    for token_id in token_ids:
        value = (value * 31 + token_id + 7) % 1_000_003
    return value


def scripted_logits(token_ids: list[int], *, salt: int = 0) -> Tensor:
    """Logits [vocab] after `token_ids`: letters and spaces, now and then the end of the text."""
    key = fold(token_ids) + salt
    logits = torch.full((VOCAB_SIZE,), -30.0)
    logits[LETTERS] = torch.randn(len(LETTERS), generator=torch.Generator().manual_seed(key))
    if key % 41 == 0:
        logits[EOS] = 20.0
    return logits


class CacheReadingModel:
    """Its logits are a hash of the tokens *found in the cache*: a wrong page, slot or copy gives other tokens.

    Each row holds its token and its position, in every layer, exact in float32 and bfloat16. A row that is not where
    the page table says fails at once. With `memory`, only so many last tokens decide: its texts repeat themselves.
    """

    vocab_size = VOCAB_SIZE
    eos_token_ids = frozenset({EOS})
    device = torch.device("cpu")
    geometry = MLAGeometry(
        num_hidden_layers=2,
        num_attention_heads=1,
        kv_lora_rank=1,
        qk_rope_head_dim=1,
        qk_nope_head_dim=1,
        v_head_dim=1,
    )

    def __init__(self, *, max_position_embeddings: int = 256, salt: int = 0, memory: int = 0) -> None:
        self.max_position_embeddings = max_position_embeddings
        self.salt = salt
        self.memory = memory
        self.identity = f"fake-{salt}".encode()
        self.calls: list[tuple[tuple[int, int], ...]] = []
        self.fail_at_call: int | None = None
        self.failure: BaseException = KeyboardInterrupt()

    def forward(self, token_ids: Tensor, batch: Batch, cache: LatentCache, *, logit_rows: Tensor) -> Tensor:
        if len(self.calls) == self.fail_at_call:
            self.fail_at_call = None
            raise self.failure
        self.calls.append(batch.lengths)
        parts = {"latent": self._latent(token_ids), "rope": (batch.positions[:, None] % 128).float()}
        for layer in range(self.geometry.num_hidden_layers):
            cache.layer(layer).write(batch.slots, parts)
        rows = [self._row(int(row), batch, cache) for row in logit_rows]
        return torch.stack(rows) if rows else torch.empty(0, VOCAB_SIZE)

    def _row(self, row: int, batch: Batch, cache: LatentCache) -> Tensor:
        sequence = int(torch.searchsorted(batch.query_start, row, right=True)) - 1
        positions = torch.arange(int(batch.positions[row]) + 1)
        pages = batch.page_table[sequence, positions // batch.page_tokens].long()
        read = cache.layer(1).read(pages * batch.page_tokens + positions % batch.page_tokens)
        assert read["rope"][:, 0].tolist() == (positions % 128).tolist(), "rows of other positions"
        return scripted_logits(self._tokens(read["latent"])[-self.memory :], salt=self.salt)

    def _latent(self, token_ids: Tensor) -> Tensor:
        return token_ids[:, None].float()

    def _tokens(self, latent: Tensor) -> list[int]:
        return [int(token) for token in latent[:, 0]]


class AnyFormatModel(CacheReadingModel):
    """Writes each token as the signs of nine numbers, which every format keeps, 4-bit codes too."""

    geometry = replace(CacheReadingModel.geometry, kv_lora_rank=9)
    bits = 2 ** torch.arange(9)

    def _latent(self, token_ids: Tensor) -> Tensor:
        return torch.where(token_ids[:, None] & self.bits > 0, 1.0, -1.0)

    def _tokens(self, latent: Tensor) -> list[int]:
        return [int(token) for token in ((latent > 0) * self.bits).sum(1)]


class ByteStream:
    """Bytes to text, never half a character."""

    def __init__(self, after: Sequence[int] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._decoder.decode(bytes(after))

    def push(self, token_id: int) -> str:
        return "" if token_id == EOS else self._decoder.decode(bytes([token_id]))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class ByteTokenizer:
    """One token per byte of UTF-8, and an end of text that is no text."""

    eos_token_ids = frozenset({EOS})

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int], *, skip_special_tokens: bool = True) -> str:
        return bytes(i for i in ids if i != EOS).decode(errors="replace")

    def render_chat(self, messages: list[dict[str, str]], *, add_generation_prompt: bool = True) -> str:
        turns = "".join(f"<{message['role']}>{message['content']}" for message in messages)
        return turns + "<assistant>" if add_generation_prompt else turns

    def stream(self, *, after: Sequence[int] = ()) -> ByteStream:
        return ByteStream(after)


def greedy(*, max_tokens: int = 12, **options: object) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, **options)


def greedy_tokens(prompt: list[int], max_tokens: int = 12, *, salt: int = 0) -> list[int]:
    """What the fake model says after `prompt` at temperature 0, worked out without any engine or cache."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + max_tokens:
        tokens.append(int(scripted_logits(tokens, salt=salt).argmax()))
        if tokens[-1] == EOS:
            break
    return tokens[len(prompt) :]


def talkative_prompt(tokens: int = 40) -> list[int]:
    """A prompt after which the fake model writes this many tokens and does not end its text."""
    return next(p for start in range(1000) if EOS not in greedy_tokens(p := prompt_of(6, start), tokens))


def make_engine(model: CacheReadingModel | None = None, **options: object) -> Engine:
    defaults = {"page_tokens": 4, "cache_tokens": 512, "cache_format": "f32"}
    return Engine(model or CacheReadingModel(), ByteTokenizer(), **{**defaults, **options})


def run(engine: Engine) -> dict[str, list[int]]:
    """Run an engine until it is done, checking its books after every step; the tokens of each request."""
    tokens: dict[str, list[int]] = {}
    while engine.has_work:
        outputs = engine.step()
        engine.check()
        for output in outputs:
            tokens.setdefault(output.request_id, []).extend(output.token_ids)
    assert engine.stats().held_pages == 0
    return tokens


def prompt_of(length: int, start: int = 0) -> list[int]:
    """A prompt of letters, different for each start."""
    return [97 + (start * 7 + i * i) % 26 for i in range(length)]
