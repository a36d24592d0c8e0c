"""Files as a stranger may have written them: mutations of JSON, of text, of safetensors files and of archives, each chosen by a number; and a guard
that says what opening one did: code that ran, files written, memory taken."""
import io, json, os, pickle, resource, sys, tarfile, zipfile, zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np

# --- mutations; each takes a generator of random numbers and gives bytes or a tree

class Marker:
    "A pickle that would leave a file behind."
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return open, (self.path, 'w')


def pickled(path): return pickle.dumps({'state_dict': Marker(path)})


JUNK = [None, True, False, -1, 0, 1, 3, 7.5, -0.5, 10**6, 10**9, 10**30, -10**19, 1e308, float('nan'), float('inf'), '', 'x', '1', 'a\nb', '\0', 'Ünï ✓', '-h',
        '../../outside', '/etc/passwd', '~', '__import__("os").abort()', '%s{0}', 'paper', 'timm/resnet18', 'knn', 'a'*3000, [], [[]], [1, 2], ['x'], {}, {'': 1}, {'a': {'b': []}}]


def places(tree, at=()):
    "Each node of a JSON tree: the keys that lead to it."
    yield at
    for k in (tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()): yield from places(tree[k], (*at, k))


def changed(tree, at, how):
    "A copy of a tree with one node changed by `how`, a function; KeyError from it takes the node out."
    if not at: return how(tree)
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    try: copy[at[0]] = changed(tree[at[0]], at[1:], how)
    except KeyError: del copy[at[0]]
    return copy


def take_out(node): raise KeyError


def mutate_tree(rng, tree):
    at = [*places(tree)]
    at = at[rng.integers(len(at))]
    junk = JUNK[rng.integers(len(JUNK))]
    ways = [lambda x: junk]*6+[lambda x: [x], lambda x: {'x': x}, lambda x: str(x), lambda x: -x if isinstance(x, (int, float)) else junk]
    ways += [lambda x: {**x, 'something new': junk} if isinstance(x, dict) else junk, lambda x: x*1000 if isinstance(x, (int, list, str)) else junk]
    if at: ways += [take_out]*3
    return changed(tree, at, ways[rng.integers(len(ways))])


def mutate_bytes(rng, b):
    at = int(rng.integers(len(b))) if b else 0
    ways = [b[:at], b[:at]+bytes([rng.integers(256)])+b[at+1:], b[:at]+bytes(rng.integers(256, size=5, dtype=np.uint8))+b[at:], b'', b'\xef\xbb\xbf'+b, b'null', b'[]\n', b'3\n', b'"x"\n',
            b'['*100_000, b'{"a":'*100_000, b'9'*6000, b+b, b[::-1], b.replace(b'\n', b'\r\n'), b.decode('latin-1').encode('utf-16'), b[:at]+b'\0'*200+b[at:], b'{}\n', b'NaN\n', b[at:],
            pickled(MARKER)]
    return ways[rng.integers(len(ways))]


def mutate_json(rng, b):
    if rng.random() < .3: return mutate_bytes(rng, b)
    return json.dumps(mutate_tree(rng, json.loads(b))).encode()


def mutate_lines(rng, b):
    "One of the lines of a JSON Lines file."
    if rng.random() < .3: return mutate_bytes(rng, b)
    lines = b.splitlines()
    i = int(rng.integers(len(lines)))
    ways = [lambda: [*lines[:i], json.dumps(mutate_tree(rng, json.loads(lines[i]))).encode(), *lines[i+1:]]]*8+[lambda: lines[:i]+lines[i+1:], lambda: lines[::-1],
            lambda: [*lines[:i], lines[i], lines[i], *lines[i+1:]], lambda: [*lines[:i], mutate_bytes(rng, lines[i]), *lines[i+1:]]]
    return b'\n'.join(ways[rng.integers(len(ways))]())+b'\n'


def split_tensors(b):
    n = int.from_bytes(b[:8], 'little')
    return json.loads(b[8:8+n]), b[8+n:]


def join_tensors(header, body, n=None):
    text = json.dumps(header).encode()
    return (len(text) if n is None else n).to_bytes(8, 'little')+text+body


def with_sums(header, body):
    "The file with checksums that fit whatever is in it, as its writer would make them."
    meta = dict(header.get('__metadata__') or {})
    crc = {k: zlib.crc32(body[v['data_offsets'][0]:v['data_offsets'][1]]) for k, v in header.items() if k != '__metadata__'}
    meta['crc'] = json.dumps({'': zlib.crc32(meta['state'].encode()), **crc})
    return join_tensors({**header, '__metadata__': meta}, body)


def mutate_tensors(rng, b):
    header, body = split_tensors(b)
    names = [k for k in header if k != '__metadata__']
    k = names[rng.integers(len(names))]
    state = header.get('__metadata__', {}).get('state')
    way = rng.integers(11 if state else 5)
    if way == 0: return mutate_bytes(rng, b)
    if way == 1: return join_tensors(mutate_tree(rng, header), body)
    if way == 2: return join_tensors(header, body, n=[0, 1, 7, 2**31, 2**40, 2**63, 2**64-1, len(b)][rng.integers(8)])
    if way == 3: return pickled(MARKER)
    if way == 4: return join_tensors({**header, k: {**header[k], 'shape': [[2**40], [2**20, 2**20, 2**20], [0], [-1], [], [1, *header[k]['shape']]][rng.integers(6)]}}, body)
    if way == 5: return with_sums({n: v for n, v in header.items() if n != k}, body) if len(body) == 0 else fresh(header, body, {n: v for n, v in header.items() if n != k})
    if way == 6: return fresh(header, body, {('renamed' if n == k else n): v for n, v in header.items()})
    if way == 7: return fresh(header, body, {n: ({**v, 'shape': [int(np.prod(v['shape']))]} if n == k else v) for n, v in header.items()})
    meta = {**header['__metadata__'], 'state': json.dumps(mutate_tree(rng, json.loads(state)))}
    return with_sums({**header, '__metadata__': meta}, body)


def fresh(header, body, entries):
    "The tensors that `entries` names, one after the other."
    out, at, parts = {}, 0, []
    for n, v in entries.items():
        if n == '__metadata__': out[n] = v; continue
        a, z = v['data_offsets']
        out[n] = {**v, 'data_offsets': [at, at+z-a]}
        parts.append(body[a:z]); at += z-a
    return with_sums(out, b''.join(parts))


def mutate_archive(rng, b):
    "A tar or a zip: its bytes, or an entry that a decent tool would not write."
    if rng.random() < .4: return mutate_bytes(rng, b)
    names = ['../outside', '/outside', 'a/../../outside', 'C:\\outside', '..\\outside', 'a\0b', '.', '', 'a'*300, 'a.txt/b', 'new\nline', '-rf', 'Ünï ✓']
    name, out = names[rng.integers(len(names))], io.BytesIO()
    if b[:2] == b'PK':
        with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as z:
            z.writestr('a.txt', 'a')
            info = zipfile.ZipInfo(name or 'x')
            info.external_attr = [0o100644, 0o120777, 0o040755, 0o010644, 0o020644][rng.integers(5)] << 16
            try: z.writestr(info, [b'../outside', b'a.txt', b'/etc/passwd', b'x'*100][rng.integers(4)])
            except ValueError: pass
        return out.getvalue()
    with tarfile.open(fileobj=out, mode='w') as tar:
        tar.addfile(tarfile.TarInfo('a.txt'))
        info = tarfile.TarInfo(name.replace('\0', '') or 'x')
        info.type = [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE][rng.integers(7)]
        info.linkname = ['../outside', 'a.txt', '/etc/passwd', '..', ''][rng.integers(5)]
        tar.addfile(info)
    return out.getvalue()


# --- what opening did

MARKER = Path('marker')                                  # set by the tests to a place that nothing else writes
_watched = []                                            # the list that events go to, while somebody looks
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
RUNS = 'subprocess.Popen', 'os.system', 'os.exec', 'os.posix_spawn', 'os.fork', 'os.forkpty', 'socket.connect', 'pickle.find_class', 'ctypes.dlopen'
MOVES = 'os.rename', 'os.remove', 'os.mkdir', 'os.rmdir', 'os.link', 'os.symlink', 'os.truncate', 'shutil.rmtree'


def _whole(args):
    "The path of an event; what is named within an open folder gets that folder's path."
    path, at = os.fsdecode(args[0]), args[-1]
    return os.path.join(os.readlink(f'/proc/self/fd/{at}'), path) if type(at) is int and at >= 0 and not os.path.isabs(path) else path


def _hook(event, args):
    if not _watched: return
    if event in RUNS: _watched[-1].append((event, str(args[0])))
    elif event == 'open' and isinstance(args[0], (str, bytes)) and args[2] & WRITES: _watched[-1].append(('write', os.fsdecode(args[0])))
    elif event in MOVES: _watched[-1].append((event, _whole(args)))


_installed = []


@contextmanager
def watching():
    "What is run, and which files are written or moved: a list of (event, what)."
    if not _installed: sys.addaudithook(_hook); _installed.append(True)
    _watched.append(seen := [])
    try: yield seen
    finally: _watched.remove(seen)


def _kilobytes(key):
    with open('/proc/self/status') as f: return next(int(line.split()[1]) for line in f if line.startswith(key))


@contextmanager
def memory():
    "The bytes of memory that were taken at most, as the system counts them; 0 where it does not say. No more than 6 GB are given."
    out, can = [0], os.access('/proc/self/clear_refs', os.W_OK)
    if not can: yield out; return
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_kilobytes('VmSize:')*1024+6*2**30, limits[1]))
    with open('/proc/self/clear_refs', 'w') as f: f.write('5')                       # the highest mark becomes what there is
    before = _kilobytes('VmRSS:')
    try: yield out
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        out[0] = 1024*max(0, _kilobytes('VmHWM:')-before)
