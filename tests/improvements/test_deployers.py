"""Releases under a real supervisord, traffic through a real HAProxy; and the in-memory twin beside them."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from improvements.deployers import Deployer, DeployError, HaproxyDeployer, MemoryDeployer, ServersDown, deployer_for
from improvements.haproxy import Mode, ProxyError, RuntimeApi
from improvements.models import Release
from improvements.supervision import Program, SupervisionError, Supervisor
from monitoring.models import Service, Target
from tests.improvements import proxy_stack
from tests.improvements.proxy_stack import Client, ProxyStack, commit, make_service, manifest

pytestmark = pytest.mark.django_db


@pytest.fixture(scope="module")
def stack() -> Iterator[ProxyStack]:
    with proxy_stack.running() as running:
        yield running


@pytest.fixture
def service(stack: ProxyStack, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Service]:
    """A service of its own for each test, taken down afterwards."""
    commit(tmp_path / "repository", "one")
    service = make_service(tmp_path / "repository", name=f"tiny-{abs(hash(request.node.name)) % 10**8}")
    yield service
    deployer = HaproxyDeployer()
    Release.objects.filter(service=service).update(share=0)
    for release in Release.objects.filter(service=service):
        deployer.stop(release)


def release_of(service: Service, version: str) -> Release:
    return Release.objects.create(service=service, commit=commit(Path(service.repository), version))


def up(deployer: Deployer, service: Service, version: str, *, share: int = 0) -> Release:
    """A release that is installed, started and ready."""
    release = release_of(service, version)
    deployer.install(release)
    deployer.start(release)
    wait_until_ready(deployer, release)
    Release.objects.filter(pk=release.pk).update(share=share)
    release.refresh_from_db()
    return release


def wait_until_ready(deployer: Deployer, release: Release) -> None:
    deadline = time.monotonic() + 15
    while not (readiness := deployer.ready(release)).ok:
        assert time.monotonic() < deadline, readiness.reason
        time.sleep(0.05)


def give(deployer: Deployer, service: Service, shares: dict[Release, int]) -> None:
    for release, percent in shares.items():
        Release.objects.filter(pk=release.pk).update(share=percent)
    deployer.apply(service)


# --- installing and running ---------------------------------------------------------------------------------------


def test_installs_exactly_the_commit_and_only_once(service: Service, tmp_path: Path) -> None:
    service.manifest = manifest(setup="sh -c 'echo set up >> setup.txt'")
    service.save()
    release = release_of(service, "installed")
    commit(tmp_path / "repository", "later")
    deployer = HaproxyDeployer()
    deployer.install(release)
    deployer.install(release)
    folder = Path(release.folder)
    assert folder.name == release.commit[:12]
    assert (folder / "version.txt").read_text() == "installed"
    assert (folder / "setup.txt").read_text() == "set up\n"
    assert not (folder / ".git").exists()
    assert release.state == Release.State.INSTALLED


def test_installs_again_what_a_dead_worker_left_half_done(service: Service) -> None:
    release = release_of(service, "again")
    deployer = HaproxyDeployer()
    deployer.install(release)
    folder = Path(release.folder)
    folder.with_name(f"{folder.name}.installed").unlink()
    (folder / "version.txt").write_text("half")
    deployer.install(release)
    assert (folder / "version.txt").read_text() == "again"


def test_sees_what_was_changed_in_a_release_since_it_was_proven(service: Service) -> None:
    repository = Path(service.repository)
    (repository / ".gitattributes").write_text("crlf.txt text eol=crlf\n")
    (repository / "crlf.txt").write_text("one\ntwo\n")
    (repository / "link").symlink_to("server.py")
    (repository / "lock").write_text("old")
    service.manifest = manifest(setup="sh -c 'echo written by setup > lock'")
    service.save()
    release = release_of(service, "installed")
    deployer = HaproxyDeployer()
    with pytest.raises(DeployError, match="install it before"):
        deployer.intact(release)
    deployer.install(release)
    folder = Path(release.folder)
    (folder / "faults.json").write_text("{}")
    assert deployer.intact(release) == ""
    (folder / "server.py").write_text("evil")
    (folder / "lock").write_text("evil")
    (folder / "link").unlink()
    (folder / "link").symlink_to("/etc/passwd")
    (folder / "version.txt").unlink()
    (folder / "crlf.txt").chmod(0o755)
    assert deployer.intact(release).endswith("changed since: crlf.txt, link, lock, server.py, version.txt")
    assert sorted(path.name for path in folder.parent.iterdir() if path.name.startswith(".")) == []


def test_keeps_what_is_for_tests_from_a_release(service: Service) -> None:
    service.environment = {"A": "live", "TESTING__A": "throwaway"}
    service.save()
    deployer = HaproxyDeployer()
    release = up(deployer, service, "quiet")
    seen = httpx.get(f"{deployer.address(release)}/environment", trust_env=False).json()
    assert (seen["A"], "TESTING__A" in seen) == ("live", False)


def test_says_what_a_failing_setup_said(service: Service) -> None:
    service.manifest = manifest(setup="sh -c 'echo no such package; exit 3'")
    service.save()
    with pytest.raises(DeployError, match=r"ended with 3: no such package"):
        HaproxyDeployer().install(release_of(service, "fails"))


def test_does_not_start_what_is_not_installed(service: Service) -> None:
    with pytest.raises(DeployError, match="not installed"):
        HaproxyDeployer().start(release_of(service, "early"))


def test_gives_a_release_its_own_environment_and_none_of_ours(service: Service) -> None:
    nasty = {"QUOTES": """it's "50 %" ; # %(here)s\nline two""", "DATABASE_URL": "postgresql://tiny:secret@/tiny"}
    service.environment = nasty
    service.save()
    deployer = HaproxyDeployer()
    release = up(deployer, service, "environment")
    seen = proxy_stack.ask(f"{deployer.address(release)}/environment")
    assert {name: seen.get(name) for name in nasty} == nasty
    assert seen["PORT"] == str(release.port)
    assert not {"SECRET_KEY", "REDIS_URL", "RUNEROGUE_HOME", "RUNEROGUE_STACK", "SUPERVISOR_ENABLED"} & seen.keys()
    program = deployer.supervisor.programs / f"{release.program}.json"
    assert program.stat().st_mode & 0o077 == 0


def test_has_a_started_release_scraped(service: Service) -> None:
    deployer = HaproxyDeployer()
    release = up(deployer, service, "scraped")
    target = Target.objects.get(service=service)
    assert (target.url, target.release, target.active) == (
        f"http://127.0.0.1:{release.port}/metrics",
        release.short,
        True,
    )
    deployer.start(release)
    assert Target.objects.filter(service=service).count() == 1
    deployer.stop(release)
    target.refresh_from_db()
    assert not target.active
    assert deployer.supervisor.process(release.program) is None
    assert release.state == Release.State.STOPPED


def test_takes_another_port_when_somebody_has_its_own(service: Service) -> None:
    deployer = HaproxyDeployer()
    release = up(deployer, service, "moved")
    before = release.port
    deployer.stop(release)
    with socket.create_server(("127.0.0.1", before)):  # type: ignore[arg-type]
        deployer.start(release)
        wait_until_ready(deployer, release)
        assert release.port != before


def test_is_not_ready_when_it_ends_and_says_its_last_words(service: Service) -> None:
    deployer = HaproxyDeployer()
    release = release_of(service, "broken")
    deployer.install(release)
    deployer.start(release)
    deadline = time.monotonic() + 5
    while "on purpose" not in (readiness := deployer.ready(release)).reason and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not readiness.ok
    assert "it is broken on purpose" in readiness.reason


def test_is_not_ready_while_its_health_address_says_no(service: Service) -> None:
    deployer = HaproxyDeployer()
    release = release_of(service, "sick")
    deployer.install(release)
    deployer.start(release)
    deadline = time.monotonic() + 5
    while "503" not in (readiness := deployer.ready(release)).reason and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not readiness.ok
    assert readiness.reason.endswith("/up answered 503")


# --- traffic ------------------------------------------------------------------------------------------------------


def test_shifts_traffic_without_a_failed_request(stack: ProxyStack, service: Service) -> None:
    deployer = HaproxyDeployer()
    old = up(deployer, service, "old", share=100)
    deployer.apply(service)
    new = up(deployer, service, "new")
    with Client(deployer.base_url(service)) as client:
        assert set(client.during(0.3)) == {"old"}
        for percent in (10, 50, 100):
            give(deployer, service, {old: 100 - percent, new: percent})
            client.during(0.1)  # answers under way, and the round robin's old cycle
            seen = client.during(0.5)
            assert seen["new"] == pytest.approx(seen.total() * percent / 100, abs=3 + seen.total() * 0.02)
        give(deployer, service, {old: 100, new: 0})
        client.during(0.05)
        assert set(client.during(0.3)) == {"old"}
        deployer.stop(new)
        assert set(client.during(0.2)) == {"old"}
    assert client.failures == []
    assert client.answers.total() > 500
    assert Release.objects.get(pk=new.pk).server == ""


def test_applying_again_changes_nothing(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    deployer = HaproxyDeployer()
    up(deployer, service, "same", share=100)
    deployer.apply(service)
    sent: list[str] = []
    monkeypatch.setattr(RuntimeApi, "change", lambda self, *commands: sent.extend(commands))
    deployer.apply(service)
    assert sent == []


def test_a_killed_server_costs_no_read_and_doubles_no_write(stack: ProxyStack, service: Service) -> None:
    deployer = HaproxyDeployer()
    old = up(deployer, service, "old", share=50)
    new = up(deployer, service, "doomed", share=50)
    deployer.apply(service)
    url = deployer.base_url(service)
    with Client(url) as reading, Client(url, posting=True, threads=2) as posting:
        time.sleep(0.3)
        stack.kill(new.program)
        time.sleep(1.5)  # it is noticed, and comes back
        stack.kill(new.program)
        time.sleep(0.5)
    assert reading.failures == []
    assert reading.answers.total() > 300
    written = [token for r in (old, new) for token in (Path(r.folder) / "posts.txt").read_text().split()]
    assert len(written) == len(set(written)), "a POST ran twice"
    # What the client was told is true: everything that was answered was written, and once.
    assert posting.answers.total() <= len(written) <= len(posting.tokens)
    wait_until_ready(deployer, new)


def test_a_killed_proxy_comes_back_as_it_was(stack: ProxyStack, service: Service) -> None:
    deployer = HaproxyDeployer()
    old, new = up(deployer, service, "old", share=90), up(deployer, service, "new", share=10)
    deployer.apply(service)
    old.refresh_from_db()
    new.refresh_from_db()
    backend = f"svc{service.slot}"
    before = deployer.proxy.servers(backend)
    stack.kill_proxy_and_wait()
    after = deployer.proxy.servers(backend)
    for name in (old.server, new.server):
        assert (after[name].port, after[name].weight, after[name].mode) == (
            before[name].port,
            before[name].weight,
            Mode.READY,
        )
    with Client(deployer.base_url(service)) as client:
        assert client.during(0.5)["new"] > 0
    assert client.failures == []


def test_apply_restores_a_proxy_that_lost_everything(stack: ProxyStack, service: Service) -> None:
    deployer = HaproxyDeployer()
    up(deployer, service, "old", share=90)
    up(deployer, service, "new", share=10)
    deployer.apply(service)
    stack.home.haproxy_state.write_text("")
    stack.kill_proxy_and_wait()
    assert not any(server.takes_traffic for server in deployer.proxy.servers(f"svc{service.slot}").values())
    deployer.apply(service)
    with Client(deployer.base_url(service)) as client:
        seen = client.during(0.5)
    assert client.failures == []
    assert seen["new"] == pytest.approx(seen.total() / 10, abs=3 + seen.total() * 0.02)
    assert "svc0" in stack.home.haproxy_state.read_text()


def test_waits_for_a_proxy_that_is_coming_back(stack: ProxyStack, service: Service) -> None:
    deployer = HaproxyDeployer()
    up(deployer, service, "patient", share=100)
    stack.kill("haproxy")
    deployer.apply(service)
    with Client(deployer.base_url(service)) as client:
        assert set(client.during(0.2)) == {"patient"}


def test_leaves_traffic_where_it_is_when_the_candidate_is_down(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("improvements.deployers.haproxy.CHECKED_SECONDS", 0.7)
    monkeypatch.setattr("improvements.deployers.haproxy.HICCUP_SECONDS", 0.1)
    deployer = HaproxyDeployer()
    old = up(deployer, service, "old", share=100)
    deployer.apply(service)
    new = release_of(service, "broken")
    deployer.install(new)
    deployer.start(new)
    with Client(deployer.base_url(service)) as client:
        with pytest.raises(ServersDown, match=r"No release of .* is up"):
            give(deployer, service, {old: 0, new: 100})
        assert set(client.during(0.2)) == {"old"}
        with pytest.raises(ServersDown, match="Not every release"):
            give(deployer, service, {old: 50, new: 50})
        assert set(client.during(0.2)) == {"old"}
    assert client.failures == []


def test_refuses_to_apply_when_nobody_has_a_share(service: Service) -> None:
    with pytest.raises(DeployError, match=r"No release of .* has a share"):
        HaproxyDeployer().apply(service)


def test_refuses_to_stop_what_has_traffic(service: Service) -> None:
    deployer = HaproxyDeployer()
    release = up(deployer, service, "busy", share=100)
    with pytest.raises(DeployError, match="100 % of the traffic"):
        deployer.stop(release)


def test_lets_a_stopped_release_finish_its_requests(service: Service) -> None:
    deployer = HaproxyDeployer()
    old, new = up(deployer, service, "old", share=100), up(deployer, service, "new")
    deployer.apply(service)
    with Client(deployer.base_url(service), threads=1, path="/slow?seconds=0.6") as client:
        time.sleep(0.2)
        give(deployer, service, {old: 0, new: 100})
        deployer.stop(old)
    assert client.failures == []
    assert client.answers["old"] == 1


def test_says_what_is_wrong_when_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(ProxyError, match=r"did not answer 'show info' on .*Does it run"):
        RuntimeApi(tmp_path / "none.sock").ask("show info")
    with pytest.raises(SupervisionError, match=r"did not answer getProcessInfo on .*Is the stack running"):
        Supervisor(tmp_path / "none.sock", tmp_path).process("web")


def test_says_what_the_proxy_refused(stack: ProxyStack) -> None:
    api = RuntimeApi(stack.home.haproxy_socket)
    with pytest.raises(ProxyError, match=r"refused 'set server svc0/r9 weight 1': No such server"):
        api.change("set server svc0/r9 weight 1")
    with pytest.raises(ProxyError, match="no backend 'nothing'"):
        api.servers("nothing")


def test_writes_a_program_so_that_supervisord_reads_it_back(tmp_path: Path) -> None:
    from supervisor.options import UnhosedConfigParser

    command = ["/bin/echo", "50%", "it's", 'say "hi"', "two words", "a;b"]
    ini = Program("release-x-1", command, tmp_path, tmp_path / "x.log").ini()
    parser = UnhosedConfigParser()
    parser.read_string(ini)
    import shlex

    assert shlex.split(parser.saneget("program:release-x-1", "command")) == command
    for impossible in ("a ; b", "a # b", "a\nb"):
        with pytest.raises(ValueError, match="cannot read back"):
            Program("x", [impossible], tmp_path, tmp_path / "x.log").ini()


# --- places in the proxy ------------------------------------------------------------------------------------------


def test_gives_each_service_its_own_slot_until_there_is_none(stack: ProxyStack, tmp_path: Path) -> None:
    deployer = HaproxyDeployer()
    urls = {deployer.base_url(make_service(tmp_path, name=f"s{number}")) for number in range(4)}
    assert urls == {f"http://127.0.0.1:{port}" for port in stack.ports}
    with pytest.raises(DeployError, match="all 4 are taken"):
        deployer.base_url(make_service(tmp_path, name="s5"))


# --- the twin -----------------------------------------------------------------------------------------------------


@pytest.fixture
def twin(tmp_path: Path, settings: object) -> tuple[MemoryDeployer, Service]:
    settings.SERVICE_PORTS = (8100,)  # type: ignore[attr-defined]
    commit(tmp_path / "repository", "one")
    return MemoryDeployer(), make_service(tmp_path / "repository")


def test_twin_moves_traffic(twin: tuple[MemoryDeployer, Service]) -> None:
    deployer, service = twin
    old, new = up(deployer, service, "old", share=100), up(deployer, service, "new")
    deployer.apply(service)
    assert deployer.traffic(service) == {old.short: 1.0}
    give(deployer, service, {old: 90, new: 10})
    assert deployer.traffic(service) == {old.short: 0.9, new.short: 0.1}
    deployer.restart_proxy()
    assert deployer.traffic(service) == {}
    deployer.apply(service)
    assert deployer.traffic(service) == {old.short: 0.9, new.short: 0.1}
    give(deployer, service, {old: 100, new: 0})
    deployer.stop(new)
    assert deployer.traffic(service) == {old.short: 1.0}
    assert Target.objects.filter(active=True).count() == 1


def test_twin_leaves_traffic_where_it_is_when_the_candidate_is_down(twin: tuple[MemoryDeployer, Service]) -> None:
    deployer, service = twin
    old, new = up(deployer, service, "old", share=100), up(deployer, service, "new")
    deployer.apply(service)
    deployer.down.add(new.commit)
    with pytest.raises(ServersDown, match=r"No release of"):
        give(deployer, service, {old: 0, new: 100})
    assert deployer.traffic(service) == {old.short: 1.0}
    with pytest.raises(ServersDown, match="Not every release"):
        give(deployer, service, {old: 50, new: 50})
    assert deployer.traffic(service) == {old.short: 1.0}


def test_twin_refuses_like_the_real_one(twin: tuple[MemoryDeployer, Service]) -> None:
    deployer, service = twin
    with pytest.raises(DeployError, match=r"No release of .* has a share"):
        deployer.apply(service)
    with pytest.raises(DeployError, match="not installed"):
        deployer.start(release_of(service, "early"))
    with pytest.raises(DeployError, match="100 % of the traffic"):
        deployer.stop(up(deployer, service, "busy", share=100))


def test_twin_tells_what_was_altered(twin: tuple[MemoryDeployer, Service]) -> None:
    deployer, service = twin
    release = release_of(service, "one more")
    with pytest.raises(DeployError, match="install it before"):
        deployer.intact(release)
    deployer.install(release)
    assert deployer.intact(release) == ""
    deployer.altered.add(release.commit)
    assert "not what was proven" in deployer.intact(release)


def test_is_chosen_by_name(twin: tuple[MemoryDeployer, Service], settings: object) -> None:
    _, service = twin
    assert isinstance(deployer_for(service), HaproxyDeployer)
    settings.DEPLOYER = "memory"  # type: ignore[attr-defined]
    assert isinstance(deployer_for(service), MemoryDeployer)
    assert deployer_for(service) is deployer_for(service)
