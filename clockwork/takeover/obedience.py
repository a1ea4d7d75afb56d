"""Obedience to the highest epoch: the fence that workers, clients and gateways put up against an active that
was taken over.

An active that is stopped and goes on later does not know that its time is over, and no lease that it checks
itself can tell it in time: it may be stopped between the check and the order. So its peers check. Every
takeover raises the epoch, every order names the epoch of its sender, and a peer that has heard of a higher
epoch refuses the order and tells the sender.

Epochs of two clusters cannot be compared. A worker may outlive its cluster's catalogue, and a new cluster at
the same address begins with epoch 1 again. So a leader names its cluster, and a peer that meets another
cluster begins anew with that cluster's epochs.
"""

from __future__ import annotations

from typing import NamedTuple


class Leader(NamedTuple):
    """The active controller of an epoch."""

    epoch: int  # raised by each takeover; 0: no controller is known
    holder: str  # name of the process, another for each start
    addresses: tuple[str, ...]  # addresses at which the process is reached, the best first
    cluster: str = ""  # identity of the catalogue to which the epoch belongs; "": not known


NO_LEADER = Leader(0, "", ())


class Obedience:
    """The highest epoch that a process has heard of, in the cluster that it heard of last."""

    __slots__ = ("leader",)

    def __init__(self) -> None:
        self.leader = NO_LEADER

    @property
    def lease(self) -> tuple[int, str, str]:
        """The lease of that epoch: its number, its holder and its cluster."""
        return self.leader.epoch, self.leader.holder, self.leader.cluster

    def see(self, leader: Leader) -> bool:
        """Take note of a leader. Returns whether it is to be obeyed in place of the leader before."""
        is_same = leader.cluster == self.leader.cluster
        if not leader.epoch or (is_same and leader.epoch <= self.leader.epoch):
            return False
        self.leader = leader
        return True

    def follow(self, epoch: int, holder: str, cluster: str) -> bool:
        """Take note of a controller's lease, and return whether to serve or ask it: not if a later is known.

        An active that was stopped, and taken over meanwhile, does not know it. epoch 0: the controller has no
        lease, and is not refused."""
        leader = Leader(epoch, holder, (), cluster)
        if epoch and self.refuses(leader):
            return False
        self.see(leader)
        return True

    def refuses(self, leader: Leader) -> bool:
        """Whether an order of this leader must be refused, because another has the same or a higher epoch."""
        if leader.cluster != self.leader.cluster:
            return False
        return leader.epoch < self.leader.epoch or (
            leader.epoch == self.leader.epoch and leader.holder != self.leader.holder
        )
