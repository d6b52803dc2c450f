"""What `equipoise serve` can be told, and the keys, which come from the environment alone."""

import hashlib
import hmac
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from equipoise.config import Config
from equipoise.errors import ConfigError
from equipoise.moderation.batcher import Batching
from equipoise.moderation.default import NAME, GuardPath
from equipoise.moderation.gateway import GatewayConfig
from equipoise.moderation.guard import Runtime
from equipoise.moderation.streaming import StreamConfig

KEYS = "EQUIPOISE_API_KEYS"
"""Environment variable of the keys that clients may show, separated by commas."""

_HEADERS = ("x-api-key", "api-key", "ocp-apim-subscription-key")
"""Where clients of other services put a key, beside `Authorization: Bearer`."""

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Limits(Config):
    """What a request may bring."""

    max_request_bytes: Count = 1 << 20
    max_texts: Count = 64
    """Texts that one request may have judged."""
    max_chars: Count = 100_000
    """Characters of one text, with the conversation it stands in."""
    body_seconds: Seconds = 30.0
    """Time in which a request must have come whole."""


class ServeConfig(Config):
    """Settings of `serve`."""

    guard: GuardPath = Field(default=Path(NAME), validate_default=True)
    policies: tuple[str, ...] = ()
    """Policies to serve: files, or names of the guard's own. The first that is enforced is the default; the
    guard's own come after."""
    runtime: Runtime = "torch"
    device: str = "auto"
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")] = "equipoise-guard"
    """What the guard is called where a protocol names a model."""
    languages: Annotated[tuple[str, ...], Field(min_length=1)] = ("en",)
    """Languages the guard was trained on, ISO 639-1; a text in another one is marked for review."""
    gateway: GatewayConfig | None = None
    """A chat server behind the guard; `--upstream URL` sets its address."""
    stream: StreamConfig = StreamConfig()
    """How `/v1/guard/stream` judges; the gateway has settings of its own."""
    policy_by_request: bool = True
    """Whether a request may name a policy, or a threshold; false where it comes from whoever is guarded. The
    gateway has a setting of its own."""
    batching: Batching = Batching()
    limits: Limits = Limits()
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """0 takes a free one."""
    drain_seconds: Seconds = 30.0
    """Time that accepted requests have to finish when the server is told to stop."""

    @model_validator(mode="after")
    def _fits_the_queue(self) -> Self:
        if self.limits.max_texts > self.batching.max_queue:
            raise ValueError(
                f"limits.max_texts: more than the queue holds, got {self.limits.max_texts}; "
                f"expected at most batching.max_queue = {self.batching.max_queue}"
            )
        return self


class Keys:
    """The keys that open the server; without any it is open to all who reach it."""

    def __init__(self, keys: Sequence[str] = ()) -> None:
        """Keep digests, not the keys."""
        self._digests = [_digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        """Whether a key is asked for at all."""
        return bool(self._digests)

    def admit(self, headers: Mapping[str, str]) -> bool:
        """Return whether one of the headers shows a key; the time taken tells nothing of the keys."""
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        shown = [headers.get(name, "") for name in _HEADERS]
        shown.append(bearer.strip() if scheme.lower() == "bearer" else "")
        digests = [_digest(text.encode("latin-1")) for text in shown if text]
        found = [hmac.compare_digest(one, known) for one in digests for known in self._digests]
        return not self._digests or any(found)


def read_keys(environment: Mapping[str, str] = os.environ) -> Keys:
    """Return the keys of the environment; a variable that is set and holds none raises ConfigError."""
    if KEYS not in environment:
        return Keys()
    keys = [key.strip() for key in environment[KEYS].split(",") if key.strip()]
    if not keys:
        raise ConfigError(f"{KEYS}: is set and holds no key; expected keys separated by commas, or unset")
    return Keys(keys)


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()
