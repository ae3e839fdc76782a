"""`python -m circadia` is the same as `circadia`; torchrun starts it that way."""

from circadia.cli import app

app()
