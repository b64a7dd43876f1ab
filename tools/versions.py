"""The package's quick tests: development set and newest on Python 3.10 to 3.13, the lowest allowed on 3.10.

    python tools/versions.py [--python 3.12 ...] [--set development|newest|lowest ...] [TEST...]

Each pair gets an environment of its own (in the temporary folder, with uv; kept for the next time), artinsight
installed into it from a copy of this checkout, and runs the tests named in TESTS (not those of notebooks and pages,
which want nbdev, nor those that compare Grad-CAM with its peers). Prints a table, keeps it in
benchmarks/results/DATE-versions.json (where what an earlier call on that day found stays); exits 1 if one failed.
"""
import argparse, datetime, json, os, re, subprocess, sys, tempfile, time
from configparser import ConfigParser
from pathlib import Path

from colab import REPO, copy_of_checkout, interpreter, uv_program

HOME = Path(tempfile.gettempdir())/'artinsight-versions'
PYTHONS, SETS = ('3.10', '3.11', '3.12', '3.13'), ('development', 'newest', 'lowest')
TESTS = [f'test_{name}.py' for name in ('data_names', 'download', 'faults', 'fuzz', 'kill', 'scale', 'study',
                                        'predict', 'app', 'audit', 'gradcam_honesty', 'device')]
NOT_LOWEST = ['test_device.py']     # its fake CUDA tensors ask the real driver in torch 2.6
TOOLS = ['pytest>=8', 'hypothesis>=6.100', 'pip>=24', 'requests>=2.31']     # lower bounds, for the lowest set
NEWEST = ['fastai>=2.8.7', 'fastcore>=2', 'pandas>=3', 'torch', 'torchvision']     # pandas 3 wants Python 3.11
SHOWN = ('torch', 'fastai', 'fastcore', 'pandas', 'numpy')
LOOK = f"import json, importlib.metadata as m; print(json.dumps({{name: m.version(name) for name in {SHOWN}}}))"
IMPORT = """import importlib, pkgutil, artinsight
for module in pkgutil.walk_packages(artinsight.__path__, 'artinsight.'): importlib.import_module(module.name)"""

def development():
    "The caps of the development set, as constraints."
    settings = ConfigParser(delimiters=['='])
    settings.read(REPO/'settings.ini', encoding='utf-8')
    return settings['DEFAULT']['dev_requirements'].split()

def build(version, kind, copy):
    "The environment's Python, with artinsight installed afresh; CalledProcessError where it can't be had."
    python = HOME/f'{version}-{kind}/bin/python'
    def run(*words):
        subprocess.run([uv_program(), *map(str, words)], check=True, capture_output=True, text=True)
    if not python.exists(): run('venv', '-q', '--python', interpreter(version), python.parent.parent)
    wanted = NEWEST if kind == 'newest' else []
    if version == '3.10': wanted = [need for need in wanted if not need.startswith('pandas')]
    caps = HOME/'development.txt'
    caps.write_text('\n'.join(development()))
    options = {'development': ['-c', caps], 'newest': ['--upgrade'], 'lowest': ['--resolution', 'lowest-direct']}[kind]
    extras = 'data,app,export,distributed' if kind == 'lowest' else 'data,app'
    run('pip', 'install', '-q', '--python', python, '--reinstall-package', 'artinsight', *options,
        f'{copy}[{extras}]', *wanted, *TOOLS)
    return python

def test(python, copy, names):
    "What pytest said last of each file of tests, with the installed package: {name: words}."
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PATH': f'{python.parent}{os.pathsep}{os.environ["PATH"]}'}
    imported = subprocess.run([python, '-c', IMPORT], cwd=HOME, env=env, capture_output=True, text=True)
    if imported.returncode: return {'import': 'failed: ' + imported.stderr.strip().splitlines()[-1][:150]}
    closing = {}
    safe = '-P' if python.parent.parent.name[:4] != '3.10' else '-B'
    pytest = [python, safe, '-m', 'pytest', '-q', '-W', 'ignore', '-p', 'no:cacheprovider']
    for name in names:
        done = subprocess.run([*pytest, copy/'tests'/name], cwd=HOME, env=env, capture_output=True, text=True)
        (python.parent.parent/f'{name}.log').write_text(done.stdout + done.stderr)
        closing[name] = re.sub(r' in [\d.]+s.*', '', (done.stdout.strip().splitlines() or ['no output'])[-1])
    return closing

def green(words): return bool(re.fullmatch(r'\d+ passed.*', words)) and 'failed' not in words and 'error' not in words

def keep(row):
    "Write a row into today's record; what an earlier call found of the same pair's other tests stays."
    file = REPO/f'benchmarks/results/{datetime.date.today()}-versions.json'
    rows = json.loads(file.read_text())['rows'] if file.exists() else []
    def pair(row): return row['python'], row['set']
    same = [old for old in rows if pair(old) == pair(row) and old['versions'] == row['versions']]
    earlier = same[0] if same else {'tests': {}, 'seconds': 0}
    tests = earlier['tests'] | row['tests']
    seconds = earlier['seconds'] + row['seconds']
    row = row | {'tests': tests, 'seconds': seconds, 'passed': all(map(green, tests.values()))}
    rows = sorted([old for old in rows if pair(old) != pair(row)] + [row], key=pair)
    record = {'date': str(datetime.date.today()), 'what': 'the quick tests on other versions', 'rows': rows}
    file.write_text(json.dumps(record, indent=1) + '\n')

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('tests', nargs='*', default=TESTS)
    parser.add_argument('--python', nargs='+', default=PYTHONS)
    parser.add_argument('--set', nargs='+', default=SETS, choices=SETS)
    args = parser.parse_args()
    HOME.mkdir(exist_ok=True)
    copy, bad = copy_of_checkout(HOME/'source'), 0
    print(f"{'python':8}{'set':13}" + ''.join(f'{name:16}' for name in SHOWN) + 'tests')
    for version in args.python:
        for kind in args.set:
            # The lowest versions on the lowest Python only.
            if kind == 'lowest' and version != PYTHONS[0] and len(args.set) > 1: continue
            begin = time.perf_counter()
            try:
                python = build(version, kind, copy)
                looked = subprocess.run([python, '-c', LOOK], check=True, capture_output=True, text=True)
                installed = json.loads(looked.stdout)
                tests = [name for name in args.tests if kind != 'lowest' or name not in NOT_LOWEST]
                closing = test(python, copy, tests)
            except subprocess.CalledProcessError as error:
                installed = {}
                closing = {'environment': 'not to be had: ' + ' '.join(error.stderr.split())[:300]}
            seconds = time.perf_counter() - begin
            red = {name: words for name, words in closing.items() if not green(words)}
            bad += bool(red)
            keep({'python': version, 'set': kind, 'tests': closing, 'versions': installed, 'seconds': round(seconds)})
            passed = sum(int(words.split()[0]) for words in closing.values() if green(words))
            shown = ''.join(f"{installed.get(name, '-'):16}" for name in SHOWN)
            print(f'{version:8}{kind:13}{shown}{passed} passed, red: {red or "none"} ({seconds:.0f} s)', flush=True)
    sys.exit(bool(bad))

if __name__ == '__main__': main()
