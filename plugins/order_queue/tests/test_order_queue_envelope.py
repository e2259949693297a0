"""The wire contract: what the .NET consumer reads, field by field."""

from __future__ import annotations

import json
import re
import uuid
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stellerd_order_queue.envelope import NAMESPACE, Envelopes, address, iso_utc, message_id

GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
BROKER = "amqp://steller:s3cret@mq.example.com/%2F"
names = st.from_regex(r"\A[A-Za-z_]\w{0,20}\Z", fullmatch=True)


def envelope(request: uuid.UUID, broker: str = BROKER, kind: str = "A.B:C", name: str = "orderId") -> dict[str, object]:
    message = Envelopes(broker, kind, name).build(
        "key", str(request), message_id(str(request)), iso_utc(datetime.now(UTC))
    )
    body: dict[str, object] = json.loads(message.body)
    assert (message.id, message.correlation_id) == (body["messageId"], body["correlationId"])
    return body


@given(st.uuids(), names, names)
def test_every_envelope_keeps_the_contract(request: uuid.UUID, kind: str, name: str) -> None:
    body = envelope(request, kind=f"Name.Space:{kind}", name=name)
    assert body["messageType"] == [f"urn:message:Name.Space:{kind}"]
    assert body["message"] == {name: str(request)}
    assert body["correlationId"] == str(request)
    assert all(GUID.fullmatch(str(body[field])) for field in ("messageId", "correlationId", "conversationId"))
    assert body["destinationAddress"] == f"rabbitmq://mq.example.com/Name.Space:{kind}"
    assert str(body["sourceAddress"]).startswith("rabbitmq://mq.example.com/")
    assert body["headers"] == {}
    assert isinstance(body["host"], dict)
    assert isinstance(body["host"]["processId"], int)
    assert "s3cret" not in json.dumps(body)


@given(st.uuids(), st.uuids())
def test_a_message_id_is_the_requests_for_good(first: uuid.UUID, second: uuid.UUID) -> None:
    assert message_id(str(first)) == str(uuid.uuid5(NAMESPACE, str(first)))
    assert (message_id(str(first)) == message_id(str(second))) == (first == second)


def test_the_namespace_never_changes() -> None:
    # A consumer's inbox remembers ids across releases of ours
    assert message_id(str(uuid.UUID(int=1))) == "ef70216a-7356-5217-b125-c7f2b441bf71"


@given(
    st.datetimes(
        datetime.fromisoformat("1000-01-02"), timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))])
    )
)
def test_sent_time_is_iso_utc_with_z(moment: datetime) -> None:
    text = iso_utc(moment)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", text)
    assert datetime.fromisoformat(text) == moment


@pytest.mark.parametrize(
    ("broker", "expected"),
    [
        ("amqp://mq", "rabbitmq://mq/X"),
        ("amqp://mq/", "rabbitmq://mq/X"),
        ("amqp://u:p@mq:5672/%2f", "rabbitmq://mq/X"),
        ("amqp://u:p@mq:5673/shop", "rabbitmq://mq:5673/shop/X"),
        ("amqps://mq:5671/a%2Fb?heartbeat=5", "rabbitmq://mq/a%2Fb/X"),
        ("amqp://[::1]:5673/shop", "rabbitmq://[::1]:5673/shop/X"),
        ("spool:///var/spool/x", "rabbitmq://localhost/X"),
    ],
)
def test_addresses_name_host_and_vhost_and_nothing_secret(broker: str, expected: str) -> None:
    assert address(broker, "X") == expected
