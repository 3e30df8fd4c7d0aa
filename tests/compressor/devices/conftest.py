"""Devices for tests: OpenSSH servers, each in a network namespace at the end of a cable of its own.

Nothing but the cable leads there. So a test can cut it, and a device reaches no package index.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from compressor.devices.inventory import Device

SSHD = Path("/usr/sbin/sshd")
PORT = 22022


def missing() -> str | None:
    """What is missing for a server in a network namespace."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for command in ("ip", "ssh-keygen", str(SSHD)):
        if shutil.which(command) is None:
            return f"{command} is not installed: see scripts/install_system_packages"
    tried = subprocess.run(["ip", "netns", "add", "devices-try"], capture_output=True, check=False)
    if tried.returncode:
        return f"no network namespace can be made: {tried.stderr.decode().strip()}"
    subprocess.run(["ip", "netns", "delete", "devices-try"], check=True)
    return None


def call(*command: str | Path) -> str:
    done = subprocess.run([str(each) for each in command], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


@dataclass
class Server:
    """A device."""

    namespace: str
    cable: str
    address: str
    folder: Path
    identity: Path

    @property
    def workdir(self) -> Path:
        """Where the work folder lies, unless it is named."""
        return self.folder / "home" / ".cache" / "compressor-devices"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    @property
    def url(self) -> str:
        return f"ssh://root@{self.address}:{PORT}"

    def settings(self, **settings: Any) -> dict[str, Any]:
        """An entry of a devices file."""
        paths = {"identity_file": str(self.identity), "known_hosts": str(self.known_hosts)}
        return {"address": self.url, **paths, **settings}

    def device(self, **settings: Any) -> Device:
        return Device.model_validate(self.settings(**settings))

    def pids(self) -> set[int]:
        """Every process in the namespace."""
        return {int(each) for each in call("ip", "netns", "pids", self.namespace).split()}

    def commands(self) -> list[str]:
        """Command lines of what runs there, other than the server."""
        found = []
        for pid in self.pids():
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                if "sshd" not in line.partition(" ")[0] and line:
                    found.append(line)
        return found

    def drop(self) -> None:
        """End every login, as when a server crashes; the server itself goes on."""
        for pid in self.pids():
            with contextlib.suppress(OSError):
                name = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
                if name.startswith("sshd: root"):
                    os.kill(pid, signal.SIGKILL)

    def plug(self, state: str) -> None:
        """Cut the cable (``down``), or mend it (``up``).

        At the end of the device: at this end the route would go as well, and packets elsewhere.
        """
        call("ip", "-n", self.namespace, "link", "set", "cable", state)
        if state == "up":
            await_port(self.address)

    def received_bytes(self) -> int:
        """What came to the device over its cable."""
        return int(Path(f"/sys/class/net/{self.cable}/statistics/tx_bytes").read_text())

    def left_over(self) -> set[str]:
        """What lies in the work folder: kind of thing, or path of what should have been removed."""
        found = set()
        for kind in self.workdir.iterdir() if self.workdir.exists() else ():
            if kind.name in ("bundles", "runs", "files"):
                found |= {str(each.relative_to(self.workdir)) for each in kind.iterdir()}
            else:
                found.add(kind.name)
        return found


@contextlib.contextmanager
def serve(number: int, folder: Path) -> Iterator[Server]:
    """Start a server in a namespace of its own."""
    (folder / "home").mkdir(parents=True)
    mark = f"{os.getpid() % 100_000}-{number}"
    net = f"198.18.{os.getpid() % 250}.{4 * number}"
    server = Server(
        namespace=f"device-{mark}",
        cable=f"dv{mark}",
        address=net.rpartition(".")[0] + f".{4 * number + 2}",
        folder=folder,
        identity=folder / "identity",
    )
    for name in ("identity", "host_key"):
        call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name)
    (folder / "sshd_config").write_text(
        f"ListenAddress {server.address}\nPort {PORT}\nHostKey {folder}/host_key\n"
        f"AuthorizedKeysFile {folder}/identity.pub\nStrictModes no\nPidFile none\nUsePAM no\n"
        "PermitRootLogin prohibit-password\nPasswordAuthentication no\nPrintMotd no\n"
        "KbdInteractiveAuthentication no\nMaxStartups 100\n"
        f"SetEnv HOME={folder}/home\nSubsystem sftp internal-sftp -d {folder}/home\n"
    )
    key = (folder / "host_key.pub").read_text()
    server.known_hosts.write_text(f"[{server.address}]:{PORT} {key}")
    Path("/run/sshd").mkdir(exist_ok=True)
    call("ip", "netns", "add", server.namespace)
    try:
        here = net.rpartition(".")[0] + f".{4 * number + 1}/30"
        there = ("ip", "-n", server.namespace)
        call("ip", "link", "add", server.cable, "type", "veth", "peer", "name", "cable", "netns",
             server.namespace)  # fmt: skip
        call("ip", "address", "add", here, "dev", server.cable)
        call("ip", "link", "set", server.cable, "up")
        call(*there, "address", "add", f"{server.address}/30", "dev", "cable")
        call(*there, "link", "set", "cable", "up")
        call(*there, "link", "set", "lo", "up")
        command = ["ip", "netns", "exec", server.namespace, SSHD, "-D", "-e", "-f"]
        log = (folder / "log").open("wb")
        with log, subprocess.Popen([*command, folder / "sshd_config"], stderr=log) as process:
            try:
                await_port(server.address)
                yield server
            finally:
                process.terminate()
                for pid in server.pids() - {process.pid}:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
    finally:
        call("ip", "netns", "delete", server.namespace)
        subprocess.run(["ip", "link", "delete", server.cable], capture_output=True, check=False)


def await_port(address: str) -> None:
    """Wait until the server listens and the network knows its way there."""
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection((address, PORT), timeout=1):
            return
        time.sleep(0.1)
    raise AssertionError("the SSH server does not listen")


@pytest.fixture(scope="session")
def make_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Server]]:
    """Devices by number; each is started when it is first asked for."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:
        running: dict[int, Server] = {}

        def get(number: int) -> Server:
            if number not in running:
                folder = tmp_path_factory.mktemp("server") / str(number)
                running[number] = stack.enter_context(serve(number, folder))
            return running[number]

        yield get


@pytest.fixture
def server(make_servers: Callable[[int], Server]) -> Iterator[Server]:
    """A device without a work folder."""
    yield from _clean(make_servers(0))


@pytest.fixture
def other_server(make_servers: Callable[[int], Server]) -> Iterator[Server]:
    """A second device."""
    yield from _clean(make_servers(1))


def _clean(server: Server) -> Iterator[Server]:
    shutil.rmtree(server.workdir, ignore_errors=True)
    yield server
    server.plug("up")


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    """Wait until something is so; fails when it does not become so."""

    def wait(condition: Callable[[], bool]) -> None:
        for _ in range(600):
            if condition():
                return
            time.sleep(0.1)
        raise AssertionError("it did not happen within a minute")

    return wait
