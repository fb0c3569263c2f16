"""The network of one session, in two halves.

Pure, driven by the daemon and by rehearsals alike: node (composes), membership, topology, links (outlink, inlink),
patience. Edges, with sockets: identity, discovery (interfaces), transport (hello, service, stream, frames, contacts,
channels, greeting).
"""
