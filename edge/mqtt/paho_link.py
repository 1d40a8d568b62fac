"""One connection to a broker with paho-mqtt, in the event loop: MQTT 5 and 3.1.1, TLS, certificates, passwords."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import ssl
from typing import TYPE_CHECKING, Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge.contract.messages import PACKET_LIMIT_BYTES
from edge.errors import BrokerLost
from edge.mqtt.broker import Message
from edge.mqtt.link import TAKEN_OVER, UNACKNOWLEDGED, NotGranted
from edge.mqtt.tls import alert_words, explaining_failures, run_in_thread, tls_context

if TYPE_CHECKING:
    from collections.abc import Callable

    from paho.mqtt.reasoncodes import ReasonCode

    from edge.mqtt.settings import MqttSettings

log = logging.getLogger(__name__)

_MISC_EVERY_S = 1.0
_DISCONNECT_S = 2.0
_UNSUPPORTED_PROTOCOL = 132
_MQTT5_TIMEOUT_S = 3.0
_TLS_ALERT = re.compile(r"\[SSL: (\w*ALERT\w*)\]")
_SESSION_TAKEN_OVER = 142
_READ_BYTES = 64 * 1024


class VersionRefused(BrokerLost):
    """The broker does not speak MQTT 5."""


class _TlsSocket(ssl.SSLSocket):
    """Closes itself if the handshake fails; paho leaves that to the garbage collector."""

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT002  the signature of ssl
        try:
            super().do_handshake(block)
        except OSError:
            self.close()
            raise


class _BoundedClient(mqtt.Client):
    """Keeps no more of a packet than `PACKET_LIMIT_BYTES` and one read.

    A 3.1.1 broker delivers packets of up to 256 MB, and paho would collect a packet before it passes it on. What is cut
    off is lost. The receiver refuses such a message by its size, and the broker gets its acknowledgement: otherwise it
    would deliver the message again with each new link.
    """

    def _sock_recv(self, bufsize: int) -> bytes:
        # The caller appends the result to the packet, and counts its bytes.
        del self._in_packet["packet"][PACKET_LIMIT_BYTES:]
        return super()._sock_recv(min(bufsize, _READ_BYTES))


class PahoLink:
    """One connection. Event loop only, except for `_connect`."""

    def __init__(
        self,
        settings: MqttSettings,
        client_id: str,
        version: MQTTProtocolVersion,
        will: Message | None,
        on_message: Callable[[Message], None],
    ) -> None:
        self._settings = settings
        self._v5 = version is MQTTProtocolVersion.MQTTv5
        self.version = "5" if self._v5 else "3.1.1"
        self._may_fall_back = self._v5 and settings.version == "auto"
        self._deliver = on_message
        self._loop = asyncio.get_running_loop()
        self._heard_s = 0.0
        self._socket: Any = None  # untyped in paho
        self._lost: asyncio.Future[None] = self._loop.create_future()
        self._accepted: asyncio.Future[None] = self._loop.create_future()
        self._granted: asyncio.Future[None] = self._loop.create_future()
        self._acks: dict[int, asyncio.Future[None]] = {}
        self._alert: str | None = None
        client = _BoundedClient(
            CallbackAPIVersion.VERSION2,
            client_id,
            # In MQTT 5 the session expiry decides how long the session lives; a new connection resumes it.
            clean_session=None if self._v5 else settings.session_expiry_s == 0,
            protocol=version,
            reconnect_on_failure=False,
        )
        client.connect_timeout = settings.connect_timeout_s
        client.max_inflight_messages_set(UNACKNOWLEDGED)
        if will is not None:
            client.will_set(will.topic, will.payload, qos=1, retain=will.retain)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_log = self._on_log
        client.on_socket_open = _no_delay
        client.on_socket_close = self._on_socket_close
        client.on_socket_register_write = self._on_register_write
        client.on_socket_unregister_write = self._on_unregister_write
        self._client = client

    async def open(self) -> None:
        """Connect. Raises: BrokerLost: its message explains the failure."""
        settings = self._settings
        with explaining_failures(settings):
            # Twice the limit: once for TCP, once for TLS.
            async with asyncio.timeout(2 * settings.connect_timeout_s + 1):
                await run_in_thread(self._connect, self._abandon)
                sock = self._client.socket()
                if sock is None:
                    raise BrokerLost(f"{settings.host}:{settings.effective_port} closed the connection")
                self._socket = sock
                self._heard_s = self._loop.time()
                self._loop.add_reader(sock, self._read)
                self._on_register_write(None, None, sock)
                await self._acceptance()

    async def _acceptance(self) -> None:
        if not self._may_fall_back:
            await self._accepted
            return
        await asyncio.wait({self._accepted}, timeout=_MQTT5_TIMEOUT_S)
        if not self._accepted.done():
            # Some 3.1.1 brokers misread the packet and wait forever for the rest of it.
            raise VersionRefused("the broker does not answer")
        await self._accepted

    async def subscribe(self, topics: tuple[str, ...]) -> None:
        if not topics:
            return
        if self._lost.done():
            await self._lost
        self._granted = self._loop.create_future()
        self._client.subscribe([(topic, 1) for topic in topics])
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                await self._granted
        except TimeoutError as exc:
            raise NotGranted("the broker did not grant the subscriptions in time") from exc

    async def serve(self) -> None:
        """Keep the link until it is lost. Raises: BrokerLost."""
        while True:
            # Sends a ping after a silent keep-alive. paho alone would wait for a second one.
            self._client.loop_misc()
            if self._loop.time() - self._heard_s > 1.5 * self._settings.keepalive_s:
                self.end(BrokerLost("the broker sent nothing for 1.5 keep-alives"))
            done, _ = await asyncio.wait({self._lost}, timeout=_MISC_EVERY_S)
            if done:
                await self._lost

    async def publish(self, message: Message) -> None:
        """Publish and wait for the acknowledgement. Raises: BrokerLost."""
        properties = Properties(PacketTypes.PUBLISH) if self._v5 else None
        if properties is not None:
            for name, value in (
                ("ResponseTopic", message.response_topic),
                ("CorrelationData", message.correlation),
                ("MessageExpiryInterval", message.expiry_s),
            ):
                if value is not None:
                    setattr(properties, name, value)
        info = self._client.publish(message.topic, message.payload, 1, message.retain, properties)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise BrokerLost("no link to the broker")
        ack = self._acks[info.mid] = self._loop.create_future()
        try:
            await ack
        finally:
            self._acks.pop(info.mid, None)

    async def close(self) -> None:
        """Send DISCONNECT if there is a link, so that the broker sends no last will. Free all resources."""
        if self._socket is not None and not self._lost.done():
            self._client.disconnect()
            await asyncio.wait({self._lost}, timeout=_DISCONNECT_S)
        self.end(BrokerLost("the link was closed"))
        sock, self._socket = self._socket, None
        if sock is not None:
            self._detach(sock)
            sock.close()
        for future in (self._lost, self._accepted, self._granted):
            future.cancel()
            if future.done() and not future.cancelled():
                future.exception()  # retrieved, so that asyncio does not report it

    def _connect(self) -> None:
        """Connect by TCP and TLS. Blocking."""
        settings = self._settings
        if settings.tls:
            context = tls_context(settings)
            context.sslsocket_class = _TlsSocket
            self._client.tls_set_context(context)
        if settings.username is not None:
            password = settings.password_file.read_text().rstrip("\n") if settings.password_file else None
            self._client.username_pw_set(settings.username, password)
        properties = None
        if self._v5:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = settings.session_expiry_s
            properties.MaximumPacketSize = PACKET_LIMIT_BYTES
            self._client.connect(
                settings.host,
                settings.effective_port,
                settings.keepalive_s,
                clean_start=False,
                properties=properties,
            )
        else:
            self._client.connect(settings.host, settings.effective_port, settings.keepalive_s)

    def _abandon(self) -> None:
        if (late := self._client.socket()) is not None:
            late.close()

    def _read(self) -> None:
        sock = self._socket
        self._heard_s = self._loop.time()
        try:
            while self._client.loop_read() == MQTTErrorCode.MQTT_ERR_SUCCESS:
                # The socket does not become readable for data that TLS has decrypted already.
                if not isinstance(sock, ssl.SSLSocket) or self._client.socket() is None or not sock.pending():
                    return
        except Exception:
            # paho would handle the same packet again and again, so the link ends.
            log.exception("packet handler failed because of a bug")
            self._detach(sock)
            self.end(BrokerLost("the broker sent a packet that cannot be read"))

    def end(self, error: BrokerLost) -> None:
        for future in (self._accepted, self._granted, self._lost, *self._acks.values()):
            if not future.done():
                future.set_exception(error)

    # paho's callbacks.

    def _on_connect(self, _client: Any, _userdata: Any, _flags: Any, code: ReasonCode, _properties: Any) -> None:
        if self._accepted.done():
            return
        if not code.is_failure:
            self._accepted.set_result(None)
        elif self._may_fall_back and code.value == _UNSUPPORTED_PROTOCOL:
            self.end(VersionRefused("unsupported protocol version"))
        else:
            self.end(BrokerLost(f"the broker refused: {_refusal(code)}"))

    def _on_log(self, _client: Any, _userdata: Any, _level: int, text: str) -> None:
        # Only the log of paho says why a read failed. With TLS 1.3 the first read reports a refused certificate.
        if found := _TLS_ALERT.search(text):
            self._alert = found[1]

    def _on_subscribe(self, _client: Any, _userdata: Any, _mid: int, codes: list[ReasonCode], _properties: Any) -> None:
        if self._granted.done():
            return
        refused = [code for code in codes if code.is_failure]
        if refused:
            self._granted.set_exception(NotGranted(f"the broker refused a subscription: {_refusal(refused[0])}"))
        else:
            self._granted.set_result(None)

    def _on_disconnect(self, _client: Any, _userdata: Any, flags: Any, code: ReasonCode, _properties: Any) -> None:
        if self._alert is not None:
            self.end(BrokerLost(f"the broker ended TLS: {alert_words(self._alert, self._settings)}"))
        elif self._may_fall_back and not self._accepted.done():
            # A 3.1.1 broker may also just close the connection.
            self.end(VersionRefused("it closed the connection"))
        elif flags.is_disconnect_packet_from_server:
            self.end(BrokerLost(f"the broker disconnected: {_refusal(code)}"))
        else:
            self.end(BrokerLost("the link to the broker broke"))

    def _on_publish(self, _client: Any, _userdata: Any, mid: int, code: ReasonCode, _properties: Any) -> None:
        ack = self._acks.get(mid)
        if ack is None or ack.done():
            return
        if code.is_failure:
            ack.set_exception(BrokerLost(f"the broker refused a message: {code.getName()}"))
        else:
            ack.set_result(None)

    def _on_message(self, _client: Any, _userdata: Any, received: mqtt.MQTTMessage) -> None:
        properties = received.properties
        self._deliver(
            Message(
                received.topic,
                bytes(received.payload),
                received.retain,
                getattr(properties, "ResponseTopic", None),
                getattr(properties, "CorrelationData", None),
            ),
        )

    def _on_register_write(self, _client: Any, _userdata: Any, sock: Any) -> None:
        # `_connect` runs in a thread; there is no writer to register yet.
        if self._socket is not None:
            self._loop.add_writer(sock, self._client.loop_write)

    def _on_unregister_write(self, _client: Any, _userdata: Any, sock: Any) -> None:
        if self._socket is not None:
            self._loop.remove_writer(sock)

    def _on_socket_close(self, _client: Any, _userdata: Any, sock: Any) -> None:
        if self._socket is not None:
            self._detach(sock)

    def _detach(self, sock: socket.socket) -> None:
        if sock.fileno() >= 0:
            self._loop.remove_reader(sock)
            self._loop.remove_writer(sock)


def _no_delay(_client: Any, _userdata: Any, sock: Any) -> None:
    # The second TLS record of a message would wait 40 ms for the broker's acknowledgement of the first.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _refusal(code: ReasonCode) -> str:
    if code.value == _SESSION_TAKEN_OVER:
        return TAKEN_OVER
    return str(code.getName()).lower()
