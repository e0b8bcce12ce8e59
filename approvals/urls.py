"""The routes of approvals: pages that are no list of rows, and the REST API."""

from django.contrib import admin
from django.urls import path

from approvals import api, views

urlpatterns = [
    path("admin/second-factor/", admin.site.admin_view(views.step_up), name="second-factor"),
    path("admin/second-factor/enrol/", admin.site.admin_view(views.enrol), name="second-factor-enrol"),
    path("admin/second-factor/settings/", admin.site.admin_view(views.settings_page), name="second-factor-settings"),
    path("api/v1/approvals", api.Approvals.as_view(), name="api-approvals"),
    path("api/v1/approvals/<int:id>", api.OneApproval.as_view(), name="api-approval"),
    path("api/v1/approvals/<int:id>/sign", api.Sign.as_view(), name="api-approval-sign"),
    path("api/v1/approvals/<int:id>/reject", api.Reject.as_view(), name="api-approval-reject"),
    path("api/v1/approvals/<int:id>/changes", api.AskForChanges.as_view(), name="api-approval-changes"),
    path("api/v1/approvals/<int:id>/revoke", api.Revoke.as_view(), name="api-approval-revoke"),
    path("api/v1/approvals/<int:id>/comments", api.SayComment.as_view(), name="api-approval-comments"),
]
