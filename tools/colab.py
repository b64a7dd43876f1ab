"""Run every notebook as Colab would: alone in an empty folder, with Colab's Python and packages, no repository.

    python tests/colab.py [--slow] [NOTEBOOK...]      # a file, or the beginning of its name: 07 11

Builds an environment once (in the temporary folder, with uv), then for each notebook: takes artinsight out again,
executes all cells in one kernel with the install cell pointed at a copy of this checkout, and looks whether anything
that Colab brings was replaced. Cells marked `#| cuda` are left out without a GPU, `#| slow` ones without `--slow`.
The table is kept in benchmarks/results/DATE-colab.json, where notebooks of an earlier call on that day stay.

Colab's versions are those of its runtime of 2026-08-25. Its ipykernel is a fork of 6.17.1 that PyPI does not have:
the last 6.x stands for it, with the same IPython 7.34, whose displays and magics are what a notebook meets.
"""
import argparse, datetime, json, os, shutil, subprocess, sys, tempfile, time
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
HOME = Path(tempfile.gettempdir())/'artinsight-colab'
PYTHON = HOME/'venv/bin/python'
VERSION = '3.13'
# What Colab brings of our world.
BROUGHT = dict(torch='2.11.0', torchvision='0.26.0', fastai='2.8.8', fastcore='2.2.12', fastprogress='1.1.6',
               plum_dispatch='2.9.0', numpy='2.1.3', pandas='2.2.3', gradio='6.24.0', kagglehub='1.0.2',
               accelerate='1.14.0', timm='1.0.28', ipython='7.34.0')
TOOLS = ['ipykernel<7', 'scikit-learn', 'matplotlib', 'pillow', 'safetensors', 'nbclient', 'nbformat', 'pip',
         'setuptools', 'wheel']

def uv_program():
    "Where uv is: beside this Python, or on the path."
    found = shutil.which('uv', path=f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}')
    return found or sys.exit('uv is missing: python -m pip install uv')

def uv(*args): subprocess.run([uv_program(), *map(str, args)], check=True)

def interpreter(version):
    "An installed Python of this version (on the path, or pyenv's), else the bare version, which uv may know how to get."
    pyenv = Path(os.environ.get('PYENV_ROOT', Path.home()/'.pyenv'))/'versions'
    found = [shutil.which(f'python{version}'), *(p/'bin/python' for p in sorted(pyenv.glob(f'{version}.*'), reverse=True))]
    works = (p for p in found if p and subprocess.run([p, '-c', ''], capture_output=True).returncode == 0)
    return next(works, version)

def environment():
    "The environment, built once; a half-built one is begun again."
    done, wanted = HOME/'done.txt', [*(f'{name}=={version}' for name, version in BROUGHT.items()), *TOOLS]
    if not (done.exists() and done.read_text() == ' '.join(wanted)):
        shutil.rmtree(HOME, ignore_errors=True)
        uv('venv', '-q', '--python', interpreter(VERSION), HOME/'venv')
        uv('pip', 'install', '-q', '--python', PYTHON, *wanted)
        done.write_text(' '.join(wanted))

def brought():
    "What changes when a package that Colab brings is replaced: its version and the date of its record."
    code = ("import importlib.metadata as m, json, os, sys; found = map(m.distribution, sys.argv[1:]); "
            "print(json.dumps([[one.version, os.stat(one._path).st_mtime_ns] for one in found]))")
    told = subprocess.run([PYTHON, '-c', code, *BROUGHT], capture_output=True, text=True, check=True)
    return dict(zip(BROUGHT, json.loads(told.stdout)))

def copy_of_checkout(copy):
    "What git has and what is new, copied: installing from it leaves nothing in the checkout."
    shutil.rmtree(copy, ignore_errors=True)
    listed = subprocess.run(['git', 'ls-files', '-coz', '--exclude-standard'], cwd=REPO, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split('\0')):
        if not (REPO/name).exists(): continue
        (copy/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPO/name, copy/name)
    return copy

RUN = """
import sys, nbformat, torch
from nbclient import NotebookClient
path, leave = sys.argv[1], sys.argv[2].split(',')
nb = nbformat.read(path, 4)
def left_out(cell): return cell.cell_type == 'code' and any(line.replace(' ', '').startswith('#|' + flag) for line in cell.source.splitlines()[:4] for flag in leave)
before = len(nb.cells)
nb.cells = [cell for cell in nb.cells if not left_out(cell)]
NotebookClient(nb, timeout=1800, kernel_name='python3', resources={'metadata': {'path': sys.argv[3]}}).execute()
print(before - len(nb.cells))
"""

def run(notebook, copy, leave):
    "(seconds, how many cells were left out or the error's last lines, packages replaced) of one notebook."
    subprocess.run([PYTHON, '-m', 'pip', 'uninstall', '-q', '-y', 'artinsight'], check=True, capture_output=True)
    before, start = brought(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        alone = shutil.copy(notebook, folder)
        env = {name: value for name, value in os.environ.items() if not name.startswith(('ARTINSIGHT_', 'VIRTUAL_ENV', 'PYTHONPATH'))}
        env |= dict(ARTINSIGHT_SOURCE=str(copy), PIP_CONSTRAINT=os.devnull, PATH=f"{PYTHON.parent}{os.pathsep}{env['PATH']}", COLAB_RELEASE_TAG='rehearsal')     # this machine's caps are not Colab's
        got = subprocess.run([PYTHON, '-c', RUN, alone, ','.join(leave), folder], env=env, cwd=folder, capture_output=True, text=True)
    said = got.stdout.strip().splitlines()[-1] if got.returncode == 0 else 'FAILED\n' + '\n'.join(got.stderr.strip().splitlines()[-12:])
    after = brought()
    return time.perf_counter() - start, said, [name for name in BROUGHT if after[name] != before[name]]

def keep(row, leave):
    "Write a notebook's row into today's record, in place of an earlier one."
    file = REPO/f'benchmarks/results/{datetime.date.today()}-colab.json'
    rows = json.loads(file.read_text())['rows'] if file.exists() else []
    rows = sorted([old for old in rows if old['notebook'] != row['notebook']] + [row], key=lambda row: row['notebook'])
    told = {'date': str(datetime.date.today()),
            'what': "every notebook alone in an empty folder, with Colab's versions",
            'python': VERSION, 'versions': BROUGHT, 'left_out': leave}
    file.write_text(json.dumps({**told, 'rows': rows}, indent=1) + '\n')

def chosen(names):
    "Notebooks by file or by the beginning of their names; ends with a line for one that is not there."
    everything = sorted((REPO/'nbs').glob('*.ipynb'))
    if not names: return everything
    found = []
    for name in names:
        begun = [file for file in everything if file.name.startswith(name)]
        some = [Path(name).resolve()] if Path(name).is_file() else begun
        if not some: sys.exit(f'colab.py: no notebook {name}')
        found += some
    return found

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('notebooks', nargs='*', help='files, or beginnings of their names (default: all of nbs/)')
    parser.add_argument('--slow', action='store_true', help='run the `#| slow` cells too')
    args = parser.parse_args()
    environment()
    copy, gpu = copy_of_checkout(HOME/'source'), shutil.which('nvidia-smi') is not None
    leave = ['eval:false'] + ([] if gpu else ['cuda']) + ([] if args.slow else ['slow'])
    print(f'Colab rehearsal: Python {VERSION}, torch {BROUGHT["torch"]}, cells left out: {", ".join(leave)}')
    bad = 0
    for notebook in chosen(args.notebooks):
        seconds, said, replaced = run(notebook, copy, leave)
        passed = not said.startswith('FAILED')
        bad += not passed or bool(replaced)
        keep({'notebook': notebook.name, 'passed': passed, 'replaced': replaced,
              'cells_left_out': int(said) if passed else None, 'seconds': round(seconds)}, leave)
        kept = f'REPLACED {", ".join(replaced)}' if replaced else 'torch and all else kept'
        result = f'{said} cells left out' if passed else said
        print(f'{notebook.name:24} {seconds:6.1f} s  {kept}  {result}', flush=True)
    print('all green' if not bad else f'{bad} failed')
    sys.exit(bool(bad))

if __name__ == '__main__': main()
