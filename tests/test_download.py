"The downloader against a real server on this machine that is slow, cuts off, lies and forgets; kills in the middle, two at once; archives made to do harm."
import gzip, hashlib, io, multiprocessing as mp, os, shutil, signal, socket, tarfile, threading, time, zipfile
from collections import Counter

import numpy as np
import pytest

import rude
from recon_nb import download as dl
from recon_nb.core import InputError
from recon_nb.download import download, file_checksum, _hold, _unpack

BODY = np.random.default_rng(0).bytes(300_000)
SUM = 'sha256:'+hashlib.sha256(BODY).hexdigest()
OTHER = np.random.default_rng(1).bytes(300_000)
needs_kill = pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='needs SIGKILL')


def send(h, body=BODY, **how): rude.send(h, body, **how)

@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(dl, '_pause', 0)
    with rude.serving(monkeypatch) as s:
        s.default = BODY
        yield s

@pytest.fixture
def get(server, tmp_path):
    def get(*names, path=tmp_path/'f.bin', **kw):
        return download([server.url+n for n in names], path, **{**dict(checksum=SUM, size=len(BODY), timeout=5., progress=False), **kw})
    return get

def left(folder): return sorted(p.name for p in folder.iterdir() if p.suffix != '.lock')
def whole(path): return path.read_bytes() == BODY and left(path.parent) == [path.name]


# --- servers good and bad ---

def test_plain(server, get):
    server.routes['/a'] = {}
    assert whole(get('a')) and whole(get('a')) and len(server.log) == 1          # the second time there is nothing to fetch

@pytest.mark.parametrize('how', [dict(length=False), dict(tag=None), dict(tag='W/"weak"'), dict(headers={'Last-Modified': 'Wed, 01 Jul 2026 00:00:00 GMT'}, tag=None)])
@pytest.mark.parametrize('size', [None, len(BODY)])
def test_what_servers_leave_out(server, get, how, size):
    server.routes['/a'] = how
    assert whole(get('a', size=size))

def test_chunked(server, get):
    def chunked(h):
        h.protocol_version = 'HTTP/1.1'
        h.send_response(200); h.send_header('Transfer-Encoding', 'chunked'); h.end_headers()
        for i in range(0, len(BODY), 50_000): h.wfile.write(b'%x\r\n%s\r\n' % (50_000, BODY[i:i+50_000]))
        h.wfile.write(b'0\r\n\r\n')
    server.routes['/a'] = chunked
    assert whole(get('a', size=None))

def test_slow_but_steady(server, get):
    server.routes['/a'] = dict(pace=.02, size=20_000)
    assert whole(get('a', timeout=.2))

@pytest.mark.parametrize('name,why', [('trickle', 'less than 1000 bytes a second'), ('hang', 'no answer within 0.3 s'), ('mute', 'no answer within 0.3 s')])
def test_stalled(server, get, name, why):
    server.routes.update({'/trickle': dict(pace=.1, size=5), '/hang': lambda h: (send(h, cut=100), h.wfile.flush(), time.sleep(2)), '/mute': lambda h: time.sleep(2), '/good': {}})
    with pytest.raises(InputError, match=why): get(name, timeout=.3)
    assert len(server.log) == 1                                                 # next to nothing has come: no second try
    assert whole(get(name, 'good', timeout=.3))

@pytest.mark.parametrize('ranges', [True, False])
def test_cut_off(server, get, ranges):
    server.routes.update({'/a': dict(cut=90_000, ranges=ranges), '/good': {}})
    if ranges:
        assert whole(get('a')) and [r for _,r in server.log] == [None, 'bytes=90000-', 'bytes=180000-', 'bytes=270000-']
    else:
        with pytest.raises(InputError, match='breaks off after 90,000 of 300,000 bytes'): get('a')
        assert len(server.log) == 2                                             # it brought nothing new the second time
        assert whole(get('a', 'good'))

def test_cut_off_without_length(server, get):
    server.routes.update({'/a': dict(cut=90_000, length=False), '/good': {}})
    with pytest.raises(InputError, match='another file'): get('a', size=None)    # nothing else could tell
    assert whole(get('a'))                                                       # with the size known it goes on

def test_cut_in_the_header(server, get):
    server.routes['/a'] = lambda h: h.wfile.write(b'HTTP/1.1 200 O')
    with pytest.raises(InputError, match='/a: '): get('a')
    server.routes['/b'] = lambda h: h.wfile.write(b'220 mail.example.com SMTP\r\n')
    with pytest.raises(InputError, match='/b: '): get('b')

@pytest.mark.parametrize('size', [None, len(BODY)])
@pytest.mark.parametrize('claim', [1, 299_999, 300_001, 10**15, 'many', -5])
def test_lying_length(server, get, claim, size):
    server.routes.update({'/a': dict(headers={'Content-Length': str(claim)}), '/good': {}})
    if claim in ('many', -5): assert whole(get('a', size=size))                  # no number at all is no lie
    else:
        why = 'needs' if claim == 10**15 and size is None else 'offers' if size else 'breaks off|another file'
        with pytest.raises(InputError, match=why): get('a', size=size)
        assert whole(get('a', 'good', size=len(BODY)))

def test_wrong_bytes_then_a_mirror(server, get):
    server.routes.update({'/a': dict(body=OTHER), '/b': dict(body=BODY[:-1]+b'x'), '/page': dict(body=b'<html>log in</html>'), '/good': {}})
    with pytest.raises(InputError) as e: get('a', 'b', 'page', 'gone')
    lines = str(e.value).splitlines()
    assert [l.split(': ')[-1].rstrip(';.') for l in lines[1:5]] == ['sha256 differs', 'sha256 differs', 'offers 19 bytes; the file has 300,000', '404 Not Found']
    assert left(get('a', 'b', 'page', 'gone', 'good').parent) == ['f.bin']

def test_redirects(server, get):
    def to(where): return lambda h: (h.send_response(302), h.send_header('Location', where), h.end_headers())
    server.routes.update({'/a': to('/b'), '/b': to('/c'), '/c': {}, '/loop': to('/pool'), '/pool': to('/loop'), '/file': to('file:///etc/hostname'), '/far': to('x'*9)})
    with pytest.raises(InputError, match='in a circle'): get('loop')
    with pytest.raises(InputError, match='/file: '): get('file')
    with pytest.raises(InputError, match='/far: 404'): get('far')
    assert whole(get('loop', 'a'))

@pytest.mark.parametrize('size', [None, len(BODY)])
@pytest.mark.parametrize('name', ['gzip', 'x-gzip'])
def test_content_encoding(server, get, name, size):
    packed = gzip.compress(BODY)
    server.routes['/packed'] = dict(body=packed, headers={'Content-Encoding': name})
    server.routes['/only-says-so'] = dict(headers={'Content-Encoding': name})
    server.routes['/cut'] = dict(body=packed, headers={'Content-Encoding': name}, cut=1000)
    server.routes['/bomb'] = dict(body=gzip.compress(bytes(50_000_000)), headers={'Content-Encoding': name})
    for n in ('packed', 'only-says-so'): f = get(n, size=size); assert whole(f); f.unlink()
    for n in ('cut', 'bomb'):
        with pytest.raises(InputError, match=n): get(n, size=size)
    assert left(f.parent) in ([], ['.f.bin.part', '.f.bin.part.json'])

def test_busy_server_is_asked_once_more(server, get):
    seen = Counter()
    def busy(n):
        def route(h): seen[h.path] += 1; h.send_error(503) if seen[h.path] <= n else send(h)
        return route
    server.routes.update({'/once': busy(1), '/twice': busy(2)})
    with pytest.raises(InputError, match='503'): get('twice')
    assert whole(get('once')) and seen == {'/once': 2, '/twice': 2}

def test_nobody_there(server, get):
    with socket.create_server(('127.0.0.1', 0)) as s: port = s.getsockname()[1]
    server.url = f'http://127.0.0.1:{port}/'
    with pytest.raises(InputError, match='Connection refused'): get('a')


# --- going on ---

@pytest.fixture
def part(server, get, tmp_path):
    "A download that broke off after 100,000 bytes."
    server.routes['/a'] = dict(cut=100_000, ranges=False)
    with pytest.raises(InputError, match='0.1 MB of it are kept; the next call goes on'): get('a')
    server.log.clear()
    assert left(tmp_path) == ['.f.bin.part', '.f.bin.part.json']
    return tmp_path/'.f.bin.part'

def ranges(server): return [r for _,r in server.log]

def test_goes_on(server, get, part):
    server.routes['/a'] = {}
    assert whole(get('a')) and ranges(server) == ['bytes=100000-']

def test_goes_on_elsewhere(server, get, part):
    server.routes['/b'] = dict(tag='"other"')
    assert whole(get('b')) and ranges(server) == ['bytes=100000-']

def test_pieces_that_do_not_fit(server, get, part):
    part.write_bytes(OTHER[:100_000])
    server.routes['/a'] = {}
    assert whole(get('a')) and ranges(server) == ['bytes=100000-', None]

@pytest.mark.parametrize('now,asked', [
    (dict(ranges=False), ['bytes=100000-']), (dict(tag='"v2"'), ['bytes=100000-']), (dict(tag='"v2"', obey_if_range=False), ['bytes=100000-', None]),
    (dict(tag=None, obey_if_range=False), ['bytes=100000-'])])
def test_changed_or_without_ranges(server, get, part, now, asked):
    server.routes['/a'] = now
    assert whole(get('a')) and ranges(server) == asked

def test_changed_size(server, get, part):
    server.routes['/a'] = dict(body=BODY+b'more', obey_if_range=False)
    with pytest.raises(InputError, match='offers 300,004'): get('a')
    assert ranges(server) == ['bytes=100000-', None]
    server.routes['/a'] = dict(body=b'short', obey_if_range=False)               # 416
    with pytest.raises(InputError, match='offers 5 bytes'): get('a')
    server.routes['/b'] = {}
    assert whole(get('a', 'b'))

@pytest.mark.parametrize('answer', ['bytes 0-299999/300000', 'bytes 99999-299999/300000', 'bytes */300000', 'nonsense', None])
def test_wrong_piece(server, get, part, answer):
    def wrong(h):
        if not h.headers.get('Range'): return send(h)
        h.send_response(206); h.send_header('Content-Length', '200000')
        if answer: h.send_header('Content-Range', answer)
        h.end_headers(); h.wfile.write(BODY[100_000:])
    server.routes['/a'] = wrong
    assert whole(get('a')) and ranges(server) == ['bytes=100000-', None]

def test_piece_nobody_asked_for(server, get):
    def piece(h): h.send_response(206); h.send_header('Content-Range', 'bytes 5-9/300000'); h.end_headers(); h.wfile.write(b'12345')
    server.routes['/a'] = piece
    with pytest.raises(InputError, match='sends a part although the whole'): get('a')

@pytest.mark.parametrize('harm', [lambda n: n.unlink(), lambda n: n.write_text('{'), lambda n: n.write_text('[]'), lambda n: n.write_text('{"total": null}')])
def test_spoilt_note(server, get, part, harm):
    harm(part.with_name(part.name+'.json')); server.routes['/a'] = {}
    assert whole(get('a')) and ranges(server) == [None]

def test_complete_but_not_renamed(server, get, part):
    part.write_bytes(BODY); server.routes.clear()
    assert whole(get('a')) and server.log == []

def test_longer_than_the_file(server, get, part):
    part.write_bytes(BODY+b'x'); server.routes['/a'] = {}
    assert whole(get('a'))


# --- the disk, and faults of the call ---

def test_no_room(server, get, tmp_path, monkeypatch):
    server.routes['/a'] = {}
    monkeypatch.setattr(dl.shutil, 'disk_usage', lambda p: shutil._ntuple_diskusage(100, 100, 0))
    with pytest.raises(InputError, match='f.bin needs 0.3 MB'): get('a')
    assert left(tmp_path) == []

def test_disk_full_in_the_middle(server, get, part, monkeypatch):
    class Full(io.FileIO):
        def write(self, b): raise OSError(28, 'No space left on device')
    server.routes['/a'] = {}
    monkeypatch.setattr(dl, 'open', lambda p, mode: Full(p, mode.replace('b', '')) if '+' in mode else open(p, mode), raising=False)
    with pytest.raises(InputError, match='No space left'): get('a')
    monkeypatch.undo()
    assert part.stat().st_size == 100_000

def test_unwritable(server, get, tmp_path):
    (tmp_path/'file').write_text('x'); server.routes['/a'] = {}
    with pytest.raises(InputError, match="can't be written"): get('a', path=tmp_path/'file/f.bin')
    (tmp_path/'folder').mkdir()
    with pytest.raises(InputError, match='not the file'): get('a', path=tmp_path/'folder')

def test_a_file_that_is_there(get, tmp_path):
    (tmp_path/'f.bin').write_bytes(OTHER)
    with pytest.raises(InputError, match='Remove it'): get('a')
    assert (tmp_path/'f.bin').read_bytes() == OTHER

@pytest.mark.parametrize('url,checksum', [('ftp://x/y', SUM), ('file:///etc/passwd', SUM), ('x.org/y', SUM), ('http://x.org/y', 'abc'), ('http://x.org/y', SUM.upper()), ('http://x.org/y', 'md5:'+64*'0')])
def test_faults_of_the_call(tmp_path, url, checksum):
    with pytest.raises(InputError): download(url, tmp_path/'f', checksum=checksum)
    assert left(tmp_path) == []


# --- other processes ---

def fetch(url, path, queue):
    dl._pause = 0
    queue.put(file_checksum(download(url, path, checksum=SUM, size=len(BODY), progress=False)))

def child(f, *args):
    p = mp.get_context('spawn').Process(target=f, args=args)
    p.start()
    return p

def wait_for(f, seconds=60):
    end = time.time()+seconds
    while not f() and time.time() < end: time.sleep(.01)
    assert f()

def grown(path, n): return path.exists() and path.stat().st_size >= n

@needs_kill
def test_killed_and_continued(server, get, tmp_path):
    server.routes['/a'] = dict(pace=.1, size=20_000)
    queue, part = mp.get_context('spawn').Queue(), tmp_path/'.f.bin.part'
    p = child(fetch, server.url+'a', tmp_path/'f.bin', queue)
    wait_for(lambda: grown(part, 20_000))
    os.kill(p.pid, signal.SIGKILL); p.join(60)
    assert p.exitcode == -signal.SIGKILL and not (tmp_path/'f.bin').exists()
    kept = part.stat().st_size
    server.routes['/a'] = {}
    assert 0 < kept < len(BODY) and whole(get('a')) and ranges(server) == [None, f'bytes={kept}-']

def test_two_at_once(server, tmp_path):
    server.routes['/a'] = dict(pace=.05, size=20_000)
    queue = mp.get_context('spawn').Queue()
    both = [child(fetch, server.url+'a', tmp_path/'f.bin', queue) for _ in range(2)]
    assert [queue.get(timeout=300) for _ in both] == [SUM, SUM]
    for p in both: p.join(60)
    assert whole(tmp_path/'f.bin') and len(server.log) == 1

def test_waiting_is_said(tmp_path, capsys):
    inside, done = threading.Event(), threading.Event()
    def first():
        with _hold(tmp_path/'f'): inside.set(); done.wait(10)
    t = threading.Thread(target=first); t.start(); inside.wait(10)
    threading.Timer(.2, done.set).start()
    with _hold(tmp_path/'f'): assert done.is_set()
    t.join()
    assert 'another process is busy with f' in capsys.readouterr().out


# --- archives ---

def tar(path, *entries, mode='w', **kw):
    with tarfile.open(path, mode, **kw) as t:
        for name,what in entries:
            m = tarfile.TarInfo(name)
            if isinstance(what, bytes): m.size = len(what); t.addfile(m, io.BytesIO(what)); continue
            for k,v in what.items(): setattr(m, k, v)
            t.addfile(m)
    return path

def zipped(path, *entries):
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z:
        for name,what in entries:
            info = zipfile.ZipInfo('x'); info.filename, info.compress_type = name, zipfile.ZIP_DEFLATED
            if isinstance(what, tuple): info.external_attr = what[0] << 16; what = what[1]
            z.writestr(info, what)
    return path

GOOD = [('a/1.txt', b'one'), ('a/b/2.txt', b'two'), ('c', b'')]
LINK, HARD = dict(type=tarfile.SYMTYPE), dict(type=tarfile.LNKTYPE)

@pytest.mark.parametrize('mode', ['w', 'w:gz', 'w:bz2', 'w:xz', 'zip'])
def test_unpack(tmp_path, mode):
    f = zipped(tmp_path/'f', *GOOD) if mode == 'zip' else tar(tmp_path/'f', *GOOD, mode=mode)
    out = _unpack(f, tmp_path/'out', progress=False)
    assert {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob('*') if p.is_file()} == dict(GOOD)
    f.unlink()
    assert _unpack(f, out, progress=False) == out                # it is there: nothing to do

def test_several_archives_make_one_folder(tmp_path):
    both = [tar(tmp_path/'1.tar', ('x/1', b'1')), tar(tmp_path/'2.tar', ('2', b'2'))]
    assert sorted(p.name for p in _unpack(both, tmp_path/'out', progress=False).rglob('*')) == ['1', '2', 'x']
    with pytest.raises(InputError, match='3.tar is missing'): _unpack([*both, tmp_path/'3.tar'], tmp_path/'other', progress=False)
    assert not (tmp_path/'other').exists()

def test_links_inside_become_copies(tmp_path):
    f = tar(tmp_path/'f.tar', *GOOD, ('a/soft', {**LINK, 'linkname': 'b/2.txt'}), ('hard', {**HARD, 'linkname': 'a/1.txt'}), ('c', {**HARD, 'linkname': 'c'}))
    out = _unpack(f, tmp_path/'out', progress=False)
    assert (out/'a/soft').read_bytes() == b'two' and (out/'hard').read_bytes() == b'one' and not any(p.is_symlink() for p in out.rglob('*'))
    f = zipped(tmp_path/'f.zip', *GOOD, ('a/soft', (0o120777, b'1.txt')))
    assert (_unpack(f, tmp_path/'zip', progress=False)/'a/soft').read_bytes() == b'one'

SECRET = [('../up', b'x'), ('a/../../up', b'x'), ('/up', b'x'), ('//up', b'x'), ('..', b'x'), ('a\\..\\..\\up', b'x'), ('C:/up', b'x'), ('c:up', b'x')]
BAD_TAR = [*([e] for e in SECRET),
    [('out', {**LINK, 'linkname': '..'}), ('out/up', b'x')], [('out', {**LINK, 'linkname': '/'})], [('mine', {**LINK, 'linkname': '../secret'})],
    [('mine', {**HARD, 'linkname': '../secret'})], [('mine', {**HARD, 'linkname': '/etc/passwd'})], [('d/mine', {**LINK, 'linkname': '../../secret'})],
    [('a/b/c', b'x'), ('loop', {**LINK, 'linkname': 'a'}), ('loop/../../up', b'x')], [('me', {**LINK, 'linkname': 'me'})], [('to-a-folder', {**LINK, 'linkname': '.'})],
    [('late', {**LINK, 'linkname': 'x'}), ('x', b'x')],
    *([('dev', dict(type=t))] for t in (tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE)), [('huge', dict(size=10**12))], [('a', b'x'), ('a/b', b'x')]]
BAD_ZIP = [*([e] for e in SECRET), [('mine', (0o120777, b'../secret'))], [('out', (0o120777, b'..')), ('out/up', b'x')], [('mine', (0o120777, bytes(10_000)))], [('fifo', (0o010666, b''))]]

@pytest.mark.parametrize('make,entries', [(tar, e) for e in BAD_TAR] + [(zipped, e) for e in BAD_ZIP])
def test_harm_is_refused(tmp_path, make, entries):
    box = tmp_path/'box'; box.mkdir(); (tmp_path/'secret').write_text('secret')
    f = make(box/'f', *GOOD, *entries)
    with pytest.raises(InputError, match='f can.t be unpacked: '): _unpack(f, box/'out', progress=False)
    assert left(box) == ['f'] and sorted(p.name for p in tmp_path.iterdir()) == ['box', 'secret']

def test_bombs(tmp_path, monkeypatch):
    zeros = bytes(10_000_000)
    for f in (zipped(tmp_path/'z', ('0', zeros)), tar(tmp_path/'t', ('0', zeros), mode='w:xz')):
        assert f.stat().st_size < 20_000
        with pytest.raises(InputError, match='more than 5.0 MB'): _unpack(f, tmp_path/'out', most=5_000_000, progress=False)
    monkeypatch.setattr(dl, '_most_entries', 100)
    f = tar(tmp_path/'many', *((str(i), b'') for i in range(101)))
    with pytest.raises(InputError, match='100 entries'): _unpack(f, tmp_path/'out', progress=False)
    monkeypatch.setattr(dl.shutil, 'disk_usage', lambda p: shutil._ntuple_diskusage(100, 100, 0))
    with pytest.raises(InputError, match='Free some space'): _unpack(tmp_path/'t', tmp_path/'out', progress=False)
    assert left(tmp_path) == ['many', 't', 'z']

def test_a_zip_that_lies_about_a_size(tmp_path):
    f = zipped(tmp_path/'f', ('0', bytes(1_000_000)))
    b = bytearray(f.read_bytes())
    at = b.rindex(b'PK\x01\x02')+24; b[at:at+4] = (1000).to_bytes(4, 'little'); f.write_bytes(b)
    with pytest.raises(InputError, match="can't be unpacked"): _unpack(f, tmp_path/'out', progress=False)

@pytest.mark.parametrize('kind', ['w', 'w:gz', 'w:bz2', 'w:xz', 'zip'])
@pytest.mark.parametrize('share', [0, .001, .3, .99])
def test_half_an_archive(tmp_path, kind, share):
    entries = [(str(i), np.random.default_rng(i).bytes(5000)) for i in range(20)]
    f = zipped(tmp_path/'f', *entries) if kind == 'zip' else tar(tmp_path/'f', *entries, mode=kind)
    b = f.read_bytes(); f.write_bytes(b[:min(int(share*len(b)), 100_000)])
    with pytest.raises(InputError, match="can't be unpacked"): _unpack(f, tmp_path/'out', progress=False)
    assert left(tmp_path) == ['f']

def slow_unpack(f, out):
    real = dl._unpack_entry
    def slow(*args, **how): time.sleep(.05); real(*args, **how)
    dl._unpack_entry = slow
    _unpack(f, out, progress=False)

@needs_kill
def test_killed_while_unpacking(tmp_path):
    f = tar(tmp_path/'f', *((str(i), b'x') for i in range(100)))
    p = child(slow_unpack, f, tmp_path/'out')
    started = lambda: [q for q in tmp_path.glob('.out.*.unpacking') if any(q.iterdir())]
    wait_for(started)
    os.kill(p.pid, signal.SIGKILL); p.join(60)
    assert started() and not (tmp_path/'out').exists()
    assert len(list(_unpack(f, tmp_path/'out', progress=False).iterdir())) == 100 and left(tmp_path) == ['f', 'out']

def test_two_unpack_at_once(tmp_path):
    f = tar(tmp_path/'f', *((str(i), b'x') for i in range(10)))
    both = [child(slow_unpack, f, tmp_path/'out') for _ in range(2)]
    for p in both: p.join(60)
    assert [p.exitcode for p in both] == [0, 0] and len(list((tmp_path/'out').iterdir())) == 10 and left(tmp_path) == ['f', 'out']
