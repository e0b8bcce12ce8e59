"""The same people in every test: alice proposes, bob leads, carol is an architect, dave the CTO, erin on call; mallory
may not, whoever mallory is. The fixtures are there for every test once a conftest imports them.
"""

from __future__ import annotations

import factory
import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils.timezone import now

from approvals import roles, second_factor
from approvals.models import RoleGroup
from approvals.policy import Channel, How, Role

# Somebody on a page who gave a second factor just now.
FRESH = How(Channel.PAGE, second_factor_age_seconds=1.0)
PASSWORD = "correct horse battery staple"


class UserFactory(factory.django.DjangoModelFactory[User]):
    """A member of staff; `roles=[Role.LEAD]` puts them into groups."""

    class Meta:
        model = User
        django_get_or_create = ("username",)
        skip_postgeneration_save = True

    username = factory.Sequence(lambda number: f"person{number}")
    is_staff = True
    # Hashing takes a third of a second, and few tests sign in with a password.
    password = "!"

    @factory.post_generation
    def roles(self: User, create: bool, extracted: list[Role] | None, **kwargs: object) -> None:  # type: ignore[misc]
        roles.ensure_groups()
        for role in extracted or ():
            self.groups.add(RoleGroup.objects.get(role=role).group)


def person(username: str, *held: Role, **fields: object) -> User:
    """The user of that name with these roles, made when missing."""
    return UserFactory(username=username, roles=list(held), **fields)


def give_second_factor(client: Client) -> None:
    """As if the signed-in person had given a code of their authenticator just now."""
    session = client.session
    session[second_factor.GIVEN_AT] = now().timestamp()
    session.save()


@pytest.fixture
def alice(db: None) -> User:
    """Proposes changes; signs nothing."""
    return person("alice", Role.VIEWER)


@pytest.fixture
def bob(db: None) -> User:
    """Lead developer."""
    return person("bob", Role.LEAD)


@pytest.fixture
def carol(db: None) -> User:
    """Architecture team."""
    return person("carol", Role.ARCHITECTURE)


@pytest.fixture
def dave(db: None) -> User:
    """CTO."""
    return person("dave", Role.CTO)


@pytest.fixture
def erin(db: None) -> User:
    """On-call engineer."""
    return person("erin", Role.ON_CALL)


@pytest.fixture
def mallory(db: None) -> User:
    """A superuser in no group: may look at everything and sign nothing."""
    return person("mallory", is_superuser=True)
