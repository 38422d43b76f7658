"""TLS in front of the stack's servers, whose wheels speak none: real certificates, verified by the real clients.

As stunnel or a load balancer does: the line is encrypted up to here, and plain on loopback from here on. PostgreSQL's
clients ask for TLS inside their protocol; who does not ask is refused as `hostssl` refuses it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import select
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_SSL_REQUEST, _GSS_REQUEST = 80877103, 80877104
_NO_ENCRYPTION = b"SFATAL\0VFATAL\0C28000\0Mno pg_hba.conf entry for this host, no encryption\0\0"


class Authority:
    """A certificate authority in a folder of its own: `file` is what clients trust."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder, self._key = folder, ec.generate_private_key(ec.SECP256R1())
        self.file = folder / "ca.pem"
        self.file.write_bytes(
            _pem(self._sign(self._key, folder.name, x509.BasicConstraints(ca=True, path_length=None)))
        )

    def issue(self, name: str) -> ssl.SSLContext:
        """Return a server's side of TLS, with a certificate for a host name or address."""
        key, path = ec.generate_private_key(ec.SECP256R1()), self._folder / f"{name}.pem"
        try:
            alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(name))
        except ValueError:
            alternative = x509.DNSName(name)
        signed = self._sign(key, name, x509.SubjectAlternativeName([alternative]))
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path.write_bytes(_pem(signed) + private)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context

    def _sign(self, key: ec.EllipticCurvePrivateKey, name: str, extension: x509.ExtensionType) -> x509.Certificate:
        def named(text: str) -> x509.Name:
            return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

        now = datetime.now(UTC)
        made = x509.CertificateBuilder(
            named(self._folder.name), named(name), key.public_key(), x509.random_serial_number()
        )
        made = made.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
        return made.add_extension(extension, critical=key is self._key).sign(self._key, hashes.SHA256())


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


@dataclass
class Front:
    """A port that speaks TLS, and how many connections it took over TLS."""

    port: int = 0
    taken: int = 0


@contextlib.contextmanager
def in_front_of(port: int, context: ssl.SSLContext, *, is_postgres: bool = False) -> Iterator[Front]:
    """Listen on loopback, speak TLS, and pass everything on to a port of loopback in plain text."""
    front, is_over, threads = Front(), threading.Event(), list[threading.Thread]()

    def take(plain: socket.socket) -> None:
        # A client that trusts us not ends the handshake, which is the test.
        with plain, contextlib.suppress(OSError):
            plain.settimeout(30)
            if is_postgres and not _is_asked_for(plain):
                return
            with context.wrap_socket(plain, server_side=True) as outside:
                front.taken += 1
                with socket.create_connection(("127.0.0.1", port)) as inside:
                    _pass_on(outside, inside, is_over)

    def listen(listener: socket.socket) -> None:
        while not is_over.is_set():
            if select.select([listener], [], [], 0.05)[0]:
                threads.append(threading.Thread(target=take, args=(listener.accept()[0],), daemon=True))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        front.port = listener.getsockname()[1]
        listening = threading.Thread(target=listen, args=(listener,), daemon=True)
        listening.start()
        try:
            yield front
        finally:
            is_over.set()
            for thread in (listening, *threads):
                thread.join()


def _is_asked_for(plain: socket.socket) -> bool:
    while True:
        length, request = struct.unpack("!II", plain.recv(8).ljust(8, b"\0"))
        if length == 8 and request == _GSS_REQUEST:
            plain.sendall(b"N")
            continue
        if length == 8 and request == _SSL_REQUEST:
            plain.sendall(b"S")
            return True
        plain.sendall(b"E" + struct.pack("!I", len(_NO_ENCRYPTION) + 4) + _NO_ENCRYPTION)
        return False


def _pass_on(outside: ssl.SSLSocket, inside: socket.socket, is_over: threading.Event) -> None:
    """Pass bytes both ways until either side has ended; one thread, as a TLS socket is not for two."""
    other = {outside: inside, inside: outside}
    while not is_over.is_set():
        for side in [outside] if outside.pending() else select.select([outside, inside], [], [], 0.05)[0]:
            if not (data := side.recv(1 << 16)):
                return
            other[side].sendall(data)
