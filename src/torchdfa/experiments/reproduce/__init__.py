"""The experiments of the papers: each is a list of lines for a study, a plot, and the paper's own figures."""

from torchdfa.experiments.reproduce.angles import ANGLES
from torchdfa.experiments.reproduce.config import ReproduceConfig
from torchdfa.experiments.reproduce.experiment import Experiment, reproduce
from torchdfa.experiments.reproduce.figures import FIGURE1, FIGURE4, FIGURE5
from torchdfa.experiments.reproduce.hybrid_cnn import HYBRID_CNN
from torchdfa.experiments.reproduce.hybrid_text import HYBRID_RNN, TRANSFORMER
from torchdfa.experiments.reproduce.mlp import MLP_EXPERIMENT
from torchdfa.experiments.reproduce.page import write_page
from torchdfa.experiments.reproduce.recipe import RECIPE, RECIPE_1000
from torchdfa.experiments.reproduce.sizes import SIZES_EXPERIMENT
from torchdfa.experiments.reproduce.table1 import TABLE1_EXPERIMENT
from torchdfa.experiments.reproduce.table2 import TABLE2_EXPERIMENT

EXPERIMENTS = {
    e.name: e
    for e in (
        TABLE1_EXPERIMENT,
        TABLE2_EXPERIMENT,
        FIGURE1,
        FIGURE4,
        FIGURE5,
        MLP_EXPERIMENT,
        ANGLES,
        SIZES_EXPERIMENT,
        RECIPE,
        RECIPE_1000,
        HYBRID_CNN,
        HYBRID_RNN,
        TRANSFORMER,
    )
}

__all__ = ["EXPERIMENTS", "Experiment", "ReproduceConfig", "reproduce", "write_page"]
