"A web server on this machine whose manners a test chooses."
import re, socket, threading, time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Handler(BaseHTTPRequestHandler):
    "`server.routes`: path -> a function of the handler, or the arguments for `send`. Each GET is noted in `server.log` as (path, Range header)."
    def log_message(self, *_): pass
    def do_GET(self):
        self.server.log.append((self.path, self.headers.get('Range')))
        route = self.server.routes.get(self.path)
        if route is None: return self.send_error(404)
        try: route(self) if callable(route) else send(self, **{'body': self.server.default, **route})
        except OSError: pass                                     # the other side has hung up
        self.close_connection = True

def send(h, body, *, cut=None, ranges=True, tag='"v1"', headers=None, length=True, pace=None, obey_if_range=True, size=65536):
    "An answer as good or as bad as asked for. `cut`: bytes sent before the line breaks. `pace`: seconds between pieces of `size` bytes."
    asked, start = re.match(r'bytes=(\d+)-', h.headers.get('Range') or ''), 0
    if asked and ranges and (not obey_if_range or h.headers.get('If-Range') in (None, tag)): start = int(asked[1])
    if start and start >= len(body): h.send_response(416); h.send_header('Content-Range', f'bytes */{len(body)}'); h.end_headers(); return
    h.send_response(206 if start else 200)
    if start: h.send_header('Content-Range', f'bytes {start}-{len(body)-1}/{len(body)}')
    if tag: h.send_header('ETag', tag)
    given = headers or {}
    for k,v in given.items(): h.send_header(k, v)
    if length and 'Content-Length' not in given: h.send_header('Content-Length', str(len(body)-start))
    h.end_headers()
    out = body[start:][:cut]
    for i in range(0, len(out), size):
        h.wfile.write(out[i:i+size])
        if pace: h.wfile.flush(); time.sleep(pace)

@contextmanager
def serving(monkeypatch):
    "The server: `url`, `routes` to fill, `log` of what was asked. Skips the test where the loopback device is down."
    for k in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'): monkeypatch.delenv(k, raising=False)
    s = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    s.daemon_threads, s.routes, s.log, s.default = True, {}, [], b''
    s.url = f'http://127.0.0.1:{s.server_address[1]}/'
    threading.Thread(target=s.serve_forever, kwargs=dict(poll_interval=.02), daemon=True).start()
    try: socket.create_connection(s.server_address, timeout=5).close()
    except OSError: pytest.skip('the loopback device is down')
    try: yield s
    finally: s.shutdown(); s.server_close()
