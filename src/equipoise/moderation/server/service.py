"""What the endpoints ask: verdicts by the guard that serves now, or an error; never a guess.

A reload loads a new guard beside the old one and swaps them; the old one finishes what it has accepted.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from equipoise.errors import ConfigError, DataError, EquipoiseError
from equipoise.models.windows import TextPair
from equipoise.moderation.batcher import ClosedError, OverloadedError
from equipoise.moderation.policies import Policy
from equipoise.moderation.server.engine import Ask, Engine, Judged
from equipoise.moderation.server.errors import RequestError
from equipoise.moderation.server.logs import event
from equipoise.moderation.server.metrics import Metrics
from equipoise.moderation.server.settings import Keys, ServeConfig
from equipoise.moderation.streaming import FAILURES

_RETRY_SECONDS = 1.0
"""Asked of clients while the server starts, stops or is stuck."""

Load = Callable[[Callable[[int, float], None]], Engine]
"""Loads a guard; it is given what counts its batches."""


class Service:
    """The guard that serves, and what is known of it; `start` loads it."""

    def __init__(self, settings: ServeConfig, load: Load, keys: Keys | None = None) -> None:
        """Prepare; nothing is loaded yet, and every question gets an error."""
        self.settings, self.keys = settings, keys or Keys()
        self.metrics = Metrics()
        self.engine: Engine | None = None
        self._load = load
        self._is_closing = False
        self._deadline: float | None = None
        self._reloading = asyncio.Lock()
        self._closing: set[asyncio.Task[bool]] = set()

    def start(self) -> None:
        """Load the guard; raises what is wrong with it."""
        self._use(self._load(self.metrics.batch))

    @property
    def ready_engine(self) -> Engine:
        """The guard that serves now; RequestError 503 where there is none that can answer."""
        if self.engine is None:
            raise RequestError(503, "no guard is loaded", after=_RETRY_SECONDS)
        if self._is_closing:
            raise RequestError(503, "the server is stopping", after=_RETRY_SECONDS)
        return self.engine

    def check_ready(self) -> Engine:
        """Return the guard that serves; RequestError 503 also where its work hangs."""
        engine = self.ready_engine
        if engine.batcher.is_stuck:
            raise RequestError(503, "the guard does not come back", after=_RETRY_SECONDS)
        return engine

    def policy(self, name: object) -> Policy:
        """Return the policy of that name, the default one for None; RequestError 400 where there is none."""
        if name is not None and not isinstance(name, str):
            raise RequestError(400, "policy: expected a name", param="policy")
        try:
            return self.ready_engine.policy(name)
        except ConfigError as exc:
            raise RequestError(400, f"policy: {exc}", param="policy") from exc

    def choice(self, name: object, *, allowed: bool | None = None) -> Policy:
        """Return the policy that a request names; RequestError 400 also where it may not name one.

        Args:
            name: What the request says; the default policy is for all to have.
            allowed: Whether a request may choose; as the settings have it where None.
        """
        if name is not None:
            self.check_choice("policy", allowed=allowed)
        return self.policy(name)

    def check_choice(self, field: str, *, allowed: bool | None = None) -> None:
        """Raise RequestError 400 where a request may not choose what it is judged by."""
        if not (self.settings.policy_by_request if allowed is None else allowed):
            raise RequestError(400, f"{field}: is not for a request to choose here", param=field)

    async def judge(self, texts: Sequence[TextPair], policy: Policy | None = None) -> list[Judged]:
        """Judge texts, in order, by a policy or the default one.

        Raises:
            RequestError: Any text is without a verdict; then all are.
        """
        engine = self.ready_engine
        self._check(texts, engine)
        asks = [Ask(text, policy or engine.default) for text in texts]
        try:
            found = await engine.batcher(asks)
        except OverloadedError as exc:
            self._refuse(
                "overload", RequestError(429, "too many requests; come again later", after=exc.after)
            )
        except ClosedError:
            self._refuse("closed", RequestError(503, "the server is stopping", after=_RETRY_SECONDS))
        except TimeoutError:
            self._refuse("timeout", RequestError(504, "the guard gave no answer in time"))
        except FAILURES as exc:
            event("no answer", level=logging.ERROR, error=exc)
            self._refuse("failure", RequestError(503, f"the guard gave no answer ({type(exc).__name__})"))
        self.metrics.judged(found)
        return found

    async def reload(self) -> str:
        """Load the guard and the policies again, and return the version that serves from now on.

        Raises:
            RequestError: The new one cannot serve; the old one goes on.
        """
        if self._reloading.locked():
            raise RequestError(409, "a reload is under way already")
        async with self._reloading:
            try:
                fresh = await asyncio.to_thread(self._load, self.metrics.batch)
            except (EquipoiseError, OSError, RuntimeError, ValueError) as exc:
                kept = self.engine.version if self.engine else "none"
                self.metrics.rejected("reload")
                event("reload failed", {"kept": kept}, level=logging.ERROR, error=exc)
                said = str(exc) if isinstance(exc, EquipoiseError) else type(exc).__name__
                raise RequestError(503, f"not loaded: {said}; {kept} goes on") from exc
            old = self.engine
            self._use(fresh)
            if old is not None:
                task = asyncio.create_task(old.batcher.close())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
            return fresh.version

    def begin_stop(self, seconds: float) -> None:
        """Take note that the server stops: all of it has this long."""
        self._deadline = time.monotonic() + seconds

    async def close(self) -> bool:
        """Accept nothing more and finish what was accepted; return False where that takes too long."""
        self._is_closing = True
        left = self.settings.drain_seconds
        if self._deadline is not None:
            left = self._deadline - time.monotonic()
            if left <= 0:  # requests were cut off already
                return False
        engines = [asyncio.create_task(self.engine.batcher.close())] if self.engine else []
        tasks = [*self._closing, *engines]
        if not tasks:
            return True
        _, late = await asyncio.wait(tasks, timeout=left)
        return not late

    def _use(self, engine: Engine) -> None:
        self.engine = engine
        taxonomy = engine.guard.card.taxonomy.name
        about = {"version": engine.version, "taxonomy": taxonomy, "policy": engine.default.name}
        self.metrics.loaded("done", about)
        event("guard loaded", about)

    def _check(self, texts: Sequence[TextPair], engine: Engine) -> None:
        limits = self.settings.limits
        if len(texts) > limits.max_texts:
            raise RequestError(413, f"{len(texts)} texts in one request; expected at most {limits.max_texts}")
        for text in texts:
            chars = len(text.prompt) + len(text.response or "")
            if chars > limits.max_chars:
                raise RequestError(413, f"a text of {chars} characters; expected at most {limits.max_chars}")
            try:
                engine.guard.require("prompt" if text.response is None else "response")
            except DataError as exc:
                raise RequestError(400, str(exc)) from exc

    def _refuse(self, reason: str, error: RequestError) -> NoReturn:
        self.metrics.rejected(reason)
        raise error
