"""TLS towards upstreams: trusted authorities, and the verification of certificates."""

from __future__ import annotations

from typing import Any

from OpenSSL.SSL import VERIFY_PEER, Connection, Context, Error
from service_identity import CertificateError, VerificationError
from service_identity.pyopenssl import verify_hostname, verify_ip_address
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import CertificateOptions, platformTrust, trustRootFromCertificates
from zope.interface import implementer

from llamaproxy.errors import UpstreamTls

_UNKNOWN_AUTHORITY = "its certificate is from an authority that is not trusted"

#: OpenSSL's X509_V_ERR codes in words.
_CERTIFICATE_ERRORS = {
    9: "its certificate is not valid yet",
    10: "its certificate has expired",
    18: "its certificate is signed by itself and not trusted",
    19: _UNKNOWN_AUTHORITY,
    20: _UNKNOWN_AUTHORITY,
    21: _UNKNOWN_AUTHORITY,
    23: "its certificate has been revoked",
}


def tls_context(authorities: str | None, system: bool) -> Context:
    """A context that trusts the system's authorities, those in a PEM file, or both.

    :raises Error: if there is no usable certificate in the file.
    """
    trust = platformTrust() if system else trustRootFromCertificates([])
    context: Context = CertificateOptions(trustRoot=trust).getContext()
    if authorities is not None:
        context.load_verify_locations(authorities)
    return context


@implementer(IOpenSSLClientConnectionCreator)
class Verifier:
    """Makes TLS connections to one host, and verifies its certificate.

    Twisted's own creator of connections does not report what is wrong with a certificate.
    """

    def __init__(self, context: Context, host: str) -> None:
        self._context = context
        self._host = host
        self._numeric = isIPAddress(host) or isIPv6Address(host)

    def clientConnectionForTLS(self, protocol: Any) -> Connection:
        upstream = protocol.wrappedProtocol

        def verify(_: object, certificate: object, error: int, depth: int, ok: int) -> bool:
            if not ok:
                upstream.certificate_error = _CERTIFICATE_ERRORS.get(
                    error, f"its certificate is invalid ({error})"
                )
            return bool(ok)

        connection = Connection(self._context, None)
        connection.set_verify(VERIFY_PEER, verify)
        if not self._numeric:
            # Numeric addresses are no names (RFC 6066 section 3).
            connection.set_tlsext_host_name(self._host.encode("ascii"))
        return connection

    def check(self, connection: Connection) -> None:
        """:raises UpstreamTls: if the certificate is another host's (RFC 9110 section 4.3.4)."""
        verify = verify_ip_address if self._numeric else verify_hostname
        try:
            verify(connection, self._host)
        except (VerificationError, CertificateError):
            raise insecure(f"its certificate is not for {self._host}") from None


def insecure(why: str) -> UpstreamTls:
    """The error of a connection that is not secure; *why* is a clause for its message."""
    return UpstreamTls(f"Llama Stack could not be reached securely: {why}.")


def handshake_failure(error: BaseException, certificate_error: str) -> UpstreamTls:
    """The error for a handshake that failed, with *certificate_error* if that is not empty."""
    if certificate_error:
        return insecure(certificate_error)
    reasons = error.args[0] if isinstance(error, Error) and error.args else None
    if isinstance(reasons, list) and reasons:
        return insecure(f"the TLS handshake failed ({reasons[0][-1]})")
    return insecure("it closed the connection during the TLS handshake")
