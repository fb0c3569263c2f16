"""`peerd doctor`: why are no peers found, and what to do. Looks at this device and listens to its network.

    reach       is there a daemon, may it be asked, and are there two of them
    interfaces  which interfaces are used, which are left out, and why
    multicast   does this device hear its own questions, and anybody else's; who announces peerd
    firewall    what the rules of nftables do with what peerd needs, where they may be read
    peers       what the daemon and the listening found: keys, names, versions, copies, who cannot be dialed
    machine     clock, disk, memory, throttling
    computing   does torch work here
    complaints  what the daemon says of itself, where no check tells the same
    invoker     who runs it through sudo, and whose daemon is meant then
    examine     all of it, in order and within bounds

Each check ends in findings (finding.py). The room runs as a process of its own, `python -m peer.doctor`,
which writes one JSON object a line; `cli/doctor.py` shows them.
"""
