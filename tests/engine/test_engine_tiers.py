"""An engine with tiers: the same tokens whatever was evicted, swapped, preempted, restarted or damaged."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest
import torch
from fakes import ByteTokenizer, CacheReadingModel, greedy, greedy_tokens, make_engine, prompt_of, run

from latentkv.engine.engine import Engine
from latentkv.engine.llm import LLM
from latentkv.errors import OptionError
from latentkv.models.load import load_model
from latentkv.models.model import Model
from support.tiny_models import FAMILIES, save_model

PAGE_BYTES = 4 * 2 * 2 * 4  # tokens, layers, numbers in a row, float32
KINDS = {
    "host": {"host_cache_bytes": 100 * PAGE_BYTES},
    "little host": {"host_cache_bytes": 2 * PAGE_BYTES},
    "host and swap": {"host_cache_bytes": 2 * PAGE_BYTES, "swap_dir": "swap"},
    "little swap": {"swap_dir": "swap", "swap_bytes": 3 * PAGE_BYTES},
    "cache": {"cache_dir": "cache"},
    "all": {"host_cache_bytes": 2 * PAGE_BYTES, "swap_dir": "swap", "cache_dir": "cache"},
}


def make(folder: Path, kind: str = "", **options: object) -> Engine:
    tiers = {name: folder / value if name.endswith("dir") else value for name, value in KINDS.get(kind, {}).items()}
    return make_engine(**{**tiers, **options})


@pytest.mark.parametrize(("kind", "max_batch_tokens"), [*((kind, 11) for kind in KINDS), ("all", 3), ("all", 2048)])
def test_preempted_requests_say_the_same_with_every_tier(kind: str, max_batch_tokens: int, tmp_path: Path) -> None:
    engine = make(tmp_path, kind, cache_tokens=40, max_batch_tokens=max_batch_tokens)
    for index in range(6):
        engine.add_request(prompt_of(5 + index, index), greedy(max_tokens=25, ignore_eos=True), request_id=str(index))
    tokens = run(engine)
    stats = engine.stats()
    engine.close()
    assert stats.preemptions > 0
    assert stats.swapped_in_pages > 0
    assert stats.checksum_failures == 0
    roomy = make_engine()
    for index in range(6):
        roomy.add_request(prompt_of(5 + index, index), greedy(max_tokens=25, ignore_eos=True), request_id=str(index))
    assert tokens == run(roomy)


def test_preemption_computes_again_what_no_tier_has() -> None:
    recomputed = {}
    for kind in ("", "host"):
        engine = make(Path(), kind, cache_tokens=40, max_batch_tokens=11)
        for index in range(6):
            engine.add_request(prompt_of(5 + index, index), greedy(max_tokens=25, ignore_eos=True))
        run(engine)
        stats = engine.stats()
        recomputed[kind] = stats.recomputed_tokens
        assert stats.restored_tokens > 0
    assert recomputed[""] > recomputed["host"]
    assert recomputed["host"] <= stats.preemptions * 4, "of each at most the page that was not full"


def test_evicted_prefixes_come_back(tmp_path: Path) -> None:
    engine = make(tmp_path, "host and swap", cache_tokens=24)
    for round_ in range(3):
        for index in range(4):
            name = engine.add_request([*prompt_of(12, index), 97 + round_], greedy(max_tokens=6))
            assert run(engine)[name] == greedy_tokens([*prompt_of(12, index), 97 + round_], 6)
    stats = engine.stats()
    assert stats.prefix_hit_tokens == 2 * 4 * 12, "all of it but the last token, and of the first round nothing"
    assert stats.disk_hit_tokens > 0
    assert stats.prefix_queries_tokens == 3 * 4 * 13
    assert (stats.device_pages, stats.host_pages, stats.host_bytes) == (6, 2, 2 * PAGE_BYTES)
    assert stats.disk_bytes == stats.disk_pages * PAGE_BYTES > 0
    engine.close()


def test_a_page_that_outlived_the_one_before_it_is_taken_from_the_cache() -> None:
    engine = make(Path(), "host", cache_tokens=24)
    first = engine.add_request(prompt_of(16), greedy(max_tokens=1))
    assert run(engine) == {first: greedy_tokens(prompt_of(16), 1)}
    scheduler = engine._scheduler
    begun = scheduler.prefix.match(prompt_of(16)).pages
    scheduler.pages.share(begun[1:])
    taken = scheduler.pages.allocate(scheduler.pages.available_pages)
    scheduler.pages.release(taken)
    scheduler.pages.release(begun[1:])
    assert scheduler.prefix.match(prompt_of(16)).pages == (), "the first page is in the host tier, two are here"
    again = engine.add_request(prompt_of(16), greedy(max_tokens=1))
    assert run(engine) == {again: greedy_tokens(prompt_of(16), 1)}
    stats = engine.stats()
    assert (stats.prefix_hit_tokens, stats.host_hit_tokens, stats.swapped_in_pages) == (12, 4, 1)


def say(engine: Engine, prompt: list[int]) -> int:
    """Complete a prompt rightly; how many of its tokens were found."""
    before = engine.stats().prefix_hit_tokens
    name = engine.add_request(prompt, greedy())
    assert run(engine)[name] == greedy_tokens(prompt, salt=engine.model.salt)
    return engine.stats().prefix_hit_tokens - before


@pytest.mark.parametrize("closed", [True, False])
def test_a_prefix_survives_a_restart(closed: bool, tmp_path: Path) -> None:
    engine = make(tmp_path, "cache")
    assert say(engine, prompt_of(30)) == 0
    if closed:
        engine.close()
    del engine
    engine = make(tmp_path, "cache")
    assert say(engine, prompt_of(30)) == 28
    assert engine.stats().disk_hit_tokens == 28
    assert engine.stats().prefill_tokens == 2
    engine.close()


@pytest.mark.parametrize(
    "other",
    [
        {"model": CacheReadingModel(salt=1)},
        {"cache_format": "bf16"},
        {"page_tokens": 8},
        {"adapter": "lora-7"},
    ],
    ids=["model", "format", "page size", "adapter"],
)
def test_nothing_is_shared_with_another_model_format_page_size_or_adapter(
    other: dict[str, object], tmp_path: Path
) -> None:
    first = make(tmp_path, "cache")
    say(first, prompt_of(30))
    first.close()
    second = make(tmp_path, "cache", **other)
    assert say(second, prompt_of(30)) == 0
    second.close()
    third = make(tmp_path, "cache")
    assert say(third, prompt_of(30)) == 28
    third.close()


@pytest.mark.parametrize("how", ["flip", "cut", "index"])
def test_damaged_pages_are_computed_again_and_counted(how: str, tmp_path: Path) -> None:
    engine = make(tmp_path, "cache")
    say(engine, prompt_of(30))
    engine.close()
    (pages,) = tmp_path.glob("cache/*/pages.bin")
    (index,) = tmp_path.glob("cache/*/index.sqlite3")
    if how == "flip":
        data = bytearray(pages.read_bytes())
        data[3 * PAGE_BYTES + 5] ^= 4
        pages.write_bytes(data)
    elif how == "cut":
        os.truncate(pages, 4 * PAGE_BYTES - 1)
    else:
        index.write_bytes(index.read_bytes()[:5000])
    engine = make(tmp_path, "cache")
    assert say(engine, prompt_of(30)) == (0 if how == "index" else 12)
    assert engine.stats().checksum_failures > 0
    engine.close()
    engine = make(tmp_path, "cache")
    assert say(engine, prompt_of(30)) == 28, "what was computed again is whole again"
    assert engine.stats().checksum_failures == 0
    engine.close()


def test_a_full_disk_fails_no_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = make(tmp_path, "cache")
    engine.close()
    (pages,) = tmp_path.glob("cache/*/pages.bin")
    pages.unlink()
    pages.symlink_to("/dev/full")
    engine = make(tmp_path, "cache")
    for index in range(3):
        say(engine, prompt_of(30, index))
    assert engine.stats().disk_pages == 0
    engine.close()
    assert len([record for record in caplog.records if "cannot write" in record.message]) == 1


def test_an_interruption_keeps_what_the_tiers_have(tmp_path: Path) -> None:
    model = CacheReadingModel()
    engine = make(tmp_path, "all", model=model, cache_tokens=24)
    say(engine, prompt_of(12))
    model.fail_at_call = len(model.calls) + 2
    engine.add_request(prompt_of(12, 1), greedy())
    with pytest.raises(KeyboardInterrupt):
        run(engine)
    engine.recover()
    engine.check()
    assert say(engine, prompt_of(12)) == 8
    engine.close()


def test_interruptions_at_random_moments_cost_no_right_token(tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    engine = make(tmp_path, "all", cache_tokens=40, max_batch_tokens=11)
    chance = random.Random(0)
    before = signal.signal(signal.SIGALRM, interrupt)
    interrupted = 0
    try:
        for round_ in range(40):
            for index in range(4):
                engine.add_request(prompt_of(5 + index, round_ % 3 + index), greedy(max_tokens=20, ignore_eos=True))
            try:
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.0005, 0.05))
                while engine.has_work:
                    engine.step()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
                engine.recover()
            engine.check()
            say(engine, prompt_of(9, round_ % 5))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 10
    engine.close()


def test_options_that_cannot_be_obeyed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"none of them without the prefix cache, .* got prefix_cache=False"):
        make(tmp_path, "host", prefix_cache=False)
    with pytest.raises(OptionError, match="host_cache_bytes: expected at least one page, 64 bytes, got 1"):
        make(tmp_path, host_cache_bytes=1)
    engine = make(tmp_path, "all")
    for kind in ("host and swap", "cache"):
        with pytest.raises(OptionError, match=f"in use by process {os.getpid()}"):
            make(tmp_path, kind)
    engine.close()
    make(tmp_path, "all").close()


def test_two_engines_with_tiers_of_their_own_do_not_meet(tmp_path: Path) -> None:
    one, other = make(tmp_path / "one", "all"), make(tmp_path / "other", "all", model=CacheReadingModel(salt=1))
    for engine in (one, other):
        say(engine, prompt_of(20))
        say(engine, prompt_of(20))
        engine.close()


def test_an_llm_takes_the_same_options(tmp_path: Path) -> None:
    options = {"tokenizer": ByteTokenizer(), "page_tokens": 4, "cache_format": "f32", "cache_dir": tmp_path}
    for reused in (0, 28):
        llm = LLM(CacheReadingModel(), **options)
        (completion,) = llm.generate([prompt_of(30)], greedy())
        assert list(completion.token_ids) == greedy_tokens(prompt_of(30))
        assert llm.stats().reused_tokens == reused
        llm.close()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(next(family for family in FAMILIES if family.name == "qwen3"), folder)
    return folder


def test_one_changed_weight_is_another_model(tiny: Path, tmp_path: Path) -> None:
    """A persistent page may meet a model of which a single row was trained further: a sample would miss it."""

    def reused(model: Model) -> int:
        llm = LLM(model, page_tokens=8, cache_dir=tmp_path)
        llm.generate([list(range(1, 34))], greedy(max_tokens=2))
        llm.close()
        return llm.stats().reused_tokens

    model = load_model(tiny, dtype="float32").model
    assert (reused(model), reused(model)) == (0, 32)
    tensor = next(model.tensors())
    assert isinstance(tensor, torch.Tensor)
    with torch.inference_mode():
        tensor[1, 0] += 1
    assert reused(model) == 0


@pytest.mark.parametrize("cache_format", ["bf16", "int8", "int4"])
def test_a_real_model_says_the_same_from_a_page_that_was_loaded(cache_format: str, tiny: Path, tmp_path: Path) -> None:
    """The rows that come back are the bytes that were computed, so that the last token's step is the same one."""
    said = []
    prompt = list(
        range(1, 42)
    )  # five pages of eight tokens and one token to compute, in the second run as in the first
    for _ in range(2):
        llm = LLM(
            tiny,
            dtype="float32",
            deterministic=True,
            cache_format=cache_format,
            page_tokens=8,
            max_batch_tokens=8,
            cache_dir=tmp_path,
        )
        said.append(llm.generate([prompt], greedy(max_tokens=12, ignore_eos=True))[0].token_ids)
        assert llm.stats().disk_hit_tokens == (40 if len(said) == 2 else 0)
        llm.close()
    assert said[0] == said[1]
