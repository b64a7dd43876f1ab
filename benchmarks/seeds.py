"""How much do the quick runs hang on their seed? The five, trained with several.

    python benchmarks/seeds.py     # writes benchmarks/results/<date>-seeds.json

A seed draws the first weights, the order of the pictures, their augmentation, and which of them are held back for
validation. The test pictures are the same. Each seed's five runs are trained by `artinsight_reproduce --quick`, as
`make report` does; what is finished is not trained again.
"""
import argparse, json, os, subprocess, time
from pathlib import Path

import numpy as np, torch

from artinsight.engine.augment import normalise
from artinsight.engine.files import atomic_write
from artinsight.engine.pictures import decode
from artinsight.evaluation import compare, load
from artinsight.gradcam import GradCAM
from artinsight.resnet18 import load_model
from artinsight.sample import painted_sample, STUDY_SAMPLE
from artinsight.study import EXPERIMENTS
from artinsight.training import read_record
from artinsight.trust.maps import areas, deletion_insertion, mean_interval
from run import environment, HERE, say

BEST, SMALLER = 'resnet18_best', 'resnet18_augmented'  # the same recipe at 32 px


def train(data, runs, seed):
    "The five quick runs of a seed; seconds."
    begin, words = time.perf_counter(), ['--quick', '--weights', 'none', '--data', data, '--runs', runs, '--seed', seed]
    subprocess.run(['artinsight_reproduce', *map(str, words)], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def maps_of(run, root, n):
    "By how much the maps of a run beat a centre blob and random places, on test pictures."
    p, size = load(run), read_record(run)['experiment']['size']
    p = p.take(np.random.default_rng(0).permutation(len(p.target))[:n])
    x = torch.stack([torch.tensor(decode(root / path, size)).permute(2, 0, 1) for path in p.table.path])
    area = areas(deletion_insertion(GradCAM(load_model(run)), normalise(x)))
    return {f'over_{rival}': mean_interval(area.gradcam - area[rival]) for rival in ('random', 'centre')}


def row_of(folder, data, seed, seconds, n):
    "What a seed came to."
    records = {name: read_record(folder / name) for name in EXPERIMENTS}
    step = compare(load(folder / SMALLER), load(folder / BEST))
    row = {'seed': seed, 'seconds': seconds, 'n': records[BEST]['test']['n'],
           'accuracy': {name: record['test']['accuracy'] for name, record in records.items()},
           'step': {key: step[key] for key in ('difference', 'low', 'high')}, **maps_of(folder / BEST, data, n)}
    say(f"seed {seed}: " + ', '.join(f'{name} {value:.3f}' for name, value in row['accuracy'].items()))
    return row


def main():
    parser = argparse.ArgumentParser(description='how much do the quick runs hang on their seed?')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--pictures', type=int, default=160, help='of the test half, whose maps are tested')
    parser.add_argument('--runs', type=Path, default=Path('runs-seeds'), help='folder of runs')
    parser.add_argument('--results', type=Path, default=HERE / 'results' / f'{time.strftime("%Y-%m-%d")}-seeds.json')
    args, data, rows = parser.parse_args(), Path(painted_sample(**STUDY_SAMPLE)), []
    for seed in args.seeds:
        folder = args.runs / str(seed)
        rows.append(row_of(folder, data, seed, train(data, folder, seed), args.pictures))
    result = {**environment(), 'load': os.getloadavg()[0], 'data': 'painted sample', 'weights': 'none',
              'pictures_of_maps': args.pictures, 'seeds': rows}
    with atomic_write(args.results) as unfinished: unfinished.write_text(json.dumps(result, indent=1) + '\n')
    print(json.dumps({'file': args.results.name, 'seeds': len(rows)}))


if __name__ == '__main__': main()
