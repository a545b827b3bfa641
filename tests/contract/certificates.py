"""Certificates for tests, made by openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path


class Authority:
    """A certificate authority of the test's own."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder / name
        self._folder.mkdir()
        self.roots = self._folder / "ca.pem"
        self._key = self._folder / "ca.key"
        _openssl("req", "-x509", *_NEW_KEY, "-keyout", self._key, "-out", self.roots, "-days", "2", "-subj", f"/CN={name}")

    def issue(self, name: str, *, names: str = "DNS:localhost,IP:127.0.0.1") -> tuple[Path, Path]:
        """Certificate and key of `name`, good for the alternative names, by default this machine's loopback."""
        key, request, cert = (self._folder / f"{name}.{ending}" for ending in ("key", "csr", "pem"))
        extension = self._folder / "san.cnf"
        extension.write_text(f"subjectAltName={names}\n")
        _openssl("req", *_NEW_KEY, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        _openssl(
            "x509", "-req", "-in", request, "-CA", self.roots, "-CAkey", self._key, "-CAcreateserial", "-out", cert, "-days", "2",
            "-extfile", extension,
        )  # fmt: skip
        return cert, key


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
