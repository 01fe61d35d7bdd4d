import socket

import pytest

from intellect_jax import config as schema
from intellect_jax.errors import UserError
from launch import addresses


def test_empty_addresses_get_free_ports_anew_at_each_start():
    config = schema.default_config()
    config.sampler.num_servers = 3
    addresses.choose(config)
    first = [config.orchestrator.address, config.environments.address, *config.sampler.urls]
    ports = {address.rpartition(":")[2] for address in first}
    assert len(ports) == 5
    assert set(config.launch.chosen) == {"orchestrator.address", "environments.address", "sampler.urls"}
    again = schema.from_plain(schema.to_plain(config))  # as when a run is resumed from its config.json
    again.sampler.num_servers = 1
    addresses.choose(again)
    assert len(again.sampler.urls) == 1


def test_given_addresses_stay():
    config = schema.default_config()
    config.sampler.urls = ("http://elsewhere:8000",)
    addresses.choose(config)
    assert config.sampler.urls == ("http://elsewhere:8000",)
    assert addresses.given(config, "sampler.urls") and not addresses.given(config, "orchestrator.address")


def test_a_taken_port_is_told():
    config = schema.default_config()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config.orchestrator.address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match="Address already in use"):
            addresses.refuse_taken(config)
    addresses.refuse_taken(config)
    config.launch.chosen = ("orchestrator.address",)  # chosen anew at the next start: nobody needs that port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(config.orchestrator.address.rpartition(":")[2])))
        taken.listen()
        addresses.refuse_taken(config)


def test_one_address_for_two_listeners_is_told():
    config = schema.default_config()
    config.orchestrator.address = config.environments.address = "tcp://127.0.0.1:5000"
    with pytest.raises(UserError, match=r"must differ from environments\.address"):
        addresses.refuse_taken(config)


@pytest.mark.parametrize("address", ["localhost:5000", "tcp://host", "http://a:1", "tcp://a:many", "tcp://a:70000"])
def test_a_malformed_address_is_told(address):
    config = schema.default_config()
    config.orchestrator.address = address
    assert schema.validate(config) == [
        f"orchestrator.address={address!r}: must be tcp://host:port, or empty to choose a port"
    ]


def test_free_ports_are_none_that_outgoing_connections_get(monkeypatch):
    """Else one of these may take it before the server listens: seen in a test of the sampler."""
    ports = addresses.free_ports(50)
    assert len(set(ports)) == 50 and max(ports) < 32_768
    assert addresses.free_ports(0) == []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setattr(addresses, "_PORTS", range(port, port + 1))
        with pytest.raises(UserError, match="no 1 are free"):
            addresses.free_ports(1)
    assert addresses.free_ports(1) == [port]
