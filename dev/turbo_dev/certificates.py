"""The few keys and certificates of a cluster, made by openssl."""

from __future__ import annotations

from pathlib import Path

from .shell import run

_DAYS = "3650"
_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def authority(directory: Path) -> None:
    """Write ca.crt and ca.key."""
    run(
        [
            "openssl",
            "req",
            "-x509",
            *_NEW_KEY,
            "-days",
            _DAYS,
            "-subj",
            "/CN=turbo-embedded",
            "-addext",
            "basicConstraints=critical,CA:TRUE",
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",
            "-keyout",
            directory / "ca.key",
            "-out",
            directory / "ca.crt",
        ]
    )


def server(directory: Path, name: str, names: list[str], addresses: list[str]) -> None:
    """Write NAME.crt and NAME.key for a server that is called by these DNS names and IP addresses."""
    alternatives = ",".join([f"DNS:{each}" for each in names] + [f"IP:{each}" for each in addresses])
    _signed(directory, name, f"/CN={name}", f"subjectAltName={alternatives}\nextendedKeyUsage=serverAuth\n")


def client(directory: Path, name: str, user: str, group: str) -> None:
    """Write NAME.crt and NAME.key that Kubernetes reads as `user` in `group`."""
    _signed(directory, name, f"/O={group}/CN={user}", "extendedKeyUsage=clientAuth\n")


def signing_key(directory: Path, name: str) -> None:
    """Write NAME.key and NAME.pub, for service-account tokens."""
    run(["openssl", "genrsa", "-out", directory / f"{name}.key", "2048"])
    run(["openssl", "rsa", "-in", directory / f"{name}.key", "-pubout", "-out", directory / f"{name}.pub"])


def _signed(directory: Path, name: str, subject: str, extensions: str) -> None:
    request = directory / f"{name}.csr"
    wanted = directory / f"{name}.ext"
    wanted.write_text(
        "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n"
        "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n" + extensions,
        encoding="ascii",
    )
    run(
        ["openssl", "req", *_NEW_KEY, "-subj", subject, "-keyout", directory / f"{name}.key", "-out", request]
    )
    run(
        [
            "openssl",
            "x509",
            "-req",
            "-in",
            request,
            "-days",
            _DAYS,
            "-extfile",
            wanted,
            "-CAcreateserial",
            "-CA",
            directory / "ca.crt",
            "-CAkey",
            directory / "ca.key",
            "-out",
            directory / f"{name}.crt",
        ]
    )
    request.unlink()
    wanted.unlink()
