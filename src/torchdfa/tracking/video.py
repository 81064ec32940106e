"""Frames in: a video file, a folder of images or a webcam. Frames out: an H.264 video."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchdfa.data.errors import DataError
from torchdfa.tracking.sequences import image_folder, list_images, targets_of

Frame = NDArray[Any]


class Source:
    """Frames of a video, a folder or a webcam, in order.

    Attributes:
        name: What results are named after.
        count: Of its frames, as far as is known; None for a webcam.
        rate: Frames a second of a video made from it.
        file: The video file that is read; None where there is none.
    """

    name: str
    count: int | None = None
    rate: Fraction = Fraction(25)
    file: Path | None = None

    def annotated(self) -> tuple[float, float, float, float] | None:
        """Return the box of the target that is annotated, and begin at the frame it is of; None if none is.

        Raises:
            DataError: The annotation is damaged, or is of several targets.
        """
        return None

    def frames(self) -> Iterator[Frame | DataError]:
        """Yield arrays (H, W, 3) RGB or (H, W); for one that can't be read, the error that says which and why."""
        raise NotImplementedError


def open_source(text: str) -> Source:
    """Open what a user named: a number for a webcam, a folder, or a video file.

    Raises:
        DataError: There is no such thing, or nothing in it can be read.
    """
    if text.isdecimal() and not Path(text).exists():
        return Webcam(int(text))
    path = Path(text).expanduser()
    if path.is_dir():
        return Folder(path)
    if path.is_file():
        return VideoFile(path)
    raise DataError(f"{text}: found nothing there, expected a video file, a folder of images, or a webcam's number.")


class Folder(Source):
    """Images of a folder, in the order of the numbers in their names.

    A folder ``img`` and the one it lies in are one video, named after the latter, as OTB lays them out.
    """

    def __init__(self, path: Path):
        if path.resolve().name == "img" and not (path / "img").is_dir():
            path = path.resolve().parent
        self._path = path
        self._files = list_images(image_folder(path))
        if not self._files:
            raise DataError(f"{path}: found no images, expected .jpg, .png, .bmp, .tif or .webp files.")
        self.name, self.count = path.resolve().name, len(self._files)

    def annotated(self) -> tuple[float, float, float, float] | None:
        """Return the box of OTB's annotation, and begin where OTB does; see :meth:`Source.annotated`."""
        targets = targets_of(self._path)
        if not targets:
            return None
        if len(targets) > 1:
            boxes = ", ".join(f"{t.name} begins at {','.join(f'{n:g}' for n in t.truth[0])}" for t in targets)
            raise DataError(f"{self._path} has several targets: {boxes}. Say with --box which.")
        self._files, self.count = list(targets[0].frames), len(targets[0].frames)
        x, y, w, h = map(float, targets[0].truth[0])
        return x, y, w, h

    def frames(self) -> Iterator[Frame | DataError]:
        """Yield the images; see :meth:`Source.frames`."""
        for file in self._files:
            try:
                yield read_image(file)
            except DataError as error:
                yield error


class VideoFile(Source):
    """A video file of any format that FFmpeg reads."""

    def __init__(self, path: Path):
        import av
        from av.error import FFmpegError

        self.file, self.name = path, path.stem
        try:
            with closing(av.open(str(path))) as container:
                stream = container.streams.video[0]
                self.count = stream.frames or None
                self.rate = Fraction(stream.average_rate or 25)
        except (FFmpegError, IndexError) as error:
            raise DataError(f"{path}: cannot be read as a video ({error}).") from error

    def frames(self) -> Iterator[Frame | DataError]:
        """Yield the frames; see :meth:`Source.frames`."""
        import av
        from av.error import FFmpegError

        done = 0
        try:
            with closing(av.open(str(self.file))) as container:
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                for frame in container.decode(stream):
                    yield frame.to_ndarray(format="rgb24")
                    done += 1
        except FFmpegError as error:
            yield DataError(f"{self.file}: frame {done + 1} cannot be read ({error}); the video is damaged or ends.")


class Webcam(Source):
    """A camera of this machine."""

    def __init__(self, index: int):
        import cv2

        self.name = f"webcam{index}"
        self._camera = cv2.VideoCapture(index)
        if not self._camera.isOpened():
            raise DataError(f"webcam {index}: found no such camera, or another program uses it.")
        self.rate = Fraction(self._camera.get(cv2.CAP_PROP_FPS) or 25).limit_denominator(1001)

    def frames(self) -> Iterator[Frame | DataError]:
        """Yield what the camera sees, until it is unplugged."""
        try:
            while True:
                read, frame = self._camera.read()
                if not read:
                    return
                yield np.ascontiguousarray(frame[:, :, ::-1])
        finally:
            self._camera.release()


def read_image(path: Path) -> Frame:
    """Read an image as it is stored, grey or RGB, 8 or 16 bits.

    Raises:
        DataError: It can't be read.
    """
    import cv2

    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if len(data) else None
    if image is None:
        raise DataError(f"{path}: cannot be read as an image; it is damaged or of another format.")
    if image.ndim == 3:
        image = image[:, :, [2, 1, 0]]
    return image


class VideoWriter:
    """An H.264 video that is whole up to the last second whenever writing ends, even by force.

    Args:
        path: Of the file, .mp4.
        rate: Frames a second.

    Attributes:
        path: As given.
    """

    def __init__(self, path: Path, rate: Fraction):
        import av

        self.path = path
        self._av: Any = av
        # Fragments: the usual index at the file's end would be missing after a crash, and nothing could play it.
        options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
        self._container: Any = av.open(str(path), "w", options=options)
        self._stream: Any = None
        self._rate = rate

    def write(self, frame: Frame) -> None:
        """Add a frame (H, W, 3) RGB, uint8; all are of the first one's size."""
        height, width = frame.shape[:2]
        # H.264 stores colour at half the size, so that sides must be even.
        frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._stream is None:
            self._stream = self._container.add_stream("libx264", rate=self._rate)
            self._stream.height, self._stream.width = frame.shape[:2]
            self._stream.pix_fmt = "yuv420p"
            self._stream.options = {"preset": "veryfast", "crf": "20", "g": str(max(1, round(self._rate)))}
        picture = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        self._container.mux(self._stream.encode(picture))

    def close(self) -> None:
        """Write what is left and close the file."""
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))
        self._container.close()
