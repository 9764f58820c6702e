"""Which replica has a prompt's beginning in its cache: a guess from what was sent where. Knows no Ray and no tokens.

A prompt is told by a chain of digests, one for each piece of its text, each over everything before it too: two prompts
share as many digests as they share pieces. A replica that got a chain is taken to hold it until it is forgotten here.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

PIECE_CHARACTERS = 256
MOST_PIECES = 64
MOST_DIGESTS = 100_000
Digest = bytes


def prompt_digests(body: bytes) -> tuple[Digest, ...]:
    """The chain of a request's prompt or messages; empty for what is neither, and for less than one whole piece."""
    try:
        request = json.loads(body)
    except ValueError:
        return ()
    if not isinstance(request, dict):
        return ()
    text = _text(request.get("messages") or request.get("prompt") or "")
    digest = hashlib.blake2b(str(request.get("model")).encode("utf-8", "replace"), digest_size=16)
    chain = []
    for start in range(0, min(len(text), PIECE_CHARACTERS * MOST_PIECES), PIECE_CHARACTERS):
        piece = text[start : start + PIECE_CHARACTERS]
        if len(piece) == PIECE_CHARACTERS:
            digest.update(piece.encode("utf-8", "replace"))
            chain.append(digest.digest())
    return tuple(chain)


def _text(value: Any) -> str:
    """Prompts as text are themselves; conversations and token ids as JSON, which begins alike where they do."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


@dataclass
class PrefixTable:
    """Who got which beginnings, the least recently used forgotten first.

    imbalance: requests that a replica with the prefix may have more than the least busy one
    """

    imbalance: int = 8
    most_digests: int = MOST_DIGESTS
    _owners: OrderedDict[Digest, str] = field(default_factory=OrderedDict)

    def ranked(self, chain: Sequence[Digest], loads: Mapping[str, int]) -> list[str]:
        """Replicas by preference: who has the longest beginning unless it is too busy, then the least busy first."""
        order = sorted(loads, key=lambda replica: loads[replica])
        for digest in reversed(chain):
            owner = self._owners.get(digest)
            if owner is not None and owner in loads:
                if loads[owner] - loads[order[0]] <= self.imbalance:
                    order.remove(owner)
                    order.insert(0, owner)
                break
        return order

    def sent(self, chain: Sequence[Digest], replica: str) -> None:
        """Take note that a request with this chain went to `replica`."""
        for digest in chain:
            self._owners[digest] = replica
            self._owners.move_to_end(digest)
        while len(self._owners) > self.most_digests:
            self._owners.popitem(last=False)

    def keep(self, replicas: Sequence[str]) -> None:
        """Forget what went to others: they are gone, and their caches with them."""
        alive = set(replicas)
        for digest in [digest for digest, owner in self._owners.items() if owner not in alive]:
            del self._owners[digest]
