"""Stopping the digest from a mail, as RFC 8058 has it: whoever opens the link is asked, and only a POST does it."""

from __future__ import annotations

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods

from improvements.digest import subscribing


# Mail programs post without a cookie and without having opened a page of ours: the signed token is the proof.
@csrf_exempt
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def unsubscribe(request: HttpRequest, token: str) -> HttpResponse:
    """GET asks, and changes nothing: scanners of mail open every link. POST stops the digest of the token's person."""
    person = subscribing.reader_of_token(token)
    is_done = person is not None and request.method == "POST"
    if person is not None and is_done:
        because = "Through the link in the mail, without signing in."
        subscribing.subscribe(person, False, actor=person, because=because)
    context = {
        **admin.site.each_context(request),
        "title": "Weekly digest",
        "person": person,
        "is_done": is_done,
        "is_nav_sidebar_enabled": False,
    }
    answer = TemplateResponse(request, "digest/unsubscribe.html", context, status=200 if person else 404)
    answer.headers["Referrer-Policy"] = "no-referrer"  # the address is a key
    return answer
