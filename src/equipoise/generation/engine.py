"""An engine that writes the rollouts of a policy that learns: a server that loads its adapter as it goes.

What is asked of it is vLLM's protocol: `POST /v1/load_lora_adapter` and `/v1/unload_lora_adapter`, and
`/v1/completions` with prompts in token ids, so that nothing stands between the policy's tokens and the
server's. One request per response, each with a seed of its own.
"""

import asyncio
import math
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import Field, JsonValue, field_validator

from equipoise.config import IsAside
from equipoise.errors import RunStoppedError
from equipoise.generation.client import Client, ServerConfig, base_address, read_key
from equipoise.generation.endpoint import request_seed
from equipoise.generation.local import LocalGenerator
from equipoise.generation.replies import FailedError, Reply, first_choice, whole_text
from equipoise.generation.rollouts import Rollout
from equipoise.generation.session import Tries, first_error, run_to_end
from equipoise.models.chat import decode_response, encode_response, end_of_turn
from equipoise.progress import say
from equipoise.protocols import Sampling
from equipoise.records import Prompt, messages_of

_MENDED = "expected the same model and tokens on both sides"
_PLAIN: dict[str, JsonValue] = {
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""What a server would else take from the model's generation config: draws that are not the policy's."""


class EngineConfig(ServerConfig):
    """A server that writes rollouts, on the base model of `roles.policy`."""

    place: ClassVar[str] = "rollout.engine"

    url: Annotated[str, IsAside()]
    """Base address, for example http://localhost:8000/v1."""
    adapter_dir: Annotated[Path, IsAside()]
    """Folder that this run and the server both see under this path; the actor's adapter is handed over in
    it."""
    concurrency: Annotated[int, Field(ge=1), IsAside()] = 64
    """Requests at a time, each of one response."""

    @field_validator("url")
    @classmethod
    def _is_base(cls, url: str) -> str:
        return base_address(url)

    @property
    def address(self) -> str:
        """What is asked: completions, below the base address."""
        return f"{self.url}/completions"


class _Completion(NamedTuple):
    """One response as a server gives it."""

    ids: list[int] | None
    """None of a server that gives none."""
    text: str
    is_cut: bool
    stop: int | None
    """The token that ended it, where the server names one."""
    logps: tuple[float, ...]


class _Asked(NamedTuple):
    """One response that is wanted."""

    prompt: Prompt
    sample: int
    prompt_ids: list[int]

    @property
    def name(self) -> str:
        """Return its name, which is that of the rollout."""
        return f"{self.prompt.id}#{self.sample}"


class Engine:
    """One server, asked as a run goes."""

    def __init__(self, settings: EngineConfig) -> None:
        """Read the key; a named variable that is not set raises ConfigError."""
        self.settings = settings
        self._key = read_key(settings)

    def load(self, name: str, folder: Path) -> None:
        """Let the server load an adapter by a name that no other weights ever have.

        A server may keep keys and values of prompts under an adapter's name, so that one that changes under
        its name would read prompts with the old weights.

        Raises:
            RunStoppedError: The server is gone, or does not load it.
        """
        try:
            self._tell("load_lora_adapter", {"lora_name": name, "lora_path": str(folder.absolute())})
        except FailedError as failed:
            if failed.status == 400 and "already been loaded" in failed.reason:
                return  # at a try whose reply was lost
            raise RunStoppedError(f"{self.settings.url}: {_unloadable(failed, folder)}") from failed

    def unload(self, name: str) -> None:
        """Let the server forget an adapter, if it can be reached: what is not used is in nobody's way."""
        try:
            self._tell("unload_lora_adapter", {"lora_name": name}, tries=1)
        except FailedError:
            return

    def roll_out(
        self, name: str, generator: LocalGenerator, prompts: Sequence[Prompt], sampling: Sampling
    ) -> list[list[Rollout]]:
        """Let an adapter that is loaded write `sampling.samples` responses per prompt.

        Args:
            name: The adapter.
            generator: The same policy in this process, for its tokens.
            prompts: With different ids.
            sampling: As `rollouts.roll_out` takes it.

        Raises:
            RunStoppedError: The server is gone, or a response is none of the policy's.
            DataError: A prompt and its response do not fit the model.
        """
        asked = [
            _Asked(prompt, k, ids)
            for prompt in prompts
            for ids in [generator.encode(messages_of(prompt.prompt), sampling)]
            for k in range(sampling.samples)
        ]
        written = run_to_end(self._write(name, generator, asked, sampling))
        size = sampling.samples
        return [written[start : start + size] for start in range(0, len(written), size)]

    async def _write(
        self, name: str, generator: LocalGenerator, asked: Sequence[_Asked], sampling: Sampling
    ) -> list[Rollout]:
        same: dict[str, JsonValue] = {
            "model": name,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            **_PLAIN,
            "stop_token_ids": [*sorted(generator.stop_ids)],
            "logprobs": 1,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,  # of servers that know nothing of the former
        }
        found: dict[int, Rollout] = {}
        async with Client(self.settings, self._key) as client:
            tries = Tries(client, self.settings)
            todo = iter(enumerate(asked))

            async def work() -> None:
                for number, one in todo:
                    seed = request_seed(sampling.seed, one.prompt.id, one.sample)
                    body: dict[str, JsonValue] = {**same, "prompt": [*one.prompt_ids], "seed": seed}
                    read = partial(self._read, generator, one, sampling.max_new_tokens)
                    try:
                        found[number] = await tries.tried(body, one.name, read, self.settings.tries)
                    except FailedError as failed:
                        where = f"{self.settings.url}: '{one.name}'"
                        raise RunStoppedError(f"{where}: {failed.reason}") from failed

            with first_error():
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.settings.concurrency, len(asked))):
                        group.create_task(work())
        return [found[number] for number in range(len(asked))]

    def _read(self, generator: LocalGenerator, one: _Asked, limit: int, reply: Reply) -> Rollout:
        """Return a reply as a rollout; one that is none of the policy's raises FailedError."""
        found = _completion(reply)
        if found.ids is None:
            _say_once(
                f"{self.settings.url}: gives no token ids; its texts are read in the policy's tokens, which"
                " may be others than it drew"
            )
            return _from_text(generator, one, found, limit)
        ids = list(found.ids)
        if not found.is_cut and (not ids or ids[-1] not in generator.stop_ids):
            ids.append(found.stop if found.stop in generator.stop_ids else end_of_turn(generator.tokenizer))
        _require_tokens(generator, ids, limit)
        is_truncated = ids[-1] not in generator.stop_ids
        text = decode_response(generator.tokenizer, ids if is_truncated else ids[:-1])
        logps = found.logps if len(found.logps) == len(ids) else ()
        return Rollout(one.prompt, one.sample, one.prompt_ids, ids, text, is_truncated, logps)

    def _tell(self, what: str, body: dict[str, JsonValue], tries: int | None = None) -> None:
        async def tell() -> None:
            async with Client(self.settings, self._key) as client:
                session = Tries(client, self.settings)
                await session.told(f"{self.settings.url}/{what}", body, tries or self.settings.tries)

        run_to_end(tell())


def _completion(reply: Reply) -> _Completion:
    choice = first_choice(reply)
    finish, text, stop = (choice.get(name) for name in ("finish_reason", "text", "stop_reason"))
    if finish not in ("stop", "length"):
        raise FailedError(f"the response was broken off (finish_reason {finish!r:.40})")
    listed: Any = choice.get("logprobs")
    listed = listed if isinstance(listed, dict) else {}
    ids = _ids(choice, listed)
    if ids is None and not isinstance(text, str):
        raise FailedError("the reply has neither token ids nor a text", retry=False)
    logps: Any = listed.get("token_logprobs")
    is_whole = isinstance(logps, list) and all(isinstance(p, int | float) and math.isfinite(p) for p in logps)
    return _Completion(
        ids,
        whole_text(text) if isinstance(text, str) else "",
        finish == "length",
        stop if isinstance(stop, int) else None,
        tuple(map(float, logps)) if is_whole else (),
    )


def _ids(choice: dict[str, Any], listed: dict[str, Any]) -> list[int] | None:
    """Return the token ids of a choice: given as such, or as tokens named `token_id:N`; None without."""
    ids: Any = choice.get("token_ids")
    if ids is None:
        words: Any = listed.get("tokens")
        is_named = isinstance(words, list) and all(str(word).startswith("token_id:") for word in words)
        if not is_named or not words:
            return None
        ids = [str(word).removeprefix("token_id:") for word in words]
    try:
        return [int(i) for i in ids]
    except (TypeError, ValueError) as exc:
        raise FailedError(f"token_ids: expected numbers, got {ids!r:.40}", retry=False) from exc


def _from_text(generator: LocalGenerator, one: _Asked, found: _Completion, limit: int) -> Rollout:
    """Read a text in the policy's tokens, no more of them than were allowed."""
    text = found.text.removeprefix(" ") if generator.tokenizer.chat_template is None else found.text
    ids = encode_response(generator.tokenizer, text)  # the last one ends it
    if found.is_cut:
        ids.pop()
    is_truncated = found.is_cut or len(ids) > limit
    ids = ids[:limit]
    if not ids:
        raise FailedError(f"the response is empty and yet as long as was allowed; {_MENDED}", retry=False)
    return Rollout(one.prompt, one.sample, one.prompt_ids, ids, text, is_truncated, ())


def _require_tokens(generator: LocalGenerator, ids: Sequence[int], limit: int) -> None:
    """Raise FailedError for what the policy could not have drawn."""
    size = generator.model.get_input_embeddings().num_embeddings
    beyond = next((i for i in ids if not 0 <= i < size), None)
    early = next((i for i in ids[:-1] if i in generator.stop_ids), None)
    wrong = None
    if not ids:
        wrong = "the response is empty and yet as long as was allowed"
    elif beyond is not None:
        wrong = f"token {beyond} is none of the policy's {size}"
    elif early is not None:
        wrong = f"the response goes on after token {early}, which ends it"
    elif len(ids) > limit and ids[limit] not in generator.stop_ids:
        wrong = f"the response has {len(ids)} tokens of the {limit} that are allowed"
    if wrong is not None:
        raise FailedError(f"{wrong}; {_MENDED}", retry=False)


def _unloadable(failed: FailedError, folder: Path) -> str:
    """Return why an adapter was not loaded, and what helps."""
    if failed.status == 404 and failed.reason in ("status 404", "status 404: Not Found"):
        return (
            "the server loads no adapters as it runs (status 404); expected vLLM with --enable-lora and the"
            " environment variable VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
        )
    where = f"; does it see {folder.absolute()} under this path?" if failed.status == 404 else ""
    return f"does not load the actor's adapter: {failed.reason}{where}"


@lru_cache
def _say_once(message: str) -> None:
    say(message)
