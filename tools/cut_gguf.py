#!/usr/bin/env python3
"""Copies a GGUF golden without the tensors that are no part of its MoE layers.

usage: cut_gguf.py SOURCE_DIR TARGET_DIR
Reads SOURCE_DIR/model.gguf (version 3, little endian) and moe_io.safetensors; needs only Python.
Metadata and the blocks of routers and experts are copied byte for byte.
"""
import shutil
import struct
import sys
from pathlib import Path

SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
ALIGNMENT = 32


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def number(self, code):
        size = struct.calcsize(code)
        value = struct.unpack_from("<" + code, self.data, self.at)[0]
        self.at += size
        return value

    def text(self):
        size = self.number("Q")
        self.at += size
        return self.data[self.at - size:self.at]

    def skip_value(self, kind):
        if kind == 8:
            self.text()
        elif kind == 9:
            inner, count = self.number("I"), self.number("Q")
            for _ in range(count):
                self.skip_value(inner)
        else:
            self.at += SCALARS[kind]


def aligned(offset):
    return -(-offset // ALIGNMENT) * ALIGNMENT


def main():
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    reader = Reader((source / "model.gguf").read_bytes())
    magic, version = reader.number("I"), reader.number("I")
    assert magic == 0x46554747 and version == 3
    num_tensors, num_keys = reader.number("Q"), reader.number("Q")
    keys_begin = reader.at
    for _ in range(num_keys):
        assert reader.text() != b"general.alignment"
        reader.skip_value(reader.number("I"))
    keys = reader.data[keys_begin:reader.at]
    tensors = []
    for _ in range(num_tensors):
        name = reader.text()
        shape = [reader.number("Q") for _ in range(reader.number("I"))]
        tensors.append((name, shape, reader.number("I"), reader.number("Q")))
    base = aligned(reader.at)
    ends = sorted(t[3] for t in tensors)[1:] + [len(reader.data) - base]
    data = {}
    for (name, _, _, offset), end in zip(sorted(tensors, key=lambda t: t[3]), ends):
        data[name] = reader.data[base + offset:base + end]
    kept = [t for t in tensors if b"_exps" in t[0] or b"ffn_gate_inp" in t[0]]
    head = struct.pack("<IIQQ", magic, version, len(kept), num_keys) + keys
    body = b""
    for name, shape, kind, _ in kept:
        body += b"\0" * (aligned(len(body)) - len(body))
        head += struct.pack("<Q", len(name)) + name + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}QIQ", *shape, kind, len(body))
        body += data[name]
    target.mkdir(parents=True, exist_ok=True)
    (target / "model.gguf").write_bytes(head + b"\0" * (aligned(len(head)) - len(head)) + body)
    shutil.copyfile(source / "moe_io.safetensors", target / "moe_io.safetensors")


if __name__ == "__main__":
    main()
