"""The addresses of governance that machines ask."""

from django.urls import path

from improvements.governance import api

urlpatterns = [
    path("api/v1/reviews", api.Reviews.as_view(), name="api-reviews"),
    path("api/v1/reviews/<int:id>", api.OneReview.as_view(), name="api-review"),
    path("api/v1/scorecard", api.Scorecard.as_view(), name="api-scorecard"),
]
