"""From a vector to bytes and back: `compressor` makes bodies, `codec` makes messages of them.

    v --compressor (sparsify, low_rank, values, quantize)--> body
    body --codec (packing, value_bytes, golomb)--> bytes
    bytes --codec--> body --dense()--> value

Pure: no clock, file, socket, logger or randomness.
"""
