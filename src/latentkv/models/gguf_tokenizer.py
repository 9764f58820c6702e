"""Builds the tokenizer that a GGUF file describes: byte-level BPE ("gpt2") or SentencePiece BPE ("llama").

A file names its way of splitting text before BPE (`tokenizer.ggml.pre`) and does not contain it. The patterns here
are those of the models' own tokenizer.json files; a name that is not in the table is refused, since a wrong split
gives other tokens without any error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from latentkv.errors import TokenizerError, sentence
from latentkv.models.weights.gguf_file import GGUFFile

_CONTROL, _USER_DEFINED, _UNKNOWN = 3, 4, 2

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS_AND_REST = r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTION + _WORDS_AND_REST % "{1,3}"
_QWEN2 = _CONTRACTION + _WORDS_AND_REST % ""
# The letters with case that DeepSeek's first tokenizer lists, as code points: several of them turn into other letters
# when an editor normalises Unicode.
_CASED_LETTERS = (
    "41-5a 61-7a b5 c0-d6 d8-f6 f8-1ba 1bc-1bf 1c4-293 295-2af 370-373 376 377 37b-37d 37f 386 388-38a 38c 38e-3a1 "
    "3a3-3f5 3f7-481 48a-52f 531-556 10a0-10c5 13a0-13f5 13f8-13fd 1c90-1cba 1cbd-1cbf 1d00-1d2b 1d6b-1d77 "
    "1d79-1d9a 1e00-1f15 1f18-1f1d 1f20-1f45 1f48-1f4d 1f50-1f57 1f59 1f5b 1f5d 1f5f-1f7d 1f80-1fb4 1fb6-1fbc 1fbe "
    "1fc2-1fc4 1fc6-1fcc 1fd0-1fd3 1fd6-1fdb 1fe0-1fec 1ff2-1ff4 1ff6-1ffc 2102 2107 210a-2113 2115 2119-211d 2124 "
    "2126 2128 212a-212d 212f-2134 2139 213c-213f 2145-2149 214e 2183 2184 2c00-2c7b 2c7e-2ce4 2ceb-2cee 2cf2 2cf3 "
    "a640-a66d a680-a69b a722-a76f a771-a787 a78b-a78e ab70-abbf fb00-fb06 fb13-fb17 ff21-ff3a ff41-ff5a "
    "10400-1044f 104b0-104d3 104d8-104fb 10c80-10cb2 10cc0-10cf2 118a0-118df 1e900-1e943"
)
_DEEPSEEK_CJK = "[一-龥ࠀ-一가-퟿]+"
_DEEPSEEK_V3_WORDS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _code_points(ranges: str) -> str:
    """The inside of a regular expression's character class from hexadecimal ranges."""
    return re.sub("[0-9a-f]+", lambda match: chr(int(match[0], 16)), ranges).replace(" ", "")


# Patterns applied one after the other to what the former ones left whole.
_SPLITS: Mapping[str, tuple[str, ...]] = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "llama-bpe": (_LLAMA3,),
    "glm4": (_LLAMA3,),
    "qwen2": (_QWEN2,),
    "deepseek-llm": (
        r"[\r\n]",
        rf"\s?[{_code_points(_CASED_LETTERS)}]+",
        r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
        r"\s+$",
        _DEEPSEEK_CJK,
        r"\p{N}+",
    ),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, r"\p{N}"),
    "deepseek-v3": (r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK_V3_WORDS),
}
_ALIASES = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2", "gpt2": "gpt-2"}


def build_tokenizer(file: GGUFFile) -> Tokenizer:
    """The tokenizer of `file`, without a template that adds tokens at either end.

    Raises TokenizerError for a kind of tokenizer or of splitting that is not known and for damaged vocabularies.
    """
    kind = file.metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        tokenizer = _byte_level(file)
    elif kind == "llama":
        tokenizer = _sentencepiece(file)
    else:
        raise TokenizerError(sentence(f"{file.path}: tokenizer.ggml.model", expected="gpt2 or llama", got=repr(kind)))
    _add_special_tokens(tokenizer, file)
    return tokenizer


def adds_bos(file: GGUFFile) -> bool:
    """Whether the model expects a BOS token in front of plain text; older files leave it to the tokenizer's kind."""
    stated = file.metadata.get("tokenizer.ggml.add_bos_token")
    if isinstance(stated, bool):
        return stated
    return file.metadata.get("tokenizer.ggml.model") == "llama" or _pre_name(file) == "llama-bpe"


def token_list(file: GGUFFile, key: str, kind: type) -> list[Any]:
    """The array `tokenizer.ggml.<key>`; raises TokenizerError unless it is a list of `kind`."""
    values = file.metadata.get(f"tokenizer.ggml.{key}")
    if isinstance(values, list) and values and all(type(value) is kind for value in values):
        return values
    got = "nothing" if values is None else f"{type(values).__name__} of another kind or empty"
    raise TokenizerError(sentence(f"{file.path}: tokenizer.ggml.{key}", expected=f"a list of {kind.__name__}", got=got))


def _pre_name(file: GGUFFile) -> str:
    name = file.metadata.get("tokenizer.ggml.pre", "default")
    return _ALIASES.get(name, name) if isinstance(name, str) else repr(name)


def _byte_level(file: GGUFFile) -> Tokenizer:
    name = _pre_name(file)
    if name not in _SPLITS:
        expected = f"one of {', '.join(sorted(_SPLITS))}"
        remedy = "Use the model's safetensors folder, which has its tokenizer.json."
        raise TokenizerError(
            sentence(f"{file.path}: tokenizer.ggml.pre", expected=expected, got=repr(name), remedy=remedy)
        )
    merges = []
    for merge in token_list(file, "merges", str):
        # The first half may itself be a space, so the separator is looked for from the second character on.
        middle = merge.find(" ", 1)
        if middle < 0:
            raise TokenizerError(sentence(f"{file.path}: a merge", expected="two tokens", got=repr(merge)))
        merges.append((merge[:middle], merge[middle + 1 :]))
    tokenizer = Tokenizer(_bpe(file, _vocabulary(file), merges, ignore_merges=name == "llama-bpe"))
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in _SPLITS[name]]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(file: GGUFFile) -> Tokenizer:
    """BPE whose merges are every pair of tokens that makes a third one, best score first, with bytes as a fallback."""
    vocabulary = _vocabulary(file)
    scores = token_list(file, "scores", float)
    tokens = token_list(file, "tokens", str)
    if len(scores) != len(tokens):
        raise TokenizerError(sentence(f"{file.path}: token scores", expected=len(tokens), got=len(scores)))
    unknown = file.metadata.get("tokenizer.ggml.unknown_token_id", 0)
    known = type(unknown) is int and 0 <= unknown < len(tokens)
    tokenizer = Tokenizer(
        _bpe(
            file,
            vocabulary,
            _merges_from_scores(vocabulary, scores),
            unk_token=tokens[unknown] if known else None,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = file.metadata.get("tokenizer.ggml.add_space_prefix", True) is not False
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    unspaced: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*unspaced, decoders.Strip(" ", 1, 0)] if prefix else unspaced)
    return tokenizer


def _merges_from_scores(vocabulary: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    ranked = []
    for token, index in vocabulary.items():
        for middle in range(1, len(token)):
            left, right = vocabulary.get(token[:middle]), vocabulary.get(token[middle:])
            if left is not None and right is not None:
                ranked.append((-scores[index], index, left, right, token[:middle], token[middle:]))
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]


def _vocabulary(file: GGUFFile) -> dict[str, int]:
    vocabulary: dict[str, int] = {}
    for index, token in enumerate(token_list(file, "tokens", str)):
        vocabulary.setdefault(token, index)
    return vocabulary


def _bpe(file: GGUFFile, vocabulary: dict[str, int], merges: list[tuple[str, str]], **options: Any) -> models.BPE:
    try:
        return models.BPE(vocab=vocabulary, merges=merges, **options)
    # The tokenizers library raises plain Exception for merges of tokens that do not exist.
    except Exception as error:
        raise TokenizerError(f"{file.path}: the vocabulary does not fit its merges: {error}.") from None


def _add_special_tokens(tokenizer: Tokenizer, file: GGUFFile) -> None:
    tokens = token_list(file, "tokens", str)
    if file.metadata.get("tokenizer.ggml.token_type") is None:
        return
    types = token_list(file, "token_type", int)
    pairs = list(zip(tokens, types, strict=False))
    special = [AddedToken(token, special=True, normalized=False) for token, kind in pairs if kind == _CONTROL and token]
    plain = [AddedToken(token, normalized=False) for token, kind in pairs if kind == _USER_DEFINED and token]
    if file.metadata.get("tokenizer.ggml.model") == "llama":
        special += [AddedToken(token, special=True, normalized=False) for token, kind in pairs if kind == _UNKNOWN]
    tokenizer.add_tokens(plain)
    tokenizer.add_special_tokens(special)
