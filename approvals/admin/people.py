"""Who may what: accounts and groups, what is known of a person, deputies, and the people of services.

Whatever gives or takes a right on these pages is written down with what was before and after.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING, Any, TypeVar

from django import forms
from django.contrib import admin, messages
from django.contrib.auth.admin import GroupAdmin, UserAdmin
from django.contrib.auth.models import Group, User
from django.db import transaction
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse

from approvals import audit, deputies, roles, scopes
from approvals.admin.parts import signed_in
from approvals.models import Deputy, PersonSettings, TeamMember
from approvals.policy import Role

if TYPE_CHECKING:  # Django's classes take no type parameter at run time
    SettingsModelAdmin = admin.ModelAdmin[PersonSettings]
    DeputyModelAdmin = admin.ModelAdmin[Deputy]
    TeamModelAdmin = admin.ModelAdmin[TeamMember]
    AccountAdmin = UserAdmin[User]
    DeputyModelForm = forms.ModelForm[Deputy]
    TeamModelForm = forms.ModelForm[TeamMember]
else:
    SettingsModelAdmin = DeputyModelAdmin = TeamModelAdmin = admin.ModelAdmin
    AccountAdmin = UserAdmin
    DeputyModelForm = TeamModelForm = forms.ModelForm

Row = TypeVar("Row", bound=Model)
IN_THE_ADMIN = "changed in the admin"

# Django registers its own pages for these when it is imported; ours record what they change.
admin.site.unregister(User)
admin.site.unregister(Group)


def rights_of_user(user: User) -> dict[str, Any]:
    """What an account may, as the log writes it; names and addresses of people are not its business."""
    return {
        "name": user.username,
        "active": user.is_active,
        "staff": user.is_staff,
        "superuser": user.is_superuser,
        "groups": sorted(user.groups.values_list("name", flat=True)),
        "permissions": sorted(user.user_permissions.values_list("codename", flat=True)),
    }


def rights_of_group(group: Group) -> dict[str, Any]:
    return {"name": group.name, "permissions": sorted(group.permissions.values_list("codename", flat=True))}


def with_members(group: Group) -> dict[str, Any]:
    return {**rights_of_group(group), "members": sorted(group.user_set.values_list("username", flat=True))}


def delete_and_record(
    request: HttpRequest, action: str, rows: QuerySet[Row], facts: Callable[[Row], dict[str, Any]]
) -> None:
    """Delete these rows, each with an entry that says what it was.

    All are locked before the first is written down: an entry holds the head of the log until the end, and who holds
    one of the rows meanwhile may be waiting for that.
    """
    with transaction.atomic():
        roles.rights_change()  # deputies and members of teams go with their account
        chosen = type(rows)(rows.model).filter(pk__in=list(rows.values_list("pk", flat=True))).order_by("pk")
        gone = [(copy(row), facts(row)) for row in chosen.select_for_update()]
        chosen.delete()
        for row, was in gone:
            subject = row.user if isinstance(row, PersonSettings) else row
            audit.record(action, subject, actor=signed_in(request), was=was)


class AuditedUserAdmin(AccountAdmin):
    """Django's own page of accounts, recorded; `accounts.py` adds what concerns signing in."""

    tells_deletions = True
    list_display = ["username", "is_active", "is_staff", "is_superuser", "last_login"]
    readonly_fields = ["last_login", "date_joined"]  # what happened is not edited, and `settling` relies on it
    show_full_result_count = False

    def save_model(self, request: HttpRequest, obj: User, form: Any, change: bool) -> None:
        stored = User.objects.filter(pk=obj.pk).first()
        form.rights_before = rights_of_user(stored) if stored else None
        form.roles_before = roles.facts_of(stored, scope=roles.ANYWHERE).roles if stored else frozenset()
        super().save_model(request, obj, form, change)

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        super().save_related(request, form, formsets, change)
        user, actor = form.instance, signed_in(request)
        roles.changed(user, form.roles_before, actor=actor, because=IN_THE_ADMIN)
        audit.record(
            "person.changed" if change else "person.created",
            user,
            actor=actor,
            was=form.rights_before,
            became=rights_of_user(user),
            data={"fields": form.changed_data},
        )

    def delete_model(self, request: HttpRequest, obj: User) -> None:
        self.delete_queryset(request, User.objects.filter(pk=obj.pk))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        delete_and_record(request, "person.deleted", queryset, rights_of_user)

    def user_change_password(self, request: HttpRequest, id: str, form_url: str = "") -> HttpResponse:  # noqa: A002
        # A password is kept with its entry, which `passwords.Recorded` writes, or not at all.
        with transaction.atomic():
            answer: HttpResponse = super().user_change_password(request, id, form_url)
            return answer


@admin.register(Group)
class AuditedGroupAdmin(GroupAdmin):
    tells_deletions = True
    show_full_result_count = False

    def save_model(self, request: HttpRequest, obj: Group, form: Any, change: bool) -> None:
        stored = Group.objects.filter(pk=obj.pk).first()
        form.rights_before = rights_of_group(stored) if stored else None
        super().save_model(request, obj, form, change)

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        super().save_related(request, form, formsets, change)
        audit.record(
            "group.changed" if change else "group.created",
            form.instance,
            actor=signed_in(request),
            was=form.rights_before,
            became=rights_of_group(form.instance),
        )

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        # A role's group is what makes people hold the role.
        return super().has_delete_permission(request, obj) and not (obj is not None and hasattr(obj, "role"))

    def delete_model(self, request: HttpRequest, obj: Group) -> None:
        self.delete_queryset(request, Group.objects.filter(pk=obj.pk))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Group]) -> None:
        delete_and_record(request, "group.deleted", queryset, with_members)


def kept(row: PersonSettings) -> dict[str, Any]:
    return {
        "is_service_account": row.is_service_account,
        "time_zone": row.time_zone,
        "wants_digest": row.wants_digest,
    }


@admin.register(PersonSettings)
class PersonSettingsAdmin(SettingsModelAdmin):
    tells_deletions = True
    nothing = "Nobody has settings of their own. Without any, a person is no program and their times are UTC."
    list_display = ["user", "is_service_account", "time_zone", "wants_digest"]
    list_filter = ["is_service_account"]
    list_select_related = ["user"]
    search_fields = ["user__username"]
    show_full_result_count = False
    actions = None

    def get_readonly_fields(self, request: HttpRequest, obj: PersonSettings | None = None) -> list[str]:
        return ["user"] if obj else []

    def save_model(self, request: HttpRequest, obj: PersonSettings, form: Any, change: bool) -> None:
        with transaction.atomic():
            roles.rights_change()
            stored = PersonSettings.objects.filter(pk=obj.pk).first()
            super().save_model(request, obj, form, change)
            audit.record(
                "person.settings",
                obj.user,
                actor=signed_in(request),
                was=kept(stored) if stored else None,
                became=kept(obj),
            )

    def delete_model(self, request: HttpRequest, obj: PersonSettings) -> None:
        delete_and_record(request, "person.settings", PersonSettings.objects.filter(pk=obj.pk), kept)


def people_who_may_sign() -> QuerySet[User]:
    """Whom forms offer: active, and no program."""
    programs = PersonSettings.objects.filter(is_service_account=True).values("user_id")
    return User.objects.filter(is_active=True).exclude(pk__in=programs).order_by("username")


class DeputyForm(DeputyModelForm):
    actor: User  # set by the admin

    class Meta:
        model = Deputy
        fields = ["principal", "deputy", "role", "since", "until", "because"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        people = people_who_may_sign().filter(is_staff=True)
        self.fields["deputy"].queryset = people.exclude(pk=self.actor.pk)  # type: ignore[attr-defined]
        principals = people if self.actor.is_superuser else people.filter(pk=self.actor.pk)
        self.fields["principal"].queryset = principals  # type: ignore[attr-defined]
        self.fields["principal"].initial = self.actor.pk

    def clean(self) -> dict[str, Any]:
        given: dict[str, Any] = super().clean() or self.cleaned_data
        if not self.errors and (why := deputies.why_not(**asked(given), actor=self.actor)):
            raise forms.ValidationError(why)
        return given


def asked(given: dict[str, Any]) -> dict[str, Any]:
    return {**given, "role": Role(given["role"]) if given["role"] else None}


@admin.register(Deputy)
class DeputyAdmin(DeputyModelAdmin):
    """Everybody of the staff names deputies of their own; the rules are the domain's."""

    nothing = "Nobody stands in for anybody. Name a deputy before you are away: nothing is approved by silence."
    form = DeputyForm
    list_display = ["principal", "deputy", "role_shown", "since", "until", "ended_at", "because", "made_by"]
    list_display_links = None
    list_select_related = ["principal", "deputy", "made_by"]
    search_fields = ["principal__username", "deputy__username", "because"]
    show_full_result_count = False
    actions = ["end"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return request.user.is_active and request.user.is_staff

    def has_change_permission(self, request: HttpRequest, obj: Deputy | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Deputy | None = None) -> bool:
        return False  # it is ended: what was signed that way stays explained

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        form = super().get_form(request, obj, change=change, **kwargs)
        return type(form.__name__, (form,), {"actor": signed_in(request)})

    def save_model(self, request: HttpRequest, obj: Deputy, form: Any, change: bool) -> None:
        obj.pk = deputies.name_deputy(**asked(form.cleaned_data), actor=signed_in(request)).pk

    @admin.display(description="as")
    def role_shown(self, row: Deputy) -> str:
        return row.get_role_display() if row.role else "every role"

    @admin.action(description="End now")
    def end(self, request: HttpRequest, queryset: QuerySet[Deputy]) -> None:
        ended = 0
        for row in queryset.select_related("principal", "deputy"):
            try:
                deputies.end_deputy(row, actor=signed_in(request), because="ended in the admin")
                ended += 1
            except deputies.NotNamed as refused:
                messages.error(request, str(refused))
        messages.success(request, f"{ended} ended.")


class TeamMemberForm(TeamModelForm):
    class Meta:
        model = TeamMember
        fields = ["scope", "role", "person"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["scope"] = forms.ChoiceField(
            label="Service", choices=[("", "---------"), *((name, name) for name in scopes.names())]
        )
        self.fields["person"].queryset = people_who_may_sign()  # type: ignore[attr-defined]


@admin.register(TeamMember)
class TeamMemberAdmin(TeamModelAdmin):
    """The CTO's group and superusers may name the people of a service, which takes the role there from the rest."""

    tells_deletions = True
    nothing = "No service names its own people, so every role counts for all of them."
    form = TeamMemberForm
    list_display = ["scope", "role", "person"]
    list_display_links = None
    list_filter = ["scope", "role"]
    list_select_related = ["person"]
    search_fields = ["scope", "person__username"]
    show_full_result_count = False

    def has_change_permission(self, request: HttpRequest, obj: TeamMember | None = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: TeamMember, form: Any, change: bool) -> None:
        obj.pk = deputies.name_member(obj.scope, Role(obj.role), obj.person, actor=signed_in(request)).pk

    def delete_model(self, request: HttpRequest, obj: TeamMember) -> None:
        deputies.drop_member(obj, actor=signed_in(request))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[TeamMember]) -> None:
        with transaction.atomic():
            for row in queryset.select_related("person"):
                self.delete_model(request, row)
