"""Open a TLS connection to the broker; explain failures. Both clients use it."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import ssl
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cryptography import x509

from edge.errors import BrokerLost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edge.mqtt.settings import MqttSettings

_REFUSAL_S = 1.0
# X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED in OpenSSL's x509_vfy.h.
_CLOCK_ERRORS = (9, 10)


def tls_context(settings: MqttSettings) -> ssl.SSLContext:
    """The context for a connection to the broker. Raises: BrokerLost: a file cannot be used."""
    with reading(settings.ca_file):
        context = ssl.create_default_context(cafile=str(settings.ca_file) if settings.ca_file else None)
    # Python 3.13 turns this flag on. It rejects certificates without extensions that many private authorities omit;
    # a camera must not lose its broker by a system upgrade.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if settings.alpn:
        context.set_alpn_protocols(settings.alpn)
    if settings.cert_file is not None:
        with reading(settings.cert_file, settings.key_file):
            context.load_cert_chain(settings.cert_file, settings.key_file)
    return context


def check_tls(settings: MqttSettings) -> None:
    """Connect by TCP and TLS, without MQTT, and close. Blocking. Raises: what `explaining_failures` translates."""
    context = tls_context(settings)
    address = (settings.host, settings.effective_port)
    with (
        socket.create_connection(address, settings.connect_timeout_s) as plain,
        context.wrap_socket(plain, server_hostname=settings.host) as link,
    ):
        # With TLS 1.3 a broker refuses a client's certificate after the handshake; a session ticket means acceptance.
        if link.version() == "TLSv1.3" and _readable(link, _REFUSAL_S):
            link.settimeout(0)
            with contextlib.suppress(ssl.SSLWantReadError):
                if not link.recv(1):
                    said = "closed the connection after TLS: it may not accept the device's certificate"
                    raise BrokerLost(f"{settings.host}:{settings.effective_port} {said}{_own_certificate(settings)}")


def _readable(link: socket.socket, timeout_s: float) -> bool:
    poll = select.poll()  # select(2) fails for descriptors from 1024 on
    poll.register(link, select.POLLIN)
    return bool(poll.poll(1000 * timeout_s))


@contextlib.contextmanager
def explaining_failures(settings: MqttSettings) -> Iterator[None]:
    """Translate errors of connecting into BrokerLost, with an explanation."""
    address = f"{settings.host}:{settings.effective_port}"
    try:
        yield
    except ssl.SSLError as exc:
        raise BrokerLost(f"{address}: {_tls_words(exc, settings)}") from exc
    except socket.gaierror as exc:
        raise BrokerLost(f"{settings.host}: name not found") from exc
    except TimeoutError as exc:
        raise BrokerLost(f"{address} does not answer") from exc
    except ConnectionRefusedError as exc:
        raise BrokerLost(f"connection refused by {address}") from exc
    except OSError as exc:
        about = exc.filename or address
        raise BrokerLost(f"{about}: {exc.strerror or exc}") from exc
    except UnicodeError as exc:
        # From the host name or the password file. Its own message could repeat the password.
        raise BrokerLost(f"{address}: the host name or the password file cannot be read as text") from exc


@contextlib.contextmanager
def reading(*files: Path | None) -> Iterator[None]:
    """Name the files of an error that reading raises; `ssl` does not."""
    try:
        yield
    except OSError as exc:
        raise BrokerLost(f"{' or '.join(map(str, files))}: {exc.strerror or exc}") from exc


def alert_words(alert: str, settings: MqttSettings) -> str:
    """Explain a TLS alert of the broker, also by the dates of the device's certificate."""
    return alert.lower().replace("_", " ") + _own_certificate(settings)


async def run_in_thread(work: Callable[[], None], abandoned: Callable[[], None]) -> None:
    """Run blocking work in a thread. After a cancellation, `abandoned` is called in the event loop when it is done.

    The event loop's executor is not suitable: the process waits for its threads, so a hanging broker would delay the
    stop.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if done.cancelled():
            abandoned()
        elif error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        error: BaseException | None = None
        try:
            work()
        except BaseException as exc:  # noqa: BLE001  raised again in the event loop
            error = exc
        with contextlib.suppress(RuntimeError):  # the event loop is closed
            loop.call_soon_threadsafe(settle, error)

    threading.Thread(target=run, name="mqtt-connect", daemon=True).start()
    await done


def _tls_words(exc: ssl.SSLError, settings: MqttSettings) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        clock = "; is the clock of this device right?" if exc.verify_code in _CLOCK_ERRORS else ""
        return f"its certificate is not accepted: {exc.verify_message}{clock}"
    reason = exc.reason or "TLS failed"
    if "ALERT" in reason:
        return f"the broker ended TLS: {alert_words(reason, settings)}"
    return f"TLS failed: {reason.lower().replace('_', ' ')}"


def _own_certificate(settings: MqttSettings) -> str:
    if settings.cert_file is None:
        return "; it may want a certificate of the device (cert_file, key_file)"
    try:
        certificate = x509.load_pem_x509_certificate(settings.cert_file.read_bytes())
    except (OSError, ValueError):
        return ""
    now, since, until = datetime.now(UTC), certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < since:
        return f"; the device's certificate is valid from {since:%Y-%m-%d %H:%M} UTC on: is the clock right?"
    if now > until:
        return f"; the device's certificate was valid until {until:%Y-%m-%d %H:%M} UTC"
    return ""
