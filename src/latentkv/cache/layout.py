"""The truth on bytes: how one cached token of one layer is laid out, and how rows fill pages.

Everything that counts or touches cache bytes (planner, allocator, codecs, kernels, docs) asks this file. It knows no
tensors. A row is a sequence of named parts; a format says which numbers are stored as they are and which as codes that
share a scale.

    MLA row       | latent: L elements | rope: R elements |
    K/V row       | key: G*D elements  | value: G*V elements |      (the GQA/MHA/MQA baseline)

A part of codes is followed by its scales. For DeepSeek's L = 512, R = 64, in bytes:

    bf16    | latent 1024                     | rope 128 |                       1152
    fp8     | e4m3 512 | float32 scales 16    | rope 128 |                        656 (FlashMLA's row, byte for byte)
    int8    | int8 512 | float32 scales 16    | rope 128 |                        656
    int6    | low 4 bits 256 | high 2 bits 128 | bfloat16 scales 16 | rope 128 |  528
    int4    | 4 bits 256     | bfloat16 scales 16 | rope 128 |                    400

Codes, scales and RoPE parts start at multiples of 4 bytes, and such a row is a multiple of 4 bytes; what lies between
is zero. In the rows above everything starts at a multiple of 16. All numbers are little-endian.

What a code stands for. A group is `group` adjacent elements, the last one perhaps fewer; its scale s is stored beside.

    fp8     element = e4m3(code) * s, groups of 128, s = float32(amax / 448)
    int8    element = code * s, code -127 to 127 in two's complement, groups of 128, s = float32(amax / 127)
    int6    element = (2 * code - 63) * s, code 0 to 63, groups of 64, s = amax / 64 rounded up to bfloat16
    int4    element = (2 * code - 15) * s, code 0 to 15, groups of 64, s = amax / 16 rounded up to bfloat16

int6 and int4 count in odd numbers: the whole range is used on both sides, and no element is further from its code than
s, half a step. A scale is 0 where it would be below 2**-126 (elements are then 0), and NaN where an element is not
finite (all elements of the group are then NaN); the codes of such groups are 0. How elements become codes:
cache/codes.py.

Order of bits. int8 and fp8: one byte per element, in order. int4 and int6 pack 64 elements at a time, the last 64
filled up with zero codes; within each:

    int4    byte i of 32 (i = 0 ... 31) = code[i] | code[i + 32] << 4
    int6    first for the whole row the low 4 bits of all codes, as int4; then, per 64 elements, 16 bytes of high bits:
            byte i of 16 = high[i] | high[i + 16] << 2 | high[i + 32] << 4 | high[i + 48] << 6, high = code >> 4

so that one mask and one shift of a 32-byte (16-byte) register give 32 (16) codes in order, and int6 is int4 and a plane
more. `rotated` formats (int8, int6, int4) hold the latent multiplied by the orthogonal matrix of cache/rotation.py; fp8
is FlashMLA's and is not rotated, which would gain it nothing: its codes are relative to each element.

Groups and scales cost bits, coarse groups cost precision. Among 64 numbers the largest is typically 2.6 standard
deviations, among 128 2.8: at 4 and 6 bits halving the group gains as much as its scale costs, at 64 as well as at 128,
so 64, where a group is one packing unit. At 8 bits there is precision to spare, and groups of 128 give one conversion
per 128 integer products and fp8's row: whoever reads one reads the other. bfloat16 has float32's range, so that a scale
neither overflows nor vanishes where float32 would not.

DeepSeek-V2, 60 layers: 6 bits for each of the 576 numbers would be 25,920 bytes per token (93.3 % less than
DeepSeek-67B's 389,120, as published). With scales, and RoPE in bfloat16, int6 is 31,680 (91.9 %) and int4 24,000
(93.8 %).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from latentkv.errors import OptionError, sentence
from latentkv.geometry import Geometry, MLAGeometry

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Bytes that hold CODE_ELEMENTS[dtype] adjacent codes.
CODE_BYTES = {"float8_e4m3fn": 1, "int8": 1, "int6": 48, "int4": 32}
CODE_ELEMENTS = {"float8_e4m3fn": 1, "int8": 1, "int6": 64, "int4": 64}
CODED_ALIGNMENT_BYTES = 4
PAGE_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
DEFAULT_PAGE_TOKENS = 64

PartKind = Literal["latent", "rope"]


@dataclass(frozen=True, slots=True)
class Coding:
    """How a part is stored.

    dtype:       of its elements, or of their codes
    group:       elements that share a scale; 0 for elements stored as they are
    scale_dtype: of the scales; "" without
    """

    dtype: str
    group: int = 0
    scale_dtype: str = ""


@dataclass(frozen=True, slots=True)
class Format:
    """How rows are stored: the latent (in K/V rows keys and values), and the RoPE part.

    rotated: MLA's latent is stored multiplied by an orthogonal matrix (cache/rotation.py), which spreads outliers
    """

    name: str
    latent: Coding
    rope: Coding
    rotated: bool = False


def _plain(name: str, dtype: str) -> Format:
    return Format(name, Coding(dtype), Coding(dtype))


FORMATS = {
    format.name: format
    for format in (
        _plain("f32", "float32"),
        _plain("bf16", "bfloat16"),
        _plain("f16", "float16"),
        Format("fp8", Coding("float8_e4m3fn", 128, "float32"), Coding("bfloat16")),
        Format("int8", Coding("int8", 128, "float32"), Coding("bfloat16"), rotated=True),
        Format("int6", Coding("int6", 64, "bfloat16"), Coding("bfloat16"), rotated=True),
        Format("int4", Coding("int4", 64, "bfloat16"), Coding("bfloat16"), rotated=True),
    )
}


@dataclass(frozen=True, slots=True)
class Scales:
    """The scales of a part's groups: `count` numbers of `dtype`, each for `group` elements (the last for the rest)."""

    group: int
    count: int
    dtype: str
    offset_bytes: int

    @property
    def size_bytes(self) -> int:
        """Bytes of the scales in one row."""
        return self.count * DTYPE_BYTES[self.dtype]

    @property
    def end_bytes(self) -> int:
        """Where the scales end in the row."""
        return self.offset_bytes + self.size_bytes


@dataclass(frozen=True, slots=True)
class Part:
    """One stretch of a row: `elements` numbers, stored in `dtype` or as codes of it, `offset_bytes` into the row.

    scales: None for numbers stored as they are
    """

    name: str
    elements: int
    dtype: str
    offset_bytes: int
    scales: Scales | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of the numbers or codes of this part in one row, without its scales."""
        if self.scales is None:
            return self.elements * DTYPE_BYTES[self.dtype]
        return _code_bytes(self.dtype, self.elements)

    @property
    def end_bytes(self) -> int:
        """Where this part and its scales end in the row."""
        return self.offset_bytes + self.size_bytes if self.scales is None else self.scales.end_bytes


@dataclass(frozen=True, slots=True)
class RowLayout:
    """One token's row in one layer: a named format and its parts in order.

    rotated: whether the part `latent` holds rotated latents (cache/rotation.py)
    """

    format: str
    parts: tuple[Part, ...]
    rotated: bool = False

    @property
    def coded(self) -> bool:
        """Whether a part holds codes; the row is then an array of bytes."""
        return any(part.scales is not None for part in self.parts)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row: one token in one layer."""
        end = max((part.end_bytes for part in self.parts), default=0)
        return _aligned(end) if self.coded else end

    @property
    def row_elements(self) -> int:
        """Numbers that a row stands for, scales not counted."""
        return sum(part.elements for part in self.parts)

    @property
    def storage_dtype(self) -> str:
        """The dtype rows are arrays of: that of all parts, or uint8 where a part holds codes."""
        return "uint8" if self.coded else self.parts[0].dtype

    @property
    def storage_elements(self) -> int:
        """Numbers of the storage dtype in one row."""
        return self.row_bytes if self.coded else self.row_elements

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


def find_format(name: str) -> Format:
    """The format called `name`. Raises OptionError for an unknown one."""
    if name not in FORMATS:
        raise OptionError(sentence("cache format", expected=f"one of {', '.join(FORMATS)}", got=repr(name)))
    return FORMATS[name]


def row_layout(format: str | Format, parts: Sequence[tuple[str, int, PartKind]]) -> RowLayout:
    """A row of `parts` (name, elements, what they are stored as) in `format`; elements may be 0.

    Raises OptionError for an unknown format or a negative size.
    """
    known = find_format(format) if isinstance(format, str) else format
    coded = bool(known.latent.group or known.rope.group)
    placed: list[Part] = []
    offset_bytes = 0
    for name, elements, kind in parts:
        if elements < 0:
            raise OptionError(sentence(f"elements of row part {name!r}", expected="0 or more", got=elements))
        placed.append(_place(name, elements, known.latent if kind == "latent" else known.rope, offset_bytes))
        offset_bytes = _aligned(placed[-1].end_bytes) if coded else placed[-1].end_bytes
    return RowLayout(known.name, tuple(placed), known.rotated and any(part.name == "latent" for part in placed))


def mla_row(format: str | Format, *, kv_lora_rank: int, qk_rope_head_dim: int) -> RowLayout:
    """The row of an MLA layer: `latent` [L], then `rope` [R]."""
    return row_layout(format, (("latent", kv_lora_rank, "latent"), ("rope", qk_rope_head_dim, "rope")))


def kv_row(format: str | Format, *, num_key_value_heads: int, head_dim: int, v_head_dim: int) -> RowLayout:
    """The row of a GQA, MHA or MQA layer: `key` [G*D], then `value` [G*V]; both stored as a latent is, not rotated."""
    key, value = num_key_value_heads * head_dim, num_key_value_heads * v_head_dim
    return row_layout(format, (("key", key, "latent"), ("value", value, "latent")))


def _place(name: str, elements: int, coding: Coding, offset_bytes: int) -> Part:
    if not coding.group:
        return Part(name, elements, coding.dtype, offset_bytes)
    codes_end = offset_bytes + _code_bytes(coding.dtype, elements)
    scales = Scales(coding.group, -(-elements // coding.group), coding.scale_dtype, _aligned(codes_end))
    return Part(name, elements, coding.dtype, offset_bytes, scales)


def _code_bytes(dtype: str, elements: int) -> int:
    return -(-elements // CODE_ELEMENTS[dtype]) * CODE_BYTES[dtype]


def _aligned(offset_bytes: int) -> int:
    return -(-offset_bytes // CODED_ALIGNMENT_BYTES) * CODED_ALIGNMENT_BYTES


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


def layout_for(
    geometry: Geometry, format: str | Format = "bf16", *, page_tokens: int = DEFAULT_PAGE_TOKENS
) -> CacheLayout:
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
