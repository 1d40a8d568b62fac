"""The ICE servers that a page and the device use for a session."""

from __future__ import annotations

import base64
import hashlib
import hmac
from pathlib import Path  # noqa: TC003  pydantic reads the annotations at run time
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from edge.contract.messages import IceServer
from edge.errors import Unavailable


class TurnSettings(BaseModel):
    """A TURN server that shares a secret with this backend (coturn: `use-auth-secret`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    urls: list[str]
    secret_file: Path
    user: str = "viewer"
    ttl_s: Annotated[int, Field(ge=600, le=86_400)] = 3600


class IceSettings(BaseModel):
    """ICE servers with fixed credentials, and at most one TURN server with temporary ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    servers: list[IceServer] = Field(default_factory=list)
    turn: TurnSettings | None = None


def ice_servers(settings: IceSettings, now_s: float) -> list[IceServer]:
    """The list for a session that begins at `now_s` (seconds since 1970).

    Raises: Unavailable: the file of the secret cannot be read. It is read for each session, so that it can change.
    """
    if settings.turn is None:
        return settings.servers
    try:
        secret = settings.turn.secret_file.read_text().strip()
    except OSError as exc:
        raise Unavailable("the TURN server's secret cannot be read") from exc
    return [*settings.servers, _temporary(settings.turn, secret, now_s)]


def _temporary(turn: TurnSettings, secret: str, now_s: float) -> IceServer:
    """Make temporary credentials. Source: draft-uberti-behave-turn-rest-00, 2.2; coturn also requires SHA-1."""
    username = f"{int(now_s) + turn.ttl_s}:{turn.user}"
    digest = hmac.new(secret.encode(), username.encode(), hashlib.sha1).digest()
    return IceServer(urls=turn.urls, username=username, credential=SecretStr(base64.b64encode(digest).decode()))
