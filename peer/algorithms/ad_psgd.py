"""AD-PSGD, asynchronous decentralized parallel SGD (Lian, Zhang, Zhang, Liu, ICML 2018).

    gradient event     x <- x + u
    pair event i, j    x_i, x_j <- (x_i + x_j) / 2

x: model; u: its change by local steps. As in the baseline of A2CiD2's authors any two neighbors meet: the
paper needs a bipartite graph so that those who ask never wait for each other, and here nobody waits for who
is busy. Gradients are of the model that the local steps began from, and what the neighbors did meanwhile is
kept: they are as stale as in the paper.
"""

from __future__ import annotations

from peer.algorithms.a2cid2 import A2CiD2


class ADPSGD(A2CiD2):
    """A2CiD2 with eta = 0 and alpha~ = 1/2, where x~ = x."""

    name = "ad-psgd"
    accelerates = False
