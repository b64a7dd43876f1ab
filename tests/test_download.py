"""artinsight_download against kagglehub's real client and a server on this machine: resumed, checked, safe, and clear
about what went wrong."""
import errno, os, shutil, subprocess, sys
from pathlib import Path

import pytest
from artinsight import data
from artinsight.data import COUNTS
from artinsight.engine import download

import kaggle_server
from kaggle_server import serve

pytest.importorskip('kagglehub', reason="kagglehub is not installed: pip install 'artinsight[data]'")
THREE = COUNTS.assign(images=3)
NAMES = [f'{row.split}/{row.folder}/{i}.jpg' for row in THREE.itertuples() for i in range(row.images)]
CONTENT = bytes(range(256))*64

def content(name): return name.encode() + CONTENT

@pytest.fixture(scope='module')
def archive(tmp_path_factory): return kaggle_server.zip_names(NAMES, tmp_path_factory.mktemp('zip')/'a.zip', content)

@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(data, 'ZIP_BYTES', 0)
    return tmp_path/'cache'

def fetch(server, cache, counts=THREE):
    "`download` with the environment that leads to `server`."
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.env(cache).items(): patch.setenv(name, value)
        for name in ('TBE_RUNTIME_ADDR', 'KAGGLE_KERNEL_RUN_TYPE'): patch.delenv(name, raising=False)
        return data.download(cache, counts)

def whole(root): return all((root/name).read_bytes() == content(name) for name in NAMES)

def home(cache): return cache/'datasets/ravidussilva/real-ai-art'

def test_fetched_once(archive, cache):
    with serve(archive) as kaggle:
        root = fetch(kaggle, cache)
        assert root.name == 'Real_AI_SD_LD_Dataset' and whole(root) and not (home(cache)/'5.archive').exists()
    assert fetch(kaggle, cache) == root and len(kaggle.log) == 1        # the server is gone: nothing is asked again
    assert len(data.index(root)) == len(NAMES)

def test_dropped_line_goes_on_where_it_stopped(archive, cache):
    size = archive.stat().st_size
    with serve(archive, drops=[size//2, 0, 1_200_000]) as kaggle:
        for _ in range(3):
            with pytest.raises(OSError, match='run artinsight_download again to go on'): fetch(kaggle, cache)
        kept = (home(cache)/'5.archive').stat().st_size
        assert whole(fetch(kaggle, cache))
        assert kept > 1 << 20 and f'bytes={kept}-' in kaggle.log

@pytest.mark.parametrize('how', ['md5', 'cut'])
def test_damaged_archive_is_thrown_away(archive, cache, tmp_path, how):
    """A wrong checksum, or an archive that was broken before it got one: said, deleted, and the next call fetches
    afresh."""
    cut = tmp_path/'cut.zip'
    cut.write_bytes(archive.read_bytes()[:-3000])
    with serve(archive, wrong_md5=True) if how == 'md5' else serve(cut) as kaggle:
        with pytest.raises(OSError, match='damaged.*run artinsight_download again'): fetch(kaggle, cache)
    assert not (home(cache)/'5.archive').exists()
    with serve(archive) as kaggle: assert whole(fetch(kaggle, cache))

@pytest.mark.parametrize('options', [dict(status=500), dict(status=403), dict(known='somebody/else/1')])
def test_kaggle_refuses(archive, cache, options):
    with serve(archive, **options) as kaggle, pytest.raises(OSError, match='Kaggle refused ravidussilva/real-ai-art'):
        fetch(kaggle, cache)

def test_no_network(archive, cache):
    with serve(archive) as kaggle: pass
    with pytest.raises(OSError, match='no connection to Kaggle'): fetch(kaggle, cache)

def test_no_package(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, 'kagglehub', None)
    with pytest.raises(ImportError, match=r"pip install 'artinsight\[data\]'"): data.download(cache)

def test_too_little_space_is_said_before_anything_is_asked(archive, cache, monkeypatch):
    monkeypatch.setattr(data, 'ZIP_BYTES', 10**15)
    with serve(archive) as kaggle:
        with pytest.raises(OSError, match=r'GB free and 2000000.0 GB are needed'): fetch(kaggle, cache)
        assert kaggle.log == [] and not home(cache).exists()

@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() != 0 or not shutil.which('mount'),
                    reason='mounting a small file system needs root')
def test_disk_full_then_room(archive, cache, tmp_path):
    "A disk that fills up in the middle: nothing is lost, and the next call with more room goes on."
    small = tmp_path/'small'
    small.mkdir()
    def mount(option):
        return subprocess.run(['mount', '-t', 'tmpfs', '-o', option, 'none', str(small)],
                              capture_output=True).returncode
    if mount('size=2m'): pytest.skip('this machine does not let us mount a tmpfs')
    try:
        with serve(archive) as kaggle:
            with pytest.raises(OSError, match='No space left') as caught: fetch(kaggle, small)
            assert caught.value.errno == errno.ENOSPC and not (home(small)/'5.complete').exists()
            assert mount('remount,size=64m') == 0
            assert whole(fetch(kaggle, small)) and any(kaggle.log)
    finally: subprocess.run(['umount', '-l', str(small)], check=False)

def test_missing_pictures_are_named(archive, cache):
    with serve(archive) as kaggle:
        root = fetch(kaggle, cache)
        (root/'train/AI_SD_ukiyo-e/1.jpg').unlink()
        with pytest.raises(ValueError, match='1 of 60 folders .*train/AI_SD_ukiyo-e with 2 of 3 pictures: delete '
                                             '.*run artinsight_download again'): fetch(kaggle, cache)
        shutil.rmtree(root.parent)                                         # as the message says
        assert whole(fetch(kaggle, cache))

def test_members_cannot_leave_the_folder(cache, tmp_path):
    "An archive that reaches for the parent folders or the root writes inside its own folder only."
    evil = kaggle_server.zip_names([*NAMES, '../'*12 + 'tmp/artinsight-evil.jpg', '../../evil.jpg'],
                                   tmp_path/'evil.zip', content)
    before = {p for p in tmp_path.rglob('*')}
    with serve(evil) as kaggle: root = fetch(kaggle, cache)
    outside = [p for p in set(tmp_path.rglob('*')) - before if root.parent not in p.parents and p.suffix == '.jpg']
    assert outside == [] and not Path('/tmp/artinsight-evil.jpg').exists() and whole(root)

HALF = 1 << 20  # kagglehub keeps what came in chunks of this size

def half_fetched(server, cache):
    "What a cut line leaves of the archive."
    with pytest.raises(OSError, match='what came is kept'): fetch(server, cache)
    return (home(cache)/'5.archive').read_bytes()

@pytest.mark.parametrize('status', [403, 503])
def test_refusal_to_go_on_never_gets_into_the_archive(archive, cache, status):
    "An address that expired, a busy server: what came stays as it is, and the next call goes on."
    with serve(archive, drops=[HALF + 9000], fails=[status]) as kaggle:
        kept = half_fetched(kaggle, cache)
        assert len(kept) == HALF and kept == archive.read_bytes()[:HALF]
        with pytest.raises(OSError, match=f'Kaggle refused .*{status}.*what came is kept'): fetch(kaggle, cache)
        assert (home(cache)/'5.archive').read_bytes() == kept
        assert whole(fetch(kaggle, cache)) and kaggle.log[-1] == f'bytes={HALF}-'

def test_whole_file_instead_of_the_rest_is_not_appended(archive, cache):
    with serve(archive, drops=[HALF + 9000], ignores_range=True) as kaggle:
        kept = half_fetched(kaggle, cache)
        with pytest.raises(OSError, match='not the rest came, but status 200'): fetch(kaggle, cache)
        assert (home(cache)/'5.archive').read_bytes() == kept
        kaggle.ignores_range = False
        assert whole(fetch(kaggle, cache))

def test_archive_longer_than_the_real_one_is_fetched_afresh(archive, cache):
    "As an older client leaves it that appended a refusal: there is no rest to ask for (416)."
    (home(cache)).mkdir(parents=True)
    (home(cache)/'5.archive').write_bytes(archive.read_bytes() + b'<Error/>')
    with serve(archive) as kaggle:
        with pytest.raises(OSError, match='longer than the real one.*deleted: run artinsight_download'):
            fetch(kaggle, cache)
        assert whole(fetch(kaggle, cache))

@pytest.mark.parametrize('text', ['{"username": ', '{"username": "ann"}', '7', '\udcff'])
def test_broken_credentials_delete_nothing(archive, cache, text):
    "A half-written kaggle.json, one without a key, one that is no object, one that is no text."
    with serve(archive, drops=[HALF + 9000]) as kaggle:
        kept = half_fetched(kaggle, cache)
        (cache/'kaggle.json').write_bytes(text.encode('utf8', 'surrogateescape'))
        with pytest.raises(OSError, match='nothing was deleted.*credentials can be removed'): fetch(kaggle, cache)
        assert (home(cache)/'5.archive').read_bytes() == kept
        (cache/'kaggle.json').unlink()
        assert whole(fetch(kaggle, cache))

def names_of_errors():
    import kagglehub.exceptions as known
    return [name for name, kind in vars(known).items() if isinstance(kind, type) and issubclass(kind, Exception)]

@pytest.mark.parametrize('name', [*names_of_errors(), 'Exception'])
def test_every_error_of_kagglehub_is_one_line(cache, monkeypatch, name):
    "CredentialError, BackendError, KaggleEnvironmentError and their siblings are bare Exceptions."
    import kagglehub
    error = getattr(kagglehub.exceptions, name, Exception)('no luck today')
    def fail(handle): raise error
    monkeypatch.setattr(kagglehub, 'dataset_download', fail)
    with pytest.raises(OSError, match=f'({name}|no luck today)') as caught: data.download(cache)
    assert '\n' not in str(caught.value)

def test_kaggle_notebook_without_its_tokens(cache, monkeypatch):
    "Real code of kagglehub on a machine that says it is Kaggle's and is not."
    for name in ('KAGGLE_KERNEL_RUN_TYPE', 'KAGGLE_DATA_PROXY_URL'): monkeypatch.setenv(name, 'http://localhost:9')
    monkeypatch.delenv('KAGGLE_USER_SECRETS_TOKEN', raising=False)
    with pytest.raises(OSError, match='CredentialError.*JWT Token is required'): data.download(cache)

def test_space_of_what_is_unpacked_is_not_asked_again(archive, cache, monkeypatch):
    "An unpacking that was stopped near its end needs little more."
    with serve(archive) as kaggle: root = fetch(kaggle, cache)
    (home(cache)/'5.complete').unlink()
    shutil.copy(archive, home(cache)/'5.archive')
    size, unpacked = archive.stat().st_size, sum(file.stat().st_size for file in root.rglob('*.jpg'))
    monkeypatch.setattr(data, 'ZIP_BYTES', size)
    free = shutil.disk_usage(cache)._replace(free=size - unpacked + 1000)
    monkeypatch.setattr(download.shutil, 'disk_usage', lambda place: free)
    with serve(archive) as kaggle: assert whole(fetch(kaggle, cache))
    shutil.rmtree(root)
    (home(cache)/'5.complete').unlink()
    with serve(archive) as kaggle, pytest.raises(OSError, match='GB are needed'): fetch(kaggle, cache)

def test_without_a_home_folder(cache, monkeypatch):
    "kagglehub asks for the home folder when it is imported."
    for name in [name for name in sys.modules if name.startswith('kagglehub')]: monkeypatch.delitem(sys.modules, name)
    def nobody(): raise RuntimeError('Could not determine home directory.')
    monkeypatch.setattr(Path, 'home', nobody)
    with pytest.raises(OSError, match='kagglehub needs a home folder.*set HOME'): data.download(cache)

WARNED = ('from artinsight import data; data.ZIP_BYTES = 0; data._check_counts = lambda *args: None; '
          'from artinsight.use.commands import artinsight_download; artinsight_download()')

def test_only_the_folder_goes_to_standard_output(archive, tmp_path):
    "With credentials, kagglehub says that it is outdated: `$(artinsight_download)` must not hold that."
    with serve(archive) as kaggle:
        env = {**os.environ, **kaggle.env(tmp_path/'cache'), 'KAGGLE_USERNAME': 'ann', 'KAGGLE_KEY': '0'}
        got = subprocess.run([sys.executable, '-c', WARNED], env=env, capture_output=True, text=True)
    assert got.returncode == 0 and 'outdated' in got.stderr
    assert got.stdout == f"{home(tmp_path/'cache')/'versions/5/Real_AI_SD_LD_Dataset'}\n"

SCRIPT = 'from artinsight import data; data.ZIP_BYTES = 0; '\
         'from artinsight.use.commands import artinsight_download; artinsight_download()'

def test_script_says_one_line_and_exits_2(archive, tmp_path):
    with serve(archive, status=500) as kaggle:
        env = {**os.environ, **kaggle.env(tmp_path/'cache')}
        got = subprocess.run([sys.executable, '-c', SCRIPT], env=env, capture_output=True, text=True)
    assert (got.returncode, got.stdout) == (2, '')
    assert got.stderr.count('\n') == 1 and 'Kaggle refused' in got.stderr

def test_script_checks_the_known_counts(archive, tmp_path):
    "Three pictures a folder are not AI-ArtBench: the script says so, and prints no folder."
    with serve(archive) as kaggle:
        env = {**os.environ, **kaggle.env(tmp_path/'cache')}
        got = subprocess.run([sys.executable, '-c', SCRIPT], env=env, capture_output=True, text=True)
    assert (got.returncode, got.stdout) == (2, '') and '60 of 60 folders are incomplete' in got.stderr.splitlines()[-1]
