"""The digest in the admin: what was sent to whom, a preview of one's own, and whether it comes at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.http import urlencode
from django.utils.timezone import now
from django.views.decorators.clickjacking import xframe_options_sameorigin

from approvals import audit, limits, posting
from approvals.readonly import ReadOnly
from improvements.digest import rendering, sending, subscribing, weeks
from improvements.digest.composing import compose, due, last_week, reader_of
from improvements.digest.parts import Digest, Facts, Reader
from improvements.digest.weeks import Week
from improvements.models import DigestSent

if TYPE_CHECKING:  # Django's classes take no type parameter at run time
    DigestModelAdmin = admin.ModelAdmin[DigestSent]
else:
    DigestModelAdmin = admin.ModelAdmin

COPIES_PER_MINUTE = 2
# A mail brings its styles along and nothing else: no script, no picture from elsewhere, no form. Links open beside it.
OF_A_MAIL = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'; "
    "sandbox allow-popups allow-popups-to-escape-sandbox"
)


@admin.register(DigestSent)
class DigestSentAdmin(ReadOnly, DigestModelAdmin):
    actions = None
    nothing = "No digest was due yet. “My digest” shows what it will say."
    list_display = ["week", "reader", "state", "sent_at", "tries", "problem"]
    list_display_links = None
    list_filter = ["state", "week"]
    list_select_related = ["reader"]
    list_per_page = 50
    search_fields = ["reader__username", "week"]
    show_full_result_count = False
    change_list_template = "admin/improvements/digestsent/list.html"

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        return [
            path("mine/", view(self.mine), name="improvements_digestsent_mine"),
            path("mine/mail/", xframe_options_sameorigin(view(self.mail)), name="improvements_digestsent_mail"),
            path("mine/settings/", view(self.settings), name="improvements_digestsent_settings"),
            path("mine/send/", view(self.send), name="improvements_digestsent_send"),
            *super().get_urls(),
        ]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        return super().changelist_view(request, {"obstacle": sending.obstacle(), **(extra_context or {})})

    def mine(self, request: HttpRequest) -> HttpResponse:
        """The preview, with what it depends on."""
        reader, week = asked_for(request)
        as_text = request.GET.get("form") == "text"
        newest = last_week(reader.zone, now())
        own = {"as": reader.user.username} if reader.user != request.user else {}
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": "My digest" if not own else f"The digest of {reader.user.username}",
            "reader": reader,
            "zone_name": str(reader.zone),
            "is_own": not own,
            "week": week,
            "forms": [
                (name, address(own, week, name), name == ("text" if as_text else "mail")) for name in ("mail", "text")
            ],
            "weeks": [
                (words, address(own, one, "text" if as_text else "mail"), one == week)
                for words, one in offered(newest, weeks.week_of(now().astimezone(reader.zone).date()))
            ],
            "text": rendering.as_text(composed(request, reader, week)) if as_text else "",
            "mail_url": reverse("admin:improvements_digestsent_mail") + address(own, week),
            "next_at": reader.clock(due(newest.following, reader.zone)),
            "no_mail": sending.obstacle(),
            "latest": DigestSent.objects.filter(reader=reader.user).first(),
        }
        return TemplateResponse(request, "admin/improvements/digestsent/mine.html", context)

    def mail(self, request: HttpRequest) -> HttpResponse:
        """The HTML of the mail by itself, for the frame of the page: caged, and under rules of its own."""
        reader, week = asked_for(request)
        answer = HttpResponse(rendering.as_html(composed(request, reader, week)))
        answer._csp_exempt = True  # type: ignore[attr-defined]  # the middleware's rules are those of pages
        answer.headers["Content-Security-Policy"] = OF_A_MAIL
        return answer

    def settings(self, request: HttpRequest) -> HttpResponse:
        """Whether it comes, and in which time zone, for oneself."""
        back = HttpResponseRedirect(reverse("admin:improvements_digestsent_mine"))
        person = request.user
        if request.method != "POST" or not isinstance(person, User):
            return back
        try:
            subscribing.set_time_zone(person, request.POST.get("time_zone", ""), actor=person)
        except ValueError as error:
            messages.error(request, str(error))
            return back
        wants = request.POST.get("wants_digest") == "on"
        subscribing.subscribe(person, wants, actor=person, because="On the page of the digest.")
        messages.success(request, "Kept. You get the weekly digest." if wants else "Kept. You get no weekly digest.")
        return back

    def send(self, request: HttpRequest) -> HttpResponse:
        """A copy of the previewed week to oneself."""
        person = request.user
        back = HttpResponseRedirect(reverse("admin:improvements_digestsent_mine"))
        if request.method != "POST" or not isinstance(person, User):
            return back
        if seconds := limits.seconds_to_wait(f"digest copy {person.pk}", per_minute=COPIES_PER_MINUTE):
            messages.error(request, f"Not sent: you had {COPIES_PER_MINUTE} this minute. Try again in {seconds} s.")
            return back
        try:
            answer = sending.send_copy(person, weeks.parse(request.POST.get("week", "")), at=now(), actor=person)
        except (ValueError, posting.NotSent, posting.Undeliverable) as error:
            messages.error(request, f"Not sent. {error}")
        else:
            messages.success(request, f"Sent to {person.email}: {answer}.")
        return back


def address(own: dict[str, str], week: Week, form: str = "") -> str:
    return "?" + urlencode({**own, "week": str(week), **({"form": form} if form else {})})


def offered(newest: Week, current: Week) -> list[tuple[str, Week]]:
    """The weeks to choose from, in words: the last that was due, what comes next, and the one that goes on."""
    found = [(f"{newest}, the last", newest)]
    while found[-1][1] < current:
        one = found[-1][1].following
        found.append((f"{one}, so far" if one == current else f"{one}, the next", one))
    return found


def asked_for(request: HttpRequest) -> tuple[Reader, Week]:
    """Whose digest of which week the address asks for. Only a superuser may ask for somebody else's."""
    person = request.user
    assert isinstance(person, User)
    name = request.GET.get("as", "") or person.username
    if name != person.username:
        if not person.is_superuser:
            raise PermissionDenied("Only a superuser previews the digest of somebody else.")
        found = User.objects.filter(username=name).first()
        if found is None:
            raise Http404(f"There is no user {name!r}.")
        person = found
    reader = reader_of(person)
    try:
        week = weeks.parse(request.GET["week"]) if request.GET.get("week") else last_week(reader.zone, now())
    except ValueError as error:
        raise Http404(str(error)) from error
    return reader, week


def composed(request: HttpRequest, reader: Reader, week: Week) -> Digest:
    """What `reader` may see and nothing else, whoever looks. Looking at somebody else's is written down."""
    if reader.user != request.user:
        with transaction.atomic():
            audit.record("digest.previewed", reader.user, actor=request.user, data={"week": str(week)})
    return compose(reader, Facts.of(week, reader.zone, now()))
