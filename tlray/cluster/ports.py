"""Finds free TCP ports on this machine, for processes that must be given their ports before they start."""

import random
import socket

FIRST, END = 20_000, 30_000
"""Range of ports that are tried, `END` excluded.

It lies below Linux's ephemeral ports, which any outgoing connection may take, and does not include the ports of Ray's
workers and Serve."""

NUM_TRIES = 200
"""Number of random blocks of ports that `free_block` tries before it gives up."""


def free_ports(num_ports: int) -> tuple[int, ...]:
    """Returns different ports that no process listens on, at any IPv4 address.

    Args:
        num_ports: Number of ports.

    Raises:
        OSError: Not enough free ports were found.
    """
    found: list[int] = []
    while len(found) < num_ports:
        port = free_block(1)
        if port not in found:
            found.append(port)
    return tuple(found)


def free_block(num_ports: int, *, besides: int = 0) -> int:
    """Returns the first of several consecutive ports that no process listens on, at any IPv4 address.

    Args:
        num_ports: Number of consecutive ports.
        besides: A port that must not be among them.

    Raises:
        OSError: No such ports were found.
    """
    for _ in range(NUM_TRIES):
        # The operating system's random numbers: processes with the same seed must not draw the same ports.
        first = random.SystemRandom().randrange(FIRST, END - num_ports)
        block = range(first, first + num_ports)
        if besides not in block and all(map(_is_free, block)):
            return first
    raise OSError(f"no {num_ports} free consecutive ports were found between {FIRST} and {END}")


def _is_free(port: int) -> bool:
    """Tells whether a port can be bound without SO_REUSEPORT, an option that lets one user's listeners share a port."""
    with socket.socket() as listener:
        try:
            listener.bind(("", port))
        except OSError:
            return False
    return True
