"""What users find in their folders after `artinsight_explain` and `artinsight_predict`: their own files as they were,
whatever these are called."""
import json
import os
import shutil
import threading
import unicodedata

import numpy as np
import pytest
from PIL import Image

from artinsight.use.explain import explain_files
from artinsight.use.page import answer_upload
from artinsight.use.predict import in_batches, list_images, load_run
from machine import full_disk, scarce, theirs
from scripts import call


@pytest.fixture(scope='module')
def run(runs): return load_run(runs/'simple_cnn')


def painting(path, seed=0):
    "A file with some picture, another for every seed; its bytes."
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((64, 48)).save(path, 'PNG')
    return path.read_bytes()




def names(folder): return sorted(path.name for path in folder.iterdir())


def sources(folder): return {json.loads(file.read_text())['path']: file.stem for file in folder.glob('*.json')}


# Output onto input

def test_a_picture_keeps_its_place_and_is_explained_once(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = painting(tmp_path/'mine.png')
    for _ in range(3):
        done = call('artinsight_explain', runs/'simple_cnn', *sorted(tmp_path.glob('*.png')), '--out', '.')
        assert done.returncode == 0, done.stderr
    assert names(tmp_path) == ['mine-2.json', 'mine-2.png', 'mine.png'] and (tmp_path/'mine.png').read_bytes() == mine
    assert 'mine-2.png: an explanation that artinsight made' in done.stderr


@pytest.mark.parametrize('kind', ['json', 'png', 'link', 'dangling', 'folder'])
def test_what_stands_in_the_way_stays(run, tmp_path, kind):
    "A table of labels, another picture, a link to one, a link to nothing yet, a folder: all under the wanted name"
    painting(tmp_path/'in/mine.jpg'), painting(tmp_path/'elsewhere.png', 1)
    out = tmp_path/'out'
    out.mkdir()
    if kind == 'json': (out/'mine.json').write_text('{"label": 3}')
    if kind == 'png': painting(out/'mine.png', 2)
    if kind == 'link': (out/'mine.png').symlink_to(tmp_path/'elsewhere.png')
    if kind == 'dangling': (out/'mine.png').symlink_to(tmp_path/'later.png')
    if kind == 'folder': (out/'mine.png').mkdir()
    there = [(path, os.lstat(path)) for path in out.iterdir()]
    frame = explain_files(run, tmp_path/'in', out)
    assert list(frame.name) == ['mine-2'] and {'mine-2.png', 'mine-2.json'} < set(names(out))
    for path, before in there:
        after = os.lstat(path)
        assert after.st_ino == before.st_ino and after.st_mtime_ns == before.st_mtime_ns


def test_a_run_folder_as_out_keeps_its_record(runs, tmp_path):
    copy = shutil.copytree(runs/'simple_cnn', tmp_path/'run')
    record = (copy/'record.json').read_bytes()
    painting(tmp_path/'record.png')
    assert call('artinsight_explain', copy, tmp_path/'record.png', '--out', copy).returncode == 0
    assert (copy/'record.json').read_bytes() == record and (copy/'record-2.json').exists()


def test_pictures_of_the_same_name_keep_their_explanations_in_later_runs(run, tmp_path):
    for seed, place in enumerate('abc'): painting(tmp_path/place/'same.png', seed)
    explain_files(run, [tmp_path/'a', tmp_path/'b'], tmp_path/'out')
    first = sources(tmp_path/'out')
    assert set(first.values()) == {'same', 'same-2'}
    for place in 'cba': explain_files(run, [tmp_path/place], tmp_path/'out', target='style')
    then = sources(tmp_path/'out')
    assert {**first, str(tmp_path/'c/same.png'): 'same-3'} == then and len(names(tmp_path/'out')) == 6


def test_a_folder_that_holds_explanations(runs, run, tmp_path):
    painting(tmp_path/'one.png'), painting(tmp_path/'two.png', 1)
    for _ in range(2):
        assert call('artinsight_explain', runs/'simple_cnn', tmp_path, '--out', tmp_path/'maps').returncode == 0
    assert names(tmp_path/'maps') == ['one.json', 'one.png', 'two.json', 'two.png']
    done = call('artinsight_predict', runs/'simple_cnn', tmp_path)
    assert done.returncode == 0 and done.stdout.count('\n') == 2
    assert done.stderr.count('an explanation that artinsight made') == 2
    done = call('artinsight_predict', runs/'simple_cnn', tmp_path/'maps/*.png')
    assert done.returncode == 2 and 'none of the 2' in done.stderr
    assert 'an explanation' in answer_upload(run, None, tmp_path/'maps/one.png')[0], 'the page, too'


def test_out_that_is_a_file(runs, tmp_path):
    mine = painting(tmp_path/'mine.png')
    for out in (tmp_path/'mine.png', tmp_path/'mine.png/maps'):
        done = call('artinsight_explain', runs/'simple_cnn', tmp_path/'mine.png', '--out', out)
        assert done.returncode == 2 and done.stderr.count('\n') == 1 and (tmp_path/'mine.png').read_bytes() == mine


# Paths and names

def test_home_spaces_and_brackets(runs, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    painting(tmp_path/'my [old] pictures/a [1].png'), painting(tmp_path/'my [old] pictures/more/b.png', 1)
    shutil.copytree(runs/'simple_cnn', tmp_path/'my run')
    for given in ('~/my [old] pictures', '~/my [old] pictures/**/*.png', './my [old] pictures/[am]*'):
        done = call('artinsight_explain', '~/my run', given, '--out', '~/the maps')
        assert done.returncode == 0 and done.stdout.count('\n') == 2, (given, done.stderr)
    assert call('artinsight_predict', '~/my run', '~/my [old] pictures/a [1].png').returncode == 0
    assert names(tmp_path) == ['my [old] pictures', 'my run', 'the maps']
    assert names(tmp_path/'the maps') == ['a [1].json', 'a [1].png', 'b.json', 'b.png']


def test_a_folder_is_read_as_people_have_them(run, tmp_path):
    hidden = '.ipynb_checkpoints/a-checkpoint.png', '._a.PNG', '__MACOSX/x.png', '.hidden.png'
    for name in ('a.PNG', 'b.tif', 'c.jfif', *hidden): painting(tmp_path/name)
    painting(tmp_path/'d without an ending')
    assert [path.name for path in list_images(tmp_path)] == ['a.PNG', 'b.tif', 'c.jfif']
    named = run.predict([tmp_path, tmp_path/'d without an ending', tmp_path/'.hidden.png'])
    assert len(named) == 5 and not named.problem.any(), 'named outright, any file is judged'


def test_what_is_no_file_is_named_and_hangs_nothing(runs, tmp_path):
    os.mkfifo(tmp_path/'pipe.png')
    done = call('artinsight_predict', runs/'simple_cnn', tmp_path/'pipe.png', '/dev/zero', 'x' * 300 + '.png')
    assert done.returncode == 2 and done.stderr.count(': not a file') == 2


def test_names_that_are_long_odd_or_alike(runs, tmp_path):
    long, odd = 'ä' * 120 + '.png', [os.fsdecode(b'caf\xe9.png'), 'two\nlines.png', '.png.png']
    alike = [unicodedata.normalize(form, 'É.png') for form in ('NFC', 'NFD')]
    for seed, name in enumerate([long, long.replace('.png', 'e.png'), *odd, *alike]): painting(tmp_path/'in'/name, seed)
    files = [str(path) for path in (tmp_path/'in').iterdir()]
    done = call('artinsight_explain', runs/'simple_cnn', *files, '--out', tmp_path/'out')
    assert done.returncode == 0 and done.stdout.count('\n') == len(files) == 7, done.stderr
    done.stdout.encode()  # a console can print it
    told = sources(tmp_path/'out')
    assert set(told) == set(files) and len(set(told.values())) == 7
    spelled = {unicodedata.normalize('NFC', name).casefold() for name in names(tmp_path/'out')}
    assert len(spelled) == 14, 'also on a disk that takes alike for the same'
    done = call('artinsight_predict', runs/'simple_cnn', *files, tmp_path/'gone\n.png')
    assert done.stdout.count('\n') == 7 and done.stderr.count('\n') == 1


# Machines that lack something

@pytest.mark.parametrize('granted', [0, 1])
def test_without_threads_all_is_done_in_order(monkeypatch, granted):
    """A stand-in for a machine that grants none, or one: the same RuntimeError, from the same call, as CPython's
    thread_run raises (3.11, Modules/_threadmodule.c)"""
    start, left = threading.Thread.start, [granted]
    def scarce_start(self):
        left[0] -= 1
        if left[0] < 0: raise RuntimeError("can't start new thread")
        start(self)
    monkeypatch.setattr(threading.Thread, 'start', scarce_start)
    assert [x for some in in_batches(list, list(range(100)), 7, 3) for x in some] == list(range(100))
    with pytest.raises(ZeroDivisionError): list(in_batches(lambda some: 1 / 0, [1, 2], 1, 2))


def test_explain_where_no_thread_can_be_started(runs, pictures, tmp_path):
    "Really none: RLIMIT_NPROC is 1. OpenBLAS, libgomp and Python each fail in their own way."
    done = scarce('artinsight_explain', runs/'simple_cnn', *pictures, '--out', theirs(tmp_path), threads=1)
    assert done.returncode == 0 and done.stdout.count('\n') == 2, done.stderr
    assert len(names(tmp_path)) == 4


@pytest.mark.slow  # explaining predicts
def test_predict_where_no_thread_can_be_started(runs, pictures):
    done = scarce('artinsight_predict', runs/'simple_cnn', *pictures, threads=1)
    assert done.returncode == 0 and done.stdout.count('\n') == 2, done.stderr


def test_explain_on_a_full_disk(runs, pictures, tmp_path):
    with full_disk(1000): done = call('artinsight_explain', runs/'simple_cnn', *pictures, '--out', tmp_path)
    assert done.returncode == 2 and 'File too large' in done.stderr and not names(tmp_path), done.stderr


@pytest.fixture
def pictures(sample): return sorted((sample/'test/baroque').glob('*.jpg'))[:2]
