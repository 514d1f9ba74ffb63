"""Ports that nobody listens on."""

import socket

import pytest

from tlray.cluster import ports


def test_ports_are_different_and_free():
    found = ports.free_ports(20)
    assert len(set(found)) == 20
    for port in found:
        assert ports.FIRST <= port < ports.END
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", port))


def test_a_block_has_no_port_that_somebody_listens_on(monkeypatch):
    first = ports.free_block(4)
    monkeypatch.setattr(ports, "FIRST", first)
    monkeypatch.setattr(ports, "END", first + 5)  # one block of four remains to be found: the first
    assert ports.free_block(4) == first
    with socket.socket() as listener:
        # As Serve's proxies listen, which would share the port with another one of the same user.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", first + 3))
        listener.listen()
        with pytest.raises(OSError, match=f"no 4 free consecutive ports were found between {first} and {first + 5}"):
            ports.free_block(4)
