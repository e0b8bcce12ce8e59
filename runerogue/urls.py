"""The HTTP surface. Each app lists its own routes; this file only says where they hang."""

from django.conf import settings
from django.contrib import admin
from django.urls import include, path, re_path
from django.views.generic import RedirectView

from approvals.rest import unknown_address

admin.site.site_header = admin.site.site_title = "RuneRogue"
admin.site.site_url = None

urlpatterns = [
    path("", RedirectView.as_view(url="/admin/", permanent=False), name="front"),
    # Browsers ask for it by this name on pages that name none, such as JSON.
    path("favicon.ico", RedirectView.as_view(url=f"{settings.STATIC_URL}favicon.svg")),
    path("", include("monitoring.urls")),
    path("", include("approvals.urls")),
    path("", include("improvements.governance.urls")),
    path("", include("improvements.digest.urls")),
    path("admin/", admin.site.urls),
    # Last: what no app knows under /api/ is told in the form of the API, not as a page.
    re_path(r"^api/", unknown_address),
]
