import pytest
from django.db import OperationalError, connection


@pytest.mark.django_db
def test_up_says_so(client):
    assert client.get("/up").json() == {"status": "up"}


@pytest.mark.django_db
def test_up_is_503_without_a_database(client, monkeypatch):
    def refuse():
        raise OperationalError("gone")

    monkeypatch.setattr(connection, "cursor", refuse)
    assert client.get("/up").status_code == 503


def test_metrics_tell_views_and_queries(client, players):
    client.get("/api/players")
    text = client.get("/metrics").content.decode()
    assert (
        'django_http_requests_latency_seconds_by_view_method_bucket{le="0.05",method="GET",view="player-list"}' in text
    )
    assert 'django_db_execute_total{alias="default",vendor="postgresql"}' in text
