"""The WSGI entry point: `gunicorn runerogue.wsgi`."""

import os

from django.core.wsgi import get_wsgi_application

from approvals import bodies

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "runerogue.settings")

application = bodies.timely(get_wsgi_application())
