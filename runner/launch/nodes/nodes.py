"""The option: the same command on each of several machines, which meet at a port of node 0."""

import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from runner.config.sections import flattened
from runner.errors import Fault, SpecError
from runner.launch.nodes.hosts import Endpoint, Host, endpoint, is_here, read_hostfile
from runner.launch.nodes.secret import load_secret
from runner.launch.supervision import Supervision

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec
    from runner.launch.nodes.launch import NodesLaunch


@final
@dataclass(frozen=True, kw_only=True)
class Nodes:
    """Run hardware.processes ranks on each of several machines."""

    nodes: int = 2
    """The number of machines."""
    node_rank: int | None = None
    """This machine's number. null = 0 if the rendezvous is this machine, its place in the hostfile if there is one,
    otherwise the next free number."""
    rendezvous: str | None = None
    """Host of node 0, or host:port; null = the first host of the hostfile."""
    hostfile: str | None = None
    """A file with `host` or `host slots=n` a line, in the order of node ranks; null = none."""
    interface: str | None = None
    """Network interface that ranks talk over; null = the one that leads to node 0."""
    secret_file: str | None = None
    """A file with a secret that the machines share, readable by its owner only; null = .runner/secret in the working
    directory (or beside run.dir, if that is absolute), made by the first machine that looks for it."""
    join_s: float = 600.0
    """Seconds to wait for the other machines."""
    lost_s: float = 60.0
    """Seconds without a heartbeat after which a machine counts as lost, and the run ends."""
    supervision: Supervision = flattened(Supervision)
    """Restarts and timeouts."""
    hands_over_secrets: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise ValueError(f"nodes={self.nodes} must be at least 1.")
        if self.node_rank is not None and not 0 <= self.node_rank < self.nodes:
            raise ValueError(f"node_rank={self.node_rank} must be from 0 to {self.nodes - 1}: there are {self.nodes}.")
        for name, seconds in (("join_s", self.join_s), ("lost_s", self.lost_s)):
            if seconds <= 0:
                raise ValueError(f"{name}={seconds} must be above 0.")

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """The rendezvous must be known, and the hostfile must have room for the ranks."""
        if self.rendezvous is None and self.hostfile is None:
            rule = "null leaves the nodes no place to meet. Set it to the host of node 0, or give a launch.hostfile."
            yield Fault(key="launch.rendezvous", message=rule)
        if self.rendezvous is not None:
            try:
                endpoint(self.rendezvous)
            except ValueError as wrong:
                yield Fault(key="launch.rendezvous", message=str(wrong))
        try:
            yield from self._hostfile_faults(self.hosts(), processes=spec.hardware.processes)
        except ValueError as wrong:
            yield Fault(key="launch.hostfile", message=str(wrong))

    def _hostfile_faults(self, hosts: list[Host], *, processes: int) -> Iterator[Fault]:
        if hosts and len(hosts) != self.nodes:
            rule = f"{self.hostfile} names {len(hosts)} hosts, but launch.nodes={self.nodes}. Make them the same."
            yield Fault(key="launch.nodes", message=rule)
        for host in hosts:
            if host.slots is not None and host.slots < processes:
                rule = f"{processes} processes on each node are too many: {self.hostfile} gives {host.name}"
                yield Fault(key="hardware.processes", message=f"{rule} slots={host.slots}.")

    def hosts(self) -> list[Host]:
        """The hosts in the hostfile; none without one.

        Raises:
            ValueError: it cannot be read.
        """
        return [] if self.hostfile is None else read_hostfile(Path(self.hostfile))

    @contextmanager
    def open(self, spec: "RunSpec") -> Iterator["NodesLaunch"]:
        """Wait until all machines have joined, and compare their declarations.

        Raises:
            SpecError: the declarations differ, or a key does not fit this machine.
            LaunchError: a machine did not join in time, or failed.
            Interrupted: a machine was asked to stop.
        """
        self._check_interface()
        # Imported here: they import torch, which `runner check` does not need.
        from runner.launch.nodes.connect import connect
        from runner.launch.nodes.launch import NodesLaunch, declaration_of, report

        hosts = self.hosts()
        place = endpoint(self.rendezvous if self.rendezvous is not None else hosts[0].name)
        node_rank, times = self._find_node_rank(place, hosts), {"join_s": self.join_s, "lost_s": self.lost_s}
        secret = load_secret(self.secret_file, run_dir=spec.run.dir)
        if node_rank == 0:
            others = self.nodes - 1
            report(f"node 0 of {self.nodes} ({socket.gethostname()}) is waiting for {others} more at {place}")
        with connect(place, secret=secret, node_rank=node_rank, num_nodes=self.nodes, **times) as coordinator:
            if coordinator.node_rank:
                this = f"node {coordinator.node_rank} of {self.nodes} ({socket.gethostname()})"
                report(f"{this} is connected to node 0 at {place}")
            coordinator.compare_declarations(declaration_of(spec), timeout_s=self.join_s)
            yield NodesLaunch(
                spec=spec,
                coordinator=coordinator,
                supervision=self.supervision,
                join_s=self.join_s,
                interface=self.interface,
            )

    def _check_interface(self) -> None:
        there = [name for _, name in socket.if_nameindex()]
        if self.interface is not None and self.interface not in there:
            rule = f"{self.interface} is not a network interface of this machine, which has {', '.join(there)}."
            raise SpecError(Fault(key="launch.interface", message=f"{rule} Use one of them, or null."))

    def _find_node_rank(self, place: Endpoint, hosts: list[Host]) -> int | None:
        """This machine's number; None = any but 0."""
        if self.node_rank is not None:
            return self.node_rank
        try:
            if hosts:
                return next(number for number, host in enumerate(hosts) if is_here(host.name))
            return 0 if is_here(place.host) else None
        except StopIteration:
            rule = f"{self.hostfile} does not list this machine. Add it, or set launch.node_rank."
            raise SpecError(Fault(key="launch.hostfile", message=rule)) from None
        except OSError as error:
            key = "launch.hostfile" if hosts else "launch.rendezvous"
            raise SpecError(
                Fault(key=key, message=f"a host in it cannot be resolved on this machine: {error}.")
            ) from None
