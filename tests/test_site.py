"""The pages: all there, linked, self-contained, readable on a phone, without traces of directives."""
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
        given = dict(attributes)
        self.ids.add(given.get('id'))
        if tag == 'a': self.links.append(given.get('href', ''))
        if tag == 'img':
            self.images += 1
            assert given.get('alt') or ('alt' in given and self.label), 'no words for those who cannot see the picture'
        # An aria-label stands for the pictures in it.
        if given.get('role') == 'img' and given.get('aria-label'): self.label = tag
        self.resources += [given[name] for name in ('src', 'srcset', 'poster', 'data') if given.get(name)]
        if tag == 'link': self.resources.append(given.get('href', ''))

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
def pages(site): return {path.relative_to(site).as_posix(): Page(path) for path in site.rglob('*.html')}


def target(name, link):
    "Where a link or a resource on a page leads: a path from the site's root."
    return os.path.normpath(os.path.join(os.path.dirname(name), link)) if link else name


def test_nbdev_makes_sound_pages_of_all_notebooks(builder, processed):
    assert [*builder.mixed_cells(ROOT), *builder.spoilt_pages(processed)] == []


def test_every_notebook_has_a_page_that_links_to_all_others(builder, pages):
    names = {builder.page_name(name) for name in builder.notebooks(ROOT/'nbs')}
    assert set(pages) == names | {'slides.html'} and {'index.html', 'engine/store.html'} <= names
    for name in names: assert names | {'slides.html'} <= {target(name, link) for link in pages[name].links}, name
    for name in names: assert 'how-to-change-it' in ' '.join(pages[name].links), name


def test_pages_are_where_nbdev_puts_them(builder, processed, pages):
    """Its links to functions lead there; each page has a name of its own, by which links.lua knows whether it is on the
    function's page."""
    from artinsight._modidx import d
    addresses = {where.partition('#')[0] for module in d['syms'].values() for where, _ in module.values()}
    assert {'data.html', 'engine/store.html'} <= addresses and addresses <= pages.keys()
    for name in builder.notebooks(processed):
        front = builder.read(processed/name).cells[0].source
        assert re.search(r'^output-file: (.+)$', front, re.M)[1] == os.path.basename(builder.page_name(name))
    assert len({os.path.basename(name) for name in pages}) == len(pages)


def test_internal_links_lead_somewhere(pages):
    dead = []
    for name, page in pages.items():
        for link in page.links:
            if re.match(r'[a-z]+:', link): continue
            file, _, anchor = link.partition('#')
            other = pages.get(target(name, file))
            if other is None or (anchor and anchor not in other.ids): dead.append(f'{name}: {link}')
    assert not dead


def test_nothing_is_fetched_from_elsewhere(site, pages):
    for name, page in pages.items():
        assert [source[:60] for source in page.resources if re.match(r'(https?:)?//', source)] == [], name
        files = [source for source in page.resources if not source.startswith('data:')]
        assert {'favicon.svg', 'styles.css', 'page.css'} <= {target(name, source) for source in files}
        assert [source for source in files if not (site/target(name, source)).is_file()] == [], name
        assert ('<script' in (site/name).read_text()) == (name == 'report.html'), 'to sort its appendix'
        assert (site/'favicon.svg').exists() and (site/'card.png').stat().st_size < 10_000
    for sheet in site.glob('*.css'): assert not re.search(r'@import|url\(\s*["\']?(https?:)?//', sheet.read_text())


def test_no_directive_and_no_hidden_cell_is_left(site, pages):
    for name, page in pages.items():
        prose = re.sub('<pre.*?</pre>', '', (site/name).read_text(), flags=re.S)
        assert not re.search(r'^\s*#\s?\|', page.text, re.M), name
        assert ':::' not in prose and '{=html}' not in page.text, name
        assert not re.search(r'\]\s*\(https?:', re.sub('<[^>]+>', '', prose)), f'{name}: a raw link'
        assert 'ARTINSIGHT_SOURCE' not in page.text, name


def test_report_shows_five_models_with_confusion_and_heat_maps(site, pages):
    report, body = pages['report.html'], (site/'report.html').read_text()
    figures = dict(re.findall(r'<figure id="([^"]+)"(.*?)\n</figure>\n(?!<figcaption)', body, re.S))
    for model in MODELS:
        assert model in report.text
        row = figures[f'fig-{model.replace("_", "-")}']
        assert row.count('<img') == 2, 'a confusion matrix, and right and wrong pictures'
        assert f'Confusion matrix of {model}' in row and 'beside its map' in row and 'taken for' in row
        assert re.search(rf'<code>{model}</code>, maps of .*?: <strong>.+</strong>', body), model
    for words in ('data: ', 'weights: ', 'quick: '): assert report.text.count(words) > len(MODELS)
    assert figures['fig-models'].count('<img') == 1
    assert 'can’t be trusted with' in report.text, 'with the typographic quotes of Quarto and pandoc'


def test_report_is_a_paper(pages):
    "Its sections in the study's order, an abstract with figures in it, figures and tables in order, what it cites."
    report = pages['report.html']
    sections = ['Read this first', 'Abstract', 'The problem', 'The data', 'The approach', 'The setup', 'Results',
                'Explainability', 'Conclusions', 'Take-aways', 'What comes next', 'Where the time went', 'Literature']
    told = report.text.split('Run on Colab')[1]
    places = [re.search(rf'^\s*{words}\s*$', told, re.M).start() for words in sections]
    assert places == sorted(places)
    abstract = report.text.split('Abstract')[2].split('The problem')[0]
    assert 'Ovsianik' in abstract and len(re.findall(r'\d\d\.\d%', abstract)) > 5
    for kind in ('Figure', 'Table'):
        numbers = [int(number) for number in re.findall(rf'^{kind} (\d+)\. ', report.text, re.M)]
        assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) > 8
    cited = {link[5:] for link in report.links if link.startswith('#ref-')}
    assert cited == set(re.findall(r'@\w+\{(\w+),', (ROOT/'nbs/references.bib').read_text()))


def test_what_a_model_cannot_be_trusted_with_has_a_page(site, pages):
    assert 'trust/limits.html' in pages['report.html'].links
    page, body = pages['trust/limits.html'], (site/'trust/limits.html').read_text()
    assert 'What this page stands on' in page.text and 'Do not trust' in page.text
    sections = re.finditer(r'<h2 id="([^"]+)".*?(?=<h2|<nav class="turn")', body, re.S)
    parts = {section[1]: section[0] for section in sections}
    assert parts['what-can-be-told-without-looking-at-the-art'].count('<img') == 3  # origin, generator, style
    changes = parts['what-other-ways-of-saving-and-damage-do-to-it']
    for words in ('<img', 'one resize, one JPEG pass', 'JPEG 20'): assert words in changes
    assert 'stand across training and test' in parts['copies']
    assert 'have a sibling in training' in parts['relatives'] and 'by artists in training' in parts['relatives']
    assert 'generators-that-it-has-not-seen' in parts and 'beyond-what-can-be-measured-here' in parts


def test_rendering_keeps_what_a_reader_should_see(builder, tmp_path):
    "A processed notebook with one cell of each kind, as nbdev 2.4 leaves them, and another in a folder below."
    front = ('---\ncode-links:\n- href: https://colab.research.google.com/it\n  text: Run on Colab\n'
             'description: A summary\noutput-file: data.html\ntitle: Title of `it`\n\n---\n\n')
    address = 'https://artinsight.github.io/artinsight'
    spoken = new_output('stream', name='stdout', text='spoken aloud')
    signature = ('---\n\n### parts\n\n```python\ndef parts(\n    x:int, # how many\n):\n```\n\n'
                 f'*See [`parts`]({address}/data.html#parts) and [`realism`]({address}/sample.html#realism).*')
    table = {'text/html': '<style scoped>tr {}</style><table><tr><td>cell</td></tr></table>'}
    shown_doc = new_output('execute_result', {'text/markdown': signature, 'text/plain': 'unseen'})
    picture = new_output('display_data', {'image/png': 'aGk=', 'text/plain': 'unseen'})
    notebook = new_notebook(cells=[
        new_raw_cell(front),
        new_markdown_cell('## A heading, *here*\n\nSee [it](00_data.ipynb#a-heading-here), '
                          '[below](engine/07_store.ipynb) and ![badge](https://example.org/badge.svg).'),
        new_code_cell('#| echo: false\nunseen = 3', outputs=[new_output('display_data', table)]),
        new_code_cell('#| include: false\nsecret = 1', outputs=[spoken]),
        new_code_cell('#| output: false\nseen = 4', outputs=[new_output('stream', name='stdout', text='kept quiet')]),
        new_code_cell('#| echo: false\n#| output: asis\nshow_doc(parts)', outputs=[shown_doc]),
        new_code_cell('#| fig-alt: "A red dot"\nplot()', outputs=[spoken, picture]),
        new_code_cell('warn()', outputs=[new_output('stream', name='stderr', text='noise of progress')])])
    nbformat.write(notebook, tmp_path/'00_data.ipynb')
    (tmp_path/'engine').mkdir()
    below = f'[up](../00_data.ipynb#a-heading-here), [beside](08_precision.ipynb), [`parts`]({address}/data.html#parts)'
    cells = [new_raw_cell(front.replace('data.html', 'store.html')), new_markdown_cell(below)]
    nbformat.write(new_notebook(cells=cells), tmp_path/'engine/07_store.ipynb')
    builder.build(tmp_path, tmp_path/'out')
    page, body = Page(tmp_path/'out/data.html'), (tmp_path/'out/data.html').read_text()
    for word in ('secret', 'unseen', 'kept quiet', 'noise of progress', '#|', 'example.org', '<style'):
        assert word not in body, word
    for word in ('spoken aloud', 'cell', 'seen', 'def parts', 'badge', 'A summary', 'Run on Colab'):
        assert word in page.text, word
    assert body.count('spoken aloud') == 1 and body.count('alt="A red dot"') == 1
    assert 'data.html#a-heading-here' in page.links and {'a-heading-here', 'parts'} <= page.ids
    assert 'data.html#parts' in page.links
    assert 'sample.html#realism' not in page.links, 'a word links to its own page only'
    assert 'engine/store.html' in page.links
    links = Page(tmp_path/'out/engine/store.html').links
    assert {'../data.html#a-heading-here', 'precision.html', '../data.html', '../index.html'} <= set(links)
    assert '../data.html#parts' not in links
    folds = re.findall(r'<details class="code">\s*<summary>\s*Code\s*</summary>', body)
    assert len(folds) == 3, 'each piece of code is folded'


def test_code_that_follows_code_is_in_one_fold(builder):
    pieces = ['<details class="code"><summary>Code</summary>\n\na\n\n</details>',
              '<details class="code"><summary>Code</summary>\n\nb\n\n</details>']
    assert builder.references('\n\n'.join(pieces), {}) == pieces[0].replace('a\n', 'a\n\nb\n')


def test_labelled_cells_become_numbered_figures_and_tables(builder, tmp_path):
    """What Quarto does with labels, captions, references, citations and callouts: numbers count each kind by itself, a
    picture's own words come before its cell's, and pictures side by side have captions of their own."""
    front = '---\ndescription: A summary\noutput-file: data.html\ntitle: It\n\n---\n\n'
    def picture(**about): return new_output('display_data', {'image/png': 'aGk='}, metadata={'image/png': about})
    table = new_output('display_data', {'text/html': '<table><tr><td>cell</td></tr></table>'})
    cells = [
        new_raw_cell(front),
        new_markdown_cell('See @fig-one, @tbl-two and @fig-three [@liao2022].\n\n'
                          '::: {.callout-note title="Mark this"}\nwell\n:::\n\n::: {#refs}\n:::'),
        new_code_cell('#| label: fig-one\n#| fig-cap: "A *dot*."\n#| fig-alt: "old"\n#| classes: plot\n1',
                      outputs=[picture(alt='new "words"', width=40)]),
        new_code_cell('#| label: tbl-two\n#| tbl-cap: "A cell."\n2', outputs=[table]),
        new_code_cell('#| label: fig-three\n#| fig-cap: "Two."\n#| fig-subcap: ["left", "right"]\n'
                      '#| fig-alt: "dots"\n3', outputs=[picture(), picture()])]
    nbformat.write(new_notebook(cells=cells), tmp_path/'00_data.ipynb')
    (tmp_path/'talk.qmd').write_text('---\ntitle: Talk\n---\n\n## One\n\n{{< embed 00_data.ipynb#fig-one >}}\n')
    builder.build(tmp_path, tmp_path/'out')
    page, body = Page(tmp_path/'out/data.html'), (tmp_path/'out/data.html').read_text()
    for words in ('Figure 1. A dot.', 'Table 1. A cell.', 'Figure 2. Two.', '(a)\xa0left', '(b)\xa0right', 'Mark this'):
        assert words in page.text, words
    assert {'#fig-one', '#tbl-two', '#fig-three'} <= set(page.links) and 'ref-liao2022' in page.ids
    assert 'alt="new &quot;words&quot;" width="40"' in body and 'old' not in body and body.count('alt="dots"') == 2
    assert '<figure id="fig-one" class="plot">' in body and ':::' not in body
    assert body.index('Table 1.') < body.index('<td>cell') and body.index('alt="new') < body.index('<em>dot')
    talk = Page(tmp_path/'out/talk.html')
    assert 'A dot.' in talk.text and 'Figure' not in talk.text and talk.images == 1 and '{{' not in talk.text
    sitemap, words = ((tmp_path/'out'/name).read_text() for name in ('sitemap.xml', 'llms.txt'))
    assert '/data.html</loc>' in sitemap and '[It](' in words and 'A summary' in words


def test_a_callout_unfolds_and_a_tabset_reads_from_top_to_bottom(builder, tmp_path):
    "What Quarto does with them over several cells; without it the tabs are sections."
    cells = [new_raw_cell('---\ndescription: A summary\noutput-file: data.html\ntitle: It\n\n---\n\n'),
             new_markdown_cell('::: {.callout-tip collapse="true" title="Solution"}'),
             new_code_cell('#| code-fold: false\n40 + 2', outputs=[new_output('execute_result', {'text/plain': '42'})]),
             new_markdown_cell(':::'), new_markdown_cell('::: {.panel-tabset}'), new_markdown_cell('### First'),
             new_markdown_cell('one'), new_markdown_cell('### Second'), new_markdown_cell('two'),
             new_markdown_cell(':::'), new_markdown_cell('after')]
    nbformat.write(new_notebook(cells=cells), tmp_path/'00_data.ipynb')
    builder.build(tmp_path, tmp_path/'out')
    body = (tmp_path/'out/data.html').read_text()
    fold = re.search(r'<details class="callout-tip">\s*<summary>\s*Solution\s*</summary>(.*?)</details>', body, re.S)[1]
    assert '42' in fold and '<details' not in fold and ':::' not in body
    tabs = re.search(r'<div class="panel-tabset">(.*?)</div>', body, re.S)[1]
    assert re.findall('>(First|one|Second|two|after)<', tabs) == ['First', 'one', 'Second', 'two']


def test_tables_written_by_hand_have_captions_too(builder, tmp_path):
    "A caption below a table in Markdown, a cell's or one that was printed, is numbered among the others."
    def table(name): return f'| a |\n|---|\n| 1 |\n\n: A {name}. {{#tbl-{name}}}'
    printed = new_output('display_data', {'text/markdown': table('printed')})
    made = new_output('display_data', {'text/html': '<table><tr><td>cell</td></tr></table>'})
    cells = [new_raw_cell('---\ndescription: A summary\noutput-file: data.html\ntitle: It\n\n---\n\n'),
             new_markdown_cell(f'Before, see @tbl-printed.\n\n{table("first")}\n\nAfter.'),
             new_code_cell('#| label: tbl-made\n#| tbl-cap: "Made."\n1', outputs=[made]),
             new_code_cell('2', outputs=[printed])]
    nbformat.write(new_notebook(cells=cells), tmp_path/'00_data.ipynb')
    builder.build(tmp_path, tmp_path/'out')
    page = Page(tmp_path/'out/data.html')
    for words in ('Table 1. A first.', 'Table 2. Made.', 'Table 3. A printed.', 'see Table 3', 'After.'):
        assert words in page.text, words
    assert '#tbl-printed' in page.links and {'tbl-first', 'tbl-made', 'tbl-printed'} <= page.ids
    assert '{#' not in page.text
    assert ': A first' not in builder.readme(new_notebook(cells=cells[1:2])), 'GitHub knows no captions'


def test_readme_is_what_a_reader_of_the_index_sees(builder):
    table = {'text/markdown': '| a |\n|---|\n| 1 |', 'text/plain': 'Markdown'}
    notebook = new_notebook(cells=[
        new_markdown_cell('# It\n\n[page](10_report.ipynb), [below](engine/07_store.ipynb)'),
        new_code_cell('#| hide\nsecret = 1'),
        new_code_cell('#| echo: false\nunseen = 1', outputs=[new_output('execute_result', table)]),
        new_code_cell('1 + 1', outputs=[new_output('stream', name='stdout', text='2')])])
    words = builder.readme(notebook)
    assert '[page](nbs/10_report.ipynb), [below](nbs/engine/07_store.ipynb)' in words
    assert '| a |\n|---|\n| 1 |' in words and '```python\n1 + 1\n```\n\n```\n2\n```' in words
    assert 'secret' not in words and 'unseen' not in words


def project(folder, cells):
    "A project of a few small notebooks: name -> source of its code cells."
    for name in ('nbs', 'artinsight', 'results'): (folder/name).mkdir(parents=True)
    for name in ('settings.ini', 'setup.py', '_quarto.yml', '.gitignore', 'nbs/styles.css', 'nbs/links.lua'):
        shutil.copy(ROOT/name, folder/name)
    (folder/'README.md').touch()
    for name, sources in cells.items():
        cells = [new_code_cell(source) for source in ([sources] if isinstance(sources, str) else sources)]
        first = '# It\n\n> A page\n\n- code-links: [{text: Run on Colab, href: "https://colab.example.org/it"}]'
        (folder/'nbs'/name).parent.mkdir(exist_ok=True)
        nbformat.write(new_notebook(cells=[new_markdown_cell(first), *cells]), folder/'nbs'/name)


BAD = 'engine/00_bad.ipynb, cell'
GOOD = ['#| default_exp engine.good', '#| export\ndef good(): return 1']
FAULTS = {
    'imports beside a test, within a function, before a loop':
        ([*GOOD, 'import json\ntest_eq(json.loads("1"), 1)', 'def later():\n    import json',
          'import json\nfor name in names: json.loads(name)'], BAD, 3),
    'a table as a default': ([GOOD[0], '#| export\nimport pandas as pd\nTABLE = pd.DataFrame({"a": [1, 2]})',
                              '#| export\ndef good(x: pd.DataFrame = TABLE): return x'],
                             'show_doc(good)): a traceback', 1),
    'backticks in a comment': ([GOOD[0], '#| export\ndef good(\n    x: int,  # as `good` has it\n): return x'],
                               'show_doc(good)): a raw link', 1),
}


def in_step(builder, folder, cells, monkeypatch):
    "A project whose modules and README are what its notebooks say, and which is the builder's."
    project(folder, cells)
    monkeypatch.setattr(builder, 'ROOT', folder)
    builder.nbdev(*builder.EXPORT_AND_CLEAN, folder)
    builder.write_contents(folder)


@pytest.mark.parametrize('fault', FAULTS)
def test_a_planted_fault_spoils_the_pages_and_is_named(builder, tmp_path, monkeypatch, fault):
    """The faults that once kept the site from being published, and their kin, each in a folder of a project of two
    notebooks, the other of which is sound."""
    sources, named, times = FAULTS[fault]
    in_step(builder, tmp_path/'site', {'engine/00_bad.ipynb': sources, 'index.ipynb': ['import json', 'json.dumps(1)']},
            monkeypatch)
    with pytest.raises(SystemExit) as stopped: builder.check()
    assert str(stopped.value).count(named) == times and 'index.ipynb' not in str(stopped.value)


def test_check_finds_what_is_out_of_step_in_any_folder(builder, tmp_path, monkeypatch, capsys):
    "And leaves modules alone that are written by hand."
    site = tmp_path/'site'
    in_step(builder, site, {'engine/00_good.ipynb': GOOD, 'index.ipynb': ['| | notebook |']}, monkeypatch)
    (site/'artinsight/all.py').write_text('from .engine.good import *\n')
    builder.nbdev('doclinks', 'nbdev_export()', site)    # the index of names has a line for each module
    builder.check()
    assert 'in step' in capsys.readouterr().out
    module = site/'artinsight/engine/good.py'
    module.write_text(module.read_text().replace('return 1', 'return 2'))
    shutil.copy(module, site/'artinsight/engine/renamed.py')    # its notebook is gone
    with pytest.raises(SystemExit) as stopped: builder.check()
    for name in ('good', 'renamed'): assert f'artinsight/engine/{name}.py is out of step' in str(stopped.value)
    assert 'all.py' not in str(stopped.value)


def test_the_index_lists_each_folder_from_the_notebooks_first_cells(builder, tmp_path):
    project(tmp_path, {'index.ipynb': [], '00_data.ipynb': [], 'engine/00_files.ipynb': []})
    index = builder.read(tmp_path/'nbs/index.ipynb')
    index.cells += [new_markdown_cell('| | notebook | of old'), new_markdown_cell('| | notebook | of old')]
    nbformat.write(index, tmp_path/'nbs/index.ipynb')
    builder.write_contents(tmp_path)
    badge = '[![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.example.org/it)'
    story, engine = [cell.source.splitlines() for cell in builder.read(tmp_path/'nbs/index.ipynb').cells[1:]]
    assert story[2:] == [f'| 00 | [It](00_data.ipynb) | A page | {badge} |']
    assert engine[2:] == [f'| 00 | [It](engine/00_files.ipynb) | A page | {badge} |']
    assert '[It](nbs/engine/00_files.ipynb)' in (tmp_path/'README.md').read_text()


def test_only_changed_notebooks_are_executed_again_and_a_failing_one_is_named(builder, tmp_path, monkeypatch):
    count = 'runs = "$ARTINSIGHT_RUNS"\nwith open("count-{}", "a") as file: file.write("x")'
    project(tmp_path, {'index.ipynb': count.format(0), 'engine/00_files.ipynb': count.format(1),
                       'engine/01_other.ipynb': ['raise SystemError("shows no runs")']})
    monkeypatch.setattr(builder, 'ROOT', tmp_path)
    runs, proc = tmp_path/'runs', tmp_path/'_executed'
    def counts(): return [(proc/'nbs/count-0').read_text(), (proc/'nbs/engine/count-1').read_text()]
    builder.execute_all(runs, proc)
    builder.execute_all(runs, proc)
    assert counts() == ['x', 'x'] and (proc/'nbs/engine/01_other.ipynb').exists()
    def rewrite(*sources):
        cells = [new_code_cell(source) for source in sources]
        nbformat.write(new_notebook(cells=cells), tmp_path/'nbs/engine/00_files.ipynb')
    rewrite(count.format(1) + '\nprint(1)')
    builder.execute_all(runs, proc)
    assert counts() == ['x', 'xx'], 'only the notebook that changed'
    (tmp_path/'artinsight/engine').mkdir()
    (tmp_path/'artinsight/engine/files.py').write_text('changed = True')
    rewrite('runs = "$ARTINSIGHT_RUNS"', '1 / 0')
    with pytest.raises(SystemExit, match='engine/00_files.ipynb') as stopped: builder.execute_all(runs, proc)
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
    old = new_output('stream', name='stdout', text='of long ago')
    held = new_code_cell('#| slow\nraise SystemError', outputs=[old])
    notebook = new_notebook(cells=[held, new_code_cell('print(1)'), new_code_cell('#| eval: false\n1 / 0')])
    nbformat.write(notebook, tmp_path/'a.ipynb')
    assert builder.execute(tmp_path/'a.ipynb', tmp_path/'b.ipynb', None) is None
    slow, other, _ = nbformat.read(tmp_path/'b.ipynb', 4).cells
    assert slow.outputs[0].text == 'of long ago' and other.outputs[0].text == '1\n' and 'tags' not in slow.metadata


UNCAPTIONED = """([...document.querySelectorAll('main img, main svg, main table')]
    .filter(part => !(part.closest('figure')?.querySelector('figcaption') ?? part.querySelector('caption'))
        ?.textContent.trim())
    .map(part => part.outerHTML.slice(0, 60)))"""
UNFOLDED = """[...document.querySelectorAll('main div.sourceCode')]
    .filter(code => !code.closest('details:not([open])')).length"""
CUT = """[...document.querySelectorAll('main pre, main img, main table')].filter(part => {
    let box = part.tagName == 'IMG' ? part.parentElement : part;   // a dense figure scrolls in its own box
    while (box.tagName != 'MAIN' && getComputedStyle(box).overflowX == 'visible') box = box.parentElement;
    const edge = box.tagName == 'MAIN' ? part : box;
    return edge.getBoundingClientRect().right > innerWidth
        || part.tagName == 'PRE' && part.scrollWidth > part.clientWidth + 1;
}).map(part => part.outerHTML.slice(0, 80))"""
WIDTH = 'document.documentElement.scrollWidth'
DARK = 'getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).every(part => part < 90)'
PAPERS = 'report.html', 'gallery.html', 'slides.html'


@pytest.fixture(scope='module')
def looks(browser, site):
    "What is seen on each page, by its name, in one visit of all; and the addresses that were asked for."
    screen, asked, seen = browser.new_page(color_scheme='light'), [], {}
    screen.on('request', lambda request: asked.append(request.url))
    for path in sorted(site.rglob('*.html')):
        screen.set_viewport_size({'width': 1280, 'height': 800})
        screen.goto(path.as_uri())
        look = {('width', 1280, 'light'): screen.evaluate(WIDTH), ('dark', 1280, 'light'): screen.evaluate(DARK),
                'uncaptioned': screen.evaluate(UNCAPTIONED),
                'unfolded': screen.evaluate(UNFOLDED)}
        screen.set_viewport_size({'width': 390, 'height': 800})
        for scheme in ('dark', 'light'):
            screen.emulate_media(color_scheme=scheme)
            look |= {('width', 390, scheme): screen.evaluate(WIDTH), ('dark', 390, scheme): screen.evaluate(DARK)}
        screen.evaluate('document.querySelectorAll("details").forEach(fold => fold.open = true)')
        look |= {'opened': screen.evaluate(WIDTH), 'cut': screen.evaluate(CUT)}
        seen[path.relative_to(site).as_posix()] = look
    screen.close()
    return seen, asked


@pytest.mark.parametrize('width, scheme', [(390, 'light'), (390, 'dark'), (1280, 'light')])
def test_pages_fit_the_screen(looks, pages, width, scheme):
    seen, asked = looks
    assert seen.keys() == pages.keys()
    for name, look in seen.items():
        assert look['width', width, scheme] <= width, name
        assert look['dark', width, scheme] == (scheme == 'dark'), name
    assert not [url for url in asked if not url.startswith(('file:', 'data:'))]


def test_each_figure_and_each_table_of_each_page_has_a_caption(looks):
    "And in report, gallery and talk all code is folded."
    for name, look in looks[0].items():
        assert look['uncaptioned'] == [], name
        if os.path.basename(name) in PAPERS: assert look['unfolded'] == 0, name


@pytest.mark.parametrize('fault', ['<img alt="a dot" src="data:,">', '<table><tr><td>1</td></tr></table>',
                                   '<figure><figcaption> </figcaption><table><tr><td>1</td></tr></table></figure>'])
def test_a_missing_caption_is_seen(browser, fault):
    screen = browser.new_page()
    screen.set_content(f'<main>{fault}</main>')
    assert len(screen.evaluate(UNCAPTIONED)) == 1
    screen.close()


def test_captions_are_sentences_without_typed_figures(builder):
    "95 % says what an interval is. Labels are a page's own, once each."
    for name in builder.notebooks(ROOT/'nbs'):
        nb = builder.read(ROOT/'nbs'/name)
        flags = [builder.directives(cell) for cell in nb.cells]
        captions = [flag[key] for flag in flags for key in ('fig-cap:', 'tbl-cap:') if key in flag]
        captions += [found[2] for cell in nb.cells if cell.cell_type == 'markdown'
                     for found in builder.CAPTIONED.finditer(cell.source)]
        for words in captions:
            assert words.endswith('.') and len(words.split()) > 4, (name, words)
            assert not re.search(r'\d', re.sub(r'95 %|ResNet18', '', words)), (name, words)
        labels = [label for cell in nb.cells for label in builder.labels(cell)]
        assert len(labels) == len(set(labels)), name


def test_no_page_shows_a_warning_or_a_traceback(pages):
    for name, page in pages.items():
        assert not re.search(r'Traceback \(most recent|\b(User|Future|Deprecation|Runtime)Warning:', page.text), name
        assert not re.search(r'\{\{<|@(fig|tbl|sec)-|\?\?', page.text), name


def test_site_is_small_and_its_pages_are_described(site, pages):
    sizes = {path.name: path.stat().st_size for path in site.rglob('*') if path.is_file()}
    assert sum(sizes.values()) < 12_000_000 and max(sizes.values()) < 2_000_000
    described = {name: re.search('<meta name="description" content="([^"]*)"', (site/name).read_text())[1]
                 for name in pages}
    assert all(described.values()) and len(set(described.values())) == len(pages)
    sitemap = (site/'sitemap.xml').read_text()
    assert [name for name in pages if f'/{name}</loc>' not in sitemap] == []


def test_talk_has_ten_slides_with_figures_of_the_report(site, pages):
    body = (site/'slides.html').read_text()
    headings = re.findall(r'<section[^>]*>\s*<h2[^>]*>(.+?)</h2>', body)
    assert len(headings) == 10 and len(set(headings)) == 10
    report = (site/'report.html').read_text()
    sources = re.findall(r'<img src="([^"]+)"', body)
    assert len(sources) >= 7 and all(source in report for source in sources)
    assert 'What this report stands on' in pages['slides.html'].text and 'report.html' in pages['slides.html'].links


@pytest.mark.parametrize('width', [390, 1280])
def test_confusions_can_be_walked_through(browser, site, width):
    "A cell of the matrix opens its pictures, a picture opens with its map, and Escape closes both."
    context = browser.new_context(viewport={'width': width, 'height': 800})
    screen = context.new_page()
    screen.goto((site/'report.html').as_uri())
    cell = screen.locator('.matrix button').first
    opened = screen.locator('#' + cell.get_attribute('popovertarget'))
    assert not opened.is_visible()
    cell.click()
    assert opened.is_visible()
    card = opened.locator('.card > button').first
    large = screen.locator('#' + card.get_attribute('popovertarget'))
    card.click()
    assert large.is_visible() and large.locator('.pic').count() == 2
    box = large.bounding_box()
    assert box['x'] >= 0 and box['x'] + box['width'] <= width
    for _ in range(2): screen.keyboard.press('Escape')
    assert not large.is_visible() and not opened.is_visible()
    context.close()


def sort_key(text):
    found = re.match(r'[-+]?\d[\d.,]*', text)
    return float(found[0].replace(',', '')) if found else text


def test_a_click_on_a_heading_sorts_each_table_of_the_appendix(browser, site):
    "Figures, validation, steps and runs: a tab each, and the third column of each in order."
    screen = browser.new_page()
    screen.goto((site/'report.html').as_uri())
    tables = screen.locator('.panel-tabset table.sortable')
    assert tables.count() == screen.locator('.panel-tabset h3').count() == 4
    for number in range(4):
        table = tables.nth(number)
        heading = table.locator('th').nth(2)
        def keys(table=table): return [sort_key(text) for text in table.locator('td:nth-child(3)').all_text_contents()]
        heading.locator('button').click()
        assert keys() == sorted(keys()) and len(keys()) > 3 and heading.get_attribute('aria-sort') == 'ascending'
        heading.locator('button').click()
        assert keys() == sorted(keys(), reverse=True) != sorted(keys())
    screen.close()


def test_menu_opens_on_a_phone(browser, site):
    screen = browser.new_page(viewport={'width': 390, 'height': 800})
    screen.goto((site/'index.html').as_uri())
    menu = screen.locator('nav.pages')
    assert not menu.is_visible()
    screen.locator('label.menu').click()
    assert menu.is_visible()
    menu.get_by_text('Data', exact=True).click()
    assert screen.url.endswith('data.html')
    screen.locator('label.menu').click()
    store = menu.get_by_text('Store', exact=True)
    assert not store.is_visible(), 'folded away'
    menu.get_by_text('What it stands on', exact=True).click()
    store.click()
    assert screen.url.endswith('engine/store.html')
    screen.locator('label.menu').click()
    assert store.is_visible(), "the page's own section is open"
    screen.close()


def test_tables_and_code_stay_in_their_box(looks):
    "At 390 px, all that is folded opened: a wide table scrolls by itself, printed words wrap."
    for name, look in looks[0].items(): assert look['opened'] <= 390 and look['cut'] == [], name


def quarto(folder):
    """A stand-in for the program Quarto, put on the path by its caller.

    Stands for: Quarto 1.10, of which nbdev 2.4 (quarto.py, nbdev_docs) calls `quarto render --no-cache` in `_proc` and
    moves `_proc/_docs` away.
    Known from: nbdev 2.4.14's source; Quarto itself cannot be had on every machine.
    As awkward: it refuses any other command, and a folder without the assets that _quarto.yml names.
    """
    folder.mkdir()
    (folder/'quarto').write_text('''#!/bin/sh
[ "$*" = "render --no-cache" ] || { echo "unknown: $*" >&2; exit 2; }
for file in _quarto.yml styles.css links.lua favicon.svg card.png; do
  [ -f "$file" ] || { echo "ERROR: $file is missing" >&2; exit 1; }; done
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
