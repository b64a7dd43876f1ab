"""The five experiments on one GPU: the study's recipe on 90,000/10,000/30,000 painted pictures, or on a part of them.

    python benchmarks/gpu_study.py FOLDER      # paints the pictures into FOLDER unless they are there (25 GB in all)
    python benchmarks/gpu_study.py FOLDER --percent 10 --epochs 2      # of the pictures; at most so many epochs

It measures, for each experiment, training images/s, which part that is of what the same model reaches on a batch that
already lies on the device (no loading, no augmentation), and the plain script's images/s; and the time of all five.
Everything runs as a training does: deterministic, in the precision that is picked for the device.
"""
import argparse, json, os, sys, time
from dataclasses import replace
from pathlib import Path

import pandas as pd, torch

from artinsight.data import CLASSES, COUNTS, index, parts
from artinsight.engine.files import user_path
from artinsight.engine.precision import pick_precision
from artinsight.engine.store import build_stores
from artinsight.loading import loaders_of
from artinsight.sample import paint
from artinsight.study import EXPERIMENTS, build_model
from artinsight.training import train
from peers import folder
from run import environment, HERE, sgd

DEVICE = torch.device('cuda')

def upper_bound(experiment, precision, seconds):
    "Images/s of forward, backward and step on one batch that stays on the device."
    model = precision.prepare(build_model(experiment, 'none').to(DEVICE))
    x = torch.randn(experiment.batch_size, 3, experiment.size, experiment.size, device=DEVICE)
    x = x.to(memory_format=torch.channels_last)
    y = torch.randint(0, len(CLASSES), (experiment.batch_size,), device=DEVICE)
    optimiser, n = sgd(model), 0
    for warm in (True, False):
        begin = time.perf_counter()
        while time.perf_counter() - begin < (2 if warm else seconds):
            with precision.context(DEVICE): loss = torch.nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            loss.item()
            n += 0 if warm else len(x)
    return n / (time.perf_counter() - begin)

def plain_script(experiment, root, seconds):
    "Images/s of a plain float32 script with torchvision's loader, a worker a core, on the same device."
    model = build_model(experiment, 'none').to(DEVICE)
    optimiser, n = sgd(model), 0
    loader = torch.utils.data.DataLoader(folder(root / 'train', experiment.size, experiment.augment),
                                         experiment.batch_size, shuffle=True, num_workers=os.cpu_count(),
                                         pin_memory=True)
    begin = time.perf_counter()
    for x, y in loader:
        loss = torch.nn.functional.cross_entropy(model(x.to(DEVICE)), y.to(DEVICE))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        loss.item()
        n += len(x)
        if time.perf_counter() - begin > seconds: break
    return n / (time.perf_counter() - begin)

def main():
    parser = argparse.ArgumentParser(description='the five experiments at full size on one GPU')
    parser.add_argument('folder', type=user_path, help='where pictures, stores and runs are kept')
    parser.add_argument('--percent', type=float, default=100, help='of the pictures')
    parser.add_argument('--epochs', type=int, default=100, help='at most')
    parser.add_argument('--seconds', type=float, default=10, help='that each of the others is measured')
    args = parser.parse_args()
    if not torch.cuda.is_available(): sys.exit('gpu_study.py: no GPU here; benchmarks/run.py measures a CPU')
    data = args.folder / 'painted'
    paint(data, COUNTS.assign(images=(COUNTS.images * args.percent / 100).astype(int)))
    frame = index(data)
    tables, begin = parts(frame), time.perf_counter()
    chosen = pd.concat(tables.values()).sort_values('path', ignore_index=True)
    stores = build_stores(chosen, frame.attrs['root'], [32, 224], args.folder / 'stores')
    result = {**environment(), 'data': 'painted sample', 'percent': args.percent, 'pictures': len(chosen),
              'store_seconds': time.perf_counter() - begin, 'experiments': {}}
    begin = time.perf_counter()
    for name, experiment in EXPERIMENTS.items():
        experiment = replace(experiment, epochs=min(experiment.epochs, args.epochs))
        dls = loaders_of(experiment, tables, stores[experiment.size], DEVICE)
        record = train(experiment, build_model(experiment, 'none'), dls, args.folder / 'runs' / name)
        result['experiments'][name] = {key: record[key] for key in ('images_per_second', 'train_seconds', 'epochs')}
    result['five_experiments_seconds'] = time.perf_counter() - begin
    for name, experiment in EXPERIMENTS.items():
        row, precision = result['experiments'][name], pick_precision(DEVICE, experiment.size)
        row |= {'precision': precision.name, 'upper_bound': upper_bound(experiment, precision, args.seconds),
                'plain': plain_script(experiment, Path(frame.attrs['root']), args.seconds)}
        row['share'] = row['images_per_second'] / row['upper_bound']
    file = HERE / 'results' / f"{result['date']}-{result['gpu'].lower().replace(' ', '-')}.json"
    file.write_text(json.dumps(result, indent=1) + '\n')
    print(json.dumps(result['experiments'], indent=1))

if __name__ == '__main__': main()
