"""Damage for the fuzz: of bytes, of JSON and YAML, of arrays, of MP4 boxes and of packets.

Everything is drawn from the generator that is given, so a trial can be repeated from its seed.
"""

import copy
import io
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

Mutator = Callable[[bytes, random.Random], bytes]

WILD_NUMBERS = [
    b"\x00\x00\x00\x00",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x80\x00\x00\x00",
    b"\x00\x00\x00\x01",
    b"\x00\x01\x00\x00",
    b"\x3f\xff\xff\xff",
]
# Written as text: json.dumps would refuse some of them, readers must not fall over any.
WILD_VALUES = [
    "null",
    "true",
    "-1",
    "0",
    "1e400",
    "-1e308",
    "NaN",
    "Infinity",
    str(2**63),
    str(10**400),
    "0.5",
    '""',
    '" "',
    '"\\u0000"',
    '"\\u001b[31mred\\u0007"',
    '"[/b] [red]x"',
    '"../../escape"',
    '"\\ud800"',
    '"=1+1"',
    '"' + "long " * 4000 + '"',
    "[]",
    "{}",
    "[[]]",
    "[null]",
    "[[0, 0]]",
    "[[5, 1]]",
    '[["a", "b"]]',
    "[1, 2, 3]",
    "[" * 3000 + "]" * 3000,
    '{"a": {"b": 1}}',
]


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, repeat, drop or overwrite one to eight places."""
    damaged = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 3, 8])):
        if not damaged:
            break
        at = rng.randrange(len(damaged))
        if rng.random() < 0.4:  # headers decide most
            at = min(at, rng.randrange(min(len(damaged), 512)))
        length = rng.choice([1, 4, 16, 188, 2048])
        kind = rng.randrange(8)
        if kind == 0:
            damaged[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            damaged[at : at + length] = rng.randbytes(length)
        elif kind == 2:
            del damaged[at : at + length]
        elif kind == 3:
            damaged[at:at] = damaged[at : at + length] * rng.choice([1, 2, 50])
        elif kind == 4:
            damaged[at : at + 4] = rng.choice(WILD_NUMBERS)
        elif kind == 5:
            damaged[at : at + length] = bytes(len(damaged[at : at + length]))
        elif kind == 6:
            other = rng.randrange(len(damaged))
            damaged[at : at + length] = damaged[other : other + length]
        elif rng.random() < 0.3:
            del damaged[at:]
    return bytes(damaged)


def damage_document(data: bytes, rng: random.Random) -> bytes:
    """Replace, drop, repeat or rename values inside JSON, JSON Lines or YAML; or bytes of it."""
    text = data.decode()
    if rng.random() < 0.15:
        return damage_bytes(data, rng)
    lines = text.splitlines()
    if lines and text.startswith("{") and all(line.startswith("{") for line in lines):
        at = rng.randrange(len(lines))
        lines[at] = _damaged_json(json.loads(lines[at]), rng)
        if rng.random() < 0.2:
            lines.append(rng.choice(lines))
        return "\n".join(lines).encode(errors="surrogatepass")
    is_json = text.lstrip().startswith(("{", "["))
    document = json.loads(text) if is_json else yaml.safe_load(text)
    return _damaged_json(document, rng).encode(errors="surrogatepass")


def _damaged_json(document: Any, rng: random.Random) -> str:
    document = copy.deepcopy(document)
    wild: list[str] = []
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        places = _places(document)
        if not places:
            break
        holder, key = rng.choice(places)
        kind = rng.randrange(7)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, list):
            holder.extend([holder[key]] * rng.choice([1, 3, 200]))
        elif kind == 1:
            holder["unknown" + str(rng.randrange(9))] = holder.pop(key)
        elif kind == 2:
            holder[key] = [holder[key]]
        elif kind == 3:
            holder[key] = str(holder[key])
        else:
            # A mark that stands for itself until all is written.
            holder[key] = f"@wild{len(wild)}@"
            wild.append(rng.choice(WILD_VALUES))
    text = json.dumps(document)
    for number, value in enumerate(wild):
        text = text.replace(f'"@wild{number}@"', value)
    return text


def _places(document: Any) -> list[tuple[Any, Any]]:
    """Every (holder, key) of a document; of long lists the first entries."""
    found: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else range(min(len(holder), 6))
        for key in keys:
            found.append((holder, key))
            if isinstance(holder[key], dict | list):
                waiting.append(holder[key])
    return found


def damage_text(data: bytes, rng: random.Random) -> bytes:
    """Damage the bytes of lines, or put a line of hostile characters among them."""
    if rng.random() < 0.5:
        return damage_bytes(data, rng)
    lines = data.split(b"\n")
    hostile = [
        b"\x1b]0;title\x07",
        b"[/b] [red]",
        b"\x00",
        b"\xff\xfe",
        b"," * 3000,
        b'"',
        b"1e999",
    ]
    for _ in range(rng.choice([1, 2, 5])):
        at = rng.randrange(len(lines))
        parts = lines[at].split(b",")
        parts[rng.randrange(len(parts))] = rng.choice(hostile)
        lines[at] = b",".join(parts)
    return b"\n".join(lines)


def damage_arrays(data: bytes, rng: random.Random) -> bytes:
    """Change values, shape, type or name of an array of an .npz file; or bytes of it."""
    if rng.random() < 0.4:
        return damage_bytes(data, rng)
    with np.load(io.BytesIO(data)) as file:
        arrays = {name: file[name] for name in file.files}
    name = rng.choice(list(arrays))
    array = arrays[name]
    kind = rng.randrange(6)
    if kind == 0 and array.dtype.kind == "f" and array.size:
        array = array.copy()
        array.flat[rng.randrange(array.size)] = rng.choice([np.nan, np.inf, -1e38])
    elif kind == 1:
        array = array[..., None] if rng.random() < 0.5 else array.reshape(-1)
    elif kind == 2:
        array = array.astype(rng.choice(["<U8", "int8", "float64", "bool", "complex64"]))
    elif kind == 3:
        array = array[: rng.randrange(3)]
    elif kind == 4:
        array = np.broadcast_to(array[:1], (rng.choice([9, 4000]), *array.shape[1:]))
    else:
        arrays[f"x{name}"] = arrays.pop(name)
        name = f"x{name}"
    arrays[name] = array
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def damage_tensors(data: bytes, rng: random.Random) -> bytes:
    """Change the header of a safetensors file, a few of its values, or any bytes."""
    kind = rng.randrange(3)
    if kind == 0:
        return damage_bytes(data, rng)
    (length,) = struct.unpack("<Q", data[:8])
    if kind == 1:
        header = _damaged_json(json.loads(data[8 : 8 + length]), rng)
        changed = header.encode(errors="surrogatepass")
        return struct.pack("<Q", len(changed)) + changed + data[8 + length :]
    damaged = bytearray(data)
    at = 8 + length + 4 * rng.randrange((len(data) - 8 - length) // 4)
    damaged[at : at + 4] = struct.pack("<f", rng.choice([np.nan, np.inf, 1e38, -1e30]))
    return bytes(damaged)


def damage_checkpoint(data: bytes, rng: random.Random) -> bytes:
    """Replace or drop values anywhere in the state of a training; or damage bytes of its file."""
    if rng.random() < 0.3:
        return damage_bytes(data, rng)
    state = torch.load(io.BytesIO(data), weights_only=True)
    for _ in range(rng.choice([1, 1, 2])):
        holder, key = rng.choice(_places(state))
        old = holder[key]
        wild: list[Any] = [None, True, -1, 2**63, float("nan"), "x", "\x1b[31m", [], {}, [[0]]]
        wild += [torch.zeros(0), torch.full((3, 2), torch.inf)]
        if isinstance(old, torch.Tensor):
            wild += [old.double(), old[..., None], torch.full_like(old, torch.nan), -old]
        if rng.random() < 0.2:
            del holder[key]
        else:
            holder[key] = rng.choice(wild)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


_BOXES = [b"stts", b"ctts", b"stsz", b"stco", b"stsc", b"mdhd", b"mvhd", b"tkhd", b"elst", b"stsd"]


def damage_video(data: bytes, rng: random.Random) -> bytes:
    """Damage bytes anywhere, or numbers in the tables of an MP4 file, or join parts."""
    kind = rng.randrange(4)
    boxes = [data.find(box) for box in _BOXES if box in data]
    if kind == 0 and boxes:
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 1, 2, 4])):
            at = rng.choice(boxes) + 4 * rng.randrange(1, 16)
            wild = [*WILD_NUMBERS, struct.pack(">I", rng.randrange(2**31))]
            damaged[at : at + 4] = rng.choice(wild)
        return bytes(damaged)
    if kind == 1 and rng.random() < 0.5:
        half = len(data) // 2
        return rng.choice([data + data, data[half:] + data[:half], data[:half] * 2])
    return damage_bytes(data, rng)


MUTATORS: dict[str, Mutator] = {
    ".json": damage_document,
    ".jsonl": damage_document,
    ".yaml": damage_document,
    ".txt": damage_text,
    ".csv": damage_text,
    ".npz": damage_arrays,
    ".safetensors": damage_tensors,
    ".ckpt": damage_checkpoint,
}


def damage_file(source: Path, target: Path, rng: random.Random) -> None:
    """Write a damaged copy of a file, by what its ending says it holds."""
    mutator = MUTATORS.get(source.suffix, damage_video)
    data = source.read_bytes()
    if source.suffix in (".h5", ".gz"):
        mutator = damage_bytes
    target.write_bytes(mutator(data, rng))
