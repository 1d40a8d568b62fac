"""One connection to a broker by awscrt, the MQTT 5 client of AWS's SDK: TLS with a client certificate."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from awscrt import io, mqtt5
from awscrt.exceptions import AwsCrtError

from edge.contract.messages import PACKET_LIMIT_BYTES
from edge.errors import BrokerLost
from edge.mqtt.broker import Message
from edge.mqtt.link import TAKEN_OVER, NotGranted
from edge.mqtt.tls import in_thread, reading

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from edge.mqtt.settings import MqttSettings

_UNTAKEN = 64
"""Messages at QoS 1 that the broker sends ahead of those that were taken; AWS IoT and mosquitto keep to it."""
_INBOX = 256
"""At QoS 0 nothing holds the broker back: what is over this is dropped and counted."""
_GOODBYE_S = 2.0
# This class makes a new try; the client's own would come first otherwise.
_NEVER_MS = 3_600_000
_FAILED = 128


class AwsLink:
    """One connection, from its making to its end. Event loop only, but for what stands under "the client's thread".

    Messages are acknowledged when they were taken, so a device that ends before gets them again.
    """

    version = "5"

    def __init__(
        self,
        settings: MqttSettings,
        client_id: str,
        will: Message | None,
        on_message: Callable[[Message], None],
        *,
        on_lost: Callable[[int], None],
        bootstrap: io.ClientBootstrap,
    ) -> None:
        self._settings = settings
        self._client_id = client_id
        self._will = will
        self._deliver = on_message
        self._tell_lost = on_lost
        self._bootstrap = bootstrap
        self._loop = asyncio.get_running_loop()
        self._client: mqtt5.Client | None = None
        self._accepted: asyncio.Future[None] = self._loop.create_future()
        self._lost: asyncio.Future[None] = self._loop.create_future()
        self._waiting: set[asyncio.Future[Any]] = {self._accepted, self._lost}
        self._inbox: deque[tuple[mqtt5.PublishPacket, Any]] = deque()
        self._overflow = 0
        self._overflow_told = 0

    async def open(self) -> None:
        settings = self._settings
        try:
            # Twice: once for TCP, once for TLS.
            async with asyncio.timeout(2 * settings.connect_timeout_s + 1):
                # Reading the authorities takes a Pi long enough to make a picture late.
                await in_thread(self._make, self._abandon)
                assert self._client is not None
                self._client.start()
                await self._accepted
                _no_delay(settings.effective_port)
        except TimeoutError as exc:
            raise BrokerLost(f"{settings.host}:{settings.effective_port} does not answer") from exc

    async def subscribe(self, topics: tuple[str, ...]) -> None:
        if not topics:
            return
        asked = [mqtt5.Subscription(topic, mqtt5.QoS.AT_LEAST_ONCE) for topic in topics]
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                granted = await self._outcome(lambda client: client.subscribe(mqtt5.SubscribePacket(asked)))
        except TimeoutError as exc:
            raise NotGranted("the broker did not grant the subscriptions in time") from exc
        for code in granted.reason_codes:
            if code >= _FAILED:
                raise NotGranted(f"the broker refused a subscription: {_name(code)}")

    async def serve(self) -> None:
        await asyncio.wait({self._lost})
        await self._lost

    async def publish(self, message: Message) -> None:
        packet = mqtt5.PublishPacket(
            payload=message.payload,
            qos=mqtt5.QoS.AT_LEAST_ONCE,
            retain=message.retain,
            topic=message.topic,
            message_expiry_interval_sec=message.expiry_s,
            response_topic=message.response_topic,
            correlation_data_bytes=message.correlation,
        )
        outcome = await self._outcome(lambda client: client.publish(packet))
        if outcome.puback.reason_code >= _FAILED:
            raise BrokerLost(f"the broker refused a message: {_name(outcome.puback.reason_code)}")

    async def close(self) -> None:
        try:
            if self._client is not None:
                self._client.stop(None if self._lost.done() else mqtt5.DisconnectPacket())
                # One that is still connecting stops when that is over: nobody waits for it, and nobody hears it.
                if self._accepted.done() and not self._lost.done():
                    await asyncio.wait({self._lost}, timeout=_GOODBYE_S)
        finally:
            # The client holds its callbacks, and so this: or else both would stay for ever, and the threads with them.
            self._client = self._bootstrap = None
            self.end(BrokerLost("the link was closed"))
            for future in (self._accepted, self._lost):
                future.cancel()
                if not future.cancelled():
                    future.exception()  # it was told, or nobody has to hear it any more

    def _make(self) -> None:
        """Blocking; in a thread of its own."""
        settings = self._settings
        assert settings.cert_file is not None
        assert settings.key_file is not None
        with reading(settings.cert_file, settings.key_file):
            tls = io.TlsContextOptions.create_client_with_mtls_from_path(
                str(settings.cert_file), str(settings.key_file)
            )
        if settings.ca_file is not None:
            with reading(settings.ca_file):
                tls.override_default_trust_store_from_path(None, str(settings.ca_file))
        tls.alpn_list = settings.alpn
        sockets = io.SocketOptions()
        sockets.connect_timeout_ms = int(settings.connect_timeout_s * 1000)
        try:
            self._client = mqtt5.Client(self._options(io.ClientTlsContext(tls), sockets))
        except RuntimeError as exc:  # what the library raises for files that are none of theirs
            files = f"{settings.cert_file}, {settings.key_file} or {settings.ca_file}"
            raise BrokerLost(f"{files} cannot be used") from exc

    def _options(self, tls: io.ClientTlsContext, sockets: io.SocketOptions) -> mqtt5.ClientOptions:
        settings, will = self._settings, self._will
        return mqtt5.ClientOptions(
            host_name=settings.host,
            port=settings.effective_port,
            bootstrap=self._bootstrap,
            socket_options=sockets,
            tls_ctx=tls,
            connect_options=mqtt5.ConnectPacket(
                client_id=self._client_id,
                keep_alive_interval_sec=settings.keepalive_s,
                session_expiry_interval_sec=settings.session_expiry_s,
                receive_maximum=_UNTAKEN,
                maximum_packet_size=PACKET_LIMIT_BYTES,
                will=will
                and mqtt5.PublishPacket(
                    topic=will.topic, payload=will.payload, qos=mqtt5.QoS.AT_LEAST_ONCE, retain=will.retain
                ),
            ),
            session_behavior=mqtt5.ClientSessionBehaviorType.REJOIN_ALWAYS,
            offline_queue_behavior=mqtt5.ClientOperationQueueBehaviorType.FAIL_ALL_ON_DISCONNECT,
            min_reconnect_delay_ms=_NEVER_MS,
            max_reconnect_delay_ms=_NEVER_MS,
            # From a ping to the end of a link that does not answer it: with the keep-alive, one and a half of them.
            ping_timeout_ms=settings.keepalive_s * 500,
            connack_timeout_ms=int(settings.connect_timeout_s * 1000),
            disable_metrics=True,
            on_publish_callback_fn=self._on_publish,
            on_lifecycle_event_connection_success_fn=lambda _: self._post(self._accept),
            on_lifecycle_event_connection_failure_fn=lambda failed: self._post(self.end, _why_not(failed)),
            on_lifecycle_event_disconnection_fn=lambda lost: self._post(self.end, _why_lost(lost)),
        )

    def _abandon(self) -> None:
        self._client = None

    async def _outcome(self, ask: Callable[[mqtt5.Client], Future[Any]]) -> Any:
        """What the broker says to something. Raises: BrokerLost."""
        if self._client is None or self._lost.done():
            raise BrokerLost("no link to the broker")
        told: asyncio.Future[Any] = self._loop.create_future()
        self._waiting.add(told)
        try:
            asked = ask(self._client)
            asked.add_done_callback(lambda done: self._post(_settle, told, done))
            return await told
        except AwsCrtError as exc:
            raise BrokerLost(f"the broker's client refused it: {exc.message}") from exc
        finally:
            self._waiting.discard(told)

    def _accept(self) -> None:
        if not self._accepted.done():
            self._accepted.set_result(None)

    def end(self, error: BrokerLost) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_exception(error)

    def _take(self) -> None:
        packet, acknowledgement = self._inbox.popleft()
        if self._overflow > self._overflow_told:
            self._tell_lost(self._overflow - self._overflow_told)
            self._overflow_told = self._overflow
        if self._client is None:
            return  # the broker brings it again
        self._deliver(
            Message(packet.topic, packet.payload, packet.retain, packet.response_topic, packet.correlation_data_bytes)
        )
        if acknowledgement is not None:
            with contextlib.suppress(RuntimeError, AwsCrtError):  # the link is lost meanwhile
                self._client.invoke_publish_acknowledgement(acknowledgement)

    # The client's thread.

    def _post(self, call: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            self._loop.call_soon_threadsafe(call, *args)

    def _on_publish(self, received: mqtt5.PublishReceivedData) -> None:
        control = received.acquire_publish_acknowledgement_control
        if control is None and len(self._inbox) >= _INBOX:
            self._overflow += 1
            return
        self._inbox.append((received.publish_packet, control() if control else None))
        self._post(self._take)


def _no_delay(port: int) -> None:
    """On the client's socket, which it does not show and for which it has no such option.

    It sends what is over 4 KB in several records; the second would wait 40 ms for the broker's acknowledgement.
    """
    for entry in Path("/proc/self/fd").iterdir():
        try:
            sock = socket.socket(fileno=int(entry.name))
        except OSError:  # no socket
            continue
        try:
            if sock.family in {socket.AF_INET, socket.AF_INET6} and sock.getpeername()[1] == port:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            pass  # not connected, or not TCP
        finally:
            sock.detach()


def _settle(told: asyncio.Future[Any], done: Future[Any]) -> None:
    if told.done():
        return
    if (error := done.exception()) is not None:
        told.set_exception(error)
    else:
        told.set_result(done.result())


def _why_not(failed: mqtt5.LifecycleConnectFailureData) -> BrokerLost:
    if failed.connack_packet is not None:
        return BrokerLost(f"the broker refused: {_name(failed.connack_packet.reason_code)}")
    return BrokerLost(f"no connection: {failed.exception.message}")


def _why_lost(lost: mqtt5.LifecycleDisconnectData) -> BrokerLost:
    if lost.disconnect_packet is None:
        return BrokerLost(f"the link to the broker broke: {lost.exception.message}")
    code = lost.disconnect_packet.reason_code
    if code == mqtt5.DisconnectReasonCode.SESSION_TAKEN_OVER:
        return BrokerLost(f"the broker disconnected: {TAKEN_OVER}")
    return BrokerLost(f"the broker disconnected: {_name(code)}")


def _name(code: int) -> str:
    """Of a reason code that the client knows; else its number."""
    return str(getattr(code, "name", code)).lower().replace("_", " ")
