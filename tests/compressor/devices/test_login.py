"""Logging in to a real SSH server: keys, configuration, and host keys that are always checked."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess

import pytest

from compressor.devices.connection import connect
from compressor.devices.inventory import Device
from compressor.errors import DeviceError

pytest.importorskip("asyncssh")


async def hello(device):
    async with connect(device) as connection:
        return await connection.run(("echo", "a  b", "$HOME;", "'"), doing="greeting")


def greet(device):
    return asyncio.run(hello(device))


def refusal(device):
    with pytest.raises(DeviceError) as caught:
        greet(device)
    return caught.value


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder of this machine, with an empty ``.ssh``."""
    (tmp_path / ".ssh").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return tmp_path


def test_arguments_arrive_as_they_are(server):
    assert greet(server.device()).out == "a  b $HOME; '\n"


def test_a_key_that_the_device_does_not_know(server, other_server, home):
    error = refusal(server.device(identity_file=str(other_server.identity)))
    assert error.what == "the device refuses the login"
    assert error.where == server.url
    assert "identity_file" in error.fix


def test_no_key_at_all(server, home):
    error = refusal(server.device(identity_file=None))
    assert error.what == "the device refuses the login"


def test_a_key_file_that_is_not_there_or_no_key(server, home):
    error = refusal(server.device(identity_file=str(home / "absent")))
    assert error.what == "a file for the connection cannot be read"
    assert error.where == str(home / "absent")
    (home / "note").write_text("no key")
    error = refusal(server.device(identity_file=str(home / "note")))
    assert error.what == "the private key cannot be read"
    assert error.where == str(home / "note")


def test_a_key_with_a_passphrase_belongs_into_the_agent(server, home):
    locked = home / "locked"
    locked.write_bytes(server.identity.read_bytes())
    locked.chmod(0o600)
    change = ["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", locked]
    subprocess.run(change, check=True, capture_output=True)
    error = refusal(server.device(identity_file=str(locked)))
    assert error.what == "the private key cannot be read"
    assert "ssh-add" in error.fix


def test_an_unknown_host_key_shows_its_fingerprint(server, home):
    error = refusal(server.device(known_hosts=None))
    assert error.what == "the host key of the device is not known"
    shown = ["ssh-keygen", "-lf", server.folder / "host_key.pub"]
    fingerprint = subprocess.run(shown, capture_output=True, text=True, check=True).stdout.split()[
        1
    ]
    assert error.given == f"ssh-ed25519 {fingerprint}"
    assert f"ssh -p 22022 root@{server.address}" in error.fix


def test_a_changed_host_key_is_another_error(server, other_server, home):
    name = server.known_hosts.read_text().split()[0]
    known = home / "known_hosts"
    known.write_text(f"{name} {(other_server.folder / 'host_key.pub').read_text()}")
    error = refusal(server.device(known_hosts=str(known)))
    assert error.what == "the device shows another host key than the one on record"
    assert f"ssh-keygen -R '{name}'" in error.fix


def test_a_revoked_host_key_is_refused(server, home):
    known = home / "known_hosts"
    known.write_text("@revoked " + server.known_hosts.read_text() + server.known_hosts.read_text())
    error = refusal(server.device(known_hosts=str(known)))
    assert "revoked" in error.given


def test_a_file_of_known_hosts_that_does_not_hold(server, home):
    known = home / "known_hosts"
    error = refusal(server.device(known_hosts=str(known)))
    assert error.what == "a file for the connection cannot be read"
    assert error.where == str(known)
    known.write_text("@nonsense host key\n")
    error = refusal(server.device(known_hosts=str(known)))
    assert error.what == "the file of known host keys is not valid"


def configure(home, server, *lines):
    text = "\n  ".join(
        ("Host Board", f"HostName {server.address}", "Port 22022", "User root", *lines)
    )
    (home / ".ssh" / "config").write_text(text + "\n")
    return Device.model_validate({"address": "ssh://Board"})


def test_the_configuration_of_ssh_counts(server, home):
    device = configure(
        home,
        server,
        f"IdentityFile {server.identity}",
        f"UserKnownHostsFile {server.known_hosts}",
    )
    assert greet(device).code == 0


def test_the_known_hosts_of_the_home_folder_count(server, home):
    (home / ".ssh" / "known_hosts").write_bytes(server.known_hosts.read_bytes())
    assert greet(server.device(known_hosts=None)).code == 0


@pytest.mark.parametrize("setting", ["UserKnownHostsFile none", "UserKnownHostsFile /dev/null"])
def test_no_configuration_switches_the_check_off(server, home, setting):
    lines = (f"IdentityFile {server.identity}", setting, "StrictHostKeyChecking no")
    error = refusal(configure(home, server, *lines))
    assert error.what == "the host key of the device is not known"


def test_a_broken_configuration(server, home):
    error = refusal(configure(home, server, "IdentitiesOnly perhaps"))
    assert error.what == "the SSH configuration is not valid"


def test_the_agent_is_asked(server, home, monkeypatch):
    socket = home / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL)
    try:
        while not socket.exists():
            assert agent.poll() is None
        monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
        add = ["ssh-add", "-q", server.identity]
        subprocess.run(add, check=True, capture_output=True, env=dict(os.environ))
        assert greet(server.device(identity_file=None)).code == 0
    finally:
        agent.send_signal(signal.SIGTERM)
        agent.wait()


def test_nobody_listens(server):
    error = refusal(server.device(address=f"ssh://root@{server.address}:22023"))
    assert error.what == "the device cannot be reached"
    assert "refused" in error.given


def test_nobody_answers(server):
    server.plug("down")
    error = refusal(server.device(connect_timeout_s=1))
    assert error.what in ("the device does not answer", "the device cannot be reached")
    assert error.where == server.url


def test_a_name_that_does_not_exist(server):
    error = refusal(server.device(address="ssh://root@no-such-device.invalid"))
    assert error.what == "the host name of the device cannot be resolved"
