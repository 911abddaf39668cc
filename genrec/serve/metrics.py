"""What the server counts, for Prometheus.

Owns the metrics and their names. Knows no request and no engine: whoever knows a figure writes it
here.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_JOBS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class ServeMetrics:
    """The counters of one server; several servers of one process share nothing."""

    def __init__(self) -> None:
        """Start all at zero."""
        self.registry = CollectorRegistry()
        self.requests = self._count("requests", "Requests answered.", "route", "status")
        self.seconds = self._spread("request_seconds", "Time to a whole answer.", "route")
        self.stages = self._spread("stage_seconds", "Time of one stage.", "stage")
        self.running = self._level("requests_running", "Requests being worked on.")
        self.queued = self._level("queue_depth", "Jobs that wait for the engine.")
        self.batch_jobs = Histogram(
            "genrec_batch_jobs",
            "Users that the engine ran together.",
            registry=self.registry,
            buckets=_JOBS,
        )
        self.refused = self._count("jobs_refused", "Jobs that were not run.", "reason")
        self.answers = self._count("answers", "Items answered.")
        self.beams = self._count("beams", "Prefixes that the model was asked about.")
        self.uncertified = self._count("uncertified", "Answers that are not proven to be the best.")
        self.invalid = self._count("invalid_answers", "Answers that no item has; must stay 0.")
        self.prefix_hits = self._count("prefix_cache_hits", "Prompts that began with a known one.")
        self.prefix_misses = self._count("prefix_cache_misses", "Prompts that began anew.")
        self.prefix_saved = self._count("prefix_cache_saved_tokens", "Prompt tokens not run.")
        self.prefix_bytes = self._level("prefix_cache_bytes", "Keys and values kept of prompts.")
        self.text_tokens = self._count("text_tokens", "Tokens of written texts.")
        self.restarts = self._count("engine_restarts", "Engines started for one that had ended.")
        self.version = self._level("catalogue_version", "The catalogue's version.")
        self.items = self._level("catalogue_items", "Items in the catalogue.")
        self.ready = self._level("ready", "1 while requests are taken.")

    def observe_stage(self, stage: str, seconds: float) -> None:
        """Count one run of a stage: queue, encode, search, check, explain, write."""
        self.stages.labels(stage).observe(seconds)

    def watch(self, gauge: Gauge, read: Callable[[], float]) -> None:
        """Let a gauge read its value whenever it is asked for."""
        gauge.set_function(read)

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _count(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"genrec_{name}", help_text, labels, registry=self.registry)

    def _level(self, name: str, help_text: str) -> Gauge:
        return Gauge(f"genrec_{name}", help_text, registry=self.registry)

    def _spread(self, name: str, help_text: str, *labels: str) -> Histogram:
        return Histogram(
            f"genrec_{name}", help_text, labels, registry=self.registry, buckets=_SECONDS
        )
