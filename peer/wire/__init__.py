"""Generated from proto/peer.proto by proto/generate.py, and nothing else."""
