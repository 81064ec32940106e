"""What the papers report, to stand beside what we measure. Facts from their tables; accuracies in percent."""

from __future__ import annotations

# Han & Yoo 2019, Table 1 (small learning rate, no augmentation, 50 epochs): top-1 and top-5 on the test images.
TABLE1 = {
    "cifar10": {
        "BP": (81.11, 98.63),
        "BP w/ BN": (76.91, 98.24),
        "CDFA random": (88.68, 98.42),
        "CDFA (7)": (86.36, 98.55),
        "CDFA (7) w/ BN": (87.41, 98.56),
        "CBDFA random": (89.39, 98.63),
        "CBDFA (9)": (87.65, 98.88),
        "CBDFA (9) w/ BN": (86.46, 98.83),
    },
    "cifar100": {
        "BP": (40.29, 67.80),
        "BP w/ BN": (37.80, 63.91),
        "CDFA random": (61.42, 77.05),
        "CDFA (7)": (48.24, 72.82),
        "CDFA (7) w/ BN": (55.11, 77.55),
        "CBDFA random": (59.92, 75.07),
        "CBDFA (9)": (47.48, 71.92),
        "CBDFA (9) w/ BN": (54.47, 76.85),
    },
}

# Han & Yoo 2019, Table 2 (CIFAR-10, large learning rate): top-1; no top-5 is given.
_NONE = float("nan")
TABLE2 = {
    "cifar10": {
        "BP": (82.33, _NONE),
        "CBDFA (9)": (87.35, _NONE),
        "Conv-only": (82.06, _NONE),
        "BP, augmented": (87.97, _NONE),
        "CBDFA (9), augmented": (90.13, _NONE),
        "Conv-only, augmented": (88.48, _NONE),
    }
}

# Nøkland 2016, Table 1: 100 minus his test error in percent on MNIST.
MLP_TOP1 = {
    "BP, 2×800": (98.40, _NONE),
    "FA, 2×800": (98.36, _NONE),
    "DFA, 2×800": (98.26, _NONE),
    "BP, 2×800 + dropout": (98.74, _NONE),
    "FA, 2×800 + dropout": (98.47, _NONE),
    "DFA, 2×800 + dropout": (98.55, _NONE),
    "BP, 7×240": (97.84, _NONE),
    "FA, 7×240": (97.80, _NONE),
    "DFA, 7×240": (97.68, _NONE),
    "DFA, 100×240": (96.08, _NONE),
}
