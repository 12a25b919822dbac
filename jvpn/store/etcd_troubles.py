"""Why no word can be had with a member of etcd, in words: what happened, and what to do about it."""

import ssl
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from jvpn.store.etcd_socket import Endpoint

#: X509_V_ERR_* of OpenSSL's x509_vfy.h.
_NOT_YET_VALID, _EXPIRED, _HOST_MISMATCH, _ADDRESS_MISMATCH = 9, 10, 62, 64
#: Signature of the authority wrong, authority unknown, or in no list of ours.
_UNKNOWN_AUTHORITY = frozenset({2, 7, 18, 19, 20, 21})
#: What a member calls a certificate of ours that it does not take; `reason` of ssl.SSLError.
_REFUSALS = frozenset(
    {
        "SSLV3_ALERT_BAD_CERTIFICATE",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        "SSLV3_ALERT_CERTIFICATE_REVOKED",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        "SSLV3_ALERT_HANDSHAKE_FAILURE",
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        "TLSV13_ALERT_CERTIFICATE_REQUIRED",
        "TLSV1_ALERT_ACCESS_DENIED",
        "TLSV1_ALERT_UNKNOWN_CA",
    }
)
#: What is not of TLS at all.
_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "UNKNOWN_PROTOCOL"})
#: http.client.RemoteDisconnected is one of them.
_ENDS = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionResetError, BrokenPipeError)


def at_connect(error: Exception, member: Endpoint, ca: Path | None, certificate: Path | None) -> str:
    """No connection came about, or no TLS on it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _not_believed(error, member, ca)
    if isinstance(error, ssl.SSLError) and error.reason in _REFUSALS:
        return _refused(certificate)
    if isinstance(error, ssl.SSLError) and error.reason in _NO_TLS:
        return _no_tls(member)
    if member.secured and isinstance(error, _ENDS):
        return f"it ended the connection when TLS was to begin: it stops just now, or {_no_tls(member)}"
    return _plainly(error)


def _no_tls(member: Endpoint) -> str:
    plain = f"http://{str(member).partition('//')[2]}"
    return (
        "it speaks no TLS there: give the member a certificate (--cert-file, --key-file, --listen-client-urls with "
        f"https) or, on a network of its own, write {plain}"
    )


def at_first_words(error: Exception, member: Endpoint, certificate: Path | None) -> str:
    """The connection came about, and nothing was ever answered on it."""
    refused = isinstance(error, ssl.SSLError) and error.reason in _REFUSALS
    if member.secured and (refused or isinstance(error, _ENDS)):
        # With TLS 1.3 our certificate is judged when we have long begun to speak; the alert is often lost with the
        # connection.
        doubt = "" if refused else "it ended the connection at once: it stops just now, or "
        return doubt + _refused(certificate)
    if not member.secured and isinstance(error, _ENDS):
        secured = f"https://{str(member).partition('//')[2]}"
        return f"it ended the connection without an answer: if it wants TLS write {secured}, with fleet.ca"
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        tls = "" if member.secured else ", and write https if it wants TLS"
        return f"what it says is not of etcd: name its port for clients (usually 2379; 2380 is that for peers){tls}"
    return _plainly(error)


def later(error: Exception) -> str:
    """On a connection that has worked."""
    if isinstance(error, _ENDS):
        return "it ended the connection"
    return _plainly(error)


def _plainly(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused: nobody listens there"
    if isinstance(error, ssl.SSLError):
        return f"TLS fails: {(error.reason or str(error)).lower().replace('_', ' ')}"
    return str(error) or type(error).__name__


def _not_believed(error: ssl.SSLCertVerificationError, member: Endpoint, ca: Path | None) -> str:
    code = error.verify_code
    if code == _EXPIRED:
        return "its certificate has expired: give the member a new one; or this machine's clock is ahead"
    if code == _NOT_YET_VALID:
        return (
            "its certificate is not valid yet: is this machine's clock behind, or that of who made it ahead?"
        )
    if code in (_HOST_MISMATCH, _ADDRESS_MISMATCH):
        return (
            f"its certificate is for another address: it needs {member.address} as an IP address among its subject "
            "alternative names (or somebody else answers there)"
        )
    if code in _UNKNOWN_AUTHORITY:
        whom = (
            "the authorities of this system, fleet.ca is not set"
            if ca is None
            else f"those in fleet.ca, {ca}"
        )
        return f"its certificate is from none of {whom}: fleet.ca must be the authority that the members' are from"
    return f"its certificate is not believed: {error.verify_message}"


def _refused(certificate: Path | None) -> str:
    if certificate is None:
        return "it wants a certificate of this node: set fleet.certificate and fleet.key"
    with suppress(OSError, ValueError):
        over = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
        if over < datetime.now(UTC):
            when = f"expired on {over:%Y-%m-%d}: renew it"
            return f"it does not take this node's certificate, {certificate}, which {when}"
    return (
        f"it does not take this node's certificate, {certificate}: that must be from an authority in the member's "
        "--trusted-ca-file, for client authentication, and valid by the member's clock"
    )
