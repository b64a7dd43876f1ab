"""SIGKILL at any moment, then start again: the result is the same, and what was finished is not done twice.

Two kills of an experiment by default, forty and more over the lot with `--slow`. The victims are forked
from a server process that has imported everything, so that a kill costs little and falls into the work.
"""
import importlib.util, json, multiprocessing, os, random, shutil, signal, subprocess, time
from dataclasses import replace
from pathlib import Path

import pytest
import pandas as pd
from fastai.callback.core import Callback
from safetensors import safe_open
from safetensors.torch import load_file

from artinsight import data, loading, study, training
from artinsight.engine import store as storing
from artinsight.engine.checkpoint import Checkpoint

import kaggle_server
from kaggle_server import serve

@pytest.fixture(scope='module')
def start():
    "Start a function in a process of its own: `start(function, *args)`."
    context = multiprocessing.get_context('forkserver')
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

SURVIVED = []     # kills of each stage that was tested

def survive(start, kills, seed, work, args, log, finished, wipe, check):
    """Run `work(*args, log)`, which writes a word to `log` for each thing it does, and kill it at random moments,
    `kills` times; then
    let it end. `finished()` says, before each start, what is done: it must not be done again. `check()` compares every
    result that
    a run came to with what is expected; `wipe()` begins anew after it."""
    draw, killed, spared = random.Random(seed), 0, 0
    def ends(patience=None):
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
        if not alive: check()
        return not alive
    begin = time.perf_counter()
    assert ends()
    whole = time.perf_counter() - begin
    wipe()
    while killed < kills:
        if ends(draw.uniform(0, whole)): wipe()
        else: killed += 1
    assert ends()
    SURVIVED.append(killed)
    print(f'{killed} of {kills} kills survived, {spared} finished things were not done again')

def kills_of(request, fast, slow): return slow if request.config.getoption('--slow', default=False) else fast

def contents(folder, names='*'):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob(names)) if p.is_file()}

# The store

decode_block = storing._decode_block

def noted(root, paths, begin, targets):
    "Decode a block and note it."
    result = decode_block(root, paths, begin, targets)
    with open(os.environ['NOTES'], 'a') as file: file.write(f'{begin//storing.BLOCK}\n')
    return result

def build(frame, root, folder, workers, log):
    "In the victim: build a store, noting each block that is decoded."
    os.environ['NOTES'], storing._decode_block = str(log), noted
    storing.build_store(frame, root, 32, folder, workers=workers, progress=False)

@pytest.mark.slow     # test_experiment is cut while it decodes, too
@pytest.mark.parametrize('workers', [1, 2])
def test_store(start, sample, tmp_path, request, workers):
    "Byte-identical pixels and journal; a block that stands in the journal is not decoded again."
    frame, folder = data.index(sample).iloc[::16].reset_index(drop=True), tmp_path/'store'
    storing.build_store(frame, sample, 32, tmp_path/'reference', workers=1, progress=False)
    def journal():
        return [json.loads(line)['block'] for p in folder.rglob('blocks.jsonl')
                for line in p.read_text().splitlines() if line.endswith('}')]
    def wipe(): shutil.rmtree(folder, ignore_errors=True)
    def check(): assert contents(folder) == contents(tmp_path/'reference')
    survive(start, kills_of(request, 2, 6), workers, build, (frame, sample, folder, workers), tmp_path/'log', journal,
            wipe, check)

# The download

def fetch(env, cache, counts, log):
    "In the victim: download from the server on this machine."
    os.environ.update(env)
    data.ZIP_BYTES = 0
    data.download(cache, counts)

@pytest.mark.slow     # test_download.py drops the line, and goes on
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
        def wipe(): shutil.rmtree(cache, ignore_errors=True)
        def check():
            root = cache/'datasets/ravidussilva/real-ai-art/versions/5/Real_AI_SD_LD_Dataset'
            assert all((root/name).read_bytes() == name.encode()*1000 for name in names) and not partial.exists()
        survive(start, kills_of(request, 2, 10), 3, fetch, (kaggle.env(cache), cache, counts), tmp_path/'log', note,
                wipe, check)
        ranges = {int(span.removeprefix('bytes=').strip('-')) for span in kaggle.log if span}
    assert ranges <= set(kept)

# Training

class Note(Callback):
    "Write the number of each epoch that begins."
    def __init__(self, log): self.log = log
    def before_epoch(self):
        with open(self.log, 'a') as file: file.write(f'{len(self.learn.checkpoint.rows)}\n')

RECIPE = training.Experiment('tiny', 'simple_cnn', size=32, augment=('hflip', 'rotation'), epochs=8, patience=8, lr=.01,
                             batch_size=32)

def fit(store, run, log):
    "In the victim: train a small network on a store that is there."
    import torch
    frame, root, folder = store
    pictures = storing.build_store(frame, root, 32, folder, workers=1, progress=False)
    torch.manual_seed(0)
    nn = torch.nn
    trunk = nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4)
    layers = *trunk, nn.Flatten(), nn.Linear(128, 20)
    rows = range(len(frame))
    dls = loading.dataloaders(pictures, rows[::2], rows[1::4], rows[3::4], RECIPE.augment, RECIPE.batch_size, 'cpu')
    training.train(RECIPE, torch.nn.Sequential(*layers), dls, run, cbs=[Note(log)])

def epochs_done(run):
    "Epochs in the checkpoint."
    file = Path(run)/'checkpoint.safetensors'
    if not file.exists(): return []
    with safe_open(file, 'pt') as opened: return range(len(json.loads(opened.metadata()['rows'])))

@pytest.mark.slow     # test_experiment is cut while it trains, too
def test_training(start, thumbnails, tmp_path, request):
    "The same weights and predictions to the bit, the same losses; no finished epoch is trained again."
    store = data.index(thumbnails), thumbnails, tmp_path/'store'
    reference = start(fit, store, tmp_path/'reference', os.devnull)
    reference.join()
    assert reference.exitcode == 0
    run = tmp_path/'run'
    wipe = lambda: shutil.rmtree(run, ignore_errors=True)
    expected = load_file(tmp_path/'reference/model.safetensors')
    def losses(folder): return pd.read_csv(folder/'history.csv')[['valid_loss', 'accuracy']]
    def check():
        weights = load_file(run/'model.safetensors')
        assert weights.keys() == expected.keys() and all((weights[name] == expected[name]).all() for name in expected)
        for part in ('validation', 'test'):
            for one, other in zip(training.load_predictions(tmp_path/'reference', part),
                                  training.load_predictions(run, part)):
                assert (one == other).all()
        assert len(losses(run)) == 8 and losses(run).equals(losses(tmp_path/'reference'))
        assert not list(run.glob('.*.part')), 'half-written files stay behind'
    survive(start, kills_of(request, 3, 12), 5, fit, (store, run), tmp_path/'log', lambda: epochs_done(run), wipe,
            check)

# An experiment from data to record: store, training, predictions, evaluation

def noted_epoch(self):
    "Note the epoch that begins, then begin it."
    with open(os.environ['NOTES'], 'a') as file: file.write(f'epoch{len(self.rows)}\n')
    before_epoch(self)

def noted_predictions(*args):
    "Note that pictures are asked, then ask them."
    with open(os.environ['NOTES'], 'a') as file: file.write('predictions\n')
    save_run(*args)

before_epoch, save_run = Checkpoint.before_epoch, training.save_run

def experiment(recipe, root, runs, cache, pause, log):
    """In the victim: what artinsight_train does; each evaluation takes `pause` seconds longer, so that a kill can meet
    it."""
    os.environ.update(NOTES=str(log), ARTINSIGHT_CACHE=str(cache))
    storing._decode_block, Checkpoint.before_epoch, training.save_run = noted, noted_epoch, noted_predictions
    evaluate = study.evaluate
    study.evaluate = lambda *args: (time.sleep(pause), evaluate(*args))[1]
    study.run_experiment(recipe, data.index(root), runs, 'none', 'cpu')

class Trial:
    "An experiment on few pictures, its folders, and the same one done without interruption."
    def __init__(self, root, place, epochs):
        self.root, self.cache, self.runs, self.reference = root, place/'cache', place/'runs', place/'reference'
        self.run, self.recipe = self.runs/'simple_cnn', replace(study.find_experiment('simple_cnn', quick=True),
                                                                epochs=epochs)
    def args(self, pause=0): return self.recipe, self.root, self.runs, self.cache, pause
    def done(self):
        "What must not be done again: blocks, epochs, predictions."
        blocks = [json.loads(line)['block'] for p in self.cache.rglob('blocks.jsonl')
                  for line in p.read_text().splitlines() if line.endswith('}')]
        epochs = range(self.recipe.epochs) if (self.run/'record.json').exists() else epochs_done(self.run)
        return [*blocks, *(f'epoch{n}' for n in epochs),
                *(['predictions'] if (self.run/'predictions.npz').exists() else [])]
    def check(self):
        "The same record but for times, the same weights, and nothing that a kill left."
        one, other = (training.read_record(folder) for folder in (self.reference/'simple_cnn', self.run))
        for part in ('experiment', 'data', 'validation', 'test', 'best_epoch'): assert one[part] == other[part], part
        weights = [load_file(folder/'model.safetensors') for folder in (self.reference/'simple_cnn', self.run)]
        assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
        assert {p.name for p in self.run.iterdir()} == {'.lock', 'record.json', 'model.safetensors', 'predictions.npz',
                                                        'history.csv'}

@pytest.fixture
def trial(start, tiny, tmp_path):
    trial = Trial(tiny, tmp_path, epochs=6)
    reference = start(experiment, trial.recipe, trial.root, trial.reference, tmp_path/'cache0', 0, os.devnull)
    reference.join()
    assert reference.exitcode == 0
    return trial

def test_experiment(start, trial, tmp_path, request):
    """Same store, weights, predictions and figures, wherever it was cut: while decoding, training, predicting,
    evaluating or recording."""
    def check():
        trial.check()
        assert contents(tmp_path/'cache0') == contents(trial.cache)
    def wipe():
        for folder in (trial.cache, trial.runs): shutil.rmtree(folder, ignore_errors=True)
    survive(start, kills_of(request, 2, 8), 11, experiment, trial.args(), tmp_path/'log', trial.done, wipe, check)

@pytest.mark.slow  # test_experiment is cut there, too, if more rarely
def test_evaluation(start, trial, tmp_path, request, monkeypatch):
    "Cut while it evaluates: nothing is trained or predicted again, and the record is the same."
    def cut(run): raise KeyboardInterrupt
    monkeypatch.setenv('ARTINSIGHT_CACHE', str(trial.cache))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(study, '_figures', cut)
        study.run_experiment(trial.recipe, data.index(trial.root), trial.runs, 'none', 'cpu')
    trained = shutil.copytree(trial.runs, tmp_path/'trained')
    def wipe():
        shutil.rmtree(trial.runs)
        shutil.copytree(trained, trial.runs)
    assert 'predictions' in trial.done()
    survive(start, kills_of(request, 2, 6), 13, experiment, trial.args(pause=.4), tmp_path/'log', trial.done, wipe,
            trial.check)

@pytest.mark.slow     # nbs/08_study.ipynb shows the same on few pictures
def test_another_machine_goes_on(tiny, tmp_path):
    """Runs and store on a drive that outlives the machine: the pictures are fetched again there, with other dates;
    nothing is decoded or trained twice."""
    trial = Trial(tiny, tmp_path, epochs=15)
    env = {**os.environ, 'ARTINSIGHT_CACHE': str(tmp_path/'drive/cache'), 'OMP_NUM_THREADS': '1'}
    command = ['artinsight_train', 'simple_cnn', '--quick', '--data', str(trial.root), '--runs',
               str(tmp_path/'drive/runs'), '--device', 'cpu']
    run = tmp_path/'drive/runs/simple_cnn'
    first = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while first.poll() is None and len(epochs_done(run)) < 2: time.sleep(.01)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    shutil.move(trial.root, tmp_path/'lost')
    for file in (tmp_path/'lost').rglob('*.*'):
        (again := trial.root/file.relative_to(tmp_path/'lost')).parent.mkdir(parents=True, exist_ok=True)
        again.write_bytes(file.read_bytes())
    epochs = len(epochs_done(run))
    second = subprocess.run(command, env=env, capture_output=True, text=True)
    assert second.returncode == 0 and f'simple_cnn: resumed after {epochs} epochs' in second.stderr, second.stderr
    assert 'decoding' not in second.stderr and training.read_record(run)['epochs'] > epochs

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
    pages.execute_all(project/'runs', project/'_executed', workers=1)
    pages.build(pages.process(project/'_executed'), project/'_site')

def pages_of(project):
    "The page builder, working on another project."
    spec = importlib.util.spec_from_file_location('pages', Path(__file__).parents[1]/'tools/pages.py')
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
    for name in ('settings.ini', 'setup.py', 'README.md', '.gitignore'): shutil.copy(here/name, project)
    for name in (*here.glob('nbs/*.css'), here/'nbs/links.lua'): shutil.copy(name, project/'nbs')
    names = [f'0{i}_part{i}.ipynb' for i in range(3)]
    (project/'_quarto.yml').write_text('website:\n  title: It\n  description: A site\n  site-url: https://example.org\n'
                                       '  sidebar:\n    contents:\n'
                                       + ''.join(f'      - {name}\n' for name in ['index.ipynb', *names]))
    for name in ['index.ipynb', *names]:
        cells = [nbformat.v4.new_markdown_cell(f'# {name}\n\n> A page', id='a'),
                 nbformat.v4.new_code_cell(f'print("$ARTINSIGHT_RUNS", {name!r}.upper())', id='b')]
        nbformat.write(nbformat.v4.new_notebook(cells=cells,
                                                metadata={'kernelspec': {'name': 'python3', 'display_name': 'python3',
                                                                         'language': 'python'}}), project/'nbs'/name)
    def site(): return {name: text for name, text in contents(project/'_site').items() if name.endswith('.html')}
    def wipe():
        for name in ('_executed', '_site'): shutil.rmtree(project/name, ignore_errors=True)
    def executed():
        return json.loads((project/'_executed/keys.json').read_text()) if (project
                                                                           /'_executed/keys.json').exists() else []
    run = start(report, project, tmp_path/'log')
    run.join()
    assert run.exitcode == 0
    whole = site()
    wipe()
    def check(): assert site() == whole and len(whole) == 4
    survive(start, 6, 7, report, (project,), tmp_path/'log', executed, wipe, check)

@pytest.mark.slow
def test_forty_kills():
    "Last in this file: over all stages, as many as were promised."
    if len(SURVIVED) < 7: pytest.skip('counts the kills of the whole file: run all of it')
    print(f'{sum(SURVIVED)} of {sum(SURVIVED)} kills survived, over {len(SURVIVED)} stages')
    assert sum(SURVIVED) >= 40
