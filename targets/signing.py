"""Sign a bundle with a private key, and check the signature: OpenSSF Model Signing.

``model.sig`` in the bundle's folder covers every other file there: the manifest, the card, hidden
files. It is what the command ``model_signing`` writes and reads as well.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from pydantic import Base64Bytes, BaseModel, Field, ValidationError

from targets.archive import MAX_SIGNATURE, SIGNATURE
from targets.bundle import Bundle, hash_file
from targets.errors import BundleError, KeyFileError, MissingLibraryError, SignatureError
from targets.wording import listed

__all__ = ["PASSPHRASE", "sign", "verify_signature"]

PASSPHRASE = "COMPRESSOR_KEY_PASSPHRASE"  # noqa: S105  (the name of a variable)
"""Environment variable with the passphrase of an encrypted private key."""

_NEW_KEY = "openssl ecparam -name prime256v1 -genkey -noout -out private.pem"
_PUBLIC_KEY = "openssl ec -in private.pem -pubout -out public.pem"
_FIX = "do not use this bundle; get it again from its signer"


class _KeyHint(BaseModel):
    hint: str


class _Material(BaseModel):
    key: _KeyHint = Field(alias="publicKey")


class _Envelope(BaseModel):
    payload: Base64Bytes


class _Signature(BaseModel):
    """What of a signature is read here; the library reads and checks all of it."""

    material: _Material = Field(alias="verificationMaterial")
    envelope: _Envelope = Field(alias="dsseEnvelope")


class _Resource(BaseModel):
    name: str
    digest: str


class _Predicate(BaseModel):
    resources: tuple[_Resource, ...]


class _Statement(BaseModel):
    predicate: _Predicate


def sign(bundle: Bundle, private_key: Path) -> str:
    """Write ``model.sig`` into the folder of a bundle, in place of one that lies there.

    Args:
        bundle: One in a folder; verified here.
        private_key: PEM file with an elliptic key. Where it is encrypted, the environment variable
            :data:`PASSPHRASE` has its passphrase.

    Returns:
        What names the key: the sha256 of the public one.

    Raises:
        BundleError: The bundle is damaged, holds files that its manifest does not name, or cannot
            be written to.
        KeyFileError: The key cannot be read, or is no such key.
        MissingLibraryError: The extra ``signing`` is not installed.
    """
    library = _library("signing a bundle")
    passphrase, fingerprint = _read_private_key(private_key)
    bundle.verify()
    bundle.refuse_other_files()
    signer = library.signing.Config().use_elliptic_key_signer(
        private_key=private_key,
        password=passphrase,
    )
    signer.set_hashing_config(_hashing(library))
    folder = bundle.folder.resolve()  # it may be reached by a link; the library refuses all links
    try:
        signer.sign(folder, folder / SIGNATURE)
    except OSError as error:
        raise BundleError(
            "the signature cannot be written",
            where=bundle.source / SIGNATURE,
            given=error.strerror or error,
            fix="free some space there, or copy the bundle to where it can be written",
        ) from error
    return fingerprint


def verify_signature(bundle: Bundle, public_key: Path) -> str:
    """Check that a bundle is what the holder of a key signed, to the last byte and file.

    Args:
        bundle: One that was opened, of a folder or an archive; that it is whole need not be known.
        public_key: PEM file with the public half of the key.

    Returns:
        What names the key: the sha256 of it.

    Raises:
        SignatureError: There is no signature, it is of another key, it was changed, or a file was
            changed, added or removed; names the file.
        KeyFileError: The key cannot be read, or is no such key.
        MissingLibraryError: The extra ``signing`` is not installed.
    """
    library = _library("checking a signature")
    fingerprint = _read_public_key(public_key)
    signature = _read_signature(bundle)
    if signature.material.key.hint != fingerprint:
        raise SignatureError(
            "the bundle was signed with another key",
            where=bundle.source / SIGNATURE,
            given=f"signed with {signature.material.key.hint[:12]!r}…, "
            f"{public_key} is {fingerprint[:12]}…",
            fix="pass the public key of its signer; otherwise do not use this bundle",
        )
    verifier = library.verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    verifier.set_hashing_config(_hashing(library))
    folder = bundle.folder.resolve()  # as in signing
    try:
        verifier.verify(folder, folder / SIGNATURE)
    except library.InvalidSignature as error:
        raise SignatureError(
            "the signature is not valid: it was changed, or made with another key",
            where=bundle.source / SIGNATURE,
            given="the signature itself, not the files",
            fix=_FIX,
        ) from error
    except Exception as error:  # whatever it is, nothing has been shown to be right
        _compare(bundle, signature, contents=True)
        raise SignatureError(
            "the signature cannot be checked",
            where=bundle.source / SIGNATURE,
            given=f"{type(error).__name__}: {error}",
            fix=_FIX,
        ) from error
    # A signature may say what to leave out; here, nothing is.
    _compare(bundle, signature, contents=False)
    return fingerprint


class _Library:
    """The parts of the libraries that are needed."""

    def __init__(self) -> None:
        from cryptography.exceptions import InvalidSignature
        from model_signing import hashing, signing, verifying

        self.hashing = hashing
        self.signing: Any = signing  # says that a passphrase is a str, but takes bytes only
        self.verifying = verifying
        self.InvalidSignature = InvalidSignature


def _library(needed_by: str) -> _Library:
    try:
        return _Library()
    except ImportError as error:
        name = error.name or "model_signing"
        raise MissingLibraryError.for_extra(name, "signing", needed_by) from error


def _hashing(library: _Library) -> Any:
    """Every file, hidden ones too, but the signature itself."""
    config = library.hashing.Config().use_file_serialization(hashing_algorithm="sha256")
    return config.set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


def _read_private_key(path: Path) -> tuple[bytes | None, str]:
    """The passphrase of a key, if it has one, and what names the key."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = _read_key(path, _NEW_KEY)
    passphrase = None
    try:
        try:
            key = load_pem_private_key(content, None)
        except TypeError as error:  # it is encrypted
            given = os.environ.get(PASSPHRASE)
            if not given:
                raise KeyFileError(
                    "the private key is encrypted",
                    where=path,
                    fix=f"set the environment variable {PASSPHRASE} to its passphrase",
                ) from error
            passphrase = given.encode()
            key = load_pem_private_key(content, passphrase)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyFileError(
            "the private key cannot be read"
            + (f" with the passphrase in {PASSPHRASE}" if passphrase else ""),
            where=path,
            given=error,
            fix=f"correct the passphrase in {PASSPHRASE}"
            if passphrase
            else f"pass an elliptic-curve key in PEM form; to make one: {_NEW_KEY}",
        ) from error
    return passphrase, _fingerprint(path, key.public_key())


def _read_public_key(path: Path) -> str:
    """What names a key."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    content = _read_key(path, _PUBLIC_KEY)
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyFileError(
            "the public key cannot be read",
            where=path,
            given="a private key" if b"PRIVATE" in content else error,
            fix=f"pass the public half of the key: {_PUBLIC_KEY}",
        ) from error
    return _fingerprint(path, key)


def _read_key(path: Path, fix: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise KeyFileError(
            "the key cannot be read",
            where=path,
            given=error.strerror or error,
            fix=f"check the path and its permissions; if there is no key yet: {fix}",
        ) from error


def _fingerprint(path: Path, key: object) -> str:
    """The sha256 over the public key in PEM form, as the signature names it."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    curves = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, curves):
        raise KeyFileError(
            "a key of this kind cannot sign a bundle",
            where=path,
            given=_kind(key),
            fix=f"use an elliptic-curve key on P-256, P-384 or P-521: {_NEW_KEY}",
        )
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()


def _kind(key: object) -> str:
    curve = getattr(key, "curve", None)
    if curve is not None:
        return f"an elliptic key on {curve.name}"
    return type(key).__name__.removesuffix("PublicKey") + " key"


def _read_signature(bundle: Bundle) -> _Signature:
    path, where = bundle.path(SIGNATURE), bundle.source / SIGNATURE
    if not bundle.is_signed:
        raise SignatureError(
            "the bundle is not signed",
            where=where,
            given="no such file",
            fix="get a signed bundle from whoever built it; to sign one: "
            "compressor sign BUNDLE --key private.pem",
        )
    try:
        content = path.read_bytes() if path.stat().st_size <= MAX_SIGNATURE else b""
        return _Signature.model_validate_json(content)
    except OSError as error:
        raise SignatureError(
            "the signature cannot be read", where=where, given=error.strerror or error, fix=_FIX
        ) from error
    except ValidationError as error:
        raise _damaged(bundle, error) from error


def _damaged(bundle: Bundle, error: ValidationError) -> SignatureError:
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    return SignatureError(
        "the signature is damaged",
        where=bundle.source / SIGNATURE,
        given=f"{place}: {first['msg']}" if place else first["msg"],
        fix=_FIX,
    )


def _compare(bundle: Bundle, signature: _Signature, *, contents: bool) -> None:
    """Compare the files with those that a signature names, by name or by content too.

    Raises:
        SignatureError: Names what was added, removed or changed.
    """
    try:
        statement = _Statement.model_validate_json(signature.envelope.payload)
    except ValidationError as error:
        raise _damaged(bundle, error) from error
    signed = {each.name: each.digest for each in statement.predicate.resources}
    found = _files(bundle.folder)
    found.pop(SIGNATURE, None)
    changed = [
        name
        for name, path in found.items()
        if contents and name in signed and (not _is_plain(path) or hash_file(path) != signed[name])
    ]
    for what, names in (
        ("changed after it", changed),
        ("added after the bundle", sorted(found.keys() - signed)),
        ("removed after the bundle", sorted(signed.keys() - found)),
    ):
        if names:
            raise SignatureError(
                f"a file was {what} was signed",
                where=bundle.source / names[0],
                given=listed(names) if len(names) > 1 else None,
                fix=_FIX,
            )


def _files(folder: Path) -> dict[str, Path]:
    """Everything in a folder and below that is no folder."""
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or not path.is_dir()
    }


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()
