"""How a server is reached: its settings, the connection, and one request.

Any server of the OpenAI chat protocol will do, or for scores one that takes and gives JSON. The key comes
from the environment and goes nowhere else: not into a config, a manifest or a message.
"""

import asyncio
import os
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from email.utils import parsedate_to_datetime
from functools import lru_cache
from ipaddress import ip_address
from math import isnan
from pathlib import Path
from time import time
from types import TracebackType
from typing import Annotated, Any, ClassVar, Self
from urllib.parse import urlsplit

import httpx2
from pydantic import Field, JsonValue, field_validator

from equipoise.config import Config, IsAside
from equipoise.errors import ConfigError
from equipoise.generation.replies import FailedError, Reply, assemble, message_of, parse_reply
from equipoise.generation.usage import Price

_CONNECT_SECONDS = 10.0
_LONGEST_PAUSE = 600.0
"""Seconds that a server's Retry-After is followed at most."""
_RETRIED = {408, 409, 425, 429}
"""Statuses below 500 that say "later" rather than "no"."""
_OURS = {
    "model",
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "seed",
    "n",
    "stream",
}


def base_address(url: str) -> str:
    """Return the base address of a server of the OpenAI protocol; one without a path gets `/v1`."""
    return url if urlsplit(url).path.strip("/") else f"{url}/v1"


class ServerConfig(Config):
    """A server, and how to treat it."""

    place: ClassVar[str] = "server"
    """Where these settings stand, for messages."""

    url: str
    """Its address."""
    api_key_env: Annotated[str | None, IsAside()] = None
    """Name of the environment variable that holds the key."""
    concurrency: Annotated[int, Field(ge=1), IsAside()] = 16
    """Requests at a time."""
    tries: Annotated[int, Field(ge=1), IsAside()] = 8
    """Requests for one answer before it is given up."""
    first_wait_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False), IsAside()] = 0.5
    """Wait after the first failure; it doubles from try to try, up to a minute."""
    timeout_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False), IsAside()] = 600.0
    """For one request, from first to last byte."""

    @field_validator("url")
    @classmethod
    def _is_address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("expected an address such as http://localhost:8000/v1")
        if parts.username or parts.password or parts.query:
            # no ValueError, whose message would show the address
            raise ConfigError(
                f"{cls.place}.url: holds a name, a password or a query; expected api_key_env for a key"
            )
        return url.rstrip("/")

    @property
    def address(self) -> str:
        """What is asked: the very address."""
        return self.url


class EndpointConfig(ServerConfig):
    """A server of the OpenAI chat protocol, and how to treat it."""

    place: ClassVar[str] = "endpoint"

    url: str
    """Base address, for example http://localhost:8000/v1."""
    stream: Annotated[bool, IsAside()] = False
    """Ask for a stream, for servers that do nothing else."""
    extra: dict[str, JsonValue] = {}
    """Fields to send as they are, for example chat_template_kwargs."""
    journal: Annotated[Path | None, IsAside()] = None
    """Keep the answers here, so that other runs and forced ones ask for none of them again. Without it
    they are kept until the run is complete."""
    price: Annotated[Price | None, IsAside()] = None
    prices: Annotated[dict[str, Price], IsAside()] = {}
    """Of models that have another price, by name."""

    @field_validator("url")
    @classmethod
    def _is_base(cls, url: str) -> str:
        return base_address(url)

    @field_validator("extra")
    @classmethod
    def _is_not_ours(cls, extra: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for name in sorted(extra.keys() & _OURS):
            raise ValueError(f"'{name}' is set by the sampling and the endpoint; expected other fields")
        return extra

    @property
    def address(self) -> str:
        """What is asked: chat completions, below the base address."""
        return f"{self.url}/chat/completions"

    def price_of(self, model: str) -> Price | None:
        """Return the price of a model's tokens, None where the user gave none."""
        return self.prices.get(model, self.price)


def read_key(settings: ServerConfig) -> str | None:
    """Return the key from the environment; a named variable that is not set raises ConfigError."""
    if settings.api_key_env is None:
        return None
    key = os.environ.get(settings.api_key_env, "").strip()
    if not key:
        raise ConfigError(
            f"{settings.place}.api_key_env: {settings.api_key_env} is not set in the environment"
        )
    return key


def retry_after(value: str | None, now: float) -> float | None:
    """Return the seconds that a Retry-After header asks for: a number or a date. RFC 9110, 10.2.3.

    >>> [retry_after(value, now=4.0) for value in ("7", "Thu, 01 Jan 1970 00:00:09 GMT", "soon", None)]
    [7.0, 5.0, None, None]
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - now
        except ValueError:
            return None
    return min(max(seconds, 0.0), _LONGEST_PAUSE) if not isnan(seconds) else None


class Client:
    """A pool of connections to one server; an asynchronous context."""

    def __init__(
        self, settings: ServerConfig, key: str | None, *, queue_seconds: float | None = None
    ) -> None:
        """Prepare the connections; the environment's proxies are used, but never to this machine.

        Args:
            settings: Of the server.
            key: Shown to it.
            queue_seconds: Wait for a free connection, after which a request fails as one that the server
                refused for being too many; None waits as long as it takes.
        """
        self._url = settings.address
        self._seconds, self._key = settings.timeout_seconds, key
        self._http = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(None, connect=_CONNECT_SECONDS, pool=queue_seconds),
            limits=httpx2.Limits(max_connections=settings.concurrency),
            verify=_tls(),
            trust_env=not _is_this_machine(settings.url),
        )

    async def __aenter__(self) -> Self:
        """Open the pool."""
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the pool."""
        await self._http.__aexit__(kind, exc, trace)

    async def post(self, body: dict[str, Any]) -> Reply:
        """Send one request and return the reply; a server may stream it unasked.

        Raises:
            FailedError: there is no reply, or none that can be read.
        """
        with self._failures():
            async with (
                asyncio.timeout(self._seconds),
                self._http.stream("POST", self._url, json=body) as response,
            ):
                if not response.is_success:
                    raise _refusal(response, await response.aread())
                if response.headers.get("content-type", "").startswith("text/event-stream"):
                    return await assemble(_data(response))
                return parse_reply(await response.aread())

    async def tell(self, url: str, body: dict[str, Any]) -> None:
        """Send one request to another address of the server; of the reply only an error is read.

        Raises:
            FailedError: there is no reply, or it is an error.
        """
        with self._failures():
            async with asyncio.timeout(self._seconds):
                response = await self._http.post(url, json=body)
            if not response.is_success:
                raise _refusal(response, response.content)

    async def stream(self, body: dict[str, Any]) -> AsyncGenerator[str, None]:
        """Send one request and yield the data of its events as they come; the body must ask for a stream.

        Raises:
            FailedError: there is no stream, or it breaks; one that merely ends too soon is for the reader
                of the data to notice.
        """
        deadline = asyncio.get_running_loop().time() + self._seconds
        with self._failures():
            async with AsyncExitStack() as stack:
                async with asyncio.timeout_at(deadline):
                    opened = self._http.stream("POST", self._url, json=body)
                    response = await stack.enter_async_context(opened)
                    if not response.is_success:
                        raise _refusal(response, await response.aread())
                events = _data(response)
                while True:
                    async with asyncio.timeout_at(deadline):  # never across a yield
                        data = await anext(events, None)
                    if data is None:
                        return
                    yield data

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Make a FailedError of what goes wrong on the way; the key is in none."""
        try:
            yield
        except TimeoutError as exc:
            raise FailedError(f"no reply within {self._seconds:g} s") from exc
        except httpx2.PoolTimeout as exc:
            raise FailedError("no free connection", status=429, after=1.0) from exc
        except (httpx2.RequestError, httpx2.SSEError) as exc:
            raise FailedError(f"no reply ({type(exc).__name__})") from exc
        except FailedError as failed:
            if self._key:
                failed.reason = failed.reason.replace(self._key, "***")
            raise


def _refusal(response: httpx2.Response, raw: bytes) -> FailedError:
    status = response.status_code
    return FailedError(
        f"status {status}{message_of(raw)}",
        retry=status in _RETRIED or status >= 500,
        status=status,
        after=retry_after(response.headers.get("retry-after"), time()),
    )


async def _data(response: httpx2.Response) -> AsyncIterator[str]:
    async for event in httpx2.EventSource(response):
        if event.data:
            yield event.data


@lru_cache
def _tls() -> ssl.SSLContext:
    """Read the certificates once: it takes longer than a request."""
    return httpx2.create_ssl_context()


def _is_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
