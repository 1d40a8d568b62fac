"""Rate limits."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_BURST_S = 4
_SENDERS = 1024
_LATELY_S = 60.0
_RESERVE = 0.25
"""The share of a rate that belongs to those that have not been heard lately."""
_KEPT = (1 / 2, 1 / 4)
"""Shares of the time for checks that are kept from all, and from known clients."""


@dataclass(slots=True)
class Budget:
    """A token bucket: `per_s` on average, at most `burst` at once."""

    per_s: float
    burst: float
    _tokens: float | None = None
    _at_s: float = 0.0

    def take(self, now_s: float) -> bool:
        """Take one token. Returns whether there was one."""
        return self.reserve(now_s, 0.0) is not None

    def reserve(self, now_s: float, at_most_s: float) -> float | None:
        """Take one token, also one of the future. Returns the wait for it; None: more than `at_most_s`, none taken."""
        tokens = self.burst if self._tokens is None else self._tokens + (now_s - self._at_s) * self.per_s
        self._tokens = min(self.burst, tokens)
        self._at_s = now_s
        wait_s = max(0.0, (1 - self._tokens) / self.per_s)
        if wait_s > at_most_s:
            return None
        self._tokens -= 1
        return wait_s

    def empty(self, now_s: float) -> bool:
        """Whether there is no token now."""
        return self._tokens is not None and self._tokens + (now_s - self._at_s) * self.per_s < 1

    def wait_s(self) -> float:
        """Return the time until the next token; after a refusal."""
        return (1 - (self._tokens or 0.0)) / self.per_s


@dataclass(slots=True)
class _Sender:
    own: Budget
    heard_s: float = float("-inf")


class FairBudget:
    """A budget for each sender and one for all; four seconds' worth are accepted at once.

    A quarter of the budget for all belongs to senders that have not been accepted in the last `_LATELY_S`; the others
    share the rest. So neither can use up what the other needs. The latest `_SENDERS` are remembered.
    """

    def __init__(self, each_per_s: float, all_per_s: float) -> None:
        self._each_per_s = each_per_s
        self._senders: OrderedDict[str, _Sender] = OrderedDict()
        self._known = _budget((1 - _RESERVE) * all_per_s)
        self._new = _budget(_RESERVE * all_per_s)

    def wait_s(self, sender: str, now_s: float) -> float | None:
        """Count one message. Returns None if it is accepted, else how long the sender should wait."""
        known = self._senders.get(sender) or _Sender(_budget(self._each_per_s))
        shared = self._known if now_s - known.heard_s < _LATELY_S else self._new
        for budget in (known.own, shared):
            if not budget.take(now_s):
                return budget.wait_s()
        known.heard_s = now_s
        # Only a sender that was accepted is remembered: a flood of names would evict the others.
        self._senders[sender] = known
        self._senders.move_to_end(sender)
        if len(self._senders) > _SENDERS:
            self._senders.popitem(last=False)
        return None

    def exhausted(self, sender: str, now_s: float) -> bool:
        """Whether a message of this sender would be refused because of its own budget. Counts nothing."""
        known = self._senders.get(sender)
        return known is not None and known.own.empty(now_s)


class CommandRates:
    """Limits the commands per second of each sender and of all senders.

    Commands about an existing session have a budget of their own: a flood of offers, under however many names, does not
    prevent a viewer from closing its session.
    """

    def __init__(self, each_per_s: float, all_per_s: float) -> None:
        self.all_per_s = all_per_s
        self._kinds = {about_session: FairBudget(each_per_s, all_per_s) for about_session in (False, True)}

    def wait_s(self, sender: str, now_s: float, *, about_session: bool) -> float | None:
        """Count one command. Returns None if it is accepted, else how long the sender should wait."""
        return self._kinds[about_session].wait_s(sender, now_s)

    def exhausted(self, sender: str, now_s: float, *, about_session: bool) -> bool:
        """Whether a command of this sender would be refused because of its own budget. Counts nothing."""
        return self._kinds[about_session].exhausted(sender, now_s)


class Work(Enum):
    """What is done for a message whose sender has proved nothing."""

    READ = auto()
    CHECK = auto()
    """The signature of its token is checked, and only then is the message read."""
    REPEAT = auto()
    """The message is read; the signature of its token was checked before."""


class Unproven:
    """Limits the computing time of messages whose sender has proved nothing. Each kind of work has a share of the time.

    When the share of `READ` is used up, a message is only read after the signature of its token was checked, because
    little else in it is hard to forge. Each share may take `burst_s` at once, and owes at most as much: a pause of the
    machine is no debt.

    Some checks come first: those for reply clients whose messages were proved lately, `known_per_s` each, and then
    those for subjects. Each kind has time that the one before it leaves (`_KEPT`). So forged messages in other names do
    not delay a known client; those in its name do not delay the subjects that it had before; and those in a subject's
    name do not delay the token that it repeats.

    A subject makes one client known. The latest `_SENDERS` clients and subjects are remembered.
    """

    def __init__(self, known_per_s: float, shares: Mapping[Work, float], *, burst_s: float = 0.2) -> None:
        self._shares = {work: _Share(share, burst_s) for work, share in shares.items()}
        self._kept_s = [burst_s * kept for kept in _KEPT]
        self._clients = _Known(known_per_s, _BURST_S * known_per_s)
        # Less at once than `_KEPT` allows: one subject must not use up the time of the others.
        self._subjects = _Known(known_per_s / 5, known_per_s / 5)
        self._repeating = _Known(known_per_s, known_per_s)
        self._introduced: OrderedDict[str, str] = OrderedDict()

    def admit(self, now_s: float) -> bool:
        """Whether a message may be read."""
        return self._shares[Work.READ].left(now_s) > 0

    def admit_repeat(self, subject: str | None, now_s: float) -> bool:
        """Whether to read a message of a subject, the signature of whose token was checked before."""
        return self._shares[Work.REPEAT].left(now_s) > 0 and self._repeating.take(subject, now_s)

    def admit_check(self, client: str | None, subject: str | None, now_s: float) -> bool:
        """Whether to check the signature of a message that claims a reply client and a subject.

        The claims grant no more.
        """
        left_s = self._shares[Work.CHECK].left(now_s)
        from_all_s, from_clients_s = self._kept_s
        return (
            left_s > from_all_s
            or (left_s > from_clients_s and self._clients.take(client, now_s))
            or (left_s > 0 and self._subjects.take(subject, now_s))
        )

    def charge(self, cost_s: float, now_s: float, work: Work) -> None:
        """Count the time of a message whose sender proved nothing."""
        self._shares[work].charge(cost_s, now_s)

    def proved(self, client: str, subject: str) -> None:
        """A message of this reply client was proved, with a token of the subject."""
        if client not in self._clients:
            # One viewer with a valid token cannot make many clients known, and then flood in all their names.
            self._clients.forget(self._introduced.get(subject))
            self._introduced[subject] = client
            self._introduced.move_to_end(subject)
            if len(self._introduced) > _SENDERS:
                self._introduced.popitem(last=False)
        self._clients.add(client)
        self._subjects.add(subject)
        self._repeating.add(subject)


class _Known:
    """The latest `_SENDERS` names, each with a budget."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = max(1.0, burst)
        self._budgets: OrderedDict[str, Budget] = OrderedDict()

    def add(self, name: str) -> None:
        if name not in self._budgets:
            self._budgets[name] = Budget(self._per_s, self._burst)
        self._budgets.move_to_end(name)
        if len(self._budgets) > _SENDERS:
            self._budgets.popitem(last=False)

    def forget(self, name: str | None) -> None:
        if name is not None:
            self._budgets.pop(name, None)

    def take(self, name: str | None, now_s: float) -> bool:
        """Take one message from a name's budget. Returns whether the name is known and had one."""
        budget = self._budgets.get(name) if name is not None else None
        return budget is not None and budget.take(now_s)

    def __contains__(self, name: str) -> bool:
        return name in self._budgets

    def __iter__(self) -> Iterator[str]:
        return iter(self._budgets)

    def __len__(self) -> int:
        return len(self._budgets)


class _Share:
    """A share of the time, at most `burst_s` at once. Its debt is at most `burst_s`, too."""

    def __init__(self, share: float, burst_s: float) -> None:
        self._share = share
        self._burst_s = burst_s
        self._left_s = burst_s
        self._at_s = float("-inf")

    def left(self, now_s: float) -> float:
        self._left_s = min(self._burst_s, self._left_s + self._share * max(0.0, now_s - self._at_s))
        self._at_s = now_s
        return self._left_s

    def charge(self, cost_s: float, now_s: float) -> None:
        self._left_s = max(-self._burst_s, self.left(now_s) - cost_s)


def _budget(per_s: float) -> Budget:
    return Budget(per_s, max(1.0, _BURST_S * per_s))
