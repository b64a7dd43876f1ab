"""The pages: all there, linked, self-contained, readable on a phone, without traces of directives."""
import importlib.util
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output, new_raw_cell

ROOT = Path(__file__).resolve().parent.parent
MODELS = ('simple_cnn', 'resnet18_base', 'resnet18_aggressive', 'resnet18_augmented', 'resnet18_best')


@pytest.fixture(scope='module')
def builder():
    "tools/pages.py as a module of its own."
    spec = importlib.util.spec_from_file_location('pages', ROOT/'tools/pages.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Page(HTMLParser):
    "A page's ids, links, resources and text."
    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.resources, self.images, self.words = set(), [], [], 0, []
        self.label = None
        self.feed(path.read_text(encoding='utf-8'))

    def handle_endtag(self, tag):
        if tag == self.label: self.label = None

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids.add(found.get('id'))
        if tag == 'a': self.links.append(found.get('href', ''))
        if tag == 'img':
            self.images += 1
            assert found.get('alt') or ('alt' in found and self.label), 'a picture without words for those who cannot see it'
        if found.get('role') == 'img' and found.get('aria-label'): self.label = tag  # its words stand for the pictures in it
        self.resources += [found[name] for name in ('src', 'srcset', 'poster', 'data') if found.get(name)]
        if tag == 'link': self.resources.append(found.get('href', ''))

    def handle_data(self, data): self.words.append(data)

    @property
    def text(self): return ''.join(self.words)


@pytest.fixture(scope='module')
def processed(builder):
    "What nbdev makes of the committed notebooks: `make check` has just made it, else it is made now."
    return builder.process(ROOT)


@pytest.fixture(scope='module')
def site(builder, processed, tmp_path_factory):
    "The pages of the committed notebooks."
    folder = tmp_path_factory.mktemp('site')
    builder.build(processed, folder)
    return folder


@pytest.fixture(scope='module')
def pages(site): return {path.name: Page(path) for path in site.glob('*.html')}


def test_nbdev_makes_sound_pages_of_all_notebooks(builder, processed):
    assert [*builder.mixed_cells(ROOT), *builder.spoilt_pages(processed)] == []


def test_every_notebook_has_a_page_that_links_to_all_others(builder, pages):
    names = {builder.page_name(path) for path in (ROOT/'nbs').glob('*.ipynb')}
    assert set(pages) == names
    for page in pages.values(): assert names <= set(page.links)


def test_internal_links_lead_somewhere(pages):
    dead = []
    for name, page in pages.items():
        for link in page.links:
            if re.match(r'[a-z]+:', link): continue
            target, _, anchor = link.partition('#')
            other = pages.get(target or name)
            if other is None or (anchor and anchor not in other.ids): dead.append(f'{name}: {link}')
    assert not dead


def test_nothing_is_fetched_from_elsewhere(site, pages):
    for name, page in pages.items():
        assert [source[:60] for source in page.resources if re.match(r'(https?:)?//', source)] == [], name
        assert '<script' not in (site/name).read_text(), name
        assert (site/'favicon.svg').exists() and (site/'card.png').stat().st_size < 10_000
    for sheet in site.glob('*.css'): assert not re.search(r'@import|url\(\s*["\']?(https?:)?//', sheet.read_text())


def test_no_directive_and_no_hidden_cell_is_left(pages):
    for name, page in pages.items():
        assert not re.search(r'^\s*#\s?\|', page.text, re.M), name
        assert ':::' not in page.text and '{=html}' not in page.text, name
        assert 'ARTINSIGHT_SOURCE' not in page.text, name


def test_report_shows_five_models_with_confusion_and_heat_maps(site, pages):
    report = pages['report.html']
    for model in MODELS: assert model in report.text
    body = (site/'report.html').read_text()
    sections = re.split(r'<h3', body.split('id="results"')[1].split('id="conclusions"')[0])[1:]
    *of_models, together = sections
    assert len(of_models) == 5
    for section in of_models:
        assert section.count('<img') == 2, 'a confusion matrix, and right and wrong pictures'
        right, wrong = map(int, re.search(r'Heat maps of layer <code>.*?</code>: pictures classified rightly: (\d+), wrongly: (\d+)', section).groups())
        assert right and wrong
        assert 'data: ' in section and 'init: ' in section and 'quick: ' in section
    together, believed, _ = together.split('<h2')  # the last begins the conclusions
    assert together.count('<img') == 1 and 'The same pictures' in together
    for model in MODELS: assert re.search(rf'<code>{model}</code>, maps of .*?: <strong>.+</strong>', believed), model
    assert 'can’t be trusted with' in report.text, 'with the typographic quotes of Quarto and pandoc'


def test_what_a_model_cannot_be_trusted_with_has_a_page(site, pages):
    assert 'trust.html' in pages['report.html'].links
    page, body = pages['trust.html'], (site/'trust.html').read_text()
    assert 'What this page stands on' in page.text and 'Do not trust' in page.text
    parts = {found.group(1): found.group(0) for found in re.finditer(r'<h2 id="([^"]+)".*?(?=<h2|<nav class="turn")', body, re.S)}
    assert parts['what-can-be-told-without-looking-at-the-art'].count('<img') == 3  # origin, generator, style
    assert '<img' in (changes := parts['what-other-ways-of-saving-and-damage-do-to-it']) and 'one resize, one JPEG pass' in changes and 'JPEG 20' in changes
    assert 'stand across training and test' in parts['copies']
    assert 'have a sibling in training' in parts['relatives'] and 'by artists in training' in parts['relatives']
    assert 'generators-that-it-has-not-seen' in parts and 'beyond-what-can-be-measured-here' in parts


def test_rendering_keeps_what_a_reader_should_see(builder, tmp_path):
    "A processed notebook with one cell of each kind, as nbdev 2.4 leaves them."
    front = '---\ncode-links:\n- href: https://colab.research.google.com/it\n  text: Run on Colab\ndescription: A summary\noutput-file: data.html\ntitle: Title of `it`\n\n---\n\n'
    address = 'https://artinsight.github.io/artinsight'
    spoken = new_output('stream', name='stdout', text='spoken aloud')
    signature = f'---\n\n### parts\n\n```python\ndef parts(\n    x:int, # how many\n):\n```\n\n*See [`parts`]({address}/data.html#parts) and [`realism`]({address}/sample.html#realism).*'
    notebook = new_notebook(cells=[
        new_raw_cell(front),
        new_markdown_cell('## A heading, *here*\n\nSee [it](00_data.ipynb#a-heading-here) and ![badge](https://example.org/badge.svg).'),
        new_code_cell('#| echo: false\nunseen = 3', outputs=[new_output('display_data', {'text/html': '<style scoped>tr {}</style><table><tr><td>cell</td></tr></table>'})]),
        new_code_cell('#| include: false\nsecret = 1', outputs=[spoken]),
        new_code_cell('#| output: false\nseen = 4', outputs=[new_output('stream', name='stdout', text='kept quiet')]),
        new_code_cell('#| echo: false\n#| output: asis\nshow_doc(parts)', outputs=[new_output('execute_result', {'text/markdown': signature, 'text/plain': 'unseen'})]),
        new_code_cell('#| fig-alt: "A red dot"\nplot()', outputs=[spoken, new_output('display_data', {'image/png': 'aGk=', 'text/plain': 'unseen'})]),
        new_code_cell('warn()', outputs=[new_output('stream', name='stderr', text='noise of progress')])])
    nbformat.write(notebook, tmp_path/'00_data.ipynb')
    builder.build(tmp_path, tmp_path/'out')
    page, body = Page(tmp_path/'out/data.html'), (tmp_path/'out/data.html').read_text()
    for word in ('secret', 'unseen', 'kept quiet', 'noise of progress', '#|', 'example.org', '<style'): assert word not in body, word
    for word in ('spoken aloud', 'cell', 'seen', 'def parts', 'badge', 'A summary', 'Run on Colab'): assert word in page.text, word
    assert body.count('spoken aloud') == 1 and body.count('alt="A red dot"') == 1
    assert 'data.html#a-heading-here' in page.links and {'a-heading-here', 'parts'} <= page.ids
    assert 'data.html#parts' in page.links and 'sample.html#realism' not in page.links, 'a word links to its own page only'
    assert len(re.findall(r'<details class="code">\s*<summary>\s*Code\s*</summary>', body)) == 3, 'each piece of code is folded'


def test_readme_is_what_a_reader_of_the_index_sees(builder):
    notebook = new_notebook(cells=[
        new_markdown_cell('# It\n\n[page](12_report.ipynb)'), new_code_cell('#| hide\nsecret = 1'),
        new_code_cell('#| echo: false\nunseen = 1', outputs=[new_output('execute_result', {'text/markdown': '| a |\n|---|\n| 1 |', 'text/plain': 'Markdown'})]),
        new_code_cell('1 + 1', outputs=[new_output('stream', name='stdout', text='2')])])
    words = builder.readme(notebook)
    assert '[page](nbs/12_report.ipynb)' in words and '| a |\n|---|\n| 1 |' in words and '```python\n1 + 1\n```\n\n```\n2\n```' in words
    assert 'secret' not in words and 'unseen' not in words


def project(folder, cells):
    "A project of a few small notebooks: name -> source of its code cells."
    for name in ('nbs', 'artinsight', 'results'): (folder/name).mkdir(parents=True)
    for name in ('settings.ini', 'setup.py', '_quarto.yml', '.gitignore', 'nbs/styles.css', 'nbs/links.lua'): shutil.copy(ROOT/name, folder/name)
    (folder/'README.md').touch()
    for name, sources in cells.items():
        cells = [new_code_cell(source) for source in ([sources] if isinstance(sources, str) else sources)]
        nbformat.write(new_notebook(cells=[new_markdown_cell('# It'), *cells]), folder/'nbs'/name)


FAULTS = {
    'an import beside a test': (['#| default_exp good', '#| export\ndef good(): return 1', 'import json\ntest_eq(json.loads("1"), 1)'], '00_bad.ipynb, cell'),
    'an import within a function': (['#| default_exp good', '#| export\ndef good(): return 1', 'def later():\n    import json'], '00_bad.ipynb, cell'),
    'an import before a loop': (['#| default_exp good', '#| export\ndef good(): return 1', 'import json\nfor name in names: json.loads(name)'], '00_bad.ipynb, cell'),
    'a table as a default': (['#| default_exp good', '#| export\nimport pandas as pd\nTABLE = pd.DataFrame({"a": [1, 2]})',
                              '#| export\ndef good(x: pd.DataFrame = TABLE): return x'], 'show_doc(good)): a traceback'),
    'backticks in a comment': (['#| default_exp good', '#| export\ndef good(\n    x: int,  # as `good` has it\n): return x'], 'show_doc(good)): a raw link'),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_a_planted_fault_spoils_the_pages_and_is_named(builder, tmp_path, monkeypatch, fault):
    "The faults that once kept the site from being published, and their kin, each in a project of two notebooks, the other of which is sound."
    sources, named = FAULTS[fault]
    project(tmp_path/'site', {'00_bad.ipynb': sources, 'index.ipynb': ['import json', 'json.dumps(1)']})
    monkeypatch.setattr(builder, 'ROOT', tmp_path/'site')
    for module, call in (('doclinks', 'nbdev_export()'), ('clean', 'nbdev_clean()')): builder.nbdev(module, call, tmp_path/'site')
    (tmp_path/'site/README.md').write_text(builder.readme(builder.read(tmp_path/'site/nbs/index.ipynb')))
    with pytest.raises(SystemExit) as stopped: builder.check()
    assert named in str(stopped.value) and 'index.ipynb' not in str(stopped.value)


def test_only_changed_notebooks_are_executed_again_and_a_failing_one_is_named(builder, tmp_path, monkeypatch):
    count = 'with open("count-{}", "a") as file: file.write("x")'
    project(tmp_path, {'index.ipynb': count.format(0), '00_data.ipynb': count.format(1)})
    monkeypatch.setattr(builder, 'ROOT', tmp_path)
    runs, proc = tmp_path/'runs', tmp_path/'_executed'
    def counts(): return [(proc/f'nbs/count-{number}').read_text() for number in (0, 1)]
    builder.execute_all(runs, proc)
    builder.execute_all(runs, proc)
    assert counts() == ['x', 'x']
    nbformat.write(new_notebook(cells=[new_code_cell(count.format(1) + '\nprint(1)')]), tmp_path/'nbs/00_data.ipynb')
    builder.execute_all(runs, proc)
    assert counts() == ['x', 'xx'], 'only the notebook that changed'
    (tmp_path/'artinsight/data.py').write_text('changed = True')
    nbformat.write(new_notebook(cells=[new_code_cell('print(0)'), new_code_cell('1 / 0')]), tmp_path/'nbs/00_data.ipynb')
    with pytest.raises(SystemExit, match='00_data.ipynb') as stopped: builder.execute_all(runs, proc)
    assert 'index' not in str(stopped.value)
    assert counts()[0] == 'xx', 'all notebooks, when the package changed'
    assert not (tmp_path/'nbs/count-0').exists(), 'the tree stays clean'


def test_a_cut_off_file_of_keys_knows_no_notebook_and_writing_is_all_or_nothing(builder, tmp_path, monkeypatch):
    keys = tmp_path/'keys.json'
    keys.write_text('{"index.ipynb": "12')
    assert builder.known_keys(keys) == builder.known_keys(tmp_path/'none.json') == {}
    builder.write(keys, '{"index.ipynb": "34"}')
    assert builder.known_keys(keys) == {'index.ipynb': '34'}
    def cut(*names): raise KeyboardInterrupt
    monkeypatch.setattr(builder.os, 'replace', cut)
    with pytest.raises(KeyboardInterrupt): builder.write(keys, '{}')
    assert builder.known_keys(keys) == {'index.ipynb': '34'}


def test_slow_cells_keep_their_outputs(builder, tmp_path):
    notebook = new_notebook(cells=[new_code_cell('#| slow\nraise SystemError', outputs=[new_output('stream', name='stdout', text='of long ago')]),
                                   new_code_cell('print(1)')])
    nbformat.write(notebook, tmp_path/'a.ipynb')
    assert builder.execute(tmp_path/'a.ipynb', tmp_path/'b.ipynb', None) is None
    slow, other = nbformat.read(tmp_path/'b.ipynb', 4).cells
    assert slow.outputs[0].text == 'of long ago' and other.outputs[0].text == '1\n' and 'tags' not in slow.metadata


@pytest.mark.parametrize('width, scheme', [(390, 'light'), (390, 'dark'), (1280, 'light')])
def test_pages_fit_the_screen(browser, site, width, scheme):
    context = browser.new_context(viewport={'width': width, 'height': 800}, color_scheme=scheme)
    screen, asked = context.new_page(), []
    screen.on('request', lambda request: asked.append(request.url))
    for path in sorted(site.glob('*.html')):
        screen.goto(path.as_uri())
        assert screen.evaluate('document.documentElement.scrollWidth') <= width, path.name
        dark = screen.evaluate('getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).every(part => part < 90)')
        assert dark == (scheme == 'dark'), path.name
    assert not [url for url in asked if not url.startswith(('file:', 'data:'))]
    context.close()


def test_menu_opens_on_a_phone(browser, site):
    screen = browser.new_page(viewport={'width': 390, 'height': 800})
    screen.goto((site/'index.html').as_uri())
    menu = screen.locator('nav.pages')
    assert not menu.is_visible()
    screen.locator('label.menu').click()
    assert menu.is_visible()
    menu.get_by_text('Data', exact=True).click()
    assert screen.url.endswith('data.html')
    screen.close()


def test_tables_and_code_stay_in_their_box(browser, site):
    "At 390 px: a wide table scrolls by itself, the report's accuracies are seen without scrolling, printed words wrap."
    screen = browser.new_page(viewport={'width': 390, 'height': 800})
    for path in sorted(site.glob('*.html')):
        screen.goto(path.as_uri())
        screen.evaluate('document.querySelectorAll("details").forEach(fold => fold.open = true)')
        cut = screen.evaluate("""[...document.querySelectorAll('main pre, main img, main table')].filter(part => {
            let box = part.tagName == 'IMG' ? part.parentElement : part;   // a dense figure scrolls in its own box
            while (box.tagName != 'MAIN' && getComputedStyle(box).overflowX == 'visible') box = box.parentElement;
            const edge = box.tagName == 'MAIN' ? part : box;
            return edge.getBoundingClientRect().right > innerWidth || part.tagName == 'PRE' && part.scrollWidth > part.clientWidth + 1;
        }).map(part => part.outerHTML.slice(0, 80))""")
        assert screen.evaluate('document.documentElement.scrollWidth <= innerWidth'), path.name
        assert cut == [], path.name
    screen.close()


def quarto(folder):
    """A stand-in for the program Quarto, put on the path by its caller.

    Stands for: Quarto 1.10, of which nbdev 2.4 (quarto.py, nbdev_docs) calls `quarto render --no-cache` in `_proc` and moves `_proc/_docs` away.
    Known from: nbdev 2.4.14's source; Quarto itself cannot be had on every machine.
    As awkward: it refuses what lies outside of a project, any other command, and a folder without the assets that _quarto.yml names.
    """
    folder.mkdir()
    (folder/'quarto').write_text('''#!/bin/sh
[ "$*" = "render --no-cache" ] || { echo "unknown: $*" >&2; exit 2; }
for file in _quarto.yml styles.css links.lua favicon.svg card.png; do [ -f "$file" ] || { echo "ERROR: $file is missing" >&2; exit 1; }; done
mkdir -p _docs && ls > _docs/index.html && pwd > _docs/where.txt
''')
    (folder/'quarto').chmod(0o755)


def test_quarto_is_used_where_it_is(builder, tmp_path, monkeypatch, capsys):
    "On the executed copy, by nbdev_docs itself, which leaves README.md alone."
    copy = tmp_path/'_executed'
    project(copy, {'index.ipynb': '1', '00_data.ipynb': '2'})
    for name in ('favicon.svg', 'card.png', '_quarto.yml'): shutil.copy(ROOT/'nbs'/name, copy/'nbs')
    (copy/'artinsight/__init__.py').write_text('__version__ = "0.1.0"\n')
    (copy/'README.md').write_text('ours')
    os.utime(copy/'README.md', (0, 0))
    quarto(tmp_path/'bin')
    monkeypatch.setenv('PATH', f'{tmp_path}/bin', prepend=':')
    monkeypatch.setattr(builder, 'ROOT', tmp_path)
    builder.publish(copy)
    seen = (tmp_path/'_docs/index.html').read_text().split()
    assert {'00_data.ipynb', 'index.ipynb'} <= set(seen)
    assert (copy/'README.md').read_text() == 'ours', 'README is made by tools/pages.py alone'
    assert 'Quarto' in capsys.readouterr().out


def test_quarto_from_the_registry_is_tried_once_for_each_setup(builder, tmp_path, monkeypatch):
    calls = []
    (tmp_path/'.venv').mkdir()
    monkeypatch.setattr(builder, 'ROOT', tmp_path)
    monkeypatch.setattr(builder.shutil, 'which', lambda name: None)
    monkeypatch.setattr(builder.subprocess, 'run', lambda command, **options: calls.append(command))
    assert builder.quarto() is builder.quarto() is None
    assert len(calls) == 1 and 'quarto-cli' in calls[0]
    assert '.venv/.quarto-tried' in (ROOT/'.ci/setup').read_text(), 'a new set-up tries again'
