import os
from pathlib import Path

import numpy as np
import pytest

from torchdfa.data.errors import DataError
from torchdfa.tracking.sequences import halves, list_images, load_sequences, read_boxes, write_boxes

DATA = Path(os.environ.get("TORCHDFA_DATA", "/nowhere"))


def test_reads_a_folder(otb):
    left, right = load_sequences(otb)
    assert (left.name, right.name, right.attributes, left.attributes) == ("Left", "Right", ("SV", "FM"), ())
    assert len(left.frames) == 8 and left.frames[0].name == "0001.jpg"
    assert left.truth[0].tolist() == [50, 40, 20, 20]  # counted from 0
    assert [s.name for s in load_sequences(otb.parent, ["Right"])] == ["Right"]
    assert [s.name for s in load_sequences(otb / "Left")] == ["Left"]


def test_several_targets_share_a_video(otb):
    text = (otb / "Left" / "groundtruth_rect.txt").read_text()
    (otb / "Left" / "groundtruth_rect.txt").unlink()
    (otb / "Left" / "groundtruth_rect.1.txt").write_text(text)
    (otb / "Left" / "groundtruth_rect.2.txt").write_text(text.replace(",", "\t"))
    found = load_sequences(otb)
    assert [s.name for s in found] == ["Left.1", "Left.2", "Right"] and found[1].video == "Left"
    assert np.array_equal(found[0].truth, found[1].truth)
    assert [s.name for s in load_sequences(otb, ["Left.2"])] == ["Left.2"]
    tune, report = halves(found)
    assert ([s.name for s in tune], [s.name for s in report]) == (["Left.1", "Left.2"], ["Right"])
    (otb / "Left" / "groundtruth_rect.2.txt").write_text("")  # as in OTB's Human4
    assert [s.name for s in load_sequences(otb)] == ["Left", "Right"]


def test_evaluated_frames_of_a_longer_video(otb):
    (otb / "Left").rename(otb / "Football1")
    source = (otb / "Football1" / "img" / "0008.jpg").read_bytes()
    for i in range(9, 80):
        (otb / "Football1" / "img" / f"{i:04d}.jpg").write_bytes(source)
    lines = (otb / "Football1" / "groundtruth_rect.txt").read_text().splitlines()
    (otb / "Football1" / "groundtruth_rect.txt").write_text("\n".join(lines + lines[-1:] * 66))
    (sequence,) = load_sequences(otb, ["Football1"])
    assert len(sequence.frames) == 74


@pytest.mark.parametrize("change, words", [
    (lambda f: (f / "img" / "0003.jpg").unlink(), "found 8 boxes for 7 frames"),
    (lambda f: (f / "groundtruth_rect.txt").write_text("1,2,3,4\n1,2,x,4\n"), "line 2: found '1,2,x,4'"),
    (lambda f: (f / "groundtruth_rect.txt").write_text("0,0,0,0\n" * 8), "rect.txt: the first box of Left, 0,0,0,0,"),
    (lambda f: (f / "groundtruth_rect.txt").write_text("1,2,3\n"), "line 1.*expected four numbers"),
])  # fmt: skip
def test_damaged_folders_are_refused(otb, change, words):
    change(otb / "Left")
    with pytest.raises(DataError, match=words):
        load_sequences(otb)


def test_missing_sequences_are_named(otb, tmp_path):
    with pytest.raises(DataError, match=r"no sequence Up in .*; there are Left, Right"):
        load_sequences(otb, ["Left", "Up"])
    with pytest.raises(DataError, match="Tracking sequences not found"):
        load_sequences(tmp_path / "nowhere")


def test_boxes_are_written_as_they_are_read(tmp_path):
    boxes = np.array([[0, 0, 10, 20], [1.5, 2.25, 3.125, 4]])
    write_boxes(tmp_path / "a.txt", boxes)
    assert (tmp_path / "a.txt").read_text().splitlines()[0] == "1.000,1.000,10.000,20.000"
    np.testing.assert_allclose(read_boxes(tmp_path / "a.txt"), boxes)


def test_images_are_in_the_order_of_their_numbers(tmp_path):
    for name in ("f10.png", "f9.jpg", "f1.PNG", "notes.txt", ".f3.jpg"):
        (tmp_path / name).touch()
    assert [p.name for p in list_images(tmp_path)] == ["f1.PNG", "f9.jpg", "f10.png"]


@pytest.mark.skipif(not (DATA / "OTB").is_dir(), reason="the folder that TORCHDFA_DATA names holds no OTB")
def test_real_sequences():
    found = {s.name: s for s in load_sequences(DATA)}
    assert {"Jogging.1", "Jogging.2", "Diving", "Football1"} <= set(found)
    assert len(found["Diving"].frames) == 215 and found["Football1"].truth.shape == (74, 4)
    assert found["DragonBaby"].truth[0].tolist() == [159, 82, 56, 65]
    tune, report = halves(list(found.values()))
    assert not {s.video for s in tune} & {s.video for s in report} and len(tune) + len(report) == len(found)
