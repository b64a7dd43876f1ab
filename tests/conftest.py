"""Shared by all tests: the `slow` marker and nine fixtures: `few_epochs`, `sample`, `thumbnails`, `tiny`, `nobody`,
`runs`, `builder`, `shared`, `browser`."""
import gc
import importlib.util
import multiprocessing
import os
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.modules.setdefault('rfc3987_syntax', None)  # see tools/pages.py


def pytest_addoption(parser):
    parser.addoption('--slow', action='store_true', help='run the tests that take minutes, too')


def pytest_configure(config):
    "Processes that tests start have what a training imports, and so does the first step of an optimiser."
    multiprocessing.set_forkserver_preload(['artinsight.study', 'kagglehub', 'torch._dynamo'])
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
        patch.setattr(training, '_SEEN', 300)
        yield


@pytest.fixture(scope='session')
def sample():
    "The painted sample of the quick runs, painted once per machine."
    from quick_runs import quick_sample
    return Path(quick_sample())


@pytest.fixture(scope='session')
def thumbnails(sample, tmp_path_factory):
    "Nine training and three test pictures of each folder of the painted sample, small, so that decoding costs little."
    place = tmp_path_factory.mktemp('thumbnails')/'set'   # which others than us may read
    for folder in sorted(sample.glob('t*/*')):
        (to := place/folder.relative_to(sample)).mkdir(parents=True)
        for file in sorted(folder.iterdir())[:9 if folder.parent.name == 'train' else 3]:
            with Image.open(file) as picture: picture.resize((96, 96), reducing_gap=2).save(to/file.name, quality=90)
    return place


@pytest.fixture
def tiny(thumbnails, tmp_path):
    "A copy of them, which may be broken."
    return shutil.copytree(thumbnails, tmp_path/'tiny')


@pytest.fixture
def nobody():
    "Without root's rights, to whom no folder is closed."
    if os.geteuid(): yield
    else:
        os.seteuid(65534)
        try: yield
        finally: os.seteuid(0)


@pytest.fixture(scope='session')
def runs():
    """The five experiments, quick, trained on the painted sample: `make report`'s, or short ones, made once per version
    of the package. Read only."""
    from quick_runs import quick_runs
    return quick_runs()


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
