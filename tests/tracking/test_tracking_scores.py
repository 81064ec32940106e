import warnings

import numpy as np
import pytest

from torchdfa.tracking.scores import evaluate, mean


def toolkit(boxes, truth):
    """Score by got10k's OTB experiment, whose construction would download the data set."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from got10k.experiments.otb import ExperimentOTB
    experiment = ExperimentOTB.__new__(ExperimentOTB)
    experiment.nbins_iou, experiment.nbins_ce = 21, 51
    boxes = boxes.copy()
    boxes[0] = truth[0]
    return experiment._calc_curves(*experiment._calc_metrics(boxes, truth))


@pytest.mark.parametrize("noise", [0.5, 4, 30])
def test_equal_to_got10ks_toolkit(noise):
    rng = np.random.default_rng(round(noise * 10))
    truth = np.concatenate([rng.uniform(0, 200, (400, 2)), rng.uniform(5, 90, (400, 2))], axis=1).round()
    boxes = truth + rng.normal(0, noise, truth.shape)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], 1)
    boxes[10] = truth[10] + [20, 0, 0, 0]  # exactly on a threshold
    success, precision = toolkit(boxes, truth)
    score = evaluate(boxes, truth)
    np.testing.assert_allclose(score.success, success, atol=1e-6)
    np.testing.assert_allclose(score.precision, precision, atol=1e-6)
    assert 0 < score.auc < 1


def test_a_perfect_tracker_scores_20_of_21():
    truth = np.array([[1, 2, 10, 20], [2, 2, 10, 20.0]])
    assert evaluate(truth, truth).auc == pytest.approx(20 / 21)
    assert evaluate(truth, truth).p20 == 1


def test_by_hand():
    truth = np.tile([0.0, 0, 10, 10], (4, 1))
    boxes = truth + np.array([[7, 7, 7, 7], [5, 0, 0, 0], [0, 21, 0, 0], [20, 0, 0, 0]])
    score = evaluate(boxes, truth)  # the first frame is given; overlaps 1, 1/3, 0, 0; distances 0, 5, 21, 20
    np.testing.assert_allclose(score.success, np.r_[np.full(7, 0.5), np.full(13, 0.25), 0])
    assert score.precision[0] == 0.25 and score.precision[5] == 0.5 and score.p20 == 0.75 and score.precision[21] == 1


def test_missing_boxes_repeat_the_one_before():
    truth = np.tile([5.0, 5, 10, 10], (4, 1))
    boxes = truth.copy()
    boxes[1], boxes[2], boxes[3] = np.nan, [1, 1, 0, 5], [np.inf, 1, 1, 1]
    assert evaluate(boxes, truth).auc == pytest.approx(20 / 21)


def test_curves_are_averaged_over_sequences_not_frames():
    truth = np.tile([5.0, 5, 10, 10], (9, 1))
    good, bad = evaluate(truth, truth), evaluate(truth[:2] + np.array([[0, 0, 0, 0], [100, 0, 0, 0]]), truth[:2])
    assert mean([good, bad]).auc == pytest.approx((good.auc + bad.auc) / 2)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"boxes \(3, 4\) and annotation \(4, 4\)"):
        evaluate(np.ones((3, 4)), np.ones((4, 4)))
