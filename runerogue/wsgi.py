"""The WSGI entry point: `gunicorn runerogue.wsgi`."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "runerogue.settings")

application = get_wsgi_application()
