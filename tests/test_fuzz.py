"""Random names, folders, tables and files thrown at what reads them: only the documented errors come out."""
import json, os
from dataclasses import asdict

import numpy as np, pytest, torch
from PIL import Image
from fastai.optimizer import OptimWrapper
from hypothesis import HealthCheck, given, settings, strategies as st

from artinsight import data, resnet18, study, training
from artinsight.data import CLASSES, FOLDERS
from artinsight.engine.checkpoint import Checkpoint
from artinsight.engine.runs import copy_weights, save_predictions
from artinsight.engine.store import BLOCK, build_store

MANY = settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck))
SOME = settings(MANY, max_examples=200)
TEXT = st.text(max_size=40) | st.text(alphabet="/\\._-0123456789AILDSDbaroque '\0\n", max_size=40)
FOLDER = st.sampled_from([*FOLDERS, 'AI_XL_baroque', 'surreal']) | TEXT
FILE = TEXT | st.from_regex(r'\A\d-\d{1,9}-\d{1,6}\.jpg\Z')
FILE |= st.from_regex(r'\A[a-z-]{1,12}_[a-z-]{1,12}(-\d{4})?\.jpg\Z')
PATH = st.builds('/'.join, st.tuples(st.sampled_from(['train', 'test', 'valid', '']), FOLDER, FILE)) | TEXT

@MANY
@given(FOLDER)
def test_describe_of_a_folder(name):
    try: got = data.describe([f'train/{name}/a.jpg']).iloc[0]
    except ValueError: assert name not in FOLDERS
    else:
        assert data.folder_name(got['style'], got.generator) == name.split('/')[0]
        assert got.origin == ('human' if got.generator == 'human' else 'AI')

@MANY
@given(PATH)
def test_describe_of_a_path(path):
    try: got = data.describe([path]).iloc[0].to_dict()
    except ValueError as error: assert '\n' not in str(error)
    else:
        assert got['split'] in ('train', 'test') and got['class'] in CLASSES and isinstance(got['group'], str)
        assert got == data.describe([path]).iloc[0].to_dict()
        if got['origin'] == 'AI': assert got['group'].startswith(f"AI_{got['generator']}_")

@SOME
@given(st.lists(PATH, max_size=6))
def test_describe(paths):
    try: frame = data.describe(paths)
    except ValueError: return
    assert list(frame.path) == paths and list(frame.columns) == data.COLUMNS

def plausible(draw_names):
    "An index of invented pictures."
    return data.describe(sorted({f'{split}/{folder}/{name}' for split, folder, name in draw_names}))

ROW = st.tuples(st.sampled_from(['train', 'test']), st.sampled_from(list(FOLDERS)),
                st.builds('{}-{}-{}.jpg'.format, st.integers(0, 9), st.integers(0, 5),
                    st.integers(0, 40)) | st.builds('{}_x{}.jpg'.format, st.sampled_from('abcd'), st.integers(0, 40)))

@SOME
@given(st.lists(ROW, max_size=60), st.integers(1, 6), st.integers(0, 3), st.sampled_from(['group', 'random']),
       st.floats(.05, .9))
def test_choice_and_split(rows, per_style, seed, by, fraction):
    "Any table: no picture twice, none lost, never more than asked, groups whole, and the same again."
    frame = plausible(rows)
    try: chosen = data.choose(frame, per_style, seed)
    except ValueError:
        assert not (frame.split == 'train').any()
        return
    assert set(chosen.split) == {'train'} and chosen.path.is_unique
    assert (chosen.groupby(['style', 'origin']).size() <= per_style).all()
    train, valid = data.split_validation(chosen, fraction, by, seed)
    assert sorted([*train.path, *valid.path]) == sorted(chosen.path)
    if by == 'group': assert not set(train.group) & set(valid.group)
    assert list(data.split_validation(data.choose(frame, per_style, seed), fraction, by,
                                      seed)[1].path) == list(valid.path)

NAME = st.from_regex(r'\A[^/\0]{1,12}\Z').filter(lambda s: s.strip('. ')
                                                 and len(s.encode('utf8', 'surrogatepass')) < 200)

@settings(SOME, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(['train', 'test', 'other']), st.sampled_from([*FOLDERS]) | NAME, NAME),
                max_size=8))
def test_index_of_any_folder(tmp_path_factory, files):
    "A folder of strange names: an index, or one line that says what is wrong."
    root = tmp_path_factory.mktemp('any')
    for split, folder, name in files:
        try:
            (root/split/folder).mkdir(parents=True, exist_ok=True)
            (root/split/folder/(name + '.jpg')).touch()
        except (OSError, UnicodeError): pass
    try: frame = data.index(root)
    except (ValueError, FileNotFoundError) as error: assert '\n' not in str(error)
    else: assert len(frame) and all((root/path).is_file() for path in frame.path)

# What a run folder from a stranger may hold

JSON = st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
                    max_leaves=8)
RECORD = st.fixed_dictionaries({}, optional={
    'format': st.just(training.RECORD_FORMAT) | JSON, 'classes': st.just(list(CLASSES)) | JSON, 'experiment': JSON,
    'weights': JSON,
    'data': JSON, 'validation': JSON, 'test': JSON, 'quick': JSON})
DOCUMENTED = (ValueError, FileNotFoundError)

def refused_in_one_line(call):
    "Call it; what it raises must be documented, and its message one line."
    try: return call()
    except DOCUMENTED as error: assert str(error).strip() and '\n' not in str(error)

@settings(MANY, max_examples=400)
@given(RECORD.map(json.dumps).map(str.encode) | JSON.map(json.dumps).map(str.encode) | st.binary(max_size=60))
def test_read_record(tmp_path_factory, written):
    run = tmp_path_factory.getbasetemp()/'record'
    run.mkdir(exist_ok=True)
    (run/'record.json').write_bytes(written)
    record = refused_in_one_line(lambda: training.read_record(run))
    if record: refused_in_one_line(lambda: resnet18.load_experiment(record))

SOUND_RECIPE = json.loads(json.dumps(asdict(study.find_experiment('simple_cnn'))))
RECIPE = st.fixed_dictionaries({name: st.just(value) | st.integers(-2, 2000) | JSON
                                for name, value in SOUND_RECIPE.items()})

@SOME
@given(RECIPE | st.tuples(st.sampled_from(sorted(SOUND_RECIPE)),
                          JSON | st.text(max_size=8)).map(lambda change: SOUND_RECIPE | dict([change])))
def test_load_model_of_strange_recipes(tmp_path_factory, recipe):
    "All fields, any values: refused, or a recipe that can be trained; weights that do not fit are told as such."
    run = tmp_path_factory.getbasetemp()/'recipe'
    run.mkdir(exist_ok=True)
    record = dict(format=training.RECORD_FORMAT, classes=list(CLASSES), experiment=recipe, weights='none', data={},
                  validation={}, test={})
    (run/'record.json').write_text(json.dumps(record))
    (run/'model.safetensors').write_bytes(b'none')
    experiment = refused_in_one_line(lambda: resnet18.load_experiment(record))
    if experiment:
        assert 0 < experiment.size <= 1024 and os.sep not in experiment.name and isinstance(experiment.frozen, tuple)
    assert refused_in_one_line(lambda: resnet18.load_model(run)) is None

@pytest.mark.parametrize('written', [b'['*100_000, b'\xff\xfe', b'', b'{"format": ' + b'1'*5000 + b'}', b'null'])
def test_read_record_corners(tmp_path, written):
    (tmp_path/'record.json').write_bytes(written)
    with pytest.raises(ValueError): training.read_record(tmp_path)

def written_predictions(folder, n=40):
    "A run folder with sound predictions."
    folder.mkdir(exist_ok=True)
    part = [f'test/AI_SD_baroque/1-{i}-3.jpg'
            for i in range(n)], np.arange(n) % 20, np.random.default_rng(0).dirichlet(np.ones(20), n)
    save_predictions(folder/'predictions.npz', {'validation': part, 'test': part})
    return folder/'predictions.npz'

@settings(MANY, max_examples=400)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 10**6),
       st.booleans())
def test_load_predictions_of_damaged_files(tmp_path_factory, flips, cut, cutting):
    "Flipped and missing bytes: refused, or what is read is whole."
    file = written_predictions(tmp_path_factory.getbasetemp()/'predictions')
    damaged = bytearray(file.read_bytes())
    for place, byte in flips: damaged[place % len(damaged)] = byte
    file.write_bytes(damaged[:cut % len(damaged)] if cutting else damaged)
    for part in ('validation', 'test'):
        got = refused_in_one_line(lambda: training.load_predictions(file.parent, part))
        if got:
            ids, target, probs = got
            assert probs.shape == (len(ids),
                20) and ids.dtype.kind == 'U' and target.dtype.kind in 'iu' and set(target) <= set(range(20))

N = 5
SOUND = dict(test_id=np.array([f'test/baroque/{i}.jpg' for i in range(N)]), test_target=np.arange(N),
             test_probs=np.full((N, 20), .05))

@pytest.mark.parametrize('name,value', [
    ('test_target', np.arange(N) + 18), ('test_target', np.arange(N) - 1), ('test_target', np.array(list('abcde'))),
    ('test_target', np.arange(N)*.5),
    ('test_probs', np.full((N, 20), np.nan)), ('test_probs', np.full((N, 20), 'x')),
    ('test_probs', np.full((N, 10), .1)), ('test_probs', np.full((N, 21), .1)),
    ('test_id', np.arange(N)), ('test_id', np.array('a')), ('test_target', np.arange(N - 1))])
def test_predictions_of_other_kinds_are_refused(tmp_path, name, value):
    np.savez(tmp_path/'predictions.npz', **{**SOUND, name: value})
    with pytest.raises(ValueError): training.load_predictions(tmp_path)

def test_no_pickle_is_opened(tmp_path):
    "A predictions file that would run code when unpickled is refused, and no code runs."
    class Bomb:
        def __reduce__(self): return os.mkdir, (str(tmp_path/'bang'),)
    np.savez(tmp_path/'predictions.npz', **{**SOUND, 'test_id': np.array([Bomb()], dtype=object)})
    with pytest.raises(ValueError): training.load_predictions(tmp_path)
    assert not (tmp_path/'bang').exists()

def test_a_bare_array_is_refused(tmp_path):
    with (tmp_path/'predictions.npz').open('wb') as file: np.save(file, np.zeros(3))
    with pytest.raises(ValueError): training.load_predictions(tmp_path)

# What lies beside: a checkpoint and a store's journal, damaged on the disk

def damage(content, flips, cut):
    "Some bytes set, and what comes after `cut` lost (None: nothing)."
    damaged = bytearray(content)
    for place, byte in flips: damaged[place % len(damaged)] = byte
    return bytes(damaged if cut is None else damaged[:cut % len(damaged)])

FLIPS = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4)
CUT = st.none() | st.integers(0, 10**6)

class Learning:
    "As much of a learner as a checkpoint wants."
    def __init__(self):
        self.model = torch.nn.Linear(4, 3)
        self.create_opt()
    def create_opt(self): self.opt = OptimWrapper(self.model.parameters(), torch.optim.SGD, momentum=.9, lr=.1)

def written_checkpoint(file):
    "A checkpoint after an epoch, and the weights in it."
    learn, checkpoint = Learning(), Checkpoint(file, 'here', 3)
    learn.model(torch.ones(2, 4)).sum().backward()
    learn.opt.step()
    checkpoint.rows, checkpoint.best_weights = [{'epoch': 0, 'valid_loss': 1.}], copy_weights(learn.model)
    checkpoint.learn = learn
    checkpoint.write()
    return copy_weights(learn.model)

@settings(MANY, max_examples=300)
@given(FLIPS, CUT)
def test_damaged_checkpoint_is_not_believed(tmp_path_factory, flips, cut):
    "Read whole, or not at all: then the model is as it was."
    file = tmp_path_factory.getbasetemp()/'checkpoint.safetensors'
    saved = written_checkpoint(file)
    sound = file.read_bytes()
    file.write_bytes(damage(sound, flips, cut))
    learn, checkpoint = Learning(), Checkpoint(file, 'here', 3)
    before = copy_weights(learn.model)
    expected = saved if checkpoint.read(learn) else before
    assert all((expected[name] == value).all() for name, value in learn.model.state_dict().items())
    assert checkpoint.rows in ([], [{'epoch': 0, 'valid_loss': 1.}])

@pytest.fixture(scope='module')
def small_store(tmp_path_factory):
    "A store of two blocks, its pictures, one of them bad."
    root = tmp_path_factory.mktemp('pictures')
    (root/'train/baroque').mkdir(parents=True)
    for number in range(BLOCK + 6): Image.new('RGB', (8, 8), (number, 0, 0)).save(root/f'train/baroque/a_{number}.png')
    (root/'train/baroque/a_3.png').write_bytes(b'no picture')
    return data.index(root), root, tmp_path_factory.mktemp('store')

@settings(SOME, max_examples=40)  # each builds a store
@given(FLIPS, CUT, st.none() | st.lists(JSON
    | st.fixed_dictionaries({}, optional=dict(block=JSON, key=JSON, crc=JSON, content=JSON, bad=JSON)), max_size=4))
def test_damaged_journal_costs_decoding_only(small_store, flips, cut, lines):
    "Whatever the journal says, the pixels are those of the pictures."
    frame, root, folder = small_store
    store = build_store(frame, root, 8, folder, workers=1, progress=False)
    journal, pixels = store.file.with_name('blocks.jsonl'), store.file.read_bytes()
    journal.write_bytes(damage(journal.read_bytes(), flips, cut) if lines is None
                        else b''.join(json.dumps(line).encode() + b'\n' for line in lines))
    again = build_store(frame, root, 8, folder, workers=1, progress=False)
    assert again.file.read_bytes() == pixels and list(again.bad.path) == ['train/baroque/a_3.png']

def test_at_least_two_thousand_cases():
    "What the tests above throw, summed up."
    cases = [test._hypothesis_internal_use_settings.max_examples
             for test in globals().values() if getattr(test, 'is_hypothesis_test', False)]
    assert sum(cases) >= 2000 and len(cases) > 5
