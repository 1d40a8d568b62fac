"""One connection to a broker with awscrt, the MQTT 5 client of AWS's SDK: TLS with a client certificate."""

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
from edge.mqtt.tls import reading, run_in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from concurrent.futures import Future

    from edge.mqtt.settings import MqttSettings

_RECEIVE_MAXIMUM = 64
"""Limit of unacknowledged messages at QoS 1 from the broker; AWS IoT and mosquitto respect it."""
_INBOX = 256
"""Limit of waiting messages. Nothing slows the broker at QoS 0: further messages are dropped and counted."""
_DISCONNECT_S = 2.0
# Keeps the client from reconnecting: the caller opens a new link.
_NEVER_MS = 3_600_000
_FAILED = 128


class AwsLink:
    """One connection. Event loop only, except for the methods under "the client's thread".

    A message is acknowledged after it was handled: a device that crashes before receives it again.
    """

    version = "5"

    def __init__(
        self,
        settings: MqttSettings,
        client_id: str,
        will: Message | None,
        on_message: Callable[[Message], None],
        *,
        on_dropped: Callable[[int], None],
        bootstrap: io.ClientBootstrap,
    ) -> None:
        self._settings = settings
        self._client_id = client_id
        self._will = will
        self._deliver = on_message
        self._on_dropped = on_dropped
        self._bootstrap = bootstrap
        self._loop = asyncio.get_running_loop()
        self._client: mqtt5.Client | None = None
        self._accepted: asyncio.Future[None] = self._loop.create_future()
        self._lost: asyncio.Future[None] = self._loop.create_future()
        self._waiting: set[asyncio.Future[Any]] = {self._accepted, self._lost}
        self._inbox: deque[tuple[mqtt5.PublishPacket, Any]] = deque()
        self._overflow = 0
        self._overflow_reported = 0

    async def open(self) -> None:
        settings = self._settings
        try:
            # Twice the limit: once for TCP, once for TLS.
            async with asyncio.timeout(2 * settings.connect_timeout_s + 1):
                # Reading the authorities takes a Raspberry Pi so long that frames would be late.
                await run_in_thread(self._make, self._abandon)
                assert self._client is not None
                others = connections(settings.effective_port).keys()
                self._client.start()
                await self._accepted
                disable_delay(settings.effective_port, others)
        except TimeoutError as exc:
            raise BrokerLost(f"{settings.host}:{settings.effective_port} does not answer") from exc

    async def subscribe(self, topics: tuple[str, ...]) -> None:
        if not topics:
            return
        subscriptions = [mqtt5.Subscription(topic, mqtt5.QoS.AT_LEAST_ONCE) for topic in topics]
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                granted = await self._request(lambda client: client.subscribe(mqtt5.SubscribePacket(subscriptions)))
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
        outcome = await self._request(lambda client: client.publish(packet))
        if outcome.puback.reason_code >= _FAILED:
            raise BrokerLost(f"the broker refused a message: {_name(outcome.puback.reason_code)}")

    async def close(self) -> None:
        try:
            if self._client is not None:
                self._client.stop(None if self._lost.done() else mqtt5.DisconnectPacket())
                # A client that is still connecting stops later by itself.
                if self._accepted.done() and not self._lost.done():
                    await asyncio.wait({self._lost}, timeout=_DISCONNECT_S)
        finally:
            # The client refers to this object by its callbacks: the cycle would keep both and the threads alive.
            self._client = self._bootstrap = None
            self.end(BrokerLost("the link was closed"))
            for future in (self._accepted, self._lost):
                future.cancel()
                if not future.cancelled():
                    future.exception()  # retrieved, so that asyncio does not report it

    def _make(self) -> None:
        """Make the client. Blocking."""
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
        except RuntimeError as exc:  # a file is not a certificate or key in PEM
            files = " or ".join(str(path) for path in (settings.cert_file, settings.key_file, settings.ca_file) if path)
            raise BrokerLost(f"{files} is not a certificate or key in PEM") from exc

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
                receive_maximum=_RECEIVE_MAXIMUM,
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
            # The time from an unanswered ping to the end of the link; with the keep-alive, 1.5 of them.
            ping_timeout_ms=settings.keepalive_s * 500,
            connack_timeout_ms=int(settings.connect_timeout_s * 1000),
            disable_metrics=True,
            on_publish_callback_fn=self._on_publish,
            on_lifecycle_event_connection_success_fn=lambda _: self._post(self._accept),
            on_lifecycle_event_connection_failure_fn=lambda failed: self._post(self.end, _connect_failure(failed)),
            on_lifecycle_event_disconnection_fn=lambda lost: self._post(self.end, _loss(lost)),
        )

    def _abandon(self) -> None:
        self._client = None

    async def _request(self, send: Callable[[mqtt5.Client], Future[Any]]) -> Any:
        """Send a request and wait for the broker's answer. Raises: BrokerLost."""
        if self._client is None or self._lost.done():
            raise BrokerLost("no link to the broker")
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._waiting.add(answer)
        try:
            sent = send(self._client)
            sent.add_done_callback(lambda done: self._post(_settle, answer, done))
            return await answer
        except AwsCrtError as exc:
            raise BrokerLost(f"the MQTT client refused the request: {exc.message}") from exc
        finally:
            self._waiting.discard(answer)

    def _accept(self) -> None:
        if not self._accepted.done():
            self._accepted.set_result(None)

    def end(self, error: BrokerLost) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_exception(error)

    def _take(self) -> None:
        packet, acknowledgement = self._inbox.popleft()
        if self._overflow > self._overflow_reported:
            self._on_dropped(self._overflow - self._overflow_reported)
            self._overflow_reported = self._overflow
        if self._client is None:
            return  # not acknowledged: the broker sends it again
        self._deliver(
            Message(packet.topic, packet.payload, packet.retain, packet.response_topic, packet.correlation_data_bytes)
        )
        if acknowledgement is not None:
            with contextlib.suppress(RuntimeError, AwsCrtError):  # the link is lost
                self._client.invoke_publish_acknowledgement(acknowledgement)

    # The client's thread.

    def _post(self, call: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is closed
            self._loop.call_soon_threadsafe(call, *args)

    def _on_publish(self, received: mqtt5.PublishReceivedData) -> None:
        control = received.acquire_publish_acknowledgement_control
        if control is None and len(self._inbox) >= _INBOX:
            self._overflow += 1
            return
        self._inbox.append((received.publish_packet, control() if control else None))
        self._post(self._take)


def connections(port: int) -> dict[tuple[Any, Any], int]:
    """This process's TCP connections to a port: file descriptors by their local and remote addresses."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            sock = socket.socket(fileno=int(entry.name))
        except OSError:  # not a socket
            continue
        try:
            if sock.family in {socket.AF_INET, socket.AF_INET6} and sock.getpeername()[1] == port:
                found[sock.getsockname(), sock.getpeername()] = sock.fileno()
        except OSError:
            pass  # not connected
        finally:
            sock.detach()
    return found


def disable_delay(port: int, others: Collection[tuple[Any, Any]]) -> None:
    """Set TCP_NODELAY on the connection that was opened since `others` were listed.

    The client does not show its socket, and has no such option. It sends more than 4 KB in several TLS records; without
    the option the second one waits 40 ms for the broker's acknowledgement.
    """
    for addresses, descriptor in connections(port).items():
        if addresses not in others:
            sock = socket.socket(fileno=descriptor)
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError:
                pass  # closed in the meantime, or not TCP
            finally:
                sock.detach()


def _settle(answer: asyncio.Future[Any], done: Future[Any]) -> None:
    if answer.done():
        return
    if (error := done.exception()) is not None:
        answer.set_exception(error)
    else:
        answer.set_result(done.result())


def _connect_failure(failed: mqtt5.LifecycleConnectFailureData) -> BrokerLost:
    if failed.connack_packet is not None:
        return BrokerLost(f"the broker refused: {_name(failed.connack_packet.reason_code)}")
    return BrokerLost(f"no connection: {failed.exception.message}")


def _loss(lost: mqtt5.LifecycleDisconnectData) -> BrokerLost:
    if lost.disconnect_packet is None:
        return BrokerLost(f"the link to the broker broke: {lost.exception.message}")
    code = lost.disconnect_packet.reason_code
    if code == mqtt5.DisconnectReasonCode.SESSION_TAKEN_OVER:
        return BrokerLost(f"the broker disconnected: {TAKEN_OVER}")
    return BrokerLost(f"the broker disconnected: {_name(code)}")


def _name(code: int) -> str:
    """The name of a reason code, or its number if the client does not know it."""
    return str(getattr(code, "name", code)).lower().replace("_", " ")
