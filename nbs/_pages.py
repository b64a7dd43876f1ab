"""Check, execute and render the notebooks: `make report`, `make docs` and the first step of `make test`."""
import hashlib, html, json, os, re, shutil, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from threading import Lock

import nbformat, yaml
from jinja2 import DictLoader
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

ROOT = Path(__file__).resolve().parent.parent
DIRECTIVE = re.compile(r'^\s*#\s?\|\s*(.+?)\s*$\n?', re.M)

# %% The notebooks

def pages():
    "Notebook names in the site's order: [(section or None, name)]."
    def walk(contents, section=None):
        for entry in contents:
            if isinstance(entry, dict): yield from walk(entry['contents'], entry['section'])
            else: yield section, entry
    sidebar = yaml.safe_load((ROOT/'_quarto.yml').read_text())['website']['sidebar']['contents']
    return [(section, name) for section, name in walk(sidebar) if (ROOT/'nbs'/name).exists()]

def page_name(name):
    "The page that nbdev makes of a notebook: 06_evaluation.ipynb -> evaluation.html."
    return re.sub(r'^\d+[a-zA-Z0-9]*_', '', Path(name).stem.lower()) + '.html'

def read(path): return nbformat.read(path, as_version=4)

def write(path, words):
    "Write a text file by a rename, so that a kill leaves the old one or the new one."
    beside = path.with_name(f'.{path.name}.part')
    beside.write_text(words, encoding='utf-8')
    os.replace(beside, path)

def directives(cell):
    "A cell's `#|` directives: {'hide': '', 'echo:': 'false'}."
    if cell.cell_type != 'code': return {}
    words = [found.split() for found in DIRECTIVE.findall(cell.source)]
    return {word[0]: ' '.join(word[1:]) for word in words}

def shown(cell):
    "Whether a reader sees a cell's (source, outputs)."
    flags = directives(cell)
    if 'hide' in flags or 'default_exp' in flags or flags.get('include:') == 'false': return False, False
    source = 'hide_input' not in flags and flags.get('echo:') != 'false'
    return source, 'hide_output' not in flags and flags.get('output:') != 'false'

def text(value): return value if isinstance(value, str) else ''.join(value)

def title(nb):
    found = re.search(r'^#\s+(.+?)\s*$', nb.cells[0].source, re.M) if nb.cells else None
    return found.group(1).replace('`', '') if found else 'artinsight'

# %% Executing

def digest(*paths):
    "One hash of files' names and bytes."
    state = hashlib.sha256()
    for path in sorted(paths): state.update(path.name.encode() + path.read_bytes())
    return state.hexdigest()

def inputs(runs):
    "What notebooks depend on besides themselves: the package, run records, the installed set."
    return digest(*ROOT.glob('artinsight/*.py'), *ROOT.glob('artinsight/*.csv'), *ROOT.glob('results/**/*.json'),
                  *Path(runs).glob('*/record.json'), *ROOT.glob('.venv/.setup-stamp'), *ROOT.glob('settings.ini'))

def key(path, base):
    "Hash of a notebook's cells (not its outputs) and of everything it depends on."
    cells = [(cell.cell_type, cell.source) for cell in read(path).cells]
    return hashlib.sha256(json.dumps([cells, base]).encode()).hexdigest()

def execute(path, dest, env):
    "Run a notebook top to bottom into `dest`; returns None or what went wrong."
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError
    nb = read(path)
    held = [cell for cell in nb.cells if {'slow', 'cuda'} & directives(cell).keys()]
    for cell in held: cell.metadata['tags'] = ['skip-execution']    # these keep the outputs they were committed with
    try:
        NotebookClient(nb, timeout=600, kernel_name='python3', coalesce_streams=True, resources={'metadata': {'path': str(dest.parent)}}).execute(env=env or dict(os.environ), stderr=subprocess.DEVNULL)
    except (CellExecutionError, DeadKernelError, TimeoutError) as error:
        return re.sub(r'\x1b\[[0-9;]*m', '', str(error)).strip()
    for cell in held: del cell.metadata['tags']
    write(dest, nbformat.writes(nb))

def known_keys(file):
    "Notebook -> key when it was last executed; an unreadable file knows none."
    try: keys = json.loads(file.read_text(encoding='utf-8'))
    except (OSError, ValueError): return {}
    return keys if isinstance(keys, dict) else {}

def execute_all(runs, proc, workers=2):
    "Execute all notebooks in a copy of the project, two at a time; unchanged ones keep their last outputs."
    shutil.rmtree(proc/'artinsight', ignore_errors=True); shutil.rmtree(proc/'results', ignore_errors=True)
    (proc/'nbs').mkdir(parents=True, exist_ok=True)
    ignore = shutil.ignore_patterns('__pycache__')
    for name in ('artinsight', 'results'): shutil.copytree(ROOT/name, proc/name, ignore=ignore)
    for name in ('settings.ini', 'setup.py', '_quarto.yml', 'README.md'): shutil.copy(ROOT/name, proc/name)
    shutil.copy(ROOT/'_quarto.yml', proc/'nbs'); shutil.copy(ROOT/'nbs/styles.css', proc/'nbs')
    names = sorted(name for _, name in pages())
    for old in (proc/'nbs').glob('*.ipynb'):
        if old.name not in names: old.unlink()
    keys_file, base = proc/'keys.json', inputs(runs)
    keys = known_keys(keys_file)
    env, lock = dict(os.environ, ARTINSIGHT_RUNS=str(Path(runs).resolve()), OMP_NUM_THREADS='1'), Lock()
    def one(name):
        started, new = time.time(), key(ROOT/'nbs'/name, base)
        if keys.get(name) == new and (proc/'nbs'/name).exists(): return name, None
        error = execute(ROOT/'nbs'/name, proc/'nbs'/name, env)
        say(f'  {name}: ' + ('failed' if error else f'{time.time() - started:.0f} s'))
        if error: return name, error
        with lock:
            keys[name] = new
            write(keys_file, json.dumps(keys, indent=1))
        return name, None
    with ThreadPoolExecutor(workers) as pool: results = list(pool.map(one, names))
    failed = [(name, error) for name, error in results if error]
    for name, error in failed: say(f'\nnbs/{name} failed:\n{error}')
    if failed: sys.exit('notebooks failed: ' + ', '.join(name for name, _ in failed))

# %% Rendering

TEMPLATE = r"""{%- extends 'basic/index.html.j2' -%}
{% block input_group %}
<details class="code"{{ ' open' if cell.metadata.open }}><summary>{{ cell.metadata.label }}</summary>{{ cell.source | highlight_code(metadata=cell.metadata) | clean_html }}</details>
{% endblock input_group %}
{% block data_javascript scoped %}{% endblock %}
{% block data_widget_view scoped %}{% endblock %}
{% block stream_stderr %}{% endblock %}
"""

SHELL = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><meta name="description" content="{summary}">
<title>{title}</title><link rel="icon" href="data:,"><link rel="stylesheet" href="styles.css"><link rel="stylesheet" href="pages.css"></head>
<body><a class="skip" href="#main">Skip to the text</a>
<input type="checkbox" id="menu" aria-label="Show the pages"><label for="menu" class="menu">artinsight <span>Pages</span></label>
<nav class="pages" aria-label="Pages"><a class="brand" href="index.html">artinsight</a>{nav}</nav>
<main id="main">{body}<nav class="turn" aria-label="Neighbouring pages">{turn}</nav>
<footer>{footer}</footer></main></body></html>
"""

@lru_cache
def exporter():
    return HTMLExporter(template_file='page.html.j2', extra_loaders=[DictLoader({'page.html.j2': TEMPLATE})],
                        exclude_anchor_links=True, exclude_input_prompt=True, exclude_output_prompt=True)

def imports(source): return all(re.match(r'(import|from|#|\s|\)|$)', line) for line in source.splitlines())

def label(source):
    "What a folded cell holds: the names it defines, with the first one's docstring."
    names = re.findall(r'^(?:def|class) (\w+)', source, re.M)
    doc = re.search(r'^\s+"+([^"\n]+)', source, re.M)
    if names: return f'<code>{"</code>, <code>".join(names)}</code>' + (' ' + re.sub('`([^`]+)`', r'<code>\1</code>', html.escape(doc.group(1).strip())) if doc else '')
    return 'Imports' if imports(source) else 'Code'

def prepare(nb):
    "Drop what a reader does not see, and the directive lines; name each picture after its heading."
    cells, heading = [], ''
    for cell in nb.cells:
        if cell.cell_type == 'markdown':
            heading = (re.findall(r'^#+\s+(.+)$', cell.source, re.M) or [heading])[-1]
            cells.append(cell)
        if cell.cell_type != 'code': continue
        source, outputs = shown(cell)
        directives_of = directives(cell)
        exported, clean = 'export' in ' '.join(directives_of), DIRECTIVE.sub('', cell.source).strip()
        for output in cell.outputs if outputs else []:
            for kind in ('image/png', 'image/jpeg'):
                if kind in output.get('data', {}):
                    output.metadata.setdefault(kind, {})['alt'] = 'Figure: ' + heading.replace('`', '')
        if not outputs: cell.outputs = []
        if not (cell.outputs or (source and clean)): continue
        cell.source = clean
        cell.metadata['transient'] = {'remove_source': not (source and clean)}
        folded = exported or directives_of.get('code-fold:') == 'true' or imports(clean) or clean.count('\n') >= 12
        cell.metadata['open'], cell.metadata['label'] = not folded, label(clean)
        cells.append(cell)
    return nbformat.v4.new_notebook(cells=cells, metadata=nb.metadata)

def local_links(body, names):
    "Point links to notebooks at their pages, and replace pictures from elsewhere by their words."
    def notebook(found):
        target, anchor = Path(found.group(1)).name, found.group(2) or ''
        return f'href="{page_name(target)}{anchor}"' if target in names else found.group(0)
    body = re.sub(r'href="(?:\./|nbs/)?([\w./-]+\.ipynb)(#[^"]*)?"', notebook, body)
    return re.sub(r'<img\b[^>]*src="(?:https?:)?//[^>]*>',
                  lambda found: '<span class="badge">' + (re.findall(r'alt="([^"]*)"', found.group(0)) or ['picture'])[0] + '</span>', body)

def wrap_tables(body):
    "Let wide tables scroll by themselves, so that the page never does."
    return re.sub(r'<table\b.*?</table>', lambda found: f'<div class="scroll">{found.group(0)}</div>', body, flags=re.S)

def anchors(body):
    "Headings get the ids that Quarto gives them."
    def mark(found):
        words = html.unescape(re.sub(r'<[^>]+>', '', found.group(2))).lower()
        return f'<h{found.group(1)} id="{re.sub(r"[^a-z0-9_.-]", "", words.strip().replace(" ", "-")).lstrip("0123456789.-")}">{found.group(2)}</h'
    return re.sub(r'<h([1-4])>(.*?)</h', mark, body, flags=re.S)

def render(nb, names):
    "A notebook's body as HTML."
    body, _ = exporter().from_notebook_node(prepare(nb))
    body = re.sub(r'<style[^>]*>.*?</style>|<script\b.*?</script>', '', body, flags=re.S)
    return anchors(wrap_tables(local_links(body, names)))

def headings(body):
    "(anchor, words) of a page's second-level headings."
    return [(anchor, re.sub(r'<[^>]+>', '', words).strip())
            for anchor, words in re.findall(r'<h2[^>]*id="([^"]*)"[^>]*>(.*?)</h2>', body, re.S)]

def navigation(order, titles, current, sections):
    out, last = [], None
    for section, name in order:
        if section != last: out.append(f'<p>{html.escape(section or "")}</p>'); last = section
        here = ' aria-current="page"' if name == current else ''
        out.append(f'<a href="{page_name(name)}"{here}>{html.escape(titles[name])}</a>')
        if here and sections:
            out.append('<ul>' + ''.join(f'<li><a href="#{anchor}">{words}</a></li>' for anchor, words in sections) + '</ul>')
    return ''.join(out)

def neighbours(order, titles, name):
    names = [other for _, other in order]
    at = names.index(name)
    before = f'<a href="{page_name(names[at-1])}" rel="prev">← {html.escape(titles[names[at-1]])}</a>' if at else '<span></span>'
    after = f'<a href="{page_name(names[at+1])}" rel="next">{html.escape(titles[names[at+1]])} →</a>' if at + 1 < len(names) else ''
    return before + after

def styles():
    "Code colours for both schemes, from Pygments."
    light, dark = (HtmlFormatter(style=style).get_style_defs('.highlight') for style in ('friendly', 'github-dark'))
    drop = lambda css: re.sub(r'^(td|span)\.linenos.*$|^pre \{.*$', '', re.sub(r'background: #\w+;?', '', css, count=1), flags=re.M)
    return f'{drop(light)}\n@media (prefers-color-scheme: dark) {{\n{drop(dark)}\n}}\n'

def build(notebooks, dest, footer=''):
    "Render a folder of notebooks as a site of static pages, with nothing fetched from elsewhere."
    order = [(section, name) for section, name in pages() if (notebooks/name).exists()]
    names, nbs = [name for _, name in order], {name: read(notebooks/name) for _, name in order}
    titles = {name: title(nb) for name, nb in nbs.items()}
    dest.mkdir(parents=True, exist_ok=True)
    for name, nb in nbs.items():
        body = render(nb, names)
        summary = (re.findall(r'^>\s*(.+)$', nb.cells[0].source, re.M) or [''])[0]
        heading = titles[name] if titles[name] == 'artinsight' else f'{titles[name]} · artinsight'
        page = SHELL.format(title=html.escape(heading), summary=html.escape(summary, quote=True), body=body, footer=footer,
                            nav=navigation(order, titles, name, headings(body)), turn=neighbours(order, titles, name))
        (dest/page_name(name)).write_text(page, encoding='utf-8')
    shutil.copy(ROOT/'nbs/styles.css', dest/'styles.css')
    (dest/'pages.css').write_text((ROOT/'nbs/_pages.css').read_text() + styles())
    return dest/'index.html'

# %% README

def readme(nb):
    "README.md from the index notebook: what its reader sees, as Markdown."
    parts = ['<!-- Generated from nbs/index.ipynb by nbs/_pages.py: edit that notebook, then run `make docs`. -->']
    for cell in nb.cells:
        if cell.cell_type == 'markdown': parts.append(cell.source)
        if cell.cell_type != 'code': continue
        source, outputs = shown(cell)
        clean = DIRECTIVE.sub('', cell.source).strip()
        if source and clean: parts.append(f'```python\n{clean}\n```')
        for output in cell.outputs if outputs else []:
            data = output.get('data', {})
            if 'text/markdown' in data: parts.append(text(data['text/markdown']))
            elif output.output_type == 'stream' and output.name == 'stdout': parts.append(f'```\n{output.text.rstrip()}\n```')
    body = '\n\n'.join(part.strip() for part in parts) + '\n'
    return re.sub(r'\]\((?:\./)?([\w-]+\.ipynb)\)', r'](nbs/\1)', body)

# %% The commands

def say(words): print(words, file=sys.stderr, flush=True)

def publish(proc):
    "Quarto where it is, as nbdev does it; else nbconvert."
    dest = ROOT/'_docs'
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp)/'artinsight'    # nbdev skips files below a folder named _proc
        shutil.copytree(proc, copy)
        if shutil.which('quarto'):
            subprocess.run(['nbdev_docs'], cwd=copy, check=True, env=dict(os.environ, PYTHONPATH=str(copy)))
            how = 'Quarto'
        else:
            say('Quarto is not on this machine: building the same pages with nbconvert')
            build(copy/'nbs', copy/'_docs', footer='Built with nbconvert, because Quarto was not on this machine.')
            how = 'nbconvert'
        shutil.rmtree(dest, ignore_errors=True)
        shutil.copytree(copy/'_docs', dest)
    print(f'pages built with {how}: open {dest/"index.html"}')

def report():
    "Painted sample, five quick trainings, notebooks executed in a copy, pages."
    from artinsight.sample import painted_sample
    started, runs, proc = time.time(), ROOT/'runs', ROOT/'_proc'
    def stage(words): say(f'[{time.time() - started:4.0f} s] {words}')
    stage('painted sample')
    data = painted_sample()
    stage('five quick trainings, from scratch')
    subprocess.run(['artinsight_reproduce', '--data', str(data), '--runs', str(runs), '--quick', '--weights', 'none'],
                   check=True, stdout=sys.stderr)
    stage('notebooks')
    execute_all(runs, proc)
    stage('pages')
    publish(proc)
    stage('done')

def docs():
    "README and pages from the notebooks as they are committed."
    (ROOT/'README.md').write_text(readme(read(ROOT/'nbs/index.ipynb')), encoding='utf-8')
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp)/'copy'
        ignore = shutil.ignore_patterns('.*', '_proc', '_docs', 'runs', 'data', '__pycache__', '*.egg-info')
        shutil.copytree(ROOT, copy, ignore=ignore)
        publish(copy)

def check():
    "Modules are what the notebooks export, notebooks are clean, README is the index's."
    wrong = []
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp)/'artinsight'
        copy.mkdir()
        for name in ('artinsight', 'nbs'): shutil.copytree(ROOT/name, copy/name, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
        for name in ('settings.ini', '_quarto.yml', 'README.md'): shutil.copy(ROOT/name, copy/name)
        for module in copy.glob('artinsight/*.py'):
            if module.name != '__init__.py': module.unlink()
        for command in ('nbdev_export', 'nbdev_clean'): subprocess.run([command], cwd=copy, check=True, env=dict(os.environ, PYTHONPATH=str(copy)))
        for pattern, advice in (('artinsight/*.py', 'run nbdev_export'), ('nbs/*.ipynb', 'run nbdev_clean')):
            for name in sorted({path.relative_to(base) for base in (ROOT, copy) for path in base.glob(pattern)}):
                ours, theirs = ROOT/name, copy/name
                if not (ours.exists() and theirs.exists() and ours.read_bytes() == theirs.read_bytes()):
                    wrong.append(f'{name} is out of step: {advice}')
    if (ROOT/'README.md').read_text(encoding='utf-8') != readme(read(ROOT/'nbs/index.ipynb')):
        wrong.append('README.md is not what nbs/index.ipynb says: run make docs')
    if wrong: sys.exit('\n'.join(wrong))
    print('modules, notebooks and README are in step')

if __name__ == '__main__':
    commands = {'report': report, 'docs': docs, 'check': check}
    if len(sys.argv) != 2 or sys.argv[1] not in commands: sys.exit(f'usage: python nbs/_pages.py {"|".join(commands)}')
    os.environ['PATH'] = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])    # nbdev's and our own scripts
    commands[sys.argv[1]]()
