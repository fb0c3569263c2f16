"""The virtual-time driver: the daemon's node and the learner's exchange on a simulated network.

`driver.Rehearsal` performs the same effects as the daemon does, with a heap of timed events instead of
asyncio, gRPC and zeroconf. Every fault is seeded, so that a failing run can be run again.
"""
