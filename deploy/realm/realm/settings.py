"""Settings of Realm, read from the environment.

DATABASE_URL          postgresql://user:password@host:port/database, or with ?host=/folder for a unix socket
SECRET_KEY            any long random text
ALLOWED_HOSTS         comma-separated host names that Realm answers to (default: this machine)
TEST_DATABASE_SUFFIX  optional: lets several test runs share one database server
"""

import os
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured
from psycopg.conninfo import conninfo_to_dict


def required(name):
    try:
        return os.environ[name]
    except KeyError:
        raise ImproperlyConfigured(f"{name} is not set. See README.md for the settings of Realm.") from None


def database(url, test_suffix):
    """Turn a libpq URL into Django's dictionary. libpq parses it, so that sockets and options work as everywhere."""
    options = conninfo_to_dict(url)
    name = options.pop("dbname")
    test_name = f"test_{name}_{test_suffix}" if test_suffix else f"test_{name}"
    return {
        "ENGINE": "django_prometheus.db.backends.postgresql",
        "NAME": name,
        "USER": options.pop("user", ""),
        "PASSWORD": options.pop("password", ""),
        "HOST": options.pop("host", ""),
        "PORT": options.pop("port", ""),
        "OPTIONS": options,
        "CONN_MAX_AGE": 300,
        "CONN_HEALTH_CHECKS": True,
        "TEST": {"NAME": test_name},
    }


BASE_DIR = Path(__file__).resolve().parent.parent

SECRET_KEY = required("SECRET_KEY")
DEBUG = False
ALLOWED_HOSTS = os.environ.get("ALLOWED_HOSTS", "127.0.0.1,localhost,[::1]").split(",")

INSTALLED_APPS = ["django.contrib.contenttypes", "django_prometheus", "game"]

MIDDLEWARE = [
    "django_prometheus.middleware.PrometheusBeforeMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django_prometheus.middleware.PrometheusAfterMiddleware",
    # Innermost, so that a fault is measured like any slow or failing view.
    "realm.faults.FaultMiddleware",
]

ROOT_URLCONF = "realm.urls"
WSGI_APPLICATION = "realm.wsgi.application"

DATABASES = {"default": database(required("DATABASE_URL"), os.environ.get("TEST_DATABASE_SUFFIX", ""))}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

USE_TZ = True
TIME_ZONE = "UTC"

# Seconds. Fine between 5 and 500 ms, where this API lives: a percentile is no better than the bucket it falls into.
PROMETHEUS_LATENCY_BUCKETS = (
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.0125, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.05, 0.06, 0.075, 0.09,
    0.11, 0.13, 0.16, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, float("inf"),
)  # fmt: skip
PROMETHEUS_EXPORT_MIGRATIONS = False

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "root": {"handlers": ["console"], "level": "INFO"},
}
