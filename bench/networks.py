"""Network namespaces on this machine, one for each host of a benchmark, with links of a given rate.

    hub (a bridge)  <--veth, tbf on both ends-->  host 0, host 1, ...

No namespace has a name. Each lives as long as a process that reads from a pipe of this one, so that the
kernel removes namespaces, links and bridge when this process ends, however it ends. Linux shapes with tbf
what a link's end sends; a link that is taken down drops what is sent, without any notice to either side.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import subprocess
from typing import Self

PROGRAMS = ("ip", "tc", "nsenter", "unshare")
NETWORK = ipaddress.ip_network("10.77.0.0/24")
"""Addresses, which exist in the namespaces alone: the hub's is the first, then the hosts'."""

HOSTS_MAX = NETWORK.num_addresses - 3
BURST_BYTES = 256 << 10
QUEUE_MS = 50
"""Data that a full link keeps, as the time that it takes to send them. Beyond that it drops packets."""

BRIDGE, UPLINK = "br0", "up0"


class NoNetworks(Exception):
    """There can be no namespaces with shaped links here; the text says why."""


class Networks:
    """A hub and hosts; use as a context manager. Raises NoNetworks.

    hosts: how many. bytes_per_s: of each link, each way.
    """

    def __init__(self, hosts: int, bytes_per_s: int) -> None:
        if not 1 <= hosts <= HOSTS_MAX:
            raise ValueError(f"{hosts} hosts: there are 1 to {HOSTS_MAX}")
        missing = [program for program in PROGRAMS if shutil.which(program) is None]
        if missing:
            raise NoNetworks(
                f"{', '.join(missing)} not found: Debian's packages iproute2 and util-linux have them"
            )
        self._holders: list[subprocess.Popen[bytes]] = []
        try:
            self._hub, *self._hosts = (self._hold() for _ in range(hosts + 1))
            self._build(bytes_per_s)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def hub_address(self) -> str:
        return str(NETWORK[1])

    def enter_hub(self) -> list[str]:
        """The words before a command that is to run in the hub. The process keeps its id."""
        return _enter(self._hub)

    def enter_host(self, host: int) -> list[str]:
        return _enter(self._hosts[host])

    def cut(self, host: int) -> None:
        """Take a host's link down."""
        self._run(self._hub, "ip", "link", "set", f"host{host}", "down")

    def mend(self, host: int) -> None:
        """Take a host's link up."""
        self._run(self._hub, "ip", "link", "set", f"host{host}", "up")

    def received_bytes(self, host: int) -> int:
        """Bytes that a host has received over its link so far, with headers."""
        with open(f"/proc/{self._hosts[host].pid}/net/dev", encoding="ascii") as file:
            line = next(line for line in file if line.split(":")[0].strip() == UPLINK)
        return int(line.partition(":")[2].split()[0])

    def close(self) -> None:
        """End the namespaces, which have no process but those that were started in them. Idempotent."""
        for holder in self._holders:
            assert holder.stdin is not None
            holder.stdin.close()
        for holder in self._holders:
            holder.wait()
            assert holder.stdout is not None
            holder.stdout.close()
        self._holders.clear()

    def _hold(self) -> subprocess.Popen[bytes]:
        """Start a process that has a namespace of its own."""
        holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo in; exec cat"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self._holders.append(holder)
        assert holder.stdout is not None
        assert holder.stderr is not None
        with holder.stderr:
            if holder.stdout.readline() != b"in\n":
                raise NoNetworks(_said(holder.stderr.read()) or "unshare --net failed")
        return holder

    def _build(self, bytes_per_s: int) -> None:
        hub = self._hub
        self._run(hub, "ip", "link", "set", "lo", "up")
        self._run(hub, "ip", "link", "add", BRIDGE, "type", "bridge")
        self._run(hub, "ip", "address", "add", f"{NETWORK[1]}/{NETWORK.prefixlen}", "dev", BRIDGE)
        self._run(hub, "ip", "link", "set", BRIDGE, "up")
        for number, host in enumerate(self._hosts):
            end = f"host{number}"
            self._run(
                hub, "ip", "link", "add", end, "type", "veth", "peer", "name", UPLINK, "netns", str(host.pid)
            )
            self._run(hub, "ip", "link", "set", end, "master", BRIDGE, "up")
            self._run(
                host, "ip", "address", "add", f"{NETWORK[number + 2]}/{NETWORK.prefixlen}", "dev", UPLINK
            )
            for place, device in ((host, "lo"), (host, UPLINK)):
                self._run(place, "ip", "link", "set", device, "up")
            for place, device in ((hub, end), (host, UPLINK)):
                self._run(
                    place, "tc", "qdisc", "add", "dev", device, "root", "tbf", "rate", f"{8 * bytes_per_s}bit",
                    "burst", str(BURST_BYTES), "latency", f"{QUEUE_MS}ms",
                )  # fmt: skip

    def _run(self, place: subprocess.Popen[bytes], *command: str) -> None:
        done = subprocess.run([*_enter(place), *command], capture_output=True, check=False)
        if done.returncode:
            raise NoNetworks(f"`{' '.join(command)}` failed: {_said(done.stderr)}")


def _enter(place: subprocess.Popen[bytes]) -> list[str]:
    return ["nsenter", f"--net=/proc/{place.pid}/ns/net", "--"]


def _said(text: bytes) -> str:
    who = "" if os.geteuid() == 0 else " (not root)"
    said = " ".join(text.decode(errors="replace").split())
    return said + who if said else ""
