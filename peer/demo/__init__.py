"""`peerd demo`: several devices on this machine learn spoken digits, each alone and then together.

Each device is a daemon of its own with a state folder of its own, found by mDNS on loopback, spoken to over
mutual TLS, and driven as a user would: `peerd create`, `peerd join`, the status socket. __main__.py has the
arguments; story.py the two acts; alone.py is one device training without the others; devices.py one daemon;
final.py evaluates the models at the end; progress.py and results.py are what a person sees.
"""
