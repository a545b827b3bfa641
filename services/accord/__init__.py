"""Accord: gRPC services and a command line that align language models with preferences."""

__version__ = "0.1.0"
