"""The audit finds what was planted, stays quiet where nothing was, and works end to end from the console."""
import errno, json, multiprocessing, os, shutil, signal, sys, threading, tracemalloc, warnings
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest
from PIL import Image, ImageFilter

from artinsight.baseline import SIMPLE_CNN
from artinsight.data import STYLES, folder_name, index
from artinsight.evaluation import Predictions, ladder
from artinsight.resnet18 import weights_name
from artinsight.study import run_experiment
from artinsight.engine.runs import save_predictions
from artinsight.training import load_predictions
from artinsight.trust import audit as au
from artinsight.trust.robustness import CHANGES, effect, first_weights, own_scores, plot_changes, retrained
from artinsight.trust.shortcuts import each_picture, held_out, jpeg, plot_probes, read_all, shortcuts
from artinsight.trust.twins import duplicates, look_alikes
from artinsight.use.commands import artinsight_audit

REAL = Path(__file__).parents[2] / 'shared' / 'real-art'


@lru_cache(320)  # several sets are of the same clouds, saved in other ways
def large_cloud(style, key, batch):
    tint = np.random.default_rng(style).uniform(60, 200, 3)
    waves = np.random.default_rng(key).normal(size=(16, 16, 3))
    if batch is not None: waves = .5 * waves + .87 * np.random.default_rng(batch).normal(size=(16, 16, 3))
    grain = np.random.default_rng(key).normal(size=(256, 256, 1)) * 6
    smooth = np.asarray(Image.fromarray((tint + 45 * waves).clip(0, 255).astype('uint8')).resize((256, 256)), 'float32')
    return Image.fromarray((smooth + grain).clip(0, 255).astype('uint8'))


def cloud(style, key, size=256, batch=None):
    "A random cloud with a tint for its style; pictures of one batch share most of it."
    key, batch = tuple(np.atleast_1d(key).tolist()), batch and tuple(batch)
    return large_cloud(style, key, batch).resize((size, size))


def plant(dest, sizes={}, qualities={}, each=5, seed=0, batch=1):
    "A whole data set in which nothing tells the origin but what is planted."
    for number, (split, maker, style) in enumerate((split, maker, style) for split in ('train', 'test')
                                                   for maker in ('human', 'LD', 'SD') for style in range(10)):
        folder = dest / split / folder_name(STYLES[style], maker)
        folder.mkdir(parents=True)
        for n in range(each):
            family = number * 100 + n // batch
            name = f'artist-{family}_cloud-{n}.jpg' if maker == 'human' else f'{style}-{family}-{n}.jpg'
            picture = cloud(style, [seed, number, n], sizes.get(maker, 256), [seed, family, 7] if batch > 1 else None)
            picture.save(folder / name, quality=qualities.get(maker, 90))
    return dest


def lines_about(place, sample=150):
    "Findings about a data set alone."
    frame = index(place)
    result, _ = au.audit_data(frame, frame.attrs['root'], sample)
    return au.findings({'own_pictures': False, 'data': 'planted', **result}), result


def score(result, question, feature):
    return next(row for row in result['shortcuts'] if (row['question'], row['feature']) == (question, feature))


@pytest.mark.parametrize('seed', [0, *(pytest.param(more, marks=pytest.mark.slow) for more in (1, 2))])
def test_quiet_on_clean_sets(tmp_path, seed):
    lines, result = lines_about(plant(tmp_path / 'clean', seed=seed))
    assert lines == []
    assert result['duplicates']['counts'] == {}


@pytest.mark.slow  # nbs/trust/02_shortcuts.ipynb plants the same, and the next
def test_size_shortcut(tmp_path):
    lines, result = lines_about(plant(tmp_path / 'large', sizes={'SD': 768}))
    row = score(result, 'SD from the rest', 'native size')
    assert row['score'] == 1 and row['shortcut']
    assert score(result, 'origin', 'native size')['score'] == pytest.approx(.75, abs=.05)
    assert lines[0].startswith('Native size alone tells SD from the rest (human 256, LD 256, SD 768)')
    assert not any(score(result, 'origin', name)['shortcut']
                   for name in ('JPEG quality', 'JPEG subsampling', 'EXIF', '8 x 8 thumbnail'))


@pytest.mark.slow
def test_quality_shortcut(tmp_path):
    lines, result = lines_about(plant(tmp_path / 'quality', qualities={'LD': 75, 'SD': 75}))
    assert score(result, 'origin', 'JPEG quality')['score'] == 1
    assert lines[0].startswith('JPEG quality alone tells origin (human 90')
    assert not score(result, 'origin', 'native size')['shortcut']


def test_one_split_is_cut_by_group(tmp_path):
    place = plant(tmp_path / 'half', sizes={'SD': 300})
    frame = index(place)
    half = frame[frame.split == 'test']
    held = held_out(half)
    assert not set(half.group[held]) & set(half.group[~held])
    rows = shortcuts(*read_all(half, place), place)
    assert next(row for row in rows if row['question'] == 'SD from the rest'
                and row['feature'] == 'native size')['shortcut']


WAYS = {'saved again': lambda image: Image.open(jpeg(image, 40)), 'smaller': lambda image: image.resize((100, 100)),
        'larger': lambda image: image.resize((500, 400)),
        'trimmed': lambda image: image.crop((3, 3, image.width - 3, image.height - 3)),
        'brighter': lambda image: image.point(lambda level: min(255, level * 1.2)),
        'grey': lambda image: image.convert('L').convert('RGB'),
        'blurred': lambda image: image.filter(ImageFilter.GaussianBlur(2))}


def test_near_duplicates_across_splits(tmp_path):
    place = plant(tmp_path / 'twins', each=10)
    frame, planted = index(place), set()
    for number, path in enumerate(frame.path[frame.split == 'train'].sample(50, random_state=0)):
        image = Image.open(place / path)
        copy = path.replace('train/', 'test/').replace('.jpg', '9.jpg').replace('artist-', 'copyist-')
        list(WAYS.values())[number % len(WAYS)](image).save(place / copy, quality=85)
        planted.add((path, copy))
    for number in range(300):  # flat pictures that any hash of brightness would match with each other
        slope = np.linspace(100 + number % 50, 110 + number % 70,
                            256)[:, None, None] + np.random.default_rng(number).normal(0, 2, (256, 256, 3))
        sky = place / ('train', 'test')[number % 2] / 'baroque' / f'calm-{number}_sky.jpg'
        Image.fromarray(slope.clip(0, 255).astype('uint8')).save(sky)
    everything, facts, thumbs = read_all(index(place), place)
    pairs, flat = duplicates(everything, facts, thumbs)
    found = {tuple(sorted(pair, reverse=True)) for pair in zip(pairs.a, pairs.b)}
    assert len(found & planted) == 50
    assert len(found - planted) <= .01 * len(found)
    assert flat == 300
    assert set(pairs['where']) == {'across'} and pairs.same_class.all()


def test_one_composition_is_not_one_picture():
    "Sixty canvases with the same bright middle and strokes of their own: alike in outline, not in detail."
    draw, middle = np.random.default_rng(0), np.hanning(32)[:, None] * np.hanning(32) * 120
    canvases = 60 + middle[None, ..., None] + draw.normal(0, 6, (60, 32, 32, 1)) + np.zeros(3)
    clouds = np.stack([np.asarray(cloud(key % 10, key, 32)) for key in range(200)])
    thumbs = np.concatenate([canvases.clip(0, 255).astype('uint8'), clouds])
    pairs, _, flat = look_alikes(thumbs)
    assert len(pairs) == 0 and not flat.any()
    assert len(look_alikes(thumbs, sure=-1)[0]) > 500  # the outline alone would drown in them


def test_look_alikes_never_hold_all_details_at_once():
    thumbs = np.random.default_rng(0).integers(0, 256, (20_000, 8, 8, 3), 'uint8').repeat(4, axis=1).repeat(4, axis=2)
    tracemalloc.start()
    look_alikes(thumbs)
    peak, details = tracemalloc.get_traced_memory()[1], 1024 * 4 * len(thumbs)
    tracemalloc.stop()
    assert peak < details


def test_exact_copies_are_found_however_flat(tmp_path):
    place = plant(tmp_path / 'exact', each=5)
    for split in ('train', 'test'):
        Image.new('RGB', (256, 256), 'grey').save(place / split / 'baroque' / 'nobody_grey.jpg')
    pairs, _ = duplicates(*read_all(index(place), place))
    assert pairs[['kind', 'where']].to_numpy().tolist() == [['exact', 'across']]


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "A set of batches of four, and two barely trained runs on it, split by group and at random."
    place, runs = plant(tmp_path_factory.mktemp('set') / 'batches', each=8, batch=4), tmp_path_factory.mktemp('runs')
    for by in ('group', 'random'):
        run_experiment(replace(SIMPLE_CNN.quick_version(), name=by, split_by=by, epochs=2, validation=.5), index(place),
                       runs, device='cpu')
    return place, runs


def test_random_split_is_caught(trained):
    place, runs = trained
    torn, whole = (au.audit(runs / by, place, robustness=False, sample=60) for by in ('random', 'group'))
    assert torn['leak']['siblings'] > .5 and whole['leak']['siblings'] == 0
    assert [line for line in au.findings(torn) if 'sibling in training (random split)' in line]
    assert not [line for line in au.findings(whole) if 'sibling' in line]
    assert whole['leak']['neighbour']['gain'] > .3 and whole['leak']['neighbour']['gain_ci95'][0] > .2
    assert json.loads((runs / 'group' / 'audit.json').read_text()) == whole
    assert whole['equalised']['n'] == 60 and whole['robustness'] is None


def test_scores_without_twins_and_by_artist(trained):
    place, _ = trained
    frame = index(place)
    test, train = frame[frame.split == 'test'], frame[frame.split == 'train']
    target = np.array([(10 if row.origin == 'human' else 0) + STYLES.index(row.style) for row in test.itertuples()])
    right = (test.origin == 'human').to_numpy()
    known = right & (np.arange(len(test)) % 2 == 0)
    # every second human picture is by a known artist
    test = test.assign(group=np.where(known, 'in training', test.path))
    said = np.where(right & ~known, (target + 1) % 20, target)  # and the others by human hands are got wrong
    p = Predictions(target, np.eye(20)[said] * .9 + .005)
    p.table = test
    pairs = pd.DataFrame({'a': [train.path.iloc[0]], 'b': [test.path[known].iloc[0]], 'where': ['across']})
    result = own_scores(p, train.assign(group='in training'), pairs)
    artists = result['unseen']['artists']
    assert [artists[name] for name in ('accuracy_known', 'accuracy_unknown', 'gain')] == pytest.approx([1, 0, 1])
    assert artists['gain_ci95'] is None  # one known artist proves nothing
    n, hits = len(test), (said == target).sum()
    assert result['duplicates']['test_pictures'] == 1
    assert result['duplicates']['with']['accuracy'] == pytest.approx(hits / n)
    assert result['duplicates']['without']['accuracy'] == pytest.approx((hits - 1) / (n - 1))


def test_retraining_without_a_generator(trained):
    place, runs = trained
    told = au.audit(runs / 'group', place, robustness=False, sample=60, retrain=True)
    again, made = told['retrained'], sorted((runs / 'group' / 'retrained').glob('*/model.safetensors'))
    assert [file.parent.name for file in made] == ['split_by_random', 'without_LD', 'without_SD']
    assert set(again['generators']) == {'LD', 'SD'}
    counts = lambda folder: json.loads((folder / 'record.json').read_text())['data']['counts']
    ai = lambda told: sum(n for part in ('train', 'validation') for name, n in told[part].items()
                          if name.startswith('AI'))
    own = counts(runs / 'group')
    for maker, row in again['generators'].items():
        chosen = counts(runs / 'group' / 'retrained' / f'without_{maker}')
        assert chosen['test'] == own['test'] and ai(chosen) == ai(own) / 2  # there are as many LD as SD pictures
        for name in ('called_AI', 'style'):
            assert all(0 <= row[name][side] <= 1 for side in ('with', 'without'))
            low, high = row[name]['change_ci95']
            assert low <= row[name]['without'] - row[name]['with'] <= high
    splits = again['splits']
    assert splits['leak'] == pytest.approx(splits['random']['above'] - splits['group']['above'])
    assert splits['group']['test'] == told['leak']['test_accuracy']
    assert sum('it has not seen' in line for line in au.limits(told)) == 3
    assert any('the leak is worth' in line for line in au.limits(told))
    times = [file.stat().st_mtime_ns for file in made]
    for more in ({'retrain': True}, {}):  # nothing is trained twice, and what is done counts unasked
        assert au.audit(runs / 'group', place, robustness=False, sample=60, **more)['retrained'] == again
    assert [file.stat().st_mtime_ns for file in made] == times
    unfinished = runs / 'group' / 'retrained' / 'without_SD' / 'record.json'
    unfinished.unlink()
    assert set(retrained(runs / 'group', index(place))['generators']) == {'LD'}


def test_retraining_begins_with_the_same_weights(tmp_path):
    (file := tmp_path / 'own.safetensors').write_bytes(b'weights')
    run = lambda first, model='resnet18': {'weights': first, 'experiment': {'name': 'it', 'model': model}}
    assert [first_weights(run(first), None) for first in ('none', 'imagenet')] == ['none', 'imagenet']
    assert first_weights(run('none', 'simple_cnn'), 'imagenet') == 'none'
    own = weights_name(file)
    assert first_weights(run(own), file) == file
    for first, weights in (('none', 'imagenet'), ('imagenet', file), (own, None), (own, 'none')):
        with pytest.raises(ValueError, match='it began with'): first_weights(run(first), weights)


def console(monkeypatch, *words):
    "Run artinsight_audit with these words on its command line."
    monkeypatch.setattr(sys, 'argv', ['artinsight_audit', *map(str, words)])
    artinsight_audit()


def test_some_pictures_keep_the_groups_of_the_whole_set():
    "Alone, the pictures of a folder's one artist would count as a group each, and the sides could not be compared"
    names = [f'test/{folder}/{who}_{n}.jpg' for folder in ('baroque', 'realism')
             for who in ('one', 'other') for n in range(10)]
    target = np.repeat([11, 15], 20)
    whole = Predictions(target, np.eye(20)[target], names)
    some = whole.take([n for n, name in enumerate(names) if '/one_' in name])
    assert some.table.group.nunique() < Predictions(some.target, some.probs, some.table.path).table.group.nunique()
    changed = effect(some, np.roll(some.probs, 1, axis=1))
    assert (changed['n'], changed['accuracy_before'], changed['accuracy']) == (20, 1, 0)


@pytest.mark.skipif(not REAL.is_dir(), reason='needs ../shared/real-art')
def test_real_pictures_on_the_console(tmp_path, monkeypatch, capsys):
    run_experiment(replace(SIMPLE_CNN.quick_version(), epochs=1, per_style=60), index(REAL), tmp_path, device='cpu')
    capsys.readouterr()
    console(monkeypatch, tmp_path / 'simple_cnn', '--data', REAL, '--no-robustness', '--sample', 200)
    said = capsys.readouterr().out
    assert 'Native size alone tells origin (human mixed, AI 504): balanced accuracy 100 %' in said
    assert 'twins' not in said
    assert "What this model can't be trusted with" in said
    assert 'Damaged pictures' in said  # not measured, and said so


def test_console_prints_json_only(trained, monkeypatch, capsys):
    place, runs = trained
    console(monkeypatch, runs / 'group', '--data', place, '--sample', 30, '--json')
    result = json.loads(capsys.readouterr().out)
    assert set(result['robustness']) == set(CHANGES)
    assert len(au.limits(result)) >= 4


def test_console_errors_are_one_line(trained, tmp_path, monkeypatch, capsys):
    place, runs = trained
    other = plant(tmp_path / 'other', each=1)
    for words, told in (((tmp_path / 'nothing', '--data', tmp_path), 'record.json'),
                        ((runs / 'group', '--data', place, '--sample', 0), 'one picture or more'),
                        ((runs / 'group', '--data', other, '--retrain'), 'cannot be trained again')):
        with pytest.raises(SystemExit) as stopped: console(monkeypatch, *words)
        assert stopped.value.code == 2
        said = capsys.readouterr()
        assert said.out == '' and len(said.err.splitlines()) <= 2 and told in said.err


# ---- one-sided data, and machines that lack something

BOTH = 'train', 'test'
ONE_SIDED = {'human alone': ([(split, 'human', style) for split in BOTH for style in range(10)], 2),
             'one generator alone': ([(split, 'SD', style) for split in BOTH for style in range(10)], 4),
             'one style': ([(split, maker, 1) for split in BOTH for maker in ('human', 'LD', 'SD')], 10),
             'one folder': ([(split, 'human', 1) for split in BOTH], 8),
             'one folder of an AI': ([(split, 'LD', 1) for split in BOTH], 8),
             'one class in test': ([*(('train', maker, style) for maker in ('human', 'LD') for style in range(3)),
                                    ('test', 'human', 0)], 4),
             'a class in test that training lacks': ([*(('train', 'human', style) for style in range(3)),
                                                      ('test', 'SD', 0)], 4),
             'a handful': ([(split, maker, 1) for split in BOTH for maker in ('human', 'SD')], 2)}
FEW = 'five pictures to learn from'
REASONS = {'human alone': ['only one origin here (human)', 'no generator here', 'there is none here'],
           'one generator alone': ['only one generator here (SD)', 'there is only one here'],
           'one style': ['only one style here (baroque)'],
           'one folder': ['only one origin here (human)', 'only one style here (baroque)'],
           'one folder of an AI': ['only one generator here (LD)'],
           'one class in test': ['only one generator here (LD)', FEW],
           'a class in test that training lacks': [FEW],
           'a handful': [FEW]}


def paint_some(dest, folders, each):
    "Some folders of a data set, with as many clouds each."
    for number, (split, maker, style) in enumerate(folders):
        (folder := dest / split / folder_name(STYLES[style], maker)).mkdir(parents=True)
        for n in range(each):
            family = number * 100 + n // (1 if maker == 'human' else 2)
            name = f'artist-{family}_cloud-{n}.jpg' if maker == 'human' else f'{style}-{family}-{n}.jpg'
            cloud(style, [number, n], 64).save(folder / name)
    return dest


def barely_trained(place, runs, **changes):
    recipe = replace(SIMPLE_CNN.quick_version(), name='it', epochs=1, validation=.5, **changes)
    run_experiment(recipe, index(place), runs, device='cpu')
    return runs / 'it'


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('case', ONE_SIDED)
def test_one_sided_data_is_audited_as_far_as_it_goes(case, tmp_path, monkeypatch, capsys):
    place = paint_some(tmp_path / 'set', *ONE_SIDED[case])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')   # fastai's own
        run = barely_trained(place, tmp_path)
    capsys.readouterr()
    console(monkeypatch, run, '--data', place, '--sample', 30)
    said = capsys.readouterr().out
    for reason in REASONS[case]: assert reason in said
    assert 'after one resize and one JPEG pass for all, accuracy' in said
    assert 'Empty DataFrame' not in said and 'nan' not in said
    kept = au.audit_of(run, [])
    assert kept['equalised']['n'] > 0 and set(kept['robustness']) == set(CHANGES) and kept['duplicates']['with']
    for question in ('origin', 'style', 'generator'): plot_probes(kept, question)
    plot_changes(kept)
    plt.close('all')


@pytest.fixture(scope='module')
def lone(tmp_path_factory):
    "One folder of human pictures, and a run on it."
    place = paint_some(tmp_path_factory.mktemp('lone') / 'set', [(split, 'human', 1) for split in BOTH], 6)
    return place, barely_trained(place, place.parent)


def copy_of(run, dest):
    shutil.copytree(run, dest / 'it')
    return dest / 'it'


def test_a_run_without_validation_pictures(lone, tmp_path):
    "As from a program that keeps test predictions only"
    run = copy_of(lone[1], tmp_path)
    nothing = np.empty(0, 'U1'), np.empty(0, int), np.empty((0, 20))
    save_predictions(run / 'predictions.npz', {'validation': nothing, 'test': load_predictions(run)})
    found = au.audit(run, lone[0], robustness=False, sample=5)
    assert found['leak']['siblings'] is None and found['leak']['test_accuracy'] is not None
    assert 'Siblings of validation pictures: not possible, no validation pictures here.' in au.limits(found)
    assert not [line for line in au.findings(found) if 'sibling' in line]


def test_training_again_goes_on_where_one_training_is_not_possible(tmp_path, capsys):
    "Without SD a single picture is left, too few for a validation half"
    place = paint_some(tmp_path / 'set', [('train', maker, 1) for maker in ('LD', 'SD')] + [('test', 'SD', 1)], 6)
    for file in sorted((place / 'train' / 'AI_LD_baroque').iterdir())[1:]: file.unlink()
    run = barely_trained(place, tmp_path)
    found = au.audit(run, place, robustness=False, sample=5, retrain=True)
    assert 'without_SD is not possible' in capsys.readouterr().err and found['retrained']['splits']
    assert set(found['retrained']['generators']) == set(), 'LD has no test pictures'


def refuse(*args, **kwargs): raise OSError(errno.EROFS, 'Read-only file system')


def test_a_read_only_run_is_named_before_the_work_and_audited_all_the_same(lone, tmp_path, monkeypatch, capsys):
    run, order = copy_of(lone[1], tmp_path), []
    monkeypatch.setattr(au.tempfile, 'TemporaryFile', refuse)
    work = au.audit_data
    monkeypatch.setattr(au, 'audit_data', lambda *args: order.append(capsys.readouterr().err) or work(*args))
    console(monkeypatch, run, '--data', lone[0], '--sample', 5, '--no-robustness')
    assert len(order) == 1 and f'nothing can be written into {run} (Read-only file system)' in order[0]
    assert "can't be trusted with" in capsys.readouterr().out and not (run / 'audit.json').exists()
    monkeypatch.setattr(au, 'audit_data', None)   # no work at all
    with pytest.raises(SystemExit) as stopped: console(monkeypatch, run, '--data', lone[0], '--retrain')
    assert stopped.value.code == 2 and 'cannot take the new runs' in capsys.readouterr().err


def test_a_disk_that_is_full_at_the_end_costs_the_file_and_not_the_audit(lone, tmp_path, monkeypatch, capsys):
    run = copy_of(lone[1], tmp_path)
    def full(self, *args, **kwargs): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(Path, 'write_text', full)
    console(monkeypatch, run, '--data', lone[0], '--sample', 5, '--no-robustness')
    said = capsys.readouterr()
    assert "can't be trusted with" in said.out and 'audit.json could not be written' in said.err
    assert not list(run.glob('*audit*'))


@pytest.mark.parametrize('words, told', [(('--device', 'abacus'), 'abacus'), (('--device', 'cuda:99'), 'cuda'),
                                         (('--sample', '-1'), 'one picture or more')])
def test_wrong_arguments_are_told_before_the_work(lone, monkeypatch, capsys, words, told):
    monkeypatch.setattr(au, 'audit_data', None)
    with pytest.raises(SystemExit) as stopped: console(monkeypatch, lone[1], '--data', lone[0], *words)
    assert stopped.value.code == 2 and told in capsys.readouterr().err


def test_a_run_whose_model_is_lost_is_told_before_the_work(lone, tmp_path, monkeypatch, capsys):
    run = copy_of(lone[1], tmp_path)
    (run / 'model.safetensors').write_bytes(b'half a file')
    monkeypatch.setattr(au, 'audit_data', None)
    with pytest.raises(SystemExit) as stopped: console(monkeypatch, run, '--data', lone[0])
    assert stopped.value.code == 2 and 'model.safetensors' in capsys.readouterr().err


def test_no_thread_and_no_process_left(lone, tmp_path, monkeypatch):
    "As with ulimit -u or a cgroup's pids.max reached: neither threading nor fork gives anything"
    def no_thread(self): raise RuntimeError("can't start new thread")
    def no_process(): raise OSError(errno.EAGAIN, 'Resource temporarily unavailable')
    plain = au.audit(copy_of(lone[1], tmp_path / 'one'), lone[0], sample=5)
    monkeypatch.setattr(threading.Thread, 'start', no_thread)
    monkeypatch.setattr(os, 'fork', no_process)
    lacking = au.audit(copy_of(lone[1], tmp_path / 'other'), lone[0], sample=5)
    assert {**lacking, 'seconds': 0} == {**plain, 'seconds': 0}


def test_a_worker_that_is_killed_costs_nothing(lone):
    frame = index(lone[0])
    assert [*each_picture(die_once, frame, lone[0])] == [Path(path).name for path in frame.path]


def die_once(path):
    "Ends the first worker that meets it; in the parent it answers"
    if multiprocessing.parent_process() and path.endswith('cloud-1.jpg'): os.kill(os.getpid(), signal.SIGKILL)
    return Path(path).name


def test_home_in_paths(lone, tmp_path, monkeypatch):
    "~ means home in the run's path, the data's and those of notebooks"
    copy_of(lone[1], tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    found = au.audit('~/it', lone[0], robustness=False, sample=5)
    assert au.audit_of('~/it', []) == found and not (tmp_path / '~').exists()
    assert list(ladder('~', ('it', 'none'))) == []
