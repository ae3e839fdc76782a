"""Mixers: the memory that mixes tokens in a block. A new one is one file and one row of ``table.MIXERS``."""
