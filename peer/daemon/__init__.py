"""The asyncio driver: it performs what the pure node (peer/mesh/node.py) asks for, and feeds it what happens.

    app.py          Daemon: every session of this device, and what a user can ask for
    joining.py      what a join may ask for and waits for; known.py: what `sessions` lists
    control.py      the Unix socket: requests of the CLI, attachment of learners
    session.py      SessionDriver: one session's node, transport, discovery and learner
    this_device.py  what a driver is told of the device; farewells.py: what is kept of a node that has gone
    learner_end.py  one learner's connection: frames <-> events
    finding.py      sightings and --peer addresses -> Hello
    figures.py      what `status` shows of one session; health.py: its sentences; company.py: its members
    learning.py     one session's learner: which process it is, what it says
    turns.py        who trains: the own learner, a script, or nobody; signatures.py: does its model fit
    effects.py      performs what a node asks of network, memory and log; clocks.py: what the clocks say
    blocking.py     devices that nobody here wants; rekeying.py: a session's new key
    exporting.py    the model as a file; readable.py: may a learner read its data
    network.py      what `doctor` asks of the daemon
    owner.py        the script that has started this daemon, and that it ends with
    manners.py      may a session train now, and how much; pacing.py: looks again and again, and tells it
    condition.py    heat, power and pressure of this device; host.py: reads them, groups.py: control groups;
                    disk.py: the disk of a folder
    supervisor.py   the learner process; store.py: the state folder; logs.py
    notify.py       words to systemd; watchdog.py: that the loop turns
    metrics.py      those figures for Prometheus; metrics_server.py: where it reads them
    structured.py   the log for programs: fields of systemd's journal, or JSON
    foreground.py   a daemon for one request, with a live view

Payloads are opaque bytes here: no tensor library is ever imported, and the loop never waits for a training
step."""
