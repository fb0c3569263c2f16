"""From a vector to bytes and back: `compressor` makes bodies, `codec` makes messages of them.

    v --compressor (sparsify, quantize)--> body --codec (packing, golomb)--> bytes
    bytes --codec--> body --dense()--> value

Pure: no clock, file, socket, logger or randomness.
"""
