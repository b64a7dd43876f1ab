"""The project as a whole: metadata, notebooks' form, what is committed, set-up."""
import importlib
import inspect
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

from scripts import call

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT/'nbs'
NOTEBOOKS = sorted(path for path in NBS.rglob('*.ipynb') if '.ipynb_checkpoints' not in path.parts)
COLAB = 'https://colab.research.google.com/github/artinsight/artinsight/blob/main/nbs'
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


def name(path): return path.relative_to(NBS).as_posix()


def tracked():
    listed = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.splitlines()


@pytest.mark.parametrize('script', settings()['console_scripts'].split())
def test_console_scripts_exist_and_explain_themselves(script):
    command, _, target = script.partition('=')
    module, _, function = target.partition(':')
    assert callable(getattr(importlib.import_module(module), function)) and shutil.which(command)
    alone = command == 'artinsight_sample'  # one in a process of its own
    done = subprocess.run([command, '--help'], capture_output=True, text=True) if alone else call(command, '--help')
    assert done.returncode == 0 and 'usage' in done.stdout.lower() and 'Warning' not in done.stderr


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
def test_notebook_form(path):
    notebook = nbformat.read(path, as_version=4)
    first, second = notebook.cells[:2]
    assert re.match(r'# .+\n\n> .+', first.source), 'the title and a summary'
    if path.stem != 'index':
        assert re.match(r'\d\d_[a-z0-9_]+\.ipynb$', path.name)
        link = {'text': 'Run on Colab', 'icon': 'play-circle', 'href': f'{COLAB}/{name(path)}'}
        links = yaml.safe_load(first.source.splitlines()[-1])[0]['code-links']
        assert links == [link], 'a link to Colab in the page that nbdev makes'
    assert second.source == INSTALL, 'the hidden install for Colab'
    code = [cell for cell in notebook.cells if cell.cell_type == 'code']
    words = [cell for cell in notebook.cells if cell.cell_type == 'markdown']
    assert len(words) * 3 >= len(code), 'at least one text cell for three code cells'
    for cell in code: assert not [output for output in cell.outputs if output.output_type == 'error']
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    most = 1_200_000 if path.stem == '10_report' else 500_000  # the report holds every picture one can walk to
    assert path.stat().st_size < most


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
def test_outputs_hold_nothing_of_the_machine(path):
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get('outputs', []):
            texts = [str(value) for kind, value in output.get('data', {}).items() if kind.startswith('text/')]
            words = ' '.join([output.get('text', ''), *texts])
            assert not re.search(r'/(?:root|home|work)/|/Users/', words), (cell.source[:80], words[:200])


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
def test_links_between_notebooks_lead_somewhere(path):
    "In prose, from where the notebook stands: `engine/07_store.ipynb`, `../00_data.ipynb`."
    prose = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == 'markdown']
    targets = re.findall(r'\]\(([^():#\s]+\.ipynb)', '\n'.join(prose))
    assert [target for target in targets if not (path.parent/target).is_file()] == []


PROMISED = """
import sys
from artinsight.all import *
print('torchvision' in sys.modules, 'torch._dynamo' in sys.modules)
print(len(CLASSES), len(STYLES), *EXPERIMENTS, *(made.__name__ for made in (index, GradCAM, load_run)))
print(*sorted({'gradio', 'onnx', 'onnxruntime', 'onnxscript', 'kagglehub', 'accelerate', 'timm'} & sys.modules.keys()))
"""


@pytest.fixture(scope='module')
def promised():
    "What a process of its own tells of the package."
    done = subprocess.run([sys.executable, '-c', PROMISED], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_all_brings_what_scripts_may_rely_on_and_needs_no_extra(promised):
    _, names, extras = promised
    experiments = 'simple_cnn resnet18_base resnet18_aggressive resnet18_augmented resnet18_best'
    assert names == f'20 10 {experiments} index GradCAM load_run' and extras == ''


def test_all_gathers_every_module_and_no_name_twice():
    "A name that two modules export would be whichever comes last."
    import artinsight.all
    owners = {}
    for module in sorted((ROOT/'artinsight').rglob('[a-z]*.py')):
        if module.stem == 'all': continue
        dotted = '.'.join(module.relative_to(ROOT).with_suffix('').parts)
        for public in importlib.import_module(dotted).__all__: owners.setdefault(public, []).append(dotted)
    assert owners.keys() - vars(artinsight.all).keys() == set()
    assert {public: modules for public, modules in owners.items() if len(modules) > 1} == {}


def test_nothing_generated_is_committed():
    generated = re.compile(r'^(_docs|_proc|_executed|_site|runs|data|\.venv)/|\.egg-info/|__pycache__'
                           r'|\.(safetensors|npz|pth|pkl|onnx)$')
    assert [file for file in tracked() if generated.search(file)] == []


def test_site_lists_every_notebook_once():
    listed = re.findall(r'- ([\w/]+\.ipynb)', (ROOT/'_quarto.yml').read_text())
    assert sorted(listed) == sorted(map(name, NOTEBOOKS))
    assert (NBS/'_quarto.yml').resolve() == ROOT/'_quarto.yml'


def test_readme_lists_every_notebook_with_its_title_and_badge():
    words = (ROOT/'README.md').read_text(encoding='utf-8')
    assert 'make report' in words and 'make test' in words
    for path in NOTEBOOKS:
        if path.stem == 'index': continue
        title = nbformat.read(path, as_version=4).cells[0].source.splitlines()[0].removeprefix('# ')
        assert f'| [{title}](nbs/{name(path)}) |' in words
        assert f'{COLAB}/{name(path)}' in words


def test_index_says_today_what_was_committed(builder, tmp_path):
    "Its results table is made from the records and references that are here now."
    assert builder.execute(ROOT/'nbs/index.ipynb', tmp_path/'index.ipynb', None) is None
    assert builder.readme(builder.read(tmp_path/'index.ipynb')) == (ROOT/'README.md').read_text(encoding='utf-8')


def test_commands_do_not_wait_for_what_they_do_not_use(promised):
    "torchvision's models bring torch._dynamo along, which takes seconds: only building a ResNet18 imports them."
    assert promised[0] == 'False False'


def test_help_and_wrong_words_wait_for_nothing():
    "The commands import what they need when they need it: help is there before torch or pandas could be."
    line = "import artinsight.use.commands, sys; print(sorted({'torch', 'fastai', 'pandas', 'numpy'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, '-c', line], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == '[]\n', done.stderr[-1000:]
    done = subprocess.run(['artinsight_audit', 'nowhere', '--sampel', '3'], capture_output=True, text=True)
    assert done.returncode == 2 and 'sampel' in done.stderr.splitlines()[-1]


def prose():
    "Everything that people read, as (where, words)."
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        yield name(path), '\n'.join(cell.source for cell in cells if cell.cell_type == 'markdown')
    for file in ('README.md', 'CONTRIBUTING.md'): yield file, (ROOT/file).read_text(encoding='utf-8')
    yield 'slides.qmd', (NBS/'slides.qmd').read_text(encoding='utf-8')


def test_commands_in_prose_exist_with_their_options():
    "In code spans and in blocks: scripts, their flags, and targets of make."
    scripts = dict(script.split('=') for script in settings()['console_scripts'].split())
    targets = set(re.findall(r'^([a-z]+):', (ROOT/'Makefile').read_text(), re.M))
    seen = set()
    for where, words in prose():
        code = '\n'.join(a or b for a, b in re.findall(r'^```sh\n(.*?)^```|`([^`\n]+)`', words, re.M | re.S))
        for script, line in re.findall(r'\b(artinsight_\w+)([^\n|)]*)', code):
            assert script in scripts, f'{where}: {script}'
            module, _, function = scripts[script].partition(':')
            known = set(inspect.signature(getattr(importlib.import_module(module), function)).parameters)
            flags = set(re.findall(r'--(\w+)', line.partition('#')[0]))
            assert flags <= known, f'{where}: {script} {line}'
            seen.add(script)
        for target in re.findall(r'^make ([a-z]+)|`make ([a-z]+)', words, re.M):
            assert ''.join(target) in targets, f'{where}: make {"".join(target)}'
    assert seen >= set(scripts) - {'artinsight_train'}


def test_commands_of_the_readme_do_what_it_says(runs, sample, tmp_path, monkeypatch):
    """Those for a trained model, word for word, on a quick run. Elsewhere: `make report` and `make test` in CI, the
    download in test_download, `artinsight_reproduce` in test_study, the audit in test_audit, the app in test_app."""
    (tmp_path/'runs').symlink_to(runs)
    shutil.copy(next(sample.glob('test/baroque/*')), tmp_path/'picture.jpg')
    words = (ROOT/'README.md').read_text(encoding='utf-8')
    lines = [line.split('#')[0].split() for block in re.findall(r'^```sh\n(.*?)^```', words, re.M | re.S)
             for line in block.splitlines() if re.match('artinsight_(predict|explain|evaluate)', line)]
    assert [line[0][11:] for line in lines] == ['evaluate', 'predict', 'explain']
    monkeypatch.chdir(tmp_path)
    for line in lines:
        done = call(*line)
        assert done.returncode == 0, done.stderr[-1000:]
        assert done.stdout.strip(), line
    assert list((tmp_path/'explained').glob('*.png'))
    snippet, shown = re.search(r'^```python\n(.*?)^```', words, re.M | re.S)[1], {}
    exec(snippet.replace("\nload_run('", "\nanswer = load_run('"), shown)
    assert len(shown['answer']) == 1


SOLUTION = '::: {.callout-tip collapse="true" title="Solution"}'


@pytest.mark.parametrize('stem', ['00_data', '04_baseline', '05_resnet18', '06_evaluation', '07_gradcam'])
def test_exercises_have_folded_solutions_that_the_tests_execute(stem):
    "Each exercise is followed by its solution, which claims something, and which nbdev_test runs."
    cells = [cell.source for cell in nbformat.read(NBS/f'{stem}.ipynb', as_version=4).cells]
    exercises = [number for number, source in enumerate(cells) if re.match(r'\*\*\d\.\*\* ', source)]
    assert len(exercises) == 3
    for start in exercises:
        assert cells[start + 1] == SOLUTION
        solution = cells[start + 2:cells.index(':::', start)]
        assert solution and all('#| code-fold: false' in source for source in solution), 'open once it is unfolded'
        assert any('assert ' in source or 'test_eq(' in source for source in solution)
        assert not any(re.search(r'^#\| (slow|cuda|eval: false)', source, re.M) for source in solution)


def test_workflows_run_what_the_readme_names():
    test, deploy = (yaml.safe_load((ROOT/f'.github/workflows/{file}.yml').read_text()) for file in ('test', 'deploy'))
    commands = [step.get('run') for step in test['jobs']['test']['steps']]
    assert {'make check', 'make notebooks', 'make pytest'} <= set(commands), 'the parts of `make test`'
    assert 'make test' in (ROOT/'.ci/run').read_text() and 'nbdev_test' in (ROOT/'Makefile').read_text()
    assert (ROOT/'_quarto.yml').read_text().count(settings()['user'])
    assert not (NBS/settings()['readme_nb']).exists(), 'nbdev_docs leaves README.md alone'
    assert any('nbdev_docs' in str(step) for step in deploy['jobs']['site']['steps'])


def test_the_package_has_no_fault_that_ruff_knows():
    command = [sys.executable, '-m', 'ruff', 'check', '--no-cache', '--ignore', 'E501', 'artinsight']  # see test_house
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.fixture
def machine(tmp_path):
    "A machine with sh and a few tools; `python(called, fits)` is a Python that only has a version and makes venvs."
    tools, home = tmp_path/'bin', tmp_path/'project'
    (home/'.ci').mkdir(parents=True)
    tools.mkdir()
    for tool in ('sh', 'cat', 'cmp', 'rm', 'mv', 'touch', 'dirname', 'mkdir', 'cp', 'chmod'):
        (tools/tool).symlink_to(shutil.which(tool))
    for needed in ('settings.ini', 'setup.py', '.ci/setup'): shutil.copy(ROOT/needed, home/needed)
    def python(called, fits, installs=True):
        file = tools/called
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
    def run():
        return subprocess.run(['sh', '.ci/setup'], cwd=home, env={'PATH': str(tools)}, capture_output=True, text=True)
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
    """A project below a path with a space and a dollar sign, whose Python writes down what it is called with,
    and fails where it is bidden to."""
    home = tmp_path/'a b'/'c$d'
    (home/'.venv/bin').mkdir(parents=True)
    shutil.copy(ROOT/'Makefile', home)
    for needed in ('settings.ini', 'setup.py'): (home/needed).touch()
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
        env = {'PATH': os.environ['PATH'], 'FAILS': fails}
        done = subprocess.run(['make', '-s', *words], cwd=home, env=env, capture_output=True, text=True)
        return done, [line.split('|', 1) for line in (home/'calls.log').read_text().splitlines()]
    return home, run


@pytest.mark.parametrize('fails', ['pages.py check', 'nbdev_test', 'pytest'])
def test_make_test_runs_all_parts_whichever_fails(make, fails):
    "A red notebook hides no result of pytest, whose closing line stays the last of the output."
    home, run = make
    done, calls = run('test')
    assert done.returncode == 0, done.stderr
    parts = {part for _, call in calls for part in ('pages.py check', 'nbdev_test', 'pytest') if part in call}
    assert len(parts) == len(calls) == 3 and 'pytest' in calls[2][1]
    done, calls = run('test', fails=fails)
    assert done.returncode != 0 and len(calls) == 3
    assert done.stdout.splitlines()[-1] == '12 passed in 1.00s'


def test_make_works_below_a_path_with_a_space_and_a_dollar_sign(make):
    home, run = make
    targets = {'check': 'tools/pages.py check', 'notebooks': 'nbdev_test', 'pytest': '-m pytest',
               'report': 'tools/pages.py report', 'docs': 'tools/pages.py docs',
               'colab': 'tools/colab.py', 'versions': 'tools/versions.py'}
    for target, called in targets.items():
        done, calls = run(target)
        assert done.returncode == 0 and len(calls) == 1 and called in calls[0][1], (target, done.stderr)
    _, calls = run('notebooks')
    assert calls[0][0] == f'{home}/runs'


def test_make_test_slow_runs_the_slow_cells_and_tests(make):
    _, run = make
    _, calls = run('test', 'SLOW=1')
    *first, last = [call for _, call in calls]
    assert any('--flags slow' in call for call in first) and '--slow' in last
    _, calls = run('test')
    assert not any('slow' in call for _, call in calls)


def test_a_browser_is_found_under_each_of_its_names(tmp_path, monkeypatch):
    from types import SimpleNamespace
    from conftest import BROWSERS, chromium
    driver = SimpleNamespace(chromium=SimpleNamespace(executable_path=str(tmp_path/'playwright-chrome')))
    monkeypatch.setenv('PATH', str(tmp_path))
    for browser in (*BROWSERS, 'playwright-chrome'):
        program = tmp_path/browser
        program.touch(0o755)
        if browser in BROWSERS: assert chromium(driver) == str(program)
        else: assert chromium(driver) is not None
        program.unlink()
