"""Every setting, read once from the environment. docs/settings.md says what each is for.

A wrong value raises ImproperlyConfigured with the name, what was given and what would do. Nothing else in the
product reads the environment.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, available_timezones

import django_stubs_ext
import environ
from django.core.exceptions import ImproperlyConfigured

from approvals import working_hours
from runerogue.stack import home as stack_home

django_stubs_ext.monkeypatch()

T = TypeVar("T")

HOME = stack_home.current()
RUNNING = HOME.running_settings()

GIVEN: dict[str, str] = {}  # every setting as it was given; empty where the default holds

BASE_DIR = Path(__file__).resolve().parent.parent


def read(name: str, default: T, parse: Callable[[str], T], hint: str) -> T:
    """The setting `name`, parsed; the default when it is unset or empty."""
    text = GIVEN[name] = os.environ.get(name, "").strip() or RUNNING.get(name, "")
    if not text:
        return default
    try:
        return parse(text)
    except (ValueError, KeyError) as error:
        raise ImproperlyConfigured(f"{name}={text!r} is not valid. Hint: {hint}") from error


def as_bool(text: str) -> bool:
    return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]


def one_of(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in allowed:
            raise ValueError(text)
        return text.lower()

    return parse


def whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return parse


def as_list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def as_steps(text: str) -> tuple[int, ...]:
    steps = tuple(int(part) for part in as_list(text))
    if not steps or list(steps) != sorted(set(steps)) or steps[0] < 1 or steps[-1] != 100:
        raise ValueError(text)
    return steps


def as_networks(text: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_network(part) for part in as_list(text))


def as_database(text: str) -> dict[str, object]:
    parsed = dict(environ.Env.db_url_config(text))
    if parsed.get("ENGINE") not in ("django.db.backends.postgresql", "django.db.backends.postgresql_psycopg2"):
        raise ValueError("not PostgreSQL")
    if not parsed.get("NAME"):
        raise ValueError("no database name")
    # The same engine, counting its queries: RuneRogue measures itself like any other service.
    return {**parsed, "ENGINE": "django_prometheus.db.backends.postgresql"}


def as_email(text: str) -> dict[str, object]:
    if text.partition("://")[0] not in ("smtp", "smtps", "smtp+tls", "smtp+ssl"):
        raise ValueError("not SMTP")
    parsed = dict(environ.Env.email_url_config(text))
    if not parsed.get("EMAIL_HOST"):
        raise ValueError("no host")
    return parsed


def as_public_key(text: str) -> str:
    if len(bytes.fromhex(text)) != 32:
        raise ValueError(text)
    return text.strip().lower()


def as_file(text: str) -> str:
    if not Path(text).is_file():
        raise ValueError(text)
    return text


def as_zone(text: str) -> ZoneInfo:
    # Not `ZoneInfo(text)` alone: it takes names of folders and paths too.
    if text not in available_timezones():
        raise ValueError(text)
    return ZoneInfo(text)


def as_origin(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(text)
    return text.rstrip("/")


def as_working_hours(text: str) -> str:
    working_hours.parse(text)
    return text


# --- Where things live -------------------------------------------------------------------------------------------

RUNEROGUE_HOME: Path = HOME.folder
RUNEROGUE_HOST = read("RUNEROGUE_HOST", "127.0.0.1", str, "an address to listen on, such as 127.0.0.1")
RUNEROGUE_PORT = read("RUNEROGUE_PORT", HOME.port(), whole(1, 65535), "a port from 1 to 65535")
HAPROXY_SOCKET = read("HAPROXY_SOCKET", str(HOME.haproxy_socket), str, "the path of HAProxy's runtime API socket")
SUPERVISOR_SOCKET = str(HOME.supervisor_socket)
SERVICE_PORTS: tuple[int, ...] = read(
    "SERVICE_PORTS", HOME.service_ports(), lambda text: tuple(int(p) for p in as_list(text)), "ports such as 8100,8101"
)

# --- What RuneRogue does by itself -------------------------------------------------------------------------------

TIERS = ("low", "medium", "high", "critical")
SELF_BUILD_ENABLED = read("SELF_BUILD_ENABLED", True, as_bool, "true or false")
SELF_BUILD_RISK_THRESHOLD = read(
    "SELF_BUILD_RISK_THRESHOLD",
    "medium",
    one_of("low", "medium", "high"),
    "the highest tier started by itself: low, medium or high",
)
SELF_BUILD_APPROVAL_REQUIRED = read(
    "SELF_BUILD_APPROVAL_REQUIRED",
    "high",
    one_of("low", "medium", "high"),
    "the tier from which people must sign: low, medium or high",
)
METRICS_COLLECTION_INTERVAL = read("METRICS_COLLECTION_INTERVAL", 60, whole(1, 3600), "seconds, 1 to 3600")
IMPROVEMENT_SUGGESTION_FREQUENCY = read(
    "IMPROVEMENT_SUGGESTION_FREQUENCY",
    "weekly",
    one_of("hourly", "daily", "weekly", "monthly"),
    "hourly, daily, weekly or monthly",
)
ANALYSIS_INTERVAL = read("ANALYSIS_INTERVAL", 900, whole(5, 86400), "seconds, 5 to 86400")
TICK_SECONDS = read("TICK_SECONDS", 5, whole(1, 300), "seconds, 1 to 300")
LEASE_SECONDS = read("LEASE_SECONDS", 15, whole(3, 600), "seconds, 3 to 600")
ROLLOUT_STEPS: tuple[int, ...] = read(
    "ROLLOUT_STEPS", as_steps("10,50,100"), as_steps, "rising percentages that end in 100, such as 10,50,100"
)
ROLLOUT_STEP_SECONDS = read("ROLLOUT_STEP_SECONDS", 300, whole(1, 86400), "seconds, 1 to 86400")
ROLLOUT_STEP_REQUESTS = read(
    "ROLLOUT_STEP_REQUESTS", 200, whole(1, 10_000_000), "requests to the candidate, at least 1"
)
BAKE_SECONDS = read("BAKE_SECONDS", 600, whole(1, 86400), "seconds, 1 to 86400")
WATCH_SECONDS = read("WATCH_SECONDS", 3600, whole(1, 86400), "seconds, 1 to 86400")
WORKING_HOURS = read(
    "WORKING_HOURS", "mon-fri 09:00-17:00 UTC", as_working_hours, "such as mon-fri 09:00-17:00 Europe/Berlin"
)
INSTALLATION_TIME_ZONE = read(
    "INSTALLATION_TIME_ZONE", ZoneInfo("UTC"), as_zone, "the IANA name of a time zone, such as Europe/Berlin"
)
AUDIT_CHECKPOINT_ENTRIES = read("AUDIT_CHECKPOINT_ENTRIES", 1000, whole(1, 1_000_000), "audit entries, 1 to 1000000")
AUDIT_CHECKPOINT_MINUTES = read("AUDIT_CHECKPOINT_MINUTES", 10, whole(1, 1440), "minutes, 1 to 1440")
AUDIT_CHECKPOINT_DIR: Path = read(
    "AUDIT_CHECKPOINT_DIR", RUNEROGUE_HOME / "audit" / "checkpoints", Path, "a folder that every worker can write"
)
AUDIT_KEY_DIR: Path = RUNEROGUE_HOME / "audit" / "keys"
AUDIT_PUBLIC_KEY = read("AUDIT_PUBLIC_KEY", "", as_public_key, "64 hex digits, printed by manage.py verify_audit")
MONITORING_ALLOWED_NETWORKS = read(
    "MONITORING_ALLOWED_NETWORKS",
    as_networks("127.0.0.0/8,::1/128"),
    as_networks,
    "networks such as 127.0.0.0/8,10.1.0.0/16",
)

API_REQUESTS_PER_MINUTE = read("API_REQUESTS_PER_MINUTE", 600, whole(1, 1_000_000), "requests a minute, at least 1")
# --- Telling people ----------------------------------------------------------------------------------------------

NOTIFY_SECONDS = read("NOTIFY_SECONDS", 5, whole(1, 60), "seconds, 1 to 60")
EMAIL = read(
    "EMAIL_URL", dict[str, object](), as_email, "smtp+tls://user:password@mail.example.org:587, smtp+ssl:// or smtp://"
)
# Django's own names. Without a host nothing is sent: its default would try this machine.
EMAIL_HOST = str(EMAIL.get("EMAIL_HOST") or "")
EMAIL_USE_SSL = bool(EMAIL.get("EMAIL_USE_SSL"))
EMAIL_USE_TLS = bool(EMAIL.get("EMAIL_USE_TLS"))
EMAIL_PORT = int(str(EMAIL.get("EMAIL_PORT") or (465 if EMAIL_USE_SSL else 587 if EMAIL_USE_TLS else 25)))
EMAIL_HOST_USER = str(EMAIL.get("EMAIL_HOST_USER") or "")
EMAIL_HOST_PASSWORD = str(EMAIL.get("EMAIL_HOST_PASSWORD") or "")
EMAIL_TIMEOUT = 20
EMAIL_CA_FILE = read("EMAIL_CA_FILE", "", as_file, "a file with the certificate of the mail server's own CA (PEM)")
DEFAULT_FROM_EMAIL = read(
    "DEFAULT_FROM_EMAIL", "RuneRogue <runerogue@localhost>", str, "RuneRogue <runerogue@example.org>"
)
SERVER_EMAIL = DEFAULT_FROM_EMAIL
PUBLIC_URL = read("PUBLIC_URL", f"http://{RUNEROGUE_HOST}:{RUNEROGUE_PORT}", as_origin, "https://runerogue.example.org")
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
DIGEST_WEEKDAY = read("DIGEST_WEEKDAY", "monday", one_of(*WEEKDAYS), "monday to sunday")
DIGEST_HOUR = read("DIGEST_HOUR", 8, whole(0, 23), "an hour of the day, 0 to 23")
VITALS_PER_MINUTE = read("VITALS_PER_MINUTE", 6000, whole(1, 1_000_000), "page reports a minute, at least 1")
OTLP_EXPORTS_PER_MINUTE = read("OTLP_EXPORTS_PER_MINUTE", 1200, whole(1, 1_000_000), "exports a minute, at least 1")
FEEDBACK_PER_MINUTE = read("FEEDBACK_PER_MINUTE", 60, whole(1, 100_000), "remarks a minute, at least 1")

DEPLOYER = read("DEPLOYER", "haproxy", str, "haproxy, or the name of an installed deployer")

# --- Django ------------------------------------------------------------------------------------------------------

DEBUG = read("DEBUG", False, as_bool, "true or false")
SECRET_KEY = read("SECRET_KEY", HOME.secret("secret_key") or "", str, "50 random characters")
if not SECRET_KEY:
    raise ImproperlyConfigured(
        f"SECRET_KEY is not set and {HOME.folder} holds none. Hint: `make run` makes one on first start; "
        "with engines of your own, set SECRET_KEY to 50 random characters."
    )
SECRET_KEY_FALLBACKS: list[str] = read(
    "SECRET_KEY_FALLBACKS", [], as_list, "former values of SECRET_KEY, separated by commas"
)
ALLOWED_HOSTS = read(
    "ALLOWED_HOSTS", ["localhost", "127.0.0.1", "[::1]"], as_list, "host names such as runerogue.example.org"
)
CSRF_TRUSTED_ORIGINS = read(
    "CSRF_TRUSTED_ORIGINS", list[str](), as_list, "origins such as https://runerogue.example.org"
)
# Behind TLS: secure cookies, HSTS and the redirect. On loopback over plain HTTP the sign-in would not work with them.
HTTPS = read("HTTPS", False, as_bool, "true when people reach RuneRogue over https")
SECURE_SSL_REDIRECT = HTTPS
SESSION_COOKIE_SECURE = HTTPS
CSRF_COOKIE_SECURE = HTTPS
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = HTTPS
SECURE_HSTS_PRELOAD = HTTPS
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if HTTPS else None
# Whose X-Forwarded-For is believed. Nobody's by default: whoever may write it chooses the address that is locked out.
TRUSTED_PROXIES = read(
    "TRUSTED_PROXIES", as_networks(""), as_networks, "the networks of your own proxies, such as 10.0.0.0/24"
)
SECURE_REDIRECT_EXEMPT = [r"^health/live$", r"^health/ready$", r"^metrics$", r"^v1/traces$"]
SESSION_COOKIE_HTTPONLY = True
# Not "Strict": who follows a link in a mail would be asked to sign in again.
SESSION_COOKIE_SAMESITE = CSRF_COOKIE_SAMESITE = "Lax"
SESSION_HOURS = read("SESSION_HOURS", 12, whole(1, 168), "hours, 1 to 168")
SESSION_IDLE_MINUTES = read("SESSION_IDLE_MINUTES", 60, whole(5, 1440), "minutes, 5 to 1440")
# Every write moves the end of the row on; approvals.sessions counts from the sign-in.
SESSION_COOKIE_AGE = SESSION_HOURS * 3600
CREDENTIALS_SETTLE_HOURS = read("CREDENTIALS_SETTLE_HOURS", 24, whole(0, 720), "hours, 0 to 720")
SIGN_IN_FAILURES = read("SIGN_IN_FAILURES", 5, whole(3, 50), "failed sign-ins, 3 to 50")
SIGN_IN_LOCK_MINUTES = read("SIGN_IN_LOCK_MINUTES", 15, whole(1, 1440), "minutes, 1 to 1440")
X_FRAME_OPTIONS = "DENY"

INSTALLED_APPS = [
    "runerogue",
    "improvements",
    "analysis",
    "monitoring",
    "approvals",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "django.contrib.postgres",
    "rest_framework",
    "django_celery_beat",
    "django_prometheus",
    "csp",
    "axes",
]
MIDDLEWARE = [
    "approvals.occasion.OccasionMiddleware",
    "monitoring.instrumentation.InFlightMiddleware",
    "django_prometheus.middleware.PrometheusBeforeMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "csp.middleware.CSPMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "monitoring.instrumentation.PresenceMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "approvals.sessions.SessionAges",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "monitoring.instrumentation.BoundedPrometheusMiddleware",
    "axes.middleware.AxesMiddleware",  # last: it takes the place of the page that a locked sign-in made
]
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": ["'self'"],
        "img-src": ["'self'", "data:"],
        "object-src": ["'none'"],
        "base-uri": ["'none'"],
        "form-action": ["'self'"],
        "frame-ancestors": ["'none'"],
    }
}
ROOT_URLCONF = "runerogue.urls"
WSGI_APPLICATION = "runerogue.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
    {"NAME": "approvals.passwords.Recorded"},
]
AUTHENTICATION_BACKENDS = ["axes.backends.AxesStandaloneBackend", "django.contrib.auth.backends.ModelBackend"]
# django-axes asks the handler before a password is looked at. Its own tables, for names and addresses, stay empty.
AXES_HANDLER = "approvals.lockouts.Handler"
AXES_LOCKOUT_CALLABLE = "approvals.lockouts.answer"
AXES_CLIENT_IP_CALLABLE = "approvals.whence.origin_of"
AXES_RESET_COOL_OFF_ON_FAILURE_DURING_LOCKOUT = False
AXES_ENABLE_ADMIN = AXES_VERBOSE = False
LOGIN_URL = "admin:login"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_TZ = True
FORMAT_MODULE_PATH = ["runerogue.formats"]

# --- Engines -----------------------------------------------------------------------------------------------------

DATABASES = {
    "default": {
        **read(
            "DATABASE_URL",
            as_database(HOME.database_url()),
            as_database,
            "postgresql://user:password@host:5432/name (PostgreSQL only)",
        ),
        "CONN_MAX_AGE": 60,
        "CONN_HEALTH_CHECKS": True,
    }
}
DATABASES["default"].setdefault("OPTIONS", {})
DATABASES["default"]["OPTIONS"].setdefault("connect_timeout", 5)  # type: ignore[attr-defined]
REDIS_URL = read("REDIS_URL", HOME.redis_url(), str, "redis://host:6379/0 or unix:///path/valkey.sock")
CACHES = {"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": REDIS_URL}}
# kombu spells the same socket in its own way.
CELERY_BROKER_URL = (
    REDIS_URL.replace("unix://", "redis+socket://", 1).replace("?db=", "?virtual_host=")
    if REDIS_URL.startswith("unix://")
    else REDIS_URL
)

# --- Files and logs ----------------------------------------------------------------------------------------------

STATIC_URL = "static/"
STATIC_ROOT = RUNEROGUE_HOME / "static"
STATICFILES_DIRS = [BASE_DIR / "static"]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
}
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {
            "()": "monitoring.privacy.PrivateFormatter",
            "format": "{asctime} {levelname} {name} {message}",
            "style": "{",
        },
        # Hashes and signatures as they are: a statement with a part withheld proves nothing. It tells of no visitor.
        "verbatim": {"format": "{asctime} {levelname} {name} {message}", "style": "{"},
    },
    "handlers": {
        "console": {"class": "logging.StreamHandler", "formatter": "line"},
        "statements": {"class": "logging.StreamHandler", "formatter": "verbatim"},
    },
    "root": {"handlers": ["console"], "level": "INFO"},
    "loggers": {
        "httpx": {"level": "WARNING"},
        "approvals.statements": {"handlers": ["statements"], "propagate": False},
    },
}

REST_FRAMEWORK = {
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    # What else the frame sets is in approvals.rest, which every view of the API is made of.
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "approvals.rest.explain",
}
SPECTACULAR_SETTINGS = {
    "TITLE": "RuneRogue",
    "DESCRIPTION": "Watches services, improves them safely, and keeps the record.",
    "VERSION": "1",
    "OAS_VERSION": "3.1.0",
    "COMPONENT_SPLIT_REQUEST": True,
    "SCHEMA_PATH_PREFIX": "/api/v1",
    "POSTPROCESSING_HOOKS": [
        "drf_spectacular.hooks.postprocess_schema_enums",
        "approvals.describing.add_plain_views",
    ],
}
