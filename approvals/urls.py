"""Pages of approvals that are no list of rows; they hang under /admin/."""

from django.contrib import admin
from django.urls import path

from approvals import views

urlpatterns = [
    path("second-factor/", admin.site.admin_view(views.step_up), name="second-factor"),
    path("second-factor/enrol/", admin.site.admin_view(views.enrol), name="second-factor-enrol"),
    path("second-factor/settings/", admin.site.admin_view(views.settings_page), name="second-factor-settings"),
]
