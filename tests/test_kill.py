"""SIGKILL at any moment, then start again: the result is the same, and what was finished is not done twice.

A few kills of each stage by default, forty and more over the lot with `--slow`. The victims are forked from a server process
that has imported everything, so that a kill costs little and falls into the work.
"""
import importlib.util, json, multiprocessing, os, random, shutil, time
from dataclasses import replace
from pathlib import Path

import pytest
from artinsight import data, loading, study, training

import kaggle_server
from kaggle_server import serve

@pytest.fixture(scope='module')
def start():
    "Start a function in a process of its own: `start(function, *args)`."
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['kagglehub', 'artinsight.loading', 'artinsight.training', 'artinsight.study', 'artinsight.evaluation'])
    def begin(function, *args):
        process = context.Process(target=quietly, args=(function, *args))
        process.start()
        return process
    begin(time.time).join()                                     # wait for the imports
    return begin

def quietly(function, *args):
    "In the victim: one thread, no output."
    import torch
    torch.set_num_threads(1)
    with open(os.devnull, 'w') as nowhere:
        for stream in (1, 2): os.dup2(nowhere.fileno(), stream)
    function(*args)

def survive(start, kills, seed, work, args, log, finished, wipe):
    """Run `work(*args, log)`, which writes a word to `log` for each thing it does, and kill it at random moments, `kills` times; then
    let it end. `finished()` says, before each start, what is done: it must not be done again. `wipe()` begins anew after a run that got through."""
    draw, killed, spared = random.Random(seed), 0, 0
    def one(patience=None):
        nonlocal spared
        before = set(map(str, finished()))
        log.write_text('')
        run = start(work, *args, log)
        run.join(patience)
        alive = run.exitcode is None
        if alive:
            run.kill()
            run.join()
        else: assert run.exitcode == 0, f'failed by itself after {killed} kills'
        again = before & set(log.read_text().split())
        assert not again, f'finished before the kill, and done again: {sorted(again)}'
        spared += len(before)
        return alive
    begin = time.perf_counter()
    assert not one()
    whole = time.perf_counter() - begin
    wipe()
    while killed < kills:
        if one(draw.uniform(0, whole)): killed += 1
        else: wipe()
    assert not one()
    print(f'{killed} of {kills} kills survived, {spared} finished things were not done again')

def kills_of(request, fast, slow): return slow if request.config.getoption('--slow', default=False) else fast

def contents(folder, names='*'): return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob(names)) if p.is_file()}

# The store

decode_block = loading._decode_block

def noted(root, paths, begin, targets):
    "Decode a block and note it."
    result = decode_block(root, paths, begin, targets)
    with open(os.environ['NOTES'], 'a') as file: file.write(f'{begin//loading.BLOCK}\n')
    return result

def build(frame, root, folder, workers, log):
    "In the victim: build a store, noting each block that is decoded."
    os.environ['NOTES'], loading._decode_block = str(log), noted
    loading.build_store(frame, root, 32, folder, workers=workers, progress=False)

@pytest.mark.parametrize('workers', [1, 2])
def test_store(start, sample, tmp_path, request, workers):
    "Byte-identical pixels and journal; a block that stands in the journal is not decoded again."
    frame, folder = data.index(sample).iloc[::4].reset_index(drop=True), tmp_path/'store'
    loading.build_store(frame, sample, 32, tmp_path/'reference', workers=1, progress=False)
    def journal(): return [json.loads(line)['block'] for p in folder.rglob('blocks.jsonl') for line in p.read_text().splitlines() if line.endswith('}')]
    def wipe(): shutil.rmtree(folder, ignore_errors=True)
    survive(start, kills_of(request, 2, 6), workers, build, (frame, sample, folder, workers), tmp_path/'log', journal, wipe)
    assert contents(folder) == contents(tmp_path/'reference')

# The download

def fetch(env, cache, counts, log):
    "In the victim: download from the server on this machine."
    os.environ.update(env)
    data.ZIP_BYTES = 0
    data.download(cache, counts)

def test_download(start, tmp_path, request):
    "The same files; a call goes on behind the bytes that are there."
    pytest.importorskip('kagglehub')
    counts = data.COUNTS.assign(images=3)
    names = [f'{row.split}/{row.folder}/{i}.jpg' for row in counts.itertuples() for i in range(3)]
    archive = kaggle_server.zip_names(names, tmp_path/'a.zip', lambda name: name.encode()*1000)
    cache, kept = tmp_path/'cache', []
    partial = cache/'datasets/ravidussilva/real-ai-art/5.archive'
    def note():
        kept.append(partial.stat().st_size if partial.exists() else 0)
        return []
    with serve(archive, rate=archive.stat().st_size/1.5) as kaggle:
        wipe = lambda: shutil.rmtree(cache, ignore_errors=True)
        survive(start, kills_of(request, 2, 10), 3, fetch, (kaggle.env(cache), cache, counts), tmp_path/'log', note, wipe)
        ranges = {int(span.removeprefix('bytes=').strip('-')) for span in kaggle.log if span}
    assert ranges <= set(kept)
    root = cache/'datasets/ravidussilva/real-ai-art/versions/5/Real_AI_SD_LD_Dataset'
    assert all((root/name).read_bytes() == name.encode()*1000 for name in names) and not partial.exists()

# Training

class Note(training.Callback):
    "Write the number of each epoch that begins."
    def __init__(self, log): self.log = log
    def before_epoch(self):
        with open(self.log, 'a') as file: file.write(f'{len(self.learn.checkpoint.rows)}\n')

RECIPE = training.Experiment('tiny', 'simple_cnn', size=32, augment=('hflip', 'rotation'), epochs=8, patience=8, lr=.01, batch_size=32)

def fit(store, run, log):
    "In the victim: train a small network on a store that is there."
    import torch
    frame, root, folder = store
    pictures = loading.build_store(frame, root, 32, folder, workers=1, progress=False)
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(3, 8, 3, 2), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(128, 20)
    rows = range(len(frame))
    dls = loading.dataloaders(pictures, rows[::2], rows[1::4], rows[3::4], RECIPE.augment, RECIPE.batch_size, 'cpu')
    training.train(RECIPE, torch.nn.Sequential(*layers), dls, run, cbs=[Note(log)])

def epochs_done(run):
    "Epochs in the checkpoint."
    file = Path(run)/'checkpoint.safetensors'
    if not file.exists(): return []
    with training.safe_open(file, 'pt') as opened: return range(len(json.loads(opened.metadata()['rows'])))

def test_training(start, sample, tmp_path, request):
    "The same weights and predictions to the bit, the same losses; no finished epoch is trained again."
    frame = data.index(sample).iloc[::4].reset_index(drop=True)
    store = frame, sample, tmp_path/'store'
    reference = start(fit, store, tmp_path/'reference', os.devnull)
    reference.join()
    assert reference.exitcode == 0
    run = tmp_path/'run'
    wipe = lambda: shutil.rmtree(run, ignore_errors=True)
    survive(start, kills_of(request, 3, 12), 5, fit, (store, run), tmp_path/'log', lambda: epochs_done(run), wipe)
    weights, again = (training.load_file(folder/'model.safetensors') for folder in (tmp_path/'reference', run))
    assert weights.keys() == again.keys() and all((weights[name] == again[name]).all() for name in weights)
    for part in ('validation', 'test'):
        for one, other in zip(training.load_predictions(tmp_path/'reference', part), training.load_predictions(run, part)): assert (one == other).all()
    losses = [training.pd.read_csv(folder/'history.csv')[['valid_loss', 'accuracy']] for folder in (tmp_path/'reference', run)]
    assert len(losses[0]) == 8 and losses[0].equals(losses[1])
    assert not [p for p in run.iterdir() if p.name.endswith('.part')], 'half-written files stay behind'

# An experiment from data to record: store, training, predictions, evaluation

def noted_epoch(self):
    "Note the epoch that begins, then begin it."
    with open(os.environ['NOTES'], 'a') as file: file.write(f'epoch{len(self.rows)}\n')
    before_epoch(self)

before_epoch = training.Checkpoint.before_epoch

def experiment(recipe, root, runs, cache, log):
    "In the victim: what artinsight_train does."
    os.environ.update(NOTES=str(log), ARTINSIGHT_CACHE=str(cache))
    loading._decode_block, training.Checkpoint.before_epoch = noted, noted_epoch
    study.run_experiment(recipe, data.index(root), runs, 'none', 'cpu')

def test_experiment(start, sample, tmp_path, request):
    "Same weights, predictions and figures, wherever it was cut: while decoding, training, predicting, evaluating or recording."
    root, recipe = tmp_path/'data', replace(study.find_experiment('simple_cnn', quick=True), epochs=6)
    for split, n in (('train', 9), ('test', 3)):
        for folder in data.FOLDERS:
            (root/split/folder).mkdir(parents=True)
            for file in sorted((sample/split/folder).iterdir())[:n]: shutil.copy(file, root/split/folder)
    reference = start(experiment, recipe, root, tmp_path/'reference', tmp_path/'cache0', os.devnull)
    reference.join()
    assert reference.exitcode == 0
    run, cache = tmp_path/'runs/simple_cnn', tmp_path/'cache'
    def done():
        blocks = [json.loads(line)['block'] for p in cache.rglob('blocks.jsonl') for line in p.read_text().splitlines() if line.endswith('}')]
        return [*blocks, *(f'epoch{n}' for n in (range(recipe.epochs) if (run/'record.json').exists() else epochs_done(run)))]
    def wipe():
        for folder in (cache, tmp_path/'runs'): shutil.rmtree(folder, ignore_errors=True)
    survive(start, kills_of(request, 2, 8), 11, experiment, (recipe, root, tmp_path/'runs', cache), tmp_path/'log', done, wipe)
    one, other = (training.read_record(folder) for folder in (tmp_path/'reference/simple_cnn', run))
    for part in ('experiment', 'data', 'validation', 'test', 'best_epoch'): assert one[part] == other[part], part
    weights = [training.load_file(folder/'model.safetensors') for folder in (tmp_path/'reference/simple_cnn', run)]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    assert contents(tmp_path/'cache0') == contents(cache)

# The report: notebooks executed in a copy, then pages

def report(project, log):
    "In the victim: execute the project's notebooks and render them, noting each execution."
    pages = pages_of(project)
    os.environ['PATH'] = f"{Path(os.sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    execute = pages.execute
    def noted(path, dest, env):
        with open(log, 'a') as file: file.write(f'{path.name}\n')
        return execute(path, dest, env)
    pages.execute = noted
    pages.execute_all(project/'runs', project/'_proc', workers=1)
    pages.build(project/'_proc/nbs', project/'_site')

def pages_of(project):
    "The page builder, working on another project."
    spec = importlib.util.spec_from_file_location('pages', Path(__file__).parents[1]/'nbs/_pages.py')
    pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pages)
    pages.ROOT = project
    return pages

@pytest.mark.slow
def test_report(start, tmp_path):
    "The same pages; a notebook that was executed is not executed again."
    import nbformat
    here, project = Path(__file__).parents[1], tmp_path/'project'
    for name in ('nbs', 'artinsight', 'results', 'runs'): (project/name).mkdir(parents=True)
    for name in ('settings.ini', 'setup.py', 'README.md'): shutil.copy(here/name, project)
    for name in here.glob('nbs/*.css'): shutil.copy(name, project/'nbs')
    names = [f'0{i}_part{i}.ipynb' for i in range(3)]
    (project/'_quarto.yml').write_text('website:\n  sidebar:\n    contents:\n' + ''.join(f'      - {name}\n' for name in ['index.ipynb', *names]))
    for name in ['index.ipynb', *names]:
        cells = [nbformat.v4.new_markdown_cell(f'# {name}\n\n> A page', id='a'), nbformat.v4.new_code_cell(f'print({name!r}.upper())', id='b')]
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={'kernelspec': {'name': 'python3', 'display_name': 'python3', 'language': 'python'}}), project/'nbs'/name)
    def site(): return {name: text for name, text in contents(project/'_site').items() if name.endswith('.html')}
    def wipe():
        for name in ('_proc', '_site'): shutil.rmtree(project/name, ignore_errors=True)
    def executed(): return json.loads((project/'_proc/keys.json').read_text()) if (project/'_proc/keys.json').exists() else []
    run = start(report, project, tmp_path/'log')
    run.join()
    assert run.exitcode == 0
    whole = site()
    wipe()
    survive(start, 6, 7, report, (project,), tmp_path/'log', executed, wipe)
    assert site() == whole and len(whole) == 4
