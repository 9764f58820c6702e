"""Turns token ids into text as they arrive, never showing half a character. It knows no model and no prompt rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# What decoders write for bytes that are not (yet) a character.
_REPLACEMENT = "\ufffd"
# A character has at most four bytes and a token at least one: with more tokens pending, bytes are simply invalid.
_MOST_PENDING = 8


class TextStream:
    """Text of a growing list of tokens, piece by piece: the pieces joined are the decoded whole.

    decode: ids to text · after: ids that came before (a prompt to be continued), whose text is not repeated. Without
    them the text is taken to begin with the first token, and a SentencePiece decoder drops its leading space.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], *, after: Sequence[int] = ()) -> None:
        self._decode = decode
        # Decoding a little context along keeps the space that decoders strip from the first token only.
        self._window = list(after[-_MOST_PENDING:])
        self._told = len(decode(self._window)) if self._window else 0
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        self._pending.append(token_id)
        text = self._decode(self._window + self._pending)
        if text.endswith(_REPLACEMENT):
            if len(self._pending) < _MOST_PENDING:
                return ""
            return self._tell(text[:-1])
        piece = self._tell(text)
        if piece:
            self._window, self._pending = self._pending, []
            self._told = len(self._decode(self._window))
        return piece

    def flush(self) -> str:
        """What is still held back at the end, unfinished characters as replacement characters."""
        return self._tell(self._decode(self._window + self._pending))

    def _tell(self, text: str) -> str:
        piece = text[self._told :]
        self._told = max(self._told, len(text))
        return piece
