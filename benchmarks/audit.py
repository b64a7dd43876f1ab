"""How long `artinsight_audit` takes on a finished run of AI-ArtBench's size, robustness aside.

    python benchmarks/audit.py      # writes benchmarks/results/<date>-audit-<device>.json

The set has the study's 100,000 training and 30,000 test pictures in their true sizes, folders and names: pictures of
the painted sample, each mixed with a random field of its own, so that no two are alike (6 GB, some minutes; `--folder`
keeps it). The run is an untrained simple CNN with drawn answers: an audit takes as long whatever they say.
"""
import argparse, datetime, json, os, resource, subprocess, sys, tempfile, time
from dataclasses import asdict, replace
from importlib.metadata import version
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.torch import save_file
from scipy.special import softmax

from artinsight.baseline import SIMPLE_CNN
from artinsight.data import CLASSES, GENERATORS, STYLES, fingerprint, folder_name, index, parts
from artinsight.engine.files import atomic_write, user_path
from artinsight.evaluation import evaluate
from artinsight.loading import counts_by_class
from artinsight.sample import painted_sample
from artinsight.study import build_model
from artinsight.engine.runs import git_commit, save_predictions
from artinsight.training import write_record
from predict import processor

SIZES = {'human': 256, 'LD': 256, 'SD': 768}


def paint_folder(job):
    "All pictures of one folder: four share an AI seed, about eighty an artist."
    data, split, generator, style, count = job
    frame, number, side = index(painted_sample()), STYLES.index(style), SIZES[generator]
    paths = frame.path[(frame.generator == generator) & (frame['style'] == style)]
    textures = [Image.open(f"{frame.attrs['root']}/{path}").convert('RGB').resize((side, side)) for path in paths]
    draw = np.random.default_rng([split == 'train', GENERATORS.index(generator), number])
    folder = data/split/folder_name(style, generator)
    folder.mkdir(parents=True)
    for n in range(count):
        if n % 4 == 0: batch, seed = draw.normal(size=(20, 20, 3)), draw.integers(10**8, 10**9)
        field = (128 + 45 * (.75 * draw.normal(size=(20, 20, 3)) + .66 * batch)).clip(0, 255).astype('uint8')
        picture = Image.blend(textures[draw.integers(len(textures))],
                              Image.fromarray(field).resize((side, side), Image.Resampling.BICUBIC), .6)
        if generator == 'human': name = f'artist-{number}-{draw.integers(60)}_painting-{n}-1900'
        else: name = f'{number}-{seed}-{n + 10**6 * (split == "test")}'
        picture.save(folder/f'{name}.jpg', quality=91)


def paint(data, fraction):
    "A fraction of the study's choice."
    if data.exists(): return
    painted_sample()
    counts = {'train': {'human': 5000, 'LD': 2500, 'SD': 2500}, 'test': {'human': 1000, 'LD': 1000, 'SD': 1000}}
    with atomic_write(data) as unfinished, Pool() as pool:
        jobs = [(unfinished, split, generator, style, round(fraction * counts[split][generator]))
                for generator in ('SD', 'human', 'LD') for style in STYLES for split in counts]
        pool.map(paint_folder, jobs, chunksize=1)


def answers(rows, seed):
    "Drawn answers, right about half of the time."
    target, draw = np.array([CLASSES.index(name) for name in rows['class']]), np.random.default_rng(seed)
    return target, softmax(draw.normal(size=(len(rows), 20)) + 2.5 * np.eye(20)[target], axis=1)


def make_run(run, frame, recipe):
    "A finished run's folder."
    tables = parts(frame, recipe.per_style, recipe.validation, recipe.split_by, recipe.seed)
    predictions = {part: (tables[part].path.to_numpy(str), *answers(tables[part], seed))
                   for seed, part in enumerate(('validation', 'test'))}
    run.mkdir(parents=True)
    save_file(build_model(recipe, 'none').state_dict(), run/'model.safetensors')
    save_predictions(run/'predictions.npz', predictions)
    scores = {part: evaluate(target, probs, ids) for part, (ids, target, probs) in predictions.items()}
    data = {'name': frame.attrs['name'], 'root': Path(frame.attrs['root']).name, 'counts': counts_by_class(tables),
            'index_sha256': fingerprint(frame)}
    write_record(run, {'experiment': asdict(recipe), 'weights': 'none', 'quick': False, 'data': data,
                       'git': git_commit(), **scores})


def audit(run, folder):
    "Time and memory of the command, from its start to its end, and what it wrote."
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [Path(sys.executable).parent/'artinsight_audit', str(run), '--data', str(folder), '--no-robustness',
               '--device', 'cpu']
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    result = json.loads((run/'audit.json').read_text())
    return {'seconds': seconds, 'cpu_seconds': after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
            'largest_process_gb': after.ru_maxrss / 1e6,
            'pictures': result['pictures'], 'looked_at_closely': result['sample'],
            'test_pictures': result['duplicates']['with']['n'], 'twins': result['duplicates']['counts']}


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--fraction', type=float, default=1., help='of the 130,000 pictures')
    parser.add_argument('--folder', help='where pictures and run are kept, or found (default: a temporary folder)')
    parser.add_argument('--out', default=str(Path(__file__).parent/'results'))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = user_path(asked.folder or temporary)
        paint(folder/'Real_AI_SD_LD_Dataset', asked.fraction)
        if not (folder/'run/record.json').exists():
            make_run(folder/'run', index(folder), replace(SIMPLE_CNN, per_style=round(5000 * asked.fraction)))
        result = {'date': datetime.date.today().isoformat(),
                  'command': f'python benchmarks/audit.py --fraction {asked.fraction:g}', 'git': git_commit(),
                  'device': 'cpu', 'processor': processor(), 'cores': os.cpu_count(),
                  'load_before': os.getloadavg()[0],
                  'versions': {name: version(name) for name in ('torch', 'pillow', 'scikit-learn')},
                  **audit(folder/'run', folder)}
    with atomic_write(user_path(asked.out)/f"{result['date']}-audit-cpu.json") as unfinished:
        unfinished.write_text(json.dumps(result, indent=1))
    json.dump(result, sys.stdout, indent=1)
