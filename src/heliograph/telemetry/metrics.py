"""Every Prometheus metric of the product, declared once.

A service creates one `Metrics` and hands it to its parts; nothing is global, so tests and the all-in-one process hold several
side by side. Labels are bounded by what the code knows (routes, states, shards, regions), never by what a client says: no
namespace, instance or config name becomes a label. Durations are seconds, as Prometheus wants them.
"""

from __future__ import annotations

import platform
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import generate_latest

from heliograph import __version__

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

# from a commit on a local disk to a client on the other side of the world; dense where the promise (50 ms) lies
PROPAGATION_BUCKETS: Final = (
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.045, 0.05,
    0.06, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
FAST_BUCKETS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0)
SIZE_BUCKETS: Final = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)


class Metrics:
    """One process's metrics on a registry of their own. Attributes are named like the metric without ``heliograph_``."""

    def __init__(self) -> None:
        self.collectors = CollectorRegistry()
        self._declare_process()
        self._declare_http()
        self._declare_registry()
        self._declare_eventlog()
        self._declare_sync()
        self._declare_edge()
        self._declare_ledger()

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format (`CONTENT_TYPE`)."""
        return generate_latest(self.collectors)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"heliograph_{name}", help_text, labels, registry=self.collectors)

    def _gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        return Gauge(f"heliograph_{name}", help_text, labels, registry=self.collectors)

    def _histogram(self, name: str, help_text: str, *labels: str, buckets: tuple[float, ...] = FAST_BUCKETS) -> Histogram:
        return Histogram(f"heliograph_{name}", help_text, labels, buckets=buckets, registry=self.collectors)

    def _declare_process(self) -> None:
        ProcessCollector(registry=self.collectors)
        PlatformCollector(registry=self.collectors)
        self.build_info = self._gauge("build_info", "Always 1; the labels say what runs", "version", "python")
        self.build_info.labels(__version__, platform.python_version()).set(1)
        self.loop_lag_seconds = self._histogram("loop_lag_seconds", "How late the event loop ran what was due")
        self.worker_up = self._gauge(
            "worker_up", "1 for each worker that answered when it was asked for these metrics", "worker"
        )
        self.worker_starts = self._gauge("worker_starts", "Times that this worker's place was filled since the node started")
        self.retries = self._counter("retries_total", "Attempts repeated after a failure", "operation")

    def _declare_http(self) -> None:
        self.tls_certificate_expires_at_seconds = self._gauge(
            "tls_certificate_expires_at_seconds", "Unix time at which the server's own certificate in use expires"
        )
        self.tls_reloads = self._counter(
            "tls_reloads_total", "Times the server's certificate was loaded again, by outcome: loaded, failed", "outcome"
        )
        self.http_requests = self._counter("http_requests_total", "HTTP requests answered", "method", "route", "status")
        self.http_request_seconds = self._histogram(
            "http_request_seconds", "HTTP request, first byte read to last byte written", "method", "route"
        )
        self.http_requests_in_flight = self._gauge("http_requests_in_flight", "HTTP requests being answered")

    def _declare_registry(self) -> None:
        self.commits = self._counter("commits_total", "Attempts to commit a version, by outcome", "outcome")
        self.commit_seconds = self._histogram("commit_seconds", "The commit function in PostgreSQL, one round trip")
        self.publish_seconds = self._histogram(
            "publish_seconds", "A publish by stage: validate, prepare, sign, commit, wait", "stage"
        )
        self.head_age_seconds = self._gauge("head_age_seconds", "Age of the oldest signed head")
        self.trust_expires_at_seconds = self._gauge(
            "trust_expires_at_seconds", "Unix time at which the trust root expires and signing ends"
        )
        self.heads_renewed = self._counter("heads_renewed_total", "Signed heads renewed")
        self.erased = self._counter("erased_total", "Erased for good after deletion: environment, namespace, object", "kind")
        self.purged = self._counter("purged_total", "Texts purged")
        self.authentications = self._counter("authentications_total", "Tokens checked, by outcome", "outcome")

    def _declare_eventlog(self) -> None:
        self.relay_lag_events = self._gauge("relay_lag_events", "Events committed and not yet in Kafka", "shard")
        self.relay_lag_seconds = self._gauge("relay_lag_seconds", "Age of the oldest event not yet in Kafka", "shard")
        self.relay_leading = self._gauge("relay_leading", "1 while this relay holds the leader's lock")
        self.relay_published = self._counter("relay_published_total", "Events copied to Kafka", "shard")
        self.relay_publish_seconds = self._histogram("relay_publish_seconds", "Kafka's acknowledgement of a batch")
        self.log_records_read = self._counter("log_records_read_total", "Records read from the log", "stream")
        self.log_gaps = self._counter(
            "log_gaps_total", "Positions missing in the log, each followed by a read from the owner", "stream"
        )
        self.log_append_seconds = self._histogram("log_append_seconds", "A durable append of a batch", "stream")
        self.dead_letters = self._counter(
            "dead_letters_total", "Records and deliveries set aside after bounded retries", "stream"
        )
        self.dead_letters_failed_again = self._counter(
            "dead_letters_failed_again_total", "Dead letters that failed once more after they were told again", "stream"
        )
        self.dead_letters_replayed = self._counter(
            "dead_letters_replayed_total", "Dead letters that an operator had told again", "stream"
        )
        self.dead_letters_discarded = self._counter(
            "dead_letters_discarded_total", "Dead letters that an operator discarded", "stream"
        )
        self.dead_letters_waiting = self._gauge(
            "dead_letters_waiting", "Dead letters that wait for an operator; told by the registry that keeps house", "stream"
        )
        self.dead_letter_oldest_seconds = self._gauge(
            "dead_letter_oldest_seconds", "How long the oldest waiting dead letter has waited", "stream"
        )

    def _declare_sync(self) -> None:
        self.connections = self._gauge("connections", "Open client connections")
        self.subscriptions = self._gauge("subscriptions", "Live subscriptions")
        self.views = self._gauge("views", "Distinct (environment, view, subscription id) groups that share frames")
        self.connections_closed = self._counter("connections_closed_total", "Client connections closed, by close code", "code")
        self.connections_refused = self._counter(
            "connections_refused_total", "Connections and requests turned away at the door, by the limit they met", "reason"
        )
        self.clients_throttled = self._counter("clients_throttled_total", "Times a client was not read for sending too much")
        self.pings_sent = self._counter("pings_sent_total", "WebSocket pings to clients not heard of lately")
        self.frames_sent = self._counter("frames_sent_total", "Frames handed to sockets", "type")
        self.frames_received = self._counter("frames_received_total", "Frames taken from clients", "type")
        self.fan_out_seconds = self._histogram("fan_out_seconds", "One version, first to last send on this node")
        self.fan_out_recipients = self._histogram(
            "fan_out_recipients", "Clients that one version was sent to on this node", buckets=SIZE_BUCKETS
        )
        self.slow_consumers = self._gauge("slow_consumers", "Clients outside the fan-out set because their socket is full")
        self.slow_consumers_entered = self._counter("slow_consumers_entered_total", "Times a client left the fan-out set")
        self.resyncs = self._counter("resyncs_total", "Snapshots sent again, by cause", "cause")
        self.quarantined_environments = self._gauge(
            "quarantined_environments", "Environments that this node cannot bring forward; it tries on and serves what it has"
        )
        self.bundle_answers = self._counter("bundle_answers_total", "Answers of the bundle endpoint, by kind", "kind")
        self.transfers_waiting = self._gauge(
            "transfers_waiting", "Clients whose large frame waits until others have read theirs"
        )
        self.transfer_bytes_unread = self._gauge(
            "transfer_bytes_unread", "Bytes of large frames that clients have not read yet"
        )
        self.polls_held = self._gauge("polls_held", "Requests that wait for a version")
        self.receipts_taken = self._counter("receipts_taken_total", "Receipts of clients that the log has", "state")
        self.receipts_waiting = self._gauge("receipts_waiting", "Receipts taken and not yet durable")
        self.synced_head_age_seconds = self._gauge("synced_head_age_seconds", "Age of the oldest head that this node serves")

    def _declare_edge(self) -> None:
        self.edge_parent_connected = self._gauge("edge_parent_connected", "1 while this edge is connected to its parent")
        self.edge_staleness_seconds = self._gauge(
            "edge_staleness_seconds", "How long ago this edge lost its parent; 0 while it is connected"
        )
        self.edge_environments = self._gauge("edge_environments", "Environments that this edge follows")
        self.edge_refused = self._counter(
            "edge_refused_total", "What the parent sent and did not verify; this edge keeps what it has", "code"
        )
        self.edge_events_dropped = self._counter(
            "edge_events_dropped_total", "Reports to the ledger given up while the parent was away; never receipts"
        )

    def _declare_ledger(self) -> None:
        self.propagation_seconds = self._histogram(
            "propagation_seconds",
            "Author's first byte to applied, one per instance and version",
            "region",
            buckets=PROPAGATION_BUCKETS,
        )
        self.hop_seconds = self._histogram(
            "hop_seconds", "Author's first byte to the end of a hop: commit, log, fan_out", "hop", buckets=PROPAGATION_BUCKETS
        )
        self.connected_instances = self._gauge("connected_instances", "Instances with a live subscription", "region")
        self.receipts = self._counter("receipts_total", "Receipts taken in from the log, by state", "state")
        self.propagations_open = self._gauge("propagations_open", "Versions whose answers are still awaited")
        self.propagations_closed = self._counter("propagations_closed_total", "Propagations closed, by outcome", "outcome")
        self.propagation_waiters = self._gauge("propagation_waiters", "Requests held until a share has applied")
        self.drifting_instances = self._gauge(
            "drifting_instances", "Instances behind the desired version beyond the grace period"
        )
        self.ledger_batch_seconds = self._histogram(
            "ledger_batch_seconds", "One batch of the receipts stream, read to committed"
        )
        self.ledger_batch_records = self._histogram("ledger_batch_records", "Records in one batch", buckets=SIZE_BUCKETS)
