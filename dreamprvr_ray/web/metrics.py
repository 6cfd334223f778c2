"""What the server counts, for Prometheus."""

from __future__ import annotations

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

PREFIX = "dreamprvr_ray_"
CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST


class ServerMetrics:
    """The counters of one server."""

    def __init__(self, videos: int) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            f"{PREFIX}requests", "Requests by route and status", ("route", "status"), registry=self._registry
        )
        self.seconds = Histogram(
            f"{PREFIX}request_seconds", "Seconds until a response starts", ("route",), registry=self._registry
        )
        self.clips = Counter(f"{PREFIX}clips", "Clips by how they were cut", ("method",), registry=self._registry)
        self.feedback = Counter(
            f"{PREFIX}feedback", "Moments that users confirmed or rejected", ("right",), registry=self._registry
        )
        Gauge(f"{PREFIX}videos", "Videos of the index", registry=self._registry).set(videos)

    def record(self, route: str, status: int, seconds: float) -> None:
        """Record a response. `route` is a pattern, not a request's path: there must not be many."""
        self._requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Return all values in Prometheus' format."""
        return prometheus_client.generate_latest(self._registry)
