"""Traces of turns with OpenTelemetry, if the setting `otel` is on: pydantic-ai's instrumentation with our own provider.

The spans are sent to an OTLP collector over HTTP. Its address is in the usual variables `OTEL_EXPORTER_OTLP_…`; these
variables alone turn nothing on. Spans contain no prompts, no answers, and no arguments or results of tools. The
provider is not the global one, so an application's own tracing is not touched.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from deepctl import distribution
from deepctl.errors import UsageError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import Span
    from pydantic_ai.capabilities import Instrumentation

SERVICE = "deepctl"
FLUSH_SECONDS = 1.0
"""The longest time for which unsent spans delay the end of a chat."""
_REQUEST_SECONDS = 0.8
_DELAY_MILLISECONDS = 500
"""Spans are sent this often."""
_marks: ContextVar[Mapping[str, str | int]] = ContextVar("deepctl_trace_marks")


class Tracing:
    """The spans of one agent. Raises `UsageError` if the packages of the extra `otel` are not installed."""

    def __init__(self) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            raise UsageError(
                "The setting otel needs packages that are not installed.",
                f"Install them with: {distribution.to_install('otel')}",
                code="otel_extra_missing",
            ) from None

        class Marks(SpanProcessor):
            def on_start(self, span: Span, parent_context: Any = None) -> None:
                span.set_attributes(_marks.get({}))

        service = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": SERVICE}
        resource = Resource.create({**service, "service.version": distribution.__version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(Marks())
        self._batches = BatchSpanProcessor(
            OTLPSpanExporter(timeout=_REQUEST_SECONDS), schedule_delay_millis=_DELAY_MILLISECONDS
        )
        self._provider.add_span_processor(self._batches)

    def capability(self) -> Instrumentation:
        """The capability that makes the spans of runs, of requests to the model and of tools."""
        from opentelemetry.metrics import NoOpMeterProvider
        from pydantic_ai.capabilities import Instrumentation
        from pydantic_ai.models.instrumented import InstrumentationSettings

        settings = InstrumentationSettings(
            tracer_provider=self._provider,
            meter_provider=NoOpMeterProvider(),
            include_content=False,
            include_binary_content=False,
            include_model_request_parameters=False,
        )
        return Instrumentation(settings)

    @contextmanager
    def span(self, name: str, **marks: str | int | None) -> Iterator[None]:
        """A span. It and the spans inside this context have the `marks` as attributes `deepctl.…`."""
        attributes = {f"deepctl.{key}": value for key, value in marks.items() if value is not None}
        token = _marks.set({**_marks.get({}), **attributes})
        try:
            # The text of an error can contain parts of the conversation.
            with self._provider.get_tracer(SERVICE).start_as_current_span(
                name, record_exception=False, set_status_on_exception=False
            ) as span:
                try:
                    yield
                except Exception as error:
                    from opentelemetry.trace import StatusCode

                    span.set_status(StatusCode.ERROR)
                    span.set_attribute("error.type", type(error).__qualname__)
                    raise
        finally:
            with suppress(ValueError):  # a stream that is abandoned can be closed in another context
                _marks.reset(token)

    def flush(self, seconds: float = FLUSH_SECONDS) -> None:
        """Send the ended spans, but return after this time at the latest, and at once after Ctrl-C. Never raises."""
        # In a thread, because the exporter has no limit for all of its work.
        sender = threading.Thread(target=self._batches.force_flush, daemon=True)
        try:
            sender.start()
            sender.join(seconds)
        except (KeyboardInterrupt, RuntimeError):
            pass
