"""What other systems do, shown on this one: a rename that is refused while another program holds the file, paths with backslashes, processes that
are spawned and not forked, and disks that do not tell capitals from small letters. On Windows and macOS themselves: `.github/workflows/systems.yml`."""
import ast, errno, hashlib, io, json, multiprocessing as mp, os, re, tarfile, threading, zipfile
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rude
from recon_nb import cli, download as dl
from recon_nb.checkpoint import load_tensors, save_tensors
from recon_nb.config import config_from_dict
from recon_nb.core import InputError
from recon_nb.data import load_photos
from recon_nb.download import _unpack, download
from recon_nb.export import export_encoder
from recon_nb.run import GANRun
from recon_nb.shapes import draw_shapes
from recon_nb.training import train_gan

ROOT = Path(__file__).resolve().parents[1]
TINY = dict(width=4, width_d=4, size=32, bs=8, epochs=1, seed=3)
HOW = dict(size=16, cuts=dict(i_r=1.), progress=False)
PHOTOS = draw_shapes(24, size=32)[0]


def save_photos(folder, names=('0.png', '1.png', '2.png')):
    for k,n in enumerate(names):
        (folder/n).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PHOTOS[k]).save(folder/n, format='PNG')
    return folder


# --- a rename that is refused ---

@pytest.fixture
def held(monkeypatch):
    "Each file is held by another program for the first two renames onto it; a plain `os.rename` is refused always. Gives what was moved."
    real, asked, moved = os.replace, {}, []
    def replace(src, dst, **kw):
        asked[str(dst)] = asked.get(str(dst), 0)+1
        if asked[str(dst)] % 3: raise PermissionError(errno.EACCES, 'Access is denied', str(src), None, str(dst))
        moved.append(Path(dst).name)
        real(src, dst, **kw)
    def rename(src, dst, **kw): raise PermissionError(errno.EACCES, 'Access is denied', str(src), None, str(dst))
    monkeypatch.setattr(os, 'replace', replace)
    monkeypatch.setattr(os, 'rename', rename)
    monkeypatch.setattr('recon_nb.core.time.sleep', lambda s: None)
    return moved


def test_training_and_features_wait_for_who_holds_a_file(held, tmp_path, monkeypatch):
    monkeypatch.setenv('RECON_NB_CACHE', str(tmp_path/'cache'))
    run = train_gan(PHOTOS, run_dir=tmp_path/'run', progress=False, **TINY)
    train_gan(PHOTOS, run_dir=tmp_path/'run', progress=False, resume=True, epochs=2)
    assert {'checkpoint.safetensors', 'checkpoint-previous.safetensors', 'config.json', 'run.json'} <= {*held}
    assert GANRun.load(tmp_path/'run').step == 2*run.step
    export_encoder(run, tmp_path/'enc.safetensors')
    with redirect_stdout(io.StringIO()): assert cli.embed([str(tmp_path/'enc.safetensors'), str(save_photos(tmp_path/'p')), '-o', str(tmp_path/'f.npy')]) == 0
    assert len(np.load(tmp_path/'f.npy')) == 3 and {'f.npy', 'f.npy.txt', 'enc.safetensors'} <= {*held}
    assert sum(bool(re.fullmatch('[0-9a-f]{32}', n)) for n in held) >= 1                     # entries of the cache
    assert not [*tmp_path.rglob('*.tmp')]


def test_downloads_wait_for_who_holds_a_file(held, tmp_path, monkeypatch):
    body = io.BytesIO()
    with zipfile.ZipFile(body, 'w') as z: z.writestr('a/x.txt', 'x')
    monkeypatch.setattr(dl, '_pause', 0)
    with rude.serving(monkeypatch) as s:
        s.routes['/a'] = dict(body=body.getvalue())
        got = download(s.url+'a', tmp_path/'a.zip', checksum='md5:'+hashlib.md5(body.getvalue()).hexdigest(), progress=False)
    assert (_unpack(got, tmp_path/'a', progress=False)/'a/x.txt').read_text() == 'x'
    assert held.count('a.zip') == held.count('a') == 1


def test_one_that_is_held_for_good_is_named_and_what_was_there_stays(tmp_path, monkeypatch):
    train_gan(PHOTOS, run_dir=tmp_path/'run', progress=False, **TINY)
    before = load_tensors(tmp_path/'run/checkpoint.safetensors')[0]
    def refuse(src, dst, **kw): raise PermissionError(errno.EACCES, 'Access is denied', str(src))
    monkeypatch.setattr(os, 'replace', refuse)
    monkeypatch.setattr('recon_nb.core.time.sleep', lambda s: None)
    with pytest.raises((OSError, InputError), match=r'Access is denied.*run'):
        train_gan(PHOTOS, run_dir=tmp_path/'run', progress=False, resume=True, epochs=2)
    monkeypatch.undo()
    after = load_tensors(tmp_path/'run/checkpoint.safetensors')[0]
    assert after.keys() == before.keys() and all(torch.equal(after[k], before[k]) for k in before)
    assert GANRun.load(tmp_path/'run').step > 0


def test_nothing_moves_a_file_without_trying_again():
    "Each move in the library is `_replace_file`; only a damaged entry of the cache is put aside at once, and may stay."
    moves = []
    for f in sorted((ROOT/'recon_nb').glob('*.py')):
        for n in ast.parse(f.read_text(encoding='utf-8')).body:
            if isinstance(n, (ast.FunctionDef, ast.ClassDef)):
                moves += [(f.stem, n.name) for x in ast.walk(n) if isinstance(x, ast.Attribute) and re.fullmatch(r'os\.(replace|renames?)|shutil\.move', f"{getattr(x.value, 'id', '')}.{x.attr}")]
    assert {*moves} == {('core', '_replace_file'), ('photos', '_from_cache')}


# --- backslashes ---

def test_a_table_written_on_windows(tmp_path):
    save_photos(tmp_path, ('sub/a.png', 'sub/b.png', 'c.png'))
    for name,column in (('known', 'path'), ('unknown', 'where')):
        (tmp_path/f'{name}.csv').write_text(f'{column},label\nsub\\a.png,x\n.\\sub\\b.png,y\nc.png,x\n')
        photos = load_photos(tmp_path/f'{name}.csv', **HOW)
        assert photos.names == ['sub/a.png', 'sub/b.png', 'c.png'] and photos.classes == ('x', 'y')
    slashes = load_photos([tmp_path/n for n in ('sub/a.png', 'sub/b.png', 'c.png')], **HOW)
    assert np.array_equal(photos.cuts['i_r'], slashes.cuts['i_r'])


@pytest.mark.skipif(os.name == 'nt', reason='a backslash is no letter there')
def test_a_name_with_a_backslash_is_a_name(tmp_path):
    save_photos(tmp_path, ('sub\\a.png', 'sub/a.png'))
    (tmp_path/'t.csv').write_text('path\nsub\\a.png\nsub/a.png\n')
    photos = load_photos(tmp_path/'t.csv', **HOW)
    assert photos.names == ['sub\\a.png', 'sub/a.png']
    assert np.array_equal(photos.cuts['i_r'], load_photos([tmp_path/'sub\\a.png', tmp_path/'sub/a.png'], **HOW).cuts['i_r'])


@pytest.mark.skipif(os.name == 'nt', reason='there it may be')
def test_a_folder_of_another_system_is_refused_by_its_name():
    for f in (lambda: load_photos('C:\\photos\\birds', **HOW), lambda: GANRun.load('C:\\photos\\birds'), lambda: load_photos(['C:\\photos\\birds'], **HOW)):
        with pytest.raises(InputError, match=r'C:\\+photos\\+birds'): f()


def test_a_run_of_windows_opens_here_and_names_its_teacher(tmp_path):
    run = train_gan(PHOTOS, run_dir=tmp_path/'run', progress=False, **TINY)
    made = config_from_dict({**vars(run.cfg), 'init': 'D:\\models\\first run\\encoder.safetensors', 'data': 'C:\\photos\\birds'})
    assert made.init_name == 'encoder.safetensors'
    (tmp_path/'run/config.json').write_text(made.to_json())
    tensors, state = load_tensors(tmp_path/'run/weights.safetensors')
    assert state['config']['data'] == run.cfg.data
    save_tensors(tmp_path/'run/weights.safetensors', tensors, {**state, 'config': json.loads(made.to_json())})
    opened = GANRun.load(tmp_path/'run')
    assert opened.cfg.data == 'C:\\photos\\birds' and opened.reconstruct(PHOTOS[:2])[0].shape[0] == 2


@pytest.mark.parametrize('name', ['..\\up.txt', 'a\\b.txt', 'C:\\up.txt', 'C:up.txt', '\\\\server\\share\\up.txt'])
def test_an_archive_with_backslashes_is_refused(name, tmp_path):
    with tarfile.open(tmp_path/'a.tar', 'w') as t:
        m = tarfile.TarInfo(name)
        m.size = 1
        t.addfile(m, io.BytesIO(b'x'))
    with pytest.raises(InputError, match='leads out of the folder'): _unpack(tmp_path/'a.tar', tmp_path/'out', progress=False)
    assert not (tmp_path/'out').exists() and sorted(p.name for p in tmp_path.iterdir() if p.suffix != '.lock') == ['a.tar']


# --- spawned, not forked ---

def train_elsewhere(folder, queue):
    torch.set_num_threads(1)
    os.environ['RECON_NB_CACHE'] = str(folder/'cache')
    photos = load_photos(folder/'photos', **HOW)
    train_gan(PHOTOS, run_dir=folder/'spawned', progress=False, **TINY)
    queue.put((photos.names, threading.active_count()))


@pytest.mark.slow
def test_a_spawned_process_trains_the_same(tmp_path):
    save_photos(tmp_path/'photos')
    queue = mp.get_context('spawn').Queue()
    p = mp.get_context('spawn').Process(target=train_elsewhere, args=(tmp_path, queue))
    p.start()
    names, _ = queue.get(timeout=300)
    p.join(60)
    assert p.exitcode == 0 and names == ['0.png', '1.png', '2.png']
    train_gan(PHOTOS, run_dir=tmp_path/'here', progress=False, **TINY)
    a, b = (load_tensors(tmp_path/d/'checkpoint.safetensors')[0] for d in ('here', 'spawned'))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_the_library_starts_threads_and_no_processes():
    "So a script of a user's needs no `if __name__ == '__main__'`, wherever processes are spawned."
    found = {}
    for f in (ROOT/'recon_nb').glob('*.py'):
        tree = ast.parse(f.read_text(encoding='utf-8'))
        names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names} | {n.module or '' for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        names |= {a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
        names |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and getattr(n.value, 'id', '') == 'os'}
        if bad := {x for x in names if 'multiprocessing' in x or x in ('ProcessPoolExecutor', 'DataLoader', 'fork', 'forkpty')}: found[f.stem] = bad
    assert not found


# --- capitals ---

def tells_capitals_apart(folder):
    (folder/'probe').touch()
    return not (folder/'PROBE').exists()


def test_names_that_differ_in_capitals_only_are_two_photos(tmp_path):
    if not tells_capitals_apart(tmp_path): pytest.skip('this disk does not tell them apart')
    names = ['Cat/A.png', 'Cat/a.png', 'Cat/b.PNG', 'cat/A.png', 'cat/a.png', 'cat/b.PNG']
    save_photos(tmp_path/'p', names)
    photos = load_photos(tmp_path/'p', **HOW)
    assert photos.names == names and photos.classes == ('Cat', 'cat') and photos.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert len({a.tobytes() for a in np.array(photos.cuts['i_r'])}) == 6


@pytest.mark.parametrize('kind', ['zip', 'tar'])
def test_an_archive_does_not_lose_a_file_where_capitals_count_for_nothing(kind, tmp_path, monkeypatch):
    "The disk is this one, under names in small letters: as macOS and Windows look them up."
    names, file = ('p/a.png', 'p/b.png', 'p/A.png'), tmp_path/f'x.{kind}'
    if kind == 'zip':
        with zipfile.ZipFile(file, 'w') as z:
            for n in names: z.writestr(n, n)
    else:
        with tarfile.open(file, 'w') as t:
            for n in (*names, names[0]):                                 # a file that comes twice replaces the first, as tar has it
                m = tarfile.TarInfo(n)
                m.size = len(n)
                t.addfile(m, io.BytesIO(n.encode()))
    if tells_capitals_apart(tmp_path): assert sorted(p.name for p in (_unpack(file, tmp_path/'here', progress=False)/'p').iterdir()) == ['A.png', 'a.png', 'b.png']
    joined = Path.joinpath
    monkeypatch.setattr(Path, 'joinpath', lambda self, *parts: joined(self, *(str(p).lower() for p in parts)))
    with pytest.raises(InputError, match="'p/A.png' falls on a file whose name has other capitals"): _unpack(file, tmp_path/'there', progress=False)
    assert not (tmp_path/'there').exists()
