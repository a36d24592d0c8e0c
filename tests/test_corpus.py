"""Files as they lie in people's folders, each made here: of each the pixels that are due, or the line in `skipped.jsonl`; nothing in between, and nothing silent.
Depths, signs and floats have their values in test_decoding, single faults of folders in test_data; here all of them lie in one folder, and are trained on."""
import io, json, os, struct, threading, warnings, zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, features

from recon_nb import load_photos, train_gan
from recon_nb.core import InputError
from recon_nb.photos import _turns, open_rgb
from recon_nb.shapes import draw_shapes

HOW = dict(size=16, cuts={'i_r': 1.}, workers=2, progress=False)
SCENE = Image.fromarray(draw_shapes(1, size=48, seed=4)[0][0])
EXACT, CLOSE = 0, 40                                      # grey levels that a pixel may be off: of files that lose nothing, and of those that do


def stored(im, fmt, **how):
    f = io.BytesIO()
    im.save(f, fmt, **how)
    return f.getvalue()


def heif():
    try: import pillow_heif
    except ImportError: return {}
    pillow_heif.register_heif_opener()
    return {'heic': ('HEIF', dict(quality=95), CLOSE)}


FORMATS = {'jpg': ('JPEG', dict(quality=95, subsampling=0), CLOSE), 'png': ('PNG', {}, EXACT), 'webp': ('WEBP', dict(lossless=True), EXACT), 'gif': ('GIF', {}, CLOSE), 'tif': ('TIFF', {}, EXACT), 'bmp': ('BMP', {}, EXACT),
           **({'avif': ('AVIF', dict(quality=95), CLOSE)} if features.check('avif') else {}), **heif()}
FILES = {k: stored(SCENE, fmt, **how) for k, (fmt, how, _) in FORMATS.items()}


def due(im): return np.asarray(im.convert('RGB'))


def read(b):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return np.asarray(open_rgb(io.BytesIO(b)))


def off(a, b): return np.abs(a.astype(int)-b.astype(int)).max()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch): monkeypatch.setenv('RECON_NB_CACHE', str(tmp_path/'cache'))


@pytest.fixture
def folder(tmp_path):
    "Twelve good photos, so that half of the files are never bad."
    d = tmp_path/'photos'
    d.mkdir()
    for i, x in enumerate(draw_shapes(12, size=20, seed=7)[0]): Image.fromarray(x).save(d/f'good {i:02}.png')
    return d


def load(folder, **how):
    "The photos, and what was said."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always', UserWarning)
        got = load_photos(folder, **{**HOW, **how})
    return got, [str(w.message) for w in said if w.category is UserWarning]


def lost(got): return {s['name']: s['why'] for s in got.skipped}


# --- each format

@pytest.mark.parametrize('kind', FILES)
def test_whole_files_have_their_pixels(kind): assert off(read(FILES[kind]), due(SCENE)) <= FORMATS[kind][2]


@pytest.mark.parametrize('kind', FILES)
def test_torn_at_ten_places(kind, folder):
    "A torn file is skipped with a reason. What lacks nothing but its last bytes may still be whole: then its pixels are right."
    whole = FILES[kind]
    places = {f'torn {i}.{kind}': whole[:int(len(whole)*i/10)] for i in range(10)}
    for name, b in places.items(): (folder/name).write_bytes(b)
    got, said = load(folder)
    assert len(said) == 1 and f'skipped {len(got.skipped)} of 22' in said[0] and all(w.strip() and '\n' not in w for w in lost(got).values())
    assert {*lost(got)} | {*got.names} == {*places} | {p.name for p in folder.glob('good*')}
    for name in {*got.names} & {*places}: assert off(read(places[name]), due(SCENE)) <= FORMATS[kind][2], name
    assert len(got.skipped) >= 9


@pytest.mark.parametrize('kind', FILES)
def test_a_wrong_suffix_is_no_fault(kind, folder):
    "The content says what a file is."
    for other in FILES: (folder/f'{kind} as.{other}').write_bytes(FILES[kind])
    (folder/f'capital.{kind.upper()}').write_bytes(FILES[kind])
    got, said = load(folder)
    assert not said and not got.skipped and len(got) == 12+len(FILES)+1
    cuts = got.cuts['i_r'][[i for i, n in enumerate(got.names) if not n.startswith('good')]]
    assert (cuts == cuts[0]).all()


NOT = {'empty': b'', 'zeros': bytes(3000), 'text': b'no photo', 'html': b'<!DOCTYPE html><html></html>', 'pdf': b'%PDF-1.7\n', 'svg': b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'zip': b'PK\3\4'+bytes(200), 'ppm': stored(SCENE, 'PPM'), 'ico': stored(SCENE, 'ICO')}


@pytest.mark.parametrize('kind', FILES)
def test_what_is_no_photo_is_listed(kind, folder):
    for what, b in NOT.items(): (folder/f'{what}.{kind}').write_bytes(b)
    got, said = load(folder)
    assert {*lost(got)} == {f'{what}.{kind}' for what in NOT} and len(got) == 12 and len(said) == 1
    assert all('not a jpg, png' in w or 'empty' in w or 'cannot identify' in w for w in lost(got).values()), lost(got)


@pytest.mark.parametrize('kind', [k for k in FILES if k in ('gif', 'png', 'webp', 'avif', 'heic')])
def test_the_first_of_several_frames(kind):
    fmt, how, most = FORMATS[kind]
    assert off(read(stored(SCENE, fmt, save_all=True, append_images=[Image.new('RGB', SCENE.size, 'red')]*2, **how)), due(SCENE)) <= most


@pytest.mark.parametrize('kind', FILES)
@pytest.mark.parametrize('size', [(1, 1), (1, 50), (2000, 10), (3, 2)])
def test_odd_sizes(kind, size, folder):
    im = Image.new('RGB', size, (200, 120, 40))
    (folder/f'odd.{kind}').write_bytes(stored(im, *FORMATS[kind][:1], **FORMATS[kind][1]))
    got, said = load(folder)
    assert not said and off(got.cuts['i_r'][got.names.index(f'odd.{kind}')], np.array([200, 120, 40])) <= CLOSE


@pytest.mark.parametrize('kind', ['jpg', 'png', 'tif', 'bmp'])
def test_very_wide(kind, folder):
    im = Image.new('RGB', (20_000, 10), 'navy')
    im.paste('gold', (9_990, 0, 10_010, 10))
    (folder/f'wide.{kind}').write_bytes(stored(im, FORMATS[kind][0]))
    got, said = load(folder)
    assert not said and off(got.cuts['i_r'][got.names.index(f'wide.{kind}')], np.array([255, 215, 0])) <= 12       # its middle


# --- channels and depths

def raw_tiff(a, **tags):
    "A TIFF of any number of bands, by hand."
    h, w, n = a.shape
    entries = [(256, 3, w), (257, 3, h), (258, 3, 8*a.itemsize), (259, 3, 1), (262, 3, tags.get('light', 2 if n > 2 else 1)), (273, 4, 0), (277, 3, n), (278, 3, h), (279, 4, a.nbytes), (339, 3, dict(u=1, i=2, f=3)[a.dtype.kind])]
    if 'extra' in tags: entries.append((338, 3, tags['extra']))
    start = 8+2+12*len(entries)+4
    rows = b''.join(struct.pack('<HHI', t, k, 1)+(struct.pack('<I', start) if t == 273 else struct.pack('<HH', v, 0) if k == 3 else struct.pack('<I', v)) for t, k, v in entries)
    return b'II*\0\x08\0\0\0'+struct.pack('<H', len(entries))+rows+bytes(4)+a.tobytes()


def cmyk(marker):
    "A JPEG of four inks, with Adobe's marker (whose inks are counted from full) or without."
    b = stored(SCENE.convert('CMYK'), 'JPEG', quality=95)
    at = b.find(b'\xff\xee')
    if marker: return b
    n = int.from_bytes(b[at+2:at+4], 'big')
    return b[:at]+b[at+2+n:]


GREY = SCENE.convert('L')
ALPHA = SCENE.copy(); ALPHA.putalpha(Image.new('L', SCENE.size, 128))
HALF = (due(SCENE).astype(int)*128+255*127+127)//255
CHANNELS = {   # file -> (content, the pixels that are due, how far they may be off)
    'one.png': (stored(GREY, 'PNG'), due(GREY), EXACT), 'one.jpg': (stored(GREY, 'JPEG', quality=95), due(GREY), CLOSE), 'one.tif': (stored(GREY, 'TIFF'), due(GREY), EXACT),
    'one bit.png': (stored(SCENE.convert('1'), 'PNG'), due(SCENE.convert('1')), EXACT), 'palette.png': (stored(SCENE.quantize(250), 'PNG'), due(SCENE.quantize(250)), EXACT),
    'two.png': (stored(ALPHA.convert('LA'), 'PNG'), (due(GREY).astype(int)*128+255*127+127)//255, 1), 'four.png': (stored(ALPHA, 'PNG'), HALF, 1), 'four.webp': (stored(ALPHA, 'WEBP', lossless=True, exact=True), HALF, 1),
    'four.tif': (stored(ALPHA, 'TIFF'), HALF, 1), 'progressive.jpg': (stored(SCENE, 'JPEG', quality=95, progressive=True), due(SCENE), CLOSE),
    'inks.tif': (stored(SCENE.convert('CMYK'), 'TIFF'), due(SCENE.convert('CMYK')), EXACT),
    'inks of Adobe.jpg': (cmyk(True), due(SCENE), CLOSE), 'lzw.tif': (stored(SCENE, 'TIFF', compression='tiff_lzw'), due(SCENE), EXACT), 'deflate.tif': (stored(SCENE, 'TIFF', compression='tiff_deflate'), due(SCENE), EXACT)}


def interlaced():
    "Adam7 by hand: Pillow reads such a PNG and writes none."
    a, rows = due(SCENE), b''
    for y, x, dy, dx in [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]:
        part = a[y::dy, x::dx]
        if part.size: rows += b''.join(b'\0'+line.tobytes() for line in part)
    chunk = lambda name, data: struct.pack('>I', len(data))+name+data+struct.pack('>I', zlib.crc32(name+data))
    return b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', struct.pack('>IIBBBBB', a.shape[1], a.shape[0], 8, 2, 0, 0, 1))+chunk(b'IDAT', zlib.compress(rows))+chunk(b'IEND', b'')


CHANNELS['interlaced.png'] = interlaced(), due(SCENE), EXACT


@pytest.mark.parametrize('name', CHANNELS)
def test_channels(name, folder):
    b, want, most = CHANNELS[name]
    assert off(read(b), want) <= most
    (folder/name).write_bytes(b)
    got, said = load(folder, size=48)
    assert not said and off(got.cuts['i_r'][got.names.index(name)], want) <= most


def test_inks_are_counted_as_adobe_does_with_its_marker_and_without():
    "No standard says how inks are counted where the marker is missing; programs that leave it out count as Adobe does, from full."
    assert off(read(cmyk(False)), read(cmyk(True))) == 0 and b'Adobe' not in cmyk(False) and b'Adobe' in cmyk(True)


@pytest.mark.parametrize('bands', [2, 5])
def test_bands_that_are_no_colours(bands, folder):
    (folder/'bands.tif').write_bytes(raw_tiff(np.zeros((9, 8, bands), np.uint8)))
    got, said = load(folder)
    assert len(said) == 1 and f'{bands} bands' in lost(got)['bands.tif'] and 'make photos of it' in lost(got)['bands.tif']


DEPTHS = {'uint8': (0, 255), 'uint16': (0, 65535), 'uint32': (0, 2**32-1), 'int16': (-500, 500), 'int32': (-500, 500), 'float32': (0, 1)}


@pytest.mark.parametrize('kind', DEPTHS)
def test_depths(kind, folder):
    low, high = DEPTHS[kind]
    a = (low+(high-low)*np.linspace(0, 1, 256).reshape(16, 16)).astype(kind)
    (folder/'deep.tif').write_bytes(raw_tiff(a[..., None]))
    got, said = load(folder)
    want = np.linspace(0, 255, 256).reshape(16, 16, 1)
    assert off(got.cuts['i_r'][got.names.index('deep.tif')], want.round()) <= 1 and len(said) == (kind != 'uint8')


# --- colour profiles, EXIF

def profile(red, green, blue):
    "A profile of three colours, given as XYZ under D50, and gamma 2.2."
    fixed = lambda *v: b''.join(struct.pack('>i', round(65536*x)) for x in v)
    xyz = lambda v: b'XYZ '+bytes(4)+fixed(*v)
    tags = {b'desc': b'desc'+bytes(4)+struct.pack('>I', 2)+b'x\0'+bytes(78), b'cprt': b'text'+bytes(4)+b'none\0', b'wtpt': xyz((.9642, 1, .8249)), b'rXYZ': xyz(red), b'gXYZ': xyz(green), b'bXYZ': xyz(blue),
            **dict.fromkeys((b'rTRC', b'gTRC', b'bTRC'), b'curv'+bytes(4)+struct.pack('>IH', 1, 563))}
    table, body, at = b'', b'', 128+4+12*len(tags)
    for name, data in tags.items():
        table += name+struct.pack('>II', at+len(body), len(data))
        body += data+bytes(-len(data) % 4)
    head = bytes(4)+b'lcms'+bytes([2, 16, 0, 0])+b'mntrRGB XYZ '+bytes(12)+b'acsp'+bytes(28)+fixed(.9642, 1, .8249)+bytes(48)
    whole = head+struct.pack('>I', len(tags))+table+body
    return struct.pack('>I', len(whole))+whole[4:]


PROFILES = {'Display P3': profile((.5151, .2412, -.0011), (.292, .6922, .0419), (.1571, .0666, .7841)), 'Adobe RGB': profile((.6097, .3111, .0195), (.2053, .6257, .0609), (.1492, .0632, .7446)),
            'sRGB': ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes(), 'damaged': b'no profile at all'}


def test_the_profiles_are_some():
    for name in ('Display P3', 'Adobe RGB'): assert ImageCms.ImageCmsProfile(io.BytesIO(PROFILES[name])).profile.xcolor_space.strip() == 'RGB'


@pytest.mark.parametrize('profile', PROFILES)
@pytest.mark.parametrize('kind', ['jpg', 'png', 'webp', 'tif'])
def test_a_colour_profile_changes_no_number(kind, profile):
    "Numbers are taken as they are stored, whichever colours they stand for: what a network saw and what it is shown then agree."
    fmt, how, most = FORMATS[kind]
    assert off(read(stored(SCENE, fmt, icc_profile=PROFILES[profile], **how)), read(stored(SCENE, fmt, **how))) == 0


@pytest.mark.parametrize('turn', range(1, 9))
@pytest.mark.parametrize('kind', [k for k in FILES if k in ('jpg', 'png', 'webp', 'tif', 'avif')])
def test_exif_in_all_turns(kind, turn, folder):
    exif, flat = Image.Exif(), SCENE
    exif[ExifTags.Base.Orientation] = turn
    if turn > 1: flat = SCENE.transpose(_turns[{6: 8, 8: 6}.get(turn, turn)])
    fmt, how, most = FORMATS[kind]
    assert off(read(stored(flat, fmt, exif=exif, **how)), due(SCENE)) <= most


EXIFS = {'turn 0': b'\x01\x12\0\x03\0\0\0\x01\0\0\0\0', 'turn 9': b'\x01\x12\0\x03\0\0\0\x01\0\x09\0\0', 'a text': b'\x01\x12\0\x02\0\0\0\x04abc\0', 'far away': b'\x01\x12\0\x03\0\0\xff\xff\xff\xff\xff\xff', 'cut off': b'\x01\x12\0'}


@pytest.mark.parametrize('what', EXIFS)
@pytest.mark.parametrize('kind', ['jpg', 'png', 'webp'])
def test_broken_exif_turns_nothing(kind, what, folder):
    fmt, how, most = FORMATS[kind]
    b = stored(SCENE, fmt, exif=b'Exif\0\0MM\0*\0\0\0\x08\0\x01'+EXIFS[what]+bytes(4), **how)
    (folder/f'a.{kind}').write_bytes(b)
    got, said = load(folder)
    assert off(read(b), due(SCENE)) <= most and not said


# --- names, links, pipes, and files that change

def test_names_of_every_sort(folder):
    names = ['new\nline.png', "it's.png", ' space .png', 'Größe ✓.png', '-h.png', '%s{0}.png', 'a'*251+'.png', 'tab\t.png', '名前.png', 'dots...png']
    for n in names: SCENE.save(folder/n)
    odd = os.fsencode(folder)+b'/not utf-8 \xff\xfe.png'
    try: Path(os.fsdecode(odd)).write_bytes(FILES['png'])
    except OSError: odd = None                                                  # this file system takes text only
    got, said = load(folder)
    assert not said and {*names} <= {*got.names} and len(got) == 12+len(names)+bool(odd)
    json.dumps(got.names).encode()
    again, said = load(folder)
    assert again.names == got.names and not said


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs a pipe')
@pytest.mark.parametrize('how', ['folder', 'file', 'list', 'through a link'])
def test_a_pipe_is_not_waited_for(folder, how):
    pipe = folder/'pipe.png'
    os.mkfifo(pipe)
    if how == 'through a link': pipe.rename(folder/'pipe'); pipe.symlink_to(folder/'pipe')
    given, out = dict(file=pipe, list=[*folder.glob('*.png')]).get(how, folder), []
    def work():
        try: out.append(load(given))
        except InputError as e: out.append(str(e))
    t = threading.Thread(target=work, daemon=True)
    t.start(); t.join(60)
    assert not t.is_alive(), 'it waits for somebody to write'
    said = out[0] if isinstance(out[0], str) else out[0][1][0]
    assert 'pipe.png' in said and 'not a file that can be read' in said


def test_links_that_lead_nowhere_or_in_circles(folder):
    (folder/'deep').mkdir()
    (folder/'deep/up').symlink_to(folder); (folder/'deep/self').symlink_to('.')
    (folder/'a.png').symlink_to('b.png'); (folder/'b.png').symlink_to('a.png'); (folder/'gone.png').symlink_to('nowhere.png')
    got, said = load(folder)
    assert {*lost(got)} == {'a.png', 'b.png', 'gone.png'} and len(got) == 12 and len(said) == 1


def test_a_file_that_grows_while_it_is_read(folder, monkeypatch):
    "It is skipped as torn, or read whole, and the next call sees it whole."
    import recon_nb.photos as page
    path, whole, opened = folder/'growing.png', stored(SCENE.resize((400, 400)), 'PNG'), page.open_rgb
    path.write_bytes(whole[:len(whole)//2])
    def grow(src, **how):
        if Path(str(src)).name != 'growing.png': return opened(src, **how)
        try: return opened(src, **how)
        finally: path.write_bytes(whole)
    monkeypatch.setattr(page, 'open_rgb', grow)
    got, said = load(folder)
    assert [*lost(got)] == ['growing.png'] and len(said) == 1
    monkeypatch.undo()
    monkeypatch.setenv('RECON_NB_CACHE', str(folder.parent/'cache'))
    again, said = load(folder)
    assert not said and 'growing.png' in again.names


def test_a_file_that_goes_while_it_is_read(folder, monkeypatch):
    import recon_nb.photos as page
    opened = page.open_rgb
    def gone(src, **how):
        if Path(str(src)).name == 'good 03.png': Path(src).unlink()
        return opened(src, **how)
    monkeypatch.setattr(page, 'open_rgb', gone)
    got, said = load(folder)
    assert [*lost(got)] == ['good 03.png'] and 'No such file' in lost(got)['good 03.png'] and len(said) == 1


def test_a_run_lists_them_all(folder, tmp_path):
    "What `load_photos` says of each file is what `skipped.jsonl` keeps."
    for what, b in NOT.items(): (folder/f'{what}.jpg').write_bytes(b)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        run = train_gan(folder, run_dir=tmp_path/'run', size=32, width=2, bs=4, epochs=1, progress=False)
    listed = [json.loads(line) for line in (run.dir/'skipped.jsonl').read_text().splitlines()]
    assert {r['name'] for r in listed} == {f'{what}.jpg' for what in NOT} and all(r['why'] for r in listed) and run.info['skipped'] == len(NOT)
