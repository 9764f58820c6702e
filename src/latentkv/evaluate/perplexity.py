"""How well a model predicts a text with nothing rounded in its cache: the number that says what its weights cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from latentkv.cache.layout import FORMATS
from latentkv.errors import OptionError, sentence
from latentkv.evaluate.prediction import Prediction, predict, windows
from latentkv.evaluate.runs import Runs
from latentkv.models.model import Model

WINDOW_TOKENS = 1024


def perplexity(
    model: Model,
    token_ids: Sequence[int],
    *,
    window_tokens: int = WINDOW_TOKENS,
    progress: Callable[[int, int], None] | None = None,
) -> float:
    """exp of the mean negative log-likelihood, in windows that do not overlap, over a cache in float32.

    Every window is predicted from its second token on, without what came before it; a shorter rest is a window, too.
    progress: called with (tokens done, tokens in all)

    Raises OptionError for a text of less than two tokens.
    """
    pieces = windows(token_ids, tokens=min(window_tokens, model.max_position_embeddings))
    if not pieces:
        raise OptionError(sentence("text", expected="at least two tokens", got=len(token_ids)))
    runs = Runs(model, [FORMATS["f32"]], tokens=max(map(len, pieces)))
    total, done, tokens = Prediction(), 0, sum(map(len, pieces))
    for piece in pieces:
        total += predict(runs, piece, reference="f32")["f32"]
        done += len(piece)
        if progress is not None:
            progress(done, tokens)
    return total.perplexity
