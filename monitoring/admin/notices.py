"""Who is told, what is kept quiet, and the outbox."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.auth.models import User
from django.db import models, transaction
from django.db.models import QuerySet
from django.forms import ModelForm
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html_join
from django.utils.safestring import SafeString
from django.utils.timezone import now

from approvals import audit, recurrence
from approvals.concealing import Unreadable
from approvals.readonly import ReadOnly
from monitoring import answering, notifying
from monitoring.admin.pages import NONE, Audited
from monitoring.models import Contact, EscalationStep, MaintenanceWindow, Notice, Page, Silence
from monitoring.notifiers import NOTIFIERS, Message
from monitoring.routing import Outbox

FEW_LABELS = forms.Textarea(attrs={"rows": 2, "class": "vLargeTextField"})
SECRET = forms.PasswordInput(render_value=False, attrs={"autocomplete": "new-password", "class": "vTextField"})


class ContactForm(forms.ModelForm[Contact]):
    """`new_secret` goes in and never out."""

    medium = forms.ChoiceField()
    new_secret = forms.CharField(
        label="Secret",
        required=False,
        max_length=200,
        widget=SECRET,
        help_text="Signs webhooks; at least 16 characters. It is never shown again. Empty: as it was.",
    )

    class Meta:
        model = Contact
        fields = ["name", "medium", "address", "enabled"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        known = list(NOTIFIERS)
        if self.instance.medium and self.instance.medium not in known:
            known.append(self.instance.medium)  # its package was removed: the page must open all the same
        medium = self.fields["medium"]
        assert isinstance(medium, forms.ChoiceField)
        medium.choices = [(name, name.capitalize()) for name in known]

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        notifier = NOTIFIERS.get(cleaned.get("medium", ""))
        try:
            secret = cleaned.get("new_secret") or self.instance.secret
        except Unreadable as error:
            self.add_error("new_secret", str(error))
            return cleaned
        # That email is not configured yet is shown beside the contact, and is no reason not to write it down.
        if notifier is not None and notifier.name != "email":
            if problem := notifier.obstacle(cleaned.get("address", ""), secret):
                self.add_error("new_secret" if "secret" in problem.split(",")[0] else "address", problem)
        elif notifier is not None:
            try:
                forms.EmailField().clean(cleaned.get("address", ""))
            except forms.ValidationError as error:
                self.add_error("address", error)
        return cleaned


@admin.register(Contact)
class ContactAdmin(admin.ModelAdmin[Contact]):
    form = ContactForm
    nothing = "Nobody can be told yet. Add a contact, then say in the escalation steps when it is told."
    list_display = ["name", "medium", "address", "enabled", "works"]
    list_filter = ["medium", "enabled"]
    show_full_result_count = False
    fields = ["name", "medium", "address", "new_secret", "enabled", "works"]
    readonly_fields = ["works"]
    change_form_template = "admin/monitoring/contact/page.html"

    def has_delete_permission(self, request: HttpRequest, obj: Contact | None = None) -> bool:
        return False  # a contact is switched off: who was told stays on record

    @admin.display(description="can be reached")
    def works(self, contact: Contact) -> str:
        if not contact.pk:
            return NONE
        notifier = NOTIFIERS.get(contact.medium)
        if notifier is None:
            return f"No: there is no medium {contact.medium!r}; was its package removed?"
        if not contact.enabled:
            return "No: it is switched off."
        try:
            obstacle = notifier.obstacle(contact.address, contact.secret)
        except Unreadable as error:
            obstacle = str(error)
        return f"No. {obstacle}" if obstacle else "Yes, as far as can be told without trying."

    def save_model(self, request: HttpRequest, obj: Contact, form: ModelForm[Contact], change: bool) -> None:
        """The audit log learns that the secret was changed, and nothing of the secret."""
        changed = [name for name in form.changed_data if name != "new_secret"]
        was = {name: form.initial.get(name) for name in changed} if change else None
        became: dict[str, Any] = {name: getattr(obj, name) for name in changed}
        if form.cleaned_data.get("new_secret"):
            obj.secret = form.cleaned_data["new_secret"]
            became["secret"] = "set"  # noqa: S105 (that is all that is said of it)
        super().save_model(request, obj, form, change)
        if became:
            action = f"contact.{'changed' if change else 'added'}"
            audit.record(action, obj, actor=request.user, was=was, became=became)

    def get_urls(self) -> list[URLPattern]:
        test = path("<int:pk>/test/", self.admin_site.admin_view(self.test), name="monitoring_contact_test")
        return [test, *super().get_urls()]

    def test(self, request: HttpRequest, pk: int) -> HttpResponse:
        back = HttpResponseRedirect(reverse("admin:monitoring_contact_change", args=[pk]))
        contact = Contact.objects.filter(pk=pk).first()
        actor = request.user
        if request.method != "POST" or contact is None:
            return back
        if not isinstance(actor, User) or not self.has_change_permission(request, contact):
            messages.error(request, "You may look at contacts, but not test them.")
            return back
        notice = notifying.send_test(contact, actor=actor, at=now())
        messages.success(request, "A test is on its way. This page shows what came of it; open it again in a moment.")
        return HttpResponseRedirect(reverse("admin:monitoring_notice_change", args=[notice.pk]))


@admin.register(EscalationStep)
class EscalationStepAdmin(Audited, admin.ModelAdmin[EscalationStep]):
    tells_deletions = True
    nothing = "Nobody is told of any alert. Add a step for a contact; without a service it counts for every service."
    list_display = ["contact", "for_service", "when", "again", "of_what"]
    list_filter = ["service"]
    list_select_related = ["service", "contact"]
    show_full_result_count = False
    fields = ["contact", "service", "after_minutes", "repeat_minutes", "critical_only"]

    @admin.display(description="service", ordering="service")
    def for_service(self, step: EscalationStep) -> str:
        return str(step.service) if step.service else "every other service"

    @admin.display(description="is told", ordering="after_minutes")
    def when(self, step: EscalationStep) -> str:
        return f"after {step.after_minutes} min without an acknowledgement" if step.after_minutes else "at once"

    @admin.display(description="of", ordering="critical_only")
    def of_what(self, step: EscalationStep) -> str:
        return "critical alerts" if step.critical_only else "all alerts"

    @admin.display(ordering="repeat_minutes")
    def again(self, step: EscalationStep) -> str:
        return f"every {step.repeat_minutes} min" if step.repeat_minutes else "no"

    def delete_model(self, request: HttpRequest, obj: EscalationStep) -> None:
        self.delete_queryset(request, EscalationStep.objects.filter(pk=obj.pk))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[EscalationStep]) -> None:
        with transaction.atomic():
            rows = queryset.select_related("contact", "service").select_for_update(of=["self"]).order_by("pk")
            for step in rows:
                was = {"step": str(step), "service": step.service}
                audit.record("escalationstep.removed", step, actor=request.user, was=was)
                step.delete()


@admin.register(Silence)
class SilenceAdmin(admin.ModelAdmin[Silence]):
    nothing = "Nothing is silenced. A silence is made on the page of an alert, or here for what is still to come."
    list_display = ["__str__", "labels_shown", "stands", "starts_at", "ends_at", "author", "reason"]
    list_filter = ["service"]
    list_select_related = ["service", "author"]
    show_full_result_count = False
    fields = ["service", "rule", "labels", "starts_at", "ends_at", "reason"]
    change_form_template = "admin/monitoring/silence/page.html"
    formfield_overrides = {models.JSONField: {"widget": FEW_LABELS}}

    def has_change_permission(self, request: HttpRequest, obj: Silence | None = None) -> bool:
        return False  # what was silenced stays on record; it is ended, and another one made

    def has_delete_permission(self, request: HttpRequest, obj: Silence | None = None) -> bool:
        return False

    def get_fields(self, request: HttpRequest, obj: Silence | None = None) -> Any:
        return ["stands", *self.fields, "author"] if obj else self.fields

    def get_readonly_fields(self, request: HttpRequest, obj: Silence | None = None) -> Any:
        return ["stands"] if obj else []

    @admin.display(description="labels")
    def labels_shown(self, silence: Silence) -> str:
        return ", ".join(f"{name} {value}" for name, value in sorted(silence.labels.items())) or "any"

    @admin.display(description="state", ordering="ends_at")
    def stands(self, silence: Silence) -> str:
        return silence.state(now()) if silence.pk else NONE

    def save_model(self, request: HttpRequest, obj: Silence, form: ModelForm[Silence], change: bool) -> None:
        assert isinstance(request.user, User)
        answering.begin(obj, actor=request.user)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        silence = self.get_object(request, object_id)
        context = {
            **(extra_context or {}),
            "may_end": request.user.has_perm("monitoring.change_silence")
            and silence is not None
            and silence.state(now()) != "over",
        }
        return super().change_view(request, object_id, form_url, context)

    def get_urls(self) -> list[URLPattern]:
        end = path("<int:pk>/end/", self.admin_site.admin_view(self.end), name="monitoring_silence_end")
        return [end, *super().get_urls()]

    def end(self, request: HttpRequest, pk: int) -> HttpResponse:
        back = HttpResponseRedirect(reverse("admin:monitoring_silence_change", args=[pk]))
        silence = Silence.objects.filter(pk=pk).first()
        actor = request.user
        if request.method != "POST" or silence is None:
            return back
        if not isinstance(actor, User) or not actor.has_perm("monitoring.change_silence"):
            messages.error(request, "You may look at silences, but not end them.")
            return back
        try:
            answering.end_silence(silence, actor=actor, comment=request.POST.get("comment", ""), at=now())
        except answering.Refused as refused:
            messages.error(request, str(refused))
        else:
            messages.success(request, "Ended. Its alerts are told again.")
        return back


@admin.register(MaintenanceWindow)
class MaintenanceWindowAdmin(Audited, admin.ModelAdmin[MaintenanceWindow]):
    nothing = "No maintenance is planned. While a window is open, alerts fire and are kept, and nobody is told."
    list_display = ["name", "for_service", "recurrence_shown", "timezone", "open_now", "enabled", "reason"]
    list_filter = ["enabled", "service"]
    list_select_related = ["service"]
    show_full_result_count = False
    fields = [
        "name", "service", "reason", "timezone", "first_day", "begins", "duration_minutes", "recurrence", "enabled",
        "next_times",
    ]  # fmt: skip
    readonly_fields = ["next_times"]

    @admin.display(description="service", ordering="service")
    def for_service(self, row: MaintenanceWindow) -> str:
        return str(row.service) if row.service else "every service"

    @admin.display(description="happens", ordering="recurrence")
    def recurrence_shown(self, row: MaintenanceWindow) -> str:
        day = f"from {row.first_day}" if row.recurrence else f"once, {row.first_day}"
        return f"{row.recurrence} {day} {row.begins:%H:%M}, {row.duration_minutes} min".strip()

    @admin.display(description="open now")
    def open_now(self, row: MaintenanceWindow) -> str:
        try:
            return "yes" if row.enabled and recurrence.open_until(row.window, now()) else "no"
        except recurrence.BadWindow as error:
            return str(error)

    @admin.display(description="next times")
    def next_times(self, row: MaintenanceWindow) -> SafeString | str:
        if not row.pk:
            return "Shown when it is saved."
        try:
            times = recurrence.upcoming(row.window, now())
        except recurrence.BadWindow as error:
            return str(error)
        zone = recurrence.zone_of(row.timezone)
        lines = [
            (f"{begin:%a %Y-%m-%d %H:%M} to {end:%a %H:%M} UTC ({begin.astimezone(zone):%H:%M} {row.timezone})",)
            for begin, end in times
        ]
        return format_html_join("", "<div>{}</div>", lines) if lines else "None: it is over."


@admin.register(Notice)
class NoticeAdmin(ReadOnly, admin.ModelAdmin[Notice]):
    nothing = "Nothing was told yet. A notice is written when an alert fires and an escalation step has a contact."
    list_display = ["title", "contact", "result", "created_at", "sent_at", "attempts"]
    list_filter = ["state", "kind", "contact", "service"]
    list_select_related = ["contact"]
    search_fields = ["title"]
    show_full_result_count = False
    actions = ["try_selected_again"]
    fields = [
        "title", "kind", "contact", "service", "result", "created_at", "sent_at", "attempts", "next_at", "says",
        "about", "key",
    ]  # fmt: skip
    readonly_fields = ["result", "says", "about"]
    change_form_template = "admin/monitoring/notice/page.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Notice]:
        listing = request.resolver_match is not None and str(request.resolver_match.url_name).endswith("_changelist")
        rows = super().get_queryset(request)
        return rows.defer("message") if listing else rows

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        context = {"title": "Notices", "subtitle": str(notifying.outbox(now())), **(extra_context or {})}
        return super().changelist_view(request, context)

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        return super().get_actions(request) if request.user.has_perm("monitoring.change_notice") else {}

    @admin.display(ordering="state")
    def result(self, notice: Notice) -> str:
        return notice_in_words(notice)

    @admin.display
    def says(self, notice: Notice) -> SafeString:
        message = Message.from_json(notice.message)
        texts = [message.body, *(f"{line.service}: {line.text}" for line in message.lines)]
        return format_html_join("", '<div class="rr-line">{}</div>', ((text,) for text in texts if text))

    @admin.display(description="alerts")
    def about(self, notice: Notice) -> SafeString | str:
        rows = (
            (reverse("admin:monitoring_alert_change", args=[alert.pk]), str(alert))
            for alert in notice.alerts.select_related("service")
        )
        return format_html_join("", '<div><a href="{}">{}</a></div>', rows) or "none"

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        notice = self.get_object(request, object_id)
        may = request.user.has_perm("monitoring.change_notice") and notice is not None
        context = {
            **(extra_context or {}),
            "may_try": may and notice is not None and notice.state == Outbox.DEAD,
            "may_take": may and notice is not None and self._is_open(notice.page),
        }
        return super().change_view(request, object_id, form_url, context)

    def _is_open(self, page: Page | None) -> bool:
        return page is not None and page.ended_at is None and page.taken_at is None

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        return [
            path("<int:pk>/again/", view(self.again), name="monitoring_notice_again"),
            path("<int:pk>/take/", view(self.take), name="monitoring_notice_take"),
            *super().get_urls(),
        ]

    @admin.action(description="Try again")
    def try_selected_again(self, request: HttpRequest, queryset: QuerySet[Notice]) -> None:
        actor = request.user
        assert isinstance(actor, User)
        tried = sum(notifying.try_again(notice, actor=actor, at=now()) for notice in queryset)
        left = queryset.count() - tried
        if tried:
            messages.success(request, f"{tried} will be tried again.")
        if left:
            messages.warning(request, f"{left} had not been given up, and were left alone.")

    def again(self, request: HttpRequest, pk: int) -> HttpResponse:
        def act(notice: Notice, actor: User) -> str:
            if not notifying.try_again(notice, actor=actor, at=now()):
                raise ValueError("It is not given up any more.")
            return "It is tried again. Open this page again in a moment."

        return self._act(request, pk, act)

    def take(self, request: HttpRequest, pk: int) -> HttpResponse:
        def act(notice: Notice, actor: User) -> str:
            if notice.page is None:
                raise ValueError("Only a page can be taken; an alert is acknowledged on its own page.")
            notifying.take_page(notice.page, actor=actor, comment=request.POST.get("comment", ""), at=now())
            return "It is yours. Nobody else is told, and it is not repeated."

        return self._act(request, pk, act)

    def _act(self, request: HttpRequest, pk: int, act: Any) -> HttpResponse:
        back = HttpResponseRedirect(reverse("admin:monitoring_notice_change", args=[pk]))
        notice = Notice.objects.select_related("service", "contact", "page").filter(pk=pk).first()
        actor = request.user
        if request.method != "POST" or notice is None:
            return back
        if not isinstance(actor, User) or not actor.has_perm("monitoring.change_notice"):
            messages.error(request, "You may look at notices, but not send them.")
            return back
        try:
            messages.success(request, act(notice, actor))
        except ValueError as refused:
            messages.error(request, str(refused))
        return back


def notice_in_words(notice: Notice) -> str:
    """How it stands, for a person."""
    match notice.state:
        case Outbox.SENT:
            return f"sent ({notice.answer})"
        case Outbox.DEAD:
            return f"not delivered. {notice.last_error}"
        case Outbox.CALLED_OFF:
            return f"called off. {notice.last_error}"
        case _ if notice.last_error:
            return f"waits for attempt {notice.attempts + 1}. {notice.last_error}"
        case _:
            return "waits"
