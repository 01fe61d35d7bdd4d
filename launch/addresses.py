"""Where the roles of one machine find each other: free ports for the addresses that the configuration leaves empty."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack, suppress

from ml_collections import ConfigDict

from intellect_jax.config.checks import address_parts
from intellect_jax.errors import UserError
from launch.configuration import assign

LOCAL = "127.0.0.1"
# Below those that systems give to outgoing connections, one of which could take a port before its server listens.
_PORTS = range(15_000, 32_768)


def choose(config: ConfigDict) -> None:
    """Fills every empty address with a free local port and notes in ``launch.chosen`` which ones.

    What an earlier start chose (the configuration may come from its config.json) is chosen anew.
    """
    needed = {
        "orchestrator.address": 1,
        "environments.address": 1,
        "sampler.urls": config.sampler.num_servers,
    }
    config.distributed.processes = max(1, config.distributed.processes)  # those of a cluster are not started here
    if config.distributed.processes > 1:
        needed["distributed.coordinator"] = 1
    if config.weights.transport != "folder":
        needed["weights.address"] = 1
    empty = [name for name in needed if not given(config, name)]
    ports = iter(free_ports(sum(needed[name] for name in empty)))
    for name in empty:
        if name == "sampler.urls":
            assign(config, name, tuple(f"http://{LOCAL}:{next(ports)}" for _ in range(needed[name])))
        elif name == "distributed.coordinator":
            assign(config, name, f"{LOCAL}:{next(ports)}")
        else:
            scheme = "http" if name == "weights.address" else "tcp"
            assign(config, name, f"{scheme}://{LOCAL}:{next(ports)}")
    config.launch.chosen = tuple(empty)


def refuse_taken(config: ConfigDict) -> None:
    """Raises UserError when an address that the user gave for a role of this machine is taken."""
    listening = [name for name in ("orchestrator.address", "environments.address") if given(config, name)]
    addresses = [_value(config, name) for name in listening]
    if len(set(addresses)) < len(addresses):
        raise UserError(f"{listening[0]}={addresses[0]}: must differ from {listening[1]}, both are listened on")
    for name, address in zip(listening, addresses, strict=True):
        refuse_unlistenable(name, address)


def refuse_taken_by_weights(config: ConfigDict) -> None:
    """Raises UserError when the trainer could not serve versions where the user wants them."""
    if config.weights.transport != "folder" and given(config, "weights.address"):
        refuse_unlistenable("weights.address", config.weights.address)


def given(config: ConfigDict, name: str) -> bool:
    """Whether the user, not a launcher, named this address."""
    return bool(_value(config, name)) and name not in config.launch.chosen


def free_ports(count: int) -> list[int]:
    """Different TCP ports that nobody listens on now. Held together while choosing, so that none comes twice.

    Raises UserError where there are none.
    """
    found: list[int] = []
    with ExitStack() as held:
        for port in random.SystemRandom().sample(_PORTS, min(len(_PORTS), 100 + 2 * count)):
            if len(found) == count:
                break
            with suppress(OSError):
                held.enter_context(socket.socket()).bind((LOCAL, port))
                found.append(port)
    if len(found) < count:
        raise UserError(f"of ports {_PORTS.start} to {_PORTS.stop - 1} no {count} are free: name the roles' addresses")
    return found


def refuse_unlistenable(name: str, address: str) -> None:
    """Raises UserError when a role could not listen on ``scheme://host:port`` here."""
    parts = address_parts(address, address.partition("://")[0])
    assert parts is not None, address  # the configuration is checked
    host, port = parts
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: TIME_WAIT is no hindrance
        try:
            probe.bind((LOCAL if host == "localhost" else "" if host == "*" else host, port))
        except OSError as error:
            raise UserError(
                f"{name}={address}: cannot listen there: {error.strerror}; leave it empty to choose a port"
            ) from None


def _value(config: ConfigDict, name: str):
    group, last = name.split(".")
    return config[group][last]
