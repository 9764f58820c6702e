import json

import pytest
import tokenizers
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors

from latentkv.errors import LatentKVError, TokenizerError
from latentkv.models.chat_template import ChatTemplate
from latentkv.models.gguf_tokenizer import _SPLITS
from latentkv.models.locate import find_model
from latentkv.models.tokenizer import Tokenizer
from support.tiny_gguf import byte_level_tokenizer, damaged_copies, write_gguf

TEXTS = [
    "The river Rhine rises in the Swiss Alps (2,345 m) and flows for about 1,230 km to the North Sea.",
    "In 1879, Ludwig's son - it's said - didn't know they'd won; we'll see. I'M SURE WE'VE LOST!",
    "def area(r: float) -> float:\n\treturn 3.14159 * r**2  # πr²\n\n\nif __name__ == '__main__':\r\n  print(area(2))",
    "東京は日本の首都です。人口は約1400万人。北京是中国的首都。서울은 대한민국의 수도이다.",
    "Ünïcödé naïve façade — “quotes” … ½ ٣٤ ⅷ Ⴀ ǅ",
    "👩‍👩‍👧‍👦 🇩🇪 👋🏽 e\u0301 \u200b zero width",
    "   leading,  double   and trailing spaces   \n \n\t ",
    "<|im_start|>user\nHi<|im_end|>",
    "",
]
CHAT = [{"role": "user", "content": "Name three rivers."}]


@pytest.fixture(scope="module")
def smollm():
    return Tokenizer.from_gguf(find_model().path)


@pytest.fixture(scope="module")
def reference():
    """The same tokenizer as transformers builds it from the same file."""
    files = find_model()
    tokenizer = transformers.AutoTokenizer.from_pretrained(files.path.parent, gguf_file=files.path.name)
    # The model's tokenizer.json splits digits first; transformers' reader of GGUF files leaves that out.
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
    )
    return tokenizer


@pytest.mark.model
@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_text_are_those_of_transformers(smollm, reference, text):
    ids = smollm.encode(text)
    assert ids == reference.encode(text, add_special_tokens=False)
    assert smollm.decode(ids) == reference.decode(ids, skip_special_tokens=True)
    assert smollm.decode(ids, skip_special_tokens=False) == text


def as_byte_tokens(text):
    return "".join(piece for piece, _ in pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text))


@pytest.mark.model
@given(text=st.text(max_size=60))
def test_any_text_survives_the_round_trip_and_the_stream(smollm, text):
    # The model's vocabulary lacks some bytes, of control characters and of empty planes of Unicode.
    text = "".join(c for c in text if all(smollm.token_id(byte) is not None for byte in as_byte_tokens(c)))
    ids = smollm.encode(text)
    stream = smollm.stream(skip_special_tokens=False)
    assert smollm.decode(ids, skip_special_tokens=False) == text
    assert "".join([stream.push(id) for id in ids]) + stream.flush() == text


@pytest.mark.model
def test_the_facts_of_the_real_tokenizer(smollm):
    assert smollm.vocab_size == 49152
    assert smollm.eos_token_ids == {0, 2}
    assert smollm.bos_token_id == 1
    assert smollm.encode("<|im_start|><|im_end|>") == [1, 2]
    assert smollm.encode("a")[0] != smollm.bos_token_id


@pytest.mark.model
def test_the_real_template_renders_as_published(smollm):
    expected = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nName three rivers.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert smollm.render_chat(CHAT) == expected
    assert smollm.render_chat(CHAT, add_generation_prompt=False) == expected.removesuffix("<|im_start|>assistant\n")
    ids = smollm.encode_chat(CHAT)
    assert smollm.decode(ids, skip_special_tokens=False) == expected
    assert ids.count(1) == 3
    assert ids.count(2) == 2


@pytest.mark.model
def test_a_stream_shows_whole_characters_only(smollm):
    text = "日本 👩‍👩‍👧 é"
    stream = smollm.stream()
    pieces = [stream.push(id) for id in smollm.encode(text)]
    assert "".join(pieces) == text
    assert "" in pieces
    assert not any("\ufffd" in piece for piece in pieces)
    half = smollm.encode("👩")[:1]
    cut = smollm.stream()
    shown = [cut.push(id) for id in half]
    assert "\ufffd" not in "".join(shown)
    assert "\ufffd" in cut.flush()


@pytest.mark.model
def test_a_stream_of_broken_bytes_does_not_wait_for_ever(smollm):
    broken = smollm.encode("👩")[-1]
    stream = smollm.stream()
    assert "".join(stream.push(broken) for _ in range(40)).count("\ufffd") > 20


def gguf(tmp_path, **changes):
    return write_gguf(tmp_path / "t.gguf", tokenizer=byte_level_tokenizer(**changes))


@pytest.mark.parametrize("pre", sorted(_SPLITS))
def test_every_way_of_splitting_is_usable_and_loses_nothing(tmp_path, pre):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer.from_gguf(gguf(tmp_path, pre=pre, tokens=[*alphabet, "ab"], token_type=None))
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text, special_tokens=False)) == text


PIECES = {
    "gpt-2": ("it's 1234\n\n x", ["it", "'s", " 1234", "\n\n", " x"]),
    "smollm": ("a 12,5", ["a", " ", "1", "2", ",", "5"]),
    "llama-bpe": ("IT'S 12345\n\nx", ["IT", "'S", " ", "123", "45", "\n\n", "x"]),
    "qwen2": ("it's 123", ["it", "'s", " ", "1", "2", "3"]),
    "deepseek-llm": ("ab éΏǅ! 北京 12\n", ["ab", " éΏǅ", "!", " ", "北京", " ", "12", "\n"]),
    "deepseek-v3": ("x=1234 北京!yes", ["x", "=", "123", "4", " ", "北京", "!yes"]),
    "default": ("a1234.b", ["a", "123", "4", ".", "b"]),
}


@pytest.mark.parametrize("pre", sorted(PIECES))
def test_text_is_split_where_the_model_expects_it(tmp_path, pre):
    backend = Tokenizer.from_gguf(gguf(tmp_path, pre=pre))._backend
    text, expected = PIECES[pre]
    spans = [span for _, span in backend.pre_tokenizer.pre_tokenize_str(text)]
    assert [text[first:last] for first, last in spans] == expected


def test_control_tokens_are_parsed_and_user_tokens_are_kept_when_special_ones_are_skipped(tmp_path):
    tokenizer = Tokenizer.from_gguf(gguf(tmp_path, token_type=[2, 3, 3, 1, 1, 1, 4, 1, 1, 1]))
    assert tokenizer.encode("<s>ab</s>", special_tokens=False) == [1, 6, 2]
    assert tokenizer.decode([1, 6, 2]) == "ab"
    assert tokenizer.eos_token_ids == {2}


@pytest.mark.parametrize(("stated", "expected"), [(True, [1, 6]), (False, [6]), (None, [6])])
def test_bos_is_added_only_when_the_file_says_so_and_never_twice(tmp_path, stated, expected):
    tokenizer = Tokenizer.from_gguf(gguf(tmp_path, add_bos_token=stated))
    assert tokenizer.encode("ab") == expected
    assert tokenizer.encode("<s>ab") == [1, 6]
    assert tokenizer.encode("ab", special_tokens=False) == [6]


def test_an_unknown_split_or_kind_is_refused_with_the_list(tmp_path):
    with pytest.raises(TokenizerError, match=r"default, glm4, gpt-2.*got 'mystery'"):
        Tokenizer.from_gguf(gguf(tmp_path, pre="mystery"))
    with pytest.raises(TokenizerError, match="gpt2 or llama, got 't5'"):
        Tokenizer.from_gguf(gguf(tmp_path, model="t5"))


@pytest.mark.parametrize(
    "change", [{"tokens": None}, {"merges": ["a zz"]}, {"merges": ["ab"]}, {"merges": None}, {"tokens": [1, 2]}]
)
def test_damaged_vocabularies_are_refused(tmp_path, change):
    with pytest.raises(TokenizerError, match=r"t\.gguf"):
        Tokenizer.from_gguf(gguf(tmp_path, **change))


SPM_TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "ab", "▁ab"]


def sentencepiece(tmp_path, **changes):
    scores = [0.0] * 259 + [-9.0, -9.0, -9.0, -2.0, -1.0, -3.0]
    types = [2, 3, 3] + [6] * 256 + [1] * 6
    fields = {
        "model": "llama",
        "pre": None,
        "tokens": SPM_TOKENS,
        "token_type": types,
        "scores": scores,
        "merges": None,
    }
    return Tokenizer.from_gguf(gguf(tmp_path, **(fields | changes)))


def test_sentencepiece_merges_by_score_and_falls_back_to_bytes(tmp_path):
    tokenizer = sentencepiece(tmp_path)
    ids = tokenizer.encode("ab é")
    assert [SPM_TOKENS[id] for id in ids] == ["<s>", "▁ab", "▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(ids) == "ab é"
    with pytest.raises(TokenizerError, match="scores"):
        sentencepiece(tmp_path, scores=[0.0])


def test_a_stream_keeps_the_space_that_a_sentencepiece_decoder_strips(tmp_path):
    tokenizer = sentencepiece(tmp_path)
    ids = tokenizer.encode("ab ab a 日本", special_tokens=False)
    fresh = tokenizer.stream()
    assert "".join(fresh.push(id) for id in ids) + fresh.flush() == "ab ab a 日本"
    continued = tokenizer.stream(after=ids[:1])
    assert "".join(continued.push(id) for id in ids[1:]) + continued.flush() == " ab a 日本"


def test_a_prompt_that_is_not_unicode_is_refused(tmp_path):
    with pytest.raises(TokenizerError, match="not UTF-8"):
        Tokenizer.from_gguf(gguf(tmp_path)).encode("a\udcff")


def folder(path, *, bos_in_template=False, config=None, template=None, generation=None):
    """A Hugging Face folder with a byte-level tokenizer of single characters."""
    backend = tokenizers.Tokenizer(models.BPE(vocab={"<s>": 0, "</s>": 1, "a": 2, "b": 3, "<|end|>": 4}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>", "<|end|>"])
    if bos_in_template:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    backend.enable_truncation(1)
    backend.save(str(path / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}} | (config or {})
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    if template is not None:
        (path / "chat_template.jinja").write_text(template)
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return path


@pytest.mark.parametrize(
    ("bos_in_template", "stated", "expected"),
    [
        (True, None, [0, 2, 3]),
        (True, True, [0, 2, 3]),
        (False, True, [0, 2, 3]),
        (True, False, [2, 3]),
        (False, None, [2, 3]),
    ],
)
def test_a_folders_bos_follows_its_configuration(tmp_path, bos_in_template, stated, expected):
    config = {} if stated is None else {"add_bos_token": stated}
    tokenizer = Tokenizer.from_folder(folder(tmp_path, bos_in_template=bos_in_template, config=config))
    assert tokenizer.encode("ab") == expected
    assert tokenizer.encode("ab", special_tokens=False) == [2, 3]
    assert tokenizer.bos_token_id == 0


def test_all_end_tokens_of_a_folder_are_found(tmp_path):
    tokenizer = Tokenizer.from_folder(folder(tmp_path, generation={"eos_token_id": [4, 1]}))
    assert tokenizer.eos_token_ids == {1, 4}


def test_chat_from_a_folder_adds_no_second_bos(tmp_path):
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}{{ eos_token }}"
    tokenizer = Tokenizer.from_folder(folder(tmp_path, bos_in_template=True, template=template))
    assert tokenizer.encode_chat([{"role": "user", "content": "ab"}]) == [0, 2, 3, 1]


def test_the_default_of_several_named_templates_is_used(tmp_path):
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    assert Tokenizer.from_folder(folder(tmp_path, config={"chat_template": named})).render_chat(CHAT) == "yes"


def test_without_a_template_the_error_says_what_to_do(tmp_path):
    tokenizer = Tokenizer.from_folder(folder(tmp_path))
    assert not tokenizer.has_chat_template
    with pytest.raises(TokenizerError, match=r"expected a chat template, got none.*plain text"):
        tokenizer.render_chat(CHAT)


def test_missing_and_damaged_files_of_a_folder(tmp_path):
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: expected a tokenizer\.json, got none"):
        Tokenizer.from_folder(tmp_path)
    path = folder(tmp_path) / "tokenizer.json"
    whole = path.read_bytes()
    for cut in range(0, len(whole), 97):
        path.write_bytes(whole[:cut])
        with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
            Tokenizer.from_folder(tmp_path)
    path.write_bytes(whole)
    (tmp_path / "tokenizer_config.json").write_text("[1")
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json"):
        Tokenizer.from_folder(tmp_path)


def test_a_damaged_tokenizer_never_gives_another_kind_of_error(tmp_path):
    path = folder(tmp_path) / "tokenizer.json"
    whole = path.read_bytes()
    for what, copy in damaged_copies(whole, range(0, len(whole), 3)):
        path.write_bytes(copy)
        try:
            Tokenizer.from_folder(tmp_path).encode("ab")
        except LatentKVError:
            pass
        except Exception as error:
            pytest.fail(f"{what}: {type(error).__name__}: {error}")


def render(source, **more):
    template = ChatTemplate(source, special_tokens={"bos_token": "<s>"}, origin="m")
    return template.render([{"role": "user", "content": "<é&'>"}, {"role": "assistant", "content": "x"}], **more)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ messages[0] | tojson }}", '{"role": "user", "content": "<é&\'>"}'),
        ("  {% if true %}\n  a\n  {% endif %}\nb", "  a\nb"),
        ("{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.content }}{% endfor %}", "<é&'>"),
        ("{% generation %}{{ messages[1].content }}{% endgeneration %}!", "x!"),
        ("{{ bos_token }}{{ tools is none }}{{ add_generation_prompt }}", "<s>TrueTrue"),
        ("{{ strftime_now('%Y') | length }}", "4"),
    ],
)
def test_template_conventions(source, expected):
    assert render(source) == expected


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "Roles must alternate"),
        ("{% for %}", "cannot be read"),
        ("{{ messages[9].content.x }}", "does not accept"),
        ("{{ 1 / 0 }}", "division"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "does not accept"),
    ],
)
def test_template_errors_are_sentences(source, reason):
    with pytest.raises(TokenizerError, match=reason):
        render(source)
