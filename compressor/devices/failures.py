"""What goes wrong with a connection, mapped to errors that name the device."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from compressor.devices.inventory import Device
from compressor.errors import DeviceError

if TYPE_CHECKING:
    import asyncssh

__all__ = ["connecting", "lost", "talking", "unknown_host_key"]


@contextmanager
def connecting(device: Device) -> Iterator[None]:
    """Map what the library raises while it connects and logs in.

    Raises:
        DeviceError: The device cannot be reached, or refuses.
    """
    import asyncssh

    where = device.address
    try:
        yield
    except asyncssh.PermissionDenied as error:
        raise DeviceError(
            "the device refuses the login",
            where=where,
            given=error.reason,
            fix="add your public key to ~/.ssh/authorized_keys there, or name the private one: "
            "identity_file in the devices file, IdentityFile in ~/.ssh/config, or ssh-add",
        ) from error
    except TimeoutError as error:
        raise DeviceError(
            "the device does not answer",
            where=where,
            given=f"no login within {device.connect_timeout_s:g} s",
            fix="check that it is on and reachable; a slow one needs a larger connect_timeout_s",
        ) from error
    except socket.gaierror as error:
        raise DeviceError(
            "the host name of the device cannot be resolved",
            where=where,
            given=error.strerror,
            fix="check its spelling, or write the IP address",
        ) from error
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
        raise DeviceError(
            "the private key cannot be read",
            where=device.identity_file or where,
            given=error,
            fix="name an OpenSSH private key; add one with a passphrase to ssh-agent: ssh-add",
        ) from error
    except asyncssh.ConfigParseError as error:
        raise DeviceError(
            "the SSH configuration is not valid",
            where="~/.ssh/config",
            given=error,
            fix="correct that file",
        ) from error
    except asyncssh.DisconnectError as error:
        raise DeviceError(
            "the device closed the connection during login",
            where=where,
            given=error.reason,
            fix=f"try `ssh {_words(device)}` to see what the server wants",
        ) from error
    except OSError as error:
        of_a_file = error.filename is not None
        raise DeviceError(
            "a file for the connection cannot be read"
            if of_a_file
            else "the device cannot be reached",
            where=error.filename if of_a_file else where,
            given=os.strerror(error.errno) if error.errno else error,
            fix="correct identity_file, known_hosts or the SSH configuration"
            if of_a_file
            else "check that it is on, and that an SSH server listens at this address and port",
        ) from error


@contextmanager
def talking(device: Device, doing: str) -> Iterator[None]:
    """Map what the library raises on an open connection.

    Args:
        device: The device at the other end.
        doing: What was being done.

    Raises:
        DeviceError: The connection was lost, or the server refused something.
    """
    import asyncssh

    try:
        yield
    except (
        asyncssh.DisconnectError,
        asyncssh.SFTPConnectionLost,
        asyncssh.SFTPNoConnection,
    ) as error:
        raise lost(device, doing, error.reason) from error
    except asyncssh.ChannelOpenError as error:
        raise DeviceError(
            "the device does not allow commands or file transfers",
            where=device.address,
            given=f"{error.reason}, while {doing}",
            fix="allow commands and the sftp subsystem in the configuration of its SSH server",
        ) from error
    except asyncssh.SFTPError as error:
        raise DeviceError(
            "the device refuses a file",
            where=device.address,
            given=f"{error.reason}, while {doing}",
            fix=f"check that there is room and that {device.workdir} can be written there",
        ) from error
    except (BrokenPipeError, ConnectionError) as error:
        raise lost(device, doing, error) from error


def lost(device: Device, doing: str, reason: object) -> DeviceError:
    """The error of a connection that broke."""
    return DeviceError(
        "the connection to the device was lost",
        where=device.address,
        given=f"{reason or 'closed'}, while {doing}",
        fix="check the device and its network; the same command reuses what was copied",
    )


def unknown_host_key(device: Device, key: asyncssh.SSHKey, known: bool) -> DeviceError:
    """The error of a host key that is not trusted.

    Args:
        device: The device.
        key: The key that its server showed.
        known: Whether another key is on record for this host.
    """
    port = device.address.port or 22
    host = device.address.host if port == 22 else f"[{device.address.host}]:{port}"
    shown = f"{key.get_algorithm()} {key.get_fingerprint()}"
    if known:
        return DeviceError(
            "the device shows another host key than the one on record",
            where=device.address,
            given=shown,
            fix="someone may be intercepting the connection: ask the administrator of the device. "
            f"If its key was changed, remove the old one: ssh-keygen -R '{host}'",
        )
    return DeviceError(
        "the host key of the device is not known",
        where=device.address,
        given=shown,
        fix="compare it with the one on the device (ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub), "
        f"then accept it once: ssh {_words(device)}",
    )


def _words(device: Device) -> str:
    """Arguments of ``ssh`` that reach the device."""
    address = device.address
    port = "" if address.port is None else f"-p {address.port} "
    return port + ("" if address.user is None else f"{address.user}@") + address.host
