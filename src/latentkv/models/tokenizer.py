"""Text to token ids and back, and conversations to prompts, from a Hugging Face folder or a GGUF file.

It knows nothing of the model's weights; which tokens end a generation is a fact it reports and does not act on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from latentkv.errors import TokenizerError, sentence
from latentkv.models.chat_template import ChatTemplate, Message
from latentkv.models.gguf_config import end_token_ids
from latentkv.models.gguf_tokenizer import adds_bos, build_tokenizer, token_list
from latentkv.models.text_stream import TextStream
from latentkv.models.weights.gguf_file import GGUFFile


class Tokenizer:
    """A model's tokenizer with its chat template.

    backend: the tokenizers library's object · add_bos: put `bos_token_id` in front of plain text; None leaves it to
    the backend's own post-processor · eos_token_ids: ids that end a generation · origin: the file, for messages
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        origin: str,
        add_bos: bool | None,
        bos_token_id: int | None,
        eos_token_ids: frozenset[int],
        template: ChatTemplate | None,
    ) -> None:
        self._backend = backend
        self._origin = origin
        self._add_bos = add_bos
        self._template = template
        self.bos_token_id = bos_token_id
        self.eos_token_ids = eos_token_ids

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """From `tokenizer.json` and, where present, the other files a Hugging Face checkpoint has beside it.

        Raises TokenizerError when `tokenizer.json` is missing or one of the files is damaged.
        """
        folder = Path(folder)
        backend = _load_backend(folder / "tokenizer.json")
        settings = _read_object(folder / "tokenizer_config.json")
        special = {key: text for key in _SPECIAL if (text := _token_text(settings.get(key))) is not None}
        source = _template_source(folder, settings)
        ends = _ids(_read_object(folder / "generation_config.json").get("eos_token_id"))
        ends |= _ids(_read_object(folder / "config.json").get("eos_token_id"))
        ends |= _ids(backend.token_to_id(special.get("eos_token", "")))
        add_bos = settings.get("add_bos_token")
        return cls(
            backend,
            origin=str(folder),
            add_bos=add_bos if isinstance(add_bos, bool) else None,
            bos_token_id=backend.token_to_id(special["bos_token"]) if "bos_token" in special else None,
            eos_token_ids=frozenset(ends),
            template=ChatTemplate(source, special_tokens=special, origin=str(folder)) if source else None,
        )

    @classmethod
    def from_gguf(cls, file: GGUFFile | str | Path) -> Tokenizer:
        """From the metadata of a GGUF file. Raises TokenizerError for kinds of tokenizers that are not supported."""
        file = file if isinstance(file, GGUFFile) else GGUFFile(file)
        backend = build_tokenizer(file)
        tokens = token_list(file, "tokens", str)
        ids = {kind: file.metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("bos", "eos", "padding")}
        special = {
            f"{'pad' if kind == 'padding' else kind}_token": tokens[id]
            for kind, id in ids.items()
            if type(id) is int and 0 <= id < len(tokens)
        }
        source = file.metadata.get("tokenizer.chat_template")
        origin = str(file.path)
        return cls(
            backend,
            origin=origin,
            add_bos=adds_bos(file),
            bos_token_id=ids["bos"] if "bos_token" in special else None,
            eos_token_ids=frozenset(id for id in end_token_ids(file) if 0 <= id < len(tokens)),
            template=ChatTemplate(source, special_tokens=special, origin=origin) if isinstance(source, str) else None,
        )

    @property
    def vocab_size(self) -> int:
        """Number of ids the tokenizer can give; the model's own vocabulary may be padded to more."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    @property
    def has_chat_template(self) -> bool:
        """Whether `render_chat` can work."""
        return self._template is not None

    def token_id(self, token: str) -> int | None:
        """The id of exactly this token, or None."""
        id: int | None = self._backend.token_to_id(token)
        return id

    def token(self, id: int) -> str | None:
        """The entry of the vocabulary, as the tokenizer writes it; None beyond it."""
        token: str | None = self._backend.id_to_token(id)
        return token

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Ids of `text`; special tokens written out in it are recognised.

        special_tokens: add what the model expects around plain text (a BOS where its configuration says so). Leave it
        off for text that a chat template made. Raises TokenizerError for text that is not valid Unicode.
        """
        extra = special_tokens and self._add_bos is not False
        try:
            ids = list(self._backend.encode(text, add_special_tokens=extra).ids)
        except TypeError:
            got = "bytes that are not UTF-8" if isinstance(text, str) else type(text).__name__
            raise TokenizerError(sentence("the prompt", expected="Unicode text", got=got)) from None
        if not extra:
            return ids
        if self._add_bos and self.bos_token_id is not None and ids[:1] != [self.bos_token_id]:
            ids.insert(0, self.bos_token_id)
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `ids`; ids beyond the vocabulary have none."""
        return str(self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    @property
    def chat_template(self) -> str | None:
        """The source of the chat template."""
        return self._template.source if self._template is not None else None

    def to_json(self) -> str:
        """The whole tokenizer as a `tokenizer.json`, for other libraries."""
        return str(self._backend.to_str())

    def render_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt text of a conversation. Raises TokenizerError without a template or when it refuses."""
        if self._template is None:
            raise TokenizerError(
                sentence(
                    self._origin,
                    expected="a chat template",
                    got="none",
                    remedy="Give the prompt as plain text (`latentkv generate`), or use the model's instruct version.",
                )
            )
        return self._template.render(messages, tools=tools, add_generation_prompt=add_generation_prompt)

    def encode_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        """Ids of a conversation: the template writes the special tokens, none is added to them."""
        text = self.render_chat(messages, add_generation_prompt=add_generation_prompt)
        return self.encode(text, special_tokens=False)

    def stream(self, *, after: Sequence[int] = (), skip_special_tokens: bool = True) -> TextStream:
        """A stream of text for ids as they are generated; `after`: the prompt's ids, when its text is continued."""
        return TextStream(lambda ids: self.decode(ids, skip_special_tokens=skip_special_tokens), after=after)

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, from which `from_folder` makes the same tokenizer."""
        folder = Path(folder)
        self._backend.save(str(folder / "tokenizer.json"))
        settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        if self._add_bos is not None:
            settings["add_bos_token"] = self._add_bos
        if self.bos_token_id is not None:
            settings["bos_token"] = self._backend.id_to_token(self.bos_token_id)
        if self._template is not None:
            settings |= self._template.special_tokens
            settings["chat_template"] = self._template.source
        text = json.dumps(settings, indent=2, ensure_ascii=False)
        (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


def _load_backend(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        remedy = "Models with only a tokenizer.model need it converted by `AutoTokenizer(...).save_pretrained(...)`."
        raise TokenizerError(sentence(str(path), expected="a tokenizer.json", got="none", remedy=remedy))
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    # The tokenizers library raises plain Exception for every kind of damage.
    except Exception as error:
        raise TokenizerError(sentence(str(path), expected="a tokenizer.json", got=f"damage ({error})")) from None
    # Files saved after training may carry these settings, which would cut or lengthen every prompt.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _read_object(path: Path) -> Mapping[str, Any]:
    """A JSON object, or an empty one when the file does not exist."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise TokenizerError(sentence(str(path), expected="a JSON object", got="something else"))
    return value


def _template_source(folder: Path, settings: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8", errors="replace")
    source = settings.get("chat_template")
    if isinstance(source, list):
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default")
    return source if isinstance(source, str) else None


def _token_text(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _ids(value: Any) -> set[int]:
    """One id, several or none, as configurations write them."""
    values = value if isinstance(value, list) else [value]
    return {id for id in values if type(id) is int}
