"""The address that mails lead to without signing in."""

from django.urls import path

from improvements.digest import views

urlpatterns = [path("digest/unsubscribe/<str:token>", views.unsubscribe, name="digest-unsubscribe")]
