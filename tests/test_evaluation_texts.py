"""benchmarks/evaluation_texts.py: WikiText's tokenisation undone, and nothing with unknown words left."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

SOURCE = """
 = Title =

 The " lobster " ( H. gammarus ) costs $ 3 @,@ 000 , or not ? A <unk> follows . It weighs 2 @.@ 5 kg , i.e. 5 lb .

 = = Section = =

 Only <unk> here .
 It is red @-@ tipped ; claws ' tips : " white " .
"""


def script() -> ModuleType:
    path = Path(__file__).parent.parent / "benchmarks" / "evaluation_texts.py"
    spec = importlib.util.spec_from_file_location("evaluation_texts", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_wikitext_reads_as_it_was_written() -> None:
    assert script().clean_wikitext(SOURCE).splitlines() == [
        'The "lobster" (H. gammarus) costs $3,000, or not? It weighs 2.5 kg, i.e. 5 lb.',
        'It is red-tipped; claws\' tips: "white".',
    ]


def test_pythons_library_is_text() -> None:
    text = script().python_sources()
    assert "def " in text
    assert len(text) > 200_000
