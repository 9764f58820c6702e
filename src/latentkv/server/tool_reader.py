"""Finds tool calls in text that comes in pieces; everything else passes through as content."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from latentkv.engine.text import overlap
from latentkv.server.tool_syntax import Call, ToolSyntax


class ToolReader:
    """Content and calls of one output.

    names: of the tools there are; a call of another name is content, like everything that cannot be parsed.
    White space between and around calls belongs to neither.
    """

    def __init__(self, syntax: ToolSyntax, names: Collection[str]) -> None:
        self.calls = 0
        self._syntax = syntax
        self._names = names
        self._text = ""
        self._blank = ""
        self._inside = False
        self._told = False

    def push(self, piece: str) -> Iterator[str | Call]:
        """What is certain after this piece: content and calls, in order."""
        self._text += piece
        yield from self._scan(last=False)

    def finish(self) -> Iterator[str | Call]:
        """What is left when the output has ended."""
        yield from self._scan(last=True)
        if self._inside and self._syntax.end:
            yield from self._content(self._syntax.begin + self._text)
        elif self._inside:
            yield from self._call(self._text)
        if self._blank and not self.calls:
            yield self._blank

    def _scan(self, *, last: bool) -> Iterator[str | Call]:
        while not self._inside or (self._syntax.end and self._syntax.end in self._text):
            if self._inside:
                body, _, self._text = self._text.partition(self._syntax.end)
                self._inside = False
                yield from self._call(body)
                continue
            place, mark = self._next_mark()
            if mark is None:
                held = 0 if last else max(overlap(self._text, mark) for mark in self._marks())
                yield from self._content(self._text[: len(self._text) - held])
                self._text = self._text[len(self._text) - held :]
                return
            yield from self._content(self._text[:place])
            self._text = self._text[place + len(mark) :]
            self._inside = mark == self._syntax.begin

    def _next_mark(self) -> tuple[int, str | None]:
        if self._syntax.alone and (self._told or self._text.lstrip().find(self._syntax.begin) != 0):
            return -1, None
        found = [(self._text.find(mark), mark) for mark in self._marks() if mark in self._text]
        return min(found) if found else (-1, None)

    def _marks(self) -> tuple[str, ...]:
        return (self._syntax.begin, *self._syntax.wrappers)

    def _call(self, body: str) -> Iterator[str | Call]:
        call = self._syntax.parse(body)
        if call is None or call.name not in self._names:
            yield from self._content(self._syntax.begin + body + self._syntax.end)
            return
        self.calls += 1
        self._blank = ""
        yield call

    def _content(self, text: str) -> Iterator[str]:
        """Content without the white space at its end, which waits for more."""
        stripped = text.rstrip()
        if stripped:
            yield self._blank + stripped
            self._blank = ""
            self._told = True
        self._blank += text[len(stripped) :]
        if self.calls and not self._told:
            self._blank = ""
