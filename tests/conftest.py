"""Shared by all tests: the `slow` marker and six fixtures: `few_epochs`, `sample`, `runs`, `builder`, `shared`,
`browser`."""
import gc
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent
# What a training depends on, beside the engine.
STORY = 'data', 'sample', 'loading', 'training', 'baseline', 'resnet18', 'evaluation', 'study'


def pytest_addoption(parser):
    parser.addoption('--slow', action='store_true', help='run the tests that take minutes, too')


def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: takes minutes; runs only with --slow')


def pytest_collection_modifyitems(config, items):
    if config.getoption('--slow'):
        return
    slow = [item for item in items if 'slow' in item.keywords]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if 'slow' not in item.keywords]


def pytest_collection_finish():
    "What has been imported stays: a training collects garbage first, and would look through all of it each time."
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    "Extensions complain of what is left at the end."
    gc.unfreeze()


@pytest.fixture(scope='session', autouse=True)
def scripts_on_path():
    "The console scripts of this environment come first, however pytest was called."
    bin_folder = str(Path(sys.executable).parent)
    if bin_folder not in os.environ['PATH'].split(os.pathsep):
        os.environ['PATH'] = bin_folder + os.pathsep + os.environ['PATH']


@pytest.fixture(scope='session', autouse=True)
def few_epochs():
    "Quick trainings on a handful of pictures stop early here: what is asked of them is seldom what they learn."
    from artinsight import training
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, '_SEEN', 1000)
        yield


@pytest.fixture(scope='session')
def sample():
    "The painted sample of the quick runs, painted once per machine."
    from artinsight.sample import painted_sample, STUDY_SAMPLE
    return Path(painted_sample(**STUDY_SAMPLE))


def made_by_this_code(folder):
    "Whether a folder holds the five quick runs on the painted sample, trained by the very code that is here."
    from artinsight.study import EXPERIMENTS
    from artinsight.engine.runs import git_commit
    from artinsight.training import read_record
    commit = git_commit()
    if commit is None or commit.endswith('+'): return False
    try: records = [read_record(folder/name) for name in EXPERIMENTS]
    except (OSError, ValueError): return False
    return all(record['git'] == commit and record['quick'] and record['data']['name'] == 'painted sample'
               for record in records)


@pytest.fixture(scope='session')
def runs(sample):
    """The five experiments, quick, trained on the painted sample: `make report`'s, or made once per version of the
    package. Read only."""
    if made_by_this_code(ROOT/'runs'): return ROOT/'runs'
    code = hashlib.sha256()
    for module in sorted([*(ROOT/'artinsight/engine').glob('*.py'), *(ROOT/f'artinsight/{name}.py' for name in STORY)]):
        code.update(module.read_bytes())
    cache = Path(os.environ.get('ARTINSIGHT_CACHE') or Path.home()/'.cache/artinsight')
    folder = cache/'test-runs'/code.hexdigest()[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f'{folder}.lock'):  # one of the workers trains, the others wait
        if (folder/'all-done').exists(): return folder
        command = ['artinsight_reproduce', '--data', str(sample), '--runs', str(folder), '--quick', '--weights', 'none']
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        (folder/'all-done').touch()
    return folder


@pytest.fixture(scope='module')
def builder():
    "tools/pages.py as a module of its own."
    spec = importlib.util.spec_from_file_location('pages', ROOT/'tools/pages.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='session')
def shared():
    "The folder of real art and known names beside a development checkout."
    folder = ROOT.parent/'shared'
    if not (folder/'real-art').is_dir():
        pytest.skip('no ../shared here')
    return folder


BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome')


def chromium(driver):
    "Chromium or Chrome: on the path, where its makers put it, or the one that playwright brought; None where none is."
    installed = ['/opt/google/chrome/chrome', '/usr/lib/chromium/chromium', '/snap/bin/chromium',
                 '/Applications/Google Chrome.app/Contents/MacOS/Google Chrome']
    places = [*filter(None, map(shutil.which, BROWSERS)), *installed, driver.chromium.executable_path]
    return next((place for place in places if os.access(place, os.X_OK)), None)


@pytest.fixture(scope='session')
def browser():
    "A Chromium that is opened once for all tests of a worker; it needs no root, and no sandbox of its own."
    playwright = pytest.importorskip('playwright.sync_api')
    with playwright.sync_playwright() as driver:
        program = chromium(driver)
        if program is None: pytest.skip('no Chromium or Chrome on this machine')
        options = ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--disable-background-networking']
        opened = driver.chromium.launch(executable_path=program, args=options)
        yield opened
        opened.close()
