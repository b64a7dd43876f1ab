"The demo page in a real browser, under load, and fed with hostile files; exports and the Hub folder."
import base64
import csv
import html
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from artinsight.use import app, export
from artinsight.use.app import build_app, own_machine, serve
from artinsight.use.card import card, write_card
from artinsight.use.commands import artinsight_app, artinsight_export
from artinsight.use.export import check_export, export_run, from_onnx, to_hub, to_int8, to_onnx
from artinsight.use.page import MAX_BYTES, answer_upload, batch_html, open_upload, predict_uploads
from artinsight.use.predict import load_run, read_some
from artinsight.data import index
from artinsight.engine.pictures import BadPicture
from artinsight.sample import painted_sample

import axe
import browsing
from hostile import hostile
from scripts import call


@pytest.fixture(scope='module')
def run(runs): return load_run(runs/'simple_cnn')


@pytest.fixture(scope='module')
def pictures(sample): return sorted((sample/'test').glob('*/*.jpg'))


@pytest.fixture(scope='module')
def real(sample, pictures):
    "A real painting where one is at hand, else a painted one."
    shared = Path(__file__).resolve().parent.parent.parent/'shared/real-art/test'
    return next(iter(sorted(shared.glob('baroque/*.jpg'))), pictures[0])


@contextmanager
def serving(*command, **more):
    "A page in a process of its own, with more in its environment: its address, and the process."
    pytest.importorskip('gradio', reason='the page needs gradio')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    environment = {**os.environ, 'GRADIO_SERVER_PORT': str(port), **more}
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                               env=environment)
    address, direct = f'http://127.0.0.1:{port}/', urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        for _ in range(3000):
            if process.poll() is not None: pytest.fail(process.stderr.read())
            try: direct.open(address, timeout=5).read(); break
            except OSError: time.sleep(.2)
        yield address, process
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def visitor(address):
    "What asks as a browser does: send a file, wait in the queue, take the answer."
    httpx = pytest.importorskip('httpx', reason='comes with gradio')
    with httpx.Client(base_url=address, timeout=120, trust_env=False) as client: yield client


def as_a_guest(monkeypatch):
    "Keep from our process what the script sets for its own."
    monkeypatch.setenv('GRADIO_TEMP_DIR', '')
    for module, name in ((signal, 'signal'), (torch, 'set_num_threads')):
        monkeypatch.setattr(module, name, lambda *_: None)


def send(client, path):
    "Upload a file: what a question calls it."
    [name] = client.post('gradio_api/upload', files={'files': Path(path).read_bytes()}).raise_for_status().json()
    return {'path': name, 'meta': {'_type': 'gradio.FileData'}}


def join(client, image):
    "Queue up with a question: its number. Without a session's name, which Gradio before 6.24 loses."
    question = {'data': [image, 'class', 50]}
    return client.post('gradio_api/call/ask', json=question).raise_for_status().json()['event_id']


def ask(client, path):
    "All that the page would show about a picture."
    told = client.get(f'gradio_api/call/ask/{join(client, send(client, path))}').raise_for_status().text
    assert 'event: complete' in told, told
    return json.loads(told.rsplit('data: ', 1)[1])


@pytest.fixture(scope='module')
def address(runs):
    with serving('artinsight_app', runs/'simple_cnn', '--data', painted_sample(2, 7)) as (address, _): yield address


@pytest.fixture(scope='module')
def among_proxies(runs, tmp_path_factory):
    """A page with two runs, and its folder of corrections, beside proxies that nobody answers for, of the kinds that
    desktops and campus networks set; httpx can't even be imported beside the first"""
    nobody, kept = '127.0.0.1:9', tmp_path_factory.mktemp('corrections')/'kept'
    proxies = {'ALL_PROXY': f'socks://{nobody}/', 'HTTP_PROXY': f'http://{nobody}', 'https_proxy': f'socks5://{nobody}',
               'NO_PROXY': 'example.org', 'no_proxy': 'example.org'}
    words = runs/'simple_cnn', runs/'resnet18_base', '--data', painted_sample(2, 7), '--corrections', kept
    with serving('artinsight_app', *words, **proxies) as (address, _): yield address, kept


visiting = partial(browsing.visiting, ready='input[type=file]')


def upload(page, *files, place=0):
    page.locator('input[type=file]').nth(place).set_input_files([str(file) for file in files])


@pytest.mark.parametrize('width, dark', [(1280, False), (390, True)])
def test_a_visitor_asks_about_a_picture(browser, address, real, tmp_path_factory, width, dark):
    with visiting(browser, address, width, dark) as page:
        assert page.locator('.banner').inner_text().startswith('This model has only seen the painted sample')
        upload(page, real)
        page.wait_for_selector('.stack .heat', timeout=60_000)
        said = page.locator('.art[role=status] h2').inner_text()
        assert 'made by' in said
        assert page.locator('[role=meter]').get_attribute('aria-label').startswith('Origin: human')
        assert page.locator('.art table').nth(1).locator('.bar').count() == 20
        assert page.locator('.near figure').count() == 4
        assert page.evaluate('document.documentElement.scrollWidth') <= width
        page.locator('#picture img[alt="The picture you chose"]').wait_for(timeout=10_000)
        assert not page.evaluate("[...document.querySelectorAll('img')].filter(o => !o.hasAttribute('alt')).length")
        page.screenshot(path=str(shot := tmp_path_factory.getbasetemp()/f'page-{width}.png'), full_page=True)
        print(shot)


def test_the_map_follows_slider_and_question(browser, address, real):
    with visiting(browser, address) as page:
        upload(page, real)
        heat = page.locator('.stack .heat')
        heat.wait_for(timeout=60_000)
        before, picture = heat.get_attribute('src'), page.locator('.stack').screenshot()
        slider = page.locator('input[type=range]')
        slider.focus()
        page.keyboard.press('Home')  # by keyboard alone
        page.wait_for_function("getComputedStyle(document.querySelector('.stack .heat')).opacity == '0'")
        faded = page.locator('.stack').screenshot()
        page.keyboard.press('End')
        page.wait_for_function("getComputedStyle(document.querySelector('.stack .heat')).opacity == '1'")
        assert len({picture, faded, page.locator('.stack').screenshot()}) == 3
        page.get_by_label('origin, human or AI').check()
        page.wait_for_function('old => document.querySelector(".stack .heat").src != old', arg=before, timeout=60_000)
        assert 'speaks for ' in page.locator('.stack').get_attribute('aria-label')
        assert page.evaluate("getComputedStyle(document.querySelector('.stack .heat')).opacity") == '1'


def test_many_files_give_a_table_with_a_row_each(browser, address, pictures, tmp_path):
    (tmp_path/'broken.png').write_bytes(b'\x89PNG\r\n\x1a\n nothing more')
    with visiting(browser, address) as page:
        page.get_by_role('tab', name='Many').click()
        files = [*pictures[::50], tmp_path/'broken.png']
        page.locator('input[type=file]').last.set_input_files([str(file) for file in files])
        page.wait_for_selector('a.get', timeout=60_000)
        with page.expect_download() as download: page.locator('a.get').click()
        rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text())))
        assert [row['path'] for row in rows] == [file.name for file in files]
        assert [bool(row['problem']) for row in rows] == [False] * (len(files) - 1) + [True]
        pictures_wide = page.locator('.sheet img').evaluate_all('all => all.map(o => o.naturalWidth)')
        assert len(pictures_wide) == len(files) - 1 and min(pictures_wide) >= 90
        assert 'broken.png' in page.locator('.art li').inner_text()


def test_many_answers_are_sorted_and_filtered(browser, address, run, pictures, tmp_path_factory):
    "The likeliest AI first; a choice by keyboard leaves one kind, on a phone, and nothing is asked of the server"
    files = pictures[::40]
    said = {file.name: row for file, row in zip(files, run.predict(files).to_dict('records'))}
    ranked = sorted(said, key=lambda name: -said[name]['AI'])
    wanted = {'all': ranked, 'AI': [name for name in ranked if said[name]['origin'] == 'AI'],
              'human': [name for name in ranked if said[name]['origin'] == 'human'],
              'unsure': [name for name in ranked if said[name]['unsure']]}
    assert len({len(names) for names in wanted.values()}) > 2 and all(wanted.values())
    with visiting(browser, address, 390) as page:
        page.get_by_role('tab', name='Many').click()
        page.locator('input[type=file]').last.set_input_files([str(file) for file in files])
        page.locator('.show').wait_for(timeout=60_000)
        asked = []
        page.on('request', lambda request: asked.append(request.url))
        page.locator('[name=show][value=all]').focus()
        for kind, names in wanted.items():
            if kind != 'all': page.keyboard.press('ArrowRight')
            shown = page.locator('.sheet figure:visible figcaption').all_inner_texts()
            assert [text.splitlines()[0] for text in shown] == names, kind
            assert all(text.endswith('unsure') == said[name]['unsure'] for text, name in zip(shown, names))
            choice = page.locator('.show label').filter(has=page.locator(':checked')).inner_text()
            assert choice.strip() == f'{kind} ({len(names)})'
        assert asked == [] and page.evaluate('document.documentElement.scrollWidth') <= 390
        page.screenshot(path=str(shot := tmp_path_factory.getbasetemp()/'many-390.png'), full_page=True)
        print(shot)


def test_a_bad_file_gets_a_message(browser, address, tmp_path):
    (tmp_path/'note.jpg').write_text('not a picture')
    (tmp_path/'page.svg').write_text('<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>')
    with visiting(browser, address) as page:
        for name in ('note.jpg', 'page.svg'):
            upload(page, tmp_path/name)
            page.wait_for_selector('.art[role=alert]', timeout=60_000)
            assert 'cannot be read' in page.locator('.art[role=alert]').inner_text()
            assert 'Traceback' not in page.content()
            page.get_by_label('Remove Image').click()
            page.wait_for_selector('.art[role=alert]', state='detached')


def test_several_runs_stand_in_one_table_and_a_correction_is_kept(browser, among_proxies, pictures):
    "The picture and its right class are read back as a data set"
    address, folder = among_proxies
    with visiting(browser, address) as page:
        upload(page, pictures[0])
        page.get_by_text('What each run says').wait_for(timeout=60_000)
        lines = page.locator('table.alarms', has_text='What each run says').locator('tr th[scope=row]')
        assert [line.split(',')[0] for line in lines.all_inner_texts()] == ['simple_cnn', 'resnet18_base']
        page.get_by_label('Is this wrong? What is right').fill('human_ukiyo_e')
        page.keyboard.press('Enter')
        page.get_by_role('button', name='Keep this correction').click()
        page.get_by_text('Kept. Thank you.').wait_for(timeout=60_000)
    kept = index(folder)
    assert list(kept['class']) == ['human_ukiyo_e']
    said, = [json.loads(line) for line in (folder/'corrections.jsonl').read_text().splitlines()]
    assert said['file'] == kept.path[0] and said['right'] == 'human_ukiyo_e' and said['class']
    saved = np.asarray(Image.open(folder/said['file']))
    assert np.array_equal(saved, np.asarray(open_upload(pictures[0])))


# What Gradio 6.31 makes of the small button above chosen files: a button in a button. Its name is ours: app._NAMES.
GRADIOS_OWN = [('nested-interactive', 'aria-label="Add files"')]


@pytest.mark.parametrize('width, dark', [pytest.param(1280, False, marks=pytest.mark.slow), (390, True)])
def test_no_serious_fault_for_a_screen_reader(browser, among_proxies, pictures, width, dark):
    "By axe-core: without a picture, with an answer, with many answers, and the card"
    with visiting(browser, among_proxies[0], width, dark) as page:
        faults = {'nothing chosen': axe.faults(page)}
        upload(page, pictures[0])
        page.get_by_text('What each run says').wait_for(timeout=60_000)
        faults['answered'] = axe.faults(page)
        page.get_by_role('tab', name='Many').click()
        page.get_by_text('Click to Upload').last.wait_for(timeout=10_000)
        faults['no files'] = axe.faults(page)
        page.locator('input[type=file]').last.set_input_files([str(file) for file in pictures[::50]])
        page.wait_for_selector('a.get', timeout=60_000)
        faults['many answers'] = axe.faults(page, GRADIOS_OWN)
        page.get_by_role('tab', name='About').click()
        page.get_by_role('heading', name='Limits').first.wait_for(timeout=10_000)
        faults['card'] = axe.faults(page)
    assert not any(faults.values()), {state: found for state, found in faults.items() if found}


def test_300_hostile_files_neither_crash_nor_hang(run, real, tmp_path):
    slowest, refused = 0, 0
    for file in hostile(tmp_path, real):
        began = time.perf_counter()
        said, drawn, _, told = answer_upload(run, None, str(file))  # an exception fails the test
        slowest = max(slowest, time.perf_counter() - began)
        assert bool(told['problem']) != bool(drawn), file.name
        if told['problem']:
            refused += 1
            assert 'role="alert"' in said and told['problem'] in html.unescape(said), (file.name, told['problem'])
    assert slowest < 5 and refused > 60, (slowest, refused)


def test_uploads_are_bounded_and_lose_their_metadata(tmp_path):
    exif = Image.Exif()
    exif.get_ifd(0x8825)[2] = (48., 12., 30.)  # a place on earth
    Image.new('RGB', (60, 40)).save(tmp_path/'here.jpg', exif=exif)
    assert not open_upload(tmp_path/'here.jpg').getexif() and 'exif' not in open_upload(tmp_path/'here.jpg').info
    with open(tmp_path/'long.jpg', 'wb') as file: file.truncate(MAX_BYTES + 1)
    with pytest.raises(BadPicture, match='larger than'): open_upload(tmp_path/'long.jpg')
    Image.new('1', (8000, 8000)).save(tmp_path/'wide.png')
    with pytest.raises(BadPicture, match='million pixels'): open_upload(tmp_path/'wide.png')


def test_no_metadata_of_an_upload_is_shown(run, tmp_path):
    exif = Image.Exif()
    exif.get_ifd(0x8825)[2] = (48., 12., 30.)  # a place on earth
    exif[0x010e] = 'the secret place'
    Image.new('RGB', (60, 40)).save(tmp_path/'here.jpg', exif=exif, comment=b'the secret place')
    assert b'secret' in (tmp_path/'here.jpg').read_bytes()
    shown = [*answer_upload(run, None, tmp_path/'here.jpg')[:3], batch_html(run, [tmp_path/'here.jpg'])]
    files = [base64.b64decode(data) for data in re.findall('base64,([^"]*)"', ''.join(shown))]
    assert len(files) == 4  # picture, heat map, table, contact sheet
    assert not any(word in data for data in files for word in (b'Exif', b'secret')) and 'secret' not in ''.join(shown)


def test_a_page_opens_beside_proxies(among_proxies, pictures):
    with visitor(among_proxies[0]) as client: assert ask(client, pictures[0])[3]['problem'] == ''


@pytest.mark.parametrize('share', [False, True])
def test_proxies_are_back_afterwards(monkeypatch, share):
    import httpx
    monkeypatch.setenv('HTTP_PROXY', 'http://127.0.0.1:9')
    monkeypatch.setenv('NO_PROXY', 'example.org')
    monkeypatch.delenv('no_proxy', raising=False)
    before = dict(os.environ)
    with own_machine(share):
        with httpx.Client() as client:
            hosts = 'localhost:7860', '127.0.0.1:7860', 'example.org', 'gradio.app'
            ways = [client._transport_for_url(httpx.URL(f'http://{host}')) for host in hosts]
            kinds = [way is client._transport for way in ways]
    assert kinds == [True, True, True, not share] and dict(os.environ) == before


def test_a_page_without_threads_is_one_line(runs, monkeypatch, capsys):
    """A stand-in for a machine that grants no more: the same RuntimeError, from the same call, as CPython's (3.11,
    Modules/_threadmodule.c)"""
    pytest.importorskip('gradio', reason='the page needs gradio')
    as_a_guest(monkeypatch)
    run = load_run(runs/'simple_cnn')
    monkeypatch.setattr(app, 'load_run', lambda *_: run)
    def none_left(thread): raise RuntimeError("can't start new thread")
    monkeypatch.setattr(threading.Thread, 'start', none_left)
    monkeypatch.setattr(sys, 'argv', ['artinsight_app', str(runs/'simple_cnn')])
    with pytest.raises(SystemExit) as end: artinsight_app()
    assert end.value.code == 2 and 'no more threads' in capsys.readouterr().err.splitlines()[-1]
    rows, thumbs = predict_uploads(run, [str(runs/'nothing.png')] * 3)
    assert len(rows) == 3


def test_every_gradio_6_can_lay_the_page_out(run, monkeypatch):
    """A stand-in for gradio 6.0.0 (PyPI, November 2025): its components and launch take fewer arguments than today's.

    The lists are what `inspect.signature` gave for the real one, so a newer argument fails here as it does there."""
    gradio = pytest.importorskip('gradio', reason='the page needs gradio')
    old = json.loads((Path(__file__).parent/'gradio-6.0.0.json').read_text())
    def strict(kind, method):
        whole = getattr(kind, method)
        def call(self, *args, **given):
            newer = set(given) - set(old[f'{kind.__name__}.{method}'])
            assert not newer, f'{kind.__name__} of gradio 6.0.0 does not know {newer}'
            return None if method == 'launch' else whole(self, *args, **given)
        monkeypatch.setattr(kind, method, call)
    kinds = [gradio.Image, gradio.Slider, gradio.HTML, gradio.Markdown, gradio.File, gradio.Radio, gradio.JSON,
             gradio.Tab, gradio.Blocks]
    for kind in kinds: strict(kind, '__init__')
    strict(gradio.Blocks, 'launch')
    strict(gradio.Blocks, 'queue')
    with pytest.raises(AssertionError, match='alt_text'): gradio.Image(alt_text='as it was')
    serve(run)


@pytest.mark.slow
def test_a_page_calls_nobody_and_its_uploads_go_with_it(runs, pictures, tmp_path, monkeypatch):
    monkeypatch.setenv('TMPDIR', str(tmp_path))
    with socket.socket() as proxy:  # through which every call to another machine would go
        proxy.bind(('127.0.0.1', 0))
        proxy.listen()
        proxy.settimeout(.1)
        address = f'http://127.0.0.1:{proxy.getsockname()[1]}'
        for name in ('HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY'): monkeypatch.setenv(name, address)
        monkeypatch.setenv('NO_PROXY', '127.0.0.1,localhost')
        with serving('artinsight_app', runs/'simple_cnn') as (address, _), visitor(address) as client:
            assert ask(client, pictures[0])[3]['problem'] == ''
            sent = pictures[0].read_bytes()
            kept = [file for file in tmp_path.rglob('*') if file.is_file() and file.read_bytes() == sent]
            with pytest.raises(TimeoutError): proxy.accept()
        assert kept and not any(file.exists() for file in kept)


@pytest.mark.slow
def test_the_hub_folder_runs_as_a_space(run, pictures, tmp_path):
    to_hub(run, tmp_path/'hub')
    with serving(sys.executable, tmp_path/'hub/app.py') as (address, _), visitor(address) as client:
        assert ask(client, pictures[0])[3]['class'] == run.predict(pictures[0])['class'][0]
        assert 'artinsight' in client.get('config').text


@pytest.mark.slow
def test_a_notebook_cell_shows_the_page(runs):
    nbclient, nbformat = (pytest.importorskip(name, reason='needs Jupyter') for name in ('nbclient', 'nbformat'))
    pytest.importorskip('gradio', reason='the page needs gradio')
    opens = f'page = serve(load_run({str(runs/"simple_cnn")!r}))'
    cells = [f'import httpx\nfrom artinsight.use.app import load_run, serve\n{opens}',
             'print(httpx.get(page.local_url).status_code)\npage.close()']
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=300, kernel_name='python3').execute()
    shown = [output.get('data', {}).get('text/html', '') for output in notebook.cells[0].outputs]
    assert any('<iframe src="http://127.0.0.1' in text for text in shown)
    assert notebook.cells[1].outputs[0]['text'].startswith('200')


def test_under_load_the_page_queues_and_says_so(browser, address, real, tmp_path):
    Image.effect_noise((2000, 2000), 80).save(tmp_path/'large.jpg')
    with visiting(browser, address) as page, visitor(address) as client:
        large = send(client, tmp_path/'large.jpg')
        waiting = [join(client, large) for _ in range(15)]
        upload(page, real)
        page.get_by_text(re.compile(r'queue: \d+/\d+')).first.wait_for(timeout=60_000)
        page.wait_for_selector('.stack .heat', timeout=120_000)
        assert len(set(waiting)) == 15


@pytest.mark.slow
def test_200_uploads_from_8_clients(runs, run, pictures):
    expected = dict(zip(map(str, pictures), run.predict(pictures).to_dict('records')))
    seconds, wrong = [], []
    def resident(process): return int(Path(f'/proc/{process.pid}/statm').read_text().split()[1]) * 4096 / 1e6
    def visit(address, mine):
        with visitor(address) as client:
            for path in mine:
                began = time.perf_counter()
                told = ask(client, path)[3]
                seconds.append(time.perf_counter() - began)
                known = expected[str(path)]
                if told['class'] != known['class'] or abs(told['probability'] - known['probability']) > 1e-4:
                    wrong.append(path)
    with serving('artinsight_app', runs/'simple_cnn') as (address, process):
        visit(address, pictures[:40])
        seconds.clear()
        before = resident(process)
        clients = [threading.Thread(target=visit, args=(address, pictures[i:200:8])) for i in range(8)]
        for client in clients: client.start()
        for client in clients: client.join()
        grown = resident(process) - before
    p95 = float(np.quantile(seconds, .95))
    print(f'200 uploads, 8 clients: median {np.median(seconds):.2f} s, p95 {p95:.2f} s, memory {grown:+.0f} MB')
    assert len(seconds) == 200 and not wrong and p95 < 2 and grown < 100


@pytest.fixture
def onnx():
    for module in ('onnxruntime', 'onnxscript'): pytest.importorskip(module, reason='ONNX needs the extra export')
    return pytest.importorskip('onnx', reason='ONNX needs the extra export')


def same_as_the_run(run, file, pictures):
    "Export, compare, and demand as much of the export as of the run."
    to_onnx(run, file)
    found = check_export(run, from_onnx(file), pictures)
    print(json.dumps(found))
    assert found['pictures'] == 200 and found['same_top_class'] == 1 and found['largest_difference'] < 1e-3
    return found


@pytest.mark.parametrize('name', ['simple_cnn', pytest.param('resnet18_base', marks=pytest.mark.slow)])
def test_onnx_answers_as_the_run_does(runs, pictures, tmp_path, onnx, name):
    run = load_run(runs/name)
    same_as_the_run(run, tmp_path/'model.onnx', read_some(pictures[:200], run.size)[0])
    told = {entry.key: entry.value for entry in onnx.load(tmp_path/'model.onnx').metadata_props}
    assert len(json.loads(told['labels'])) == 20 and told['size'] == '32' and 'squashed' in told['input']
    assert from_onnx(tmp_path/'model.onnx')(torch.zeros(7, 3, 32, 32, dtype=torch.uint8)).shape == (7, 20)


@pytest.mark.parametrize('name', ['simple_cnn', pytest.param('resnet18_base', marks=pytest.mark.slow)])
def test_onnx_answers_as_the_run_does_on_real_pictures(runs, shared, tmp_path, onnx, name):
    run, files = load_run(runs/name), sorted((shared/'real-art').rglob('*.jpg'))
    some = random.Random(0).sample(files, 200)
    found = same_as_the_run(run, tmp_path/'model.onnx', read_some(some, run.size)[0])
    speeds = [found[f'{who}_images_per_second']['batch_64'] for who in ('export', 'torch')]
    if name == 'simple_cnn': assert speeds[0] >= speeds[1]


@pytest.fixture
def copied(runs, tmp_path): return load_run(shutil.copytree(runs/'simple_cnn', tmp_path/'run'))


def test_8_bits_are_kept_where_they_lose_under_a_point(copied, sample, onnx):
    found = export_run(copied, 'onnx', index(sample))
    assert json.loads((copied.path/'export-onnx.json').read_text()) == found
    told, file = found['int8'], copied.path/'model-int8.onnx'
    exact, small = (accuracy(copied, sample, copied.path/name) for name in ('model.onnx', 'model-int8.onnx'))
    assert told['lost'] == pytest.approx(exact - small) and told['kept'] == (told['lost'] < .01)
    assert file.stat().st_size == told['bytes'] < found['bytes'] / 2 and told['validation_pictures'] > 50
    assert {entry.key for entry in onnx.load(file).metadata_props} >= {'labels', 'size', 'input'}


def accuracy(run, sample, file):
    "Of an ONNX file, on the validation pictures of a run."
    saved = np.load(run.path/'predictions.npz')
    pixels, _ = read_some([sample/path for path in saved['validation_id']], run.size)
    return (from_onnx(file)(pixels.contiguous()).argmax(1) == saved['validation_target']).mean()


def test_8_bits_that_lose_a_point_or_cannot_be_judged_are_left_out(copied, sample, onnx, monkeypatch):
    to_onnx(copied, copied.path/'model.onnx')
    assert '--data' in to_int8(copied, copied.path, index(painted_sample(2, 7)))['why']
    assert not (copied.path/'model-int8.onnx').exists()
    def worse(file):
        exact = from_onnx(file)
        return exact if file.name == 'model.onnx' else lambda pictures: exact(pictures)[:, ::-1]
    monkeypatch.setattr(export, 'from_onnx', worse)
    told = to_int8(copied, copied.path, index(sample))
    assert told['lost'] >= .01 and not told['kept'] and not (copied.path/'model-int8.onnx').exists()


@pytest.mark.slow
def test_the_export_script_writes_and_records(runs, tmp_path, capsys):
    for to, name in (('onnx', 'model.onnx'), ('torch', 'model.pt2')):
        artinsight_export(str(runs/'simple_cnn'), to=to, out=str(tmp_path))
        assert json.loads(capsys.readouterr().out)['same_top_class'] == 1
        assert (tmp_path/name).exists() and (tmp_path/f'export-{to}.json').exists()
    command = ['artinsight_export', str(runs/'simple_cnn'), '--to', 'tflite']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and 'onnx, torch or hub' in done.stderr and 'Traceback' not in done.stderr


def test_the_hub_folder_is_whole(run, pictures, tmp_path):
    to_hub(run, tmp_path/'hub')
    again = load_run(tmp_path/'hub')
    assert again.calibration == run.calibration
    assert np.allclose(again.predict(pictures[:9]).probability, run.predict(pictures[:9]).probability)
    head = (tmp_path/'hub/README.md').read_text().split('---\n')[1]
    for line in ('license: apache-2.0', 'library_name: artinsight', 'pipeline_tag: image-classification',
                 'sdk: gradio', 'app_file: app.py'): assert line in head
    assert json.loads((tmp_path/'hub/config.json').read_text())['num_classes'] == 20
    assert not [path for path in (tmp_path/'hub').iterdir() if path.suffix in ('.pkl', '.pth', '.pt', '.bin')]
    compile((tmp_path/'hub/app.py').read_text(), 'app.py', 'exec')


def test_the_card_tells_figures_and_limits(copied):
    (copied.path/'audit.json').unlink(missing_ok=True)
    low, high = copied.record['test']['accuracy_ci95']
    accuracy = f"{copied.record['test']['accuracy']:.1%} ({low:.1%} to {high:.1%})"
    for part in ('painted sample', accuracy, 'Apache-2.0', '## Limits', '## Use', 'has not been audited'):
        assert part in card(copied)
    told = write_card(copied)
    assert told == copied.path/'model_card.md' and told.read_text() == card(copied)
    (copied.path/'record.json').write_text(json.dumps({**copied.record, 'test': {}}))
    for script in ('artinsight_export', 'artinsight_app'):
        done = call(script, copied.path)
        assert done.returncode == 2 and 'Traceback' not in done.stderr, done.stderr
        assert done.stderr.splitlines()[-1].endswith('train the run again')


def test_an_audit_stands_in_card_hub_folder_and_page(copied, sample, tmp_path):
    from artinsight.trust.audit import audit, limits
    said = limits(audit(copied.path, sample, robustness=False, sample=40, device='cpu'))
    assert len(said) > 3 and all(f'- {words}' in card(copied) for words in said)
    to_hub(copied, tmp_path/'hub')
    texts = (tmp_path/'hub/README.md').read_text(), card(load_run(tmp_path/'hub'))
    assert all(words in text for words in said for text in texts)
    (copied.path/'audit.json').write_text('{"shortcuts": [3]}')
    assert 'cannot be read' in card(copied)
    pytest.importorskip('gradio', reason='the page needs gradio')
    page = build_app(load_run(tmp_path/'hub'))
    about = [block.value for block in page.blocks.values() if type(block).__name__ == 'Markdown']
    assert any(said[0] in words for words in about)


def test_the_page_takes_uploads_clipboard_and_webcam_and_is_shared_on_request(runs, run, monkeypatch, capsys):
    gradio = pytest.importorskip('gradio', reason='the page needs gradio')
    images = [block for block in build_app(run).blocks.values() if isinstance(block, gradio.Image)]
    assert [image.sources for image in images] == [['upload', 'clipboard', 'webcam']]
    launched = []
    def launch(page, **given):
        page.local_url, page.share_url = 'http://127.0.0.1:7999/', None  # as where Gradio's servers cannot be reached
        launched.append(given)
    monkeypatch.setattr(gradio.Blocks, 'launch', launch)
    as_a_guest(monkeypatch)
    for words in ([], ['--share', '--port', '7999']):
        monkeypatch.setattr(sys, 'argv', ['artinsight_app', str(runs/'simple_cnn'), *words])
        artinsight_app()
        said = capsys.readouterr()
        assert said.out == 'http://127.0.0.1:7999/\n' and said.err.count('\n') == len(words[:1])
        assert ('No public link' in said.err) == bool(words)
    asked = [(given['share'], given['server_port'], given['server_name']) for given in launched]
    assert asked == [(False, None, '127.0.0.1'), (True, 7999, '127.0.0.1')]


BAD_WORDS = [(('--port', '70000'), '1 to 65535'), (('--device', 'gpu'), 'no device'),
             (('--data', '/nowhere'), 'no such folder'), (('--port', None), 'is taken')]


@pytest.mark.parametrize('words, why', BAD_WORDS)
def test_the_app_refuses_bad_words_in_one_line(runs, monkeypatch, capsys, words, why):
    pytest.importorskip('gradio', reason='the page needs gradio')
    as_a_guest(monkeypatch)
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        monkeypatch.setattr(sys, 'argv', ['artinsight_app', str(runs/'simple_cnn'), words[0], words[1] or port])
        with pytest.raises(SystemExit) as end: artinsight_app()
    said = capsys.readouterr()
    assert end.value.code == 2 and why in said.err.splitlines()[-1] and said.out == ''


def test_without_gradio_there_is_one_clear_line(run, monkeypatch):
    monkeypatch.setitem(sys.modules, 'gradio', None)
    with pytest.raises(ImportError, match=r"gradio is missing: pip install 'artinsight\[app\]'"): serve(run)
