"The five quick runs that notebooks and tests look at: `make report`'s, or shorter ones on fewer pictures."
import hashlib
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import torch
from filelock import FileLock

from artinsight import training
from artinsight.data import index
from artinsight.engine.files import cache_folder
from artinsight.engine.runs import git_commit
from artinsight.sample import painted_sample, STUDY_SAMPLE
from artinsight.study import EXPERIMENTS, find_experiment, run_experiment

ROOT = Path(__file__).resolve().parent.parent
# What a training depends on, beside the engine.
STORY = 'data', 'sample', 'loading', 'training', 'baseline', 'resnet18', 'evaluation', 'study'


def quick_sample():
    "The painted sample of the quick runs, or of shorter ones: one process paints it, the others wait."
    if not made_by_this_code(ROOT/'runs'): STUDY_SAMPLE.update(train=60, ai=30)
    cache_folder().mkdir(parents=True, exist_ok=True)
    with FileLock(cache_folder()/'quick-sample.lock'): return painted_sample(**STUDY_SAMPLE)


def made_by_this_code(folder):
    "Whether a folder holds the five quick runs on the painted sample, trained by the very code that is here."
    commit = git_commit()
    if commit is None or commit.endswith('+'): return False
    try: records = [training.read_record(folder/name) for name in EXPERIMENTS]
    except (OSError, ValueError): return False
    return all(record['git'] == commit and record['quick'] and record['data']['name'] == 'painted sample'
               for record in records)


def train(name, data, folder):
    "One of the five, for an epoch, in a process of its own."
    torch.set_num_threads(1)
    with patch.dict(training.QUICK, epochs=1):
        run_experiment(find_experiment(name, quick=True), index(data), folder, 'none', 'cpu')


def quick_runs():
    "Their folder. Short ones are trained once per version of the package: read only."
    if made_by_this_code(ROOT/'runs'): return ROOT/'runs'
    code = hashlib.sha256(Path(__file__).read_bytes())
    for module in sorted([*(ROOT/'artinsight/engine').glob('*.py'), *(ROOT/f'artinsight/{name}.py' for name in STORY)]):
        code.update(module.read_bytes())
    folder = cache_folder()/'test-runs'/code.hexdigest()[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f'{folder}.lock'):  # one of the workers trains, the others wait
        if (folder/'all-done').exists(): return folder
        data = quick_sample()
        context = get_context('forkserver')  # PyTorch forbids a fork after a backward pass
        context.set_forkserver_preload(['artinsight.study', 'torch._dynamo'])
        with ProcessPoolExecutor(2, context) as pool:
            trainings = [pool.submit(train, name, data, folder) for name in reversed(EXPERIMENTS)]
            for each in trainings: each.result()
        (folder/'all-done').touch()
    return folder
