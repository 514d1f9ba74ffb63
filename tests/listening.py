"""What processes listen on, as Linux tells it."""

import ipaddress
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

LISTEN = "0A"
"""State of a listening socket in proc_pid_net(5)."""


def addresses_of(pids: Iterable[int]) -> set[tuple[str, int]]:
    """Returns hosts and ports that processes listen on over TCP; an IPv4 address within IPv6 as IPv4."""
    inodes: set[str] = set()
    for pid in pids:
        with suppress(OSError):  # it has ended
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    inodes.add(os.readlink(descriptor))
    found: set[tuple[str, int]] = set()
    for name in ("tcp", "tcp6"):
        for line in Path("/proc/net", name).read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == LISTEN and f"socket:[{words[9]}]" in inodes:
                host, port = words[1].split(":")
                found.add((_host(host), int(port, 16)))
    return found


def _host(raw: str) -> str:
    # Words of four bytes, each in the machine's order.
    data = b"".join(int(raw[k : k + 8], 16).to_bytes(4, "little") for k in range(0, len(raw), 8))
    address = ipaddress.ip_address(data)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
