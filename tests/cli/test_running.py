"""What a command shows of a run: its text, also of one that breaks off, and the line that sums it up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from latentkv.cli.running import show, stats_line
from latentkv.engine.output import EngineStats
from latentkv.geometry import AttentionGeometry, MLAGeometry

GQA = AttentionGeometry(num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, head_dim=64, v_head_dim=64)
CONVERTED = MLAGeometry(
    num_hidden_layers=30,
    num_attention_heads=9,
    kv_lora_rank=192,
    qk_rope_head_dim=192,
    qk_nope_head_dim=0,
    v_head_dim=64,
    rope_groups=3,
)
V2 = MLAGeometry(
    num_hidden_layers=60,
    num_attention_heads=128,
    kv_lora_rank=512,
    qk_rope_head_dim=64,
    qk_nope_head_dim=128,
    v_head_dim=128,
)


def stats(*, bytes_per_token: int, reused_tokens: int = 0, decode_tokens: int = 57) -> EngineStats:
    return EngineStats(
        steps=58,
        prefill_tokens=23,
        decode_tokens=decode_tokens,
        prefill_seconds=0.1,
        decode_seconds=0.5 if decode_tokens else 0.0,
        reused_tokens=reused_tokens,
        preemptions=0,
        waiting=0,
        running=0,
        free_pages=1,
        held_pages=0,
        cached_pages=0,
        cache_bytes=0,
        bytes_per_token=bytes_per_token,
    )


def test_line_of_a_converted_model() -> None:
    line = stats_line(
        stats(bytes_per_token=23_040),
        geometry=CONVERTED,
        original=GQA,
        cache_format="bf16",
        attention_path="native:avx2",
    )
    assert line == (
        "prefill 23 tokens at 230 tok/s · decode 57 tokens at 114 tok/s · "
        "cache 23,040 B/token (bf16 MLA) vs 23,040 (GQA-3) vs 69,120 (MHA) · attention native:avx2"
    )


def test_line_of_a_model_with_latents_of_its_own() -> None:
    line = stats_line(
        stats(bytes_per_token=69_120), geometry=V2, original=V2, cache_format="bf16", attention_path="native:avx2"
    )
    assert line.endswith(
        "cache 69,120 B/token (bf16 MLA) vs 307,200 (GQA-8) vs 4,915,200 (MHA) · attention native:avx2"
    )


def test_line_of_a_model_in_its_own_form() -> None:
    line = stats_line(
        stats(bytes_per_token=46_080), geometry=GQA, original=GQA, cache_format="f32", attention_path="native:avx2"
    )
    assert line.endswith("cache 46,080 B/token (f32 GQA-3) vs 138,240 (MHA) · attention native:avx2")


def test_line_of_nothing_decoded_and_something_reused() -> None:
    run = stats(bytes_per_token=46_080, reused_tokens=64, decode_tokens=0)
    line = stats_line(run, geometry=GQA, original=GQA, cache_format="f32", attention_path="native:avx2")
    assert line.startswith("prefill 23 tokens at 230 tok/s (64 more found in the cache) · decode 0 tokens · cache")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_text_so_far_is_shown_when_a_run_breaks_off(
    capsys: pytest.CaptureFixture[str], stream: bool, error: type[BaseException]
) -> None:
    def pieces() -> Iterator[str]:
        yield "one "
        yield "two"
        raise error

    with pytest.raises(error):
        show(pieces(), stream=stream)
    assert capsys.readouterr().out == "one two\n"
