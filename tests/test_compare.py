"Comparing under one budget: what is paused goes on to the last bit, what is dropped is not looked at, faults are told."
import json
import os
import subprocess
from dataclasses import replace

import numpy as np, pytest
from safetensors.torch import load_file

from artinsight import study
from artinsight.data import index
from artinsight.sample import painted_sample
from artinsight.study import run_experiment
from artinsight.training import Experiment, read_record
from artinsight.use.commands import artinsight_compare
from artinsight.use.compare import Contest, epochs_of, halve, leaderboard, rungs
from scripts import python

PLAIN = Experiment('plain', 'simple_cnn', epochs=4, patience=0, lr=.03, batch_size=32, one_cycle=True)


@pytest.fixture(scope='module')
def folder(): return painted_sample(train=8, test=2)


@pytest.fixture
def known(monkeypatch):
    recipes = [PLAIN, replace(PLAIN, name='slow', lr=1e-7), replace(PLAIN, name='wrong', model='no_such_net'),
               replace(PLAIN, name='late', lr=.01)]
    for recipe in recipes: monkeypatch.setitem(study.EXPERIMENTS, recipe.name, recipe)


def test_a_run_that_was_paused_twice_is_the_run_that_was_left_alone(folder, tmp_path):
    frame = index(folder)
    run_experiment(PLAIN, frame, tmp_path / 'alone', 'none', 'cpu')
    others = [replace(PLAIN, name=name, lr=1e-7) for name in 'abc']
    halve(Contest([PLAIN, *others], frame, tmp_path / 'contest', 'none', 'cpu', keep=1))
    alone, paused = (tmp_path / name / 'plain' for name in ('alone', 'contest'))
    first, second = (load_file(run / 'model.safetensors') for run in (alone, paused))
    assert all(first[name].equal(second[name]) for name in first)
    assert read_record(alone)['test'] == read_record(paused)['test']
    assert [len(epochs_of(tmp_path / 'contest' / name)) for name in ('plain', 'a', 'b', 'c')] == [4, 2, 1, 1]
    assert not list((tmp_path / 'contest').glob('[abc]/predictions.npz'))


def test_on_the_console_a_fault_is_told_and_the_others_go_on(folder, tmp_path, capsys, known):
    def call(**more):
        artinsight_compare(['plain', 'slow', 'wrong', 'late'], data=str(folder), runs=str(tmp_path), weights='none',
                           device='cpu', json=True, **more)
        return json.loads(capsys.readouterr().out)
    assert {row['state'] for row in call(minutes=0) if row['experiment'] != 'wrong'} == {'0 of 4 epochs'}
    rows = {row['experiment']: row for row in call()}
    assert "no model 'no_such_net'" in rows['wrong']['state'] and rows['wrong']['gflops'] is None
    halfway = {name: epochs_of(tmp_path / name)[1]['accuracy'] for name in ('plain', 'slow', 'late')}
    dropped, = [name for name in halfway if rows[name]['state'] == '2 of 4 epochs']
    finished = sorted(set(halfway) - {dropped}, key=lambda name: -rows[name]['validation'])
    assert halfway[dropped] == min(halfway.values()) and {rows[name]['state'] for name in finished} == {'finished'}
    assert rows[dropped]['accuracy'] is None and rows[dropped]['validation'] == pytest.approx(halfway[dropped])
    assert not (tmp_path / dropped / 'predictions.npz').exists()
    best, other = finished
    assert rows[best]['difference'] is None and rows[other]['from'] <= rows[other]['difference'] <= rows[other]['to']
    assert rows[best]['accuracy'] == pytest.approx(read_record(tmp_path / best)['test']['accuracy'])
    held = load_file(tmp_path / best / 'model.safetensors')
    assert rows[best]['parameters'] == sum(weight.numel() for weight in held.values())
    assert (tmp_path / 'compare.png').stat().st_size > 1000


def test_rungs_halve_and_end_with_what_is_kept():
    for n in range(1, 20):
        for keep in range(1, 5):
            steps = rungs(n, keep)
            assert steps[0][0] == n and steps[-1] == (min(n, keep), 1)
            assert all(later[0] == max(keep, -(-earlier[0] // 2)) and later[1] == 2 * earlier[1]
                       for earlier, later in zip(steps, steps[1:]))
    with pytest.raises(ValueError, match='at least one'): rungs(3, 0)


def test_a_table_without_a_finished_run_has_no_best(folder, tmp_path):
    table = leaderboard(Contest([PLAIN], index(folder), tmp_path, 'none', 'cpu'))
    assert table.state.tolist() == ['0 of 4 epochs'] and np.isnan(table.accuracy).all() and table.gflops[0] > 0


def test_among_several_ranks_it_refuses_at_once(tmp_path):
    "Before it looks for data, and before anything large is imported."
    env, command = {**os.environ, 'WORLD_SIZE': '2', 'RANK': '1'}, python('artinsight_compare', 'plain', 'late')
    command[1:1] = ['-X', 'importtime']
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    *imports, line = done.stderr.splitlines()
    assert done.returncode == 2 and not done.stdout and not list(tmp_path.iterdir())
    assert line == ('artinsight_compare: one process compares: start this without torchrun, '
                    'then artinsight_train NAME with it')
    assert all(each.startswith('import time:') and '| torch' not in each for each in imports)
