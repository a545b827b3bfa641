"""`python -m accord.rpc.probe ADDRESS`: asks one server for its health, once; exit code 0 where it is SERVING.

For Kubernetes before 1.24, which has no gRPC probes, and for servers with TLS, whose health the kubelet cannot ask for. What does not belong
here: waiting for a service that starts (`accord.rpc.channels.wait_ready`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from accord.errors import AccordError
from accord.rpc.channels import ChannelTls, wait_ready


def main(arguments: Sequence[str] | None = None) -> int:
    """Asks, and returns the exit code: 0 SERVING, 1 not, with the reason on stderr."""
    given = _parser().parse_args(arguments)
    tls = ChannelTls(ca=given.ca, cert=given.cert, key=given.key, server_name=given.server_name) if given.ca else None
    try:
        wait_ready(given.address, given.service, given.timeout, tls=tls)
    except AccordError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m accord.rpc.probe", description="Asks a server for its health.")
    parser.add_argument("address", help="host:port or unix:/path")
    parser.add_argument(
        "--service", default="", help="full name of a service, `live` for whether the process answers; default: the server as a whole"
    )
    parser.add_argument("--timeout", type=float, default=3.0, help="seconds to wait for SERVING")
    parser.add_argument("--ca", type=Path, help="PEM roots of the server's certificate; turns TLS on")
    parser.add_argument("--cert", type=Path, help="PEM client certificate, for mutual TLS")
    parser.add_argument("--key", type=Path, help="PEM key of the client certificate")
    parser.add_argument("--server-name", help="name to expect in the certificate")
    return parser


if __name__ == "__main__":
    sys.exit(main())
