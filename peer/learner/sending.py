"""What a learner sends in one round: whether everything, or what the round's allowance has room for.

Which links get a message then, and how large, portions.py says. What is not sent stays with this node, as if
it took more local steps.
"""

from __future__ import annotations

from collections.abc import Mapping

from peer.algorithms.base import Algorithm, Links, Message
from peer.events import FromLearner, OpenRound, PeerId
from peer.graphs import Graph
from peer.learner.outgoing import Outgoing
from peer.learner.portions import Portions, message_of, on_wire


class Sending:
    """Of one learner, in round after round."""

    def __init__(self, algorithm: Algorithm, outgoing: Outgoing, *, lockstep: bool) -> None:
        self.algorithm, self.outgoing, self.lockstep = algorithm, outgoing, lockstep
        self._portions = Portions()

    def links(self, r: OpenRound) -> Links:
        """The round as the algorithm sees it."""
        return Links(
            r.key,
            r.out,
            frozenset(r.expected),
            r.n,
            r.mean_weight,
            self.outgoing.clear,
            r.trees,
            r.mean_delay,
            aligning=r.aligning,
            hides={dst: message_of(size) for dst, size in (r.hides or {}).items()},
            graph=Graph(r.graph, r.n, r.place, r.parents) if r.graph else None,
        )

    def affordable(self, r: OpenRound) -> Links:
        """As above, with no more clear links than there is room for messages."""
        links = self.links(r)
        if r.allowance is None:
            return links
        return self._portions.affordable(links, r.allowance, self.algorithm.least_bytes, self._word(r))

    def send(
        self, r: OpenRound, messages: Mapping[PeerId, Message], *, final: bool
    ) -> tuple[list[FromLearner], tuple[PeerId, ...]]:
        """What goes of the round's messages, and who is held back. final: it is one of the last rounds."""
        ready = self.outgoing.ready(messages)
        if r.allowance is None:
            return [push for dst, message in ready.items() for push in self.outgoing.send(dst, message)], ()
        return self._within(r, r.allowance, ready, final=final)

    def _within(
        self, r: OpenRound, allowance: int, ready: Mapping[PeerId, Message], *, final: bool
    ) -> tuple[list[FromLearner], tuple[PeerId, ...]]:
        """Rounds without local steps push everything: their sums need it, and the node has it wait until
        there is room."""
        silent = (self.outgoing.clear & r.out.keys()) - ready.keys()
        held, word = self._portions.turns(silent), self._word(r)
        whole = (final or self.algorithm.still) and all(
            message.delivery == "latest" for message in ready.values()
        )
        words = len(held) * word
        sizes = self.outgoing.sizes(ready)
        chosen, left = self._portions.within(sizes, allowance - words, r.key, at_any_rate=whole)
        for dst in sorted(ready.keys() - set(chosen)):
            held.append(dst)
            if ready[dst].delivery == "mass":
                self.algorithm.returned(dst, ready[dst])
        sent: list[FromLearner] = [self.outgoing.push(dst, ready[dst]) for dst in chosen]
        self.outgoing.forget_encodings()
        nothing = self.algorithm.nothing(r.key)
        if nothing is not None:
            number = self._portions.words(len(held), words + left, word, self.algorithm.least_bytes)
            sent += [self.outgoing.push(dst, nothing) for dst in held[:number]]
        return sent, tuple(held)

    def _word(self, r: OpenRound) -> int:
        """Bytes on the wire of telling one neighbor that nothing comes; 0 where nobody is told."""
        word = self.algorithm.nothing(r.key) if self.lockstep else None
        return 0 if word is None else on_wire(len(self.outgoing.encoded(word)))
