"""Train PyTorch networks by sending the output error directly to each layer, instead of back-propagating it.

>>> import torch, torchdfa as dfa
>>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
>>> net = dfa.convert(net, dfa.BDFA())          # from here on, loss.backward() gives BDFA's gradients
>>> net(torch.zeros(2, 4)).sum().backward()
"""

from torchdfa.alignment import alignment
from torchdfa.baselines import DRTP, KolenPollack, SignSymmetry, WeightMirror
from torchdfa.convert import backprop, convert, revert
from torchdfa.costs import Cost, Costs, costs
from torchdfa.feedback import Feedback
from torchdfa.feedback.init import NoProductError
from torchdfa.mirroring import mirror
from torchdfa.modular import HybridDFA, ModuleDFA
from torchdfa.online import OnlineHead
from torchdfa.rules import BDFA, BP, CBDFA, CDFA, DFA, FA, Frozen, Rule
from torchdfa.summary import Summary, summary

__version__ = "0.1.0.dev0"

__all__ = [
    "BDFA",
    "BP",
    "CBDFA",
    "CDFA",
    "DFA",
    "DRTP",
    "FA",
    "Cost",
    "Costs",
    "Feedback",
    "Frozen",
    "HybridDFA",
    "KolenPollack",
    "ModuleDFA",
    "NoProductError",
    "OnlineHead",
    "Rule",
    "SignSymmetry",
    "Summary",
    "WeightMirror",
    "alignment",
    "backprop",
    "convert",
    "costs",
    "mirror",
    "revert",
    "summary",
]
