"""What the last look found, as Prometheus metrics: over HTTP, or in a file for node_exporter's textfile collector."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    disable_created_metrics,
    start_http_server,
    write_to_textfile,
)

from lockstep import paths
from lockstep.errors import UserError
from lockstep.verification import verdict
from lockstep.verification.repeating import Outcome

PREFIX = "lockstep_verify"
VERDICTS = tuple(verdict.EXIT_CODES)
STATUSES = (verdict.PASSED, verdict.FAILED, verdict.UNKNOWN)
KL = "endpoint_kl_trained"  # a figure of the proof of weights


class Metrics:
    """The metrics of one deployment.

    Args:
        labels: what is verified, such as run and bundle; a label each of `lockstep_verify_info`.
        every: seconds between two looks; None: this is the only one, and counters would say nothing.
    """

    def __init__(self, labels: Mapping[str, str], every: float | None = None) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # when each counter was made: nobody asks
        self.registry = CollectorRegistry()
        self._verdict = self._gauge("verdict", "1 for the verdict of the last look, 0 for the others", "verdict")
        self._proof = self._gauge("proof", "1 for the status of each proof that applies", "proof", "status")
        self._diagnosis = self._gauge("found", "1 for what the model is, by a proof of the last look", "proof", "found")
        self._figure = self._gauge("figure", "numbers that the proofs measured", "proof", "figure")
        self._kl = self._gauge("kl_nats", "mean KL of what is served from the trained model, in nats a token")
        self._time = self._gauge("last_look_timestamp_seconds", "when the last look began, 0: not yet")
        self._seconds = self._gauge("last_look_duration_seconds", "how long the last look took")
        self._good = self._gauge(
            "last_in_lockstep_timestamp_seconds", "when a look last found the trained model, 0: never"
        )
        self._info = self._gauge("info", "what is verified", *labels)
        self._info.labels(**labels).set(1)
        self._looks: Counter | None = None
        if every is not None:
            self._gauge("interval_seconds", "seconds between two looks").set(every)
            self._looks = Counter(f"{PREFIX}_looks", "looks by their verdict", ["verdict"], registry=self.registry)
            for name in VERDICTS:
                self._looks.labels(name)
        self._kl.set(math.nan)  # the times are 0 until there are any, as Prometheus' own exporters have it

    def _gauge(self, name: str, words: str, *labels: str) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", words, labels, registry=self.registry)

    def record(self, outcome: Outcome) -> None:
        """Show a look in place of the one before it."""
        name = outcome.results["verdict"]
        for other in VERDICTS:
            self._verdict.labels(other).set(other == name)
        for gauge in (self._proof, self._diagnosis, self._figure):
            gauge.clear()
        for proof, result in outcome.results["proofs"].items():
            if result["applies"]:
                self._record_proof(proof, result)
        self._kl.set(outcome.results["proofs"]["weights"]["figures"].get(KL, math.nan))
        self._time.set(outcome.started)
        self._seconds.set(outcome.seconds)
        if name == verdict.IN_LOCKSTEP:
            self._good.set(outcome.started)
        if self._looks is not None:
            self._looks.labels(name).inc()

    def _record_proof(self, proof: str, result: dict[str, Any]) -> None:
        for status in STATUSES:
            self._proof.labels(proof, status).set(status == result["status"])
        if result["found"]:
            self._diagnosis.labels(proof, result["found"]).set(1)
        for figure, value in result["figures"].items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                self._figure.labels(proof, figure).set(value)

    def serve(self, host: str, port: int) -> int:
        """Answer GET /metrics from now on, in a thread; returns the port.

        Raises:
            UserError: the port is taken, or there is no such address.
        """
        try:
            server, _ = start_http_server(port, host, self.registry)
        except OSError as error:
            raise UserError(f"--metrics {host}:{port}: {error.strerror or error}; choose another") from error
        return int(server.server_port)

    def write(self, file: Path) -> None:
        """Write the metrics for node_exporter's textfile collector, all of them or nothing.

        Raises:
            UserError: the file cannot be written.
        """
        try:
            write_to_textfile(str(file), self.registry)
        except OSError as error:
            raise UserError(f"--metrics-file {paths.label(file)} cannot be written: {error.strerror}") from error


def address(text: str) -> tuple[str, int]:
    """Host and port, from `9877` (this machine only) or `ADDRESS:9877`.

    Raises:
        UserError: there is no port in it.
    """
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdecimal()) or not 0 < int(port) < 65_536:
        raise UserError(f"--metrics {text}: give a port, such as 9877, or ADDRESS:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)
