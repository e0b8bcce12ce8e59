"""Which services are watched: taking one in, reading its manifest again, and RuneRogue itself."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth.models import User
from django.db import IntegrityError, transaction

from approvals import audit
from monitoring import hosts, manifest, pushing
from monitoring.alerting import ensure_rules
from monitoring.credentials import METRICS
from monitoring.manifest import Manifest, ManifestError
from monitoring.models import Service, Target, clone_folder, is_url
from monitoring.repository import REMOTE_SCHEMES, GitError, Repository

CLONE_TIMEOUT_SECONDS = 300
# A variable registered as TESTING__NAME stands for NAME wherever nobody has signed yet: in tests and benchmarks.
TESTING = "TESTING__"


class CannotRegister(Exception):
    """A repository can't be taken in; the message says why and what to do."""


def register(
    name: str | None,
    repository: str,
    *,
    environment: Mapping[str, str],
    actor: User | None,
    branch: str | None = None,
) -> Service:
    """Take in the service at `repository` (a folder with a git repository, or a URL, of which a clone is made).

    `name` defaults to the manifest's, `branch` to the one that is checked out. `environment` is for the service's
    processes. Registering the same repository again refreshes it. Raises CannotRegister or ManifestError.
    """
    _check_environment(environment)
    if is_url(repository):
        return _asked(_register_url(name, repository, environment=environment, actor=actor, branch=branch), actor)
    path = Path(repository).expanduser().resolve()
    where = _local_repository(path, branch)
    found = read_manifest(where)
    name = name or found.service.name
    return _asked(_save(name, str(path), where.branch, found, environment=environment, actor=actor), actor)


def names_of_services() -> list[str]:
    """Of those that are watched; approvals offers them wherever somebody chooses a service."""
    return list(Service.objects.active().values_list("name", flat=True))


def refresh(service: Service, *, actor: User | None = None) -> Service:
    """Read the manifest again at the branch's head, after fetching it where the repository is remote."""
    if service.is_self:
        return ensure_self()
    where = Repository(service.checkout, service.branch)
    _demand_plain(where)
    if service.is_remote:
        _follow_remote(where)
    found = read_manifest(where)
    service = _save(
        service.name, service.repository, service.branch, found, environment=service.environment, actor=actor
    )
    return _asked(service, actor)


def ensure_self() -> Service:
    """RuneRogue as the first of its services, scraped at its own address. Safe to call at every start."""
    folder = Path(settings.BASE_DIR)
    found = manifest.parse((folder / manifest.FILE).read_text())
    ensure_rules()
    try:
        branch = _current_branch(folder)
    except GitError:
        branch = "main"  # installed from an archive: it is watched all the same, only not improved
    service = _save(found.service.name, str(folder), branch, found, environment={}, actor=None, is_self=True)
    url = own_metrics_url()
    with transaction.atomic():
        Target.objects.filter(service=service).exclude(url=url).update(active=False)
        Target.objects.update_or_create(service=service, release="", url=url, defaults={"active": True})
    return service


def own_metrics_url() -> str:
    """Where RuneRogue's own metrics are scraped; an address that means all interfaces is asked on loopback."""
    host, port = hosts.own_address()
    return f"http://[{host}]:{port}/metrics" if ":" in host else f"http://{host}:{port}/metrics"


def _asked(service: Service, actor: User | None) -> Service:
    """The same service, with a target where its manifest says that a Prometheus API is asked or that it sends."""
    if service.parsed.metrics.promql:
        watch(service, service.parsed.metrics.promql, actor=actor)
    elif service.parsed.metrics.push:
        pushing.watch(service)
    return service


def watch(service: Service, url: str, *, actor: User | None = None) -> Target:
    """Scrape a service that runs elsewhere, at `url`. Its host is asked for unless it is approved; until a person
    approves it, rounds say so beside the target. Raises CannotRegister.
    """
    try:
        reachable = hosts.may_be_reached(url)
    except ValueError as error:
        raise CannotRegister(f"{url[:200]} can't be scraped: {error}") from error
    if urlsplit(url).username or urlsplit(url).password:
        raise CannotRegister("The URL holds a password or token, which would be stored and shown.")
    with transaction.atomic():
        target, is_new = Target.objects.update_or_create(
            service=service, release="", url=url, defaults={"active": True}
        )
        # What it sends would be counted twice.
        Target.objects.pushed().filter(service=service).update(active=False)
        if is_new:
            audit.record("service.watched", service, actor=actor, became={"url": url})
        if not reachable:
            hosts.request(url, purpose=f"metrics of {service.name}", actor=actor, because=f"{service.name} is scraped.")
    return target


def read_manifest(where: Repository, commit: str | None = None) -> Manifest:
    """The manifest as of `commit`, by default the head of the branch; what lies uncommitted in the folder does not
    count.
    """
    try:
        text = where.git("show", f"{commit or f'refs/heads/{where.branch}'}:{manifest.FILE}")
    except GitError as error:
        place = f"in the commit {commit[:12]}" if commit else f"on the branch {where.branch}"
        raise CannotRegister(
            f"{where.path} has no {manifest.FILE} {place}. Write one at its root and commit it."
        ) from error
    return manifest.parse(text)


def running_environment(service: Service) -> dict[str, str]:
    """The environment of the service's releases: what was registered, without what is for tests or for measuring."""
    return {name: value for name, value in service.environment.items() if not name.startswith((TESTING, METRICS))}


def environment_for_tests(service: Service) -> dict[str, str]:
    """The same for its tests and benchmarks, where a variable registered as TESTING__NAME takes the place of NAME."""
    instead = {
        name.removeprefix(TESTING): value for name, value in service.environment.items() if name.startswith(TESTING)
    }
    return {**running_environment(service), **instead}


def _save(
    name: str,
    repository: str,
    branch: str,
    found: Manifest,
    *,
    environment: Mapping[str, str],
    actor: User | None,
    is_self: bool = False,
) -> Service:
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,39}", name):
        raise CannotRegister(f"{name!r} is not a usable name. Use small letters, digits and hyphens, at most 40.")
    content = found.model_dump(mode="json")
    became = {"repository": repository, "branch": branch, "manifest": content, "environment": sorted(environment)}
    with transaction.atomic():
        service = Service.objects.select_for_update().filter(name=name).first()
        if service is None:
            try:
                with transaction.atomic():
                    service = Service.objects.create(
                        name=name,
                        repository=repository,
                        branch=branch,
                        manifest=content,
                        environment=dict(environment),
                        is_self=is_self,
                    )
            except IntegrityError as error:
                raise CannotRegister(
                    f"{name!r} was registered at the same moment by somebody else. Look at it and try again."
                ) from error
            audit.record("service.registered", service, actor=actor, became=became)
            return service
        if not is_self and (service.repository, service.is_self) != (repository, False):
            raise CannotRegister(
                f"A service named {name!r} is registered from {service.repository}. Choose another name with --name."
            )
        was = {
            "repository": service.repository,
            "branch": service.branch,
            "manifest": service.manifest,
            "environment": sorted(service.environment),
        }
        merged = {**service.environment, **environment}
        became["environment"] = sorted(merged)
        if was != became or merged != service.environment or service.archived_at or service.is_self != is_self:
            # Left active it would be scraped as the service itself, with the service's credentials.
            asked = (service.manifest.get("metrics") or {}).get("promql")
            if asked and asked != found.metrics.promql:
                Target.objects.filter(service=service, url=asked).update(active=False)
            service.repository, service.branch, service.manifest = repository, branch, content
            service.environment, service.is_self, service.archived_at = merged, is_self, None
            service.save()
            audit.record("service.refreshed", service, actor=actor, was=was, became=became)
    return service


def _register_url(
    name: str | None, url: str, *, environment: Mapping[str, str], actor: User | None, branch: str | None
) -> Service:
    _check_url(url)
    known = Service.objects.filter(repository=url).first()
    if known is not None and name in (None, known.name) and known.checkout.exists():
        with transaction.atomic():
            _save(known.name, url, known.branch, known.parsed, environment=environment, actor=actor)
        known.refresh_from_db()
        return refresh(known, actor=actor)
    draft = settings.HOME.scratch / f"clone-{uuid.uuid4().hex}"
    draft.parent.mkdir(parents=True, exist_ok=True)
    try:
        _clone(url, draft, branch)
        where = Repository(draft, branch or _current_branch(draft))
        found = read_manifest(where)
        final = clone_folder(name or found.service.name)
        if final.exists():
            if Service.objects.filter(name=name or found.service.name).exists():
                raise CannotRegister(f"The name {final.parent.name!r} is taken. Choose another one with --name.")
            shutil.rmtree(final)  # left by a registration that did not finish
        final.parent.mkdir(parents=True, exist_ok=True)
        draft.rename(final)
    except GitError as error:
        raise CannotRegister(str(error)) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return _save(name or found.service.name, url, where.branch, found, environment=environment, actor=actor)


def _clone(url: str, folder: Path, branch: str | None) -> None:
    chosen = ["--branch", branch] if branch else []
    command = ("clone", "--quiet", *chosen, "--", url, str(folder))
    try:
        Repository(folder.parent).git(*command, remote=True, timeout_seconds=CLONE_TIMEOUT_SECONDS)
    except GitError as error:
        raise CannotRegister(
            f"{url} can't be cloned: {str(error)[:700]}. If you can clone it yourself, register that folder."
        ) from error


def _follow_remote(where: Repository) -> None:
    """Take in what was pushed. A branch that holds improvements of its own is left as it is."""
    try:
        where.git("fetch", "--quiet", "origin", f"refs/heads/{where.branch}", remote=True)
        theirs = where.git("rev-parse", "FETCH_HEAD").strip()
        head = where.head()
        if theirs != head and where.git("merge-base", head, theirs).strip() == head:
            where.fast_forward(expected=head, to=theirs)
    except GitError as error:
        raise CannotRegister(str(error)) from error


def _local_repository(path: Path, branch: str | None) -> Repository:
    if not path.is_dir():
        raise CannotRegister(f"There is no folder {path}. Give the path or the URL of a git repository.")
    try:
        where = Repository(path, branch or _current_branch(path))
        where.head()
        top = where.git("rev-parse", "--show-prefix").strip()
    except GitError as error:
        raise CannotRegister(
            f"{path} is not a git repository with a commit on {branch or 'a branch'}. Run `git init` and commit, "
            f"or name the branch. ({error})"
        ) from error
    if top:
        raise CannotRegister(f"{path} is a folder inside a repository. Register the repository's root.")
    _demand_plain(where)
    return where


def _demand_plain(where: Repository) -> None:
    """Refuse a repository whose own settings would run programs whenever RuneRogue uses git in it."""
    try:
        names = where.programs_configured()
    except GitError as error:
        raise CannotRegister(str(error)) from error
    if names:
        raise CannotRegister(
            f"The configuration of {where.path} lets git run other programs ({', '.join(names)}), which RuneRogue does "
            "not do for it. Register a fresh clone, or remove them with `git config --unset`."
        )


def _current_branch(path: Path) -> str:
    return Repository(path).git("symbolic-ref", "HEAD").strip().removeprefix("refs/heads/")


def _check_url(url: str) -> None:
    if url.startswith("-"):
        raise CannotRegister(f"{url!r} is not a URL.")
    if "://" not in url:
        return  # git@host:path
    parts = urlsplit(url)
    if parts.scheme not in REMOTE_SCHEMES:
        raise CannotRegister(f"{parts.scheme}:// is not supported. Use one of: {', '.join(REMOTE_SCHEMES)}.")
    if parts.password or (parts.scheme == "https" and parts.username):
        raise CannotRegister(
            "The URL holds a password or token, which would be stored and shown. Use ssh or git's credential helper."
        )


def _check_environment(environment: Mapping[str, str]) -> None:
    for key, value in environment.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
            raise CannotRegister(f"{key!r} is not the name of an environment variable.")
        if not isinstance(value, str) or "\0" in value:
            raise CannotRegister(f"The value of {key} is not text that an environment can hold.")


__all__ = [
    "CannotRegister",
    "ManifestError",
    "ensure_self",
    "environment_for_tests",
    "own_metrics_url",
    "read_manifest",
    "refresh",
    "register",
    "running_environment",
    "watch",
]
