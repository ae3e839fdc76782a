"""The command line. One file a command; imports of torch and transformers stay inside the functions."""

from circadia.cli.app import app

__all__ = ["app"]
