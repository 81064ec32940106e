"""Pre-training of the head's shared layers over many sequences, one last layer each (MDNet, Nam & Han 2016).

A head is never used on a video that it was trained on: with every head the fingerprints of its videos are written, and
:func:`choose_head` refuses one that has seen the video at hand.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from torchdfa.data.errors import DataError
from torchdfa.files import write_atomically
from torchdfa.settings import demand, whole
from torchdfa.tracking.backbones import Trunk, load_trunk
from torchdfa.tracking.boxes import inside
from torchdfa.tracking.config import TrackerConfig
from torchdfa.tracking.frames import FrameReader
from torchdfa.tracking.head import BACKGROUND, TARGET, build_layers, read_head
from torchdfa.tracking.memory import Cycle
from torchdfa.tracking.region import Normal, look, view_of
from torchdfa.tracking.samples import POSITIVES, Spread, draw_overlapping
from torchdfa.tracking.sequences import Sequence as Video
from torchdfa.tracking.video import read_image

_NEGATIVES = Spread(kind="uniform", shift=2.0, scale=1.5)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Settings of the pre-training; features are pooled as the tracker of the same settings does.

    Args:
        tracker: Backbone, crop and widths of the head.
        frames: Of each target, evenly spread over its video.
        positives: Samples of the target in a frame, of overlap 0.7 or more.
        negatives: Samples of the background in a frame, of overlap 0.5 or less.
        cycles: Batches of each target, 32 + 96 samples by default as the tracker's.
        lr: Learning rate of the shared layers; the last ones' is the tracker's ``last_lr`` times that.
        leave_out: Train one head for each video, without it, beside the one that has seen all.
    """

    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    frames: int = 40
    positives: int = 50
    negatives: int = 200
    cycles: int = 100
    lr: float = 1e-3
    leave_out: bool = True

    def __post_init__(self) -> None:
        counts = {n: whole(getattr(self, n)) for n in ("frames", "positives", "negatives", "cycles")}
        demand(self, **counts, lr=(0 < self.lr < 10, "a learning rate above 0, below 10"))


def pretrain(
    config: PretrainConfig, sequences: Sequence[Video], out: Path, say: Callable[[str], None] = lambda text: None
) -> list[Path]:
    """Train shared layers, and write ``all.safetensors`` and, for each video, ``without-VIDEO.safetensors``.

    Files that are there are left as they are.

    Args:
        config: Settings.
        sequences: To learn from.
        out: Folder of the files.
        say: Called with what is going on.

    Raises:
        DataError: A file holds a head of other settings, or a frame can't be read.
        ValueError: There are too few videos to leave one out.
    """
    videos = sorted({s.video for s in sequences})
    if config.leave_out and len(videos) < 2:
        raise ValueError(f"pre-training without one video needs two or more; found {', '.join(videos) or 'none'}.")
    out.mkdir(parents=True, exist_ok=True)
    left_out = [None, *videos] if config.leave_out else [None]
    tasks = [(out / (f"without-{v}.safetensors" if v else "all.safetensors"), v) for v in left_out]
    settings = _settings(config)
    missing = []
    for path, video in tasks:
        if not path.is_file():
            missing.append((path, video))
        elif read_head(path)[1].get("settings") != settings:
            raise DataError(f"{path} was trained with other settings; give another --out.")
    if not missing:
        return [path for path, _ in tasks]
    c = config.tracker
    trunk = load_trunk(c.backbone, c.layers or None, c.weights, c.dtype)
    samples: dict[str, tuple[Tensor, Tensor]] = {}
    for sequence in sequences:
        say(f"features of {sequence.name}")
        samples[sequence.name] = _samples(config, trunk, sequence)
    seen_by = {s.video: fingerprint(s) for s in sequences}
    for path, video in missing:
        used = [s for s in sequences if s.video != video]
        say(f"{path.name}: {len(used)} targets")
        state = _train(config, [samples[s.name] for s in used])
        _write(path, state, settings, {v: f for v, f in seen_by.items() if v != video})
    return [path for path, _ in tasks]


def choose_head(folder: Path, sequence: Video) -> Path:
    """Return a head of a folder that has not seen the sequence's video; of several, the one that has seen most.

    Raises:
        DataError: There is none.
    """
    own, best = fingerprint(sequence), (0, Path())
    for path in sorted(folder.glob("*.safetensors")):
        seen = videos_of(path)
        if own not in seen.values() and sequence.video not in seen:
            best = max(best, (len(seen), path), key=lambda entry: entry[0])
    if not best[0]:
        raise DataError(
            f"{folder}: every head in it was trained on {sequence.video}, or there is none. A head must not be used on "
            "a video that it has learnt from: torchdfa track-pretrain makes heads that have not."
        )
    return best[1]


def videos_of(path: Path) -> dict[str, str]:
    """Return the videos that a head has seen, each with its fingerprint."""
    try:
        videos = json.loads(read_head(path)[1].get("videos", "{}"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: what it says of its videos can't be read ({error}).") from error
    if not isinstance(videos, dict):
        raise DataError(f"{path}: what it says of its videos is no list of names and fingerprints.")
    return videos


def fingerprint(sequence: Video) -> str:
    """Return a hash of a video's first and middle frame: it stays when the folder is renamed."""
    digest = hashlib.sha256()
    for frame in (sequence.frames[0], sequence.frames[len(sequence.frames) // 2]):
        digest.update(frame.read_bytes())
    return digest.hexdigest()[:16]


def _samples(config: PretrainConfig, trunk: Trunk, sequence: Video) -> tuple[Tensor, Tensor]:
    """Return features of the target and of the background from frames all over a video."""
    c, generator = config.tracker, torch.Generator().manual_seed(config.tracker.seed)
    reader, normal = FrameReader(), None
    positives, negatives = [], []
    chosen = torch.linspace(0, len(sequence.frames) - 1, min(config.frames, len(sequence.frames))).round().long()
    for i in chosen.unique().tolist():
        frame = reader(read_image(sequence.frames[i]))
        size = (frame.shape[2], frame.shape[1])
        box = inside(torch.tensor(sequence.truth[i][None], dtype=torch.float32), *size)[0]
        region = look(trunk, frame, view_of(box, c.target, c.reach, trunk.align))
        normal = normal or Normal(region.maps)
        region.maps = normal(region.maps)
        for found, count, spread, limits in (
            (positives, config.positives, POSITIVES, {"above": 0.7}),
            (negatives, config.negatives, _NEGATIVES, {"below": 0.5}),
        ):
            boxes = draw_overlapping(box, count, spread, size, generator, **limits)
            found.append(region.pool(boxes, c.bins, c.crop / c.target).to(c.dtype))
    return torch.cat(positives), torch.cat(negatives)


def _train(config: PretrainConfig, domains: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Train the shared layers with one last layer a domain, a batch of each in turn; return the shared ones."""
    c = config.tracker
    generator = torch.Generator().manual_seed(c.seed)
    net = build_layers(domains[0][0].shape[1], c, generator)
    *shared, _ = net
    trunk = nn.Sequential(*shared)
    lasts = []
    for _ in domains:
        layer = nn.Linear(c.hidden[-1], 2)
        nn.init.normal_(layer.weight, 0, 0.01, generator=generator)
        nn.init.zeros_(layer.bias)
        lasts.append(layer)
    optimizer = torch.optim.SGD(
        [
            {"params": list(trunk.parameters())},
            {"params": [p for layer in lasts for p in layer.parameters()], "lr": config.lr * c.last_lr},
        ],
        lr=config.lr,
        momentum=c.momentum,
        weight_decay=c.weight_decay,
    )
    cycles = [(Cycle(len(p), generator), Cycle(len(n), generator)) for p, n in domains]
    labels = torch.cat([torch.full((c.positives,), TARGET), torch.full((c.negatives,), BACKGROUND)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(c.seed)  # for dropout, which knows no generator
        for _ in range(config.cycles):
            for i, (positives, negatives) in enumerate(domains):
                trunk.eval()
                with torch.no_grad():
                    examined = negatives[cycles[i][1].next(c.examined)].float()
                    logits = lasts[i](trunk(examined))
                    hardest = (logits[:, TARGET] - logits[:, BACKGROUND]).topk(c.negatives).indices
                batch = torch.cat([positives[cycles[i][0].next(c.positives)].float(), examined[hardest]])
                trunk.train()
                optimizer.zero_grad()
                nn.functional.cross_entropy(lasts[i](trunk(batch)), labels).backward()
                nn.utils.clip_grad_norm_([*trunk.parameters(), *lasts[i].parameters()], c.clip or float("inf"))
                optimizer.step()
    return {name: value for name, value in net.state_dict().items() if not name.startswith(f"fc{4 + len(c.hidden)}")}


def _settings(config: PretrainConfig) -> str:
    from torchdfa.training import to_dict

    return json.dumps(to_dict(config), sort_keys=True)


def _write(path: Path, state: dict[str, Tensor], settings: str, videos: dict[str, str]) -> None:
    from safetensors.torch import save

    data = save(state, {"settings": settings, "videos": json.dumps(videos)})
    write_atomically(path, lambda file: file.write(data))
