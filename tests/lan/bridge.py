"""A home's network for tests: every device in a network namespace of its own, all of them on one switch.

    lan = Switch()                       # two bridges in a namespace of their own; ports are on the first
    a = lan.add("a")                     # a namespace with `lan0`, 10.77.0.1/24, on a port of the switch
    lan.split([a], [b, c]); lan.heal()   # ports move between the bridges
    a.unplug(); a.move(); a.shape(loss=0.05, rate="1mbit"); a.lose(0.2); a.delay(0.1)
    a.firewall(); a.deafen(); a.ignore(b)
    a.freeze(); a.thaw(); a.crash()      # daemon and learner together

iproute2 does it all, with what a kernel's bridge, veth, tbf, clsact, u32, bpf and mirred bring: a packet is
dropped by sending it down a hole. No iptables, no netem: delay.py holds packets back. Everything is gone when
the holders of the namespaces end, whatever happened in between.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lan.device import PATIENCE_S, Device, Network
from lan.namespace import Namespace, NamespaceRefusedError

WIRE = "lan0"  # a device's interface; no name that peerd leaves out
HOME, AWAY = "home0", "away0"  # the two bridges
DELAY = Path(__file__).with_name("delay.py")
HOLE, BOTTOM = "hole0", "bottom0"  # what goes in there never comes out
REFUSED = "tests/lan needs bridges, veth pairs and traffic control, and this kernel refused them: {reason}"
# classic BPF: load SKF_AD_RANDOM; is it at most K? then the packet is the filter's, else it is not
BPF_RANDOM = "4,32 0 0 4294963256,37 1 0 {most},6 0 0 4294967295,6 0 0 0"
TCP_SYN = "match ip protocol 6 0xff match u8 0x02 0x12 at 33"  # SYN without ACK: opens a connection
LATENCY = "400ms"  # of a slow port's queue: about a router's buffer


class Wired(Device):
    """A device on a port of the switch. `host` is its address now."""

    def __init__(
        self, name: str, folder: Path, number: int, own: Namespace, switch: Namespace, script: str
    ) -> None:
        super().__init__(name, folder, own, script)
        self.namespace, self._switch = own, switch
        self.port = f"port{number}"
        self._far_end = (f"near{number}", f"far{number}")  # a pair that lengthens the wire, while it is slow
        self._delay: subprocess.Popen[str] | None = None
        self.host = ""
        self._addresses = (f"10.77.{net}.{number}" for net in range(256))  # of one /16
        pair = ("type", "veth", "peer", "name", WIRE, "netns", str(self.namespace.pid))
        switch.run("ip", "link", "add", self.port, *pair)
        switch.run("ip", "link", "set", self.port, "master", HOME, "gso_max_segs", "1", "up")
        switch.run("tc", "qdisc", "add", "dev", self.port, "clsact")
        self.namespace.run("mount", "-t", "sysfs", "none", "/sys")  # shows the interfaces of its own network
        # one packet a frame: what a filter drops and a queue counts is what a wire would carry
        self.namespace.run("ip", "link", "set", WIRE, "gso_max_segs", "1", "up")
        self.move()

    # --- its wire ----------------------------------------------------------------------------------------

    def move(self) -> None:
        """Another address, and none of the old ones: what a new DHCP lease does."""
        self.host = next(self._addresses)
        self.namespace.run("ip", "-4", "address", "flush", "dev", WIRE)
        self.namespace.run("ip", "address", "add", f"{self.host}/16", "dev", WIRE)

    def unplug(self) -> None:
        self._switch.run("ip", "link", "set", self.port, "down")

    def plug(self) -> None:
        self._switch.run("ip", "link", "set", self.port, "up")

    def join_bridge(self, bridge: str) -> None:
        self._switch.run("ip", "link", "set", self.port, "master", bridge)

    def lose(self, part: float) -> None:
        """Packets at random, both ways."""
        most = str(round(part * 0xFFFFFFFF))
        for way in ("ingress", "egress"):
            self._drop(way, "all", "1", "bpf", "bytecode", BPF_RANDOM.format(most=most))

    def lose_nothing(self) -> None:
        for way in ("ingress", "egress"):
            self._undrop(way, "1")

    def shape(self, *, loss: float, rate: str, burst: str = "8kb") -> None:
        """Lose packets at random and be slow, both ways. burst: what goes at once; a fast line needs more."""
        self.lose(loss)
        slow = ("root", "tbf", "rate", rate, "burst", burst, "latency", LATENCY)
        self._switch.run("tc", "qdisc", "add", "dev", self.port, *slow)
        self.namespace.run("tc", "qdisc", "add", "dev", WIRE, *slow)

    def unshape(self) -> None:
        self.lose_nothing()
        self._switch.run("tc", "qdisc", "del", "dev", self.port, "root")
        self.namespace.run("tc", "qdisc", "del", "dev", WIRE, "root")

    def delay(self, seconds: float) -> None:
        """Between its port and the switch every packet is held back so long, both ways."""
        near, far = self._far_end
        self._switch.run("ip", "link", "add", near, "type", "veth", "peer", "name", far)
        self._switch.run("ip", "link", "set", near, "gso_max_segs", "1", "up")
        self._switch.run("ip", "link", "set", self.port, "nomaster")
        command = self._switch.command([sys.executable, "-I", str(DELAY), self.port, near, str(seconds)])
        self._delay = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._delay.stdout is not None
        assert self._delay.stdout.readline() == "ready\n"
        self._switch.run("ip", "link", "set", far, "master", HOME, "gso_max_segs", "1", "up")

    def undelay(self) -> int:
        """Returns how many packets the delay has dropped: none, unless this machine is far too busy."""
        if self._delay is None:
            return 0
        self._delay.terminate()
        dropped = int(self._delay.communicate(timeout=PATIENCE_S)[0])
        self._delay = None
        self._switch.run("ip", "link", "del", self._far_end[0])
        self.join_bridge(HOME)
        return dropped

    def firewall(self) -> None:
        """Nobody can open a connection to it; those that it opens work, and so does multicast."""
        self._drop("egress", "ip", "2", "u32", *TCP_SYN.split())

    def deafen(self) -> None:
        """Multicast does not reach it, as with an access point's isolation."""
        self._switch.run("bridge", "link", "set", "dev", self.port, "mcast_flood", "off")

    def mute(self) -> None:
        """Its own multicast reaches nobody."""
        self._drop("ingress", "ip", "3", "u32", "match", "ip", "dst", "224.0.0.0/4")

    def ignore(self, other: Wired) -> None:
        """Nothing that the other sends from its address of now reaches it; what it sends itself does."""
        self._drop("egress", "ip", "4", "u32", "match", "ip", "src", f"{other.host}/32")

    def hear_again(self) -> None:
        """It ignores nobody."""
        self._undrop("egress", "4")

    def _drop(self, way: str, protocol: str, order: str, *matcher: str) -> None:
        """Way as the port sees it: ingress is what the device sends."""
        where = ("filter", "add", "dev", self.port, way, "protocol", protocol, "prio", order)
        down = ("action", "mirred", "egress", "redirect", "dev", HOLE)
        self._switch.run("tc", *where, *matcher, *down)

    def _undrop(self, way: str, order: str) -> None:
        self._switch.run("tc", "filter", "del", "dev", self.port, way, "prio", order)

    # --- its processes -----------------------------------------------------------------------------------

    def freeze(self) -> None:
        """SIGSTOP to daemon and learner: what a suspend looks like from outside."""
        self.namespace.signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        self.namespace.signal_all(signal.SIGCONT)

    def crash(self) -> None:
        """SIGKILL to daemon and learner: this device's power fails."""
        assert self.daemon is not None, f"{self.name} does not run"
        self.namespace.kill_all()
        self.daemon.wait(PATIENCE_S)
        self.daemon = None


class Switch(Network):
    """The bridges, and the devices on them. `namespace` is the switch's own."""

    devices: dict[str, Any]

    def __init__(self) -> None:
        for program in ("ip", "tc", "bridge", "mount"):
            if shutil.which(program) is None:
                raise NamespaceRefusedError(f"tests/lan needs '{program}'; install iproute2 and mount")
        super().__init__(loopback=False)
        self._owned: list[Namespace] = []  # the devices'
        with self._making():
            for bridge in (HOME, AWAY):
                options = ("type", "bridge", "mcast_snooping", "0", "forward_delay", "0")
                self.namespace.run("ip", "link", "add", bridge, *options)
                self.namespace.run("ip", "link", "set", bridge, "up")
            self.namespace.run("ip", "link", "add", HOLE, "type", "veth", "peer", "name", BOTTOM)
            for end in (HOLE, BOTTOM):
                self.namespace.run("ip", "link", "set", end, "up")

    @contextmanager
    def _making(self) -> Iterator[None]:
        """What cannot be made leaves nothing behind."""
        try:
            yield
        except subprocess.CalledProcessError as error:
            self.close()
            raise NamespaceRefusedError(REFUSED.format(reason=error)) from error

    def add(self, name: str) -> Wired:
        with self._making():
            own = Namespace()
            self._owned.append(own)
            number = len(self._owned)
            device = Wired(name, self.folder, number, own, self.namespace, self._script)
        self.devices[name] = device
        return device

    def dropped(self) -> int:
        """Packets that fell down the hole so far."""
        [told] = json.loads(self.namespace.read("ip", "-s", "-j", "link", "show", "dev", BOTTOM))
        packets: int = told["stats64"]["rx"]["packets"]
        return packets

    def split(self, here: Iterable[Wired], there: Iterable[Wired]) -> None:
        """Two groups, neither of which hears the other."""
        for bridge, devices in ((HOME, here), (AWAY, there)):
            for device in devices:
                device.join_bridge(bridge)

    def heal(self) -> None:
        self.split(self.devices.values(), ())

    def clear(self) -> None:
        """No devices any more, nor anything they kept: another story begins."""
        for device in self.devices.values():
            device.undelay()
            device.namespace.close()
            if device.daemon is not None:
                device.daemon.wait()
            shutil.rmtree(device.state)
        self.devices.clear()

    def close(self) -> None:
        for device in self.devices.values():
            device.undelay()
        for own in self._owned:
            own.close()
        super().close()
