"""Training on other people's machines: broken off in mixed precision, resumed in half precision, in folders that cannot
be written, from an installed package."""
import gc, json, os, shutil, subprocess, sys, tarfile, weakref, zipfile
from dataclasses import replace
from pathlib import Path

import artinsight, pandas as pd, pytest, torch
from artinsight import study, training
from artinsight.data import index, parts
from artinsight.engine.precision import PRECISIONS
from artinsight.engine.store import build_store
from artinsight.loading import dataloaders
from artinsight.resnet18 import load_model
from artinsight.study import find_experiment, run_experiment, study_runs
from artinsight.use.commands import artinsight_evaluate, artinsight_train
from artinsight.engine import checkpoint as checkpoints, runs as runs_module
from artinsight.engine.checkpoint import Checkpoint, save_weights
from artinsight.engine.runs import git_commit
from artinsight.training import Experiment, make_learner, train
from fastai.callback.core import Callback, CancelBatchException, CancelFitException
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
RECIPE = Experiment('tiny', 'simple_cnn', epochs=4, patience=9, lr=.01, batch_size=16)
BF16, FP16 = PRECISIONS['bf16 channels_last'], PRECISIONS['fp16 channels_last']


@pytest.fixture(scope='module')
def loaders(sample, tmp_path_factory):
    "Loaders of a few pictures; each call gives fresh ones."
    frame = index(sample).iloc[::12].reset_index(drop=True)
    store = build_store(frame, sample, 32, tmp_path_factory.mktemp('store'), progress=False)
    return lambda: dataloaders(store, range(64), range(64, 90), range(90, 110), batch_size=16, device='cpu')


def network(scale=1.):
    "A small network whose numbers come out the same every time."
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3,
        2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 20)
    with torch.no_grad(): layers[-1].weight.mul_(scale)
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


class BreakOff(Callback):
    "Raise in the middle of a batch: when autocast has been entered, after the predictions, or after the loss."
    order = 99
    def __init__(self, event, error): setattr(self, event, self.stop); self.error = error
    def stop(self):
        if self.iter == 1: raise self.error

MEMORY = torch.OutOfMemoryError('CUDA out of memory')
BREAKS = [(event, error) for event in ('before_batch', 'after_pred')
          for error in (KeyboardInterrupt(), MEMORY, CancelFitException())]
BREAKS += [('after_pred', CancelBatchException()), ('after_loss', KeyboardInterrupt()), ('before_backward', MEMORY)]


@pytest.fixture(autouse=True)
def no_autocast_left():
    "A test that leaves autocast on spoils no other one."
    yield
    torch.set_autocast_enabled('cpu', False)
    for _ in range(torch.autocast_increment_nesting()): torch.autocast_decrement_nesting()
    torch.clear_autocast_cache()


@pytest.mark.parametrize('event,error', BREAKS, ids=[f'{event} {type(error).__name__}' for event, error in BREAKS])
def test_autocast_is_left_wherever_a_batch_is_broken_off(loaders, event, error):
    "Before: on after each of the first seven, and after the next training, too."
    learn = make_learner(RECIPE, network(), loaders(), BF16, [BreakOff(event, error)])
    try: learn.fit(1)
    except (KeyboardInterrupt, torch.OutOfMemoryError): pass
    assert not torch.is_autocast_enabled('cpu')


def test_autocast_is_left_where_an_evaluation_is_broken_off(loaders):
    learn = make_learner(RECIPE, network(), loaders(), BF16, [BreakOff('after_pred', KeyboardInterrupt())])
    with pytest.raises(KeyboardInterrupt): learn.validate()
    assert not torch.is_autocast_enabled('cpu')


def test_the_next_training_is_as_if_none_had_been_broken_off(loaders, tmp_path):
    "Before: it trained on weights that the broken one had converted, without a word."
    def weights(folder):
        train(RECIPE, network(), loaders(), tmp_path / folder, 'bf16 channels_last')
        return load_file(tmp_path / folder / 'model.safetensors')
    expected = weights('whole')
    with pytest.raises(ValueError, match='--batch_size 8'):
        train(RECIPE, network(), loaders(), tmp_path / 'broken', 'bf16 channels_last', [BreakOff('after_pred', MEMORY)])
    again = weights('again')
    assert all(again[name].equal(expected[name]) for name in expected)


class Stop(Callback):
    "Break off in an epoch."
    def __init__(self, epoch): self.at = epoch
    def before_batch(self):
        if self.training and self.iter == 2 and len(self.checkpoint.rows) == self.at: raise KeyboardInterrupt


def test_half_precision_goes_on_with_the_scale_of_its_losses(loaders, tmp_path, monkeypatch):
    """Before: the scale began anew, so the first steps of the resumed training were left out again.

    Stands for a GPU without bfloat16: PyTorch's GradScaler and float16 autocast work on a CPU as well, only slowly.
    Gradients overflow in the first steps, as they do there."""
    monkeypatch.setattr(training, 'pick_precision', lambda *_: FP16)
    recipe = replace(RECIPE, lr=1e-4)
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    train(recipe, network(1000.), loaders(), whole)
    with pytest.raises(KeyboardInterrupt): train(recipe, network(1000.), loaders(), broken, cbs=[Stop(2)])
    with safe_open(broken / 'checkpoint.safetensors', 'pt') as opened: scale = json.loads(opened.metadata()['scale'])
    assert scale['scale'] < 65536, 'no gradient overflowed: this test shows nothing'
    train(recipe, network(1000.), loaders(), broken)
    one, other = (load_file(folder / 'model.safetensors') for folder in (whole, broken))
    assert all(one[name].equal(other[name]) for name in one)
    assert pd.read_csv(whole / 'history.csv').valid_loss.equals(pd.read_csv(broken / 'history.csv').valid_loss)


def test_momentum_comes_back_in_its_weights_memory_format(loaders, tmp_path):
    "Before: contiguous, so that each step of a resumed training took the slow path."
    with pytest.raises(KeyboardInterrupt):
        train(RECIPE, network(), loaders(), tmp_path, 'fp32 channels_last', [Stop(2)])
    class Look(Callback):
        def before_batch(self):
            momenta = [(weight, values['momentum_buffer']) for weight, values in self.learn.opt.opt.state.items()]
            assert len(momenta) == 8 and all(weight.stride() == momentum.stride() for weight, momentum in momenta)
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): train(RECIPE, network(), loaders(), tmp_path, 'fp32 channels_last', [Look()])


def test_a_checkpoint_of_an_older_version_is_begun_anew(loaders, tmp_path, capsys):
    "It has no scale; and one whose scale was changed is damaged."
    with pytest.raises(KeyboardInterrupt): train(RECIPE, network(), loaders(), tmp_path, 'fp32', [Stop(2)])
    file = tmp_path / 'checkpoint.safetensors'
    tensors = load_file(file)
    with safe_open(file, 'pt') as opened: told = opened.metadata()
    for wrong in ({name: text for name, text in told.items() if name != 'scale'}, {**told, 'scale': '{"scale": 1}'}):
        save_weights(file, tensors, wrong)
        assert not Checkpoint(file, told['start'],
                              3).read(make_learner(RECIPE, network(), loaders(), PRECISIONS['fp32']))


# What holds memory on a device

def test_a_run_holds_nothing_when_the_next_one_begins(tiny, tmp_path, monkeypatch):
    """Before: fastai's loaders held themselves, so loaders and stores of five runs stayed on the device until Python
    happened to collect them. Also after an error."""
    opened, held, alive = study.open_store, [], []
    def noted(*args):
        alive.append([store for store in held if store()])
        held.append(weakref.ref(store := opened(*args)))
        return store
    def broken(*_): raise torch.OutOfMemoryError('CUDA out of memory')
    monkeypatch.setattr(study, 'open_store', noted)
    gc.disable()
    try:
        for seed in range(3):
            with monkeypatch.context() as patch:
                if seed == 1: patch.setattr(training, 'fit', broken)
                try: run_experiment(replace(tiny_recipe(), seed=seed), index(tiny), tmp_path / 'runs', 'none', 'cpu')
                except ValueError: assert seed == 1
    finally: gc.enable()
    assert alive == [[], [], []]


# Folders

@pytest.fixture(autouse=True)
def own_cache(request, tmp_path, monkeypatch):
    "Stores of the tests that break pictures stay in their own folder."
    if 'tiny' in request.fixturenames: monkeypatch.setenv('ARTINSIGHT_CACHE', str(tmp_path / 'cache'))


def tiny_recipe(): return replace(find_experiment('simple_cnn', quick=True), epochs=1)


@pytest.fixture
def said(monkeypatch, capsys):
    "Call a console script as the shell would: exit code, standard output, standard error."
    def call(function, *words):
        monkeypatch.setattr(sys, 'argv', [function.__name__, *map(str, words)])
        code = 0
        try: function()
        except SystemExit as leaving: code = leaving.code
        return code, *capsys.readouterr()
    return call


def test_runs_in_the_home_folder(tiny, tmp_path, monkeypatch, said):
    "Before: trained to the end, then failed to save, because pandas alone spelled out the ~; evaluate found no run."
    monkeypatch.setenv('HOME', str(tmp_path / 'my home'))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(training.QUICK, 'epochs', 1)
    code, out, err = said(artinsight_train, 'simple_cnn', '--quick', '--data', tiny, '--runs=~/runs')
    assert code == 0, err
    run = tmp_path / 'my home/runs/simple_cnn'
    assert {file.name for file in run.iterdir()} >= {'record.json', 'history.csv',
                                                     'predictions.npz'} and not (tmp_path / '~').exists()
    code, out, err = said(artinsight_evaluate, '~/runs/simple_cnn')
    assert code == 0 and 'accuracy' in out
    assert not load_model('~/runs/simple_cnn').training and study_runs('~/runs') == [run]
    assert training.has_predictions('~/runs/simple_cnn')


def test_train_itself_spells_out_the_home_folder(loaders, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    train(replace(RECIPE, epochs=1), network(), loaders(), '~/run')
    assert (tmp_path / 'run/history.csv').exists() and not (tmp_path / '~').exists()


def closed_runs(runs): runs.mkdir(); runs.chmod(0o555)

def closed_run(runs):
    (runs / 'simple_cnn').mkdir(parents=True)
    (runs / 'simple_cnn/.lock').touch()
    (runs / 'simple_cnn/.lock').chmod(0o666)
    (runs / 'simple_cnn').chmod(0o555)

def a_file_as_run(runs): runs.mkdir(); (runs / 'simple_cnn').touch()

def a_file_as_runs(runs): runs.touch()

def a_dangling_link(runs): runs.symlink_to('/nowhere/at/all')


@pytest.mark.parametrize('make', [closed_runs, closed_run, a_file_as_run, a_file_as_runs, a_dangling_link],
                         ids=lambda make: make.__name__)
def test_where_no_run_can_be_kept_is_told_before_a_picture_is_decoded(tiny, tmp_path, said, request, make):
    "Before: after all pictures had been decoded, and for a run's own folder after the first epoch."
    make(tmp_path / 'runs')
    for folder in (tmp_path, *tmp_path.parents[:-2]): folder.chmod(folder.stat().st_mode | 0o055)
    request.getfixturevalue('nobody')
    code, out, err = said(artinsight_train, 'simple_cnn', '--quick', '--data', tiny, '--runs', tmp_path / 'runs')
    assert code == 2 and len(err.splitlines()) == 1 and 'another --runs folder' in err and str(tmp_path
                                                                                               / 'runs') in err, err


@pytest.mark.parametrize('error', [NotImplementedError('FileSystem does not appear to support flock'),
                                   OSError(30, 'Read-only file system')], ids=['no locks', 'read-only'])
def test_a_file_system_that_cannot_lock(tiny, tmp_path, said, monkeypatch, error):
    "Before: filelock's NotImplementedError ended in a traceback."
    def acquire(*_, **__): raise error
    monkeypatch.setattr(FileLock, 'acquire', acquire)
    code, out, err = said(artinsight_train, 'simple_cnn', '--quick', '--data', tiny, '--runs', tmp_path / 'runs')
    assert code == 2 and len(err.splitlines()) == 1 and 'another --runs folder' in err, err


def test_a_finished_run_in_a_closed_folder_can_be_read(tiny, tmp_path, said, monkeypatch, request):
    monkeypatch.setitem(training.QUICK, 'epochs', 1)
    words = 'simple_cnn', '--quick', '--data', tiny, '--runs', tmp_path / 'runs'
    assert said(artinsight_train, *words)[0] == 0
    for folder in (tmp_path / 'runs', tmp_path / 'runs/simple_cnn'): folder.chmod(0o555)
    for folder in (tmp_path, *tmp_path.parents[:-2]): folder.chmod(folder.stat().st_mode | 0o055)
    request.getfixturevalue('nobody')
    assert 'already done' in said(artinsight_train, *words)[2]
    assert said(artinsight_evaluate, tmp_path / 'runs/simple_cnn')[0] == 0


@pytest.mark.parametrize('what', ['record.json', 'model.safetensors', 'checkpoint.safetensors',
                                  *(pytest.param(name, marks=pytest.mark.slow)
                                    for name in ('history.csv', 'predictions.npz'))])
def test_a_disk_that_is_full_is_one_line(tiny, tmp_path, said, monkeypatch, what):
    "Whichever file meets it; what was trained is kept, so that the next call goes on."
    monkeypatch.setitem(training.QUICK, 'epochs', 1)
    written = training.atomic_write
    def full(path):
        if Path(path).name == what: raise OSError(28, 'No space left on device', str(path))
        return written(path)
    words = 'simple_cnn', '--quick', '--data', tiny, '--runs', tmp_path / 'runs'
    with monkeypatch.context() as patch:
        for module in (training, runs_module, checkpoints): patch.setattr(module, 'atomic_write', full)
        code, out, err = said(artinsight_train, *words)
    assert (code, out) == (2, '') and 'No space left' in err.splitlines()[-1] and 'Traceback' not in err, err
    assert said(artinsight_train, *words)[0] == 0


def test_a_class_without_validation_pictures_stands_in_the_record(tiny, tmp_path):
    "Also one whose validation pictures are all damaged. Before: nothing said so."
    three = parts(index(tiny), tiny_recipe().per_style)
    for path in three['validation'].path[three['validation']['class'] == 'AI_baroque']:
        (tiny / path).write_bytes(b'no picture')
    record = run_experiment(tiny_recipe(), index(tiny), tmp_path / 'runs', 'none', 'cpu')
    assert record['data']['no_validation'] == ['AI_baroque']
    assert record['data']['counts']['validation']['AI_baroque'] == 0


# Records say what is true or nothing

def git(folder, *words):
    identity = ['-c', 'user.name=somebody', '-c', 'user.email=somebody@example.org', '-c', 'protocol.file.allow=always']
    env = {name: value for name, value in os.environ.items() if not name.startswith('GIT_')}
    return subprocess.run(['git', '-C', str(folder), *identity, *words], env=env, check=True, capture_output=True,
                          text=True).stdout.strip()


@pytest.fixture
def other_repository(tmp_path):
    "Somebody's project under git, with a commit, in which packages are installed."
    if not shutil.which('git'): pytest.skip('needs git')
    (tmp_path / 'project').mkdir()
    (tmp_path / 'project/notes.txt').write_text('mine')
    git(tmp_path / 'project', 'init', '-q')
    git(tmp_path / 'project', 'add', '.')
    git(tmp_path / 'project', 'commit', '-qm', 'first')
    return tmp_path / 'project'


def commit_of(package, monkeypatch):
    "What a record says where the code that runs lies in this folder."
    monkeypatch.setattr(artinsight, '__file__', str(package / '__init__.py'))
    return git_commit()


@pytest.mark.parametrize('committed', [False, True], ids=['untracked', 'committed by them'])
def test_an_enclosing_repository_is_not_ours(other_repository, monkeypatch, committed):
    "Before: the commit of the enclosing project, or of a project that keeps its packages under git."
    package = other_repository / 'vendor/artinsight'
    shutil.copytree(ROOT / 'artinsight', package, ignore=shutil.ignore_patterns('__pycache__'))
    if committed:
        git(other_repository, 'add', '-f', '.')
        git(other_repository, 'commit', '-qm', 'packages')
    assert commit_of(package, monkeypatch) is None


def test_our_own_repository_and_changes_in_it(other_repository, monkeypatch):
    for name in ('artinsight', 'nbs'):
        shutil.copytree(ROOT / name, other_repository / name, ignore=shutil.ignore_patterns('__pycache__'))
    git(other_repository, 'add', '-f', '.')
    git(other_repository, 'commit', '-qm', 'ours')
    commit = git(other_repository, 'rev-parse', 'HEAD')
    assert commit_of(other_repository / 'artinsight', monkeypatch) == commit
    (other_repository / 'artinsight/data.py').write_text('changed = 1')
    assert commit_of(other_repository / 'artinsight', monkeypatch) == commit + '+'


def test_a_hook_of_another_repository_does_not_mislead(other_repository, monkeypatch):
    "Before: inside a git hook, which sets GIT_DIR, the hook's repository was taken for ours."
    told = git_commit()
    monkeypatch.setenv('GIT_DIR', str(other_repository / '.git'))
    monkeypatch.setenv('GIT_WORK_TREE', str(other_repository))
    assert git_commit() == told != git(other_repository, 'rev-parse', 'HEAD')


def project(place):
    "A copy of what git holds of this project, as it is on disk; committed."
    if not (ROOT / '.git').exists() or not shutil.which('git'): pytest.skip('needs a git checkout')
    for name in git(ROOT, 'ls-files', '--cached', '--others', '--exclude-standard').splitlines():
        if name.startswith(('artinsight/', 'nbs/03')) or '/' not in name:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).exists(): shutil.copy(ROOT / name, place / name)
    git(place, 'init', '-q')
    git(place, 'add', '-f', '.')
    git(place, 'commit', '-qm', 'all')
    return place


@pytest.mark.parametrize('as_git', [True, False], ids=['from git', 'from a folder'])
def test_the_commit_that_pip_noted(other_repository, tmp_path, monkeypatch, as_git):
    "pip itself installs us into somebody's repository. Before: that repository's commit."
    if subprocess.run([sys.executable, '-m', 'pip', '--version'], capture_output=True).returncode:
        pytest.skip('needs pip')
    ours, site = project(tmp_path / 'ours'), other_repository / '.venv/lib'
    source = f'git+file://{ours}' if as_git else str(ours)
    subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-build-isolation', '--no-index',
                    '--target', str(site), source], check=True)
    monkeypatch.syspath_prepend(site)
    assert commit_of(site / 'artinsight', monkeypatch) == (git(ours, 'rev-parse', 'HEAD') if as_git else None)
    shutil.copytree(site / 'artinsight', tmp_path / 'copy/artinsight')
    assert commit_of(tmp_path / 'copy/artinsight', monkeypatch) is None, 'the commit of another copy'


def test_a_wheel_can_be_built_from_the_sdist(tmp_path):
    """Before: the sdist had no settings.ini, and setup.py stopped at it. setuptools' own entry points for `python -m
    build`, without network."""
    ours, out = project(tmp_path / 'ours'), tmp_path / 'out'
    def build(folder, kind):
        lines = f'import setuptools.build_meta as backend; print(backend.__legacy__.build_{kind}({str(out)!r}))'
        done = subprocess.run([sys.executable, '-c', lines], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-1000:]
        return out / done.stdout.split()[-1]
    with tarfile.open(build(ours, 'sdist')) as opened: opened.extractall(tmp_path / 'unpacked')
    [unpacked] = (tmp_path / 'unpacked').iterdir()
    assert {'settings.ini', 'setup.py', 'README.md', 'LICENSE'} <= {file.name for file in unpacked.iterdir()}
    with zipfile.ZipFile(build(unpacked, 'wheel')) as wheel:
        held = set(wheel.namelist())
        ours = [file for file in (ROOT / 'artinsight').rglob('*.*') if file.suffix in ('.py', '.csv')]
        assert {file.relative_to(ROOT).as_posix() for file in ours} <= held
        [scripts] = [name for name in held if name.endswith('entry_points.txt')]
        assert 'artinsight_train = artinsight.use.commands:artinsight_train' in wheel.read(scripts).decode()


def test_the_project_installs_with_the_file_that_nbdev_export_leaves(tmp_path):
    "Before: that pyproject.toml promises classifiers, setup.py had none, and every later set-up failed."
    from nbdev.config import update_proj
    ours = project(tmp_path / 'ours')
    update_proj(ours)
    assert 'classifiers' in (ours / 'pyproject.toml').read_text()
    words = [sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-build-isolation', '--no-index']
    words += ['--target', str(tmp_path / 'site'), '.']
    done = subprocess.run(words, cwd=ours, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / 'site/artinsight/data.py').exists(), done.stderr[-1000:]


# The scripts on machines that lack something

LACKING = {'HOME': '/proc/nowhere', 'PYTHONIOENCODING': 'ascii', 'LC_ALL': 'C', 'PATH': '/nowhere',
           'http_proxy': 'http://127.0.0.1:9', 'all_proxy': 'socks5://x:1'}

def test_scripts_where_much_is_missing(tiny, tmp_path):
    """No home, no git or other program, a console that prints ASCII alone, proxies that nobody runs: train and
    evaluate, in a process of its own."""
    runs = tmp_path / 'Läufe'
    lines = ('import sys, artinsight.training, artinsight.use.commands as use\n'
             'artinsight.training.QUICK["epochs"], data, runs = 1, *sys.argv[1:]\n'
             'scripts = (use.artinsight_train, "simple_cnn", "--quick", "--data", data, "--runs", runs), '
             '(use.artinsight_evaluate, runs + "/simple_cnn")\n'
             'for script, *words in scripts:\n'
             '    sys.argv = [script.__name__, *words]\n'
             '    script()\n')
    env = {**os.environ, 'OMP_NUM_THREADS': '1', **LACKING}
    done = subprocess.run([sys.executable, '-c', lines, str(tiny), str(runs)], env=env, capture_output=True)
    assert done.returncode == 0 and b'Traceback' not in done.stderr, done.stderr.decode(errors='replace')[-2000:]
    assert (runs / 'simple_cnn/record.json').exists() and b'accuracy' in done.stdout
