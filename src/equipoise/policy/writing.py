"""Who writes the rollouts: the actor in this process, or an engine that follows it.

An engine gets the actor's adapter before every rollout, under a name that no other weights ever have: of this
run, of one before that was killed, or of another run on the same server.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from uuid import uuid4

from equipoise.errors import RunStoppedError
from equipoise.generation.engine import Engine
from equipoise.generation.local import LocalGenerator
from equipoise.generation.rollouts import Rollout, roll_out
from equipoise.models.roles import Roles
from equipoise.models.roles_load import save_actor
from equipoise.policy.ranks import gathered, rank
from equipoise.policy.settings import OnlineConfig
from equipoise.protocols import Sampling
from equipoise.records import Prompt

Write = Callable[[LocalGenerator, Sequence[Prompt], Sampling], list[list[Rollout]]]
"""Writes responses to prompts, as `roll_out` does: the actor, switched on, in the form of a generator."""


@contextmanager
def writer(config: OnlineConfig, roles: Roles, update: int) -> Iterator[Write]:
    """Give what writes the rollout of an update, counted from 0; an engine knows the actor until the end.

    Every process leaves the block when all have written.

    Raises:
        RunStoppedError: The engine is gone, or does not load the actor's adapter; in all processes.
        ConfigError: The key's variable is not set.
    """
    if config.rollout.engine is None:
        yield roll_out
        return
    engine = Engine(config.rollout.engine)
    part: Path | RunStoppedError | None = None
    if rank() == 0:
        try:
            part = _hand_over(engine, roles, update)
        except RunStoppedError as exc:
            part = exc
    found = gathered(part)[0]  # the first process's
    if isinstance(found, RunStoppedError):
        raise found
    assert found is not None
    try:
        yield partial(engine.roll_out, found.name)
    finally:
        if rank() == 0:
            engine.unload(found.name)
            shutil.rmtree(found, ignore_errors=True)


def _hand_over(engine: Engine, roles: Roles, update: int) -> Path:
    """Save the actor's adapter where the server finds it, let it load it, and return its folder."""
    place = engine.settings.adapter_dir / f"actor-{update + 1}-{uuid4().hex[:16]}"
    try:
        place.mkdir(parents=True)
    except OSError as exc:
        raise RunStoppedError(f"rollout.engine.adapter_dir: {place.parent}: {exc.strerror}") from exc
    save_actor(roles, place)
    try:
        engine.load(place.name, place)
    except RunStoppedError:
        shutil.rmtree(place, ignore_errors=True)
        raise
    return place
