"""`latentkv generate` and `latentkv chat` on a small random model, and on the real default one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.command_line import Run, assert_one_sentence

STATS = re.compile(
    r"prefill \d+ tokens( at [\d,]+ tok/s)?( \(\d+ more found in the cache\))? · "
    r"decode \d+ tokens( at [\d,]+ tok/s)? · cache [\d,]+ B/token \(\w+ [\w-]+\)( vs [\d,]+ \([\w-]+\))* · "
    r"attention [\w:]+\n"
)
MAIN = "import sys; sys.argv[0] = 'latentkv'; from latentkv.cli.main import main; main()"


def test_text_on_stdout_and_one_line_on_stderr(run: Run, tiny_folder: Path) -> None:
    result = run("generate", tiny_folder, "-p", "abc", "--max-tokens", "5")
    assert result.exit_code == 0
    assert result.stdout.endswith("\n")
    assert STATS.fullmatch(result.stderr)
    assert result.stderr.startswith("prefill 3 tokens")
    assert "decode 4 tokens" in result.stderr
    assert "cache 256 B/token (bf16 MLA) vs 256 (GQA-2) vs 512 (MHA)" in result.stderr


def test_the_original_form_gives_the_same_text(run: Run, tiny_folder: Path) -> None:
    latent = run("generate", tiny_folder, "-p", "abc", "--max-tokens", "20", "--cache-format", "f32")
    grouped = run(
        "generate", tiny_folder, "-p", "abc", "--max-tokens", "20", "--cache-format", "f32", "--attention", "gqa"
    )
    assert latent.stdout == grouped.stdout
    assert "cache 512 B/token (f32 GQA-2) vs 1,024 (MHA)" in grouped.stderr


def test_every_way_of_asking_gives_the_same_text(run: Run, tiny_folder: Path) -> None:
    common = ("generate", tiny_folder, "--max-tokens", "8")
    streamed = run(*common, "-p", "abc")
    assert run(*common, input="abc").stdout == streamed.stdout
    assert run(*common, "-p", "abc", "--no-stream").stdout == streamed.stdout
    assert run(*common, "-p", "abc", "--page-tokens", "1").stdout == streamed.stdout
    silent = run(*common, "-p", "abc", "--no-stats")
    assert (silent.stdout, silent.stderr) == (streamed.stdout, "")


def test_a_backend_by_name(run: Run, tiny_folder: Path) -> None:
    common = ("generate", tiny_folder, "-p", "abc", "--max-tokens", "8", "--cache-format", "f32")
    named = run(*common, "--backend", "portable")
    assert named.stdout == run(*common).stdout
    assert STATS.fullmatch(named.stderr)
    assert named.stderr.endswith("attention portable\n")
    assert_one_sentence(run(*common, "--backend", "flash"), "backend")
    assert_one_sentence(run("chat", tiny_folder, "-p", "abc", "--dump-dir", "x"), "--dump-dir")


def test_a_failing_backend_and_a_shadow_are_told_and_change_nothing(
    run: Run, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ("generate", tiny_folder, "-p", "abc", "--max-tokens", "8", "--cache-format", "f32")
    monkeypatch.setenv("FAILING_BACKEND", "nan")
    monkeypatch.setenv("FAILING_EVERY", "4")
    plugin = ("--backend-plugin", "support.failing_backend:make", "--backend", "failing", "--shadow", "portable:1")
    watched = run(*common, *plugin)
    assert watched.stdout == run(*common, "--backend", "portable").stdout
    _, failures, shadow = watched.stderr.splitlines()[-3:]
    assert re.fullmatch(r"backend failing failed in [1-9]\d* steps \(non-finite\); others finished them", failures)
    assert re.fullmatch(r"shadow portable: \d+ layers of 8 steps compared, 0 disagree, 0 it could not compute", shadow)
    assert run(*common, *plugin, "--json").stderr.splitlines()[-1] == shadow


def test_json_record(run: Run, tiny_folder: Path) -> None:
    streamed = run("generate", tiny_folder, "-p", "abc", "--max-tokens", "8")
    result = run("generate", tiny_folder, "-p", "abc", "--max-tokens", "8", "--json")
    record = json.loads(result.stdout)
    assert set(record) == {
        "text",
        "finish_reason",
        "prompt_tokens",
        "completion_tokens",
        "prefill_ms",
        "decode_ms",
        "cache_bytes_per_token",
    }
    assert record["text"] + "\n" == streamed.stdout
    assert (record["prompt_tokens"], record["completion_tokens"], record["finish_reason"]) == (3, 8, "length")


def test_sampling_options_reach_the_sampler(run: Run, tiny_folder: Path) -> None:
    sampled = ("generate", tiny_folder, "-p", "abc", "--max-tokens", "12", "--temperature", "2")
    first, again = (run(*sampled, "--seed", "1").stdout for _ in range(2))
    assert first == again
    assert run(*sampled, "--seed", "2").stdout != first
    greedy = run("generate", tiny_folder, "-p", "abc", "--max-tokens", "12").stdout
    assert run(*sampled, "--top-k", "1").stdout == greedy
    stop = greedy[3]
    assert run("generate", tiny_folder, "-p", "abc", "--stop", stop).stdout == greedy[: greedy.index(stop)] + "\n"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("-p", ""), ("prompt", "none")),
        (("-p", " \n"), ("prompt", "none")),
        (("-p", "\udcff"), ("prompt", "UTF-8")),
        (("-p", "a", "--top-p", "0"), ("top_p", "0")),
        (("-p", "a", "--max-tokens", "0"), ("max_tokens", "0")),
        (("-p", "a", "--temperature", "-1"), ("temperature", "-1")),
        (("-p", "a", "--temperature", "nan"), ("temperature", "nan")),
        (("-p", "a", "--stop", ""), ("stop",)),
        (("-p", "a", "--attention", "mha"), ("--attention", "mha")),
    ],
)
def test_bad_options_are_told_before_a_model_is_looked_for(
    run: Run, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    result = run("generate", "/no/such/model", *options)
    assert_one_sentence(result, *words)
    assert "/no/such" not in result.stderr


def test_prompt_beyond_the_context(run: Run, tiny_folder: Path) -> None:
    result = run("generate", tiny_folder, "-p", "a" * 200, "--no-stats")
    assert_one_sentence(result, "prompt", "128", "200")


def test_unknown_architecture(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "novel"}))
    (tmp_path / "model.safetensors").write_bytes((tiny_folder / "model.safetensors").read_bytes())
    assert_one_sentence(run("generate", tmp_path, "-p", "a"), "novel")


def test_missing_config_field(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_folder / "config.json").read_text())
    del config["num_attention_heads"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((tiny_folder / "model.safetensors").read_bytes())
    assert_one_sentence(run("generate", tmp_path, "-p", "a"), "num_attention_heads")


def test_truncated_weights(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_folder / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((tiny_folder / "model.safetensors").read_bytes()[:-100])
    assert_one_sentence(run("generate", tmp_path, "-p", "a"), "model.safetensors", "download it again")


def test_chat_answers_once(run: Run, tiny_folder: Path) -> None:
    result = run("chat", tiny_folder, "--prompt", "abc", "--max-tokens", "5")
    assert result.exit_code == 0
    assert STATS.fullmatch(result.stderr)
    written_out = run("generate", tiny_folder, "-p", "user: abc\nassistant: ", "--max-tokens", "5")
    assert result.stdout == written_out.stdout


def test_system_message_comes_first(run: Run, tiny_folder: Path) -> None:
    result = run("chat", tiny_folder, "--system", "be kind", "--prompt", "abc", "--max-tokens", "5")
    written_out = run("generate", tiny_folder, "-p", "system: be kind\nuser: abc\nassistant: ", "--max-tokens", "5")
    assert result.stdout == written_out.stdout


def test_conversation_remembers_and_forgets(run: Run, tiny_folder: Path) -> None:
    once = run("chat", tiny_folder, "--prompt", "abc", "--max-tokens", "4").stdout
    talk = run("chat", tiny_folder, "--max-tokens", "4", "--no-stats", input="abc\n\nabc\n/reset\nabc\n/exit\nabc\n")
    answer = once.removesuffix("\n")
    history = f"user: abc\nassistant: {answer}\nuser: abc\nassistant: "
    second = run("generate", tiny_folder, "-p", history, "--max-tokens", "4").stdout
    assert talk.exit_code == 0
    assert talk.stderr == ""
    assert talk.stdout == once + second + once


def test_a_full_context_does_not_end_the_conversation(run: Run, tiny_folder: Path) -> None:
    talk = run("chat", tiny_folder, "--max-tokens", "4", "--no-stats", input=f"{'a' * 200}\nabc\n")
    assert talk.exit_code == 0
    assert "/reset" in talk.stderr
    assert talk.stdout == run("chat", tiny_folder, "--prompt", "abc", "--max-tokens", "4").stdout


def test_model_without_a_chat_template(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes((tiny_folder / name).read_bytes())
    assert_one_sentence(run("chat", tmp_path, "--prompt", "a", "--no-stats"), "template")


def test_ctrl_c_keeps_the_text_and_exits_130(tiny_folder: Path) -> None:
    command = [sys.executable, "-u", "-c", MAIN, "chat", str(tiny_folder), "--max-tokens", "4"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ}
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"abc\n")
    process.stdin.flush()
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert first
    assert b"Traceback" not in errors
    assert b"prefill" in errors


@pytest.mark.model
def test_the_default_model_names_rivers_from_both_caches(run: Run) -> None:
    asked = ("chat", "--prompt", "Name three rivers in Europe.", "--max-tokens", "12")
    latent, grouped = run(*asked), run(*asked, "--attention", "gqa")
    assert "Danube" in latent.stdout
    assert latent.stdout == grouped.stdout
    assert "23,040 B/token (bf16 MLA) vs 23,040 (GQA-3) vs 69,120 (MHA)" in latent.stderr


def test_a_model_that_does_not_fit_is_refused_and_may_be_tried_anyway(run: Run, tiny_folder: Path) -> None:
    wish = ("generate", tiny_folder, "--prompt", "hello", "--max-tokens", "2", "--no-stats")
    assert_one_sentence(run(*wish, "--memory", "1KB"), "lift the limit")
    assert_one_sentence(run(*wish, "--memory", "1024"), "--memory", "GiB")
    assert run(*wish, "--memory", "unlimited").exit_code == 0
