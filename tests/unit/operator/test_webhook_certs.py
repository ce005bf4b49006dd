"""When certificates are made, what is in them, and what is trusted."""

import base64
import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from rollbook_operator.webhook import certs
from rollbook_operator.webhook.certs import Bundle, Verdict

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
NAME = "rollbook-webhook.rollbook.svc"


@pytest.fixture(scope="module")
def bundle():
    return certs.make(name=NAME, now=NOW, before=None)


def day(number):
    return NOW + dt.timedelta(days=number)


def test_a_new_one_is_valid_for_the_service_and_signed_by_its_authority(bundle):
    certificate = x509.load_pem_x509_certificate(bundle.certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [certs.service_name("rollbook-webhook", "rollbook")]
    key = serialization.load_pem_private_key(bundle.key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp256r1"
    assert certs.judge(bundle, name=NAME, now=NOW) == Verdict(renew=False, reason="valid")


def test_it_is_renewed_at_two_thirds_of_its_life(bundle):
    turn = certs.renewal_time(bundle)
    assert dt.timedelta(days=242) < turn - NOW < dt.timedelta(days=244)
    second = dt.timedelta(seconds=1)
    assert not certs.judge(bundle, name=NAME, now=turn - second).renew
    assert certs.judge(bundle, name=NAME, now=turn) == Verdict(renew=True, reason="expiring")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"certificate": b"rubbish"}, "unreadable"),
        ({"key": b"rubbish"}, "unreadable"),
        ({"ca_certificate": b"rubbish"}, "unreadable"),
        ({"key": "other"}, "key_mismatch"),
        ({"ca_certificate": "other"}, "not_signed"),
    ],
)
def test_a_secret_that_somebody_spoiled_is_made_anew(bundle, change, reason):
    other = certs.make(name=NAME, now=NOW, before=None)
    values = {k: getattr(other, k) if v == "other" else v for k, v in change.items()}
    spoiled = Bundle(
        **{
            "ca_certificate": bundle.ca_certificate,
            "certificate": bundle.certificate,
            "key": bundle.key,
            **values,
        }
    )
    assert certs.judge(spoiled, name=NAME, now=NOW) == Verdict(renew=True, reason=reason)


def test_none_another_name_or_another_time_make_it_anew(bundle):
    assert certs.judge(None, name=NAME, now=NOW).reason == "missing"
    assert certs.judge(bundle, name="elsewhere.x.svc", now=NOW).reason == "other_name"
    assert certs.judge(bundle, name=NAME, now=day(-2)).reason == "not_yet_valid"


def test_both_authorities_are_trusted_until_the_old_one_ends(bundle):
    renewed = certs.make(name=NAME, now=day(250), before=bundle)
    both = certs.trusted(renewed, day(250))
    assert both == renewed.ca_certificate + bundle.ca_certificate
    assert len(x509.load_pem_x509_certificates(both)) == 2
    assert certs.trusted(renewed, day(366)) == renewed.ca_certificate


def test_the_secret_gives_back_what_was_put_in(bundle):
    renewed = certs.make(name=NAME, now=day(250), before=bundle)
    assert Bundle.from_secret(renewed.to_secret()) == renewed
    assert Bundle.from_secret({}) is None
    assert Bundle.from_secret({**renewed.to_secret(), "tls.key": "%"}) is None


def test_the_configuration_is_changed_only_where_it_differs():
    right = base64.b64encode(b"CA").decode()
    configuration = {
        "webhooks": [
            {"name": "a", "clientConfig": {"caBundle": right}},
            {"name": "b", "clientConfig": {"service": {}}},
        ]
    }
    assert certs.bundle_patch(configuration, b"CA") == {
        "webhooks": [{"name": "b", "clientConfig": {"caBundle": right}}]
    }
    configuration["webhooks"].pop()
    assert certs.bundle_patch(configuration, b"CA") is None
