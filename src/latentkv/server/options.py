"""What an operator can set about the server itself. Plain values; knows neither HTTP nor the engine."""

from __future__ import annotations

from dataclasses import dataclass

from latentkv.errors import OptionError, sentence

DEFAULT_PORT = 8000
DEFAULT_MAX_QUEUE = 256
DEFAULT_MAX_BODY_BYTES = 4 * 1024**2
DEFAULT_REQUEST_TIMEOUT_S = 600.0
DEFAULT_SHUTDOWN_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Options of one server.

    model_names:         what `model` in a request may say; the first one is told in answers
    api_keys:            any of them opens /v1, /tokenize and /detokenize; none means that no key is asked for
    admin_keys:          any of them opens /admin; none means that /admin answers 403
    max_queue:           requests that may wait besides those that run; more are told 429
    max_body_bytes:      longest request body; more is told 413
    request_timeout_s:   from arrival to the last token; 0 for no limit
    shutdown_timeout_s:  how long running requests may take to finish after the first signal

    Raises OptionError for a value outside its range.
    """

    model_names: tuple[str, ...]
    api_keys: tuple[str, ...] = ()
    admin_keys: tuple[str, ...] = ()
    max_queue: int = DEFAULT_MAX_QUEUE
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES
    request_timeout_s: float = DEFAULT_REQUEST_TIMEOUT_S
    shutdown_timeout_s: float = DEFAULT_SHUTDOWN_TIMEOUT_S

    def __post_init__(self) -> None:
        if not self.model_names:
            raise OptionError(sentence("model_names", expected="one name or more", got="none"))
        for name in ("api_keys", "admin_keys"):
            if any(not key for key in getattr(self, name)):
                raise OptionError(sentence(name, expected="keys of one character or more", got="an empty one"))
        for name, least in (
            ("max_queue", 0),
            ("max_body_bytes", 1),
            ("request_timeout_s", 0),
            ("shutdown_timeout_s", 0),
        ):
            if not getattr(self, name) >= least:
                raise OptionError(sentence(name, expected=f"{least} or more", got=getattr(self, name)))
