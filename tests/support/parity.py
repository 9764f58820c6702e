"""Where tests leave the errors that the parity table at the end of a run is made of."""

from __future__ import annotations

import pytest

# Family to its largest error, relative to the largest logit.
PARITY = pytest.StashKey[dict[str, float]]()
