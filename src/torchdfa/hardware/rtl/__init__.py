"""The chip's units in Amaranth, from parameters. Each is verified against :mod:`torchdfa.hardware.model`."""

from torchdfa.hardware.rtl.cores import Depc, MacCore
from torchdfa.hardware.rtl.lfsr import Lfsr
from torchdfa.hardware.rtl.momentum import MomentumUnit
from torchdfa.hardware.rtl.requantizer import Requantizer
from torchdfa.hardware.rtl.runlength import RunLengthDecoder, RunLengthEncoder

__all__ = ["Depc", "Lfsr", "MacCore", "MomentumUnit", "Requantizer", "RunLengthDecoder", "RunLengthEncoder"]
