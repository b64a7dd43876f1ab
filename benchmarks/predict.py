"""How near `predict` comes to decoding alone, and ONNX Runtime beside PyTorch.

    python benchmarks/predict.py RUN...     # writes benchmarks/results/<date>-predict-<device>.json

Rounds alternate, so that a busy machine slows all of them alike; the median round counts.
"""
import argparse, datetime, json, os, platform, statistics, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import torch

from artinsight.use.export import check_export, from_onnx, to_onnx
from artinsight.use.predict import load_run, read_some
from artinsight.data import index
from artinsight.engine.files import atomic_write
from artinsight.engine.pictures import decode
from artinsight.engine.runs import git_commit
from artinsight.sample import painted_sample


def processor():
    "The processor's name."
    if not os.path.exists('/proc/cpuinfo'): return platform.processor()
    with open('/proc/cpuinfo') as lines:
        names = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor()


def decode_alone(files, size):
    "Pictures a second: decode and resize, in as many threads as cores, nothing else."
    begin = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(lambda file: decode(file, size), files, chunksize=1): pass
    return len(files) / (time.perf_counter() - begin)


def predict(run, files, steady=False):
    "Pictures a second, from files to a table; with `steady` each is asked about five times."
    begin = time.perf_counter()
    frame = run.predict(files, steady=steady)
    seconds = time.perf_counter() - begin
    if len(frame) != len(files) or frame.problem.any(): sys.exit('predict.py: not every picture got an answer')
    return len(files) / seconds


def one_run(folder, files, rounds):
    "All figures of one run."
    run = load_run(folder)
    predict(run, files[:100])
    pairs = [(decode_alone(files, run.size), predict(run, files)) for _ in range(rounds)]
    steady = statistics.median(predict(run, files, steady=True) for _ in range(rounds))
    pictures, _ = read_some(files[:200], run.size)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch)/'model.onnx'
        to_onnx(run, file)
        exported = check_export(run, from_onnx(file), pictures)
    alone, whole = (statistics.median(figures) for figures in zip(*pairs))
    return {'run': run.record['experiment']['name'], 'size': run.size,
            'decode_images_per_second': alone, 'predict_images_per_second': whole,
            'steady_images_per_second': steady,
            'ratio': statistics.median(b / a for a, b in pairs), 'ratios': [b / a for a, b in pairs], 'onnx': exported}


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('runs', nargs='+', help='folders of trained runs')
    parser.add_argument('--data', help='data set folder (default: the painted sample)')
    parser.add_argument('--pictures', type=int, default=1000)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--out', default=str(Path(__file__).parent/'results'))
    asked = parser.parse_args()
    frame = index(asked.data or painted_sample())
    paths = [f"{frame.attrs['root']}/{path}" for path in frame.path.sample(frac=1, random_state=0)]
    files = [paths[i % len(paths)] for i in range(asked.pictures)]
    command = ['python', 'benchmarks/predict.py', *(Path(run).name for run in asked.runs)]
    result = {'date': datetime.date.today().isoformat(), 'command': ' '.join(command), 'git': git_commit(),
              'device': 'cpu', 'processor': processor(), 'cores': os.cpu_count(), 'threads': torch.get_num_threads(),
              'load_before': os.getloadavg()[0], 'data': frame.attrs['name'], 'pictures': len(files),
              'versions': {name: version(name) for name in ('torch', 'pillow', 'onnxruntime')},
              'runs': [one_run(run, files, asked.rounds) for run in asked.runs]}
    file = Path(asked.out)/f"{result['date']}-predict-cpu.json"
    with atomic_write(file) as unfinished: unfinished.write_text(json.dumps(result, indent=1))
    json.dump(result, sys.stdout, indent=1)
