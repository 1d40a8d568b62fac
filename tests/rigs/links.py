"""The two clients of the broker port with their peers: real brokers, and servers that send a few bytes."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import paho.mqtt.publish

from edge.demo.broker import EmbeddedBroker
from edge.mqtt.aws_broker import AwsBroker
from edge.mqtt.paho_broker import PahoBroker
from edge.mqtt.settings import MqttSettings
from tests.rigs.certificates import Authority
from tests.rigs.mosquitto import Mosquitto, free_port

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator
    from pathlib import Path

    from edge.mqtt.broker import Message

TLS = ["aws-5-tls", "paho-5-tls"]
MOSQUITTO = [*TLS, "paho-311-password"]
PASSWORD = "hunter2-and-more"


class Client:
    """A broker client with its received messages and its link state."""

    def __init__(self, broker: AwsBroker | PahoBroker) -> None:
        self.broker = broker
        self.received: asyncio.Queue[Message] = asyncio.Queue()
        self.up = asyncio.Event()
        self.down = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        broker.listen(self.received.put_nowait, self._link)

    def _link(self, up: bool) -> None:
        (self.up if up else self.down).set()
        (self.down if up else self.up).clear()

    def start(self) -> None:
        self.task = asyncio.create_task(self.broker.run(asyncio.Event()))

    async def stop(self) -> None:
        assert self.task is not None
        self.task.cancel()
        async with asyncio.timeout(3):
            await asyncio.wait({self.task})

    async def error(self, *words: str) -> str:
        """Wait for a link error that contains all these words, and return it."""
        async with asyncio.timeout(15):
            while not (self.broker.error and all(word in self.broker.error for word in words)):
                await asyncio.sleep(0.02)
        return self.broker.error


class BrokerSetup:
    """One kind of broker, with the settings of its clients."""

    def __init__(self, directory: Path, kind: str) -> None:
        self.kind = kind
        self.v5 = kind in TLS
        self._settings: dict[str, Any] = {"reconnect_cap_s": 1, "keepalive_s": 5, "connect_timeout_s": 2}
        self._settings |= {"publishes_per_s": 10_000, "client": kind.partition("-")[0] if self.v5 else "paho"}
        self.mosquitto: Mosquitto | None = None
        self._authority: Authority | None = None
        if self.v5:
            self._authority = Authority(directory)
            self.mosquitto = Mosquitto(directory, authority=self._authority, persistence=True)
            self._settings |= {"ca_file": self._authority.ca_file}
        elif kind == "paho-311-password":
            self.mosquitto = Mosquitto(directory, user=("cam", PASSWORD), persistence=True)
            (directory / "password").write_text(PASSWORD + "\n")
            self._settings |= {"tls": False, "version": "3.1.1", "username": "cam"}
            self._settings |= {"password_file": directory / "password"}
        else:
            self.port = free_port()
            self._settings |= {"tls": False, "version": "3.1.1"}
        if self.mosquitto is not None:
            self.port = self.mosquitto.port
        self._embedded: AsyncExitStack | None = None

    async def up(self) -> None:
        if self.mosquitto is not None:
            await asyncio.to_thread(self.mosquitto.start)
        else:
            self._embedded = AsyncExitStack()
            await self._embedded.enter_async_context(EmbeddedBroker("127.0.0.1", self.port))

    async def down(self) -> None:
        if self.mosquitto is not None:
            await asyncio.to_thread(self.mosquitto.kill)
        elif self._embedded is not None:
            await self._embedded.aclose()
            self._embedded = None

    def client(
        self, name: str, *topics: str, will: Message | None = None, optional: tuple[str, ...] = (), **settings: Any
    ) -> Client:
        identity: dict[str, Any] = {}
        if self._authority is not None:
            identity["cert_file"], identity["key_file"] = self._authority.issue(name)
        mqtt = MqttSettings(**{"host": "127.0.0.1", "port": self.port, **self._settings, **identity, **settings})
        return Client((AwsBroker if mqtt.by_aws else PahoBroker)(mqtt, name, topics, will, optional))

    def publish_raw(self, messages: list[Any]) -> None:
        """Publish with a client that enforces no limits. Blocks."""
        cert_file, key_file = self.authority.issue("raw")
        tls: Any = {"ca_certs": str(self.authority.ca_file), "certfile": str(cert_file), "keyfile": str(key_file)}
        paho.mqtt.publish.multiple(messages, "127.0.0.1", self.port, tls=tls)

    @property
    def authority(self) -> Authority:
        assert self._authority is not None
        return self._authority

    @asynccontextmanager
    async def linked(self, name: str, *topics: str, **options: Any) -> AsyncIterator[Client]:
        client = self.client(name, *topics, **options)
        client.start()
        async with asyncio.timeout(15):
            await client.up.wait()
        yield client
        await client.stop()


def plain_client(port: int, *topics: str, version: str = "3.1.1") -> Client:
    mqtt = MqttSettings.model_validate(
        {"host": "127.0.0.1", "port": port, "tls": False, "version": version, "connect_timeout_s": 0.1}
    )
    return Client(PahoBroker(mqtt, "one", topics, None))


@asynccontextmanager
async def scripted_server(
    *answers: bytes,
    context: ssl.SSLContext | None = None,
    protocols: list[str | None] | None = None,
    requests: list[bytes] | None = None,
) -> AsyncIterator[int]:
    """A server that sends one of the answers after each read, and nothing after the last one. Yields its port.

    `protocols` gets the ALPN protocol of each connection, `requests` the received bytes.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if protocols is not None:
            protocols.append(writer.get_extra_info("ssl_object").selected_alpn_protocol())
        for answer in answers:
            read = await reader.read(4096)
            if requests is not None and read:
                requests.append(read)
            writer.write(answer)
        while await reader.read(4096):
            pass
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    yield server.sockets[0].getsockname()[1]
    server.close()


@asynccontextmanager
async def silent_server() -> AsyncIterator[int]:
    """A server that accepts connections and sends nothing. Yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        yield port
