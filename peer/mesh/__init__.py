"""The network of one session, in two halves.

Pure, driven by the daemon and by rehearsals alike: node (composes), membership, topology, graphs, patience,
links (outlink, inlink). Edges, with sockets: identity, discovery (interfaces), transport (hello, service,
stream, frames, contacts, channels, greeting).
"""
