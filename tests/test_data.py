"What a notebook can't do to the cache and to a folder of photos: two builders at once, kills, damage, links in a circle, and files that lie."
import io, json, multiprocessing as mp, os, shutil, signal, time, tracemalloc, warnings, zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile

from recon_nb import photos as reading
from recon_nb.core import InputError
from recon_nb.data import load_photos, split_photos
from recon_nb.photos import _cache_dir, clear_cache, open_rgb

HOW = dict(size=16, cuts=dict(i_r=1., i_in=1/3), workers=2, progress=False)
FORMATS = dict(jpg='JPEG', png='PNG', webp='WEBP', bmp='BMP', tiff='TIFF')


def noise(seed, w=40, h=30): return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (h,w,3), dtype=np.uint8))

def encoded(fmt, im=None, **kw):
    buf = io.BytesIO()
    (im or noise(0)).save(buf, fmt, **kw)
    return buf.getvalue()

def crcs(photos): return {k: zlib.crc32(np.array(v)) for k,v in photos.cuts.items()}

def entries(hidden=False): return sorted(p for p in (_cache_dir()/'photos').glob('*') if p.name.startswith('.') == hidden)

def quiet(*args, **kw):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return load_photos(*args, **{**HOW, **kw})

@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('RECON_NB_CACHE', str(tmp_path/'cache'))
    return tmp_path/'cache'

@pytest.fixture
def photos(tmp_path):
    root = tmp_path/'photos'
    root.mkdir()
    for i in range(12): noise(i).save(root/f'{i:02}.png')
    return root

@pytest.fixture
def no_decoding(monkeypatch):
    def refuse(*_, **__): raise AssertionError('a photo was decoded')
    return lambda: monkeypatch.setattr(reading, 'open_rgb', refuse)


# --- other processes ---

def slow_open(src, **how):
    time.sleep(.03)
    return open_rgb(src, **how)

def build(root, env, barrier, queue):
    os.environ.update(env)
    reading.open_rgb = slow_open
    barrier.wait()
    queue.put(crcs(load_photos(root, **HOW)))

def test_two_processes_build_at_once(photos, cache):
    ctx = mp.get_context('spawn')
    barrier, queue = ctx.Barrier(2), ctx.Queue()
    both = [ctx.Process(target=build, args=(photos, dict(RECON_NB_CACHE=str(cache)), barrier, queue)) for _ in range(2)]
    for p in both: p.start()
    got = [queue.get(timeout=300) for _ in both]
    for p in both: p.join(60)
    assert [p.exitcode for p in both] == [0, 0]
    assert got[0] == got[1] == crcs(load_photos(photos, **HOW))
    assert len(entries()) == 1 and not entries(hidden=True)

@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='needs SIGKILL')
def test_kill_in_the_middle(photos, cache):
    ctx = mp.get_context('spawn')
    barrier, queue = ctx.Barrier(1), ctx.Queue()
    p = ctx.Process(target=build, args=(photos, dict(RECON_NB_CACHE=str(cache)), barrier, queue))
    p.start()
    end = time.time()+60
    while not entries(hidden=True) and time.time() < end: time.sleep(.005)
    time.sleep(.05)
    os.kill(p.pid, signal.SIGKILL)
    p.join(60)
    assert p.exitcode == -signal.SIGKILL and not entries() and len(entries(hidden=True)) == 1
    whole = load_photos(photos, **HOW)
    assert len(whole) == 12 and len(entries()) == 1 and len(entries(hidden=True)) == 1     # it may still be somebody's
    left, = entries(hidden=True)
    for f in (*left.iterdir(), left): os.utime(f, (time.time()-90000,)*2)
    load_photos(photos, **{**HOW, 'size': 8})
    assert not entries(hidden=True) and len(entries()) == 2

def test_a_slower_builder_uses_the_winners_entry(photos, monkeypatch):
    replace, won = os.replace, []
    def lose(a, b):
        if Path(a).is_dir() and not won: shutil.copytree(a, b); won.append(os.stat(b).st_ino)
        replace(a, b)
    monkeypatch.setattr(os, 'replace', lose)
    assert len(load_photos(photos, **HOW)) == 12
    assert [os.stat(e).st_ino for e in entries()] == won and not entries(hidden=True)

def test_interrupt_leaves_nothing(photos, monkeypatch):
    def interrupt(src, **how): raise KeyboardInterrupt
    monkeypatch.setattr(reading, 'open_rgb', interrupt)
    with pytest.raises(KeyboardInterrupt): load_photos(photos, **HOW)
    assert not entries() and not entries(hidden=True)


# --- damage ---

def flip(name, at):
    def harm(e): b = bytearray((e/name).read_bytes()); b[at] ^= 4; (e/name).write_bytes(b)
    return harm
def cut(name, keep):
    def harm(e): b = (e/name).read_bytes(); (e/name).write_bytes(b[:int(keep*len(b))])
    return harm
def rewrite(e): m = json.loads((e/'meta.json').read_text()); m['names'][0] = 'other.png'; (e/'meta.json').write_text(json.dumps(m))

@pytest.mark.parametrize('harm', [
    flip('i_r.npy', -1), flip('i_in.npy', 5000), flip('i_r.npy', 0), flip('i_r.npy', 40), flip('i_r.npy', 9), cut('i_r.npy', .5), cut('i_in.npy', 0),
    cut('meta.json', .5), cut('meta.json', 0), flip('meta.json', 30), rewrite, lambda e: (e/'meta.json').write_text('[]'), lambda e: (e/'i_r.npy').unlink(),
    lambda e: (e/'meta.json').unlink(), lambda e: [f.unlink() for f in e.iterdir()], lambda e: shutil.copy(e/'i_in.npy', e/'i_r.npy')])
def test_damage_is_found_and_mended(photos, harm, no_decoding):
    want = crcs(load_photos(photos, **HOW))
    entry, = entries()
    harm(entry)
    with pytest.warns(UserWarning, match='damaged'): got = load_photos(photos, **HOW)
    assert crcs(got) == want and got.names[0] == '00.png' and entries() == [entry] and not entries(hidden=True)
    no_decoding()
    assert crcs(load_photos(photos, **HOW)) == want

@pytest.fixture
def pixels_read(monkeypatch):
    "How many of an entry's pixels were read for their checksum, call by call."
    seen, crc32 = [], zlib.crc32
    def counted(data, *start):
        if isinstance(data, np.ndarray): seen.append(data.nbytes)
        return crc32(data, *start)
    monkeypatch.setattr(reading.zlib, 'crc32', counted)
    def since(): n = sum(seen); seen.clear(); return n
    return since

def test_an_entry_is_read_whole_only_after_a_change(photos, cache, pixels_read):
    one = 12*16*16*3
    for _ in range(2): load_photos(photos, **HOW); assert pixels_read() == 0               # not even when it was just built
    entry, = entries()
    shutil.move(cache, copy := photos.parent/'copy')
    shutil.copytree(copy, cache, copy_function=shutil.copyfile)                            # without the files' times
    load_photos(photos, **HOW); assert pixels_read() == 2*one
    load_photos(photos, **HOW); assert pixels_read() == 0
    meta = json.loads((entry/'meta.json').read_text())
    del meta['stamp']; (entry/'meta.json').write_text(json.dumps({**meta, 'seal': reading._seal(meta)}))      # as an older version wrote it
    load_photos(photos, **HOW); assert pixels_read() == 2*one
    load_photos(photos, **HOW); assert pixels_read() == 0
    os.utime(entry/'i_r.npy'); load_photos(photos, **HOW); assert pixels_read() == one

def test_an_entry_that_goes_while_it_is_checked_stays_away(photos, monkeypatch):
    load_photos(photos, **HOW)
    entry, = entries()
    os.utime(entry/'i_r.npy')
    crc32 = zlib.crc32
    def cleared(data, *start):
        if isinstance(data, np.ndarray): shutil.rmtree(entry, ignore_errors=True)
        return crc32(data, *start)
    monkeypatch.setattr(reading.zlib, 'crc32', cleared)
    assert len(load_photos(photos, **HOW)) == 12 and not entry.exists()

def test_taken_photos_are_copies(photos):
    got = load_photos(photos, **HOW)
    for index in ([3], 3, np.arange(12) == 3, np.array([3])):
        x = got.take(index)['i_r']
        assert type(x) is np.ndarray and x.shape == (1,16,16,3) and x.base is None and x.flags.writeable and (x == got.cuts['i_r'][3]).all()
    with pytest.raises(IndexError): got.take(slice(0, 3))
    many = replace(got, cuts=dict(i_r=np.zeros((1000,32,32,3), dtype=np.uint8)))
    tracemalloc.start()
    try: many.take(np.arange(1000)); peak = tracemalloc.get_traced_memory()[1]
    finally: tracemalloc.stop()
    assert peak < 1.2*many.cuts['i_r'].nbytes                                              # copied once

def test_a_loaded_set_outlives_its_entry(photos):
    got = load_photos(photos, **HOW)
    want = crcs(got)
    assert clear_cache() > 0 and crcs(got) == want


# --- when the cache is used, and where it lies ---

def test_what_makes_another_entry(photos, no_decoding):
    load_photos(photos, **HOW)
    os.utime(photos/'03.png', (1e9, 1e9)); load_photos(photos, **HOW)
    noise(50).save(photos/'new.png'); load_photos(photos, **HOW)
    load_photos(photos, **{**HOW, 'cuts': dict(i_r=1.)}); load_photos(photos, **{**HOW, 'size': 17})
    shutil.copytree(photos, photos.parent/'twin'); load_photos(photos.parent/'twin', **HOW)
    assert len(entries()) == 6
    no_decoding()
    (photos/'note.txt').write_text('a text changes nothing')
    assert len(load_photos(str(photos)+'/.', **{**HOW, 'workers': 1})) == 13

def test_photos_are_left_alone(photos):
    before = {p: p.stat().st_mtime_ns for p in [photos, *photos.iterdir()]}
    load_photos(photos, **HOW)
    assert before == {p: p.stat().st_mtime_ns for p in [photos, *photos.iterdir()]}

def test_cache_among_the_photos_is_refused(photos, monkeypatch):
    for where in (photos, photos/'sub/cache'):
        monkeypatch.setenv('RECON_NB_CACHE', str(where))
        with pytest.raises(InputError, match='among the photos'): load_photos(photos, **HOW)
    monkeypatch.setenv('RECON_NB_CACHE', str(photos/'.cache/recon_nb'))      # as when the home folder itself is given
    assert len(load_photos(photos, **HOW)) == 12 == len(load_photos(photos, **HOW))

def test_unwritable_and_full(photos, monkeypatch):
    monkeypatch.setattr(reading.shutil, 'disk_usage', lambda p: shutil._ntuple_diskusage(100, 100, 0))
    with pytest.raises(InputError, match='are needed.*RECON_NB_CACHE'): load_photos(photos, **HOW)
    assert not entries() and not entries(hidden=True)
    monkeypatch.setenv('RECON_NB_CACHE', str(photos/'00.png'/'x'))
    with pytest.raises(InputError, match='RECON_NB_CACHE'): load_photos(photos, **HOW)

def test_clear_cache_takes_only_its_own(photos, cache, capsys):
    load_photos(photos, **HOW)
    entry, = entries()
    mine = [cache/'photos/holiday.npy', cache/'photos'/('g'*32)/'a.npy', cache/'other/b.npy', entry/'c.txt', photos.parent/'away/d.npy']
    for f in mine: f.parent.mkdir(parents=True, exist_ok=True); f.write_text('mine')
    (cache/'photos'/('a'*32)).symlink_to(photos.parent/'away')
    want = sum(f.stat().st_size for f in entry.iterdir() if f.name != 'c.txt')
    assert clear_cache() == want and all(f.exists() for f in mine) and 'freed' in capsys.readouterr().out
    assert clear_cache() == 0

def test_size_is_said_once(photos, capsys):
    for _ in range(2): load_photos(photos, **{**HOW, 'progress': True})
    out = capsys.readouterr().out
    assert out.count('12 photos cached') == 1 and 'kB' in out


# --- folders ---

def test_links_in_a_circle(photos):
    (photos/'a/b').mkdir(parents=True)
    noise(1).save(photos/'a/b/x.png')
    (photos/'a/b/up').symlink_to(photos); (photos/'a/self').symlink_to(photos/'a'); (photos/'knot.png').symlink_to(photos/'knot.png')
    got = quiet(photos)
    assert got.names[-1] == 'a/b/x.png' and len(got) == 13 and [s['name'] for s in got.skipped] == ['knot.png']

def test_a_linked_folder_counts_once(tmp_path):
    for c in 'xy': (tmp_path/f'set/{c}').mkdir(parents=True); noise(1).save(tmp_path/f'set/{c}/1.png')
    (tmp_path/'set/a').symlink_to(tmp_path/'set/y')
    (tmp_path/'out').mkdir(); noise(2).save(tmp_path/'out/2.png'); (tmp_path/'set/b').symlink_to(tmp_path/'out')
    got = load_photos(tmp_path/'set', **HOW)
    assert got.names == ['b/2.png', 'x/1.png', 'y/1.png'] and got.classes == ('b','x','y') and got.labels.tolist() == [0,1,2]

@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs a pipe')
def test_what_only_looks_like_a_photo(photos, monkeypatch):
    os.mkfifo(photos/'pipe.jpg'); (photos/'folder.jpg').mkdir(); noise(1).save(photos/'folder.jpg/in.png')
    (photos/'empty.jpg').touch(); (photos/'dead.png').symlink_to('nowhere'); noise(1).save(photos/'ppm.jpg', 'PPM')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 5000); noise(1, 200, 200).save(photos/'bomb.png')
    with pytest.warns(UserWarning) as said: got = load_photos(photos, **HOW)
    assert {s['name'] for s in got.skipped} == {'pipe.jpg', 'empty.jpg', 'dead.png', 'ppm.jpg', 'bomb.png'}
    assert len(said) == 1 and 'skipped 5 of 18' in str(said[0].message) and 'folder.jpg/in.png' in got.names

def test_file_names_that_are_no_text(photos):
    try: Path(os.fsdecode(os.fsencode(photos)+b'/\xff.png')).write_bytes(encoded('PNG'))
    except OSError: pytest.skip('this file system takes text only')
    for _ in range(2): assert '\\udcff.png' in quiet(photos).names
    '\n'.join(quiet(photos).names).encode()

def test_half_bad_is_the_limit(photos):
    for i in range(12): (photos/f'bad{i}.jpg').write_text('no')
    assert len(quiet(photos).skipped) == 12
    (photos/'bad.jpg').write_text('no')
    with pytest.raises(InputError, match='13 of 25.*bad.jpg'): quiet(photos)
    for p in photos.glob('[01]*'): p.unlink()
    with pytest.raises(InputError, match='13 of 13'): quiet(photos)

def test_skipping_changes_the_number_of_digits(photos):
    for i in range(2, 12): (photos/f'{i:02}.png').unlink()
    for i in range(10, 17): noise(i).save(photos/f'{i}.png')
    (photos/'z.png').write_text('no')                               # 10 files, 9 photos: a shorter header
    assert len(quiet(photos)) == 9 and np.load(entries()[0]/'i_r.npy').shape == (9,16,16,3)

def test_truncated_whatever_pillow_is_told(photos, monkeypatch):
    for suffix,fmt in FORMATS.items(): b = encoded(fmt); (photos/f'torn.{suffix}').write_bytes(b[:len(b)*2//3])
    monkeypatch.setattr(ImageFile, 'LOAD_TRUNCATED_IMAGES', True)
    assert len(quiet(photos).skipped) == 5 and ImageFile.LOAD_TRUNCATED_IMAGES

def test_few_photos(tmp_path):
    root = tmp_path/'few'
    root.mkdir()
    noise(0, 1, 1).save(root/'a.png')
    one = load_photos(root, **{**HOW, 'size': 80})
    assert one.cuts['i_in'].shape == (1,80,80,3)
    with pytest.raises(InputError, match='2 or more'): split_photos(one)
    noise(1, 9, 4000).save(root/'b.jpg')
    assert [len(i) for i in split_photos(load_photos(root, **HOW))] == [1, 1]


# --- files ---

@pytest.mark.parametrize('fmt', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientation(fmt, orientation):
    upright = Image.new('RGB', (64,32), 'blue'); upright.paste('red', (0,0,32,16)); upright.paste('white', (32,0,64,16))
    exif = Image.Exif(); exif[ExifTags.Base.Orientation] = orientation
    stored = upright if orientation == 1 else upright.transpose(reading._turns[{6: 8, 8: 6}.get(orientation, orientation)])
    got = open_rgb(io.BytesIO(encoded(fmt, stored, exif=exif)))
    assert got.size == (64,32) and np.abs(np.asarray(got).astype(int)-np.asarray(upright)).mean() < 12

def test_several_frames_give_the_first():
    for fmt in ('MPO', 'GIF', 'PNG', 'WEBP', 'AVIF'):
        got = open_rgb(io.BytesIO(encoded(fmt, Image.new('RGB', (40,30), 'teal'), save_all=True, append_images=[noise(1)])))
        assert np.abs(np.asarray(got).astype(int)-(0,128,128)).max() < 5

@pytest.mark.parametrize('fmt', FORMATS.values())
def test_spoilt_bytes_give_a_picture_or_oserror(fmt, monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100_000)
    whole, rng, refused = encoded(fmt, **(dict(exif=b'Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0') if fmt in ('JPEG','PNG') else {})), np.random.default_rng(0), 0
    for i in range(150):
        b = bytearray(whole)
        for at in rng.integers(0, min(len(b), (200, len(b))[i%2]), 3): b[at] = rng.integers(256)
        if i%3 == 0: b = b[:rng.integers(len(b))]
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try: assert open_rgb(io.BytesIO(b)).mode == 'RGB'
            except OSError: refused += 1
    assert refused > 0

@pytest.mark.parametrize('mode', ['1', 'L', 'P', 'LA', 'PA', 'RGBA', 'RGBa', 'CMYK', 'YCbCr', 'HSV', 'LAB', 'I', 'F', 'I;16', 'I;16B', 'I;16L', 'RGBX'])
def test_every_mode_of_pillow(mode):
    assert open_rgb(Image.new(mode, (5,4))).mode == 'RGB'

def test_deep_pictures_are_scaled():
    a = np.arange(256, dtype=np.uint16).reshape(16, 16)*257
    as_bytes = lambda x: np.asarray(open_rgb(Image.fromarray(x)))[...,0]
    want = np.arange(256).reshape(16, 16)
    for x in (a, a.astype(np.int32), a.astype(np.float32), (a/65535).astype(np.float32), (want).astype(np.float32)): assert (as_bytes(x) == want).all()
    assert (as_bytes(np.where((0 < want) & (want < 9), np.nan, want).astype(np.float32))[0] == [0]*9+[*range(9, 16)]).all()
    assert (as_bytes((a.astype(np.int32)-5000).clip(-100)) <= want).all()
