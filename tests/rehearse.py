"""The whole path, rehearsed on a painted replica of AI-ArtBench with its 60 counts (or a share of them).

    python tests/rehearse.py [PERCENT] [--full N] [--place DIR] [--keep] [--only STEP...] [--device NAME] [--out FILE]

Paint, zip, download through kagglehub's own client from a server on this machine, index, choice, split, store, one
epoch of each experiment, evaluation of as many predictions as AI-ArtBench has test pictures, audit, report. Each step
is a process of its own; its time, memory (its own, and resident with mapped files) and disk go to FILE
(benchmarks/results/DATE-rehearsal-DEVICE-PERCENT.json). The folder of a broken rehearsal can be given again with
--place: finished steps are not repeated. 100 percent needs about 25 GB of disk. On a CPU resnet18_best trains on MOST
pictures out of the whole store, so that a rehearsal ends within the hour; it is tested on all.
"""
import argparse, datetime, json, os, shutil, subprocess, sys, tempfile, threading, time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
ROOT = Path(__file__).resolve().parents[1]

# The steps: each gets the folder and the arguments, and returns figures of its own

def paint(place, args):
    import replica
    from artinsight import sample
    counts = replica.counts(args.percent)
    sample.paint(place/'painted', counts, full=args.full, progress=True)
    return {'pictures': int(counts.images.sum()), 'true size': int(counts.images.clip(upper=args.full).sum())}

def pack(place, args):
    import kaggle_server
    (place/'painted/painted-sample.txt').unlink(missing_ok=True)      # the archive looks like Kaggle's
    return {'archive_mb': kaggle_server.zip_folder(place/'painted', place/'archive.zip').stat().st_size/1e6}

def download(place, args):
    import kaggle_server, replica
    from artinsight import data
    data.ZIP_BYTES = (place/'archive.zip').stat().st_size
    shutil.rmtree(place/'painted', ignore_errors=True)
    with kaggle_server.serve(place/'archive.zip', drops=[data.ZIP_BYTES//2]) as kaggle:
        os.environ.update(kaggle.env(place/'kaggle'))
        try: data.download(place/'kaggle', replica.counts(args.percent))
        except OSError as dropped: print(dropped, file=sys.stderr)
        root = data.download(place/'kaggle', replica.counts(args.percent))
    (place/'root.txt').write_text(str(root))
    (place/'archive.zip').unlink()
    return {'resumed': any(kaggle.log)}

def opened(place, args):
    "Index, choice and split of the downloaded set."
    from artinsight import data
    frame = data.index((place/'root.txt').read_text())
    return frame, data.parts(frame, per_style=round(5000*args.percent/100))

def names(place, args):
    from artinsight import data
    root, figures = (place/'root.txt').read_text(), {}
    def timed(what, call):
        begin = time.perf_counter()
        result = call()
        figures[what + '_seconds'] = round(time.perf_counter() - begin, 3)
        return result
    frame = timed('index', lambda: data.index(root))
    frame = timed('index_warm', lambda: data.index(root))
    chosen = timed('choice', lambda: data.choose(frame, round(5000*args.percent/100)))
    train, valid = timed('split', lambda: data.split_validation(chosen))
    return figures | {'indexed': len(frame), 'train': len(train), 'validation': len(valid),
                      'test': int((frame.split == 'test').sum())}

def store(place, args):
    import pandas as pd
    from artinsight.engine.files import cache_folder
    from artinsight.engine.store import build_stores
    frame, chosen = opened(place, args)
    chosen = pd.concat(chosen.values()).sort_values('path', ignore_index=True)
    begin = time.perf_counter()
    made = build_stores(chosen, frame.attrs['root'], (32, 224), cache_folder()/'stores')
    seconds = time.perf_counter() - begin
    return {'stored': len(made[32]), 'left out': len(made[32].bad),
            'pictures_per_second': round(len(chosen)/seconds, 1), 'store_mb': sum(s.bytes for s in made.values())/1e6}

MOST = 1_000     # training and validation pictures that a model of 224 px sees on a CPU

def thinned(loaders_of):
    "`study.loaders_of` with at most MOST training and validation pictures."
    def few(parts):
        return {name: part if name == 'test' else part.sample(min(len(part), MOST), random_state=0)
                for name, part in parts.items()}
    return lambda experiment, parts, store, device: loaders_of(experiment, few(parts), store, device)

def epoch(name):
    def one(place, args):
        from artinsight import study
        from artinsight.engine.precision import find_device
        frame, _ = opened(place, args)
        recipe = replace(study.find_experiment(name), epochs=1, per_style=round(5000*args.percent/100))
        on_cpu = find_device(args.device).type == 'cpu'
        if recipe.size == 224 and on_cpu: study.loaders_of = thinned(study.loaders_of)
        record = study.run_experiment(recipe, frame, place/'runs', 'none', args.device)
        return {'images_per_second': round(record['images_per_second'], 1),
                'train_seconds': round(record['train_seconds'], 1),
                'validated': record['validation']['n'], 'tested': record['test']['n'],
                'precision': record['environment']['precision'], 'device': record['environment']['device_name']}
    return one

def evaluation(place, args):
    "As many predictions as AI-ArtBench has test pictures, invented, with its names."
    import numpy as np, replica
    from artinsight import data
    from artinsight.evaluation import evaluate
    paths = [path for path in replica.names() if path.startswith('test/')]
    target = data.describe(paths)['class'].map({name: i for i, name in enumerate(data.CLASSES)}).to_numpy()
    probs = np.random.default_rng(0).dirichlet(np.ones(20)/4, len(paths))
    probs[np.arange(len(paths)), target] += .2
    begin = time.perf_counter()
    evaluate(target, probs/probs.sum(1, keepdims=True), np.array(paths))
    return {'predictions': len(paths), 'evaluate_seconds': round(time.perf_counter() - begin, 2)}

def audit(place, args):
    return called('artinsight_audit', place/'runs/simple_cnn', '--data', (place/'root.txt').read_text())

def report(place, args):
    "The report notebook, executed on these runs."
    import nbformat
    from nbclient import NotebookClient
    notebook = nbformat.read(ROOT/'nbs/10_report.ipynb', 4)
    os.environ['ARTINSIGHT_RUNS'] = str(place/'runs')
    folder = {'metadata': {'path': str(ROOT/'nbs')}}
    NotebookClient(notebook, timeout=1800, kernel_name='python3', resources=folder).execute()
    return {'cells': len(notebook.cells)}

def called(script, *argv):
    "A console script of the package."
    from scripts import python
    done = subprocess.run(python(script, *argv), stdout=subprocess.PIPE, text=True)
    if done.returncode: sys.exit(done.returncode)
    return {'lines': done.stdout.count('\n')}

STEPS = {'paint': paint, 'zip': pack, 'download': download, 'index, choice, split': names, 'store': store,
         **{name: epoch(name) for name in ('simple_cnn', 'resnet18_base', 'resnet18_aggressive', 'resnet18_augmented',
                                           'resnet18_best')},
         'evaluation': evaluation, 'audit': audit, 'report': report}

# Measuring

def family(first):
    "A process and its descendants."
    parents = {}
    for process in Path('/proc').glob('[0-9]*'):
        try: parents[int(process.name)] = int((process/'stat').read_text().rpartition(')')[2].split()[1])
        except (OSError, ValueError, IndexError): pass
    found = {first}
    while more := {child for child, parent in parents.items() if parent in found} - found: found |= more
    return found

def memory(first):
    "MB of a process and its descendants: (their own, with the files that they map). Linux only, else zeros."
    own = whole = 0
    for process in family(first):
        try: told = dict(line.split(':') for line in Path(f'/proc/{process}/smaps_rollup').read_text().splitlines()[1:])
        except (OSError, ValueError): continue
        kb = {name: int(value.split()[0]) for name, value in told.items()}
        own += kb.get('Pss_Anon', kb.get('Anonymous', 0)) + kb.get('Pss_Shmem', 0)
        whole += kb.get('Pss', 0)
    return own/1024, whole/1024

def size(folder):
    "MB in a folder, as the disk counts them."
    total = 0
    for here, _, files in os.walk(folder):
        for name in files:
            try: total += os.lstat(f'{here}/{name}').st_blocks*512
            except OSError: pass
    return total/1e6

def measured(name, place, args):
    "Run a step in a process of its own: its figures, with seconds, peak memory and growth of the disk."
    before, peaks = size(place), [(0, 0)]
    command = [sys.executable, __file__, str(args.percent), '--full', str(args.full), '--place', str(place),
               '--step', name] + (['--device', args.device] if args.device else [])
    begin = time.perf_counter()
    with open(place/'step.log', 'w') as log:
        environment = {**os.environ, 'ARTINSIGHT_CACHE': str(place/'cache')}
        child = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    over = threading.Event()
    def watch():
        while not over.wait(.25): peaks.append(memory(child.pid))
    watcher = threading.Thread(target=watch)
    watcher.start()
    _, code, used = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - begin
    over.set()
    watcher.join()
    own, whole = (max(peak[i] for peak in peaks) for i in (0, 1))
    row = {'step': name, 'ok': code == 0, 'seconds': round(seconds, 1),
           'cpu_seconds': round(used.ru_utime + used.ru_stime, 1), 'memory_mb': round(own),
           'resident_mb': round(max(whole, used.ru_maxrss/1024)), 'disk_mb': round(size(place) - before, 1)}
    if code: row['error'] = ((place/'step.log').read_text().strip().splitlines() or [f'ended with {code}'])[-1][:300]
    return row | (json.loads((place/'figures.json').read_text()) if code == 0 else {})

MEASURED = 'step', 'ok', 'seconds', 'cpu_seconds', 'memory_mb', 'resident_mb', 'disk_mb'

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('percent', nargs='?', type=float, default=1)
    parser.add_argument('--full', type=int, default=4, help='pictures of each folder at true size, the rest 64 px')
    parser.add_argument('--place', type=Path, help='a folder to work in (default: a temporary one)')
    parser.add_argument('--keep', action='store_true', help='leave the folder there')
    parser.add_argument('--only', nargs='*', help='these steps alone')
    parser.add_argument('--device')
    parser.add_argument('--out', type=Path, help='where to write the record')
    parser.add_argument('--step', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        (args.place/'figures.json').write_text(json.dumps(STEPS[args.step](args.place, args)))
        return
    place = args.place or Path(tempfile.mkdtemp(prefix='artinsight-rehearsal-'))
    place.mkdir(parents=True, exist_ok=True)
    done_file = place/'done.json'
    done = json.loads(done_file.read_text()) if done_file.exists() else []
    for name in args.only or STEPS:
        if any(row['step'] == name and row['ok'] for row in done): continue
        row = measured(name, place, args)
        done = [old for old in done if old['step'] != name] + [row]
        done_file.write_text(json.dumps(done))
        figures = ', '.join(f'{k} {v}' for k, v in row.items() if k not in MEASURED)
        print(f"{name:22} {row['seconds']:8.1f} s {row['cpu_seconds']:8.1f} s CPU {row['memory_mb']:7,.0f} MB "
              f"{row['disk_mb']:10,.1f} MB on disk  {row.get('error') or figures}", flush=True)
    devices = ['cuda' if 'cuda' in row['precision'] else 'cpu' for row in done if 'precision' in row]
    device = args.device or next(iter(devices), 'cpu')
    if not args.only:
        result = {'date': datetime.date.today().isoformat(), 'what': 'painted replica of AI-ArtBench',
                  'percent': args.percent, 'full_size_per_folder': args.full,
                  'cores': os.cpu_count(), 'load_average': os.getloadavg()[2], 'device': device,
                  'peak_memory_mb': max(row['memory_mb'] for row in done), 'steps': done}
        file = args.out or ROOT/f"benchmarks/results/{result['date']}-rehearsal-{device}-{args.percent:g}.json"
        file.write_text(json.dumps(result, indent=1) + '\n')
        print(f'{file}: every step done' if all(row['ok'] for row in done) else 'some steps failed, see above')
    if not args.keep and not args.place: shutil.rmtree(place)
    sys.exit(not all(row['ok'] for row in done))

if __name__ == '__main__': main()
