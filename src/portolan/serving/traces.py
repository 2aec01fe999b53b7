"""OpenTelemetry traces of calls, sent by OTLP over HTTP: one span per call, one for its wait, one for its batch.

Names and attributes are Triton's. Everything of OpenTelemetry is imported here and only when an endpoint was named.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from portolan import __version__
from portolan.errors import UsageError
from portolan.serving.calls import Answer, Refusal
from portolan.serving.ticket import Ticket
from portolan.serving.version import Version

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

_PATH = "/v1/traces"


class Traces:
    """Tells a collector of calls that ended.

    Args:
        collector: where it listens, such as `http://127.0.0.1:4318`.
        share: of the calls without a `traceparent` of their own; those with one follow its sampled flag.
        exporter: what takes the spans instead, for tests.

    Raises:
        UsageError: the endpoint is no address of HTTP.
    """

    def __init__(self, collector: str, share: float = 1.0, exporter: SpanExporter | None = None) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({"service.name": "portolan", "service.version": __version__})
        self._provider = TracerProvider(resource=resource, sampler=ParentBasedTraceIdRatio(share))
        self._provider.add_span_processor(BatchSpanProcessor(exporter or _exporter(endpoint(collector))))
        self._tracer = self._provider.get_tracer("portolan.serving", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def ended(self, version: Version, ticket: Ticket, result: Answer | Refusal, now: float) -> None:
        """A call was answered or refused.

        Args:
            version: that had it.
            ticket: of the call, with its times on the loop's clock.
            result: what it got.
            now: the time on the loop's clock.
        """
        from opentelemetry import trace

        call = ticket.call
        parent = None if call.trace is None else self._propagator.extract({"traceparent": call.trace})
        offset = time.time() - now
        about = {"triton.model_name": version.source.name, "triton.model_version": version.number}
        if call.id:
            about["triton.request_id"] = call.id
        begin = _ns(ticket.arrived + offset)
        top = self._tracer.start_span("InferRequest", parent, trace.SpanKind.SERVER, about, start_time=begin)
        end = _ns(now + offset)
        if top.is_recording():
            inside = trace.set_span_in_context(top)
            if ticket.started:
                started = _ns(ticket.started + offset)
                wait = self._tracer.start_span("queue", inside, start_time=begin)
                wait.end(started)
                work = self._tracer.start_span(
                    "compute", inside, attributes={"batch_rows": ticket.rows}, start_time=started
                )
                work.end(end)
            if isinstance(result, Refusal):
                top.set_status(trace.StatusCode.ERROR, f"{result.kind}: {result.message}")
        top.end(end)

    def close(self) -> None:
        """Sends what waits."""
        self._provider.shutdown()


def endpoint(collector: str) -> str:
    """Where traces are sent: the collector's own path for them unless another one was named.

    Raises:
        UsageError: it is no address of HTTP.
    """
    found = urlsplit(collector)
    if found.scheme not in ("http", "https") or not found.hostname:
        raise UsageError(f"`{collector}` is no address of a collector", hint="--otlp-endpoint http://127.0.0.1:4318")
    return collector if found.path.strip("/") else collector.rstrip("/") + _PATH


def _exporter(address: str) -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(address, timeout=5)


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
