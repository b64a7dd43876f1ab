"""Run every notebook as Colab would: alone in an empty folder, with Colab's Python and packages, no repository.

    python tools/colab.py [--slow] [NOTEBOOK...]      # a file, or the beginning of its name: 07 engine/05 use

Builds an environment once (in the temporary folder, with uv), then for each notebook: takes artinsight out again,
executes all cells in one kernel with the install cell pointed at a copy of this checkout, and looks whether anything
that Colab brings was replaced. Cells marked `#| cuda` are left out without a GPU, `#| slow` ones without `--slow`.
The table is kept in benchmarks/results/DATE-colab.json, where notebooks of an earlier call on that day stay.

Colab's versions are those of its runtime of 2026-08-25. Its ipykernel is a fork of 6.17.1 that PyPI does not have:
the last 6.x stands for it, with the same IPython 7.34, whose displays and magics are what a notebook meets.
"""
import argparse, datetime, json, os, shutil, subprocess, sys, tempfile, time
from pathlib import Path

from pages import notebooks

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
    "An installed Python of this version (on the path, or pyenv's), else the bare version, which uv may get."
    pyenv = Path(os.environ.get('PYENV_ROOT', Path.home()/'.pyenv'))/'versions'
    programs = [p/'bin/python' for p in sorted(pyenv.glob(f'{version}.*'), reverse=True)]
    programs = [program for program in (shutil.which(f'python{version}'), *programs) if program]
    works = (p for p in programs if subprocess.run([p, '-c', ''], capture_output=True).returncode == 0)
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
    command = ['git', 'ls-files', '-coz', '--exclude-standard']
    listed = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True).stdout
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
def left_out(cell):
    marks = tuple('#|' + flag for flag in leave)
    lines = [line.replace(' ', '') for line in cell.source.splitlines()[:4]]
    return cell.cell_type == 'code' and any(line.startswith(marks) for line in lines)
before = len(nb.cells)
nb.cells = [cell for cell in nb.cells if not left_out(cell)]
where = {'metadata': {'path': sys.argv[3]}}
NotebookClient(nb, timeout=1800, kernel_name='python3', resources=where).execute()
print(before - len(nb.cells))
"""

def run(notebook, copy, leave):
    "(seconds, how many cells were left out or the error's last lines, packages replaced) of one notebook."
    subprocess.run([PYTHON, '-m', 'pip', 'uninstall', '-q', '-y', 'artinsight'], check=True, capture_output=True)
    before, start = brought(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        alone = shutil.copy(notebook, folder)
        ours = 'ARTINSIGHT_', 'VIRTUAL_ENV', 'PYTHONPATH'
        env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        env |= {'ARTINSIGHT_SOURCE': str(copy), 'COLAB_RELEASE_TAG': 'rehearsal',
                'PIP_CONSTRAINT': os.devnull,    # this machine's caps are not Colab's
                'PATH': f"{PYTHON.parent}{os.pathsep}{env['PATH']}"}
        command = [PYTHON, '-c', RUN, alone, ','.join(leave), folder]
        done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)
    result = done.stdout.strip().splitlines()[-1] if done.returncode == 0 else \
        'FAILED\n' + '\n'.join(done.stderr.strip().splitlines()[-12:])
    after = brought()
    return time.perf_counter() - start, result, [name for name in BROUGHT if after[name] != before[name]]

def keep(row, leave):
    "Write a notebook's row into today's record, in place of an earlier one."
    file = REPO/f'benchmarks/results/{datetime.date.today()}-colab.json'
    rows = json.loads(file.read_text())['rows'] if file.exists() else []
    rows = sorted([old for old in rows if old['notebook'] != row['notebook']] + [row], key=lambda row: row['notebook'])
    head = {'date': str(datetime.date.today()),
            'what': "every notebook alone in an empty folder, with Colab's versions",
            'python': VERSION, 'versions': BROUGHT, 'left_out': leave}
    file.write_text(json.dumps({**head, 'rows': rows}, indent=1) + '\n')

def chosen(names):
    "Names of notebooks below nbs/, by file or by how they begin; ends with a line for one that is not there."
    everything = notebooks(REPO/'nbs')
    if not names: return everything
    wanted = []
    for name in names:
        file = os.path.relpath(name, REPO/'nbs')
        begun = [file] if file in everything else [one for one in everything if one.startswith(name)]
        if not begun: sys.exit(f'colab.py: no notebook {name}')
        wanted += begun
    return wanted

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
        seconds, result, replaced = run(REPO/'nbs'/notebook, copy, leave)
        passed = not result.startswith('FAILED')
        bad += not passed or bool(replaced)
        keep({'notebook': notebook, 'passed': passed, 'replaced': replaced,
              'cells_left_out': int(result) if passed else None, 'seconds': round(seconds)}, leave)
        kept = f'REPLACED {", ".join(replaced)}' if replaced else 'torch and all else kept'
        print(f'{notebook:30} {seconds:6.1f} s  {kept}  {result}{" cells left out" * passed}', flush=True)
    print('all green' if not bad else f'{bad} failed')
    sys.exit(bool(bad))

if __name__ == '__main__': main()
