"""The broker port with both clients and real brokers: mosquitto with MQTT 5 and 3.1.1, and the demo's."""

from __future__ import annotations

import asyncio
import re
import threading
import time
import tracemalloc
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from edge.contract.codes import Code
from edge.contract.messages import PACKET_LIMIT_BYTES
from edge.errors import BrokerLost, Rejected
from edge.mqtt import aws_link, linked_broker
from edge.mqtt.aws_broker import AwsBroker
from edge.mqtt.broker import Message
from tests.rigs.certificates import Authority
from tests.rigs.links import MOSQUITTO, PASSWORD, TLS, BrokerSetup, Client, plain_client, scripted_server, silent_server
from tests.rigs.mosquitto import Mosquitto
from tests.rigs.scripted_broker import ScriptedBroker
from tests.rigs.tcp_proxy import TcpProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


@pytest.fixture(params=[*MOSQUITTO, "embedded"])
async def setting(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[BrokerSetup]:
    unhandled: list[dict[str, Any]] = []
    native = native_threads()

    def complain(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # The embedded broker logs errors when a client disconnects.
        if "client_connected_cb" not in context["message"]:
            unhandled.append(context)

    asyncio.get_running_loop().set_exception_handler(complain)
    made = BrokerSetup(tmp_path, request.param)
    yield made
    await made.down()
    assert unhandled == []
    # A connection attempt that was under way at the stop ends with its own deadline.
    async with asyncio.timeout(12):
        while any(thread.name.startswith(("mqtt", "paho")) for thread in threading.enumerate()):
            await asyncio.sleep(0.02)
        while native_threads() > native:
            await asyncio.sleep(0.02)


def native_threads() -> int:
    """The threads of AWS's client, which Python does not know."""
    return len(list(Path("/proc/self/task").iterdir())) - threading.active_count()


async def test_a_message_arrives_with_its_properties(setting: BrokerSetup) -> None:
    await setting.up()
    async with setting.linked("one", "a/b") as one, setting.linked("two") as two:
        await two.broker.publish(Message("a/b", b"hello", response_topic="r/x", correlation=b"7", expiry_s=30))
        got = await asyncio.wait_for(one.received.get(), 5)
        assert (got.topic, got.payload, got.retain) == ("a/b", b"hello", False)
        assert (got.response_topic, got.correlation) == (("r/x", b"7") if setting.v5 else (None, None))


async def test_a_retained_message_is_delivered_to_late_subscribers(setting: BrokerSetup) -> None:
    await setting.up()
    async with setting.linked("one") as one:
        await one.broker.publish(Message("s/1", b"true now", retain=True))
        async with setting.linked("two", "s/1") as two:
            got = await asyncio.wait_for(two.received.get(), 5)
            assert (got.payload, got.retain) == (b"true now", True)


async def test_the_last_will_is_sent_after_a_broken_link_only(setting: BrokerSetup) -> None:
    await setting.up()
    will = Message("s/one", b"offline", retain=True)
    async with setting.linked("two", "s/one") as two, TcpProxy(setting.port) as proxy:
        async with setting.linked("one", will=will, port=proxy.port):
            pass
        async with setting.linked("one", will=will, port=proxy.port):
            await proxy.cut()
            got = await asyncio.wait_for(two.received.get(), 10)
            assert got.payload == b"offline"
        assert two.received.empty(), "one will, of the link that broke"


# The embedded broker cannot restart while clients connect.
@pytest.mark.slow
@pytest.mark.parametrize("setting", MOSQUITTO, indirect=True)
async def test_the_link_follows_a_broker_that_starts_stops_and_starts(setting: BrokerSetup) -> None:
    client = setting.client("one", "a/b")
    client.start()
    await client.error("refused by 127.0.0.1")
    with pytest.raises(BrokerLost):
        await client.broker.publish(Message("a/b", b"x"))
    for _ in range(2):
        await setting.up()
        await asyncio.wait_for(client.up.wait(), 15)
        async with setting.linked("two") as two:
            await two.broker.publish(Message("a/b", b"hello"))
        assert (await asyncio.wait_for(client.received.get(), 5)).payload == b"hello"
        await setting.down()
        await asyncio.wait_for(client.down.wait(), 10)
        assert not client.broker.connected
        assert client.broker.error
        with pytest.raises(BrokerLost):
            await client.broker.publish(Message("a/b", b"x"))
    await client.stop()


@pytest.mark.parametrize("setting", MOSQUITTO, indirect=True)
async def test_commands_sent_around_a_broker_crash_arrive_once(setting: BrokerSetup, tmp_path: Path) -> None:
    await setting.up()
    async with TcpProxy(setting.port) as proxy, setting.linked("one", "a/b", port=proxy.port) as one:
        # The broker may lose what it has not written yet.
        await until(lambda: b"a/b" in (tmp_path / "mosquitto.db").read_bytes())
        proxy.refusing = True
        await setting.down()
        await asyncio.wait_for(one.down.wait(), 10)
        await setting.up()
        async with setting.linked("two") as two:
            for n in range(30):
                await two.broker.publish(Message("a/b", str(n).encode()))
        proxy.refusing = False
        await asyncio.wait_for(one.up.wait(), 15)
        async with asyncio.timeout(10):
            got = [int((await one.received.get()).payload) for _ in range(30)]
        await asyncio.sleep(0.3)
        assert got == list(range(30))
        assert one.received.empty()


@pytest.mark.slow
@pytest.mark.parametrize("setting", TLS, indirect=True)
async def test_an_expired_message_is_not_delivered(setting: BrokerSetup) -> None:
    await setting.up()
    async with setting.linked("one", "a/b"):
        pass
    async with setting.linked("two") as two:
        await two.broker.publish(Message("a/b", b"short-lived", expiry_s=1))
        await two.broker.publish(Message("a/b", b"long-lived", expiry_s=60))
    await asyncio.sleep(2.5)
    async with setting.linked("one", "a/b") as one:
        assert (await asyncio.wait_for(one.received.get(), 5)).payload == b"long-lived"


@pytest.mark.parametrize("setting", MOSQUITTO, indirect=True)
async def test_the_broker_keeps_messages_for_an_offline_client(setting: BrokerSetup) -> None:
    await setting.up()
    async with setting.linked("one", "a/b"):
        pass
    async with setting.linked("two") as two:
        await two.broker.publish(Message("a/b", b"for later"))
    client = setting.client("one", "a/b")
    happened: list[Any] = []
    client.broker.listen(lambda message: happened.append((message.payload, client.broker.connected)), happened.append)
    client.start()
    await until(lambda: len(happened) == 2)
    # The broker sends it before it grants the subscriptions; its receiver must be able to publish a reply.
    assert happened == [True, (b"for later", True)]
    await client.stop()


@pytest.mark.parametrize("setting", MOSQUITTO, indirect=True)
async def test_without_a_session_the_broker_keeps_nothing(setting: BrokerSetup) -> None:
    await setting.up()
    async with setting.linked("one", "a/b", session_expiry_s=0):
        pass
    async with setting.linked("two") as two:
        await two.broker.publish(Message("a/b", b"for nobody"))
        async with setting.linked("one", "a/b", session_expiry_s=0) as one:
            await two.broker.publish(Message("a/b", b"for one"))
            assert (await asyncio.wait_for(one.received.get(), 5)).payload == b"for one"


@pytest.mark.parametrize("setting", TLS, indirect=True)
@pytest.mark.parametrize("limit", ["_HELD", "_HELD_BYTES"])
async def test_the_newest_early_messages_are_kept_and_the_others_counted(
    setting: BrokerSetup, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(linked_broker, limit, 3)
    await setting.up()
    async with setting.linked("one", "a/b"):
        pass
    async with setting.linked("two") as two:
        for n in range(10):
            await two.broker.publish(Message("a/b", str(n).encode()))
    async with setting.linked("one", "a/b") as one:
        await until(lambda: one.broker.dropped + one.received.qsize() == 10)
        got = [int(one.received.get_nowait().payload) for _ in range(one.received.qsize())]
        assert got == list(range(10))[-len(got) :]
        assert one.broker.dropped > 0


@pytest.mark.parametrize("setting", MOSQUITTO, indirect=True)
async def test_a_bug_in_the_receiver_loses_only_that_message(
    setting: BrokerSetup, caplog: pytest.LogCaptureFixture
) -> None:
    await setting.up()
    client = setting.client("one", "a/b")
    received: list[bytes] = []

    def take(message: Message) -> None:
        received.append(message.payload)
        if message.payload == b"bad":
            raise ValueError(message.payload)

    client.broker.listen(take, lambda up: client.up.set())
    client.start()
    await asyncio.wait_for(client.up.wait(), 15)
    for payload in (b"bad", b"good"):
        await client.broker.publish(Message("a/b", payload))
    await until(lambda: len(received) >= 2)
    assert received == [b"bad", b"good"]
    assert "message handler failed because of a bug" in caplog.text
    await client.stop()


async def test_an_oversize_message_is_rejected_and_the_link_stays(setting: BrokerSetup) -> None:
    await setting.up()
    async with setting.linked("one", "a/b") as one:
        for topic, size in (("a/b", 128 * 1024 + 1), ("a/" * 8 + "b", 1), ("a" * 257, 1)):
            with pytest.raises(Rejected) as caught:
                await one.broker.publish(Message(topic, b"x" * size))
            assert caught.value.code is Code.TOO_LARGE
        await one.broker.publish(Message("a/b", b"x" * 100_000))
        assert len((await asyncio.wait_for(one.received.get(), 5)).payload) == 100_000


@pytest.mark.parametrize("setting", TLS, indirect=True)
async def test_a_received_message_over_the_limit_is_dropped_and_the_link_stays(setting: BrokerSetup) -> None:
    await setting.up()
    async with setting.linked("one", "a/b") as one:
        both = [("a/b", payload, 1, False) for payload in (b"x" * 1_000_000, b"short")]
        await asyncio.to_thread(setting.publish_raw, both)
        assert (await asyncio.wait_for(one.received.get(), 5)).payload == b"short"
        assert not one.down.is_set()


@pytest.mark.parametrize("setting", ["paho-311-password"], indirect=True)
async def test_a_huge_message_of_a_broker_without_a_packet_limit_is_cut_off(
    setting: BrokerSetup, tmp_path: Path
) -> None:
    await setting.up()
    (tmp_path / "huge").write_bytes(bytes(20_000_000))
    command = ["mosquitto_pub", "-p", str(setting.port), "-u", "cam", "-P", PASSWORD, "-q", "1", "-t", "a/b"]
    async with setting.linked("one", "a/b") as one:
        tracemalloc.start()
        try:
            for content in (["-f", str(tmp_path / "huge")], ["-m", "short"]):
                sender = await asyncio.create_subprocess_exec(*command, *content)
                async with asyncio.timeout(30):
                    await sender.wait()
            cut = await asyncio.wait_for(one.received.get(), 30)
            assert PACKET_LIMIT_BYTES <= len(cut.payload) < 2 * PACKET_LIMIT_BYTES
            assert (await asyncio.wait_for(one.received.get(), 5)).payload == b"short"
            assert tracemalloc.get_traced_memory()[1] < 8 * PACKET_LIMIT_BYTES
        finally:
            tracemalloc.stop()
        assert not one.down.is_set()


async def test_many_simultaneous_messages_all_arrive(setting: BrokerSetup) -> None:
    await setting.up()
    # AWS's client limits itself to the rate of AWS IoT; a backend's paho does not.
    async with setting.linked("one", "a/b") as one, setting.linked("two", client="paho") as two:
        async with asyncio.timeout(60):
            await asyncio.gather(*[two.broker.publish(Message("a/b", str(n).encode())) for n in range(500)])
            got = [int((await one.received.get()).payload) for _ in range(500)]
        assert got == list(range(500))


async def test_messages_over_the_rate_wait_and_are_then_rejected(setting: BrokerSetup) -> None:
    await setting.up()
    async with setting.linked("one", "a/b", publishes_per_s=10, publish_timeout_s=2) as one:
        all_of_them = [one.broker.publish(Message("a/b", str(n).encode())) for n in range(30)]
        begun_s = time.monotonic()
        outcomes = await asyncio.gather(*all_of_them, return_exceptions=True)
        # A burst of 2, and 8 per second within half of the deadline; more on a slow machine.
        served = outcomes.index(next(outcome for outcome in outcomes if outcome))
        assert 10 <= served <= 12
        assert time.monotonic() - begun_s > 0.9
        assert {getattr(outcome, "code", None) for outcome in outcomes[served:]} == {Code.RATE_LIMITED}
        got = [int((await asyncio.wait_for(one.received.get(), 5)).payload) for _ in range(served)]
        assert got == list(range(served))


@pytest.mark.parametrize("setting", TLS, indirect=True)
async def test_large_messages_do_not_wait_for_tcp_acknowledgements(setting: BrokerSetup) -> None:
    await setting.up()
    async with setting.linked("one") as one:
        took_s = []
        for _ in range(15):
            begun_s = time.monotonic()
            await one.broker.publish(Message("a/b", b"x" * 6000))
            took_s.append(time.monotonic() - begun_s)
    assert sorted(took_s)[5] < 0.03, "40 ms: Nagle"


@pytest.mark.slow
@pytest.mark.parametrize("setting", MOSQUITTO, indirect=True)
async def test_a_publish_times_out_with_a_slow_broker_and_the_link_stays(setting: BrokerSetup) -> None:
    await setting.up()
    async with TcpProxy(setting.port) as proxy:
        proxy.delay_s = 0.15
        slow = {"port": proxy.port, "keepalive_s": 30, "publish_timeout_s": 1}
        async with setting.linked("one", "a/b", **slow) as one, setting.linked("two") as two:
            await asyncio.gather(*[one.broker.publish(Message("a/b", str(n).encode())) for n in range(30)])
            for n in range(30):
                assert int((await asyncio.wait_for(one.received.get(), 5)).payload) == n
            proxy.delay_s = 0.7
            with pytest.raises(BrokerLost, match="did not acknowledge in time"):
                await one.broker.publish(Message("a/b", b"late"))
            await two.broker.publish(Message("a/b", b"still there"))
            async with asyncio.timeout(5):
                assert {(await one.received.get()).payload for _ in range(2)} == {b"late", b"still there"}
            assert not one.down.is_set()


@pytest.mark.parametrize("setting", ["aws-5-tls"], indirect=True)
async def test_messages_at_qos_0_are_dropped_and_counted_while_the_loop_is_blocked(
    setting: BrokerSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aws_link, "_INBOX", 10)
    await setting.up()
    async with setting.linked("one", "a/b") as one:
        setting.publish_raw([("a/b", str(n), 0, False) for n in range(50)])
        time.sleep(0.5)
        await until(lambda: one.received.qsize() + one.broker.dropped == 50)
        assert one.received.qsize() == 10


@pytest.mark.slow
async def test_a_duplicate_client_id_is_reported_and_backs_off(setting: BrokerSetup) -> None:
    await setting.up()
    links: list[bool] = []
    first = setting.client("one", "a/b", reconnect_cap_s=5)
    first.start()
    await asyncio.wait_for(first.up.wait(), 15)
    second = setting.client("one", "a/b", reconnect_cap_s=5)
    second.broker.listen(lambda _: None, links.append)
    second.start()
    await asyncio.wait_for(first.down.wait(), 15)
    # mosquitto only closes the connection; AWS IoT gives the reason, and the link reports it.
    assert first.broker.error
    await asyncio.sleep(2)
    assert links.count(True) < 10
    await first.stop()
    await second.stop()


async def test_publishes_over_the_limit_are_rejected_and_the_others_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linked_broker, "_CALLERS", 30)
    async with scripted_server(_CONNACK) as port:
        client = plain_client(port)
        client.start()
        await asyncio.wait_for(client.up.wait(), 15)
        waiting = [asyncio.create_task(client.broker.publish(Message("a/b", b"x"))) for _ in range(31)]
        await until(lambda: any(task.done() for task in waiting))
        with pytest.raises(Rejected) as caught:
            await waiting[-1]
        assert caught.value.code is Code.RATE_LIMITED
        await client.stop()
        lost = await asyncio.gather(*waiting[:-1], return_exceptions=True)
        assert {type(outcome) for outcome in lost} == {BrokerLost}


async def test_an_unreadable_packet_ends_the_link() -> None:
    suback = bytes([0x90, 3, 0, 1, 1])
    no_utf8, good = bytes([0x30, 5, 0, 2, 0xFF, 0xFE, 0x41]), bytes([0x30, 6, 0, 3]) + b"a/bx"
    async with scripted_server(_CONNACK, suback + no_utf8 + good) as port:
        client = plain_client(port, "a/b")
        client.start()
        await asyncio.wait_for(client.up.wait(), 15)
        await client.error("cannot be read")
        spent_s = time.process_time()
        await asyncio.sleep(0.3)
        assert time.process_time() - spent_s < 0.15
        await client.stop()


async def test_the_reason_of_a_refused_subscription_is_reported() -> None:
    async with scripted_server(_CONNACK, bytes([0x90, 4, 0, 1, 1, 0x80])) as port:
        client = plain_client(port, "a/b", "c/d")
        client.start()
        await client.error("the broker refused a subscription: unspecified error")
        await client.stop()


@pytest.mark.parametrize("setting", MOSQUITTO, indirect=True)
async def test_missing_acknowledgements_reopen_the_link(setting: BrokerSetup) -> None:
    async with grudging(setting) as broker:
        will = Message("s/one", b"offline", retain=True)
        async with setting.linked("one", will=will, port=broker.port, publish_timeout_s=0.3) as one:
            broker.acknowledging = False
            await unacknowledged(one, 10)
            await asyncio.wait_for(one.down.wait(), 5)
            assert one.broker.error == "the broker leaves too many messages unacknowledged"
            broker.acknowledging = True
            await asyncio.wait_for(one.up.wait(), 15)
            await one.broker.publish(Message("a/b", b"x"))
            assert (broker.links, broker.disconnects) == (2, 0), (
                "no clean disconnect: the last will says offline meanwhile"
            )


@pytest.mark.parametrize("setting", MOSQUITTO, indirect=True)
async def test_a_late_acknowledgement_frees_its_place(setting: BrokerSetup) -> None:
    async with (
        grudging(setting) as broker,
        setting.linked("one", port=broker.port, publish_timeout_s=0.3) as one,
    ):
        for _ in range(3):
            broker.acknowledging = False
            await unacknowledged(one, 9)
            broker.acknowledge_pending()
            await one.broker.publish(Message("a/b", b"x"))
        assert broker.links == 1
        assert one.broker.connected


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["refuse", "ignore"])
@pytest.mark.parametrize("setting", MOSQUITTO, indirect=True)
async def test_a_refused_optional_subscription_is_logged_once_and_the_link_stays(
    setting: BrokerSetup, fault: Literal["refuse", "ignore"], caplog: pytest.LogCaptureFixture
) -> None:
    async with grudging(setting) as broker:
        broker.shadow_fault = fault
        optional = {"optional": ("shadow/a", "shadow/b"), "port": broker.port, "connect_timeout_s": 0.5}
        async with setting.linked("one", "a/b", **optional) as one:
            await one.broker.publish(Message("a/b", b"x"))
            for count in (1, 2):
                assert broker.shadow_subscriptions == count
                assert not one.broker.optional_granted
                await one.error(
                    "no messages will arrive on shadow/b: the broker ", "refused" if fault == "refuse" else "time"
                )
                if count == 2:
                    broker.shadow_fault = "none"
                broker.cut()
                await asyncio.wait_for(one.down.wait(), 5)
                await asyncio.wait_for(one.up.wait(), 15)
            assert caplog.text.count("no messages will arrive on") == 1
            assert one.broker.optional_granted
            assert one.broker.error is None


@pytest.mark.slow
@pytest.mark.parametrize("setting", MOSQUITTO, indirect=True)
async def test_an_optional_subscription_that_closes_the_link_is_omitted_for_an_hour(setting: BrokerSetup) -> None:
    async with grudging(setting) as broker:
        broker.shadow_fault = "hang up"
        async with setting.linked("one", "a/b", optional=("shadow/b",), port=broker.port) as one:
            await one.broker.publish(Message("a/b", b"x"))
            for links in (3, 4):
                assert (broker.links, broker.shadow_subscriptions) == (links, 2)
                assert not one.broker.optional_granted
                await one.error("the link broke while subscribing to shadow/b", "omitted for an hour")
                if links == 4:
                    one.broker._left_out_until_s = 0.0  # an hour later
                    broker.shadow_fault = "none"
                broker.cut()
                await asyncio.wait_for(one.down.wait(), 5)
                await asyncio.wait_for(one.up.wait(), 15)
            assert one.broker.optional_granted
            assert one.broker.error is None


async def test_a_takeover_by_another_client_is_reported() -> None:
    # mosquitto 2.0 only closes the connection; AWS IoT gives the reason.
    async with scripted_server(_CONNACK_5, _SUBACK_5 + _TAKEN_OVER) as port:
        client = plain_client(port, "a/b", version="5")
        client.start()
        await client.error("another client connected with the same client id")
        await client.stop()


@pytest.mark.parametrize("setting", ["aws-5-tls"], indirect=True)
async def test_aws_port_443_uses_alpn_and_a_takeover_is_reported(
    setting: BrokerSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoken: list[str | None] = []
    received: list[bytes] = []
    context = setting.authority.server_context()
    context.set_alpn_protocols(["http/1.1", "x-amzn-mqtt-ca"])
    answers = (_CONNACK_5, _SUBACK_5 + _TAKEN_OVER)
    async with scripted_server(*answers, context=context, protocols=spoken, requests=received) as port:
        monkeypatch.setattr("edge.mqtt.settings._ALPN_PORT", port)
        client = setting.client("one", "a/b", port=port, keepalive_s=30, session_expiry_s=300)
        client.start()
        await client.error("another client connected with the same client id")
        await client.stop()
    assert set(spoken) == {"x-amzn-mqtt-ca"}
    connect = received[0]
    version, flags, keepalive_s = connect[8], connect[9], int.from_bytes(connect[10:12])
    assert (version, keepalive_s) == (5, 30)
    assert flags == 0, "the session goes on, and no user name contains the SDK's version"
    assert b"\x11" + (300).to_bytes(4) in connect, "the session's expiry"


@pytest.mark.slow
async def test_a_broker_that_never_answers_is_retried_with_growing_waits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", linked_broker.__name__)
    monkeypatch.setattr(linked_broker, "_STEADY_S", 0.5)  # shorter than one attempt
    monkeypatch.setattr("random.random", lambda: 0.2)
    async with silent_server() as port:
        client = plain_client(port)
        client.start()
        await until(lambda: caplog.text.count("broker link failed") == 2)
        await client.stop()
    assert re.findall(r"retry_s=(\S+)", caplog.text) == ["0.1", "0.2"]
    failures = [record for record in caplog.records if "broker link failed" in record.message]
    assert [record.levelname for record in failures] == ["WARNING", "DEBUG"], "a repeated failure is logged less often"


@pytest.mark.slow
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
async def test_a_frozen_broker_is_noticed(setting: BrokerSetup, busy: bool) -> None:
    if setting.mosquitto is None:
        # The embedded broker runs in this process and cannot be frozen; a socket that nobody reads replaces it.
        async with silent_server() as port:
            client = setting.client("one", port=port, connect_timeout_s=0.1)
            client.start()
            await client.error("does not answer")
            await client.stop()
        return
    await setting.up()
    async with setting.linked("one", "a/b", publish_timeout_s=1) as one:
        setting.mosquitto.freeze()
        begun_s = time.monotonic()
        while not one.down.is_set():
            if busy:
                with pytest.raises(BrokerLost):
                    await one.broker.publish(Message("a/b", b"x"))
            await asyncio.sleep(0.1)
            # 1.5 keep-alives of 5 s, and the delay of a timer. With the default of 30 s: 45 s.
            assert time.monotonic() - begun_s < 10
        with pytest.raises(BrokerLost):
            await one.broker.publish(Message("a/b", b"x"))


def identity(authority: Authority, name: str, **dates: timedelta) -> dict[str, Any]:
    return dict(zip(("cert_file", "key_file"), authority.issue(name, **dates), strict=True))


@pytest.mark.parametrize("setting", TLS, indirect=True)
async def test_wrong_certificates_are_reported(setting: BrokerSetup, tmp_path: Path) -> None:
    await setting.up()
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other", "other-ca")
    late = identity(setting.authority, "late", until=timedelta(hours=-1))
    early = identity(setting.authority, "early", since=timedelta(hours=1))
    (tmp_path / "junk.pem").write_text("junk")
    cases: list[tuple[dict[str, Any], tuple[str, ...]]] = [
        ({"ca_file": other.ca_file}, ("its certificate is not accepted",)),
        (identity(other, "one"), ("unknown ca",)),
        (late, ("certificate expired", "the device's certificate was valid until")),
        (early, ("bad certificate", "is valid from", "is the clock right?")),
        ({"ca_file": tmp_path / "missing.pem"}, ("missing.pem: No such file",)),
        ({"cert_file": tmp_path / "junk.pem"}, ("junk.pem",)),
        ({"key_file": late["key_file"]}, ("late.key",)),
    ]
    for change, words in cases:
        client = setting.client("one", **change)
        client.start()
        await client.error(*words)
        await client.stop()


@pytest.mark.parametrize("setting", ["aws-5-tls"], indirect=True)
async def test_a_close_after_tls_is_reported(setting: BrokerSetup) -> None:
    context = setting.authority.server_context()
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context) as server:
        client = setting.client("one", port=server.sockets[0].getsockname()[1])
        client.start()
        await client.error("closed the connection after TLS", "may not accept the device's certificate")
        await client.stop()


@pytest.mark.parametrize(
    "dates", [{"since": timedelta(hours=1)}, {"until": timedelta(hours=-1)}], ids=["behind", "ahead"]
)
@pytest.mark.parametrize("setting", TLS, indirect=True)
async def test_a_certificate_outside_its_dates_suggests_a_wrong_clock(
    setting: BrokerSetup, tmp_path: Path, dates: dict[str, timedelta]
) -> None:
    (tmp_path / "out-of-time").mkdir()
    own = setting.authority.issue("out-of-time", **dates)
    setting.mosquitto = Mosquitto(tmp_path / "out-of-time", authority=setting.authority, identity=own)
    await setting.up()
    client = setting.client("one", port=setting.mosquitto.port)
    client.start()
    await client.error("its certificate is not accepted", "is the clock of this device right?")
    await client.stop()


@pytest.mark.parametrize("setting", ["paho-311-password"], indirect=True)
async def test_a_wrong_password_is_reported_and_never_shown(
    setting: BrokerSetup, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await setting.up()
    wrong = tmp_path / "wrong"
    wrong.write_text("hunter3-and-more")
    client = setting.client("one", password_file=wrong)
    client.start()
    said = await client.error("the broker refused")
    await client.stop()
    for secret in (PASSWORD, "hunter3-and-more"):
        assert secret not in said
        assert secret not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["embedded"], indirect=True)
async def test_a_broker_without_mqtt_5_gets_mqtt_3_1_1(setting: BrokerSetup) -> None:
    await setting.up()
    async with setting.linked("one", "a/b", version="auto") as one:
        await one.broker.publish(Message("a/b", b"hello", response_topic="r/x"))
        assert (await asyncio.wait_for(one.received.get(), 5)).response_topic is None


@pytest.mark.parametrize("setting", ["embedded"], indirect=True)
async def test_an_unknown_host_name_is_reported(setting: BrokerSetup) -> None:
    client = setting.client("one", host="no-such-host.invalid")
    client.start()
    assert "no-such-host.invalid" in await client.error("name not found")
    await client.stop()
    client = setting.client("one", host="no..name")
    client.start()
    await client.error("cannot be read as text")
    await client.stop()


@pytest.mark.parametrize("setting", TLS, indirect=True)
async def test_stopping_is_quick_while_it_connects(setting: BrokerSetup) -> None:
    async with silent_server() as port:
        client = setting.client("one", port=port, connect_timeout_s=1)
        client.start()
        await asyncio.sleep(0.3)
        await client.stop()


@pytest.mark.slow  # the thread of the connection ends with its own deadline
@pytest.mark.parametrize("setting", ["aws-5-tls"], indirect=True)
async def test_stopping_is_quick_while_awss_client_itself_connects(setting: BrokerSetup) -> None:
    async with silent_server() as port:
        client = setting.client("one", port=port)
        assert isinstance(client.broker, AwsBroker)
        client.broker._must_check_tls = False
        client.start()
        await asyncio.sleep(0.3)
        await client.stop()


_CONNACK = bytes([0x20, 2, 0, 0])
_CONNACK_5, _SUBACK_5 = bytes([0x20, 3, 0, 0, 0]), bytes([0x90, 4, 0, 1, 0, 1])
_TAKEN_OVER = bytes([0xE0, 2, 142, 0])


def grudging(setting: BrokerSetup) -> ScriptedBroker:
    return ScriptedBroker(setting.authority.server_context() if setting.v5 else None)


async def unacknowledged(client: Client, count: int) -> None:
    given = [client.broker.publish(Message("a/b", b"x")) for _ in range(count)]
    assert {type(outcome) for outcome in await asyncio.gather(*given, return_exceptions=True)} == {BrokerLost}


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while not true():
            await asyncio.sleep(0.01)
