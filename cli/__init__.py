"""The command line: asks the daemon and prints. Loads neither torch, numpy, grpc nor zeroconf.

main.py finds commands (one file each) and turns errors into exit codes; talk.py speaks with the daemon;
arguments.py holds the options that several commands share; text.py and view.py say how things look.
"""
