"""Damage to bytes and to documents that needs no knowledge of what they mean. All of it is by a seeded generator."""

import copy
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import Any

Damage = Callable[[bytes, Random], bytes]


def truncate(content: bytes, random: Random) -> bytes:
    return content[: random.randrange(len(content))]


def flip_bits(content: bytes, random: Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(random.randint(1, 8)):
        damaged[_position(content, random)] ^= 1 << random.randrange(8)
    return bytes(damaged)


def insert(content: bytes, random: Random) -> bytes:
    at = _position(content, random)
    return content[:at] + random.randbytes(random.randint(1, 64)) + content[at:]


def delete(content: bytes, random: Random) -> bytes:
    at = _position(content, random)
    return content[:at] + content[at + random.randint(1, 64) :]


def duplicate(content: bytes, random: Random) -> bytes:
    at = _position(content, random)
    part = content[at : at + random.randint(1, 512)]
    return content[: at + len(part)] + part + content[at + len(part) :]


def overwrite_number(content: bytes, random: Random) -> bytes:
    """As if a length or an offset were damaged."""
    at = _position(content, random)
    number = random.choice([b"\0", b"\xff", b"\x7f", b"\x80"]) * random.choice([1, 4, 8])
    return content[:at] + number + content[at + len(number) :]


def swap(content: bytes, random: Random) -> bytes:
    first, second = sorted(_position(content, random) for _ in range(2))
    return content[second:] + content[first:second] + content[:first]


BYTES: Mapping[str, Damage] = {
    "truncated": truncate,
    "bits flipped": flip_bits,
    "bytes inserted": insert,
    "bytes deleted": delete,
    "bytes doubled": duplicate,
    "number overwritten": overwrite_number,
    "parts swapped": swap,
}
REPLACED: Mapping[str, bytes] = {
    "empty": b"",
    "zeros": bytes(1000),
    "text": b"not what you think\n",
    "an error page": b"<!DOCTYPE html><html><body>404</body></html>",
    "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "random": Random(1).randbytes(3000),
}


def _position(content: bytes, random: Random) -> int:
    """Half of the time near the beginning: most of a large file is weights."""
    return random.randrange(min(len(content), 1500) if random.random() < 0.5 else len(content))


WRONG: Mapping[str, Any] = {
    "null": None,
    "true": True,
    "minus one": -1,
    "zero": 0,
    "2**31": 2**31,
    "2**63": 2**63,
    "10**400": 10**400,
    "nan": float("nan"),
    "infinity": float("-inf"),
    "1e308": 1e308,
    "no text": "",
    "text": "x",
    "long text": "x" * 70_000,
    "a zero byte": "a\0b",
    "an escape": "\x1b[31m\n\nerror: no",
    "accents": "\u00e9\u4e2d\U0001f600",
    "half a character": "\ud800",
    "list": [],
    "lists": [[[1, 2], [3]], []],
    "mapping": {},
    "mappings": {"a": {"b": {"c": 1}}},
    "path up": "../../../../etc/passwd",
}


def with_wrong_values(document: Any, random: Random, count: int) -> Iterator[tuple[str, Any]]:
    """Copies of a document, each with one value at a random place that has another type or no sensible size."""
    places = list(_places(document))
    names = list(WRONG)
    for number in range(count):
        name = names[number % len(names)]
        path = random.choice(places)
        changed = copy.deepcopy(document)
        holder = changed
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = WRONG[name]
        yield f"{'.'.join(map(str, path))} is {name}", changed


def without_a_key(document: Any, random: Random, count: int) -> Iterator[tuple[str, Any]]:
    """Copies of a document, each without one of its keys, or with one that nobody knows."""
    places = [path for path in _places(document) if isinstance(path[-1], str)]
    for number in range(count):
        path = random.choice(places)
        changed = copy.deepcopy(document)
        holder = changed
        for key in path[:-1]:
            holder = holder[key]
        value = holder.pop(path[-1])
        if number % 2:
            holder[f"{path[-1]}s"] = value
        yield f"{'.'.join(map(str, path))} is {'another key' if number % 2 else 'missing'}", changed


def _places(document: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    entries = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in entries:
        yield (*before, key)
        if isinstance(value, dict | list):
            yield from _places(value, (*before, key))


def encodings(text: str) -> Iterator[tuple[str, bytes]]:
    """A text in encodings that nobody expects, with and without what it needs."""
    yield "UTF-16", text.encode("utf-16")
    yield "UTF-16 without a mark", text.encode("utf-16-be")
    yield "UTF-32", text.encode("utf-32")
    yield "Latin-1", b"# \xe9\xff\n" + text.encode()
    yield "a byte order mark", b"\xef\xbb\xbf" + text.encode()
    yield "a zero byte", text.encode().replace(b":", b":\0", 1)
    yield "line ends of Windows", text.replace("\n", "\r\n").encode()
    yield "control characters", text.encode() + b"\x07\x1b\x9b"


def nestings(opening: str, closing: str) -> Iterator[tuple[str, bytes]]:
    """Documents of one value inside the other, closed and not."""
    yield "10,000 nested lists", ("[" * 10_000 + "]" * 10_000).encode()
    yield "100,000 open lists", b"[" * 100_000
    yield "10,000 nested mappings", (opening * 10_000 + "1" + closing * 10_000).encode()


def json_texts(document: Any) -> Iterator[tuple[str, bytes]]:
    """What `json.dumps` cannot write."""
    text = json.dumps(document)
    first = next(iter(document))
    yield "a key twice", text.replace("{", f'{{"{first}": [], ', 1).encode()
    yield "a number of 5,000 digits", text.replace(": 1,", f": {'9' * 5000},", 1).encode()
    yield "an infinite number", text.replace(": 1,", ": 1e999,", 1).encode()
    yield "a comma too many", text[:-1].encode() + b",}"
    yield "two documents", (text + text).encode()
    yield "a list", json.dumps([document]).encode()
    yield from encodings(text)
    yield from nestings('{"a":', "}")


def yaml_texts(text: str) -> Iterator[tuple[str, bytes]]:
    """What `yaml.safe_dump` does not write."""
    first = text.partition(":")[0]
    laughs = "a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]\n"
    laughs += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    few = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 2)}]\n" for i in range(1, 15))
    yield "a billion laughs", laughs.encode()
    yield "thirty aliases", (f"a0: &a0 [ha]\n{few}").encode()
    yield "an alias of itself", b"model: &m {name: m, more: *m}\n"
    yield "an alias of the whole", b"&all\nmodel: *all\n"
    yield "merged mappings", b"a: &a {b: 1}\n<<: [*a, *a]\nmodel: {<<: *a}\n"
    yield "a merge of no mapping", b"<<: 1\n"
    yield "a key twice", f"{first}: 1\n{text}".encode()
    yield "a list as a key", f"? [1, 2]\n: 1\n{text}".encode()
    yield "a number as a key", f"1: 1\n1.5: 2\nnull: 3\n{text}".encode()
    yield "a number of 5,000 digits", f"{first}: {'9' * 5000}\n".encode()
    yield "a number of 5,000 hexadecimal digits", f"{first}: 0x{'f' * 5000}\n".encode()
    yield "a date that is none", f"{first}: 2020-13-45\n".encode()
    yield "a date", f"{first}: 2020-01-05 10:11:12 +99:99\n".encode()
    yield "a tag of Python", f"{first}: !!python/object/apply:os.system [true]\n".encode()
    yield "a tag of its own", f"{first}: !secret x\n".encode()
    yield "bytes", f"{first}: !!binary ////\n".encode()
    yield "a set", f"{first}: !!set {{a, b}}\n".encode()
    yield "two documents", f"{text}---\n{text}".encode()
    yield "base 60", f"{first}: 190:20:30\n".encode()
    yield "tabs", text.replace("  ", "\t").encode()
    yield "a long line", f"{first}: {'x ' * 200_000}\n".encode()
    yield "large", text.encode() + b"# more\n" * 200_000
    yield from encodings(text)
    yield from nestings("{a: ", "}")


def little_endian(number: int) -> bytes:
    return struct.pack("<Q", number)
