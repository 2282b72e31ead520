"""What the tests of the whole share: a toy model folder with every part, pictures, and the command line in this process.

The suite runs on one thread: small tensors gain nothing from more, results do not depend on the machine's cores, and the tests
that fork a process to kill it must not fork a running thread pool. Set here, before anything imports torch.
A shell starts what runs in the background with interruptions ignored; here they are heard again, for the tests that interrupt.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

import shutil
import signal
import socket
import subprocess
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

signal.signal(signal.SIGINT, signal.default_int_handler)

TEXTS = ["a red circle", "a blue square", "how many circles?", "describe"]


@dataclass(frozen=True)
class Outcome:
    """What a command did: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


class CommandLine:
    """`cm3` in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str | Path) -> Outcome:
        from cm3 import cli

        self._capsys.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        return Outcome(code, *self._capsys.readouterr())

    def works(self, *arguments: str | Path) -> str:
        """Exit code 0; returns what was printed."""
        done = self(*arguments)
        assert done.code == 0, done.err
        return done.out

    def fails(self, code: int, words: list[str], *arguments: str | Path) -> str:
        """Exit `code`, nothing on stdout, one line of error with all of `words`; returns that line."""
        done = self(*arguments)
        assert done.code == code, (done.code, done.err)
        assert done.out == ""
        assert "Traceback" not in done.err
        lines = [line for line in done.err.splitlines() if line.startswith("cm3: error: ")]
        assert len(lines) == 1, done.err
        assert len(lines[0]) < 700, "nobody reads that much"
        assert "pydantic" not in lines[0]
        for word in words:
            assert word in lines[0], lines[0]
        return lines[0]


@pytest.fixture(autouse=True)
def _fp32_on_every_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings in this process make the same sums on every CPU; what bf16 does is tested where it is asked for."""
    monkeypatch.setattr("cm3.train.precision.cpu_has_bf16_tiles", lambda: False)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncing guards against power cuts, which no test stages; on a busy disk it would be most of the time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """The command line, in a folder of its own."""
    monkeypatch.setenv("CM3_PROGRESS", "off")
    monkeypatch.chdir(tmp_path)
    return CommandLine(capsys)


def noise(seed: int, side: int = 24) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8))


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of 24×24 pixels, never to be written to."""
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    noise(0).save(path)
    return path


@pytest.fixture(scope="session")
def randomize() -> Callable[..., Any]:
    """`randomize(model, seed)` moves weights far from their initialization, so that gains, biases and norms all matter."""
    import torch

    def move(model: Any, seed: int, strength: float = 0.3) -> Any:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * strength)
        return model

    return move


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder of pictures with captions: `pictures(name, count=…, captions=…)`."""

    def make(name: str, count: int = 20, captions: bool = True) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for number in range(count):
            noise(number).save(folder / f"{number:02d}.png")
            if captions:
                (folder / f"{number:02d}.txt").write_text(f"picture number {number}")
        return folder

    return make


@pytest.fixture(scope="session")
def make_toy_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a whole model folder of untrained parts, through the functions that trained parts go through.

    24×24 pixels, 3×3 codes, 160 tokens of context; encoder and memory of six documents. `codebook_size` and `seed` make others.
    """

    def make(codebook_size: int = 64, seed: int = 0) -> Path:
        import torch

        import vqgan
        from cm3.model.presets import create_model, preset
        from cm3.model_folder import Parts, assemble_model_folder
        from cm3.tokens import BPETextTokenizer, DocumentTokenizer, vocab_for
        from sft.tasks import TASKS_FILE, default_tasks, tasks_json
        from vqgan.config import VQConfig
        from vqgan.model import VQModel
        from vqgan.tokenizer import VQTokenizer

        root = tmp_path_factory.mktemp("toy_model")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            shape = VQConfig(
                image_size=24, downsample_factor=8, codebook_size=codebook_size, codebook_dim=8, network_options={"width": 16}
            )
            images = VQTokenizer(VQModel(shape)).save(root / "images")
            encoder = _toy_encoder(root / "encoder", seed)
        text = BPETextTokenizer.train(TEXTS, 280)
        vocab = vocab_for(text, codebook_size, (3, 3))
        config = preset(
            "tiny", vocab_size=vocab.size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.2,
            max_position_embeddings=160, grid_embedding=True, grid_shape=vocab.grid_shape, image_start=vocab.image_start,
            image_stop=vocab.image_stop, texts_were_masked=True,
        )  # fmt: skip
        tokenizer = DocumentTokenizer(vocab, text, vqgan.from_pretrained(images))
        parts = Parts(images, encoder, _toy_memory(root / "memory", encoder))
        tasks = {TASKS_FILE: tasks_json(default_tasks())}
        return assemble_model_folder(root / "model", create_model(config, seed), tokenizer, parts, json_files=tasks)

    return make


def _toy_encoder(folder: Path, seed: int) -> Path:
    from cm3.train.config import TrainConfig
    from retrieval.config import TrainEncoderConfig
    from retrieval.encoders.presets import EncoderShape, TowerShape
    from retrieval.encoders.text import train_text_tokenizer
    from retrieval.pair_model import new_clip, save_encoder

    tower = TowerShape(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    shape = EncoderShape(
        image_size=24, patch_size=12, max_text_length=16, vocab_size=320, projection_dim=24, vision=tower, text=tower
    )
    folder.mkdir()
    tokenizer = train_text_tokenizer(TEXTS, shape.vocab_size)
    config = TrainEncoderConfig(train=TrainConfig(seed=seed))
    save_encoder(new_clip(tokenizer, config, shape), tokenizer, shape, folder)
    return folder


def _toy_memory(folder: Path, encoder: Path) -> Path:
    import retrieval
    from cm3.documents import Document

    documents = [Document.pair(f"d{number}", f"picture number {number}", noise(number)) for number in range(6)]
    retrieval.build(documents, folder, encoder, retrieval.BuildConfig(embed_encoder=False))
    return folder


@pytest.fixture(scope="session")
def toy_model(make_toy_model: Callable[..., Path]) -> Path:
    """A whole model folder, never to be written to."""
    return make_toy_model()


@pytest.fixture
def toy_copy(toy_model: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(toy_model, tmp_path / "model"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB of its own; only root can make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("no small file system can be mounted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture(scope="session")
def times() -> Callable[[int], range]:
    """How often a drill is done: `times(12)` counts to twelve, or to as many times that as the variable CM3_DRILLS says."""
    factor = int(os.environ.get("CM3_DRILLS", "1"))
    return lambda count: range(count * factor)


@pytest.fixture
def in_child() -> Callable[..., int]:
    """Run `work` in a forked process; returns its pid, or with wait=True its exit code (negative: the signal)."""

    def run(work: Callable[[], object], wait: bool = True) -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads around; the child only needs its own
            pid = os.fork()
        if pid == 0:
            code = 1
            try:
                work()
                code = 0
            except BaseException:
                traceback.print_exc()  # nobody else will
                raise
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if wait else pid

    return run


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _as_rank(rank: int, port: int, work: Callable[[], object]) -> Callable[[], None]:
    """`work` as process `rank` of two, as a launcher would start it."""

    def run() -> None:
        import torch
        from accelerate.state import AcceleratorState, GradientState, PartialState

        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        work()
        torch.distributed.destroy_process_group()

    return run


@pytest.fixture
def on_two(in_child: Callable[..., int]) -> Callable[[Callable[[], object]], list[int]]:
    """Run `work` in two connected processes; returns their exit codes."""

    def run(work: Callable[[], object]) -> list[int]:
        port = _free_port()
        pids = [in_child(_as_rank(rank, port, work), wait=False) for rank in range(2)]
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]

    return run
