"""TCP ports of this machine that nobody uses: for processes that must be told their ports before they start."""

import random
import socket

FIRST, END = 20_000, 30_000
"""Range of ports that are tried, without its end.

Below Linux's ephemeral ports, which any outgoing connection may take, and beside those of Ray's workers and Serve."""

NUM_TRIES = 200


def free_ports(num_ports: int) -> tuple[int, ...]:
    """Returns different ports that nobody listens on, at any IPv4 address.

    Args:
        num_ports: How many.

    Raises:
        OSError: There are not so many.
    """
    found: list[int] = []
    while len(found) < num_ports:
        port = free_block(1)
        if port not in found:
            found.append(port)
    return tuple(found)


def free_block(num_ports: int, *, besides: int = 0) -> int:
    """Returns the first of some consecutive ports that nobody listens on, at any IPv4 address.

    Args:
        num_ports: How many.
        besides: A port that is not to be among them.

    Raises:
        OSError: There are none.
    """
    for _ in range(NUM_TRIES):
        # From the operating system: processes that were seeded alike must not draw the same ports.
        first = random.SystemRandom().randrange(FIRST, END - num_ports)
        block = range(first, first + num_ports)
        if besides not in block and all(map(_is_free, block)):
            return first
    raise OSError(f"no {num_ports} free consecutive ports were found between {FIRST} and {END}")


def _is_free(port: int) -> bool:
    """Tells whether a port can be bound without SO_REUSEPORT, with which listeners of one user share it."""
    with socket.socket() as listener:
        try:
            listener.bind(("", port))
        except OSError:
            return False
    return True
