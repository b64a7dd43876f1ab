"""Other people's folders, names and machines, as the data module meets them: listing, grouping, processes, consoles."""
import multiprocessing, os, shutil, signal, subprocess, sys, time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from artinsight import data
from artinsight.engine import files, pictures
from artinsight.engine.console import console
from artinsight.engine.workers import run_in_processes
from artinsight.engine.pictures import FORMATS
from PIL import Image

def put(root, *names):
    "Empty files below `root`."
    for name in names:
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        (root/name).touch()

def names(found, root): return [str(path.relative_to(root)) for path in found]

# Paths

@pytest.mark.parametrize('given, meant', [
    ('~/maps of mine', Path.home()/'maps of mine'), ('~', Path.home()), ('~$draft.jpg', Path('~$draft.jpg')),
    ('~no-such-user/x', Path('~no-such-user/x')), (Path('a~/b'), Path('a~/b'))])
def test_user_path(given, meant): assert files.user_path(given) == meant

@pytest.fixture
def homeless(monkeypatch):
    "Neither HOME nor an entry in the list of users, as in a container that runs under a number."
    import pwd
    def unknown(number): raise KeyError(number)
    monkeypatch.setattr(pwd, 'getpwuid', unknown)
    for name in ('HOME', 'ARTINSIGHT_CACHE', 'USERPROFILE'): monkeypatch.delenv(name, raising=False)

def test_no_home_folder_names_the_variable(homeless, monkeypatch, tmp_path):
    for ask, path in ((files.user_path, '~/x'), (data.data_folder, '~/data'), (data.index, '~')):
        with pytest.raises(FileNotFoundError, match='no home folder.*ARTINSIGHT_CACHE'): ask(path)
    with pytest.raises(FileNotFoundError, match='no home folder.*ARTINSIGHT_CACHE'): files.cache_folder()
    monkeypatch.setenv('ARTINSIGHT_CACHE', str(tmp_path))
    assert files.cache_folder() == tmp_path

def test_data_set_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    put(tmp_path/'my art', 'train/baroque/ann_one.jpg')
    assert len(data.index('~/my art')) == 1

@pytest.mark.parametrize('name', ['n'*251 + '.jpg', 'ü'*125 + '.jpg', 'two words\n.jpg', '\udcff.jpg'])
def test_atomic_write_takes_every_name_that_the_disk_takes(tmp_path, name):
    with files.atomic_write(tmp_path/name) as unfinished: unfinished.write_text('whole')
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path/name).read_text() == 'whole'

# Folders as they are

def test_endings_are_all_that_pillow_knows_of_our_formats():
    known = {ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS}
    assert known <= set(pictures.PICTURE_ENDINGS)

HIDDEN = ('.hidden.jpg', '._a.jpg', '.ipynb_checkpoints/a.jpg', '__MACOSX/x/a.jpg', '@eaDir/a.jpg/SYNOPHOTO_M.jpg',
          '$RECYCLE.BIN/a.jpg', '.git/a.png', 'Thumbs.db', 'Desktop.ini', '.DS_Store')

def test_listing(tmp_path, capsys):
    seen = ('a.jpg', 'b.TIF', 'c.jfif', 'd.GIF', 'e.bmp', 'more/deeper/f.ppm', 'more/g.tiff', 'z.heic')
    put(tmp_path, *seen, *HIDDEN, 'notes.txt', 'more/raw.cr2')
    assert names(pictures.picture_files(tmp_path), tmp_path) == sorted(seen)
    told = f'{tmp_path}: 2 without the ending of a picture, not read: more/raw.cr2, notes.txt'
    assert capsys.readouterr().err.splitlines() == [told]

def test_what_would_wait_for_ever_is_no_picture(tmp_path):
    "A named pipe, a link in a circle, a link to the folder above."
    put(tmp_path, 'a.jpg')
    os.mkfifo(tmp_path/'pipe.jpg')
    (tmp_path/'above').symlink_to(tmp_path)
    (tmp_path/'circle.jpg').symlink_to('circle.jpg')
    found, others = pictures.scan_folder(tmp_path)
    assert found == ['a.jpg', 'circle.jpg'] and others == ['above', 'pipe.jpg']

def test_a_name_with_a_line_end_stays_on_one_line(tmp_path, capsys):
    put(tmp_path, 'one\ntwo.txt', 'bell\a.txt', '\udcff.txt', 'ok.jpg')
    pictures.picture_files(tmp_path)
    assert capsys.readouterr().err.count('\n') == 1
    assert files.printable('a\r\nb\u2028\udcff Ω') == r'a\r\nb\u2028\udcff Ω'

def test_index_of_a_folder_as_it_is(tmp_path, capsys):
    "Capitals, sub-folders, system folders between the classes, other files, pictures of every ending."
    seen = ['TEST/AI_SD_baroque/1-7-1.jfif', 'Train/baroque/ann_one.TIFF', 'Train/baroque/rome/bob_two.gif']
    put(tmp_path, *seen, 'Train/.ipynb_checkpoints/x.jpg', 'Train/__MACOSX/._a.jpg', 'Train/baroque/notes.txt',
        'Train/list.csv', 'TEST/AI_SD_baroque/Thumbs.db')
    frame = data.index(tmp_path)
    assert list(frame.path) == seen
    assert list(frame.split) == ['test', 'train', 'train'] and list(frame.group) == ['AI_SD_baroque/7', 'ann', 'bob']
    assert len(frame.attrs['missing']) == 58 and len(data.fingerprint(frame)) == 64
    told = f'{tmp_path}: 2 without the ending of a picture, not read: Train/list.csv, Train/baroque/notes.txt'
    assert capsys.readouterr().err.splitlines() == [told]

@pytest.mark.parametrize('where', ['art/art', 'archive/Real_AI_SD_LD_Dataset', 'art', '.'])
def test_a_data_set_is_found_where_archives_put_it(tmp_path, where):
    put(tmp_path, f'{where}/Train/baroque/ann_one.jpg', '__MACOSX/train/baroque/._a.jpg', '.git/train/baroque/x.jpg')
    frame = data.index(tmp_path)
    assert frame.attrs['root'] == str(tmp_path/where) and len(frame) == 1

@pytest.mark.parametrize('files, ask, said', [
    (['art.zip'], 'art.zip', 'it is an archive: unpack it'),
    (['art.tar.gz'], 'art.tar.gz', 'it is an archive: unpack it'),
    (['x/art.7z'], 'x', 'an archive: unpack art.7z first'),
    (['notes.txt'], 'notes.txt', 'no such folder'),
    (['train/baroque/a.jpg'], 'train', 'the folder above'),
    (['a/train/baroque/a.jpg', 'b/train/baroque/a.jpg'], '.', 'holds 2 data sets'),
    (['baroque/a.jpg'], '.', r'expected train/<folders>')])
def test_what_is_no_data_set_is_explained(tmp_path, files, ask, said):
    put(tmp_path, *files)
    with pytest.raises((OSError, ValueError), match=said): data.index(tmp_path/ask)

@pytest.mark.parametrize('name', ['val', 'Validation', 'valid'])
def test_a_validation_folder_is_explained(tmp_path, capsys, name):
    put(tmp_path, 'train/baroque/a.jpg', f'{name}/baroque/b.jpg')
    assert len(data.index(tmp_path)) == 1
    assert f'{name} is not used: validation pictures are drawn from train' in capsys.readouterr().err

# Names that tell no artist

def numbered(pattern, n=40): return [f'train/baroque/{pattern.format(i, chr(97 + i % 26))}' for i in range(n)]

@pytest.mark.parametrize('pattern', [
    'baroque_{:04}.jpg', 'IMG_{:04}.jpg', 'image_{}.jpg', 'DSC{:05}.jpg', '{:04}.jpg', 'painting ({}).jpg',
    'download-{}.jpg', 'wikiart_baroque_{}.png', 'IMG_20200131_{:06}.jpg', 'Screenshot_2020-01-31-{}.png',
    'photo_{}_2020-01-31.jpg', 'untitled_{1}{0}.tif'])
def test_numbered_names_are_no_artist(pattern):
    frame = data.describe([*numbered(pattern), 'train/baroque/rembrandt_the-night-watch-1642.jpg'])
    assert frame.group.nunique() == 41
    train, validation = data.split_validation(frame)
    assert len(validation) == 4 and validation.attrs['no_validation'] == []

def test_one_seed_for_a_whole_folder_is_no_batch():
    "A generator that was always run with the same seed."
    frame = data.describe([f'train/AI_SD_baroque/1-42-{i}.jpg' for i in range(40)])
    assert frame.group.nunique() == 40 and len(data.split_validation(frame)[1]) == 4

def test_two_cameras_give_whole_groups():
    "Nothing fits a tenth: the smaller one is held back as a whole, rather than none or a part."
    frame = data.describe([*numbered('IMG_{:04}.jpg'), *numbered('DSC_{:04}.jpg', 20)])
    train, validation = data.split_validation(frame)
    assert set(validation.group) == {'dsc'} and set(train.group) == {'img'}

def test_class_without_validation_is_told_by_name(capsys):
    frame = data.describe([*numbered('ann-{1}_work-{0}.jpg'), 'train/realism/bob_one.jpg', 'train/realism/bob_two.jpg'])
    assert data.split_validation(frame)[1].attrs['no_validation'] == ['human_realism']
    assert 'no validation picture of human_realism' in capsys.readouterr().err

def test_one_artist_in_a_folder_of_real_art(shared):
    "All ukiyo-e there is Hiroshige's: validation has some all the same, and other artists stay together."
    frame = data.index(shared/'real-art')
    validation = data.parts(frame)['validation']
    assert (validation['class'] == 'human_ukiyo_e').sum() >= 4
    assert frame[(frame.origin == 'human') & (frame['style'] != 'ukiyo_e')].group.str.contains('/').sum() == 0

# Processes

def work(n, how=''):
    "n squared, but what `how` says in a worker."
    if multiprocessing.parent_process():
        if how == 'killed': os.kill(os.getpid(), signal.SIGKILL)
        if how == 'memory': raise MemoryError
        if how == 'exit': sys.exit('no')
        if how == 'unpicklable': return lambda: n
    if how == 'wrong': raise ValueError(f'{n} is wrong')
    return n*n

@pytest.mark.parametrize('how', ['', 'killed', 'memory', 'exit', 'unpicklable'])
@pytest.mark.parametrize('which', [[3], range(12)], ids=['one', 'all'])
def test_all_work_is_done_whatever_happens_to_workers(how, which):
    jobs = {f'job {n}': (n, how if n in which else '') for n in range(12)}
    assert dict(run_in_processes(work, jobs, 3)) == {f'job {n}': n*n for n in range(12)}
    assert not multiprocessing.active_children()

def test_leaving_early_leaves_no_process():
    "Also while workers send answers larger than a pipe holds."
    answers = run_in_processes(bytes, {n: (10**7,) for n in range(9)}, 2)
    next(answers)
    answers.close()
    assert not multiprocessing.active_children()

def test_an_error_comes_as_it_is():
    jobs = {n: (n, 'wrong' if n == 3 else '') for n in range(6)}
    with pytest.raises(ValueError, match='3 is wrong'): dict(run_in_processes(work, jobs, 2))
    assert not multiprocessing.active_children()

@pytest.mark.parametrize('allowed', [0, 1])
def test_no_more_processes(monkeypatch, capsys, allowed):
    "fork fails as it does at the limit (`ulimit -u`): at once, or after the first."
    fork, left = os.fork, [1]*allowed
    def limited():
        if not left: raise BlockingIOError(11, 'Resource temporarily unavailable')
        left.pop()
        return fork()
    monkeypatch.setattr(os, 'fork', limited)
    assert dict(run_in_processes(work, {n: (n,) for n in range(9)}, 3)) == {n: n*n for n in range(9)}
    assert f'{allowed} of 3 processes could be started' in capsys.readouterr().err
    assert not multiprocessing.active_children()

def test_no_threads_are_needed(monkeypatch):
    import threading
    def none(self): raise RuntimeError("can't start new thread")
    monkeypatch.setattr(threading.Thread, 'start', none)
    assert dict(run_in_processes(work, {n: (n,) for n in range(9)}, 3)) == {n: n*n for n in range(9)}

ORPHANS = """
import os, sys, time
from artinsight.engine.workers import run_in_processes
def nap(n):
    time.sleep(.2)
    return os.getpid()
for _, process in run_in_processes(nap, {n: (n,) for n in range(1000)}, 2): print(process, flush=True)
"""

def test_workers_end_with_their_parent(tmp_path):
    (tmp_path/'orphans.py').write_text(ORPHANS)
    with subprocess.Popen([sys.executable, tmp_path/'orphans.py'], stdout=subprocess.PIPE, text=True) as parent:
        workers = {int(parent.stdout.readline()) for _ in range(4)}
        parent.kill()
    deadline = time.time() + 10
    while any(map(files.is_running, workers)) and time.time() < deadline: time.sleep(.1)
    assert workers and not any(map(files.is_running, workers))

BESIDE = """
from artinsight.engine.workers import beside
code = 'import os, sys, time; open(sys.argv[1], "w").write(str(os.getpid())); time.sleep(60)'
with beside(code, ['{}']) as wait: wait()
"""

def test_the_process_beside_ends_when_its_parent_is_killed(tmp_path):
    "Else it would go on training for minutes, and hold the run's folder against the next attempt."
    told = tmp_path/'pid'
    with subprocess.Popen([sys.executable, '-c', BESIDE.format(told)]) as parent:
        deadline = time.time() + 60
        while not (told.exists() and told.read_text()) and time.time() < deadline: time.sleep(.1)
        parent.kill()
    child, deadline = int(told.read_text()), time.time() + 10
    while files.is_running(child) and time.time() < deadline: time.sleep(.1)
    assert not files.is_running(child)

SETPRIV = ['setpriv', '--reuid=54321', '--regid=54321', '--clear-groups',
           *(f'--{kind}=-all,+dac_override,+dac_read_search' for kind in ('inh-caps', 'bounding-set')),
           '--ambient-caps=+dac_override,+dac_read_search']  # another user, who may read and write everything

IS_ROOT = os.name == 'posix' and os.geteuid() == 0

@pytest.mark.skipif(not (IS_ROOT and shutil.which('setpriv')), reason='only root can become a user with a limit')
def test_the_sample_is_painted_with_no_process_and_no_thread_left(tmp_path):
    "The real limit, from the first import on: numpy's BLAS dies where it may not start threads, if it tries."
    env = {name: value for name, value in os.environ.items() if not name.endswith('_NUM_THREADS')}
    paint = 'ulimit -u 0; exec artinsight_sample "$0" --scale .00001 --full 1'
    command = [*SETPRIV, 'bash', '-c', paint, str(tmp_path/'art')]
    got = subprocess.run(command, env={**env, 'HOME': str(tmp_path)}, capture_output=True, text=True, timeout=100)
    assert (got.returncode, got.stdout) == (0, f"{tmp_path/'art'}\n"), got.stderr
    assert '0 of' in got.stderr and 'Traceback' not in got.stderr and len(data.index(tmp_path/'art')) == 60

# Consoles

FAULTS = {
    'memory': (MemoryError(), 'out of memory'),
    'threads': (RuntimeError("can't start new thread"), 'no more threads or processes may be started'),
    'fork': (BlockingIOError(11, 'Resource temporarily unavailable'), 'no more threads or processes may be started'),
    'pool': (BrokenProcessPool('a process was terminated abruptly'), 'BrokenProcessPool: a process was terminated'),
    'device': (RuntimeError('CUDA error:\nan illegal\naccess'), 'RuntimeError: CUDA error: an illegal access'),
    'permission': (PermissionError(13, 'Permission denied', '/root/x\ny'), r"Permission denied: '/root/x\ny'"),
    'encode': (UnicodeEncodeError('ascii', 'é', 0, 1, 'ordinal not in range'), "can't encode"),
    'empty': (ValueError(), 'ValueError'),
    'odd': (ValueError('no such file: \udcff\x1b[2J'), r'no such file: \udcff\x1b[2J'),
}

@console
def complain(
    what: str,  # a key of FAULTS
):
    "Raises it."
    if what == 'interrupt': raise KeyboardInterrupt
    raise FAULTS[what][0]

def ends(monkeypatch, *args):
    "The exit code of `complain`."
    monkeypatch.setattr(sys, 'argv', ['complain', *args])
    with pytest.raises(SystemExit) as end: complain()
    return end.value.code

@pytest.mark.parametrize('what', FAULTS)
def test_a_fault_of_the_machine_is_one_line(monkeypatch, capsys, what):
    assert ends(monkeypatch, what) == 2
    out, err = capsys.readouterr()
    assert out == '' and err.count('\n') == 1 and err.startswith('complain: ') and FAULTS[what][1] in err

def test_interrupt_is_130(monkeypatch): assert ends(monkeypatch, 'interrupt') == 130

@pytest.mark.parametrize('place', ['stores/x', '.', '..'])
def test_a_cache_that_cannot_be_written_names_the_variable(monkeypatch, capsys, tmp_path, place):
    monkeypatch.setenv('ARTINSIGHT_CACHE', str(tmp_path/'cache'))
    error = OSError(30, 'Read-only file system', os.path.normpath(tmp_path/'cache'/place))
    monkeypatch.setitem(FAULTS, 'cache', (error, ''))
    assert ends(monkeypatch, 'cache') == 2
    assert capsys.readouterr().err.endswith(': ARTINSIGHT_CACHE can name another cache folder\n')

def test_a_cache_that_is_a_file(monkeypatch, capsys, tmp_path):
    put(tmp_path, 'file')
    monkeypatch.setenv('ARTINSIGHT_CACHE', str(tmp_path/'file'))
    from artinsight.sample import painted_sample
    with pytest.raises(OSError) as caught: painted_sample(1, 1)
    monkeypatch.setitem(FAULTS, 'cache', (caught.value, ''))
    ends(monkeypatch, 'cache')
    assert 'ARTINSIGHT_CACHE' in capsys.readouterr().err

NAMES = ['Dürer.jpg', 'ソ.jpg', '\udcff.jpg', '😀.jpg']
SPEAK = f"""
import sys
from artinsight.engine.console import console
@console
def speak(times: int = 1, fail: bool = False):
    'Odd names on both streams.'
    for _ in range(times):
        for name in {NAMES!a}: print(name)
        for name in {NAMES!a}: print(name, file=sys.stderr)
    if fail: raise ValueError('no such file: ' + {NAMES!a}[2])
speak()
"""

@pytest.fixture
def speak(tmp_path):
    "Run a script that prints odd names."
    (tmp_path/'speak.py').write_text(SPEAK)
    def run(*args, shell='"$@"', **env):
        command = ['bash', '-c', shell, 'bash', sys.executable, tmp_path/'speak.py', *args]
        return subprocess.run(command, env={**os.environ, **env}, capture_output=True, timeout=60)
    return run

@pytest.mark.parametrize('encoding', ['ascii', 'cp437', 'utf8', 'latin1', 'shift_jis'])
def test_no_name_ends_a_run(speak, encoding):
    got = speak('--fail', PYTHONIOENCODING=encoding)
    assert got.returncode == 2 and len(got.stdout.splitlines()) == 4, got.stderr
    assert b'Traceback' not in got.stderr and got.stderr.splitlines()[-1] == rb'speak: no such file: \udcff.jpg'

@pytest.mark.parametrize('unbuffered', ['', '1'])
def test_a_reader_that_leaves(speak, unbuffered):
    shell = '"$@" | head -1; exit ${PIPESTATUS[0]}'
    got = speak('--times', '20000', shell=shell, PYTHONIOENCODING='ascii', PYTHONUNBUFFERED=unbuffered)
    assert got.returncode == 141 and len(got.stdout.splitlines()) == 1
    assert b'Traceback' not in got.stderr and b'Exception ignored' not in got.stderr

@pytest.mark.parametrize('streams, code', [('>/dev/full', 2), ('>&-', 0), ('2>&-', 0), ('>&- 2>&-', 0)])
def test_streams_that_are_full_or_closed(speak, streams, code):
    got = speak(shell='"$@" ' + streams, PYTHONUNBUFFERED='')
    assert got.returncode == code and b'Traceback' not in got.stderr and b'Exception ignored' not in got.stderr
    assert len(got.stdout.splitlines()) in (0, 4)
