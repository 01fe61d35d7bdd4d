"""Checks of one configuration value: each returns what would be right, or None when the value is fine."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from intellect_jax.models.lora_shape import TARGETS

Check = Callable[[Any], str | None]


def at_least(low) -> Check:
    return lambda value: None if value >= low else f"at least {low}"


def zero_or_at_least(low) -> Check:
    return lambda value: None if value == 0 or value >= low else f"0, or at least {low}"


def between(low, high) -> Check:
    return lambda value: None if low <= value <= high else f"between {low} and {high}"


def share(value) -> str | None:
    return None if 0.0 <= value < 1.0 else "at least 0.0 and less than 1.0"


def axis_size(value) -> str | None:
    return None if value == -1 or value >= 1 else "at least 1, or -1"


def texts(value: Any) -> str | None:
    return None if all(isinstance(text, str) for text in value) else "a tuple of texts"


def segment_length(value) -> str | None:
    return None if value == 0 or value >= 4 else "at least 4, or 0"


def above(low) -> Check:
    return lambda value: None if value > low else f"greater than {low}"


def one_of(*choices) -> Check:
    return lambda value: None if value in choices else "one of " + ", ".join(map(str, choices))


def increasing(value) -> str | None:
    good = len(value) > 0 and all(isinstance(v, int) and v > 0 for v in value) and tuple(sorted(value)) == tuple(value)
    return None if good else "a tuple of increasing positive integers"


def address_parts(address: str, scheme: str) -> tuple[str, int] | None:
    """(host, port) of ``scheme://host:port``, or None when the text is not of that form."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    return (host, port) if parts.scheme == scheme and host and port else None


def tcp_address(value) -> str | None:
    return None if not value or address_parts(value, "tcp") else "tcp://host:port, or empty to choose a port"


def host_port(value) -> str | None:
    return None if not value or address_parts(f"tcp://{value}", "tcp") else "host:port, or empty"


def http_address(value) -> str | None:
    return None if not value or address_parts(value, "http") else "http://host:port, or empty to choose a port"


def http_addresses(value) -> str | None:
    good = all(isinstance(url, str) and any(address_parts(url, s) for s in ("http", "https")) for url in value)
    return None if good else "a tuple of http://host:port, or empty to choose ports"


def tensorboard(value) -> str | None:
    missing = value and find_spec("tensorboardX") is None
    return "False until tensorboardX is there: pip install 'intellect-jax[tensorboard]'" if missing else None


def lora_targets(value) -> str | None:
    good = all(target in TARGETS and value.count(target) == 1 for target in value)
    return None if good else f"a tuple of different words out of {', '.join(TARGETS)}"


def environments(value) -> str | None:
    fields = {"name", "ratio", "args"}
    good = all(isinstance(e, dict) and set(e) == fields and _is_environment(**e) for e in value)
    good = good and len({e["name"] for e in value}) == len(value)
    return None if good else "a tuple of env('name', ratio=…, **arguments), each name once, with ratios above 0"


def _is_environment(name: Any, ratio: Any, args: Any) -> bool:
    named = isinstance(name, str) and bool(name) and isinstance(args, dict)
    return named and isinstance(ratio, (int, float)) and ratio > 0
