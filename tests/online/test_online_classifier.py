"""The scikit-learn estimator: scikit-learn's own checks, and what they don't check."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import parametrize_with_checks

import torchdfa as dfa
from torchdfa.online.classifier import OnlineHeadClassifier


@pytest.fixture
def iris():
    x, y = load_iris(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(x))
    return ((x - x.mean(0)) / x.std(0))[order], np.array(["setosa", "versicolor", "virginica"])[y][order]


@parametrize_with_checks([OnlineHeadClassifier(), OnlineHeadClassifier(rule=dfa.BDFA(init="product", center=True))])
def test_scikit_learn_accepts_it(estimator, check):
    check(estimator)


@pytest.mark.parametrize("rule", [None, dfa.DFA(), dfa.BDFA()], ids=["BP", "DFA", "BDFA"])
def test_partial_fit_in_order_is_one_epoch_of_steps(iris, rule):
    x, y = iris
    settings = {"rule": rule, "random_state": 3, "dropout": 0.2, "batch_size": 16}
    parts = OnlineHeadClassifier(**settings)
    for begin in range(0, len(x), 32):
        parts.partial_fit(x[begin : begin + 32], y[begin : begin + 32], classes=np.unique(y))
    head = dfa.OnlineHead(
        (4, 100, 3),
        rule=rule,
        lr=0.01,
        momentum=0.9,
        weight_decay=1e-4,
        clip=10.0,
        dropout=0.2,
        seed=int(np.random.RandomState(3).randint(2**31)),
    )
    index = torch.from_numpy(np.searchsorted(np.unique(y), y))
    for part, labels in zip(torch.from_numpy(x).float().split(16), index.split(16), strict=True):
        head.step(part, labels)
    torch.testing.assert_close(head.layers[0].weight, parts.head_.layers[0].weight, rtol=0, atol=0)
    assert (parts.predict(x) == np.unique(y)[head.predict(torch.from_numpy(x)).numpy()]).all()


def test_fit_learns_begins_anew_and_is_repeatable(iris):
    x, y = iris
    a = OnlineHeadClassifier(rule=dfa.BDFA(), random_state=0).fit(x, y)
    assert a.score(x, y) > 0.95
    assert len(a.loss_curve_) == 100
    assert a.loss_curve_[-1] < 0.2 * a.loss_curve_[0]
    before = a.predict_proba(x)
    assert np.array_equal(a.fit(x, y).predict_proba(x), before)
    assert np.array_equal(clone(a).fit(x, y).predict_proba(x), before)


def test_a_search_over_rules_and_rates(iris):
    x, y = iris
    grid = {"rule": [None, dfa.DFA()], "lr": [1e-6, 0.05]}
    found = GridSearchCV(OnlineHeadClassifier(epochs=20, random_state=0), grid, cv=3).fit(x, y)
    assert found.best_params_["lr"] == 0.05
    assert found.best_score_ > 0.9


def test_class_weights(iris):
    x, y = iris
    rare = (y != "virginica") | (np.arange(len(y)) % 10 == 0)
    x, y = x[rare], y[rare]
    found = {}
    for weight in (None, "balanced", {"virginica": 1000.0, "setosa": 1.0, "versicolor": 1.0}):
        model = OnlineHeadClassifier((), class_weight=weight, random_state=0, epochs=5).fit(x, y)
        found[str(weight)[:8]] = (model.predict(x) == "virginica").sum()
    assert found["None"] < found["balanced"] < found["{'virgin"]
    with pytest.raises(ValueError, match="class_weight='balanced' needs all labels at once"):
        OnlineHeadClassifier(class_weight="balanced").partial_fit(x, y, classes=np.unique(y))


def test_settings_that_a_running_head_takes_count_from_the_next_partial_fit(iris):
    x, y = iris
    settings = {"lr": 0.5, "momentum": 0.1, "weight_decay": 0.2, "clip": 1.0, "class_weight": {"setosa": 3.0}}
    model = OnlineHeadClassifier(random_state=0).partial_fit(x, y, classes=np.unique(y))
    model.set_params(**settings).partial_fit(x[:1], y[:1])
    head = model.head_
    assert head.lr == (0.5, 0.5) and (head.momentum, head.weight_decay, head.clip) == (0.1, 0.2, 1.0)
    assert head.class_weights.tolist() == [3, 1, 1]
    model.set_params(class_weight=None).partial_fit(x[:1], y[:1])
    assert head.class_weights is None
    with pytest.raises(ValueError, match="class_weight='balanced' needs all labels at once"):
        model.set_params(class_weight="balanced").partial_fit(x[:1], y[:1])
    for wrong in ({"momentum": 2.0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            clone(model).set_params(class_weight=None).fit(x, y).set_params(**wrong).partial_fit(x, y)


def test_balanced_weights_of_fit_stay_in_partial_fit(iris):
    x, y = iris[0][:100], iris[1][:100]
    model = OnlineHeadClassifier(class_weight="balanced", epochs=1, random_state=0).fit(x, y)
    before = model.head_.class_weights.clone()
    assert torch.equal(model.partial_fit(x[:1], y[:1]).head_.class_weights, before)


@pytest.mark.parametrize("sizes", [8, (8,), [8], np.array([8])], ids=["int", "tuple", "list", "array"])
def test_hidden_layers_may_be_one_number_or_several(iris, sizes):
    assert OnlineHeadClassifier(sizes, epochs=1, random_state=0).fit(*iris).head_.sizes == (4, 8, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"lr": -1.0}, "lr=-1.0"),
        ({"hidden_layer_sizes": 1.5}, r"sizes=\(4, 1.5, 3\)"),
        ({"hidden_layer_sizes": (), "rule": dfa.DFA()}, "cuts nothing"),
    ],
)
def test_settings_out_of_range_are_refused(iris, settings, message):
    with pytest.raises(ValueError, match=message):
        OnlineHeadClassifier(**settings).fit(*iris)


def test_partial_fit_refuses_what_does_not_fit(iris):
    x, y = iris
    with pytest.raises(ValueError, match="the first call needs classes="):
        OnlineHeadClassifier().partial_fit(x, y)
    model = OnlineHeadClassifier(random_state=0)
    with pytest.raises(ValueError, match=r"labels \['tulip'\], which are not in classes"):
        model.partial_fit(x[:2], ["setosa", "tulip"], classes=np.unique(y))
    assert not hasattr(model, "head_") and not hasattr(model, "classes_")
    model.partial_fit(x, y, classes=np.unique(y))
    before = model.predict_proba(x)
    with pytest.raises(ValueError, match=r"labels \['tulip'\], which are not in classes"):
        model.partial_fit(x[:1], ["tulip"])
    with pytest.raises(ValueError, match="but the first call had"):
        model.partial_fit(x, y, classes=["setosa", "tulip"])
    assert np.array_equal(model.predict_proba(x), before)
