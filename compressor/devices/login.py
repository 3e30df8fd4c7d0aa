"""Log in to a device: configuration, keys and agent as OpenSSH uses them, host keys always checked.

Imports asyncssh, an extra; import this module where a connection is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import asyncssh

from compressor.devices.failures import connecting, unknown_host_key
from compressor.devices.inventory import Device
from compressor.errors import DeviceError

__all__ = ["login"]

KNOWN_HOSTS = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2", "/etc/ssh/ssh_known_hosts")


async def login(device: Device, *, keepalive_s: float, misses: int) -> asyncssh.SSHClientConnection:
    """Connect and log in.

    Args:
        device: Whom to.
        keepalive_s: Seconds between two questions whether the server is still there.
        misses: Unanswered questions after which the connection counts as lost.

    Raises:
        DeviceError: The device cannot be reached, its host key is not trusted, or it refuses.
    """
    address = device.address
    options: dict[str, Any] = {"host": address.host}
    if address.port is not None:
        options["port"] = address.port
    if address.user is not None:
        options["username"] = address.user
    if device.identity_file is not None:
        options["client_keys"] = [str(device.identity_file)]
    with connecting(device):
        check = _HostKeys(_known_hosts(device, options))
        try:
            return await asyncssh.connect(
                **options,
                known_hosts=check.on_record,
                client_factory=check.client,
                connect_timeout=device.connect_timeout_s,
                login_timeout=device.connect_timeout_s,
                keepalive_interval=keepalive_s,
                keepalive_count_max=misses,
            )
        except asyncssh.HostKeyNotVerifiable as error:
            if check.refused is None:
                raise
            raise unknown_host_key(device, check.refused, known=check.has_record) from error


def _known_hosts(device: Device, options: dict[str, Any]) -> asyncssh.SSHKnownHosts:
    """The trusted host keys.

    A configuration that switches the check off (``UserKnownHostsFile none``) leaves none trusted.
    """
    if device.known_hosts is not None:
        files: Sequence[str] = [str(device.known_hosts)]
    else:
        # Without a config, unlike with an empty one, the library would not read ~/.ssh/config here.
        configured: Any = asyncssh.SSHClientConnectionOptions(config=(), **options).known_hosts
        names = KNOWN_HOSTS if configured == [] else configured or ()
        files = [str(path) for name in names if (path := Path(str(name)).expanduser()).is_file()]
    try:
        return asyncssh.read_known_hosts(files)
    except ValueError as error:
        raise DeviceError(
            "the file of known host keys is not valid",
            where=", ".join(files),
            given=error,
            fix="correct that file",
        ) from error


class _HostKeys:
    """Checks the host key of one connection, and keeps what was refused.

    Args:
        known_hosts: The trusted keys.
    """

    def __init__(self, known_hosts: asyncssh.SSHKnownHosts) -> None:
        self._known_hosts = known_hosts
        self.has_record = False
        self.refused: asyncssh.SSHKey | None = None

    def on_record(self, host: str, addr: str, port: int | None) -> Any:  # as the library types it
        found = self._known_hosts.match(host, addr, port)
        self.has_record = any(found[:2])
        return found

    def client(self) -> asyncssh.SSHClient:
        keys = self

        class Client(asyncssh.SSHClient):
            def validate_host_public_key(
                self, host: str, addr: str, port: int, key: asyncssh.SSHKey
            ) -> bool:
                keys.refused = key  # the library asks about a key that is not on record
                return False

        return Client()
