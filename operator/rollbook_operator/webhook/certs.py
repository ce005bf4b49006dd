"""The webhook's certificates: what to make, and when; pure, with the time as an argument.

One bundle is kept: an authority, the serving certificate that it signed, and, for as long as it is valid, the
authority before it. Both authorities are trusted meanwhile, so that replicas may change over one by one.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import datetime as dt
from typing import TYPE_CHECKING, Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from collections.abc import Mapping

LIFETIME: Final = dt.timedelta(days=365)
"""Of authority and certificate alike; they are renewed together."""

RENEW_AT: Final = 2 / 3
"""The part of its life after which a certificate is renewed."""

BACKDATE: Final = dt.timedelta(hours=1)
"""For API servers whose clock is behind."""

_FIELDS: Final = {
    "ca_certificate": "ca.crt",
    "previous_ca": "ca-previous.crt",
    "certificate": "tls.crt",
    "key": "tls.key",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bundle:
    """What the Secret holds, as PEM.

    The authority's key is not among it: it signs one certificate and is forgotten.

    Attributes:
        ca_certificate: the authority.
        previous_ca: the one before it, if there was one.
        certificate: what is served.
        key: of what is served.
    """

    ca_certificate: bytes
    certificate: bytes
    key: bytes
    previous_ca: bytes = b""

    @classmethod
    def from_secret(cls, data: Mapping[str, str]) -> Bundle | None:
        """Read a Secret's data; ``None`` if something is missing or isn't base64."""
        try:
            values = {f: base64.b64decode(data.get(k) or "", validate=True) for f, k in _FIELDS.items()}
        except binascii.Error:
            return None
        if not (values["ca_certificate"] and values["certificate"] and values["key"]):
            return None
        return cls(**values)

    def to_secret(self) -> dict[str, str]:
        """Write a Secret's data."""
        return {key: base64.b64encode(getattr(self, field)).decode() for field, key in _FIELDS.items()}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What is to be done about a bundle.

    Attributes:
        renew: whether a new one is to be made.
        reason: why, as a code: ``valid``, ``missing``, ``unreadable``, ``other_name``, ``key_mismatch``,
            ``not_signed``, ``expiring``, ``not_yet_valid``.
    """

    renew: bool
    reason: str


def service_name(service: str, namespace: str) -> str:
    """Return the name by which the API server calls a Service."""
    return f"{service}.{namespace}.svc"


def judge(bundle: Bundle | None, *, name: str, now: dt.datetime) -> Verdict:
    """Decide whether a bundle can be served.

    Args:
        bundle: what there is.
        name: what the certificate must be for.
        now: the time of day.
    """
    if bundle is None:
        return Verdict(renew=True, reason="missing")
    parsed = _parse(bundle)
    if parsed is None:
        return Verdict(renew=True, reason="unreadable")
    certificate, names = parsed.certificate, parsed.names
    faults = {
        "other_name": name not in names,
        "key_mismatch": parsed.key != certificate.public_key(),
        "not_signed": not parsed.signed,
        "not_yet_valid": now < certificate.not_valid_before_utc,
        "expiring": now >= renewal_time(bundle),
    }
    fault = next((reason for reason, found in faults.items() if found), None)
    return Verdict(renew=fault is not None, reason=fault or "valid")


@dataclasses.dataclass(frozen=True)
class _Parsed:
    certificate: x509.Certificate
    names: list[str]
    key: Any
    signed: bool


def _parse(bundle: Bundle) -> _Parsed | None:
    try:
        authority = x509.load_pem_x509_certificate(bundle.ca_certificate)
        certificate = x509.load_pem_x509_certificate(bundle.certificate)
        key = serialization.load_pem_private_key(bundle.key, password=None)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, x509.ExtensionNotFound):
        return None
    try:
        certificate.verify_directly_issued_by(authority)
        signed = True
    except (ValueError, TypeError, InvalidSignature):
        signed = False
    return _Parsed(certificate, names.get_values_for_type(x509.DNSName), key.public_key(), signed)


def renewal_time(bundle: Bundle) -> dt.datetime:
    """Return when two thirds of the certificate's life are over.

    Raises:
        ValueError: it is no certificate.
    """
    certificate = x509.load_pem_x509_certificate(bundle.certificate)
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return start + (end - start) * RENEW_AT


def expiry(bundle: Bundle) -> dt.datetime:
    """Return when the certificate ends.

    Raises:
        ValueError: it is no certificate.
    """
    return x509.load_pem_x509_certificate(bundle.certificate).not_valid_after_utc


def make(*, name: str, now: dt.datetime, before: Bundle | None) -> Bundle:
    """Make an authority and a certificate.

    Args:
        name: what the certificate is for.
        now: the time of day.
        before: the bundle that it replaces; its authority stays trusted for as long as it is valid.
    """
    authority_key = ec.generate_private_key(ec.SECP256R1())
    serial = x509.random_serial_number()
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"rollbook-webhook-ca-{serial:x}"[:64])])
    identifier = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())
    authority = (
        _builder(issuer, issuer, authority_key.public_key(), now)
        .serial_number(serial)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "rollbook-webhook")])
    certificate = (
        _builder(subject, issuer, key.public_key(), now)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
        )
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    return Bundle(
        ca_certificate=authority.public_bytes(pem),
        previous_ca=_still_valid(before, now),
        certificate=certificate.public_bytes(pem),
        key=key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def trusted(bundle: Bundle, now: dt.datetime) -> bytes:
    """Return the authorities that the API server is to trust, as PEM."""
    previous = Bundle(ca_certificate=bundle.previous_ca, certificate=b"", key=b"")
    return bundle.ca_certificate + _still_valid(previous, now)


def bundle_patch(configuration: Mapping[str, Any], authorities: bytes) -> dict[str, Any] | None:
    """Return the strategic merge patch that makes a webhook configuration trust them; ``None`` if it does."""
    wanted = base64.b64encode(authorities).decode()
    changes = [
        {"name": hook["name"], "clientConfig": {"caBundle": wanted}}
        for hook in configuration.get("webhooks") or []
        if (hook.get("clientConfig") or {}).get("caBundle") != wanted
    ]
    return {"webhooks": changes} if changes else None


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: dt.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + LIFETIME)
    )


def _usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign,
        crl_sign=sign,
        encipher_only=False,
        decipher_only=False,
    )


def _still_valid(before: Bundle | None, now: dt.datetime) -> bytes:
    if before is None or not before.ca_certificate:
        return b""
    try:
        authority = x509.load_pem_x509_certificate(before.ca_certificate)
    except ValueError:
        return b""
    return before.ca_certificate if now < authority.not_valid_after_utc else b""
