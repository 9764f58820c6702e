"""Coded rows: bytes worked out by hand, the bits' order spelled out, and errors within half a step."""

from __future__ import annotations

import struct

import hypothesis
import pytest
import torch
from hypothesis import strategies
from torch import Tensor

from latentkv.cache.codec import decode_rows, encode_rows
from latentkv.cache.layout import Coding, Format, RowLayout, kv_row, mla_row
from support.compare import Tolerance, assert_close

CODED = ("fp8", "int8", "int6", "int4")
GROUP = {"fp8": 128, "int8": 128, "int6": 64, "int4": 64}
STEPS = {"fp8": 448.0, "int8": 127.0, "int6": 64.0, "int4": 16.0}


def row_of(format: str | Format, latent: int, rope: int = 0) -> RowLayout:
    return mla_row(format, kv_lora_rank=latent, qk_rope_head_dim=rope)


def encoded(format: str, latent: list[float], rope: list[float] | None = None) -> bytes:
    rope = rope or []
    row = row_of(format, len(latent), len(rope))
    return encode_rows(row, {"latent": torch.tensor([latent]), "rope": torch.tensor([rope])}).numpy().tobytes()


def round_trip(format: str, latent: Tensor) -> Tensor:
    row = row_of(format, latent.shape[1])
    return decode_rows(row, encode_rows(row, {"latent": latent, "rope": latent[:, :0]}))["latent"]


def test_bytes_of_fp8() -> None:
    # The scale is 1. 1.0625 and 1.1875 lie halfway between e4m3 numbers: ties go to even. 2**-9 is the least number.
    data = encoded("fp8", [448.0, -1.0, 0.5, 2**-9, 1.0625, 1.1875, 0.0, -448.0], [1.0, -2.0])
    assert data == bytes.fromhex("7e b8 30 01 38 3a 00 fe" + "0000803f" + "803f 00c0")


def test_bytes_of_int8() -> None:
    data = encoded("int8", [127.0, -3.0, 0.5, 1.5, -127.0], [1.0])
    assert data == bytes.fromhex("7f fd 00 02 81 000000" + "0000803f" + "803f 0000")


def test_bytes_of_int4() -> None:
    # The scale is 1: 16 and -16 are the ends of the range and become 15 and -15, 0 becomes 1 and 3.9 becomes 3.
    latent = [16.0, -16.0, 0.0, 3.9, *[-16.0] * 28, 16.0, 0.0]
    data = encoded("int4", latent)
    assert data == bytes([0xFF, 0x80, 0x08, 0x09, *[0] * 28]) + bytes.fromhex("803f 0000")
    values = decode_rows(row_of("int4", 34), torch.frombuffer(bytearray(data), dtype=torch.uint8)[None])["latent"]
    assert values.tolist() == [[15.0, -15.0, 1.0, 3.0, *[-15.0] * 28, 15.0, 1.0]]


def test_bytes_of_int6() -> None:
    # The scale is 1: 64 becomes code 63, -64 code 0, 0 code 32 and 17 code 40, whose upper two bits are 2.
    latent = [64.0, *[-64.0] * 16, 0.0, *[-64.0] * 14, 17.0]
    low = bytes([0x8F, *[0] * 31])
    high = bytes([0b10_00_11, 0b00_10_00, *[0] * 14])
    assert encoded("int6", latent) == low + high + bytes.fromhex("803f 0000")


def test_scales_of_int6_and_int4_are_rounded_up() -> None:
    # 1 + 2**-20 is no bfloat16; to nearest it would be 1, and the largest element would be out of its code's reach.
    assert encoded("int4", [16 * (1 + 2**-20)])[32:34] == bytes.fromhex("813f")
    assert encoded("int6", [-64 * (1 + 2**-20)])[48:50] == bytes.fromhex("813f")


def spelled_out(format: str, data: bytes, index: int) -> int:
    """The code of element `index`, as layout.py's picture says."""
    unit, i = divmod(index, 64)
    low = data[32 * unit + i % 32] >> 4 * (i // 32) & 15
    if format == "int4":
        return low
    planes = 32 * (len(data) // 48)
    return low | (data[planes + 16 * unit + i % 16] >> 2 * (i // 16) & 3) << 4


@pytest.mark.parametrize("width", [1, 63, 64, 65, 130, 512])
@pytest.mark.parametrize(("format", "odd"), [("int6", 63), ("int4", 15)])
def test_the_order_of_bits(format: str, odd: int, width: int) -> None:
    row = row_of(format, width)
    [part] = [part for part in row.parts if part.name == "latent"]
    assert part.scales is not None
    generator = torch.Generator().manual_seed(width)
    stored = torch.randint(256, (1, row.row_bytes), generator=generator, dtype=torch.int64).to(torch.uint8)
    one = struct.pack("<H", 0x3F80) * part.scales.count
    first = part.scales.offset_bytes
    stored[0, first : first + len(one)] = torch.frombuffer(bytearray(one), dtype=torch.uint8)
    codes = bytes(stored[0, : part.size_bytes].tolist())
    expected = [[2 * spelled_out(format, codes, i) - odd for i in range(width)]]
    assert decode_rows(row, stored)["latent"].tolist() == expected


def flash_mla_row(values: Tensor, scale: Tensor) -> Tensor:
    """Bytes [T, 656] of values [T, 576] with scales [T, 4], assembled as FlashMLA's description of the row says."""
    codes = (values[:, :512].view(-1, 4, 128) / scale[..., None]).flatten(1).to(torch.float8_e4m3fn)
    return torch.cat([part.view(torch.uint8) for part in (codes, scale, values[:, 512:].bfloat16())], dim=1)


def test_fp8_rows_are_flash_mlas_byte_for_byte() -> None:
    values = torch.randn(50, 576, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 3, 50)[:, None]
    scale = values[:, :512].view(50, 4, 128).abs().amax(dim=2) / 448
    expected = flash_mla_row(values, scale)
    assert expected.shape == (50, 656)
    actual = encode_rows(row_of("fp8", 512, 64), {"latent": values[:, :512], "rope": values[:, 512:]})
    assert torch.equal(actual, expected)


def test_fp8_rows_with_scales_that_are_powers_of_two_are_read() -> None:
    # Later FlashMLA rounds scales up to powers of two: another writer's choice, the same row.
    values = torch.randn(20, 576, generator=torch.Generator().manual_seed(2))
    scale = 2 ** (values[:, :512].view(20, 4, 128).abs().amax(dim=2) / 448).log2().ceil()
    rows = flash_mla_row(values, scale)
    read = decode_rows(row_of("fp8", 512, 64), rows)
    codes = rows[:, :512].view(torch.float8_e4m3fn).double().view(20, 4, 128)
    assert_close(read["latent"], (codes * scale[..., None].double()).flatten(1).float(), tolerance="exact")
    assert_close(read["rope"], values[:, 512:].bfloat16().float(), tolerance="exact")


def half_steps(format: str, x: Tensor) -> Tensor:
    """The largest error each element may have."""
    group = GROUP[format]
    padded = torch.nn.functional.pad(x.double(), (0, -x.shape[1] % group)).unflatten(1, (-1, group))
    scale = (padded.abs().amax(dim=2, keepdim=True) / STEPS[format]).expand_as(padded).flatten(1)[:, : x.shape[1]]
    if format == "fp8":
        return torch.maximum(x.double().abs() / 16, scale / 1024)
    if format == "int8":
        return scale / 2
    return scale * (1 + 2**-7)  # a scale that was rounded up to the next bfloat16


def assert_within_half_a_step(format: str, x: Tensor) -> None:
    error = (round_trip(format, x).double() - x.double()).abs()
    allowed = half_steps(format, x) + x.double().abs() * 2**-22 + 2.0**-126 * STEPS[format]
    assert (error <= allowed).all(), f"{format}: {(error / allowed).max().item()} of half a step"


@pytest.mark.parametrize("format", CODED)
@hypothesis.given(
    width=strategies.integers(1, 200), exponent=strategies.integers(-130, 100), seed=strategies.integers(0, 999)
)
def test_nothing_is_further_off_than_half_a_step(format: str, width: int, exponent: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, width, generator=generator) * torch.randn(3, width, generator=generator).exp2()
    x[1, seed % width] *= 1000  # an outlier
    x[2] = x[2].round()
    assert_within_half_a_step(format, x.double().mul(2.0**exponent).float())


@pytest.mark.parametrize("format", CODED)
def test_zeros_and_what_is_as_good_as_zero(format: str) -> None:
    tiny = 2.0**-126 * STEPS[format]
    x = torch.tensor([[0.0], [1e-45], [-tiny / 2], [-tiny]]).expand(4, 70).contiguous()
    read = round_trip(format, x)
    assert (read[:3] == 0).all()
    assert_within_half_a_step(format, x)
    assert (read[3] != 0).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("format", CODED)
def test_what_is_not_finite_makes_its_whole_group_nan_and_no_other(format: str, bad: float) -> None:
    group = GROUP[format]
    x = torch.ones(1, 3 * group)
    x[0, group + 3] = bad
    row = row_of(format, 3 * group)
    stored = encode_rows(row, {"latent": x, "rope": x[:, :0]})
    read = decode_rows(row, stored)["latent"].view(3, group)
    assert read[1].isnan().all()
    assert read[0].isfinite().all()
    assert read[2].isfinite().all()
    if format in ("fp8", "int8"):
        assert not stored[0, group : 2 * group].any()


@pytest.mark.parametrize("format", CODED)
def test_huge_numbers_stay_finite(format: str) -> None:
    x = torch.tensor([[3.0e38, -3.0e38, 1.0e38, 0.0]])
    assert round_trip(format, x).isfinite().all()
    assert_within_half_a_step(format, x)


@pytest.mark.parametrize("format", CODED)
def test_bytes_between_parts_are_zero(format: str) -> None:
    row = row_of(format, 5, 1)
    used = torch.zeros(row.row_bytes, dtype=torch.bool)
    latent, rope = row.parts
    assert latent.scales is not None
    for first, size in (
        (latent.offset_bytes, latent.size_bytes),
        (latent.scales.offset_bytes, latent.scales.size_bytes),
        (rope.offset_bytes, rope.size_bytes),
    ):
        used[first : first + size] = True
    stored = encode_rows(row, {"latent": torch.full((2, 5), -3.0), "rope": torch.ones(2, 1)})
    assert not stored[:, ~used].any()
    assert not used.all()


@pytest.mark.parametrize("format", CODED)
def test_keys_and_values_are_coded_alike(format: str) -> None:
    generator = torch.Generator().manual_seed(5)
    row = kv_row(format, num_key_value_heads=3, head_dim=20, v_head_dim=10)
    key, value = torch.randn(4, 60, generator=generator), torch.randn(4, 30, generator=generator)
    read = decode_rows(row, encode_rows(row, {"key": key, "value": value}))
    assert_close(read["key"], round_trip(format, key), tolerance="exact")
    assert_close(read["value"], round_trip(format, value), tolerance="exact")


def test_a_format_may_code_the_rope_part_too() -> None:
    both = Format("int8 rope", Coding("int8", 128, "float32"), Coding("int8", 64, "bfloat16"))
    row = row_of(both, 130, 70)
    x = torch.randn(6, 200, generator=torch.Generator().manual_seed(3))
    read = decode_rows(row, encode_rows(row, {"latent": x[:, :130], "rope": x[:, 130:]}))
    half_step = (x.abs().max() / 254 * (1 + 2**-7)).item()
    assert_close(read["rope"], x[:, 130:], tolerance=Tolerance(torch.float32, absolute=half_step + 1e-6))
