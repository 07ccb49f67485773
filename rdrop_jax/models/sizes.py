"""Depth and widths of models."""

from typing import NamedTuple


class Size(NamedTuple):
    """Depth and widths of an encoder or a decoder."""

    layers: int
    width: int
    heads: int
    mlp_width: int


class Seq2SeqSize(NamedTuple):
    """Depths and widths of an encoder and a decoder."""

    encoder_layers: int
    decoder_layers: int
    width: int
    heads: int
    mlp_width: int
