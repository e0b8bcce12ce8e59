"""The pages of the second factor: give a code, set an authenticator up, and look after both."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.safestring import mark_safe
from django.utils.timezone import now

from approvals import second_factor
from approvals.admin.parts import signed_in
from approvals.models import RecoveryCode

WRONG = "That code is not right, or it was used already: each code counts once. Take the one that is shown now."


def step_up(request: HttpRequest) -> HttpResponse:
    """Asks for a code and leads on to `next`; who has no authenticator is led through setting one up first."""
    person, onward = signed_in(request), onward_from(request)
    if not second_factor.has_device(person):
        return HttpResponseRedirect(with_next("second-factor-enrol", onward))
    if request.method == "POST":
        at = now()
        if second_factor.verify(person, request.POST.get("code", ""), at):
            second_factor.note(request, at)
            messages.success(request, "Your second factor is confirmed for five minutes.")
            return HttpResponseRedirect(onward or reverse("second-factor-settings"))
        refuse(request)
    return page(request, "step_up", "Confirm that it is you", next=onward)


def enrol(request: HttpRequest) -> HttpResponse:
    """Shows the key as a picture and as text, takes the first code, and shows the recovery codes, once."""
    person, onward, at = signed_in(request), onward_from(request), now()
    if second_factor.has_device(person):
        if not second_factor.how(request, at).is_fresh:
            # Whoever finds an open browser must not put a device of their own in the place of the person's.
            return HttpResponseRedirect(with_next("second-factor", onward or reverse("second-factor-enrol")))
        if onward:
            # On the way to something else, it was done in another tab: a second key would only take its place.
            messages.info(request, "Your authenticator app is set up already.")
            return HttpResponseRedirect(onward)
    if request.method == "POST":
        codes = second_factor.confirm(person, request.POST.get("code", ""), at)
        if codes is not None:
            second_factor.note(request, at)
            return page(request, "codes", "Keep your recovery codes", codes=codes, next=onward)
        refuse(request)
    device = second_factor.begin(person, at)
    return page(
        request,
        "enrol",
        "Set up your authenticator app",
        # Drawn here from a key of ours and the person's name, which the drawing encodes.
        picture=mark_safe(second_factor.picture(device)),  # noqa: S308
        key=in_groups(second_factor.shown_key(device)),
        uri=second_factor.uri(device),
        next=onward,
    )


def settings_page(request: HttpRequest) -> HttpResponse:
    """What somebody has as second factor, new recovery codes, and its removal."""
    person, at = signed_in(request), now()
    by = second_factor.how(request, at)
    try:
        match request.POST.get("do") if request.method == "POST" else None:
            case "codes":
                codes = second_factor.new_recovery_codes(person, by=by, at=at)
                return page(request, "codes", "Keep your recovery codes", codes=codes, next="")
            case "remove":
                second_factor.remove(person, by=by, at=at)
                request.session.pop(second_factor.GIVEN_AT, None)
                messages.success(request, "Your second factor is removed. High and critical changes need a new one.")
                return HttpResponseRedirect(request.path)
    except second_factor.NotAllowed as refused:
        messages.warning(request, str(refused))
        return HttpResponseRedirect(second_factor.step_up_url(request))
    return page(
        request,
        "settings",
        "Your second factor",
        has_device=second_factor.has_device(person),
        codes_left=RecoveryCode.objects.left(person.pk).count(),
    )


def refuse(request: HttpRequest) -> None:
    seconds = second_factor.seconds_to_wait(signed_in(request))
    wait = f" The next code is looked at in {seconds} second{'' if seconds == 1 else 's'}." if seconds else ""
    messages.error(request, WRONG + wait)


def onward_from(request: HttpRequest) -> str:
    """The page of this site to go on to; "" without one."""
    return second_factor.safe_next(request, request.POST.get("next") or request.GET.get("next") or "")


def with_next(name: str, onward: str) -> str:
    return f"{reverse(name)}?{urlencode({'next': onward})}" if onward else reverse(name)


def in_groups(key: str) -> str:
    return " ".join(key[start : start + 4] for start in range(0, len(key), 4))


def page(request: HttpRequest, name: str, title: str, **context: Any) -> TemplateResponse:
    context = {**admin.site.each_context(request), "title": title, **context}
    return TemplateResponse(request, f"admin/second_factor/{name}.html", context, headers={"Cache-Control": "no-store"})
