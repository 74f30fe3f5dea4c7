#!/usr/bin/env python3
"""Writes corpus/record: exported sequences (engine/store/record.h), whole and damaged. The checksum is left 0: the target sets it.

usage: make_record_seeds.py   from anywhere
"""
import struct
from pathlib import Path

FOLDER = Path(__file__).parent / "corpus/record"
MODEL, META, TOKENS, KEY, UNKNOWN = 1, 2, 3, 4, 77


def export(sections, version=1, n_sections=None, shift=0):
    """sections: (id, flags, bytes). shift: what all offsets are wrong by."""
    at = 24 + 24 * len(sections)
    table, body = b"", b""
    for number, flags, data in sections:
        table += struct.pack("<IIQQ", number, flags, (at + len(body) + shift) % 2**64, len(data))
        body += data
    n = len(sections) if n_sections is None else n_sections
    return b"PERCHSEQ" + struct.pack("<IIQ", version, n, at + len(body) + 8) + table + body + bytes(8)


model = (MODEL, 1, b"llama layers=2 heads=4 hidden=64 vocab=512 weights=0123456789abcdef")
meta = (META, 1, struct.pack("<QQQ", 3, 1700000000000, 1700000001000))
tokens = (TOKENS, 1, struct.pack("<6i", 1, 5, 7, 400, 2, 511))
key = (KEY, 0, b"user-42")
seeds = {
    "whole": export([model, meta, tokens]),
    "with_key": export([model, meta, tokens, key]),
    "no_tokens": export([model, meta, (TOKENS, 1, b"")]),
    "unknown_section": export([model, meta, tokens, (UNKNOWN, 0, b"later")]),
    "near_unknown_required": export([model, meta, tokens, (UNKNOWN, 1, b"later")]),
    "near_later_version": export([model, meta, tokens], version=2),
    "near_no_model": export([meta, tokens]),
    "near_twice": export([model, meta, tokens, tokens]),
    "near_half_a_token": export([model, meta, (TOKENS, 1, b"abcde")]),
    "near_short_meta": export([model, (META, 1, b"short"), tokens]),
    "near_too_many": export([model, meta, tokens], n_sections=1 << 31),
    "near_outside": export([model, meta, tokens], shift=1 << 40),
    "near_wraps": export([model, meta, tokens], shift=-(24 + 72) - 10),
    "near_cut": export([model, meta, tokens])[:90],
}
FOLDER.mkdir(parents=True, exist_ok=True)
for name, data in seeds.items():
    (FOLDER / name).write_bytes(data)
