"""Ports on this machine for the embedded S3 server, whose parts each listen on a port and on its gRPC twin."""

import random
import socket
from collections.abc import Iterator

from raystill.config.errors import UserError

HOST = "127.0.0.1"
GRPC_OFFSET = 10_000  # each of the server's parts also listens on its port + this
HIGHEST = 65_535 - GRPC_OFFSET
# Both a port and its gRPC twin stay below 32768, where Linux begins to hand out ports to outgoing connections.
_PORTS = range(12_000, 22_000)


def check_port(port: int) -> None:
    """Refuse, with UserError, a number that cannot be a port with a twin."""
    if not 1 <= port <= HIGHEST:
        raise UserError(
            f"port is {port}; write a number from 1 to {HIGHEST}, as the S3 server listens on it and on it + "
            f"{GRPC_OFFSET}, or null for a free one: --set port=null"
        )


def free(port: int) -> bool:
    """Say whether a port and its gRPC twin can be listened on."""
    return all(map(listenable, (port, port + GRPC_OFFSET)))


def listenable(port: int) -> bool:
    """Say whether a port can be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def answers(port: int) -> bool:
    """Say whether anything listens on a port."""
    try:
        with socket.create_connection((HOST, port), timeout=2):
            return True
    except OSError:
        return False


def free_ports(count: int) -> list[int]:
    """Pick free ports at random, so that servers started at the same moment hardly ever meet."""
    candidates: Iterator[int] = iter(random.SystemRandom().sample(_PORTS, 50 * count))
    return [next(port for port in candidates if free(port)) for _ in range(count)]
