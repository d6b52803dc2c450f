"""What Prometheus is told: how much, how long and how bad; never a text."""

from collections.abc import Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from equipoise.moderation.server.engine import Judged

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SCORES = tuple(i / 20 for i in range(1, 20))


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        """Begin at zero."""
        self._registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector):
            collector(registry=self._registry)
        self._requests = self._counter("requests", "Requests answered.", "endpoint", "status")
        self._seconds = self._histogram("request_seconds", "From request to answer.", _SECONDS, "endpoint")
        self._sizes = self._histogram("batch_size", "Texts judged together.", _SIZES)
        self._batches = self._histogram("batch_seconds", "Time of a batch in the guard.", _SECONDS)
        self._scores = self._histogram("unsafe_probability", "P(unsafe), for drift.", _SCORES, "target")
        self._verdicts = self._counter("verdicts", "Texts judged.", "policy", "severity", "shadow")
        self._flagged = self._counter("flagged", "Texts flagged.", "policy", "category", "shadow")
        self._reviews = self._counter("reviews", "Texts that a person should see.", "policy")
        self._truncated = self._counter("truncated", "Texts that were judged in part.")
        self._languages = self._counter("unsupported_language", "Texts in another language.", "language")
        self._rejected = self._counter("rejected", "Requests without a verdict.", "reason")
        self._reloads = self._counter("reloads", "Loads of a new guard.", "outcome")
        self._guard = Info("equipoise_guard", "The guard that serves.", registry=self._registry)
        self._depth = Gauge("equipoise_queue_depth", "Texts without an answer.", registry=self._registry)

    def text(self, depth: int) -> bytes:
        """Return all of it in Prometheus' format; `depth` texts wait now."""
        self._depth.set(depth)
        return generate_latest(self._registry)

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def batch(self, size: int, seconds: float) -> None:
        """Count a batch."""
        self._sizes.observe(size)
        self._batches.observe(seconds)

    def judged(self, found: Sequence[Judged]) -> None:
        """Count what the guard said of some texts."""
        for one in found:
            self._scores.labels(one.target).observe(one.verdict.unsafe_probability)
            if one.verdict.review:
                self._reviews.labels(one.verdict.policy).inc()
            if one.verdict.truncated:
                self._truncated.inc()
            if one.is_supported is False:
                self._languages.labels(one.language).inc()
            for verdict in (one.verdict, *one.shadow):
                shadow = str(verdict is not one.verdict).lower()
                self._verdicts.labels(verdict.policy, str(verdict.severity), shadow).inc()
                for category in verdict.categories:
                    self._flagged.labels(verdict.policy, category, shadow).inc()

    def rejected(self, reason: str) -> None:
        """Count a request that got no verdict."""
        self._rejected.labels(reason).inc()

    def loaded(self, outcome: str, about: dict[str, str]) -> None:
        """Count a load, and remember what serves now."""
        self._reloads.labels(outcome).inc()
        self._guard.info(about)

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(f"equipoise_{name}", about, labels, registry=self._registry)

    def _histogram(self, name: str, about: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"equipoise_{name}", about, labels, buckets=buckets, registry=self._registry)
