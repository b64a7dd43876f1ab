"""All 185,015 names of AI-ArtBench as empty files: index, choice and split give the study's figures, the same each
time, quickly."""
import os, subprocess, sys, time

import pytest
from artinsight import data
from artinsight.data import CLASSES, COUNTS

import replica

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "A folder with the 60 counted folders of empty files."
    return replica.empty_files(tmp_path_factory.mktemp('whole')/'Real_AI_SD_LD_Dataset', replica.names())

@pytest.fixture(scope='module')
def frame(whole): return data.index(whole)

@pytest.fixture(scope='module')
def chosen(frame): return data.choose(frame)

def best_of(n, call):
    "Shortest of `n` calls in seconds."
    taken = []
    for _ in range(n):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken)

def test_sixty_counts(frame):
    folder = frame.path.str.rpartition('/')[0]
    known = dict(zip(COUNTS.split + '/' + COUNTS.folder, COUNTS.images))
    assert folder.value_counts().to_dict() == known and len(frame) == 185_015
    assert frame.attrs['missing'] == [] and frame.attrs['name'] == 'AI-ArtBench'
    assert (frame[frame.origin == 'AI'].groupby('group').size() <= 4).all()

def test_balanced_choice(chosen):
    assert len(chosen) == 100_000 and set(chosen.split) == {'train'}
    size = chosen.groupby(['style', 'generator']).size().unstack()
    assert (size.human == 5000).all() and (size.LD == 2500).all() and (size.SD == 2500).all()

def test_test_half(frame):
    half = frame[frame.split == 'test'].groupby('class').size()
    assert {half[name] for name in CLASSES[:10]} == {2000} and {half[name] for name in CLASSES[10:]} == {1000}

def test_random_split_is_the_studys(chosen):
    train, valid = data.split_validation(chosen, by='random')
    assert (len(train), len(valid)) == (90_000, 10_000)
    assert set(train.groupby('class').size()) == {4500} and set(valid.groupby('class').size()) == {500}

def test_grouped_split_keeps_groups_whole(chosen):
    train, valid = data.split_validation(chosen)
    assert not set(train.group) & set(valid.group)
    assert len(train) + len(valid) == 100_000 and not set(train.path) & set(valid.path)
    for rows, size in ((train, 4500), (valid, 500)):
        for name, n in rows.groupby('class').size().items():
            assert abs(n - size) <= size/100, f'{name}: {n} pictures, not {size}'

def test_random_split_would_leak(chosen):
    "What the grouped split prevents: at random most generated validation pictures have a sibling in training."
    train, valid = data.split_validation(chosen, by='random')
    generated = valid[valid.origin == 'AI']
    assert generated.group.isin(set(train.group)).mean() > .5

def test_other_seed_other_pictures(frame, chosen):
    other = data.choose(frame, seed=1)
    assert len(other) == len(chosen) and set(other.path) != set(chosen.path)
    assert set(data.split_validation(chosen, seed=1)[1].path) != set(data.split_validation(chosen)[1].path)

def test_order_of_the_files_does_not_matter(frame, chosen):
    shuffled = frame.sample(frac=1, random_state=3)
    assert sorted(data.choose(shuffled).path) == sorted(chosen.path)
    assert sorted(data.split_validation(chosen.sample(frac=1,
        random_state=4))[1].path) == sorted(data.split_validation(chosen)[1].path)

PRINT = """
import sys, hashlib
from artinsight import data
train, valid = data.split_validation(data.choose(data.index(sys.argv[1]), per_style=40))
print(hashlib.sha256('\\n'.join([*train.path, '-', *valid.path]).encode()).hexdigest())
"""

def test_same_in_every_process(tmp_path):
    "Two processes, other hash seeds, files made in opposite order: one choice, one split."
    paths = replica.names(1)
    printed = []
    for hash_seed, order in (('1', paths), ('2', paths[::-1])):
        folder = replica.empty_files(tmp_path/hash_seed, order)
        env = {**os.environ, 'PYTHONHASHSEED': hash_seed}
        printed.append(subprocess.run([sys.executable, '-c', PRINT, str(folder)], env=env, capture_output=True,
                                      text=True, check=True).stdout)
    assert printed[0] == printed[1] != ''

def test_index_within_ten_seconds(whole): assert best_of(1, lambda: data.index(whole)) < 10

def test_choice_and_split_within_two_seconds(frame):
    assert best_of(2, lambda: data.split_validation(data.choose(frame))) < 2
