"""`accord`, and `python -m accord.cli`."""

from __future__ import annotations

from accord.cli.app import build_app


def main() -> None:
    """Runs the command line of this process and ends it."""
    build_app()(prog_name="accord")


if __name__ == "__main__":
    main()
