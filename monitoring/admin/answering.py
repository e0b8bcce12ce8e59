"""The alert's page and what people do there: acknowledge, give back, hand over, silence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ActionForm
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils.timezone import now

from monitoring import answering, notifying
from monitoring.admin import charts
from monitoring.admin.pages import labels_in_words
from monitoring.models import Alert, AlertState, EscalationStep, Notice

MAY_ANSWER = "monitoring.change_alert"
SILENCE_HOURS = ((1, "1 hour"), (4, "4 hours"), (12, "12 hours"), (24, "1 day"), (168, "1 week"), (720, "30 days"))


class CommentForm(ActionForm):
    """What a bulk action is done for."""

    comment = forms.CharField(required=False, max_length=500, label="Comment:")


@dataclass(frozen=True)
class AlertPage:
    """Everything the page of an alert says."""

    alert: Alert
    labels: str
    is_firing: bool
    is_escalating: bool
    steps: list[EscalationStep]
    notices: list[Notice]
    people: list[User]
    chart: str
    hours: tuple[tuple[int, str], ...] = SILENCE_HOURS


def page_of(alert: Alert) -> AlertPage:
    """The page as it is now. Reads the database, changes nothing."""
    steps = EscalationStep.objects.filter(contact__enabled=True).select_related("contact")
    own = list(steps.filter(service=alert.service))
    is_firing = alert.state == AlertState.FIRING
    return AlertPage(
        alert=alert,
        labels=labels_in_words(alert.labels),
        is_firing=is_firing,
        is_escalating=is_firing and alert.acknowledged_at is None and not alert.suppressed_by,
        steps=own or list(steps.filter(service=None)),
        notices=list(notifying.told_in_order(alert)),
        people=list(User.objects.filter(is_active=True, is_staff=True).order_by("username")),
        chart=charts.of_alert(alert, now()),
    )


class Answered(admin.ModelAdmin[Alert]):
    """What the admin of alerts can do. Each button is one call into the domain, whose rules answer."""

    change_form_template = "admin/monitoring/alert/page.html"
    action_form = CommentForm
    actions = ["acknowledge_selected", "silence_selected"]

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        own = [
            path(f"<int:pk>/{name}/", view(act), name=f"monitoring_alert_{name}")
            for name, act in (
                ("acknowledge", self.acknowledge),
                ("unacknowledge", self.unacknowledge),
                ("assign", self.assign),
                ("silence", self.silence),
                ("judge", self.judge),
            )
        ]
        return [*own, *super().get_urls()]

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        return super().get_actions(request) if request.user.has_perm(MAY_ANSWER) else {}

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        context = dict(extra_context or {})
        alert = self.get_object(request, object_id)
        if alert is not None:
            context |= {
                "title": f"{alert.name} on {alert.service}",
                "subtitle": None,
                "page": page_of(alert),
                "may_answer": request.user.has_perm(MAY_ANSWER),
            }
        return super().change_view(request, object_id, form_url, context)

    def acknowledge(self, request: HttpRequest, pk: int) -> HttpResponse:
        def act(alert: Alert, actor: User, comment: str) -> str:
            answering.acknowledge(alert, actor=actor, comment=comment, at=now())
            return "Acknowledged. Nobody else is told of it."

        return self._act(request, pk, act)

    def unacknowledge(self, request: HttpRequest, pk: int) -> HttpResponse:
        def act(alert: Alert, actor: User, comment: str) -> str:
            answering.unacknowledge(alert, actor=actor, comment=comment, at=now())
            return "Given back. Escalation begins anew."

        return self._act(request, pk, act)

    def assign(self, request: HttpRequest, pk: int) -> HttpResponse:
        def act(alert: Alert, actor: User, comment: str) -> str:
            owner = User.objects.filter(username=request.POST.get("owner", ""), is_staff=True).first()
            if owner is None:
                raise answering.Refused("Choose who owns it.")
            answering.assign(alert, owner, actor=actor, comment=comment)
            return f"It is {owner}'s now."

        return self._act(request, pk, act)

    def silence(self, request: HttpRequest, pk: int) -> HttpResponse:
        def act(alert: Alert, actor: User, comment: str) -> str:
            hours = dict(SILENCE_HOURS)
            chosen = request.POST.get("hours", "")
            if not chosen.isdigit() or int(chosen) not in hours:
                raise answering.Refused("Choose for how long.")
            answering.silence_alert(alert, actor=actor, reason=comment, hours=int(chosen), at=now())
            notifying.decide(now())
            return f"Silenced for {hours[int(chosen)]}."

        return self._act(request, pk, act)

    def judge(self, request: HttpRequest, pk: int) -> HttpResponse:
        def act(alert: Alert, actor: User, comment: str) -> str:
            told = {"false": True, "real": False}.get(request.POST.get("was", ""))
            if told is None:
                raise answering.Refused("Choose whether it was a false alarm.")
            answering.judge(alert, was_false=told, actor=actor, comment=comment)
            return "Noted: a false alarm." if told else "Noted: it was right to fire."

        return self._act(request, pk, act)

    @admin.action(description="Acknowledge, with the comment")
    def acknowledge_selected(self, request: HttpRequest, queryset: QuerySet[Alert]) -> None:
        self._act_on_all(
            request,
            queryset,
            lambda alert, actor, comment: answering.acknowledge(alert, actor=actor, comment=comment, at=now()),
            done="Acknowledged",
        )

    @admin.action(description="Silence for an hour, with the comment")
    def silence_selected(self, request: HttpRequest, queryset: QuerySet[Alert]) -> None:
        self._act_on_all(
            request,
            queryset,
            lambda alert, actor, comment: answering.silence_alert(
                alert, actor=actor, reason=comment, hours=1, at=now()
            ),
            done="Silenced",
        )

    def _act_on_all(
        self,
        request: HttpRequest,
        queryset: QuerySet[Alert],
        act: Callable[[Alert, User, str], object],
        *,
        done: str,
    ) -> None:
        actor = request.user
        assert isinstance(actor, User)
        count = 0
        for alert in queryset.select_related("service"):
            try:
                act(alert, actor, request.POST.get("comment", ""))
            except (answering.Refused, ValidationError) as refused:
                messages.error(request, in_words(refused))
            else:
                count += 1
        if count:
            notifying.decide(now())
            messages.success(request, f"{done}: {count} alert{'' if count == 1 else 's'}.")

    def _act(self, request: HttpRequest, pk: int, act: Callable[[Alert, User, str], str]) -> HttpResponse:
        back = HttpResponseRedirect(reverse("admin:monitoring_alert_change", args=[pk]))
        actor = request.user
        if request.method != "POST":
            return back
        if not isinstance(actor, User) or not actor.has_perm(MAY_ANSWER):
            messages.error(request, "You may look at alerts, but not answer them.")
            return back
        try:
            told = act(Alert.objects.select_related("service").get(pk=pk), actor, request.POST.get("comment", ""))
        except (answering.Refused, ValidationError) as refused:
            messages.error(request, in_words(refused))
        except Alert.DoesNotExist:
            messages.error(request, f"There is no alert {pk}.")
        else:
            messages.success(request, told)
        return back


def in_words(refused: answering.Refused | ValidationError) -> str:
    return " ".join(refused.messages) if isinstance(refused, ValidationError) else str(refused)
