"""Callbacks that put `peer.attach` into other people's training loops. Each file needs its own extra.

    lightning.py      PyTorch Lightning       pip install 'peerd[lightning]'
    transformers.py   Hugging Face Trainer    pip install 'peerd[transformers]'
    membership.py     what both do at a loop's beginning, after a step, and at its end

Nothing here is loaded by `import peer`, nor by the daemon or the command line.
"""
