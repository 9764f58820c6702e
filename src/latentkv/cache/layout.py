"""The truth on bytes: how one cached token of one layer is laid out, and how rows fill pages.

Everything that counts or touches cache bytes (planner, allocator, codecs, kernels, docs) asks this file. It knows no
tensors. A row is a sequence of named parts without padding between them; a format says which parts there are and in
which dtype each is stored.

    MLA row       | latent: L elements | rope: R elements |
    K/V row       | key: G*D elements  | value: G*V elements |      (the GQA/MHA/MQA baseline)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from latentkv.errors import OptionError, sentence
from latentkv.geometry import Geometry, MLAGeometry

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
FORMATS = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
PAGE_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
DEFAULT_PAGE_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Part:
    """One stretch of a row: `elements` numbers of `dtype`, starting `offset_bytes` into the row."""

    name: str
    elements: int
    dtype: str
    offset_bytes: int

    @property
    def size_bytes(self) -> int:
        """Bytes of this part in one row."""
        return self.elements * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class RowLayout:
    """One token's row in one layer: a named format and its parts in order."""

    format: str
    parts: tuple[Part, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row: one token in one layer."""
        return sum(part.size_bytes for part in self.parts)

    @property
    def row_elements(self) -> int:
        """Numbers in one row."""
        return sum(part.elements for part in self.parts)

    @property
    def storage_dtype(self) -> str:
        """The dtype of all parts (rows are then arrays of it)."""
        return self.parts[0].dtype

    def part(self, name: str) -> Part:
        """The part called `name`; KeyError if the row has none."""
        for part in self.parts:
            if part.name == name:
                return part
        raise KeyError(name)

    @property
    def part_names(self) -> tuple[str, ...]:
        """Names of the parts, in the order they are stored."""
        return tuple(part.name for part in self.parts)


def row_layout(format: str, parts: Sequence[tuple[str, int]]) -> RowLayout:
    """A row of `parts` (name, elements) in `format`; elements may be 0.

    Raises OptionError for an unknown format or a negative size.
    """
    if format not in FORMATS:
        raise OptionError(sentence("cache format", expected=f"one of {', '.join(FORMATS)}", got=repr(format)))
    dtype = FORMATS[format]
    placed: list[Part] = []
    offset_bytes = 0
    for name, elements in parts:
        if elements < 0:
            raise OptionError(sentence(f"elements of row part {name!r}", expected="0 or more", got=elements))
        placed.append(Part(name, elements, dtype, offset_bytes))
        offset_bytes += placed[-1].size_bytes
    return RowLayout(format, tuple(placed))


def mla_row(format: str, *, kv_lora_rank: int, qk_rope_head_dim: int) -> RowLayout:
    """The row of an MLA layer: `latent` [L], then `rope` [R]."""
    return row_layout(format, (("latent", kv_lora_rank), ("rope", qk_rope_head_dim)))


def kv_row(format: str, *, num_key_value_heads: int, head_dim: int, v_head_dim: int) -> RowLayout:
    """The row of a GQA, MHA or MQA layer: `key` [G*D], then `value` [G*V]."""
    return row_layout(format, (("key", num_key_value_heads * head_dim), ("value", num_key_value_heads * v_head_dim)))


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """A whole cache: the same row in every layer, `page_tokens` rows to a page."""

    row: RowLayout
    num_hidden_layers: int
    page_tokens: int = DEFAULT_PAGE_TOKENS

    def __post_init__(self) -> None:
        if self.page_tokens not in PAGE_TOKENS:
            raise OptionError(sentence("page_tokens", expected="a power of two from 1 to 256", got=self.page_tokens))

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token over all layers."""
        return self.row.row_bytes * self.num_hidden_layers

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers."""
        return self.bytes_per_token * self.page_tokens

    def pages_for(self, tokens: int) -> int:
        """Pages that hold `tokens` tokens."""
        return -(-tokens // self.page_tokens)


def layout_for(geometry: Geometry, format: str = "bf16", *, page_tokens: int = DEFAULT_PAGE_TOKENS) -> CacheLayout:
    """The cache layout of a model with this geometry."""
    if isinstance(geometry, MLAGeometry):
        row = mla_row(format, kv_lora_rank=geometry.kv_lora_rank, qk_rope_head_dim=geometry.qk_rope_head_dim)
    else:
        row = kv_row(
            format,
            num_key_value_heads=geometry.num_key_value_heads,
            head_dim=geometry.head_dim,
            v_head_dim=geometry.v_head_dim,
        )
    return CacheLayout(row, geometry.num_hidden_layers, page_tokens)
