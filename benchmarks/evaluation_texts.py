"""Makes the texts that docs/cache_formats.md reports on.

    python benchmarks/evaluation_texts.py wikitext wikitext2-valid.txt wikitext.txt
    python benchmarks/evaluation_texts.py python python.txt

`wikitext` undoes the tokenisation of WikiText-2 (Merity et al. 2016, as distributed with pytorch/examples) and drops
headings and sentences with `<unk>` (almost every paragraph has one: whole ones would leave 4,000 words). `python` puts
modules of this interpreter's standard library one after another, whole and unchanged.
"""

from __future__ import annotations

import argparse
import re
import sysconfig
from pathlib import Path

# Modules of which about half is prose, and none is tables: 80,000 tokens.
MODULES = ("argparse", "ast", "bdb", "bisect", "calendar", "cmd", "codecs", "collections/__init__", "contextlib", "csv")

_JOINED = (
    (r" @([-,.])@ ", r"\1"),
    (r" ([.,;:!?%)\]}])", r"\1"),
    (r"([(\[{$£#]) ", r"\1"),
    (r" (n't|'s|'re|'ve|'ll|'d|'m)\b", r"\1"),
    (r"\b(\w+s) ' ", r"\1' "),
)


def clean_wikitext(text: str) -> str:
    """Paragraphs as they were written, without headings and without sentences that have unknown words."""
    paragraphs = (line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("="))
    known = (_known_sentences(paragraph) for paragraph in paragraphs)
    return "\n".join(_written(paragraph) for paragraph in known if paragraph)


def python_sources() -> str:
    """Modules of the standard library."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return "\n\n".join((folder / f"{name}.py").read_text(encoding="utf-8") for name in MODULES)


def _known_sentences(paragraph: str) -> str:
    sentences = re.split(r"(?<= [.!?]) (?=[A-Z])", paragraph)
    return " ".join(sentence for sentence in sentences if "<unk>" not in sentence)


def _written(line: str) -> str:
    for pattern, replacement in _JOINED:
        line = re.sub(pattern, replacement, line)
    return _quoted(line)


def _quoted(line: str) -> str:
    """Quotation marks stand alone in the source; they open and close in turns."""
    pieces = re.split(r' ?(?:^|(?<= ))"(?:$|(?= |[.,;:!?)]))', line)
    joined = pieces[0]
    for index, piece in enumerate(pieces[1:]):
        opening = index % 2 == 0
        space = " " if opening and joined and not joined.endswith((" ", "(")) else ""
        joined += f'{space}"{piece.lstrip() if opening else piece}'
    return joined


def main() -> None:
    """Write one text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="kind", required=True)
    wikitext = commands.add_parser("wikitext")
    wikitext.add_argument("source", type=Path)
    wikitext.add_argument("output", type=Path)
    commands.add_parser("python").add_argument("output", type=Path)
    options = parser.parse_args()
    if options.kind == "wikitext":
        text = clean_wikitext(options.source.read_text(encoding="utf-8"))
    else:
        text = python_sources()
    options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
