"""The HTTP surface. Each app lists its own routes; this file only says where they hang."""

from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

urlpatterns = [
    path("", RedirectView.as_view(url="/admin/", permanent=False), name="front"),
    path("", include("monitoring.urls")),
    path("admin/", admin.site.urls),
]
