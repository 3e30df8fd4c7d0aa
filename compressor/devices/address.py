"""The address of a device: ``ssh://user@host:port``."""

from __future__ import annotations

from typing import Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Address"]

_FORM = "write it as ssh://user@host or ssh://user@host:port"


class Address(BaseModel):
    """Where the SSH server of a device listens, and who logs in there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(min_length=1)
    """A name, an IP address, or a ``Host`` of the SSH configuration."""
    user: str | None = None
    """None for the user that the SSH configuration names, or else the local one."""
    port: int | None = None
    """None for the port that the SSH configuration names, or else 22."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an address.

        Raises:
            ValueError: It is not of the form ``ssh://user@host:port``.
        """
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise ValueError(f"this is not a valid address: {error}; {_FORM}") from error
        if parts.scheme != "ssh" or not parts.hostname:
            raise ValueError(f"this is not the address of a device; {_FORM}")
        if parts.password is not None:
            raise ValueError("an address cannot hold a password; use a key, or ssh-agent")
        if parts.path.strip("/") or parts.query or parts.fragment or port == 0:
            raise ValueError(f"an address has a user, a host and a port, and nothing else; {_FORM}")
        # urlsplit gives the host in lower case; a Host of the SSH configuration may have another.
        start = parts.netloc.lower().rindex(parts.hostname)
        host = parts.netloc[start : start + len(parts.hostname)]
        return cls(host=host, user=parts.username or None, port=port)

    def __str__(self) -> str:
        user = "" if self.user is None else f"{self.user}@"
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port is None else f":{self.port}"
        return f"ssh://{user}{host}{port}"
