"""A stand-in for Kaggle on this machine, for kagglehub's own client.

What it stands for: api.kaggle.com's DownloadDataset call, and the file on Google Cloud Storage that it leads to.

How the real thing is known: from the client, kagglehub 1.0.3 and kagglesdk 0.1.38 (PyPI). `kaggle_http_client.py`
posts JSON to /v1/datasets.DatasetApiService/DownloadDataset, follows the redirect with GET, treats JSON with a `code`
of 400 or more as an error, and hands the last answer to `clients.py`: `_check_response_version` compares
`X-Kaggle-HubVersion` with its own version and warns on standard output (only a client with credentials does);
`download_file` needs `Content-Length`, `Accept-Ranges: bytes` and `x-goog-hash: crc32c=...,md5=...` (`integrity.py`),
asks the redirected address again with `Range: bytes=N-`, never looks at that answer's status, and appends its body.
The signed address (X-Goog-Algorithm, -Credential, -Date, -Expires, -SignedHeaders, -Signature), the `<Error>` XML of
refusals, and 206 with `Content-Range` or 416 with `bytes */SIZE` are those of Cloud Storage's XML API. Kaggle itself
was not reached.

How it is as awkward: lines cut in the middle (`drops`), answers to ranges that are 403, 416, 503 with an XML body
(`fails`), or 200 with the whole file (`ignores_range`); an address without its signature is refused with 403; a range
beyond the end is 416; an outdated client is told so on every answer; an archive with another md5 (`wrong_md5`).
kagglehub offers no endpoint variable with a free port, so the server plays the HTTP proxy: with
`KAGGLE_API_ENVIRONMENT=LOCALHOST` the client asks for http://localhost/api/v1/..., and `HTTP_PROXY` sends that here.
Nothing in kagglehub is patched. Run by hand: `python tests/kaggle_server.py ARCHIVE.zip`.
"""
import base64, hashlib, json, sys, threading, time, zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = 'Real_AI_SD_LD_Dataset'
CALL = '/api/v1/datasets.DatasetApiService/DownloadDataset'
STORED = 'http://storage.googleapis.localhost/kaggle-data-sets/5/archive.zip'
SIGNED = ('X-Goog-Algorithm=GOOG4-RSA-SHA256'
          '&X-Goog-Credential=kaggle%40localhost%2F20260101%2Fauto%2Fstorage%2Fgoog4_request'
          '&X-Goog-Date=20260101T000000Z&X-Goog-Expires=259200'
          '&X-Goog-SignedHeaders=host&X-Goog-Signature=0123456789abcdef')
REFUSALS = {403: 'ExpiredToken', 416: 'InvalidRange', 503: 'ServiceUnavailable'}

class Kaggle(ThreadingHTTPServer):
    "Serves one archive; `drops`: bytes after which the next transfers are cut; `fails`: statuses of the next ranges."
    daemon_threads = True
    def __init__(self, archive, drops=(), rate=None, wrong_md5=False, status=None, known='ravidussilva/real-ai-art/5',
                 fails=(), ignores_range=False, hub_version='99.0.0'):
        super().__init__(('127.0.0.1', 0), Answer)
        self.fails, self.ignores_range, self.hub_version = list(fails), ignores_range, hub_version
        self.archive, self.drops, self.rate, self.wrong_md5, self.status, self.known = (
            Path(archive), list(drops), rate, wrong_md5, status, known)
        with self.archive.open('rb') as f:
            digest = hashlib.file_digest(f, 'md5') if sys.version_info >= (3, 11) else hashlib.md5(f.read())
        self.md5 = base64.b64encode(digest.digest()).decode()
        self.began, self.log = False, []         # log: the range of each request for the archive, None for all of it

    def handle_error(self, *args): pass           # a client that was killed is no news

    def env(self, cache):
        "Environment variables that lead kagglehub's client here, with its cache in folder `cache`."
        url = f'http://127.0.0.1:{self.server_address[1]}'
        return dict(KAGGLE_API_ENVIRONMENT='LOCALHOST', HTTP_PROXY=url, http_proxy=url, NO_PROXY='', no_proxy='',
                    KAGGLEHUB_CACHE=str(cache), KAGGLE_CONFIG_DIR=str(cache))

class Answer(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *args): pass

    def say(self, status, payload):
        body = json.dumps(payload).encode()
        self.send_response(status)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers.get('Content-Length', 0))) or b'{}')
        handle = '/'.join(str(asked.get(key)) for key in ('ownerSlug', 'datasetSlug', 'datasetVersionNumber'))
        status = self.server.status
        if status: return self.say(status, dict(code=status, message='no luck today'))
        if not self.path.endswith(CALL) or handle != self.server.known:
            return self.say(404, dict(code=404, message=f'{handle} not found'))
        self.send_response(302)
        self.send_header('Location', f'{STORED}?{SIGNED}')
        self.send_header('X-Kaggle-HubVersion', self.server.hub_version)
        self.send_header('Content-Length', '0')
        self.end_headers()

    def refuse(self, status):
        "Cloud Storage's answer to what it does not give."
        body = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{REFUSALS[status]}</Code></Error>".encode()
        self.send_response(status)
        self.send_header('Content-Type', 'application/xml; charset=UTF-8')
        if status == 416: self.send_header('Content-Range', f'bytes */{self.server.archive.stat().st_size}')
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        server, size, span = self.server, self.server.archive.stat().st_size, self.headers.get('Range')
        start = int(span.removeprefix('bytes=').split('-')[0]) if span else 0
        if self.path != f'{STORED}?{SIGNED}': return self.refuse(403)
        if span and (server.fails or start >= size):
            server.log.append(span)
            return self.refuse(server.fails.pop(0) if server.fails else 416)
        if server.ignores_range: start = 0
        self.send_response(206 if span and not server.ignores_range else 200)
        self.send_header('Content-Type', 'application/zip')
        self.send_header('X-Kaggle-HubVersion', server.hub_version)
        self.send_header('ETag', '"0123456789abcdef0123456789abcdef"')
        self.send_header('Last-Modified', 'Thu, 01 Jan 2026 00:00:00 GMT')
        self.send_header('Content-Length', str(size - start))
        self.send_header('Accept-Ranges', 'bytes')
        md5 = 'AAAAAAAAAAAAAAAAAAAAAA==' if server.wrong_md5 else server.md5
        self.send_header('x-goog-hash', f'crc32c=AAAAAA==,md5={md5}')
        if span and not server.ignores_range: self.send_header('Content-Range', f'bytes {start}-{size - 1}/{size}')
        self.end_headers()
        read = span or not server.began  # to resume, the client opens the whole file, leaves it, and asks for a range
        server.began = True
        left = server.drops.pop(0) if server.drops and read else size - start
        server.log.append(span)
        if self.transfer(start, left) < size - start: self.close_connection = True

    def transfer(self, start, left, chunk=1 << 18):
        "Send `left` bytes from `start`; returns how many went out."
        sent = 0
        try:
            with self.server.archive.open('rb') as f:
                f.seek(start)
                while sent < left and (block := f.read(min(chunk if not self.server.rate else 1 << 14, left - sent))):
                    self.wfile.write(block)
                    sent += len(block)
                    if self.server.rate: time.sleep(len(block) / self.server.rate)
        except (BrokenPipeError, ConnectionResetError): pass
        return sent

@contextmanager
def serve(archive, **options):
    "A running server for the block: `with serve('a.zip', drops=[1000]) as kaggle: ... kaggle.env(cache)`."
    server = Kaggle(archive, **options)
    thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=.05), daemon=True)
    thread.start()
    try: yield server
    finally:
        server.shutdown()
        server.server_close()

def zip_folder(folder, dest):
    "Pack a data set folder (with train/ and test/ in it) as Kaggle does: everything below `Real_AI_SD_LD_Dataset/`."
    with zipfile.ZipFile(dest, 'w', zipfile.ZIP_STORED) as z:
        for path in sorted(Path(folder).rglob('*')):
            if path.is_file(): z.write(path, f'{ROOT}/{path.relative_to(folder).as_posix()}')
    return Path(dest)

def zip_names(names, dest, content=b''):
    "An archive with these relative paths, all of the same content (bytes, or a function of the name)."
    with zipfile.ZipFile(dest, 'w', zipfile.ZIP_STORED) as z:
        for name in names: z.writestr(f'{ROOT}/{name}', content(name) if callable(content) else content)
    return Path(dest)

if __name__ == '__main__':
    with serve(sys.argv[1]) as kaggle:
        print('\n'.join(f'export {k}={v!r}' for k, v in kaggle.env(Path.cwd()/'kagglehub').items()), flush=True)
        threading.Event().wait()
