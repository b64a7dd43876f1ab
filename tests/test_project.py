"""The project as a whole: metadata, notebooks' form, what is committed, set-up."""
import ast
import importlib
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT/'nbs').glob('*.ipynb'))
INSTALL = """#| hide
# On Colab only: install artinsight, leaving Colab's own torch alone.
import importlib.util, os
if importlib.util.find_spec('artinsight') is None:
    source = os.environ.get('ARTINSIGHT_SOURCE', 'git+https://github.com/artinsight/artinsight')
    %pip install -q {source}"""


def settings():
    config = ConfigParser(delimiters=['='])
    config.read(ROOT/'settings.ini', encoding='utf-8')
    return config['DEFAULT']


def tracked(): return subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize('script', settings()['console_scripts'].split())
def test_console_scripts_exist_and_explain_themselves(script):
    name, _, place = script.partition('=')
    module, _, function = place.partition(':')
    assert callable(getattr(importlib.import_module(module), function))
    done = subprocess.run([name, '--help'], capture_output=True, text=True)
    assert done.returncode == 0 and 'usage' in done.stdout.lower() and 'Warning' not in done.stderr


def test_each_number_is_given_once():
    numbers = [path.name[:2] for path in NOTEBOOKS if path.stem != 'index']
    assert all(number.isdigit() for number in numbers) and len(set(numbers)) == len(numbers)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_form(path):
    notebook = nbformat.read(path, as_version=4)
    first, second = notebook.cells[:2]
    assert re.match(r'# .+\n\n> .+', first.source), 'the title and a summary'
    if path.stem != 'index':
        href = f'https://colab.research.google.com/github/artinsight/artinsight/blob/main/nbs/{path.name}'
        links = yaml.safe_load(first.source.splitlines()[-1])[0]['code-links']
        assert links == [{'text': 'Run on Colab', 'icon': 'play-circle', 'href': href}], 'a link to Colab in the page that nbdev makes'
    assert second.source == INSTALL, 'the hidden install for Colab'
    code = [cell for cell in notebook.cells if cell.cell_type == 'code']
    words = [cell for cell in notebook.cells if cell.cell_type == 'markdown']
    assert len(words) * 3 >= len(code), 'at least one text cell for three code cells'
    limits = {True: 24, False: 20}  # lines; exported functions have one argument a line
    assert [cell.source[:60] for cell in code if len(cell.source.splitlines()) > limits['#| export' in cell.source]] == [], 'short cells'
    for cell in code: assert not [output for output in cell.outputs if output.output_type == 'error']
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert path.stat().st_size < 500_000


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_hold_nothing_of_the_machine(path):
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get('outputs', []):
            words = ' '.join([output.get('text', ''), *(str(value) for kind, value in output.get('data', {}).items() if kind.startswith('text/'))])
            assert not re.search(r'/(?:root|home|work)/|/Users/', words), (cell.source[:80], words[:200])


def test_modules_import_only_earlier_ones():
    order = {path.stem[3:]: path.stem[:2] for path in NOTEBOOKS if path.stem[:2].isdigit()}
    for module in (ROOT/'artinsight').glob('[a-z]*.py'):
        for node in ast.walk(ast.parse(module.read_text())):
            others = []
            if isinstance(node, ast.ImportFrom) and node.level: others = [node.module] if node.module else [name.name for name in node.names]
            if isinstance(node, ast.Import): others = [name.name[11:] for name in node.names if name.name.startswith('artinsight.')]
            for other in others: assert order[other] < order[module.stem], f'{module.stem} imports {other}'


def test_nothing_generated_is_committed():
    generated = re.compile(r'^(_docs|_proc|_executed|_site|runs|data|\.venv)/|\.egg-info/|__pycache__|\.(safetensors|npz|pth|pkl|onnx)$')
    assert [name for name in tracked() if generated.search(name)] == []


def test_site_lists_every_notebook_once():
    found = re.findall(r'- (\w+\.ipynb)', (ROOT/'_quarto.yml').read_text())
    assert sorted(found) == sorted(path.name for path in NOTEBOOKS)
    assert (ROOT/'nbs/_quarto.yml').resolve() == ROOT/'_quarto.yml'


def test_readme_lists_every_notebook_with_its_title_and_badge():
    words = (ROOT/'README.md').read_text(encoding='utf-8')
    assert 'make report' in words and 'make test' in words
    for path in NOTEBOOKS:
        if path.stem == 'index': continue
        title = nbformat.read(path, as_version=4).cells[0].source.splitlines()[0].removeprefix('# ')
        assert f'| [{title}](nbs/{path.name}) |' in words
        assert f'https://colab.research.google.com/github/artinsight/artinsight/blob/main/nbs/{path.name}' in words


def test_index_says_today_what_was_committed(tmp_path):
    "Its results table is made from the records and references that are here now."
    spec = importlib.util.spec_from_file_location('pages', ROOT/'tools/pages.py')
    builder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builder)
    assert builder.execute(ROOT/'nbs/index.ipynb', tmp_path/'index.ipynb', None) is None
    assert builder.readme(builder.read(tmp_path/'index.ipynb')) == (ROOT/'README.md').read_text(encoding='utf-8')


def test_workflows_run_what_the_readme_names():
    test, deploy = (yaml.safe_load((ROOT/f'.github/workflows/{name}.yml').read_text()) for name in ('test', 'deploy'))
    steps = [step.get('run') for step in test['jobs']['test']['steps']]
    assert {'make setup', 'make check', 'make notebooks', 'make pytest'} <= set(steps), 'each part of make test tells its own result'
    assert 'make test' in (ROOT/'.ci/run').read_text() and 'nbdev_test' in (ROOT/'Makefile').read_text()
    assert (ROOT/'_quarto.yml').read_text().count(settings()['user']) and settings()['readme_nb'] not in [path.name for path in NOTEBOOKS], 'nbdev_docs leaves README.md alone'
    assert any('nbdev_docs' in str(step) for step in deploy['jobs']['site']['steps'])


def test_the_package_has_no_fault_that_ruff_knows():
    done = subprocess.run([sys.executable, '-m', 'ruff', 'check', '--no-cache', 'artinsight'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.fixture
def machine(tmp_path):
    "A machine with sh and a few tools; `python(name, version)` installs a Python that only tells its version and makes venvs."
    tools, home = tmp_path/'bin', tmp_path/'project'
    (home/'.ci').mkdir(parents=True)
    tools.mkdir()
    for name in ('sh', 'cat', 'cmp', 'rm', 'mv', 'touch', 'dirname', 'mkdir', 'cp', 'chmod'): (tools/name).symlink_to(shutil.which(name))
    for name in ('settings.ini', 'setup.py', '.ci/setup'): shutil.copy(ROOT/name, home/name)
    def python(name, fits, installs=True):
        file = tools/name
        file.write_text(f'''#!{shutil.which("sh")}
case "$*" in
  *version_info*) exit {0 if fits else 1} ;;
  --version) echo Python 3.something ;;
  "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  *uv) exit 1 ;;
  *"install -q"*) echo "$*" >> pip.log; exit {0 if installs else 1} ;;
esac
''')
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    def run(): return subprocess.run(['sh', '.ci/setup'], cwd=home, env={'PATH': str(tools)}, capture_output=True, text=True)
    return home, python, run


def test_setup_refuses_an_old_python_in_one_line(machine):
    home, python, run = machine
    python('python3', fits=False)
    done = run()
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and '3.10 to 3.13' in done.stderr
    assert not (home/'.venv').exists()


def test_setup_takes_a_newer_python_falls_back_to_pip_and_is_done_once(machine):
    home, python, run = machine
    python('python3', fits=False)
    python('python3.12', fits=True)
    assert run().returncode == 0
    assert (home/'pip.log').read_text().count('-e .[dev]') == 1
    assert run().returncode == 0
    assert (home/'pip.log').read_text().count('-e .[dev]') == 1, 'nothing changed'
    (home/'settings.ini').write_text('[DEFAULT]\n')
    assert run().returncode == 0
    assert (home/'pip.log').read_text().count('-e .[dev]') == 2, 'the requirements changed'


def test_setup_is_done_again_after_an_interruption_or_a_failure(machine):
    home, python, run = machine
    python('python3', fits=True, installs=False)
    done = run()
    assert done.returncode == 2 and 'online' in done.stderr and not (home/'.venv/.setup-stamp').exists()
    (home/'.venv/half-written').touch()
    python('python3', fits=True)
    assert run().returncode == 0 and (home/'.venv/.setup-stamp').exists()
    assert not (home/'.venv/half-written').exists(), 'begun anew'
    assert os.listdir(home/'.venv/bin') == ['python']


@pytest.fixture
def make(tmp_path):
    "A project below a path with a space and a dollar sign, whose Python writes down what it is called with, and fails where told to."
    home = tmp_path/'a b'/'c$d'
    (home/'.venv/bin').mkdir(parents=True)
    shutil.copy(ROOT/'Makefile', home)
    for name in ('settings.ini', 'setup.py'): (home/name).touch()
    python = home/'.venv/bin/python'
    python.write_text('''#!/bin/sh
echo "$ARTINSIGHT_RUNS|$*" >> calls.log
case "$*" in *"$FAILS"*) status=1 ;; *) status=0 ;; esac
case "$*" in *pytest*) echo "12 passed in 1.00s" ;; esac
exit $status
''')
    python.chmod(0o755)
    (home/'.venv/.setup-stamp').touch()
    def run(*words, fails='nothing'):
        (home/'calls.log').unlink(missing_ok=True)
        done = subprocess.run(['make', '-s', *words], cwd=home, env={'PATH': os.environ['PATH'], 'FAILS': fails}, capture_output=True, text=True)
        return done, [line.split('|', 1) for line in (home/'calls.log').read_text().splitlines()]
    return home, run


@pytest.mark.parametrize('fails', ['pages.py check', 'nbdev_test', 'pytest'])
def test_make_test_runs_all_parts_whichever_fails(make, fails):
    "A red notebook hides no result of pytest, whose closing line stays the last of the output."
    home, run = make
    done, calls = run('test')
    assert done.returncode == 0, done.stderr
    assert [name for _, call in calls for name in ('pages.py check', 'nbdev_test', 'pytest') if name in call] == ['pages.py check', 'nbdev_test', 'pytest']
    done, calls = run('test', fails=fails)
    assert done.returncode != 0 and len(calls) == 3
    assert done.stdout.splitlines()[-1] == '12 passed in 1.00s'


def test_make_works_below_a_path_with_a_space_and_a_dollar_sign(make):
    home, run = make
    for target, called in {'check': 'tools/pages.py check', 'notebooks': 'nbdev_test', 'pytest': '-m pytest', 'report': 'tools/pages.py report', 'docs': 'tools/pages.py docs'}.items():
        done, calls = run(target)
        assert done.returncode == 0 and len(calls) == 1 and called in calls[0][1], (target, done.stderr)
    _, calls = run('notebooks')
    assert calls[0][0] == f'{home}/runs'


def test_make_test_slow_runs_the_slow_cells_and_tests(make):
    _, run = make
    _, calls = run('test', 'SLOW=1')
    assert '--flags slow' in calls[1][1] and '--slow' in calls[2][1]
    _, calls = run('test')
    assert not any('slow' in call for _, call in calls)


def test_a_browser_is_found_under_each_of_its_names(tmp_path, monkeypatch):
    from types import SimpleNamespace
    from conftest import BROWSERS, chromium
    driver = SimpleNamespace(chromium=SimpleNamespace(executable_path=str(tmp_path/'playwright-chrome')))
    monkeypatch.setenv('PATH', str(tmp_path))
    for name in (*BROWSERS, 'playwright-chrome'):
        program = tmp_path/name
        program.touch(0o755)
        if name in BROWSERS: assert chromium(driver) == str(program)
        else: assert chromium(driver) is not None
        program.unlink()
