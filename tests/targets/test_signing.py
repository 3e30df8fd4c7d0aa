"""Signatures: they hold for what was signed, and for nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from targets import Bundle
from targets.archive import MAX_SIGNATURE, pack, unpack
from targets.errors import BundleError, KeyFileError, MissingLibraryError, SignatureError
from targets.signing import PASSPHRASE, sign, verify_signature

from ..conftest import Keys, write_keys
from .conftest import write_bundle

FILES = {
    "model.bin": b"weights",
    "tokenizer.json": b"{}",
    "README.md": b"# half",
    "bom.cdx.json": b"{}",
    "sub/.hidden": b"\x00\xff",
}
ALL = [*FILES, "manifest.json"]
FORMATS = [".tar.zst", ".zip"]
SPKI = serialization.PublicFormat.SubjectPublicKeyInfo


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle", FILES)


@pytest.fixture
def signed(folder: Path, keys: Keys) -> Path:
    sign(Bundle.open(folder), keys.private)
    return folder


def verify(path: Path, key: Path) -> str:
    return verify_signature(Bundle.open(path, verify=False), key)


def refusal(path: Path, key: Path) -> SignatureError:
    with pytest.raises(SignatureError) as caught:
        verify(path, key)
    assert caught.value.exit_code == 6
    assert caught.value.fix
    return caught.value


def test_a_signed_bundle_is_the_same_bundle(folder: Path, keys: Keys) -> None:
    before = Bundle.open(folder)
    assert not before.is_signed
    name = sign(before, keys.private)
    after = Bundle.open(folder)
    assert after.is_signed
    assert (after.identity, after.size_bytes) == (before.identity, before.size_bytes)
    assert after.manifest == before.manifest
    assert verify(folder, keys.public) == name
    assert sign(after, keys.private) == name  # once more, in place of the first
    assert verify(folder, keys.public) == name


def test_a_copy_under_another_name_holds(signed: Path, keys: Keys, tmp_path: Path) -> None:
    there = Path(shutil.copytree(signed, tmp_path / "elsewhere"))
    assert verify(there, keys.public) == verify(signed, keys.public)


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_other_curves_sign(folder: Path, tmp_path: Path, curve: Any) -> None:
    keys = write_keys(tmp_path, ec.generate_private_key(curve))
    assert sign(Bundle.open(folder), keys.private) == verify(folder, keys.public)


def test_the_bundle_itself_may_be_reached_by_a_link(
    folder: Path, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "current").symlink_to(folder)
    name = sign(Bundle.open(tmp_path / "current"), keys.private)
    assert verify(tmp_path / "current", keys.public) == name
    monkeypatch.chdir(folder)
    assert verify(Path("."), keys.public) == name


# Damage


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_byte_of_every_file_is_found(signed: Path, keys: Keys, name: str) -> None:
    path = signed / name
    content = path.read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        error = refusal(signed, keys.public)
        assert error.what == "a file was changed after it was signed"
        assert error.where == str(path)
    path.write_bytes(content)
    verify(signed, keys.public)


def test_flipped_bytes_of_the_manifest_are_found(signed: Path, keys: Keys) -> None:
    path = signed / "manifest.json"
    content = path.read_bytes()
    for position in range(0, len(content), 19):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        with pytest.raises(BundleError) as caught:  # it may be no manifest any more
            verify(signed, keys.public)
        assert str(caught.value.where).startswith(str(path))
    path.write_bytes(content)
    verify(signed, keys.public)


def test_a_manifest_that_was_made_anew_around_another_model_is_found(
    signed: Path, keys: Keys
) -> None:
    signature = (signed / "model.sig").read_bytes()
    (signed / "model.bin").write_bytes(b"other weights")
    Bundle.create(signed, Bundle.open(signed, verify=False).manifest)
    (signed / "model.sig").write_bytes(signature)
    Bundle.open(signed)
    error = refusal(signed, keys.public)
    assert error.where == str(signed / "manifest.json")
    assert error.given == "'manifest.json', 'model.bin'"


def test_no_flipped_byte_of_the_signature_lets_anything_else_pass(signed: Path, keys: Keys) -> None:
    path = signed / "model.sig"
    content = path.read_bytes()
    before = json.loads(content)
    passed = 0
    for position in range(0, len(content), 19):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        with suppress(SignatureError):
            verify(signed, keys.public)
            # What no signature covers, such as the name of its log; never what is signed.
            passed += 1
            after = json.loads(damaged)
            assert after["dsseEnvelope"]["payload"] == before["dsseEnvelope"]["payload"]
    assert passed < 5


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"a":' * 3000, b" " * (MAX_SIGNATURE + 1)]
)
def test_what_is_no_signature_is_damaged(signed: Path, keys: Keys, content: bytes) -> None:
    (signed / "model.sig").write_bytes(content)
    error = refusal(signed, keys.public)
    assert error.what == "the signature is damaged"
    assert error.where == str(signed / "model.sig")
    assert Bundle.open(signed).is_signed  # only the check with a key looks into it


@pytest.mark.parametrize("name", ["extra.bin", "sub/extra", ".gitignore", ".git/config", "a/b"])
def test_an_added_file_is_found(signed: Path, keys: Keys, name: str) -> None:
    (signed / name).parent.mkdir(parents=True, exist_ok=True)
    (signed / name).write_bytes(b"")
    error = refusal(signed, keys.public)
    assert error.what == "a file was added after the bundle was signed"
    assert error.where == str(signed / name)
    Bundle.open(signed)  # no manifest names it, so nothing reads it


@pytest.mark.parametrize("name", FILES)
def test_a_removed_file_is_found(signed: Path, keys: Keys, name: str) -> None:
    (signed / name).unlink()
    error = refusal(signed, keys.public)
    assert error.what == "a file was removed after the bundle was signed"
    assert error.where == str(signed / name)


def test_a_removed_manifest_leaves_no_bundle(signed: Path, keys: Keys) -> None:
    (signed / "manifest.json").unlink()
    with pytest.raises(BundleError, match="its manifest cannot be read"):
        verify(signed, keys.public)


def test_a_link_is_no_file(signed: Path, keys: Keys, tmp_path: Path) -> None:
    (signed / "model.bin").rename(tmp_path / "outside")
    (signed / "model.bin").symlink_to(tmp_path / "outside")
    assert refusal(signed, keys.public).where == str(signed / "model.bin")


def test_files_that_are_no_part_of_it_are_found_without_a_key(signed: Path) -> None:
    bundle = Bundle.open(signed)
    bundle.refuse_other_files()
    (signed / "evil.py").touch()
    (signed / "sub/.link").symlink_to(signed / "evil.py")
    with pytest.raises(BundleError, match="files that its manifest does not name") as caught:
        bundle.refuse_other_files()
    assert (caught.value.where, caught.value.given) == (str(signed), "'evil.py', 'sub/.link'")


def test_all_that_was_done_is_counted(signed: Path, keys: Keys) -> None:
    for number in range(7):
        (signed / f"extra{number}").touch()
    assert str(refusal(signed, keys.public).given).endswith("'extra4' and 2 more")


def test_the_signature_of_another_bundle_is_refused(
    signed: Path, keys: Keys, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(signed, tmp_path / "other"))
    (other / "README.md").write_bytes(b"# other")
    Bundle.create(other, Bundle.open(other, verify=False).manifest)
    assert not Bundle.open(other).is_signed  # a new manifest, so the signature went
    sign(Bundle.open(other), keys.private)
    shutil.copyfile(signed / "model.sig", other / "model.sig")
    assert refusal(other, keys.public).where == str(other / "README.md")


def test_a_signature_that_leaves_files_out_is_refused(folder: Path, keys: Keys) -> None:
    from model_signing import hashing, signing

    narrow = hashing.Config().set_ignored_paths(paths=["model.sig", "model.bin"])
    config = signing.Config().use_elliptic_key_signer(private_key=keys.private)
    config.set_hashing_config(narrow).sign(folder, folder / "model.sig")
    error = refusal(folder, keys.public)
    assert error.what == "a file was added after the bundle was signed"
    assert error.where == str(folder / "model.bin")


# Keys


def test_another_key_is_refused(signed: Path, tmp_path: Path) -> None:
    other = write_keys(tmp_path / "other")
    error = refusal(signed, other.public)
    assert error.what == "the bundle was signed with another key"
    assert error.where == str(signed / "model.sig")
    assert str(other.public) in str(error.given)


def test_a_signature_by_another_key_that_names_this_one_is_refused(
    signed: Path, keys: Keys, tmp_path: Path
) -> None:
    path = signed / "model.sig"
    hint = json.loads(path.read_bytes())["verificationMaterial"]["publicKey"]["hint"]
    sign(Bundle.open(signed), write_keys(tmp_path / "other").private)
    forged = json.loads(path.read_bytes())
    forged["verificationMaterial"]["publicKey"]["hint"] = hint
    path.write_text(json.dumps(forged))
    error = refusal(signed, keys.public)
    assert error.what == "the signature is not valid: it was changed, or made with another key"


def test_no_signature_is_not_a_good_one(folder: Path, keys: Keys) -> None:
    error = refusal(folder, keys.public)
    assert error.what == "the bundle is not signed"
    (folder / "model.sig").symlink_to(keys.public)
    assert refusal(folder, keys.public).what == "the bundle is not signed"


def bad_keys(folder: Path) -> dict[str, Keys]:
    return {
        "RSA key": write_keys(folder / "rsa", rsa.generate_private_key(65537, 2048)),
        "an elliptic key on secp256k1": write_keys(
            folder / "k1", ec.generate_private_key(ec.SECP256K1())
        ),
    }


def test_keys_of_another_kind_are_refused(signed: Path, tmp_path: Path) -> None:
    for kind, bad in bad_keys(tmp_path).items():
        for path, call in ((bad.private, sign), (bad.public, verify_signature)):
            with pytest.raises(KeyFileError) as caught:
                call(Bundle.open(signed), path)
            assert caught.value.what == "a key of this kind cannot sign a bundle"
            assert (caught.value.where, caught.value.given) == (str(path), kind)
            assert caught.value.exit_code == 3


def test_what_is_no_key_is_refused(signed: Path, keys: Keys, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("no key")
    bundle = Bundle.open(signed)
    cases: list[tuple[Callable[[Bundle, Path], str], Path, str]] = [
        (sign, tmp_path / "note", "the private key cannot be read"),
        (sign, keys.public, "the private key cannot be read"),
        (sign, tmp_path / "absent", "the key cannot be read"),
        (verify_signature, tmp_path / "note", "the public key cannot be read"),
        (verify_signature, tmp_path, "the key cannot be read"),
        (verify_signature, keys.private, "the public key cannot be read"),
    ]
    for call, path, what in cases:
        with pytest.raises(KeyFileError) as caught:
            call(bundle, path)
        assert (caught.value.what, caught.value.where) == (what, str(path))
        assert "openssl" in str(caught.value.fix)
    assert caught.value.given == "a private key"


def test_an_encrypted_key_needs_its_passphrase(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = write_keys(tmp_path / "locked", passphrase="open sesame")  # noqa: S106
    monkeypatch.delenv(PASSPHRASE, raising=False)
    with pytest.raises(KeyFileError, match="the private key is encrypted") as caught:
        sign(Bundle.open(folder), keys.private)
    assert PASSPHRASE in str(caught.value.fix)
    monkeypatch.setenv(PASSPHRASE, "open wheat")
    with pytest.raises(KeyFileError, match=f"with the passphrase in {PASSPHRASE}") as caught:
        sign(Bundle.open(folder), keys.private)
    assert caught.value.fix == f"correct the passphrase in {PASSPHRASE}"
    assert not (folder / "model.sig").exists()
    monkeypatch.setenv(PASSPHRASE, "open sesame")
    sign(Bundle.open(folder), keys.private)
    verify(folder, keys.public)
    plain = write_keys(tmp_path / "plain")  # one that is not encrypted does not mind
    sign(Bundle.open(folder), plain.private)
    verify(folder, plain.public)


# Signing


def test_only_a_whole_bundle_is_signed(folder: Path, keys: Keys) -> None:
    (folder / "notes.txt").touch()
    with pytest.raises(BundleError, match="files that its manifest does not name") as caught:
        sign(Bundle.open(folder), keys.private)
    assert caught.value.given == "'notes.txt'"
    (folder / "notes.txt").unlink()
    (folder / "model.bin").write_bytes(b"weighty")
    with pytest.raises(BundleError, match="was changed after it was built"):
        sign(Bundle.open(folder, verify=False), keys.private)
    assert not (folder / "model.sig").exists()


def test_a_signature_that_cannot_be_written_is_named(
    folder: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, *arguments: Any, **options: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(BundleError, match="the signature cannot be written") as caught:
        sign(Bundle.open(folder), keys.private)
    assert caught.value.given == "No space left on device"


def test_the_tool_of_the_library_reads_and_writes_the_same(folder: Path, keys: Keys) -> None:
    from model_signing import hashing, signing, verifying

    name = sign(Bundle.open(folder), keys.private)
    reader = verifying.Config().use_elliptic_key_verifier(public_key=keys.public)
    reader.verify(folder, folder / "model.sig")
    writer = signing.Config().use_elliptic_key_signer(private_key=keys.private)
    writer.set_hashing_config(hashing.Config().set_ignored_paths(paths=["model.sig"]))
    writer.sign(folder, folder / "model.sig")
    assert verify(folder, keys.public) == name


def test_without_the_library_the_extra_is_named(signed: Path, keys: Keys) -> None:
    script = """
import sys
sys.modules["model_signing"] = None
from pathlib import Path
from targets.bundle import Bundle
from targets.errors import MissingLibraryError
from targets.signing import sign, verify_signature
bundle = Bundle.open(sys.argv[1])
for call in (sign, verify_signature):
    try:
        call(bundle, Path(sys.argv[2]))
    except MissingLibraryError as error:
        print(error)
"""
    command = [sys.executable, "-c", script, str(signed), str(keys.public)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    expected = [
        MissingLibraryError.for_extra("model_signing", "signing", needed_by)
        for needed_by in ("signing a bundle", "checking a signature")
    ]
    assert done.stdout == "".join(f"{error}\n" for error in expected)
    assert "pip install 'compressor[signing]'" in done.stdout


# Archives


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_archive_keeps_the_signature(
    signed: Path, keys: Keys, tmp_path: Path, suffix: str
) -> None:
    archive = tmp_path / f"half{suffix}"
    pack(signed, archive)
    bundle = Bundle.open(archive)
    assert bundle.path("model.sig").read_bytes() == (signed / "model.sig").read_bytes()
    assert bundle.identity == Bundle.open(signed).identity
    verify_signature(bundle, keys.public)
    again = tmp_path / f"again{suffix}"
    pack(signed, again)
    assert again.read_bytes() == archive.read_bytes()


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_archive_of_another_model_is_found(
    signed: Path, keys: Keys, tmp_path: Path, suffix: str
) -> None:
    signature = (signed / "model.sig").read_bytes()
    (signed / "model.bin").write_bytes(b"other weights")
    Bundle.create(signed, Bundle.open(signed, verify=False).manifest)
    archive = tmp_path / f"half{suffix}"
    pack(signed, archive)
    error = refusal(archive, keys.public)
    assert (error.what, error.where) == ("the bundle is not signed", str(archive / "model.sig"))
    (signed / "model.sig").write_bytes(signature)
    pack(signed, archive)
    Bundle.open(archive)
    assert refusal(archive, keys.public).where == str(archive / "manifest.json")
    (signed / "model.sig").write_bytes(b"{}")
    pack(signed, archive)
    error = refusal(archive, keys.public)
    assert (error.what, error.where) == ("the signature is damaged", str(archive / "model.sig"))


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_signature_in_an_archive_has_a_limit(signed: Path, tmp_path: Path, suffix: str) -> None:
    (signed / "model.sig").write_bytes(b" " * (MAX_SIGNATURE + 1))
    pack(signed, tmp_path / f"half{suffix}")
    with pytest.raises(BundleError, match="the signature in the archive is too large"):
        unpack(tmp_path / f"half{suffix}", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
