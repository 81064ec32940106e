"""The direct error propagation accelerator, open: bit-exact model, RTL, gates, power, and the cost of a training step.

``torchdfa hardware --help`` lists what it does; ``docs/hardware.md`` says how, and what its figures are worth.
"""

from torchdfa.hardware.chip import Chip, chips, load_chip
from torchdfa.hardware.phases import Cost
from torchdfa.hardware.step import StepCost, step

__all__ = ["Chip", "Cost", "StepCost", "chips", "load_chip", "step"]
