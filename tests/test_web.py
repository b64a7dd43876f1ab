"The page without a server: a static folder in a real Chromium, beside `predict` and Grad-CAM."
import functools
import json
import threading
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image, ImageCms

from artinsight.data import index
from artinsight.use.predict import as_batch, load_run
from artinsight.use.web import runtime_files, to_web

import axe
import browsing
from hostile import hostile


@pytest.fixture(scope='module')
def run(runs): return load_run(runs/'simple_cnn')


@pytest.fixture(scope='module')
def pictures(sample): return sorted((sample/'test').glob('*/*.jpg'))


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_): pass


@contextmanager
def serving(folder):
    "A plain file server: its address."
    server = ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()
    server.server_close()


@pytest.fixture(scope='module')
def bundled(run, sample, tmp_path_factory):
    "The folder of a run with a map, with its runtime."
    for module in ('onnx', 'onnxruntime', 'onnxscript'):
        pytest.importorskip(module, reason='ONNX needs the extra export')
    try: runtime_files()
    except OSError as error: pytest.skip(f'no onnxruntime-web: {error}')
    folder = tmp_path_factory.mktemp('web')
    facts = to_web(run, folder, index(sample), bundle=True)
    assert facts['largest_difference'] < 1e-4 and facts['map_difference'] < 1e-4
    return folder


visiting = functools.partial(browsing.visiting, ready='body[data-ready=yes]')


@pytest.fixture(scope='module')
def page(browser, bundled):
    with serving(bundled) as address, visiting(browser, address) as page: yield page


def ask(page, file):
    "What the page answers about a file: its numbers, or a message."
    page.evaluate("document.querySelectorAll('#answer, #verdict').forEach(o => o.replaceChildren())")
    page.locator('#file').set_input_files([])
    page.locator('#file').set_input_files(str(file))
    page.wait_for_selector('#numbers, [role=alert]', state='attached', timeout=60_000)
    if page.locator('[role=alert]').count(): return page.locator('[role=alert]').inner_text()
    return json.loads(page.locator('#numbers').text_content())


def show(page, kind): page.locator(f'[name=target][value={kind}]').check()


@pytest.mark.parametrize('count', [10, pytest.param(50, marks=pytest.mark.slow)])
def test_pictures_get_the_same_answers(page, run, pictures, count):
    "Large and small ones, upright and wide; and the same map for class, origin and style"
    apart, maps_apart = [], []
    for file in pictures[::len(pictures) // count][:count]:
        show(page, 'class')
        answer, pixels = ask(page, file), as_batch(file, run.size)
        [row], probs = run.judge(run.probs(pixels)), run.probs(pixels)[0]
        apart.append(np.abs(probs - answer['probabilities']).max())
        assert answer['class'] == row['class'] and answer['style'] == row['style'] and answer['origin'] == row['origin']
        for kind in ('class', 'origin', 'style'):
            show(page, kind)
            drawn = json.loads(page.locator('#numbers').text_content())['map']
            exact = run.explain(pixels, row['origin'] if kind == 'origin' else kind)[0]
            assert drawn['asked'] == exact['asked']
            maps_apart.append(np.abs(np.ravel(exact['map']) - drawn['cells']).max())
    assert max(apart) < .01 and max(maps_apart) < .02, (max(apart), max(maps_apart))
    print(f'probabilities differ by {max(apart):.2g}, maps by {max(maps_apart):.2g}')


def odd_pictures(folder, art):
    "Pictures that are easily read in another way."
    exif = Image.Exif()
    exif[0x0112] = 6
    art.save(folder/'turned.jpg', exif=exif, quality=95)
    glass = art.convert('RGBA')
    glass.putalpha(Image.linear_gradient('L').resize(art.size))
    glass.save(folder/'glass.png')
    swapped = ImageCms.ImageCmsProfile(ImageCms.createProfile('LAB')).tobytes()
    art.save(folder/'profile.png', icc_profile=swapped)
    art.convert('L').save(folder/'grey.jpg')
    art.convert('P').save(folder/'film.gif', save_all=True, append_images=[Image.new('P', art.size, 3)] * 3)
    art.save(folder/'web.webp', quality=90)
    art.save(folder/'old.bmp')
    art.resize((3000, 2000)).save(folder/'large.jpg', quality=90)
    art.resize((40, 900)).save(folder/'thin.png')
    Image.new('RGB', (1, 1), 'red').save(folder/'dot.png')
    Image.fromarray(np.asarray(art.convert('L')).astype(np.uint16) * 257).save(folder/'deep.png')
    return sorted(folder.iterdir())


def test_odd_pictures_get_the_same_answers(page, run, pictures, tmp_path):
    for file in odd_pictures(tmp_path, Image.open(pictures[0]).convert('RGB').resize((300, 200))):
        answer = ask(page, file)
        assert isinstance(answer, dict), (file.name, answer)
        apart = np.abs(run.probs(as_batch(file, run.size))[0] - answer['probabilities']).max()
        assert apart < .01, (file.name, apart)


@pytest.mark.parametrize('count', [30, pytest.param(60, marks=pytest.mark.slow)])
def test_hostile_files_get_a_message_and_the_page_goes_on(page, pictures, tmp_path, count):
    refused = 0
    for file in hostile(tmp_path, pictures[0], count):
        answer = ask(page, file)
        refused += isinstance(answer, str)
        assert isinstance(answer, dict) or 'cannot be read' in answer, (file.name, answer)
    assert refused > count / 4
    assert isinstance(ask(page, pictures[0]), dict)


@pytest.mark.parametrize('width, dark', [(1280, False), (390, True)])
def test_how_it_looks(browser, runs, bundled, pictures, tmp_path_factory, width, dark):
    "The map is beside the picture, nothing is wider than the page, the slider and the choice work by keyboard"
    with serving(bundled) as address, visiting(browser, address, width, dark) as page:
        ask(page, pictures[0])
        assert page.locator('#warning').inner_text().startswith('This model has only seen the painted sample')
        assert page.locator('[role=meter]').get_attribute('aria-label').startswith('Origin: human')
        assert width < 1000 or page.locator('#heat').bounding_box()['y'] < 450
        assert page.locator('.alarms tbody tr').count() == len(load_run(runs/'simple_cnn').alarms())
        assert page.evaluate('document.documentElement.scrollWidth') <= width
        page.locator('#opacity').focus()
        page.keyboard.press('End')
        assert page.evaluate("getComputedStyle(document.querySelector('#heat')).opacity") == '1'
        page.keyboard.press('Home')
        assert page.evaluate("getComputedStyle(document.querySelector('#heat')).opacity") == '0'
        page.evaluate("document.querySelector('#opacity').value = 50; document.querySelector('#opacity').oninput()")
        page.screenshot(path=str(shot := tmp_path_factory.getbasetemp()/f'web-{width}.png'), full_page=True)
        print(shot)


@pytest.mark.parametrize('width, dark', [(1280, False), (390, True)])
def test_no_serious_fault_for_a_screen_reader(browser, bundled, pictures, tmp_path, width, dark):
    "By axe-core: without a picture, with an answer, and with a file that is none"
    (tmp_path/'note.jpg').write_text('not a picture')
    with serving(bundled) as address, visiting(browser, address, width, dark) as page:
        faults = {'nothing chosen': axe.faults(page)}
        ask(page, pictures[0])
        page.locator('summary').click()
        faults['answered'] = axe.faults(page)
        ask(page, tmp_path/'note.jpg')
        faults['no picture'] = axe.faults(page)
    assert not any(faults.values()), {state: found for state, found in faults.items() if found}


def test_it_answers_when_the_net_is_gone(browser, bundled, pictures):
    with serving(bundled) as address:
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector('body[data-ready=yes]', timeout=120_000)
        page.context.set_offline(True)
        assert isinstance(ask(page, pictures[0]), dict)
        page.context.set_offline(False)
        page.close()


def test_a_changed_runtime_is_refused(browser, bundled, tmp_path):
    for name in bundled.iterdir(): (tmp_path/name.name).write_bytes(name.read_bytes())
    with open(tmp_path/'ort.wasm.bundle.min.mjs', 'a') as script: script.write('\n// not what npm published')
    with serving(tmp_path) as address:
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector('[role=alert]', timeout=60_000)
        assert 'cannot work here' in page.locator('[role=alert]').inner_text()
        page.close()


def test_a_page_without_a_map_says_so(browser, runs, bundled, pictures, tmp_path):
    "Settings as of a network that has none"
    for name in bundled.iterdir(): (tmp_path/name.name).write_bytes(name.read_bytes())
    settings = json.loads((tmp_path/'settings.json').read_text())
    (tmp_path/'settings.json').write_text(json.dumps({**settings, 'map': None, 'no_map': 'No heat map: because.'}))
    with serving(tmp_path) as address, visiting(browser, address) as page:
        assert 'map' not in ask(page, pictures[0])
        assert page.locator('#no-map').inner_text() == 'No heat map: because.'
        assert not page.locator('#heat').is_visible() and not page.locator('#opacity').is_visible()


def test_a_folder_is_written_again_and_nobody_elses(run, sample, bundled, tmp_path):
    (tmp_path/'index.html').write_text('my home page')
    with pytest.raises(FileExistsError, match='not made by this artinsight'): to_web(run, tmp_path, index(sample))
    assert [path.name for path in tmp_path.iterdir()] == ['index.html']
    assert {path.name for path in bundled.iterdir()} == {
        'index.html', 'style.css', 'script.js', 'settings.json', 'model.onnx', 'model_card.md',
        'ort.wasm.bundle.min.mjs', 'ort-wasm-simd-threaded.wasm'}
