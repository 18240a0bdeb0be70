"""Watch the TCP sockets that listen in this network namespace, until stdin closes.

`python ports_watch.py ADDRESS` tries to connect to every new port at that address, as a stranger would, and prints
{"listening": [[address, port], …], "answered": [port, …]} at the end.
"""

import ipaddress
import json
import select
import socket
import struct
import sys
from pathlib import Path

LISTEN = "0A"


def listening() -> set[tuple[str, int]]:
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            if state == LISTEN:
                address, port = local.split(":")
                words = bytes.fromhex(address)  # 32-bit words, each in the byte order of the machine
                packed = b"".join(struct.pack("!I", word) for word in struct.unpack(f"={len(words) // 4}I", words))
                found.add((str(ipaddress.ip_address(packed)), int(port, 16)))
    return found


def answers(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=1):
            return True
    except OSError:
        return False


def main() -> None:
    address = sys.argv[1]
    seen: set[tuple[str, int]] = set()
    answered: set[int] = set()
    print("watching", flush=True)
    while not select.select([sys.stdin], [], [], 0.02)[0]:
        for one in listening() - seen:
            seen.add(one)
            if answers(address, one[1]):
                answered.add(one[1])
    print(json.dumps({"listening": sorted(seen), "answered": sorted(answered)}))


main()
