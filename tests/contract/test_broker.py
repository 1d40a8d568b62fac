"""The broker port, by both clients, against real brokers: mosquitto on MQTT 5 and 3.1.1, and the demo's."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from edge.contract.codes import Code
from edge.errors import BrokerLost, Rejected
from edge.mqtt import aws_link, linked_broker
from edge.mqtt.aws_broker import AwsBroker
from edge.mqtt.broker import Message
from tests.rigs.certificates import Authority
from tests.rigs.grudging_broker import GrudgingBroker
from tests.rigs.links import MOSQUITTO, PASSWORD, TLS, Client, Setting, deaf_server, one_answer_each, plain_client
from tests.rigs.mosquitto import Mosquitto
from tests.rigs.tcp_proxy import TcpProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


@pytest.fixture(params=[*MOSQUITTO, "embedded"])
async def setting(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Setting]:
    unhandled: list[dict[str, Any]] = []
    native = native_threads()

    def complain(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # The embedded broker complains where a client goes; nothing of ours serves connections here.
        if "client_connected_cb" not in context["message"]:
            unhandled.append(context)

    asyncio.get_running_loop().set_exception_handler(complain)
    made = Setting(tmp_path, request.param)
    yield made
    await made.down()
    assert unhandled == []
    # A connection that was being made when its link was stopped may take its own deadline to give up.
    async with asyncio.timeout(12):
        while any(thread.name.startswith(("mqtt", "paho")) for thread in threading.enumerate()):
            await asyncio.sleep(0.02)
        while native_threads() > native:
            await asyncio.sleep(0.02)


def native_threads() -> int:
    """Those that are not Python's: of AWS's client."""
    return len(list(Path("/proc/self/task").iterdir())) - threading.active_count()


async def test_a_message_goes_round_with_its_properties_where_there_are_any(setting: Setting) -> None:
    await setting.up()
    async with setting.linked("one", "a/b") as one, setting.linked("two") as two:
        await two.broker.publish(Message("a/b", b"hello", response_topic="r/x", correlation=b"7", expiry_s=30))
        got = await asyncio.wait_for(one.came.get(), 5)
        assert (got.topic, got.payload, got.retain) == ("a/b", b"hello", False)
        assert (got.response_topic, got.correlation) == (("r/x", b"7") if setting.v5 else (None, None))


async def test_what_is_retained_is_there_for_who_comes_later(setting: Setting) -> None:
    await setting.up()
    async with setting.linked("one") as one:
        await one.broker.publish(Message("s/1", b"true now", retain=True))
        async with setting.linked("two", "s/1") as two:
            got = await asyncio.wait_for(two.came.get(), 5)
            assert (got.payload, got.retain) == (b"true now", True)


async def test_the_last_will_comes_when_the_link_breaks_and_not_after_a_goodbye(setting: Setting) -> None:
    await setting.up()
    will = Message("s/one", b"offline", retain=True)
    async with setting.linked("two", "s/one") as two, TcpProxy(setting.port) as proxy:
        async with setting.linked("one", will=will, port=proxy.port):
            pass
        async with setting.linked("one", will=will, port=proxy.port):
            await proxy.cut()
            got = await asyncio.wait_for(two.came.get(), 10)
            assert got.payload == b"offline"
        assert two.came.empty(), "one will, of the link that broke"


# The embedded broker begins and ends with the demo, and does not stand clients that come while it does.
@pytest.mark.parametrize("setting", MOSQUITTO, indirect=True)
async def test_a_broker_that_comes_late_and_goes_and_comes_again(setting: Setting) -> None:
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
        assert (await asyncio.wait_for(client.came.get(), 5)).payload == b"hello"
        await setting.down()
        await asyncio.wait_for(client.down.wait(), 10)
        assert not client.broker.connected
        assert client.broker.error
        with pytest.raises(BrokerLost):
            await client.broker.publish(Message("a/b", b"x"))
    await client.stop()


@pytest.mark.parametrize("setting", MOSQUITTO, indirect=True)
async def test_commands_that_are_sent_while_a_broker_is_killed_and_back_take_effect_once(
    setting: Setting, tmp_path: Path
) -> None:
    await setting.up()
    async with TcpProxy(setting.port) as proxy, setting.linked("one", "a/b", port=proxy.port) as one:
        # The broker promises nothing of what it has not written yet.
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
            got = [int((await one.came.get()).payload) for _ in range(30)]
        await asyncio.sleep(0.3)
        assert got == list(range(30))
        assert one.came.empty()


@pytest.mark.slow
@pytest.mark.parametrize("setting", TLS, indirect=True)
async def test_what_has_expired_meanwhile_does_not_come(setting: Setting) -> None:
    await setting.up()
    async with setting.linked("one", "a/b"):
        pass
    async with setting.linked("two") as two:
        await two.broker.publish(Message("a/b", b"short-lived", expiry_s=1))
        await two.broker.publish(Message("a/b", b"long-lived", expiry_s=60))
    await asyncio.sleep(2.5)
    async with setting.linked("one", "a/b") as one:
        assert (await asyncio.wait_for(one.came.get(), 5)).payload == b"long-lived"


@pytest.mark.parametrize("setting", MOSQUITTO, indirect=True)
async def test_what_is_published_while_a_client_is_away_waits_for_it(setting: Setting) -> None:
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
    # The broker sends it before it grants the subscriptions; who takes it must be able to answer.
    assert happened == [True, (b"for later", True)]
    await client.stop()


@pytest.mark.parametrize("setting", MOSQUITTO, indirect=True)
async def test_without_a_session_nothing_waits(setting: Setting) -> None:
    await setting.up()
    async with setting.linked("one", "a/b", session_expiry_s=0):
        pass
    async with setting.linked("two") as two:
        await two.broker.publish(Message("a/b", b"for nobody"))
        async with setting.linked("one", "a/b", session_expiry_s=0) as one:
            await two.broker.publish(Message("a/b", b"for one"))
            assert (await asyncio.wait_for(one.came.get(), 5)).payload == b"for one"


@pytest.mark.parametrize("setting", TLS, indirect=True)
async def test_of_too_much_that_waited_the_newest_is_kept_and_the_rest_counted(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linked_broker, "_HELD", 3)
    await setting.up()
    async with setting.linked("one", "a/b"):
        pass
    async with setting.linked("two") as two:
        for n in range(10):
            await two.broker.publish(Message("a/b", str(n).encode()))
    async with setting.linked("one", "a/b") as one:
        await until(lambda: one.broker.dropped + one.came.qsize() == 10)
        got = [int(one.came.get_nowait().payload) for _ in range(one.came.qsize())]
        assert got == list(range(10))[-len(got) :]
        assert one.broker.dropped > 0


@pytest.mark.parametrize("setting", MOSQUITTO, indirect=True)
async def test_a_bug_in_what_takes_a_message_costs_that_message_only(
    setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    await setting.up()
    client = setting.client("one", "a/b")
    came: list[bytes] = []

    def take(message: Message) -> None:
        came.append(message.payload)
        if message.payload == b"bad":
            raise ValueError(message.payload)

    client.broker.listen(take, lambda up: client.up.set())
    client.start()
    await asyncio.wait_for(client.up.wait(), 15)
    for payload in (b"bad", b"good"):
        await client.broker.publish(Message("a/b", payload))
    await until(lambda: len(came) >= 2)
    assert came == [b"bad", b"good"]
    assert "a bug in what takes messages" in caplog.text
    await client.stop()


async def test_what_does_not_fit_is_refused_and_nothing_else_suffers(setting: Setting) -> None:
    await setting.up()
    async with setting.linked("one", "a/b") as one:
        for topic, size in (("a/b", 128 * 1024 + 1), ("a/" * 8 + "b", 1), ("a" * 257, 1)):
            with pytest.raises(Rejected) as caught:
                await one.broker.publish(Message(topic, b"x" * size))
            assert caught.value.code is Code.TOO_LARGE
        await one.broker.publish(Message("a/b", b"x" * 100_000))
        assert len((await asyncio.wait_for(one.came.get(), 5)).payload) == 100_000


@pytest.mark.parametrize("setting", TLS, indirect=True)
async def test_what_is_far_too_long_does_not_come_at_all_and_nothing_else_suffers(setting: Setting) -> None:
    await setting.up()
    async with setting.linked("one", "a/b") as one:
        both = [("a/b", payload, 1, False) for payload in (b"x" * 1_000_000, b"short")]
        await asyncio.to_thread(setting.publish_raw, both)
        assert (await asyncio.wait_for(one.came.get(), 5)).payload == b"short"
        assert not one.down.is_set()


async def test_many_at_once_all_arrive(setting: Setting) -> None:
    await setting.up()
    # AWS's client keeps to AWS IoT's rate by itself; a backend's paho does not.
    async with setting.linked("one", "a/b") as one, setting.linked("two", client="paho") as two:
        async with asyncio.timeout(60):
            await asyncio.gather(*[two.broker.publish(Message("a/b", str(n).encode())) for n in range(500)])
            got = [int((await one.came.get()).payload) for _ in range(500)]
        assert got == list(range(500))


async def test_over_the_rate_messages_wait_a_little_and_then_are_refused(setting: Setting) -> None:
    await setting.up()
    async with setting.linked("one", "a/b", publishes_per_s=10, publish_timeout_s=2) as one:
        all_of_them = [one.broker.publish(Message("a/b", str(n).encode())) for n in range(30)]
        begun_s = time.monotonic()
        outcomes = await asyncio.gather(*all_of_them, return_exceptions=True)
        # A burst of 2, and what 8 a second let through within half of the deadline; more where the machine held us up.
        served = outcomes.index(next(outcome for outcome in outcomes if outcome))
        assert 10 <= served <= 12
        assert time.monotonic() - begun_s > 0.9
        assert {getattr(outcome, "code", None) for outcome in outcomes[served:]} == {Code.RATE_LIMITED}
        got = [int((await asyncio.wait_for(one.came.get(), 5)).payload) for _ in range(served)]
        assert got == list(range(served))


@pytest.mark.parametrize("setting", TLS, indirect=True)
async def test_large_messages_do_not_wait_for_acknowledgements_of_tcp(setting: Setting) -> None:
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
async def test_a_slow_broker_is_waited_for_and_one_too_slow_is_told_and_kept(setting: Setting) -> None:
    await setting.up()
    async with TcpProxy(setting.port) as proxy:
        proxy.delay_s = 0.15
        slow = {"port": proxy.port, "keepalive_s": 30, "publish_timeout_s": 1}
        async with setting.linked("one", "a/b", **slow) as one, setting.linked("two") as two:
            await asyncio.gather(*[one.broker.publish(Message("a/b", str(n).encode())) for n in range(30)])
            for n in range(30):
                assert int((await asyncio.wait_for(one.came.get(), 5)).payload) == n
            proxy.delay_s = 0.7
            with pytest.raises(BrokerLost, match="did not acknowledge in time"):
                await one.broker.publish(Message("a/b", b"late"))
            await two.broker.publish(Message("a/b", b"still there"))
            async with asyncio.timeout(5):
                assert {(await one.came.get()).payload for _ in range(2)} == {b"late", b"still there"}
            assert not one.down.is_set()


@pytest.mark.parametrize("setting", ["aws-5-tls"], indirect=True)
async def test_what_nothing_holds_back_is_dropped_and_counted_while_the_loop_does_not_turn(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aws_link, "_INBOX", 10)
    await setting.up()
    async with setting.linked("one", "a/b") as one:
        setting.publish_raw([("a/b", str(n), 0, False) for n in range(50)])
        time.sleep(0.5)
        await until(lambda: one.came.qsize() + one.broker.dropped == 50)
        assert one.came.qsize() == 10


@pytest.mark.slow
async def test_one_client_id_used_twice_is_told_and_does_not_flap(setting: Setting) -> None:
    await setting.up()
    links: list[bool] = []
    first = setting.client("one", "a/b", reconnect_cap_s=5)
    first.start()
    await asyncio.wait_for(first.up.wait(), 15)
    second = setting.client("one", "a/b", reconnect_cap_s=5)
    second.broker.listen(lambda _: None, links.append)
    second.start()
    await asyncio.wait_for(first.down.wait(), 15)
    # mosquitto just hangs up; where a broker says why (AWS IoT does), so does the link.
    assert first.broker.error
    await asyncio.sleep(2)
    assert links.count(True) < 10
    await first.stop()
    await second.stop()


async def test_more_callers_than_may_wait_are_refused_and_the_others_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linked_broker, "_CALLERS", 30)
    async with one_answer_each(_CONNACK) as port:
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


async def test_what_cannot_be_read_never_makes_it_spin_or_stay_deaf() -> None:
    suback = bytes([0x90, 3, 0, 1, 1])
    no_utf8, good = bytes([0x30, 5, 0, 2, 0xFF, 0xFE, 0x41]), bytes([0x30, 6, 0, 3]) + b"a/bx"
    async with one_answer_each(_CONNACK, suback + no_utf8 + good) as port:
        client = plain_client(port, "a/b")
        client.start()
        await asyncio.wait_for(client.up.wait(), 15)
        await client.error("cannot be read")
        spent_s = time.process_time()
        await asyncio.sleep(0.3)
        assert time.process_time() - spent_s < 0.15
        await client.stop()


async def test_a_refused_subscription_is_told_by_its_own_reason() -> None:
    async with one_answer_each(_CONNACK, bytes([0x90, 4, 0, 1, 1, 0x80])) as port:
        client = plain_client(port, "a/b", "c/d")
        client.start()
        await client.error("the broker refused a subscription: unspecified error")
        await client.stop()


@pytest.mark.parametrize("setting", MOSQUITTO, indirect=True)
async def test_places_that_a_broker_never_gives_back_make_the_link_anew(setting: Setting) -> None:
    async with grudging(setting) as broker:
        will = Message("s/one", b"offline", retain=True)
        async with setting.linked("one", will=will, port=broker.port, publish_timeout_s=0.3) as one:
            broker.acknowledging = False
            await unacknowledged(one, 10)
            await asyncio.wait_for(one.down.wait(), 5)
            assert one.broker.error == "the broker acknowledges too little"
            broker.acknowledging = True
            await asyncio.wait_for(one.up.wait(), 15)
            await one.broker.publish(Message("a/b", b"x"))
            assert (broker.links, broker.goodbyes) == (2, 0), "no goodbye: the last will says offline meanwhile"


@pytest.mark.parametrize("setting", MOSQUITTO, indirect=True)
async def test_what_is_acknowledged_late_gives_its_place_back(setting: Setting) -> None:
    async with (
        grudging(setting) as broker,
        setting.linked("one", port=broker.port, publish_timeout_s=0.3) as one,
    ):
        for _ in range(3):
            broker.acknowledging = False
            await unacknowledged(one, 9)
            broker.make_good()
            await one.broker.publish(Message("a/b", b"x"))
        assert broker.links == 1
        assert one.broker.connected


@pytest.mark.parametrize("grudge", ["refuse", "ignore"])
@pytest.mark.parametrize("setting", MOSQUITTO, indirect=True)
async def test_an_optional_subscription_that_is_not_granted_is_told_once_and_the_link_lives(
    setting: Setting, grudge: Literal["refuse", "ignore"], caplog: pytest.LogCaptureFixture
) -> None:
    async with grudging(setting) as broker:
        broker.grudge = grudge
        optional = {"optional": ("shadow/a", "shadow/b"), "port": broker.port, "connect_timeout_s": 0.5}
        async with setting.linked("one", "a/b", **optional) as one:
            await one.broker.publish(Message("a/b", b"x"))
            for asked in (1, 2):
                assert broker.asked == asked
                assert not one.broker.optional_granted
                await one.error("nothing comes on shadow/b: the broker ", "refused" if grudge == "refuse" else "time")
                if asked == 2:
                    broker.grudge = "none"
                broker.cut()
                await asyncio.wait_for(one.down.wait(), 5)
                await asyncio.wait_for(one.up.wait(), 15)
            assert caplog.text.count("nothing comes on") == 1
            assert one.broker.optional_granted
            assert one.broker.error is None


@pytest.mark.slow
@pytest.mark.parametrize("setting", MOSQUITTO, indirect=True)
async def test_an_optional_subscription_that_a_broker_hangs_up_on_is_left_out_for_an_hour(setting: Setting) -> None:
    async with grudging(setting) as broker:
        broker.grudge = "hang up"
        async with setting.linked("one", "a/b", optional=("shadow/b",), port=broker.port) as one:
            await one.broker.publish(Message("a/b", b"x"))
            for links in (3, 4):
                assert (broker.links, broker.asked) == (links, 2)
                assert not one.broker.optional_granted
                await one.error("the link broke when shadow/b was asked for", "left out")
                if links == 4:
                    one.broker._left_out_until_s = 0.0  # an hour later
                    broker.grudge = "none"
                broker.cut()
                await asyncio.wait_for(one.down.wait(), 5)
                await asyncio.wait_for(one.up.wait(), 15)
            assert one.broker.optional_granted
            assert one.broker.error is None


async def test_a_link_taken_over_by_another_client_is_told_as_such() -> None:
    # mosquitto 2.0 just hangs up; AWS IoT says why.
    async with one_answer_each(_CONNACK_5, _SUBACK_5 + _TAKEN_OVER) as port:
        client = plain_client(port, "a/b", version="5")
        client.start()
        await client.error("another client connected with the same client id")
        await client.stop()


@pytest.mark.parametrize("setting", ["aws-5-tls"], indirect=True)
async def test_aws_port_443_is_spoken_to_by_its_protocol_and_a_taken_over_link_told(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoken: list[str | None] = []
    heard: list[bytes] = []
    context = setting.authority.server_context()
    context.set_alpn_protocols(["http/1.1", "x-amzn-mqtt-ca"])
    answers = (_CONNACK_5, _SUBACK_5 + _TAKEN_OVER)
    async with one_answer_each(*answers, context=context, spoken=spoken, heard=heard) as port:
        monkeypatch.setattr("edge.mqtt.settings._ALPN_PORT", port)
        client = setting.client("one", "a/b", port=port, keepalive_s=30, session_expiry_s=300)
        client.start()
        await client.error("another client connected with the same client id")
        await client.stop()
    assert set(spoken) == {"x-amzn-mqtt-ca"}
    connect = heard[0]
    version, flags, keepalive_s = connect[8], connect[9], int.from_bytes(connect[10:12])
    assert (version, keepalive_s) == (5, 30)
    assert flags == 0, "the session goes on, and no user name tells the SDK's version"
    assert b"\x11" + (300).to_bytes(4) in connect, "the session's expiry"


async def test_a_broker_that_takes_connections_and_never_answers_is_tried_ever_more_rarely(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", linked_broker.__name__)
    monkeypatch.setattr(linked_broker, "_STEADY_S", 0.5)  # less than one try takes
    monkeypatch.setattr("random.random", lambda: 0.2)
    async with deaf_server() as port:
        client = plain_client(port)
        client.start()
        await until(lambda: caplog.text.count("again in") == 2)
        await client.stop()
    assert [record.getMessage()[-5:] for record in caplog.records if "again in" in record.message] == ["0.1 s", "0.2 s"]


@pytest.mark.slow
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
async def test_a_broker_that_answers_nothing_any_more_is_noticed(setting: Setting, busy: bool) -> None:
    if setting.mosquitto is None:
        # It lives in this process and cannot be frozen alone: a socket that nobody reads stands for it.
        async with deaf_server() as port:
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
            # One and a half keep-alives of 5 s, and what a timer may be late. With the default of 30 s: 45 s.
            assert time.monotonic() - begun_s < 10
        with pytest.raises(BrokerLost):
            await one.broker.publish(Message("a/b", b"x"))


def identity(authority: Authority, name: str, **dates: timedelta) -> dict[str, Any]:
    return dict(zip(("cert_file", "key_file"), authority.issue(name, **dates), strict=True))


@pytest.mark.parametrize("setting", TLS, indirect=True)
async def test_certificates_that_do_not_fit_are_told(setting: Setting, tmp_path: Path) -> None:
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
async def test_a_broker_that_hangs_up_after_tls_is_told(setting: Setting) -> None:
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
async def test_a_wrong_clock_is_suspected_where_the_brokers_certificate_is_not_of_its_time(
    setting: Setting, tmp_path: Path, dates: dict[str, timedelta]
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
async def test_a_wrong_password_is_told_and_no_password_is(
    setting: Setting, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await setting.up()
    wrong = tmp_path / "wrong"
    wrong.write_text("hunter3-and-more")
    client = setting.client("one", password_file=wrong)
    client.start()
    told = await client.error("the broker refused")
    await client.stop()
    for secret in (PASSWORD, "hunter3-and-more"):
        assert secret not in told
        assert secret not in caplog.text


@pytest.mark.parametrize("setting", ["embedded"], indirect=True)
async def test_a_broker_without_mqtt_5_is_spoken_to_in_3_1_1(setting: Setting) -> None:
    await setting.up()
    async with setting.linked("one", "a/b", version="auto") as one:
        await one.broker.publish(Message("a/b", b"hello", response_topic="r/x"))
        assert (await asyncio.wait_for(one.came.get(), 5)).response_topic is None


@pytest.mark.parametrize("setting", ["embedded"], indirect=True)
async def test_a_name_that_is_not_there_is_told(setting: Setting) -> None:
    client = setting.client("one", host="no-such-host.invalid")
    client.start()
    assert "no-such-host.invalid" in await client.error("name not found")
    await client.stop()
    client = setting.client("one", host="no..name")
    client.start()
    await client.error("cannot be read as text")
    await client.stop()


@pytest.mark.parametrize("setting", TLS, indirect=True)
async def test_stopping_is_quick_while_it_connects(setting: Setting) -> None:
    async with deaf_server() as port:
        client = setting.client("one", port=port, connect_timeout_s=1)
        client.start()
        await asyncio.sleep(0.3)
        await client.stop()


@pytest.mark.slow  # the thread of the connection ends with its own deadline
@pytest.mark.parametrize("setting", ["aws-5-tls"], indirect=True)
async def test_stopping_is_quick_while_awss_client_itself_connects(setting: Setting) -> None:
    async with deaf_server() as port:
        client = setting.client("one", port=port)
        assert isinstance(client.broker, AwsBroker)
        client.broker._in_doubt = False
        client.start()
        await asyncio.sleep(0.3)
        await client.stop()


_CONNACK = bytes([0x20, 2, 0, 0])
_CONNACK_5, _SUBACK_5 = bytes([0x20, 3, 0, 0, 0]), bytes([0x90, 4, 0, 1, 0, 1])
_TAKEN_OVER = bytes([0xE0, 2, 142, 0])


def grudging(setting: Setting) -> GrudgingBroker:
    return GrudgingBroker(setting.authority.server_context() if setting.v5 else None)


async def unacknowledged(client: Client, count: int) -> None:
    given = [client.broker.publish(Message("a/b", b"x")) for _ in range(count)]
    assert {type(outcome) for outcome in await asyncio.gather(*given, return_exceptions=True)} == {BrokerLost}


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while not true():
            await asyncio.sleep(0.01)
