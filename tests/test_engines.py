"""datatrove's engines with processes of their own, on this machine: what they make together is what one process makes.

Tests of tokenizing and of building shares, one beside the other: Ray is started once for both.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import retrieval
from cm3.core import artefact
from cm3.documents.readers import read_documents
from cm3.tokenize import tokenize, train_document_tokenizer, workers
from retrieval.config import BuildConfig
from retrieval.scaling import ShareTask, build_shards, total_account

executors = pytest.importorskip("datatrove.executor", reason="the extra `scale` is not installed")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.parametrize("engine", ["local", "ray", "slurm"], indirect=True)]
COUNT = 12
SLURM = {"time": "00:10:00", "partition": "any"}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sbatch`, `srun` and `scontrol` that run the tasks of an array here, one after another."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    sbatch = """#!/bin/bash
script="${@: -1}"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
for task in $(seq 0 "$last"); do
    SLURM_JOB_ID=7 SLURM_ARRAY_TASK_ID=$task SLURM_NODELIST=here bash "$script" >> "$(dirname "$0")/log" 2>&1
done
echo "Submitted batch job 7"
"""
    srun = """#!/bin/bash
while [[ "$1" == -* ]]; do [[ "$1" == -n ]] && shift; shift; done
exec "$@"
"""
    scontrol = "#!/bin/bash\necho here\n"  # the names of the nodes
    for name, text in (("sbatch", sbatch), ("srun", srun), ("scontrol", scontrol)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]]))


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """Two processors of this machine as a cluster of Ray."""
    engine = pytest.importorskip("ray", reason="the extra `scale` is not installed")
    engine.init(num_cpus=2, include_dashboard=False, ignore_reinit_error=True, log_to_driver=False)
    yield
    engine.shutdown()


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> str:
    """The name of an engine that is there to take work."""
    if request.param != "local":
        request.getfixturevalue(request.param)
    return str(request.param)


def test_token_shards(
    engine: str, pictures: Callable[..., Path], toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cm3.tokenize import scale

    make = workers.make_job
    for module in (workers, scale):  # parts of five records, so that twelve make three
        monkeypatch.setattr(module, "make_job", lambda *arguments: replace(make(*arguments), records_per_part=5))
    data, images = pictures("data", COUNT), toy_model / "image_tokenizer"
    train_document_tokenizer(read_documents(data), images, tmp_path / "tokenizer", 300)
    tokenize(data, tmp_path / "tokenizer", images, tmp_path / "one", workers=1)
    encode, join = scale.pipelines(data, tmp_path / "tokenizer", images, tmp_path / "many")
    logs = [str(tmp_path / "logs" / name) for name in ("encode", "join")]
    if engine == "slurm":
        first = executors.SlurmPipelineExecutor(encode, tasks=2, job_name="encode", logging_dir=logs[0], **SLURM)
        executors.SlurmPipelineExecutor(join, tasks=1, job_name="join", logging_dir=logs[1], depends=first, **SLURM).run()
    else:
        executor = {"local": executors.LocalPipelineExecutor, "ray": executors.RayPipelineExecutor}[engine]
        executor(encode, tasks=2, workers=2, logging_dir=logs[0]).run()
        executor(join, tasks=1, logging_dir=logs[1]).run()
    assert artefact.fingerprint(tmp_path / "many") == artefact.fingerprint(tmp_path / "one")


def test_shares_of_a_memory_bank(engine: str, pictures: Callable[..., Path], tmp_path: Path) -> None:
    data = pictures("data", COUNT)
    if engine == "slurm":
        task = ShareTask(str(data), tmp_path / "out", "hashing", BuildConfig())
        executors.SlurmPipelineExecutor([task], tasks=2, logging_dir=str(tmp_path / "logs"), **SLURM).run()
        shards = sorted((tmp_path / "out" / "shards").iterdir())
        assert total_account(tmp_path / "out").ok == COUNT
    else:
        shards = build_shards(data, tmp_path / "out", "hashing", tasks=2, workers=2, engine=engine)
    assert len(shards) == 2
    retrieval.build(data, tmp_path / "whole", "hashing")
    whole, together = retrieval.open(tmp_path / "whole"), retrieval.open_banks(shards)
    found, expected = (
        {(hit.document.id, round(hit.score, 6)) for hit in bank.search(text="picture number 7", k=COUNT)}
        for bank in (together, whole)
    )
    assert found == expected
    assert len(found) == COUNT
    merged = retrieval.open(retrieval.merge(shards, tmp_path / "merged").path)
    rows = [list(merged.ids).index(name) for name in whole.ids]
    assert np.array_equal(np.asarray(merged.vectors)[rows], np.asarray(whole.vectors))
