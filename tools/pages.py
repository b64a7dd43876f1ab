"""Check, execute and render the notebooks: `make check`, `make docs`, `make report`."""
import ast, hashlib, html, json, os, re, shutil, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import nbformat, yaml

ROOT = Path(__file__).resolve().parent.parent
TOOLS = Path(__file__).parent
DIRECTIVE = re.compile(r'^\s*#\s?\|\s*(.+?)\s*$\n?', re.M)

def say(words): print(words, file=sys.stderr, flush=True)

def read(path): return nbformat.read(path, as_version=4)

def write(path, words):
    "Write a text file by a rename, so that a kill leaves the old one or the new one."
    beside = path.with_name(f'.{path.name}.part')
    beside.write_text(words, encoding='utf-8')
    os.replace(beside, path)

def directives(cell):
    "A code cell's `#|` directives: {'hide': '', 'echo:': 'false'}."
    if cell.cell_type != 'code': return {}
    words = [found.split(maxsplit=1) for found in DIRECTIVE.findall(cell.source)]
    return {word[0]: ''.join(word[1:]).strip('"\'') for word in words}

def copy_project(dest, *without):
    "What notebooks and nbdev need of the project."
    ignore = shutil.ignore_patterns('__pycache__', '.*', *without)
    for name in ('artinsight', 'nbs', 'results'): shutil.copytree(ROOT/name, dest/name, ignore=ignore, dirs_exist_ok=True)
    for name in ('settings.ini', 'setup.py', '_quarto.yml', 'README.md', '.gitignore'): shutil.copy(ROOT/name, dest/name)

# %% What nbdev makes of them

def nbdev(module, call, project):
    "Call one of nbdev's functions for a project. Its scripts do the same, but do not start below every path."
    env = dict(os.environ, PYTHONPATH=str(project), OMP_NUM_THREADS='1')
    done = subprocess.run([sys.executable, '-c', f'from nbdev import {module}; {module}.{call}'], cwd=project, env=env,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode: sys.exit(f'nbdev: {call} failed:\n{done.stderr[-3000:].strip()}')

def process(project):
    "The folder `_proc` of what nbdev hands to Quarto. A notebook is processed again when it, or a module, has changed."
    folder = project/'_proc'
    newest = max((path.stat().st_mtime for path in project.glob('artinsight/*.py')), default=0)
    nbdev('serve', f'proc_nbs(n_workers=2, force={folder.exists() and newest > folder.stat().st_mtime})', project)
    left_out = [path.name for path in project.glob('nbs/*.ipynb') if not (folder/path.name).exists()]
    if left_out: sys.exit(f'nbdev made no page of {", ".join(left_out)} (it skips all that lies below a folder with a dot before its name)')
    return folder

def mixed_cells(project):
    "Cells that nbdev executes when it builds the docs, because they import, and that do other things as well."
    for path in sorted(project.glob('nbs/*.ipynb')):
        for cell in read(path).cells:
            flags, imports = directives(cell), (ast.Import, ast.ImportFrom)
            if cell.cell_type != 'code' or flags.get('eval:') == 'false' or any(flag.startswith('export') for flag in flags): continue
            try: lines = ast.parse(cell.source).body
            except SyntaxError: continue    # a magic: nbdev does not execute it
            importing = any(isinstance(part, imports) for line in lines for part in ast.walk(line))
            if importing and not all(isinstance(line, imports) for line in lines):
                yield f'{path.name}, cell {cell.id}: imports stand beside other code, and nbdev runs all of it when it builds the docs'

def spoilt_pages(processed):
    "Cells of processed notebooks with a traceback, or with Markdown where it stays raw: in a signature."
    for path in sorted(processed.glob('*.ipynb')):
        for cell in read(path).cells:
            for output in cell.get('outputs', []):
                kinds = [output.get('text', ''), *(words for kind, words in output.get('data', {}).items() if kind.startswith('text/'))]
                words, where = '\n'.join(kinds), f'{path.name}, cell {cell.id} ({DIRECTIVE.sub("", cell.source)[:50]})'
                if output.output_type == 'error' or 'Traceback (most recent call last)' in words: yield f'{where}: a traceback'
                if re.search(r'\]\(http', ''.join(re.findall(r'^```.*?^```|`[^`\n]+`', words, re.M | re.S))): yield f'{where}: a raw link'

def check():
    "Modules are what the notebooks export, notebooks are clean, README is the index's, and nbdev makes sound pages."
    with tempfile.TemporaryDirectory() as copy:
        copy_project(Path(copy))
        git = lambda *words: subprocess.run(['git', '-C', copy, *words], check=True, capture_output=True, text=True).stdout
        git('init', '-q'), git('add', '-A', '.')
        for module in Path(copy).glob('artinsight/[a-z]*.py'): module.unlink()
        nbdev('doclinks', 'nbdev_export()', copy)
        nbdev('clean', 'nbdev_clean()', copy)
        write(Path(copy)/'README.md', readme(read(ROOT/'nbs/index.ipynb')))
        git('add', '-A', '-N', '.')
        wrong = [f'{name} is out of step: run nbdev_export, nbdev_clean and make docs' for name in git('diff', '--name-only').splitlines()]
    wrong += mixed_cells(ROOT)
    wrong = wrong or list(spoilt_pages(process(ROOT)))
    if wrong: sys.exit('\n'.join(wrong))
    print('modules, notebooks and README are in step, and nbdev makes a sound page of each notebook')

# %% Executing

def key(path, runs):
    "Hash of a notebook's cells (not its outputs) and of all it depends on: the package, run records, the installed set."
    cells = [(cell.cell_type, cell.source) for cell in read(path).cells]
    state = hashlib.sha256(json.dumps(cells).encode())
    for file in sorted([*ROOT.glob('artinsight/*.py'), *ROOT.glob('artinsight/*.csv'), *ROOT.glob('results/**/*.json'),
                        *Path(runs).glob('*/record.json'), *ROOT.glob('.venv/.setup-stamp'), *ROOT.glob('settings.ini')]):
        state.update(file.name.encode() + file.read_bytes())
    return state.hexdigest()

def execute(path, dest, env):
    "Run a notebook top to bottom into `dest`; returns None or what went wrong."
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError
    nb = read(path)
    held = [cell for cell in nb.cells if {'slow', 'cuda'} & directives(cell).keys()]
    for cell in held: cell.metadata['tags'] = ['skip-execution']    # these keep the outputs they were committed with
    resources = {'metadata': {'path': str(dest.parent)}}
    client = NotebookClient(nb, timeout=600, kernel_name='python3', coalesce_streams=True, resources=resources)
    try: client.execute(env=env or dict(os.environ), stderr=subprocess.DEVNULL)
    except (CellExecutionError, DeadKernelError, TimeoutError) as error: return re.sub(r'\x1b\[[0-9;]*m', '', str(error)).strip()
    for cell in held: del cell.metadata['tags']
    write(dest, nbformat.writes(nb))

def known_keys(file):
    "Notebook -> key when it was last executed; an unreadable file knows none."
    try: keys = json.loads(file.read_text(encoding='utf-8'))
    except (OSError, ValueError): return {}
    return keys if isinstance(keys, dict) else {}

def execute_all(runs, copy, workers=2):
    "Execute all notebooks in a copy of the project, two at a time; unchanged ones keep their last outputs."
    names = sorted(path.name for path in ROOT.glob('nbs/*.ipynb'))
    for name in ('artinsight', 'results'): shutil.rmtree(copy/name, ignore_errors=True)
    for old in copy.glob('nbs/*.ipynb'):
        if old.name not in names: old.unlink()
    copy_project(copy, '*.ipynb')
    keys, lock = known_keys(copy/'keys.json'), Lock()
    env = dict(os.environ, ARTINSIGHT_RUNS=str(Path(runs).resolve()), OMP_NUM_THREADS='1')
    def one(name):
        started, new = time.time(), key(ROOT/'nbs'/name, runs)
        if keys.get(name) == new and (copy/'nbs'/name).exists(): return None
        error = execute(ROOT/'nbs'/name, copy/'nbs'/name, env)
        say(f'  {name}: ' + ('failed' if error else f'{time.time() - started:.0f} s'))
        if error: return f'nbs/{name} failed:\n{error}'
        with lock:
            keys[name] = new
            write(copy/'keys.json', json.dumps(keys, indent=1))
    with ThreadPoolExecutor(workers) as pool: failed = [error for error in pool.map(one, names) if error]
    if failed: sys.exit('\n\n'.join(failed))

# %% Pages without Quarto, and README

def page_name(name):
    "The page that nbdev makes of a notebook: 06_evaluation.ipynb -> evaluation.html."
    return re.sub(r'^\d+[a-zA-Z0-9]*_', '', Path(name).stem.lower()) + '.html'

def shown_output(output, alt, caption):
    "An output as pandoc's Markdown."
    data = output.get('data', {})
    if 'text/markdown' in data: return data['text/markdown']
    for kind in ('image/png', 'image/jpeg'):
        if kind not in data: continue
        picture = f'data:{kind};base64,{data[kind].strip()}'
        return f'![{caption}]({picture}){{alt="{html.escape(alt)}"}}' if caption else f'<p><img src="{picture}" alt="{html.escape(alt)}"></p>'
    if 'text/html' in data: return f'~~~~~~{{=html}}\n{re.sub("<style.*?</style>", "", data["text/html"], flags=re.S)}\n~~~~~~'
    words = data.get('text/plain', output.get('text', ''))
    return f'~~~~~~{{.output}}\n{words.rstrip()}\n~~~~~~' if words.strip() and output.get('name') != 'stderr' else ''

def shown(nb, page=True):
    "What a reader sees of a notebook, as pieces of Markdown; README has neither folds nor pictures."
    heading = ''
    for cell in nb.cells:
        flags = directives(cell)
        if cell.cell_type == 'raw' and page: yield cell.source
        if cell.cell_type == 'markdown':
            heading = (re.findall(r'^#+\s+(.+)$', cell.source, re.M) or [heading])[-1].replace('`', '')
            yield cell.source
        if cell.cell_type != 'code' or {'hide', 'default_exp'} & flags.keys() or flags.get('include:') == 'false': continue
        source = DIRECTIVE.sub('', cell.source).strip()
        if source and flags.get('echo:') != 'false':
            code, fold = f'~~~~~~python\n{source}\n~~~~~~', flags.get('code-fold:', 'true')
            folded = f'<details class="code"{" open" * (fold == "show")}><summary>{flags.get("code-summary:", "Code")}</summary>\n\n{code}\n\n</details>'
            yield folded if page and fold != 'false' else code
        for output in cell.outputs if flags.get('output:') != 'false' else []:
            if page or not {'image/png', 'image/jpeg', 'text/html'} & output.get('data', {}).keys():
                yield shown_output(output, flags.get('fig-alt:', f'Figure: {heading}'), flags.get('fig-cap:', ''))

def readme(nb):
    "README.md from the index notebook: what its reader sees."
    words = '\n\n'.join(part.strip() for part in shown(nb, page=False) if part.strip())
    words = re.sub(r'\]\((?:\./)?([\w-]+\.ipynb)\)', r'](nbs/\1)', words.replace('~~~~~~{.output}', '```').replace('~~~~~~', '```'))
    return f'<!-- Generated from nbs/index.ipynb by tools/pages.py: edit that notebook, then run `make docs`. -->\n\n{words}\n'

def links(page, address):
    "Point links to notebooks and to the published site at the pages beside this one, and put words for pictures from elsewhere."
    page = re.sub(r'href="(?:\./|nbs/)?([\w-]+\.ipynb)(#[^"]*)?"', lambda found: f'href="{page_name(found[1])}{found[2] or ""}"', page)
    page = re.sub(r'<img\b[^>]*src="(?:https?:)?//[^>]*>', lambda found: (re.findall(r'alt="([^"]*)"', found[0]) or ['picture'])[0], page)
    return page.replace(f'href="{address}/', 'href="')

def build(processed, dest):
    "Render processed notebooks with pandoc as a site of static pages, with nothing fetched from elsewhere."
    import pypandoc
    site = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))['website']
    contents = [entry if isinstance(entry, dict) else {'section': '', 'contents': [entry]} for entry in site['sidebar']['contents']]
    nbs = {name: read(processed/name) for entry in contents for name in entry['contents'] if (processed/name).exists()}
    titles = {name: yaml.safe_load(nb.cells[0].source.strip().strip('-'))['title'] for name, nb in nbs.items()}
    def entry(name, here=None): return {'href': page_name(name), 'title': titles[name], 'current': name == here}
    dest.mkdir(parents=True, exist_ok=True)
    for place, (name, nb) in enumerate(nbs.items()):
        around = {where: entry(list(nbs)[at]) for where, at in (('before', place - 1), ('after', place + 1)) if 0 <= at < len(nbs)}
        menu = [{'section': part['section'], 'pages': [entry(one, name) for one in part['contents'] if one in nbs]} for part in contents]
        with tempfile.NamedTemporaryFile('w', suffix='.json', encoding='utf-8') as settings:
            json.dump({'menu': menu, 'site': site, 'home': name == 'index.ipynb', **around}, settings)
            settings.flush()
            options = ['--standalone', f'--template={TOOLS/"page.html"}', f'--metadata-file={settings.name}', '--toc', '--toc-depth=2', '--mathml',
                       f'--lua-filter={TOOLS.parent/"nbs/links.lua"}', '--wrap=none']
            file = dest/page_name(name)
            pypandoc.convert_text('\n\n'.join(shown(nb)), 'html5', format='markdown', outputfile=str(file), extra_args=options)
        write(file, links(file.read_text(encoding='utf-8'), site['site-url']))
    for file in (*processed.glob('*.css'), *processed.glob('*.svg'), *processed.glob('*.png'), TOOLS/'page.css'): shutil.copy(file, dest)

# %% The commands

def quarto():
    "Where Quarto is. PyPI's quarto-cli is tried once for each set-up, because its download can't be reached everywhere."
    tried = ROOT/'.venv/.quarto-tried'
    if not shutil.which('quarto') and tried.parent.exists() and not tried.exists():
        tried.touch()
        subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', '--disable-pip-version-check', 'quarto-cli'], capture_output=True)
    return shutil.which('quarto')

def publish(project):
    "A project's pages in `_docs`: by Quarto where it is, as nbdev_docs does it, else by pandoc from the same processed notebooks."
    program = 'Quarto' if quarto() else 'pandoc, because Quarto is not on this machine'
    if program == 'Quarto': nbdev('quarto', 'nbdev_docs(n_workers=2)', project)
    else:
        shutil.rmtree(project/'_docs', ignore_errors=True)
        build(process(project), project/'_docs')
    if project != ROOT:
        shutil.rmtree(ROOT/'_docs', ignore_errors=True)
        shutil.copytree(project/'_docs', ROOT/'_docs')
    print(f'pages built with {program}: open {ROOT/"_docs/index.html"}')

def report():
    "Painted sample, five quick trainings, notebooks executed in a copy, pages."
    from artinsight.sample import painted_sample
    started, runs, copy = time.time(), ROOT/'runs', ROOT/'_executed'
    def stage(words): say(f'[{time.time() - started:4.0f} s] {words}')
    stage('painted sample')
    data = painted_sample()
    stage('five quick trainings, from scratch')
    code = 'from artinsight.study import artinsight_reproduce as command; command()'
    subprocess.run([sys.executable, '-c', code, '--data', str(data), '--runs', str(runs), '--quick', '--weights', 'none'], check=True, stdout=sys.stderr)
    stage('notebooks')
    execute_all(runs, copy)
    stage('pages')
    publish(copy)
    stage('done')

def docs():
    "README and pages from the notebooks as they are committed."
    write(ROOT/'README.md', readme(read(ROOT/'nbs/index.ipynb')))
    publish(ROOT)

if __name__ == '__main__':
    commands = {'report': report, 'docs': docs, 'check': check}
    if len(sys.argv) != 2 or sys.argv[1] not in commands: sys.exit(f'usage: python tools/pages.py {"|".join(commands)}')
    os.environ['PATH'] = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])    # Quarto from PyPI
    commands[sys.argv[1]]()
