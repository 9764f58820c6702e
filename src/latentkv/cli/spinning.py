"""How long threads that wait for each other stay awake: about a millisecond in our own processes.

A thread of OpenMP that waits for its team spins, by GNU's default some 10 ms and more. Where anything else computes on
the machine, it spins on the core that the thread it waits for was taken from: beside other work a decode step then
takes four times as long as with short waits, and with idle cores nothing is won (docs/decode.md has the numbers).
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

# A pause is 40 to 140 cycles, so this is 0.3 to 1 ms: longer than any gap between two kernels of a step.
SPINS = 20_000


def limit_spinning(environ: MutableMapping[str, str] = os.environ) -> None:
    """Unless the user chose otherwise; the OpenMP library reads it once, when torch is imported."""
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & environ.keys():
        environ["GOMP_SPINCOUNT"] = str(SPINS)
