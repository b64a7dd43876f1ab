"""Several processes that train together: the parts of a batch, the same losses as alone, a killed one.

The processes are real ones, on this machine's CPU, started by torchrun or by this one, and talking through gloo. CUDA
and NCCL are not tried here.
"""
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.run import get_args_parser

from artinsight import study
from artinsight.data import index, parts
from artinsight.engine.augment import AUGMENTATIONS
from artinsight.loading import dataloaders, open_store
from artinsight.sample import painted_sample
from artinsight.training import read_record

TRAIN = """
import sys
from dataclasses import replace
from artinsight.data import index
from artinsight.study import EXPERIMENTS, run_experiment
data, runs, epochs = sys.argv[1:]
changes = {'epochs': int(epochs), 'augment': ('hflip', 'rotation', 'crop', 'colour'), 'lr': .01, 'per_style': 1000}
run_experiment(replace(EXPERIMENTS['simple_cnn'], **changes), index(data), runs, 'none', 'cpu')
"""
LOSSES = ['train_loss', 'valid_loss', 'accuracy']
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module')
def few(): return painted_sample(8, 8, 2)


@pytest.fixture(scope='module')
def loaders(few):
    "Training batches of 32, augmented in every way: of one process, and of each of `world`."
    tables = parts(index(few))
    store = open_store(tables, few, 32)
    rows = [store.rows(tables[name].path) for name in ('train', 'validation')]
    def make(rank=0, world=1):
        train = dataloaders(store, *rows, augment=AUGMENTATIONS, batch_size=32, device='cpu').train
        train.rank, train.world = rank, world
        return train
    return make


@pytest.mark.parametrize('world', [2, 4])
def test_the_parts_make_the_batches_of_one_process(loaders, world):
    "The same pictures with the same draws, each once."
    whole, split = list(loaders()), [list(loaders(rank, world)) for rank in range(world)]
    assert {len(batches) for batches in split} == {len(whole)}
    for number, (x, y) in enumerate(whole):
        for rank in range(world):
            mine = split[rank][number]
            assert torch.equal(mine[0], x[rank::world]) and torch.equal(mine[1], y[rank::world])


def test_a_batch_that_cannot_be_shared_is_refused(loaders, monkeypatch):
    monkeypatch.setattr('artinsight.loading.world_size', lambda: 3)
    with pytest.raises(ValueError, match='3 processes cannot share'): loaders()


def together(folder, *words, number=2):
    "A command that starts several processes on this machine, on a free port."
    (script := folder/'train.py').write_text(TRAIN)
    launch = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', number, '--rdzv_backend', 'c10d',
              '--rdzv_endpoint', 'localhost:0']
    return [*map(str, [*launch, script, *words])], {**os.environ, 'OMP_NUM_THREADS': '1'}


def train_here(rank, port, words):
    "As a notebook would have started it, where fastai shows a bar and a table."
    sys.modules['ipykernel'] = ModuleType('ipykernel')
    os.dup2(os.open(words[1].with_suffix(f'.{rank}'), os.O_WRONLY | os.O_CREAT), 1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='localhost', MASTER_PORT=port)
    torch.set_num_threads(1)
    train_alone(words)


def train_alone(words):
    sys.argv = ['train.py', *map(str, words)]
    exec(TRAIN, {})


def test_two_processes_train_as_one(few, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = str(free.getsockname()[1])
    words = port, (few, tmp_path/'two', 5)
    torch.multiprocessing.start_processes(train_here, words, 2, start_method='forkserver')
    said = [(tmp_path/f'two.{rank}').read_text().count('train_loss') for rank in range(2)]
    assert said == [1, 0], 'one process speaks for all'
    monkeypatch.setattr(sys, 'argv', sys.argv)
    train_alone((few, tmp_path/'one', 5))
    history = [pd.read_csv(tmp_path/number/'simple_cnn/history.csv')[LOSSES] for number in ('one', 'two')]
    assert len(history[0]) == 5
    pd.testing.assert_frame_equal(*history, rtol=1e-5)
    weights = [load_file(tmp_path/number/'simple_cnn/model.safetensors') for number in ('one', 'two')]
    for name, value in weights[0].items(): torch.testing.assert_close(value, weights[1][name], rtol=1e-4, atol=1e-5)
    assert read_record(tmp_path/'two/simple_cnn')['environment']['world_size'] == 2


def readme_blocks():
    "The lines of the README for one machine, for two, and for Slurm."
    words = (ROOT/'README.md').read_text(encoding='utf-8').partition('## On several GPUs')[2].partition('\n## ')[0]
    return re.findall(r'^```sh\n(.*?)^```', words, re.M | re.S)


def test_the_readme_s_lines_are_few_and_torchrun_understands_them():
    one, two, slurm = blocks = readme_blocks()
    assert all(len(block.splitlines()) <= 5 for block in blocks)
    assert slurm.startswith('#!/bin/bash\n#SBATCH '), 'sbatch takes no file without it'
    assert subprocess.run(['bash', '-n'], input=slurm, text=True, capture_output=True).stderr == ''
    for block, nodes, processes in ((one, '1:1', '2'), (two, '2', '4'), (slurm, '2', '4')):
        line, = re.findall(r'^(?:srun )?torchrun (.*)', block.replace('\\\n', ''), re.M)
        given = get_args_parser().parse_args(shlex.split(line))
        assert (given.nnodes, given.nproc_per_node, given.no_python) == (nodes, processes, True)
        assert given.training_script == 'artinsight_train' and given.training_script_args == ['resnet18_best']
        if nodes == '2': assert given.rdzv_backend == 'c10d' and given.rdzv_endpoint.endswith('FIRST:29500')
    asked = re.search(r'--nodes=(\d) --ntasks-per-node=(\d) .*--gpus-per-node=(\d)', slurm)
    assert asked.groups() == ('2', '1', '4')


@pytest.mark.slow  # two processes train as one above, and torchrun understands the line
def test_the_readme_s_line_for_one_machine_trains(few, tmp_path):
    "Word for word, with the small network in the place of the large one, on a CPU."
    line, = readme_blocks()[0].splitlines()
    words = shlex.split(line.replace('resnet18_best', 'simple_cnn'))
    words += ['--data', few, '--runs', tmp_path/'runs', '--device', 'cpu', '--batch_size', 32]
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT),
           'PATH': f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}',
           'PET_RDZV_BACKEND': 'c10d', 'PET_RDZV_ENDPOINT': 'localhost:0'}  # a free port, as torchrun's flags
    done = subprocess.run([*map(str, words)], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    record = read_record(tmp_path/'runs/simple_cnn')
    assert record['environment']['world_size'] == 2 and f"{record['test']['accuracy']:.3f}" in done.stdout
    assert done.stderr.count('epoch 0,') == 1, 'one process speaks for all'


def test_ranks_share_each_training_and_start_none_beside_it(few, tmp_path, monkeypatch):
    "A process beside them would be taken for a rank, and all would wait for each other."
    trained = []
    monkeypatch.setattr(study, 'world_size', lambda: 2)
    monkeypatch.setattr(study, '_side_by_side', lambda *args: pytest.fail('a process beside the ranks'))
    monkeypatch.setattr(study, 'run_experiment', lambda recipe, *args, **more: trained.append(recipe.name))
    study.reproduce(few, tmp_path, quick=True, weights='none', device='cpu')
    assert trained == list(study.EXPERIMENTS)


def rank_one(words):
    "The process of rank 1 whose command line holds these words; None where it is not there yet."
    for folder in Path('/proc').glob('[0-9]*'):
        try: line, environment = [(folder/name).read_bytes() for name in ('cmdline', 'environ')]
        except (OSError, ValueError): continue
        if os.fsencode(words) in line and b'\0RANK=1\0' in b'\0' + environment: return int(folder.name)


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/environ').exists(), reason='finds the process in /proc')
def test_a_killed_rank_ends_all_and_the_training_goes_on(few, tmp_path):
    runs = tmp_path/'runs'
    command, env = together(tmp_path, few, runs, 60)
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as job:
        for line in job.stderr:
            if 'epoch 3,' in line: break
        os.kill(rank_one(str(runs)), signal.SIGKILL)
        killed = time.monotonic()
        rest = job.stderr.read()
    assert job.returncode and time.monotonic() - killed < 30 and 'SIGKILL' in rest
    assert not (runs/'simple_cnn/record.json').exists()
    alone = subprocess.run([sys.executable, '-c', TRAIN, few, runs, '60'], capture_output=True, text=True)
    assert alone.returncode == 0 and re.search('resumed after [1-9]', alone.stderr), alone.stderr[-2000:]
    assert read_record(runs/'simple_cnn')['environment']['world_size'] == 1
