"""The study from the command line: five complete records, skipped when done, trained anew when asked for something
else."""
import json
import re
import subprocess
from contextlib import contextmanager
from functools import partial

import numpy as np
import pandas as pd
import pytest

from artinsight import study, training
from artinsight.data import CLASSES, fingerprint, index
from artinsight.evaluation import HEADLINES, evaluate
from artinsight.sample import painted_sample
from artinsight.study import EXPERIMENTS, find_experiment
from artinsight.training import load_predictions, read_record
from artinsight.use.commands import artinsight_evaluate

from scripts import call

SCORES = {'n', 'loss', 'accuracy', 'accuracy_ci95', 'balanced_accuracy', 'precision_weighted', 'recall_weighted',
          'f1_weighted',
          'precision_macro', 'recall_macro', 'f1_macro', 'top2_accuracy', 'origin_accuracy', 'style_accuracy', 'ece'}


def script(*words):
    "A command in a process of its own; the others are called in this one."
    return subprocess.run([str(word) for word in words], capture_output=True, text=True)


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_a_record_says_where_its_figures_come_from(runs, sample, name):
    record, frame = read_record(runs / name), index(sample)
    assert record['experiment']['name'] == name and record['quick'] is True and record['weights'] == 'none'
    assert record['data']['name'] == 'painted sample' and record['data']['index_sha256'] == fingerprint(frame)
    assert sum(record['data']['counts']['test'].values()) == record['test']['n'] == (frame.split == 'test').sum()
    assert sum(record['data']['counts']['validation'].values()) == record['validation']['n']
    assert set(record['data']['counts']['train']) == set(CLASSES)
    assert {'versions', 'device', 'precision'} <= set(record['environment']) and 'git' in record
    assert record['images_per_second'] > 0 and record['seconds'] > 0
    for part in ('validation', 'test'):
        assert set(record[part]) == SCORES
        low, high = record[part]['accuracy_ci95']
        assert 0 <= low <= record[part]['accuracy'] <= high <= 1
        assert all(0 <= value <= 1 for key, value in record[part].items() if key not in ('n', 'loss', 'accuracy_ci95'))


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_the_record_agrees_with_what_was_saved(runs, name):
    record, history = read_record(runs / name), pd.read_csv(runs / name / 'history.csv')
    assert record['best_epoch'] == history.valid_loss.idxmin()
    assert len(history) == record['epochs'] <= record['experiment']['epochs']
    ids, target, probs = load_predictions(runs / name, 'test')
    assert record['test'] == evaluate(target, probs, ids)
    assert [CLASSES.index(f"{'AI' if '/AI_' in path else 'human'}_{style(path)}") for path in ids] == list(target)
    assert not set(ids) & set(load_predictions(runs / name, 'validation')[0])
    assert not (runs / name / 'checkpoint.safetensors').exists()
    best = history.valid_loss.min()
    validation = load_predictions(runs / name, 'validation')
    saved = -np.log(validation[2][np.arange(len(validation[1])), validation[1]].clip(2**-24)).mean()
    assert saved == pytest.approx(best, rel=.03)  # probabilities are saved as float16, the model may run in bfloat16


def style(path):
    return path.split('/')[1].removeprefix('AI_LD_').removeprefix('AI_SD_').replace('-', '_')


def test_a_model_learns_more_than_chance_and_less_than_all(runs):
    accuracies = {name: read_record(runs / name)['test']['accuracy'] for name in EXPERIMENTS}
    assert max(accuracies.values()) > .3, accuracies
    assert max(accuracies.values()) < 1, accuracies


@pytest.fixture
def reproduce(runs, sample, monkeypatch):
    "`artinsight_reproduce`, quick, on the runs that are there, for as many epochs as they were trained."
    monkeypatch.setitem(training.QUICK, 'epochs', read_record(runs / 'simple_cnn')['experiment']['epochs'])
    return partial(call, 'artinsight_reproduce', '--data', sample, '--runs', runs, '--quick', '--weights', 'none')


def test_finished_runs_are_skipped_and_the_summary_goes_to_standard_output(reproduce, runs):
    before = {file: file.stat().st_mtime_ns for file in runs.rglob('model.safetensors')}
    done = reproduce('--json')
    assert done.returncode == 0, done.stderr
    assert done.stderr.count('already done') == 5
    assert [record['experiment']['name'] for record in json.loads(done.stdout)] == list(EXPERIMENTS)
    assert {file: file.stat().st_mtime_ns for file in runs.rglob('model.safetensors')} == before


def test_the_last_recipe_is_trained_beside_the_others_as_it_would_be_among_them(tmp_path, monkeypatch, capsys):
    "The words for the other process name the very recipe: what it has trained is not trained again."
    @contextmanager
    def here(code, words):
        assert 'artinsight_train()' in code
        done = call('artinsight_train', *words)
        yield lambda: codes.append(done.returncode)
    codes, frame = [], index(painted_sample(train=8, ai=8, test=2))
    monkeypatch.setattr(study, 'beside', here)
    monkeypatch.setattr(study, 'num_cpus', lambda: 2)
    recipes = [find_experiment(name, True, 3).fit_epochs(frame) for name in ('simple_cnn', 'resnet18_base')]
    records = study._run_all(recipes, frame, tmp_path, 'none', 'cpu', True)
    assert codes == [0] and capsys.readouterr().err.count('already done') == 1
    assert [record['experiment']['name'] for record in records] == ['simple_cnn', 'resnet18_base']


def test_the_table_says_which_steps_are_real(reproduce, runs):
    done = reproduce()
    assert done.returncode == 0, done.stderr
    stands_on, head, *lines = done.stdout.splitlines()
    assert stands_on == 'painted sample, first weights: none, quick' and '95 % interval' in head
    climbed = 'simple_cnn', 'resnet18_base', 'resnet18_augmented', 'resnet18_best'
    for line, before, after in zip(lines[5:], climbed[:-1], climbed[1:], strict=True):
        number = r'[+-]0\.\d{3}'
        verdict = rf'(real gain|real loss|not shown), {number} \({number} to {number}\)'
        assert re.fullmatch(f'{before} -> {after}: {verdict}', line), line
    for line, record in zip(lines, map(read_record, (runs / name for name in EXPERIMENTS))):
        assert f"{record['test']['accuracy']:.3f}" in line and line.startswith(record['experiment']['name'])
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_another_seed_is_trained_anew(tmp_path):
    few, tests = painted_sample(train=8, ai=8, test=2), []
    for seed in (0, 7):
        done = call('artinsight_train', 'simple_cnn', '--data', few, '--runs', tmp_path, '--quick', '--seed', seed,
                    '--json')
        assert done.returncode == 0, done.stderr
        record = json.loads(done.stdout)[0]
        assert record['experiment']['seed'] == seed
        tests.append(record['test'])
    assert tests[0] != tests[1] == read_record(tmp_path / 'simple_cnn')['test']


def test_evaluate_computes_the_figures_again(runs, capsys):
    done = call('artinsight_evaluate', runs / 'simple_cnn', '--json')
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]['test'] == read_record(runs / 'simple_cnn')['test']
    artinsight_evaluate(runs / 'simple_cnn')
    said = capsys.readouterr().out
    assert 'simple_cnn' in said
    rows = {words[0]: [float(word) for word in words[1:]]
            for words in map(str.split, said.partition('figure')[2].splitlines()) if len(words) == 4}
    assert set(rows) == set(HEADLINES)
    for value, low, high in rows.values(): assert low < high and low <= value + .05 and value - .05 <= high


def test_missing_imagenet_weights_are_an_error_that_names_the_ways_out(sample, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv('https_proxy', 'http://127.0.0.1:9')  # nobody listens there
    done = call('artinsight_train', 'resnet18_base', '--data', sample, '--runs', tmp_path / 'runs', '--quick')
    assert done.returncode == 2
    message = done.stderr.strip().splitlines()[-1]
    assert all(word in message for word in ('--weights none', '--weights FILE', 'checkpoints')), message
    assert not (tmp_path / 'runs' / 'resnet18_base' / 'record.json').exists()


@pytest.mark.slow
def test_real_art_from_scratch(shared, tmp_path):
    done = script('artinsight_reproduce', '--data', shared / 'real-art', '--quick', '--weights', 'none', '--runs',
                  tmp_path, '--json')
    assert done.returncode == 0, done.stderr
    records = json.loads(done.stdout)
    assert len(records) == 5
    best = max((record for record in records if 'resnet18' in record['experiment']['name']),
               key=lambda record: record['test']['accuracy'])
    assert best['test']['accuracy'] >= .25 and best['test']['origin_accuracy'] >= .78
