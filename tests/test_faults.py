"""What goes wrong on other people's machines: each fault has one clear line, and leaves nothing half-written."""
import ast, importlib, importlib.util, json, math, os, pickle, shutil
import signal, subprocess, sys, tempfile, threading, time
from configparser import ConfigParser
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np, pytest, torch
from fastai.callback.core import Callback
from filelock import FileLock
from artinsight import data, loading, study, training
from artinsight.data import CLASSES, FOLDERS
from artinsight.engine import store as storing
from artinsight.engine.files import atomic_write
from artinsight.engine.pictures import BadPicture, decode
from artinsight.engine.store import build_store
from artinsight.engine.workers import ahead

ROOT = Path(__file__).resolve().parents[1]
settings = ConfigParser(delimiters=['='])
settings.read(ROOT/'settings.ini', encoding='utf-8')
SCRIPTS = dict(line.split('=') for line in settings['DEFAULT']['console_scripts'].split())
TAKE_A_RUN = [name for name in ('artinsight_evaluate', 'artinsight_predict', 'artinsight_explain', 'artinsight_app',
                                'artinsight_audit', 'artinsight_export') if name in SCRIPTS]
IS_ROOT = hasattr(os, 'geteuid') and os.geteuid() == 0

@pytest.fixture
def script(monkeypatch, capsys):
    "Call a console script as the shell would: (exit code, standard output, standard error)."
    def call(name, *argv):
        module, function = SCRIPTS[name].split(':')
        function = getattr(importlib.import_module(module), function)
        monkeypatch.setattr(sys, 'argv', [name, *map(str, argv)])
        code, _ = 0, capsys.readouterr()
        try: function()
        except SystemExit as leaving: code = leaving.code or 0
        said = capsys.readouterr()
        return code, said.out, said.err
    return call

def refused(said, match):
    "Exit 2, nothing on standard output, one line that says what is wrong."
    code, out, err = said
    assert (code, out) == (2, '') and match in err.splitlines()[-1], said
    assert 'Traceback' not in err and err.endswith('\n') and len([line
        for line in err.splitlines() if line.startswith('artinsight_')]) == 1, err

@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch, sample):
    "Stores of these tests stay in their own folder; the sample is painted before."
    monkeypatch.setenv('ARTINSIGHT_CACHE', str(tmp_path/'cache'))
    monkeypatch.delenv('ARTINSIGHT_DATA', raising=False)

@contextmanager
def small_disk(where, megabytes, options=''):
    "A file system of this size, or a skip."
    if not IS_ROOT or not shutil.which('mount'): pytest.skip('mounting a small file system needs root')
    where.mkdir(parents=True, exist_ok=True)
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={megabytes}m{options}', 'none', str(where)],
                      capture_output=True).returncode:
        pytest.skip('this machine does not let us mount a tmpfs')
    try: yield where
    finally: subprocess.run(['umount', '-l', str(where)], check=False)

@contextmanager
def as_nobody():
    "Without root's rights, to whom no file is closed."
    if not IS_ROOT:
        yield
        return
    os.seteuid(65534)
    try: yield
    finally: os.seteuid(0)

# Bad input to the scripts that take a data set

def empty(folder): (folder/'train').mkdir(parents=True); (folder/'test').mkdir()
def only_empty_folders(folder):
    [(folder/split/name).mkdir(parents=True) for split in ('train', 'test') for name in FOLDERS]
def other_folders(folder): (folder/'train/cats').mkdir(parents=True); (folder/'train/cats/a.jpg').touch()
def no_halves(folder): (folder/'baroque').mkdir(parents=True)
def a_file(folder): folder.write_text('not a folder')

DATA = [(None, 'no such folder'), (empty, 'no pictures'), (only_empty_folders, 'no pictures'),
        (other_folders, "unknown folder 'cats'"),
        (no_halves, 'no train or test folder'), (a_file, 'no such folder')]

@pytest.mark.parametrize('make,match', DATA, ids=[make.__name__ if make else 'missing' for make, _ in DATA])
@pytest.mark.parametrize('name', ['artinsight_train', 'artinsight_reproduce'])
def test_bad_data_folders(script, tmp_path, name, make, match):
    folder, runs = tmp_path/'data', tmp_path/'runs'
    if make: make(folder)
    what = ['simple_cnn'] if name == 'artinsight_train' else []
    refused(script(name, *what, '--data', folder, '--runs', runs, '--quick', '--weights', 'none'), match)
    assert not runs.exists() and not (tmp_path/'cache').exists()

def test_no_data_set_named(script, tmp_path):
    refused(script('artinsight_reproduce', '--runs', tmp_path/'runs'), 'no data set named')
    assert not (tmp_path/'runs').exists()

@pytest.mark.parametrize('flags,match', [
    (['vgg16'], "unknown experiment 'vgg16'"), (['simple_cnn', '--device', 'abacus'], "no device 'abacus'"),
    (['simple_cnn', '--precision', 'int3'], 'int3'), (['resnet18_base', '--weights', 'nowhere.pth'], 'nowhere.pth')])
def test_bad_flags(script, tiny, tmp_path, flags, match):
    refused(script('artinsight_train', *flags, '--data', tiny, '--runs', tmp_path/'runs', '--quick'), match)
    assert not list((tmp_path/'runs').rglob('*.*'))

def test_weights_that_are_none(script, tiny, tmp_path):
    (tmp_path/'w.pth').write_bytes(b'cos\nsystem\n(S"touch bang"\ntR.')
    refused(script('artinsight_train', 'resnet18_base', '--weights', tmp_path/'w.pth', '--data', tiny, '--runs',
                   tmp_path/'runs', '--quick'), 'not a file of weights')

@pytest.mark.parametrize('name', TAKE_A_RUN)
@pytest.mark.parametrize('what', ['missing', 'empty', 'older', 'other classes', 'not json', 'other recipe'])
def test_bad_runs(script, tmp_path, sample, name, what):
    """A folder that is no run, an unfinished one, one of an older version or of other classes: the same clear line from
    every script."""
    if not importlib.util.find_spec(SCRIPTS[name].split(':')[0]):
        pytest.skip(f'{name} is declared, its module is not here')
    run = tmp_path/'run'
    record = dict(format=training.RECORD_FORMAT, classes=list(CLASSES), experiment={}, weights='none', data={},
                  validation={}, test={})
    if what != 'missing': run.mkdir()
    if what == 'older': record['format'] = 0
    if what == 'other classes': record['classes'] = ['cat', 'dog']
    if what not in ('missing', 'empty'):
        (run/'record.json').write_text('{"exp' if what == 'not json' else json.dumps(record))
    picture = next((sample/'test/baroque').iterdir())
    more = {'artinsight_predict': [picture], 'artinsight_explain': [picture, '--out', tmp_path/'out'],
            'artinsight_audit': ['--data', sample]}.get(name, [])
    match = {'older': 'another version', 'other classes': 'other classes', 'not json': 'cannot be read'}.get(what, '')
    refused(script(name, run, *more), match)
    assert not (tmp_path/'out').exists() or not list((tmp_path/'out').iterdir())

# Bad pictures are left out by name

def break_pictures(folder):
    "One of each kind of bad picture in `train/baroque`; what each is called and why it is bad."
    good = sorted((folder/'train/baroque').iterdir())
    good[0].write_text('this is no picture')
    good[1].write_bytes(good[1].read_bytes()[:2000])
    good[2].write_bytes(b'')
    good[3].unlink()
    good[3].mkdir()
    good[4].unlink()
    good[4].symlink_to('nowhere.jpg')
    reasons = ['not a picture', 'truncated', 'an empty file', 'is a directory', 'no such file']
    return {str(file.relative_to(folder)): reason for file, reason in zip(good, reasons)}

def test_bad_pictures_are_named_and_counted(tiny, tmp_path, capsys):
    expected, frame = break_pictures(tiny), data.index(tiny)
    store = build_store(frame, tiny, 32, tmp_path/'store', workers=1)
    found = dict(zip(store.bad.path, store.bad.reason))
    assert found.keys() == expected.keys() and all(reason in found[path] for path, reason in expected.items()), found
    assert len(store) == len(frame) - 5 and f'5 of {len(frame)} pictures left out' in capsys.readouterr().err

def test_pictures_without_permission(tiny, capsys):
    "Unreadable files are left out by name, for everybody but root."
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o777)
        folder = shutil.copytree(tiny, Path(place)/'tiny')
        frame = data.index(folder)
        closed = folder/frame.path[7]
        closed.chmod(0)
        with as_nobody(): store = build_store(frame, folder, 32, Path(place)/'store', workers=1)
        assert list(store.bad.path) == [frame.path[7]] and store.bad.reason[0] == 'permission denied'

def test_one_percent_of_corrupt_pictures(tiny, tmp_path):
    "Training goes on without them, and the record names them."
    frame = data.index(tiny)
    draw = np.random.default_rng(0)
    spoiled = sorted(draw.choice(frame.path[frame.split == 'test'], max(1, len(frame)//100), replace=False))
    for path in spoiled:
        content = (tiny/path).read_bytes()
        (tiny/path).write_bytes(content[:len(content)//3])
    record = study.run_experiment(replace(study.find_experiment('simple_cnn', quick=True), epochs=1), data.index(tiny),
                                  tmp_path/'runs', device='cpu')
    assert sorted(bad['path'] for bad in record['data']['excluded']) == spoiled
    assert record['test']['n'] == sum(frame.split == 'test') - len(spoiled)

def test_picture_that_vanished_after_the_store_was_built(tiny, tmp_path, capsys):
    "Its block alone is decoded again, and it is named."
    frame = data.index(tiny)
    build_store(frame, tiny, 32, tmp_path/'store', workers=1)
    (tiny/frame.path[100]).unlink()
    store = build_store(frame, tiny, 32, tmp_path/'store', workers=1)
    assert list(store.bad.path) == [frame.path[100]] and 'no such file' in store.bad.reason[0]
    assert '1/1 blocks' in capsys.readouterr().err

def test_names_on_one_line(tiny, tmp_path, capsys):
    "Line ends and control characters in a bad picture's name are spelled out."
    (tiny/'test/baroque/a\n\x1b[31mb.jpg').write_bytes(b'none')
    store = build_store(data.index(tiny), tiny, 32, tmp_path/'store', workers=1)
    said = capsys.readouterr().err
    assert 'left out: test/baroque/a\\n\\x1b[31mb.jpg (not a picture)' in said and '\x1b' not in said
    with pytest.raises(BadPicture) as caught: decode(f'{tiny}/{store.bad.path[0]}', 32)
    assert '\n' not in str(caught.value)

# Machines that lack something

NO_MORE = """
import multiprocessing.popen_fork, os, pathlib, resource, sys, threading
from artinsight import data, loading
from artinsight.engine.augment import AUGMENTATIONS
from artinsight.engine.pictures import decode
from artinsight.engine.store import build_store
root, store, uid, limit = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
frame = data.index(root)
decode(f'{root}/{frame.path[0]}', 32)  # Pillow's modules, which this user may not find later
if os.geteuid() == 0: os.setgid(uid); os.setuid(uid)
resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
pictures = build_store(frame, root, 32, store, workers=2)
loading.FULL_SHUFFLE = 1  # as if the store did not fit in memory: a thread reads ahead
rows = range(len(pictures))
dls = loading.dataloaders(pictures, rows[::2], rows[1::4], rows[3::4], AUGMENTATIONS, device='cpu')
print(sum(len(y) for x, y in dls.valid), sum(x.isfinite().all().item() for x, y in dls.train))
"""

@pytest.mark.parametrize('limit', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_no_more_threads_or_processes(tiny, limit):
    "Under the kernel's own limit, as a user without rights: slower, and one line says why."
    if not hasattr(os, 'fork'): pytest.skip('needs a limit on processes')
    uid = 61_000 + os.getpid() % 1000 + limit  # a user of whom nothing else runs
    if not IS_ROOT: pytest.skip('the limit counts all processes of a user: another user is needed')
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o777)
        root = shutil.copytree(tiny, Path(place)/'tiny')
        (store := Path(place)/'store').mkdir()
        os.chown(store, uid, uid)
        done = subprocess.run([sys.executable, '-c', NO_MORE, root, store, str(uid), str(limit)],
                              capture_output=True, text=True, timeout=120)
        n = len(data.index(root))
        assert done.returncode == 0 and done.stdout.split() == [str(len(range(1, n, 4))),
                                                                str((n + 1)//2//64)], done.stderr
        assert f'{limit - 1} of 2 processes could be started' in done.stderr and 'Traceback' not in done.stderr

def test_no_thread_to_read_ahead(monkeypatch):
    "The kernel answers EAGAIN, Python tells a RuntimeError. Errors of the work itself are passed on as before."
    def no_thread(*_, **__): raise RuntimeError("can't start new thread")
    monkeypatch.setattr(threading, '_start_new_thread', no_thread, raising=False)
    monkeypatch.setattr(threading, '_start_joinable_thread', no_thread, raising=False)
    assert list(ahead(lambda i: i*i, range(9))) == [i*i for i in range(9)]
    with pytest.raises(ZeroDivisionError): list(ahead(lambda i: 1//i, [1, 0]))

def test_no_thread_to_check_a_store(tiny, tmp_path, monkeypatch):
    frame = data.index(tiny)
    before = build_store(frame, tiny, 32, tmp_path/'store', workers=1, progress=False)
    with open(before.file, 'r+b') as file: file.write(b'spoilt')
    def no_thread(*_, **__): raise RuntimeError("can't start new thread")
    threads = torch.get_num_threads()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(threading, '_start_new_thread', no_thread, raising=False)
            patch.setattr(threading, '_start_joinable_thread', no_thread, raising=False)
            after = build_store(frame, tiny, 32, tmp_path/'store', workers=1, progress=False)
        assert torch.get_num_threads() == 1 or threads == 1
    finally: torch.set_num_threads(threads)
    assert (after.pixels()[0].numpy() == decode(tiny/frame.path[0], 32)).all()

def test_a_worker_killed_for_memory(tiny, tmp_path, monkeypatch, capsys):
    "What the kernel does to the largest process: the store is whole all the same, and one line tells of it."
    parent, block = os.getpid(), storing._decode_block
    def killed(root, paths, start, targets):
        if os.getpid() != parent and start == 0: os.kill(os.getpid(), signal.SIGKILL)
        return block(root, paths, start, targets)
    frame = data.index(tiny)
    monkeypatch.setattr(storing, '_decode_block', killed)
    store = build_store(frame, tiny, 32, tmp_path/'store', workers=2)
    said = 'a worker process was killed (exit code -9), perhaps for lack of memory: its work is done'
    assert said in capsys.readouterr().err
    rows = [0, len(frame) - 1]
    known = [decode(tiny/frame.path[row], 32) for row in rows]
    assert (store.read(rows).permute(0, 2, 3, 1).numpy() == known).all()

def test_a_folder_for_stores_that_cannot_be_written(tiny, tmp_path):
    "A read-only disk, a file in the place of a folder: one line that names another way."
    (tmp_path/'file').write_text('')
    with pytest.raises(OSError, match='cannot be written .* name another folder, for instance in ARTINSIGHT_CACHE'):
        build_store(data.index(tiny), tiny, 32, tmp_path/'file', workers=1)
    with small_disk(tmp_path/'small', 8, ',ro') as small, pytest.raises(OSError, match='Read-only .* ARTINSIGHT_CACHE'):
        build_store(data.index(tiny), tiny, 32, small/'stores', workers=1)

def test_a_whole_store_on_a_read_only_disk(tiny, tmp_path):
    "As a course shares it: nothing is to be written, so nothing is."
    frame = data.index(tiny)
    with small_disk(tmp_path/'small', 8) as small:
        before = build_store(frame, tiny, 32, small, workers=1, progress=False)
        subprocess.run(['mount', '-o', 'remount,ro', str(small)], check=True)
        after = build_store(frame, tiny, 32, small, workers=1, progress=False)
        assert len(after) == len(before) and (after.read([0]) == before.read([0])).all()
        del before, after  # which hold the disk

def test_a_store_below_home(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    frame = data.index(tiny)
    store = build_store(frame, '~/tiny', 32, '~/stores', workers=1, progress=False)
    assert store.file.parent.parent == tmp_path/'stores' and len(store) == len(frame)

# The store

@pytest.mark.parametrize('how', ['flipped', 'truncated', 'longer', 'journal', 'no journal'])
def test_damaged_store_is_found_and_rebuilt(tiny, tmp_path, capsys, how):
    frame = data.index(tiny)
    good = build_store(frame, tiny, 32, tmp_path/'store', workers=1)
    journal = good.file.with_name('blocks.jsonl')
    pixels, lines = good.file.read_bytes(), journal.read_text()
    spoiled = bytearray(pixels)
    if how == 'flipped': spoiled[len(pixels)//2] ^= 4
    if how == 'truncated': spoiled = spoiled[:-5000]
    if how == 'longer': spoiled += b'x'*100
    good.file.write_bytes(spoiled)
    if how == 'journal': journal.write_text(lines[:len(lines)//2])
    if how == 'no journal': journal.unlink()
    capsys.readouterr()
    again = build_store(frame, tiny, 32, tmp_path/'store', workers=1)
    assert again.file.read_bytes() == pixels and journal.read_text() == lines
    if how in ('flipped', 'truncated'): assert 'are damaged: decoding them again' in capsys.readouterr().err

def test_no_space_for_the_store(tiny, tmp_path):
    frame = data.index(tiny)
    with small_disk(tmp_path/'small', 1) as small:
        with pytest.raises(OSError, match=r'needs .* MB, .* MB are free: free some, or name another folder'):
            build_store(frame, tiny, 64, small/'store', workers=1)
        assert not list(small.rglob('*.*'))

def test_no_space_for_the_run(script, tiny, tmp_path):
    "Runs on a full disk: one line, nothing half-written."
    with small_disk(tmp_path/'small', 1) as small:
        said = script('artinsight_train', 'resnet18_base', '--data', tiny, '--runs', small, '--quick', '--weights',
                      'none', '--device', 'cpu')
        left = [p.name for p in small.rglob('*') if p.is_file() and p.name != '.lock']
        refused(said, 'space')
        assert left == []

def test_read_only_runs_folder(script, tiny, tmp_path):
    with small_disk(tmp_path/'small', 8, ',ro') as small:
        refused(script('artinsight_train', 'simple_cnn', '--data', tiny, '--runs', small, '--quick', '--device', 'cpu'),
                'Read-only file system')

def test_runs_folder_without_permission(tiny, tmp_path):
    "Closed to the user who trains (root goes without its rights): told before anything is trained."
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o777)
        (runs := Path(place)/'runs').mkdir(mode=0o555)
        recipe, model, dls = small_start(tiny, tmp_path)
        what = f"no run can be kept in {runs}/small .*Permission denied.*: name another --runs folder"
        with as_nobody(), pytest.raises(OSError, match=what):
            training.train(recipe, model, dls, runs/'small')

def test_atomic_write_leaves_nothing_on_errors(tmp_path):
    (tmp_path/'kept').write_text('old')
    with pytest.raises(KeyError):
        with atomic_write(tmp_path/'kept') as unfinished:
            unfinished.write_text('half')
            raise KeyError
    assert (tmp_path/'kept').read_text() == 'old' and [p.name for p in tmp_path.iterdir() if p.is_file()] == ['kept']

# Training

def small_start(tiny, tmp_path, model=None, **changes):
    "Recipe, network and loaders of a small training, the store in the test's folder."
    recipe = replace(training.Experiment('small', 'simple_cnn', epochs=1, batch_size=32, lr=.01), **changes)
    store = build_store(data.index(tiny), tiny, 32, tmp_path/'store', workers=1, progress=False)
    rows = np.arange(len(store))
    dls = loading.dataloaders(store, rows[::2], rows[1::4], rows[3::4], (), recipe.batch_size, 'cpu')
    return recipe, model or torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten(),
                                                torch.nn.Linear(192, 20)), dls

def small_training(tiny, tmp_path, model=None, cbs=(), **changes):
    "Train a small network for an epoch or two."
    recipe, model, dls = small_start(tiny, tmp_path, model, **changes)
    return training.train(recipe, model, dls, tmp_path/'run', cbs=cbs), dls

class Spoil(Callback):
    "Make the loss of the third batch of the second epoch not a number."
    def after_loss(self):
        if self.training and self.epoch == 1 and self.iter == 2:
            self.learn.loss = self.learn.loss_grad = self.learn.loss*math.nan

def test_loss_that_is_not_a_number_stops_and_names_its_batch(tiny, tmp_path):
    with pytest.raises(ValueError) as caught: small_training(tiny, tmp_path, cbs=[Spoil()], epochs=3)
    said = str(caught.value)
    assert 'the loss is not finite in epoch 1, batch 2' in said and said.count('.jpg') == 32 and '\n' not in said
    assert not (tmp_path/'run/model.safetensors').exists() and not (tmp_path/'run/predictions.npz').exists()

def test_out_of_memory_proposes_a_batch_size(tiny, tmp_path):
    class Hungry(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(1))
        def forward(self, x): raise torch.OutOfMemoryError('CUDA out of memory')
    with pytest.raises(ValueError, match='too little memory for batches of 32 at 32 px: try --batch_size 16'):
        small_training(tiny, tmp_path, Hungry())

def test_two_trainings_in_one_folder(tiny, tmp_path):
    (tmp_path/'run').mkdir()
    with FileLock(tmp_path/'run/.lock'), pytest.raises(OSError, match='another training is at work'):
        small_training(tiny, tmp_path)
    small_training(tiny, tmp_path)                                      # the lock went with its holder

def test_damaged_checkpoint_is_not_believed(tiny, tmp_path):
    "Half a checkpoint, or one of another training: begin anew."
    (tmp_path/'run').mkdir()
    for content in (b'', b'\x00'*100, b'{"not": "safetensors"}'*20):
        (tmp_path/'run/checkpoint.safetensors').write_bytes(content)
        summary, _ = small_training(tiny, tmp_path)
        assert summary['epochs'] == 1

def test_resume_is_the_default_and_no_begins_anew(script, tiny, tmp_path):
    words = ['artinsight_train', 'simple_cnn', '--data', tiny, '--runs', tmp_path/'runs', '--quick', '--device', 'cpu']
    assert script(*words)[0] == 0
    for flags in ([], ['--resume'], ['--resume', 'yes']): assert 'already done' in script(*words, *flags)[2]
    code, _, err = script(*words, '--resume', 'no')
    assert code == 0 and 'already done' not in err and 'simple_cnn: epoch 0' in err

def test_predictions_that_are_there_are_not_made_again(tiny, tmp_path, monkeypatch):
    "Cut between predictions and record: the restart asks no picture again, unless the predictions are damaged."
    class Cut(Exception): pass
    def cut(*_): raise Cut
    recipe, frame = replace(study.find_experiment('simple_cnn', quick=True), epochs=1), data.index(tiny)
    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(study, 'finish', cut)
        study.run_experiment(recipe, frame, tmp_path/'runs', device='cpu')
    file = tmp_path/'runs/simple_cnn/predictions.npz'
    written = file.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(training, 'predict_probs', cut)
        study.run_experiment(recipe, frame, tmp_path/'runs', device='cpu')
    assert file.stat().st_mtime_ns == written

def test_clock_that_jumps(tiny, tmp_path, monkeypatch):
    "Backwards and forwards by years: nothing depends on it."
    hours = iter([1e9, 0, 2e9, 5, 1e10, 1]*10_000)
    monkeypatch.setattr(time, 'time', lambda: next(hours))
    os.utime(tiny/data.index(tiny).path[0], (0, 0))
    os.utime(tiny/data.index(tiny).path[1], (2**33, 2**33))
    summary, _ = small_training(tiny, tmp_path)
    assert summary['epochs'] == 1 and summary['train_seconds'] >= 0

def test_older_record_is_trained_again(tiny, tmp_path):
    "A record of another format is no finished run: it is replaced, not crashed on."
    recipe, frame = replace(study.find_experiment('simple_cnn', quick=True), epochs=1), data.index(tiny)
    first = study.run_experiment(recipe, frame, tmp_path/'runs', device='cpu')
    file = tmp_path/'runs/simple_cnn/record.json'
    file.write_text(json.dumps({**first, 'format': 0}))
    with pytest.raises(ValueError, match='another version of artinsight'): training.read_record(file.parent)
    again = study.run_experiment(recipe, frame, tmp_path/'runs', device='cpu')
    assert again['format'] == training.RECORD_FORMAT and again['test'] == first['test']

# A stranger's run

class Bomb:
    "Makes a folder when it is unpickled."
    def __init__(self, place): self.place = str(place)
    def __reduce__(self): return os.mkdir, (self.place,)

@pytest.fixture(scope='module')
def finished_run(sample, tmp_path_factory):
    "A run of one epoch on the painted sample."
    runs = tmp_path_factory.mktemp('finished')
    study.run_experiment(replace(study.find_experiment('simple_cnn', quick=True), epochs=1), data.index(sample), runs,
                         device='cpu')
    return runs/'simple_cnn'

NEEDED = {'record.json': TAKE_A_RUN, 'predictions.npz': ['artinsight_evaluate', 'artinsight_audit'],
          'model.safetensors': ['artinsight_predict', 'artinsight_explain', 'artinsight_app', 'artinsight_export']}

@pytest.mark.parametrize('how', ['pickle', 'torch.save'])
@pytest.mark.parametrize('file,name', [(file, name) for file, names in NEEDED.items()
                                       for name in names if name in TAKE_A_RUN])
def test_a_strangers_run_runs_no_code(script, finished_run, sample, tmp_path, name, file, how):
    "A file of a run that is a pickle in disguise: one clear line, and nothing happens."
    run, bomb = shutil.copytree(finished_run, tmp_path/'run'), Bomb(tmp_path/'bang')
    if how == 'pickle': (run/file).write_bytes(pickle.dumps(bomb))
    else: torch.save({'bomb': bomb}, run/file)
    picture = next((sample/'test/baroque').iterdir())
    more = {'artinsight_predict': [picture], 'artinsight_explain': [picture, '--out', tmp_path/'out'],
            'artinsight_audit': ['--data', sample]}.get(name, [])
    refused(script(name, run, *more), file)
    assert not (tmp_path/'bang').exists()

def test_the_bomb_works(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path/'bang')))
    assert (tmp_path/'bang').exists()

def test_nothing_in_the_package_unpickles_blindly():
    """Every torch.load is weights_only, every np.load without pickle; pickle and its kin are not imported, no text is
    run as code."""
    wanted = {'torch.load': 'weights_only=True', 'np.load': 'allow_pickle=False'}
    found = []
    for module in (ROOT/'artinsight').rglob('*.py'):
        for node in ast.walk(ast.parse(module.read_text(encoding='utf-8'))):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {name.name.split('.')[0]
                         for name in node.names} | {(getattr(node, 'module', '') or '').split('.')[0]}
                assert not names & {'pickle', 'cPickle', 'dill', 'cloudpickle', 'joblib', 'shelve',
                                    'marshal'}, f'{module}:{node.lineno}'
            if not isinstance(node, ast.Call): continue
            name = ast.unparse(node.func)
            assert name not in ('eval', 'exec', 'compile', '__import__', 'pd.read_pickle',
                                'fastai.learner.load_learner', 'load_learner', 'load_pickle'), f'{module}:{node.lineno}'
            if name in wanted:
                found.append(name)
                assert wanted[name] in [ast.unparse(keyword) for keyword in node.keywords], f'{module}:{node.lineno}'
    assert set(found) == set(wanted), 'the names have changed: this test no longer sees what it looks for'
