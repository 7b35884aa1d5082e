"""Verifier: TLS towards upstreams: whom to trust, and what is wrong with the others."""

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

_UNKNOWN = "its certificate is from an authority that is not trusted"

#: OpenSSL's X509_V_ERR codes in words.
_DISTRUST = {
    9: "its certificate is not valid yet",
    10: "its certificate has expired",
    18: "its certificate is signed by itself and not trusted",
    19: _UNKNOWN,
    20: _UNKNOWN,
    21: _UNKNOWN,
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
    """Makes TLS connections to one host, and checks that it is that host.

    Twisted's own does the same, but does not tell what is wrong with a certificate.
    """

    def __init__(self, context: Context, host: str) -> None:
        self._context = context
        self._host = host
        self._numeric = isIPAddress(host) or isIPv6Address(host)

    def clientConnectionForTLS(self, protocol: Any) -> Connection:
        upstream = protocol.wrappedProtocol

        def judged(_: object, certificate: object, error: int, depth: int, ok: int) -> bool:
            if not ok:
                upstream.distrust = _DISTRUST.get(error, f"its certificate is invalid ({error})")
            return bool(ok)

        connection = Connection(self._context, None)
        connection.set_verify(VERIFY_PEER, judged)
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
    """The failure that a client is told of."""
    return UpstreamTls(f"Llama Stack could not be reached securely: {why}.")


def handshake_failure(error: BaseException, distrust: str) -> UpstreamTls:
    """Why a handshake came to nothing; *distrust* is what the certificate was found to be."""
    if distrust:
        return insecure(distrust)
    said = error.args[0] if isinstance(error, Error) and error.args else None
    if isinstance(said, list) and said:
        return insecure(f"the TLS handshake failed ({said[0][-1]})")
    return insecure("it closed the connection during the TLS handshake")
