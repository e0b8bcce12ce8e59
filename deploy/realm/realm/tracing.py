"""OpenTelemetry: spans of requests and queries, and request durations, sent to OTEL_EXPORTER_OTLP_ENDPOINT."""

import os

from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.django import DjangoInstrumentor
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor


def start():
    """Instrument Django and psycopg. Call once in a process, before Django builds its middleware."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "realm.settings")
    os.environ.setdefault("OTEL_PYTHON_DJANGO_EXCLUDED_URLS", "up$,metrics$")
    resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "realm")})
    tracer_provider = TracerProvider(resource=resource)
    tracer_provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(tracer_provider)
    if os.environ.get("OTEL_METRICS_EXPORTER") != "none":
        reader = PeriodicExportingMetricReader(OTLPMetricExporter())
        metrics.set_meter_provider(MeterProvider(resource=resource, metric_readers=[reader]))
    DjangoInstrumentor().instrument()
    PsycopgInstrumentor().instrument()
