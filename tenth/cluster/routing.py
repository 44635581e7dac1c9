"""Who gets a request: the replica with the least to do, unless another has much of the prompt in its cache."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tenth.cluster.members import Member

Policy = Literal["prefix", "load", "random"]
POLICIES: tuple[Policy, ...] = ("prefix", "load", "random")

_WORTH = 512  # bytes of a prompt that need not be computed outweigh one more stream
_MOST = 4.0  # streams that the longest beginning outweighs, beside half of what the idlest replica has


@dataclass(frozen=True, slots=True)
class Choice:
    """A replica, and how many bytes of the text it has seen."""

    member: Member
    matched: int


def choose(members: Sequence[Member], found: Sequence[bytes], policy: Policy, chance: random.Random) -> Choice:
    """One of `members`, of which there is at least one; `found` are the text's digests (`prefixes.digests`).

    With `prefix` the one whose load, less what its cache saves, is least. Where that is equal: the one with the least
    load, then the one that knows the fewest beginnings, so that groups of prompts spread over the replicas.
    """
    matched = {member.id: member.seen.matched(found) for member in members}
    if policy == "random":
        taken = chance.choice(members)
    elif policy == "load":
        taken = min(members, key=lambda member: (member.load, member.given))
    else:
        most = _MOST + min(member.load for member in members) / 2
        taken = min(
            members,
            key=lambda one: (one.load - min(matched[one.id] / _WORTH, most), one.load, len(one.seen), one.given),
        )
    return Choice(taken, matched[taken.id])
