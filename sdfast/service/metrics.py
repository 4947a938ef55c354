"""What a service counts and times, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Each in a registry of its own, so that a process may have several services."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def histogram(name: str, what: str, *labels: str) -> Histogram:
            return Histogram(f"sdfast_{name}", what, labels, buckets=_SECONDS, registry=registry)

        def gauge(name: str, what: str) -> Gauge:
            return Gauge(f"sdfast_{name}", what, registry=registry)

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"sdfast_{name}", what, labels, registry=registry)

        self.running = gauge("requests_running", "Requests that are drawn now")
        self.waiting = gauge("requests_waiting", "Requests in the queue")
        self.waiting_seconds = gauge("waiting_work_seconds", "Predicted work of those accepted")
        self.ready = gauge("ready", "1 where /readyz says yes")
        self.requests = counter("requests", "Requests that ended, by how", "outcome")
        self.rejected = counter("rejected", "Requests that were not accepted, by reason", "reason")
        self.images = counter("images", "Pictures that were drawn")
        self.restarts = counter("engine_restarts", "Workers started anew, by reason", "reason")
        self.shrunk = counter("batch_shrunk", "Halvings of what is computed at once")
        self.queue = histogram("queue_seconds", "From acceptance to the worker")
        self.first_step = histogram("time_to_first_step_seconds", "From acceptance to a step")
        self.step = histogram("step_seconds", "Calls of the network")
        self.end_to_end = histogram("e2e_seconds", "From acceptance to the answer")
        self.stage = histogram("stage_seconds", "Parts of a request", "stage")
        self.batch = Histogram(
            "sdfast_batch_size", "Rows of the network in a call", buckets=_ROWS, registry=registry
        )

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
