"""Nothing by which a person can be found is kept: it is planted in every input there is, and then looked for in the
whole database, in the log lines and in `/metrics`.

A new input is one more row of INPUTS; whatever it stores is looked through without further ado.
"""

from __future__ import annotations

import json
import logging
import logging.config
import re
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote, quote_plus
from xml.sax.saxutils import escape

import pytest
from django.conf import settings as django_settings
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver
from django.urls.resolvers import RoutePattern
from django.utils.timezone import now

from approvals import tokens
from approvals.models import Scope
from approvals.policy import Role
from monitoring import hosts, registry, rounds
from monitoring.manifest import parse
from monitoring.models import Profile, PushedProcess
from monitoring.scraping import MemorySource
from tests.monitoring.factories import INTERVAL, MANIFEST, T0, ServiceFactory, TargetFactory, exposition, repository
from tests.people import person
from tests.pure.test_otlp_decoding import export, span
from tests.pure.test_otlp_metrics import export as sent_export
from tests.pure.test_otlp_metrics import observed
from tests.pure.test_otlp_metrics import requests as requests_of

PERSON = {
    "email": "jane.doe.planted@example.org",
    "name": "Jane Plantedname",
    "user name": "janeplanted77",
    "token": "kX92hsGq0Zp4Vw7mT1planted",
    "address": "203.0.113.177",
    "IPv6 address": "2001:db8:77::beef",
    "card": "4111111111111111",
    "session": "6f0e1d9c6d3e4ac09f6e0c7a2f0b9e11",
    "phone": "+49 170 77123456",
}
# No form tells these from the names that programmers give to views, tests and machines, or from plain words.
UNTOLD = {"name", "user name"}
Input = Callable[[Client, Path], object]


# --- The inputs --------------------------------------------------------------------------------------------------


def labels(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')


def scraped_labels(client: Client, folder: Path) -> None:
    """A service that tells about its users in its metrics: as view, path, method, status and in labels of its own."""
    service = ServiceFactory(name="talks")
    target = TargetFactory(service=service)

    def told(count: int) -> str:
        lines = [exposition(requests=count)]
        for number, value in enumerate(PERSON.values()):
            text = labels(value)
            for view in (text, f"/users/{text}/items", f"/search?q={quote(value)}", f"GET /u/{quote(value)}"):
                if value == PERSON["user name"] and view == text:
                    continue  # no form tells it from the name of a view
                lines.append(exposition(requests=count, view=view).split("process_resident")[0])
            counter = "django_http_responses_total_by_status_view_method_total"
            lines.append(f'{counter}{{status="{text}",view="v{number}",method="{text}",user="{text}"}} {count}\n')
            lines.append(f'# HELP told_{number} {value}\ntold_{number}{{who="{text}"}} {count}\n')
            lines.append(f'process_cpu_seconds_total{{who="{text}"}} {count}\n')
        return "".join(dict.fromkeys("".join(lines).splitlines(keepends=True)))

    for number in range(3):
        source = MemorySource({target.url: told(10 * (number + 1))})
        assert rounds.run(T0 + number * INTERVAL, source=source)


def malformed_expositions(client: Client, folder: Path) -> None:
    """Error texts of the parser quote what they can't read."""
    service = ServiceFactory(name="stammers")
    texts = []
    for value in PERSON.values():
        texts += [f"a{{{value}}} 1\n", f'a{{b="{labels(value)}" 1\n', f"{value}\n", f"a {value}\n", f"<html>{value}"]
        name = "django_http_responses_total_by_status_view_method_total"
        texts.append(f'{name}{{view="{labels(value)}"}} 1\n' * 2)
    found = {}
    for number, text in enumerate(texts):
        found[TargetFactory(service=service, url=f"http://stammers.test/{number}").url] = text
    assert rounds.run(T0 + timedelta(hours=1), source=MemorySource(found))


def hostile_answers(client: Client, folder: Path) -> None:
    """Status lines, headers, redirects and broken bodies, over real connections."""
    service = ServiceFactory(name="shouts")
    answers = []
    for value in PERSON.values():
        answers += [
            f"{value}\r\n\r\n",
            f"HTTP/1.1 500 {value}\r\nX-User: {value}\r\nContent-Length: 0\r\n\r\n",
            f"HTTP/1.1 302 Found\r\nLocation: http://{quote(value)}/?q={quote(value)}\r\nContent-Length: 0\r\n\r\n",
            f"HTTP/1.1 200 OK\r\n{value}\r\n\r\n",
            f"HTTP/1.1 200 OK\r\nContent-Encoding: {value}\r\nSet-Cookie: a={value}\r\nContent-Length: 1\r\n\r\nx",
        ]
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for _ in answers:
            with listener.accept()[0] as accepted:
                asked = accepted.recv(65536).decode()
                number = int(asked.split("/", 2)[1].split(" ")[0])
                accepted.sendall(answers[number].encode())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    port = listener.getsockname()[1]
    for number in range(len(answers)):
        TargetFactory(service=service, release="abc", url=f"http://127.0.0.1:{port}/{number}")
    done = rounds.run(T0 + timedelta(hours=2))
    thread.join(timeout=10)
    listener.close()
    assert done is not None
    assert len(done.failed) == len(answers)
    assert not any("approved" in reason for reason in done.failed.values()), "they were asked"


def refused_queries(client: Client, folder: Path) -> None:
    """A Prometheus that quotes what it was asked, or its series, when it refuses."""
    values = [value for what, value in PERSON.items() if what not in UNTOLD]
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]

    def serve() -> None:
        for _ in values:
            with listener.accept()[0] as accepted:
                value = values[int(accepted.recv(65536).split(b"/", 2)[1])]
                body = json.dumps({"status": "error", "errorType": value, "error": f"{value} of {value}"}).encode()
                accepted.sendall(b"HTTP/1.1 422 No\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    for number in range(len(values)):
        url = f"http://127.0.0.1:{port}/{number}"
        text = f'{MANIFEST}[metrics]\npromql = "{url}"\n'
        service = ServiceFactory(manifest=parse(text).model_dump(mode="json"))
        TargetFactory(service=service, release="abc", url=url)
    done = rounds.run(T0 + timedelta(hours=3))
    thread.join(timeout=10)
    listener.close()
    assert done is not None
    assert len(done.failed) == len(values)
    assert all("The query was refused" in reason for reason in done.failed.values()), done.failed


def addresses() -> Iterator[str]:
    """Every address of urls.py outside of the admin, and some that are not there, without their leading slash."""

    def below(resolver: URLResolver, prefix: str) -> Iterator[str]:
        for entry in resolver.url_patterns:
            pattern = entry.pattern
            route = pattern._route if isinstance(pattern, RoutePattern) else str(pattern).strip("^$")
            if isinstance(entry, URLResolver):
                if entry.app_name != "admin":
                    yield from below(entry, prefix + str(route))
            elif isinstance(entry, URLPattern):
                yield prefix + str(route)

    yield from below(get_resolver(), "")
    yield from ("nowhere/", "users/VALUE", "admin/login/", "admin/VALUE/", "VALUE")


def requests(client: Client, folder: Path) -> None:
    """Every method, query, header, cookie and body, at every address."""
    client.raise_request_exception = False
    ServiceFactory(name="runerogue", is_self=True)
    all_of_it = " ".join(PERSON.values())
    told = {"email": all_of_it, "text": all_of_it, "password": all_of_it, all_of_it: all_of_it}
    headers = {
        "user-agent": all_of_it,
        "referer": f"https://example.org/{quote(all_of_it)}?q={quote(all_of_it)}",
        "x-forwarded-for": all_of_it,
        "authorization": f"Bearer {all_of_it}",
        "x-request-id": all_of_it,
        "accept-language": all_of_it,
        "origin": f"https://{quote(all_of_it)}",
    }
    near = {key: text for key, text in headers.items() if key != "x-forwarded-for"}
    query = f"?service={quote_plus(all_of_it)}&hours={quote_plus(all_of_it)}&q={quote_plus(all_of_it)}"
    for number, address in enumerate(addresses()):
        # Each address sees some of the values in its path and all of them everywhere else.
        values = list(PERSON.values()) if "VALUE" in address or "<" in address else [list(PERSON.values())[number % 9]]
        for value in values:
            client.cookies.clear()
            client.cookies["sessionid"] = client.cookies["csrftoken"] = quote(value)
            path = "/" + re.sub(r"<[^>]*>|VALUE", quote(value), address)
            method = re.sub(r"\W", "", value).upper()
            client.get(path + query, headers=near)
            client.get(path, headers={**headers, "host": f"{quote(value)}.example.org"})
            client.post(path, told, headers=near)
            client.generic(method, path + query, json.dumps(told), "application/json", headers=near)
            client.generic("POST", path, json.dumps(told), "application/json", headers=near)


def names_and_manifests(client: Client, folder: Path) -> None:
    """What an operator gives: a URL with a password, a name that is none, a manifest that holds an address."""
    for number, value in enumerate(PERSON.values()):
        for url in (f"https://{quote(value)}:{quote(value)}@example.org/a.git", f"http://{quote(value)}@example.org/a"):
            with pytest.raises(registry.CannotRegister):
                registry.register(None, url, environment={}, actor=None)
        where = repository(folder / f"r{number}")
        with pytest.raises(CommandError):
            call_command("register", str(where), name=f"{value} x")
        with pytest.raises(CommandError):
            call_command(
                "register", str(where), metrics_url=f"http://{quote(value)}:{quote(value)}@example.org/metrics"
            )
        with pytest.raises(ValueError, match="not the name or address"):
            hosts.request(f"user {value}", purpose="x", actor=None)


def sent(client: Client, address: str, content: bytes, content_type: str, **headers: str) -> None:
    answer = client.post(address, content, content_type=content_type, CONTENT_TYPE=content_type, headers=headers)
    assert answer.status_code < 300, answer.content


def sent_spans(client: Client, folder: Path) -> None:
    """Routes, paths, statements, names, events and attributes of spans, and whoever sends them."""
    ServiceFactory(name="talks")
    spans = []
    for value in PERSON.values():
        said = {
            "http.route": f"/users/{value}", "url.path": f"/users/{value}/items", "url.query": f"q={value}",
            "url.full": f"https://{quote(value)}:{quote(value)}@billing.internal/{quote(value)}?q={quote(value)}",
            "http.request.method": value, "client.address": value, "user_agent.original": value, "enduser.id": value,
            "http.request.header.cookie": value, "db.query.parameter.0": value, value: value,
        }  # fmt: skip
        statement = {"db.system.name": "postgresql", "db.query.text": f"SELECT a FROM t WHERE b = '{value}' -- {value}"}
        for kind, attributes in ((2, said), (2, {"url.path": f"/u/{value}"}), (3, said), (3, statement), (5, said)):
            one = span(
                kind, f"GET /users/{value}", **{name.replace(".", "__"): text for name, text in attributes.items()}
            )
            one["spanId"] = f"{len(spans) + 1:016x}"
            one["parentSpanId"] = "" if kind == 2 else "0000000000000001"
            one["status"] = {"code": 2, "message": value}
            one["events"] = [{"name": value, "attributes": one["attributes"]}]
            spans.append(one)
    content = export(*spans)
    content["resourceSpans"][0]["resource"]["attributes"] = attributes_of(PERSON, "talks")
    sent(client, "/v1/traces", json.dumps(content).encode(), "application/json")
    for value in PERSON.values():
        sent(client, "/v1/traces", json.dumps(export(spans[0], service=value)).encode(), "application/json")
    assert rounds.run(now() + timedelta(seconds=30), source=MemorySource())
    assert Profile.objects.exists()


def attributes_of(values: dict[str, str], service: str) -> list[dict[str, object]]:
    """What a resource says about itself: machines, commands and versions with a person in them."""
    keys = ("host.name", "service.version", "process.command_line", "service.instance.id", "k8s.pod.name", "user.id")
    told = {key: " ".join(values.values()) for key in (*keys, *values.values())}
    return [{"key": k, "value": {"stringValue": v}} for k, v in {**told, "service.name": service}.items()]


def sent_metrics(client: Client, folder: Path) -> None:
    """Names, labels, units and descriptions of metrics, and the process that sends them."""
    ServiceFactory(name="talks")
    for number in range(2):
        metrics = []
        for value in PERSON.values():
            labels = {"http__route": f"/users/{value}", "url__path": value, "user__id": value, value: value}
            labels |= {"http__request__method": value, "error__type": "", "server__address": ""}
            point = observed([number, 0, 0, 0], at=100 + 60 * number, **labels)
            point["exemplars"] = [{"asDouble": 1.0, "filteredAttributes": point["attributes"]}]
            metrics += [requests_of(point, description=value), {**requests_of(point), "name": value, "unit": value}]
        content = sent_export(*metrics, scope=" ".join(PERSON.values()))
        content["resourceMetrics"][0]["resource"]["attributes"] = attributes_of(PERSON, "talks")
        sent(client, "/v1/metrics", json.dumps(content).encode(), "application/json")
        assert rounds.run(now() + number * INTERVAL, source=MemorySource())
    assert PushedProcess.objects.exists()
    for value in PERSON.values():
        content = sent_export(requests_of(observed([1, 0, 0, 0], at=9)), service__name=value)
        sent(client, "/v1/metrics", json.dumps(content).encode(), "application/json")


def pages(client: Client, folder: Path) -> None:
    """Web vitals and feedback: routes and paths of pages, and what people write."""
    text = MANIFEST.replace('"realm"', '"talks"') + '[experience]\norigins = ["https://talks.example.org"]\n'
    ServiceFactory(name="talks", manifest=parse(text).model_dump(mode="json"))
    headers = {"origin": "https://talks.example.org", "user-agent": " ".join(PERSON.values())}
    for what, value in PERSON.items():
        place = {"service": "talks", "path": f"/users/{value}?q={value}#{value}"}
        named = place | {"endpoint": f"/users/{value}"}
        for where in (place, named):
            content = json.dumps({**where, "lcp_ms": 900}).encode()
            sent(client, "/api/v1/vitals", content, "application/json", **headers)
            remark = f"My page is slow. {'' if what in UNTOLD else value} Call me."
            content = json.dumps({**where, "text": remark, "rating": 2}).encode()
            sent(client, "/api/v1/feedback", content, "application/json", **headers)
    assert rounds.run(now(), source=MemorySource())


def builds(client: Client, folder: Path) -> None:
    """Reports of a build, sent and given to the gate: names, messages, output and paths in all of them."""
    ServiceFactory(name="talks")
    bob = person("bob", Role.LEAD)
    expires_at = now() + timedelta(days=1)
    _, token = tokens.issue(bob, name="CI", scopes=[Scope.REPORT], expires_at=expires_at, actor=None)
    for number, (what, value) in enumerate(PERSON.items()):
        name, text = "" if what in UNTOLD else value, escape(value, {'"': "&quot;"})
        place = {"artifactLocation": {"uri": value}, "region": {"snippet": {"text": value}}}
        result = {"ruleId": "S1", "message": {"text": value}, "locations": [{"physicalLocation": place}]}
        reports = {
            "junit": f'<testsuite hostname="{text}"><properties><property name="{text}" value="{text}"/></properties>'
            f'<testcase classname="t" name="test_a[{name}]" file="{text}"><failure message="{text}">{text}</failure>'
            f"<system-out>{text}</system-out></testcase></testsuite>",
            "coverage": f'<coverage line-rate="0.5"><sources><source>{text}</source></sources></coverage>',
            "sarif": {
                "version": "2.1.0",
                "runs": [{"tool": {"driver": {"name": f"x {name}", "fullName": value}}, "results": [result]}],
            },
            "ruff": [{"code": "E501", "message": value, "filename": value, "url": value}],
            "benchmark": {f"seconds {name}": [1.0]},
        }
        for address in ("/api/v1/reports", "/api/v1/ci/gate"):
            content = {"service": "talks", "commit": f"{number:040x}", "branch": f"for-{name}", **reports}
            body = json.dumps(content).encode()
            sent(client, address, body, "application/json", authorization=f"Bearer {token}")
        for wrong in (f"<{text}>", f'{{"{text}": "{text}"}}'):
            body = json.dumps({"service": "talks", "commit": "c" * 40, "junit": wrong, "benchmark": wrong}).encode()
            headers = {"authorization": f"Bearer {token}"}
            assert (
                client.post("/api/v1/reports", body, content_type="application/json", headers=headers).status_code
                == 400
            )


INPUTS: dict[str, Input] = {
    "scraped labels": scraped_labels,
    "malformed expositions": malformed_expositions,
    "hostile answers": hostile_answers,
    "refused queries": refused_queries,
    "requests": requests,
    "names and manifests": names_and_manifests,
    "spans": sent_spans,
    "metrics that are sent": sent_metrics,
    "pages": pages,
    "builds": builds,
}


# --- The search --------------------------------------------------------------------------------------------------


def spellings(value: str) -> set[str]:
    return {text.lower() for text in (value, quote(value), quote_plus(value), json.dumps(value)[1:-1])}


def database() -> Iterator[tuple[str, str]]:
    """Every row of every table as text; what is compressed is opened."""
    with connection.cursor() as cursor:
        for table in sorted(connection.introspection.table_names(cursor, include_views=True)):
            cursor.execute(f'SELECT * FROM "{table}"')
            for row in cursor.fetchall():
                for cell in row:
                    if not isinstance(cell, bytes | memoryview):
                        yield table, str(cell)
                        continue
                    yield table, bytes(cell).decode("utf-8", "replace")
                    try:
                        yield table, zlib.decompress(bytes(cell)).decode("utf-8", "replace")
                    except zlib.error:
                        continue


def lines(records: list[logging.LogRecord]) -> Iterator[tuple[str, str]]:
    """The log as the configured handler writes it."""
    configured = logging.config.DictConfigurator(django_settings.LOGGING)  # type: ignore[arg-type]
    formatter = configured.configure_formatter(dict(django_settings.LOGGING["formatters"]["line"]))
    for record in records:
        if record.levelno >= logging.INFO:
            yield f"log of {record.name}", formatter.format(record)


@pytest.mark.django_db
@pytest.mark.parametrize("name", INPUTS)
def test_nothing_about_a_person_is_kept(
    name: str, client: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    INPUTS[name](client, tmp_path)
    client.cookies.clear()
    metrics = client.get("/metrics")
    assert metrics.status_code == 200
    texts = [*database(), *lines(caplog.records), ("/metrics", metrics.content.decode())]
    assert len({where for where, _ in texts}) > 10, "the search looks at something"
    searched = [(what, spelling) for what, value in PERSON.items() for spelling in spellings(value)]
    found = {
        (where, what, text[:300])
        for where, text, small in ((where, text, text.lower()) for where, text in texts)
        for what, spelling in searched
        if spelling in small
    }
    assert not found


@pytest.mark.django_db
def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    """The test of the test: planted on purpose, each is found."""
    TargetFactory(last_error=f"It said {PERSON['email']}.")
    assert any(PERSON["email"] in text for _, text in database())
    record = logging.LogRecord("x", logging.INFO, "", 0, PERSON["name"], None, None)
    assert any(PERSON["name"] in text for _, text in lines([record]))
