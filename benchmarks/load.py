"""How many visitors does the page serve? Requests a second, p95 and memory, at 1, 8 and 32 clients.

    python benchmarks/load.py            # a minute; writes benchmarks/results/<date>-load.json

A quick simple CNN on the painted sample is trained, unless `--run` names a run, and served by artinsight_app in a
process of its own. Each client sends a picture, asks about it and waits for its answer, again and again. Clients share
the machine with the page.
"""
import argparse, datetime, json, os, socket, subprocess, sys, tempfile, threading, time
from contextlib import contextmanager
from importlib.metadata import version
from itertools import cycle
from pathlib import Path

import httpx, numpy as np, psutil

from artinsight.data import index
from artinsight.engine.files import atomic_write
from artinsight.engine.runs import git_commit
from artinsight.sample import painted_sample
from artinsight.study import find_experiment, run_experiment
from artinsight.training import read_record
from predict import processor
from run import say

SERVE = 'from artinsight.use.commands import artinsight_app; artinsight_app()'


@contextmanager
def serving(run):
    "The page of a run: its process and its address."
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, '-c', SERVE, str(run), '--port', port]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = process.stdout.readline().strip()  # it is told once the page is open
        if not address: sys.exit('load.py: the page did not start')
        yield psutil.Process(process.pid), address
    finally:
        process.terminate()
        process.wait(60)


def ask(client, content):
    "Send a picture, ask about it, wait for the answer."
    [name] = client.post('gradio_api/upload', files={'files': content}).raise_for_status().json()
    question = {'data': [{'path': name, 'meta': {'_type': 'gradio.FileData'}}, 'class', 50]}
    number = client.post('gradio_api/call/ask', json=question).raise_for_status().json()['event_id']
    told = client.get(f'gradio_api/call/ask/{number}').raise_for_status().text
    if 'event: complete' not in told: raise RuntimeError(told[-300:])
    return json.loads(told.rsplit('data: ', 1)[1])[3]


def visit(address, contents, until, seconds, failed):
    "One client, who asks until the time is over."
    with httpx.Client(base_url=address, timeout=300, trust_env=False) as client:
        for content in contents:
            if time.perf_counter() > until: return
            begin = time.perf_counter()
            try: ask(client, content)
            except (httpx.HTTPError, RuntimeError) as error: failed.append(str(error))
            else: seconds.append(time.perf_counter() - begin)


def level(process, address, contents, clients, length):
    "All figures at a number of clients."
    seconds, failed, memory, begin = [], [], [], time.perf_counter()
    asked = [cycle(contents[i:] + contents[:i]) for i in range(clients)]
    visitors = [threading.Thread(target=visit, args=(address, mine, begin + length, seconds, failed)) for mine in asked]
    for visitor in visitors: visitor.start()
    while any(visitor.is_alive() for visitor in visitors):
        memory.append(process.memory_info().rss)
        time.sleep(.05)
    took = time.perf_counter() - begin
    row = {'clients': clients, 'answers': len(seconds), 'failed': len(failed),
           'requests_per_second': len(seconds) / took, 'median_s': float(np.median(seconds)),
           'p95_s': float(np.quantile(seconds, .95)), 'peak_memory_MB': max(memory) / 1e6}
    say('{clients} clients: {requests_per_second:.1f}/s, p95 {p95_s:.2f} s, {peak_memory_MB:.0f} MB'.format(**row))
    return row


def main():
    parser = argparse.ArgumentParser(description='how many visitors does the page serve?')
    parser.add_argument('--run', help="a run's folder (default: a quick simple CNN is trained)")
    parser.add_argument('--clients', type=int, nargs='+', default=[1, 8, 32])
    parser.add_argument('--seconds', type=float, default=15, help='of each number of clients')
    parser.add_argument('--results', type=Path, help='file (default: benchmarks/results/<date>-load.json)')
    args, load_before, root = parser.parse_args(), os.getloadavg()[0], painted_sample()
    contents = [path.read_bytes() for path in sorted((root / 'test').glob('*/*.jpg'))]
    with tempfile.TemporaryDirectory() as scratch:
        recipe = find_experiment('simple_cnn', quick=True)
        if not args.run: run_experiment(recipe, index(root), scratch, 'none', 'cpu')
        run = Path(args.run or Path(scratch) / recipe.name)
        with serving(run) as (process, address):
            level(process, address, contents, 1, 3)  # what is loaded and compiled on the way
            rows = [level(process, address, contents, clients, args.seconds) for clients in args.clients]
        experiment = read_record(run)['experiment']
    today = datetime.date.today().isoformat()
    result = {'date': today, 'git': git_commit(), 'device': 'cpu', 'processor': processor(), 'cores': os.cpu_count(),
              'load_before': load_before, 'load_after': os.getloadavg()[0],
              'run': experiment['name'], 'size': experiment['size'], 'pictures': len(contents),
              'versions': {name: version(name) for name in ('gradio', 'torch', 'pillow')}, 'levels': rows}
    file = args.results or Path(__file__).parent / 'results' / f'{today}-load.json'
    with atomic_write(file) as unfinished: unfinished.write_text(json.dumps(result, indent=1) + '\n')
    json.dump(result, sys.stdout, indent=1)


if __name__ == '__main__': main()
