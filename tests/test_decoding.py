"Pictures of every depth and format: the right value for each, one range for all of a folder, and a sentence with the line that helps for what is not read."
import io, os, struct, warnings, zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, features

from recon_nb import decoding, load_photos, load_pretrained, photos as reading, train_gan
from recon_nb.config import get_preset
from recon_nb.core import InputError
from recon_nb.decoding import Ranges, open_picture
from recon_nb.export import export_encoder
from recon_nb.labelled import load_labelled
from recon_nb.photos import _cache_dir, _cut_one, _turns, as_images, cut_photos, open_rgb
from recon_nb.shapes import draw_shapes

HOW = dict(size=32, cuts=dict(i_r=1., i_in=1/3), progress=False, workers=2)
RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)      # every value of 12 bits, once
COLORS = np.stack([RAMP, RAMP[::-1], RAMP.T], -1)


def tiff(a, *, endian='<', photometric=None, extra=(), bits=None, data=None, pack=False, more=()):
    "A TIFF by hand: Pillow writes few of the kinds that people have. `more`: tags (number, type, values)."
    h, w, n = (*a.shape, 1)[:3]
    data = a.astype(a.dtype.newbyteorder(endian)).tobytes() if data is None else data
    data = zlib.compress(data) if pack else data
    light = (1 if n < 3 else 2) if photometric is None else photometric
    tags = [(256,4,[w]), (257,4,[h]), (258,3,[bits or 8*a.itemsize]*n), (259,3,[8 if pack else 1]), (262,3,[light]), (273,4,[0]), (277,3,[n]),
            (278,4,[h]), (279,4,[len(data)]), (339,3,[dict(u=1, i=2, f=3)[a.dtype.kind]]*n), *more]
    if extra: tags.append((338,3,list(extra)))
    code, size = {3: 'H', 4: 'I', 9: 'i'}, {3: 2, 4: 4, 9: 4}
    tags.sort()
    start = 8+2+12*len(tags)+4
    end = start+sum(size[k]*len(v) for _,k,v in tags if size[k]*len(v) > 4)
    rows, far = b'', b''
    for tag,kind,values in tags:
        raw = struct.pack(f'{endian}{len(values)}{code[kind]}', *([end] if tag == 273 else values))
        if len(raw) > 4: far, raw = far+raw, struct.pack(endian+'I', start+len(far))
        rows += struct.pack(endian+'HHI', tag, kind, len(values))+raw.ljust(4, b'\0')
    return (b'II*\0' if endian == '<' else b'MM\0*')+struct.pack(endian+'IH', 8, len(tags))+rows+bytes(4)+far+data

def png(a, kind, *chunks):
    "A PNG of 16 bits by hand. `kind`: 0 grey, 2 colors, 4 grey and alpha, 6 colors and alpha."
    def chunk(name, data): return struct.pack('>I', len(data))+name+data+struct.pack('>I', zlib.crc32(name+data))
    rows = b''.join(b'\0'+row.astype('>u2').tobytes() for row in a)
    parts = [(b'IHDR', struct.pack('>IIBBBBB', a.shape[1], a.shape[0], 16, kind, 0, 0, 0)), *chunks, (b'IDAT', zlib.compress(rows)), (b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n'+b''.join(chunk(*p) for p in parts)

def packed(a): # 12 bits: two values in three bytes
    x, y = a.reshape(-1, 2).astype(int).T
    return np.stack([x >> 4, (x & 15) << 4 | y >> 8, y & 255], 1).astype(np.uint8).tobytes()

def bands(x): x = np.asarray(x); return np.stack([x]*3, -1) if x.ndim == 2 else x

def scaled(a, low, high): return bands(((np.asarray(a, dtype=float)-low)*(255/(high-low))).clip(0, 255).round().astype(np.uint8))

def read(b, **how):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return np.asarray(open_rgb(io.BytesIO(b), **how))

def stored(im, fmt='PNG', **kw):
    f = io.BytesIO()
    im.save(f, fmt, **kw)
    return f.getvalue()

def said(call):
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always', UserWarning)
        got = call()
    return got, [str(x.message) for x in w if x.category is UserWarning]

@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch): monkeypatch.setenv('RECON_NB_CACHE', str(tmp_path/'cache'))

@pytest.fixture
def folder(tmp_path):
    (tmp_path/'photos').mkdir()
    return tmp_path/'photos'

def camera(i, light=1., side=96): # a scene in 12 bits
    grey = draw_shapes(i+1, size=side, seed=3)[0][i].mean(-1)*16*light
    return (grey+np.random.default_rng(i).normal(0, 12, grey.shape)).clip(0, 4095).astype(np.uint16)


# --- the right value for each depth

SIGNED = RAMP.astype(np.int32)-1024
DEEP = dict(
    bits10=(tiff(RAMP//4), scaled(RAMP//4, 0, 1023)),
    bits12=(tiff(RAMP), scaled(RAMP, 0, 4095)),
    bits12_big_endian=(tiff(RAMP, endian='>'), scaled(RAMP, 0, 4095)),
    bits12_packed=(tiff(RAMP, bits=12, data=packed(RAMP)), scaled(RAMP, 0, 4095)),
    bits12_compressed=(tiff(RAMP, pack=True), scaled(RAMP, 0, 4095)),
    bits14=(tiff(RAMP*3), scaled(RAMP*3, 0, 16383)),
    bits16=(tiff(RAMP*16), scaled(RAMP*16, 0, 65535)),
    bits32=(tiff(RAMP.astype(np.uint32)*2**20), scaled(RAMP.astype(float)*2**20, 0, 2**32-1)),
    counted_from_white=(tiff(RAMP, photometric=0), 255-scaled(RAMP, 0, 4095)),
    highest_is_4095=(tiff(RAMP//16, more=[(281,3,[4095])]), scaled(RAMP//16, 0, 4095)),
    highest_is_no_scale=(tiff(RAMP//16, more=[(281,3,[200])]), scaled(RAMP//16, 0, 255)),
    signed16=(tiff(SIGNED.astype(np.int16)), scaled(SIGNED, -1024, 3071)),
    signed16_big_endian=(tiff(SIGNED.astype(np.int16), endian='>'), scaled(SIGNED, -1024, 3071)),
    signed8=(tiff((RAMP//16-128).astype(np.int8)), scaled(RAMP//16, 0, 255)),
    signed32=(tiff(SIGNED*1000), scaled(SIGNED, -1024, 3071)),
    signed_with_a_range=(tiff(SIGNED.astype(np.int16), more=[(340,9,[-2048]), (341,9,[4000])]), scaled(SIGNED, -2048, 4000)),
    float_to_1=(tiff((RAMP/4200).astype(np.float32)), scaled((RAMP/4200).astype(np.float32), 0, 1)),
    float_elevation=(tiff((RAMP/2-100).astype(np.float32)), scaled(RAMP, 0, 4095)),
    float_big_endian=(tiff((RAMP/2-100).astype(np.float32), endian='>'), scaled(RAMP, 0, 4095)),
    colors12=(tiff(COLORS), scaled(COLORS, 0, 4095)),
    colors12_big_endian=(tiff(COLORS, endian='>'), scaled(COLORS, 0, 4095)),
    colors12_compressed=(tiff(COLORS, pack=True), scaled(COLORS, 0, 4095)),
    colors16=(tiff(COLORS*16), (COLORS*16 >> 8).astype(np.uint8)),
    png12=(png(RAMP, 0), scaled(RAMP, 0, 4095)),
    png16=(png(RAMP*16, 0), scaled(RAMP*16, 0, 65535)),
    png_colors12=(png(COLORS, 2, (b'sBIT', bytes([12]*3))), scaled(COLORS, 0, 4095)),
    png_colors16=(png(COLORS*16, 2), (COLORS*16 >> 8).astype(np.uint8)),
    png_scaled_up=(png(RAMP*16, 0, (b'sBIT', bytes([12]))), scaled(RAMP*16, 0, 65535)),
    png_dark_but_of_12=(png(RAMP//16, 0, (b'sBIT', bytes([12]))), scaled(RAMP//16, 0, 4095)))

@pytest.mark.parametrize('name', DEEP)
def test_the_right_value(name):
    b, want = DEEP[name]
    assert (read(b) == want).all()

def test_the_faults_that_were():
    "12 bits came at a sixteenth of their light, and of signed numbers 86 % were black."
    twelve, ct = camera(0), (camera(1).astype(np.int32)-1024).astype(np.int16)
    assert abs(read(tiff(twelve)).mean()-255/4095*twelve.mean()) < 1 and read(tiff(twelve)).mean() > 60
    assert (read(tiff(ct)) == 0).mean() < .5

def test_transparency_of_16_bits():
    half = np.where(RAMP < 2048, 0, 4095).astype(np.uint16)
    over = np.where(RAMP[..., None] < 2048, 255, scaled(RAMP, 0, 4095))
    assert (read(png(np.stack([RAMP, half], -1), 4)) == over).all()
    assert (read(png(np.concatenate([bands(RAMP), half[..., None]], -1), 6)) == over).all()
    mark = np.where(RAMP[..., None] == 77, 255, scaled(RAMP, 0, 4095))
    assert (read(png(RAMP, 0, (b'tRNS', struct.pack('>H', 77)))) == mark).all()
    assert (read(png(bands(RAMP), 2, (b'tRNS', struct.pack('>HHH', 77, 77, 77)))) == mark).all()

def test_inks_of_12_bits():
    a = np.stack([RAMP, RAMP[::-1], RAMP.T, RAMP//2], -1)
    want = Image.frombytes('CMYK', (64,64), scaled(a, 0, 4095).tobytes()).convert('RGB')
    assert (read(tiff(a, photometric=5)) == np.asarray(want)).all()

def test_no_number_is_black():
    a = np.where(RAMP < 99, np.nan, RAMP/4095).astype(np.float32)
    assert (read(tiff(a))[RAMP < 99] == 0).all() and (read(tiff(np.full_like(a, np.nan))) == 0).all()

@pytest.mark.parametrize('orientation', range(1, 9))
def test_deep_pictures_are_turned_too(orientation):
    stored = Image.fromarray(RAMP[:40])
    if orientation > 1: stored = stored.transpose(_turns[{6: 8, 8: 6}.get(orientation, orientation)])
    assert (read(tiff(np.asarray(stored), more=[(274,3,[orientation])]), window=(0, 4095)) == scaled(RAMP[:40], 0, 4095)).all()


# --- one range for a folder

def test_a_night_stays_dark(folder):
    for i in range(4): (folder/f'{i}.tif').write_bytes(tiff(camera(i, light=1 if i < 2 else .05)))
    got, words = said(lambda: load_photos(folder, **HOW))
    assert words == ['TIFF uint16, 12 bit: 0 to 4095 -> 0 to 255, as found in these pictures; window=(low, high) sets another range']
    assert got.window == {'TIFF uint16': (0, 4095)}
    means = got.cuts['i_r'].mean((1,2,3))
    assert means[:2].min() > 8*means[2:].max() and means[:2].max() > 60
    again, words2 = said(lambda: load_photos(folder, **HOW))              # from the cache: the same, and said again
    assert words2 == words and again.window == got.window and (again.cuts['i_r'] == got.cuts['i_r']).all()

def test_one_bright_pixel_tells_the_depth(folder):
    for i in range(70): (folder/f'{i:02}.tif').write_bytes(tiff(np.full((8,8), 1000, np.uint16)))
    bright = np.full((8,8), 1000, np.uint16); bright[0,0] = 5000
    (folder/'69.tif').write_bytes(tiff(bright))
    got, _ = said(lambda: load_photos(folder, **HOW))
    assert got.window == {'TIFF uint16': (0, 16383)} and (got.cuts['i_r'][:69] == round(1000*255/16383)).all()

def test_each_kind_has_its_own(folder):
    (folder/'a.tif').write_bytes(tiff(RAMP)); (folder/'b.png').write_bytes(png(RAMP*16, 0)); (folder/'c.tif').write_bytes(tiff(SIGNED))
    Image.fromarray(bands((RAMP//16).astype(np.uint8))).save(folder/'d.png'); (folder/'e.tif').write_bytes(tiff(COLORS))
    got, words = said(lambda: load_photos(folder, **{**HOW, 'size': 64, 'cuts': dict(i_r=1.)}))
    assert got.window == {'TIFF uint16': (0, 4095), 'PNG uint16': (0, 65535), 'TIFF int32': (-1024, 3071), 'TIFF uint16 color': (0, 4095)}
    assert len(words) == 4
    for i,want in enumerate((scaled(RAMP, 0, 4095), scaled(RAMP*16, 0, 65535), scaled(SIGNED, -1024, 3071), bands(RAMP//16), scaled(COLORS, 0, 4095))):
        assert (got.cuts['i_r'][i] == want).all(), i

def test_a_range_that_is_given(folder):
    (folder/'ct.tif').write_bytes(tiff(SIGNED.astype(np.int16)))
    how = {**HOW, 'size': 64, 'cuts': dict(i_r=1.)}
    got, words = said(lambda: load_photos(folder, window=(-160, 2240), **how))
    assert not words and (got.cuts['i_r'][0] == scaled(SIGNED, -160, 2240)).all()
    assert (said(lambda: load_photos(folder, **how))[0].cuts['i_r'] != got.cuts['i_r']).any()          # another entry of the cache
    assert (load_photos(folder, window="-160 2240", **how).cuts['i_r'] == got.cuts['i_r']).all()
    assert (load_photos(folder, window=got.window, **how).cuts['i_r'] == got.cuts['i_r']).all()

@pytest.mark.parametrize('window', [(5, 5), (9, 1), (0,), 7, '0', 'TIFF uint16', (0, float('inf')), {'TIFF uint16': 3}])
def test_a_range_that_is_none(folder, window):
    (folder/'a.tif').write_bytes(tiff(RAMP))
    with pytest.raises(InputError, match=r'window=.*such as window=\(0, 4095\)'): load_photos(folder, window=window, **HOW)

def test_a_range_without_effect(folder):
    Image.fromarray(np.zeros((40,40,3), np.uint8)).save(folder/'a.png')
    with pytest.raises(InputError, match='no effect: none of the 1 photos has more than 8 bits'): load_photos(folder, window=(0, 4095), **HOW)
    with pytest.raises(InputError, match='named sets have 8 bits'): load_photos('shapes', window=(0, 4095), **HOW)
    assert len(load_photos(folder, window={'TIFF uint16': (0, 4095)}, **HOW)) == 1                    # others' ranges hold where they fit

def test_plain_folders_are_opened_once(folder, monkeypatch):
    for i in range(5): Image.fromarray(draw_shapes(1, size=40, seed=i)[0][0]).save(folder/f"{i}.{'png' if i%2 else 'tif'}")
    seen, opening = [], Image.open
    monkeypatch.setattr(Image, 'open', lambda *a, **kw: (seen.append(a), opening(*a, **kw))[1])
    load_photos(folder, **HOW)
    assert len(seen) == 5

def test_train_and_test_share_a_range(tmp_path):
    for part,light in (('train', 1.), ('test', .1)):
        for c in 'ab':
            (tmp_path/f'set/{part}/{c}').mkdir(parents=True)
            for i in range(2): (tmp_path/f'set/{part}/{c}/{i}.tif').write_bytes(tiff(camera(2*i+(c == 'b'), light)))
    s, words = said(lambda: load_labelled(tmp_path/'set', size=32, progress=False))
    assert len(words) == 1 and s.train_x.mean() > 6*s.test_x.mean()

def test_images_without_a_file():
    dark, bright = (Image.fromarray(camera(0, light)) for light in (.1, 1.))
    both, words = said(lambda: as_images([dark, bright]))
    assert words == ['uint16, 12 bit: 0 to 4095 -> 0 to 255, as found in these pictures; window=(low, high) sets another range']
    assert (np.asarray(both[0]) == scaled(camera(0, .1), 0, 4095)).all()
    alone, words = said(lambda: as_images(dark, window={'TIFF uint16': (0, 4095)}))                  # files of such numbers have it
    assert not words and (np.asarray(alone[0]) == np.asarray(both[0])).all()

def test_brighter_than_the_range_is_said(folder):
    (folder/'a.tif').write_bytes(tiff(RAMP*16))
    _, words = said(lambda: load_photos(folder, window=(0, 4095), **HOW))
    assert len(words) == 1 and 'mostly white' in words[0]


# --- a run keeps it

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    root, where = tmp_path_factory.mktemp('deep'), Path.cwd()
    (root/'photos').mkdir()
    for i in range(12): (root/f'photos/{i:02}.tif').write_bytes(tiff(camera(i)))
    Image.fromarray(draw_shapes(1, size=800, seed=9)[0][0]).save(root/'photos/large.jpg', quality=95)
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as m:
        warnings.simplefilter('ignore')
        m.setenv('RECON_NB_CACHE', str(root/'cache'))
        run = train_gan(root/'photos', run_dir=root/'run', width=4, width_d=4, bs=4, epochs=1, progress=False)
    assert Path.cwd() == where
    return root, run

def test_a_run_keeps_its_range(trained):
    root, run = trained
    assert run.cfg.window == 'TIFF uint16 0 4095' and run.info['reading'] == 2 and 'window' not in run.info['deviations']
    dark = tiff(camera(3, light=.1))
    (root/'dark.tif').write_bytes(dark)
    (got, features), words = said(lambda: (run.reconstruct(root/'dark.tif'), run.transform(root/'dark.tif')))
    assert not words and got.i_r.max() < 60
    want = cut_photos(np.asarray(Image.fromarray(scaled(camera(3, .1), 0, 4095))), size=32)
    assert (got.i_r == want).all() and np.allclose(features, run.transform(want), atol=1e-5)

def test_use_sees_what_training_saw(trained):
    root, run = trained
    photos = load_photos(root/'photos', size=32, cuts=run.task.cuts, progress=False, window=run.cfg.window and Ranges(run.cfg.window).given)
    files = [root/'photos'/n for n in photos.names]
    got = run.reconstruct(files)
    assert (got.i_r == photos.cuts['i_r']).all() and (got.i_in[..., 8:24, 8:24, :] >= 0).all()
    for share,cut in run.task.cuts.items():
        assert (cut_photos(files, size=32, share=cut, window=run.cfg.window) == photos.cuts[share]).all()
    p = load_pretrained(run)
    assert (((p.preprocess(files)+1)*127.5).round().byte().permute(0,2,3,1).numpy() == photos.cuts['i_r']).all()

def test_the_exported_file_says_it(trained, tmp_path):
    root, run = trained
    for source in (run, run.dir, run.dir/'weights.safetensors', export_encoder(run, tmp_path/'e.safetensors')):
        p = load_pretrained(source)
        how = p.config['preprocessing']
        assert how['window'] == {'TIFF uint16': [0, 4095]} and how['alpha'] == 'over white' and 'EXIF' in how['orientation']
        assert torch.equal(p.preprocess(root/'photos/00.tif'), load_pretrained(run).preprocess(root/'photos/00.tif'))

def test_a_resumed_run_sees_the_same(trained, monkeypatch):
    root, run = trained
    monkeypatch.setenv('RECON_NB_CACHE', str(root/'cache2'))
    more, words = said(lambda: train_gan(run_dir=run.dir, resume=True, epochs=2, progress=False))
    assert more.step == 2*run.step and more.cfg.window == run.cfg.window and not [w for w in words if '0 to 255' in w]
    train_gan(run_dir=run.dir, resume=True, epochs=2, window=(0, 4095), progress=False)              # as it is
    with pytest.raises(InputError, match='window is .TIFF uint16 0 4095. there'): train_gan(run_dir=run.dir, resume=True, window=(0, 100), progress=False)

def test_a_run_of_an_earlier_version_goes_on(tmp_path):
    "It took all 16 bits for used and decoded all of each JPEG; its photos must stay what they were."
    from recon_nb.training import _how_to_read
    how = _how_to_read(get_preset('quick'), dict(train=3))
    assert how['whole'] and how['window']['TIFF uint16'] == (0, 65535)
    assert _how_to_read(get_preset('quick', window='0 4095'), {}) == dict(window='0 4095', whole=False)
    assert _how_to_read(get_preset('quick', window='TIFF uint16 0 4095'), {}) == dict(window={'TIFF uint16': (0, 4095)}, whole=False)


# --- formats

@pytest.mark.parametrize('fmt', ['AVIF', 'HEIF'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_phones_formats_stand_upright(fmt, orientation):
    if fmt == 'HEIF': pytest.importorskip('pillow_heif').register_heif_opener()
    elif not features.check('avif'): pytest.skip('this Pillow has no AVIF')
    upright = Image.new('RGB', (64,32), 'blue'); upright.paste('red', (0,0,32,16)); upright.paste('white', (32,0,64,16))
    exif = Image.Exif(); exif[ExifTags.Base.Orientation] = orientation
    flat = upright if orientation == 1 else upright.transpose(_turns[{6: 8, 8: 6}.get(orientation, orientation)])
    flat.info['exif'] = exif.tobytes()
    got = open_rgb(io.BytesIO(stored(flat, fmt, quality=95, **(dict(exif=exif) if fmt == 'AVIF' else {}))))
    assert got.size == (64,32) and np.abs(np.asarray(got).astype(int)-np.asarray(upright)).mean() < 12

@pytest.mark.parametrize('deep', [False, True])
def test_heic_in_a_folder(folder, deep):
    heif = pytest.importorskip('pillow_heif')
    grey = np.linspace(0, 65535, 64*64).reshape(64, 64).astype(np.uint16)
    im = heif.from_bytes('RGB;16', (64,64), bands(grey).tobytes()) if deep else Image.fromarray(bands((grey >> 8).astype(np.uint8)))
    heif.register_heif_opener()
    im.save(folder/'IMG_1.HEIC', quality=95)
    got, words = said(lambda: load_photos(folder, **{**HOW, 'size': 64, 'cuts': dict(i_r=1.)}))
    assert not words and got.names == ['IMG_1.HEIC'] and np.abs(got.cuts['i_r'][0,...,0].astype(int)-(grey >> 8)).max() <= 6

def test_images_in_a_list():
    got, words = said(lambda: load_photos([Image.fromarray(RAMP), Image.fromarray(RAMP//10)], **{**HOW, 'size': 64, 'cuts': dict(i_r=1.)}))
    assert len(words) == 1 and got.window == {'uint16': (0, 4095)} and (got.cuts['i_r'][1] == scaled(RAMP//10, 0, 4095)).all()

def test_first_frame_of_a_gif(folder):
    frames = [Image.new('RGB', (40,30), c) for c in ('teal', 'red')]
    frames[0].save(folder/'a.gif', save_all=True, append_images=frames[1:])
    got, words = said(lambda: load_photos(folder, **HOW))
    assert not words and (got.cuts['i_r'][0,0,0] == (0,128,128)).all()

def test_heic_without_its_package(folder, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'pillow_heif', None)
    heic = b'\0\0\0\x18ftypheic'+bytes(100)
    (folder/'IMG_1.heic').write_bytes(heic); Image.new('RGB', (40,40)).save(folder/'a.png')
    with pytest.raises(InputError, match=r"pip install 'recon_nb\[heic\]'"): as_images(folder/'IMG_1.heic')
    from recon_nb import data
    plain = tuple(s for s in decoding._PHOTO_SUFFIXES if s not in decoding._HEIF)
    for page in (decoding, data): monkeypatch.setattr(page, '_PHOTO_SUFFIXES', plain)
    got, words = said(lambda: load_photos(folder, **HOW))
    assert len(got) == 1 and words == ["left out: 1 .heic (pip install 'recon_nb[heic]' reads them)"]

def test_avif_without_support(monkeypatch):
    monkeypatch.setattr(features, 'check', lambda name: False)
    with pytest.raises(InputError, match='pip install -U pillow'): as_images(io.BytesIO(b'\0\0\0\x18ftypavif'+bytes(100)))

def odd_files():
    npy = io.BytesIO(); np.save(npy, RAMP)
    pages = [Image.fromarray(a) for a in draw_shapes(3, size=40)[0]]
    six = np.zeros((8,8,6), np.uint8)
    return {'a.npy': (npy.getvalue(), 'np.load'), 'b.dcm': (bytes(128)+b'DICM'+bytes(9), 'pydicom.dcmread'),
            'pages.tif': (stored(pages[0], 'TIFF', save_all=True, append_images=pages[1:]), 'ImageSequence'),
            'six.tif': (tiff(six, photometric=1), r'\[0,1,2\]'), 'infrared.tif': (tiff(six[..., :4], photometric=2, extra=(0,)), r'\[0,1,2\]'),
            'five.tif': (tiff(six[..., :5], photometric=2, extra=(0,0)), r'\[0,1,2\]'), 'two.tif': (tiff(six[..., :2], photometric=1, extra=(0,)), r'\[0,1,2\]'),
            'packed10.tif': (tiff(RAMP, bits=10, data=bytes(5120)), r"astype\('uint16'\)"), 'double.tif': (tiff(RAMP.astype(float)), r"astype\('float32'\)"),
            'half.tif': (tiff(RAMP.astype(np.float16)), r"astype\('float32'\)"), 'signed_colors.tif': (tiff(COLORS.astype(np.int16)), r"astype\('int32'\)")}

@pytest.mark.parametrize('name', odd_files())
def test_what_holds_no_single_photo(folder, name):
    data, line = odd_files()[name]
    (folder/name).write_bytes(data)
    with pytest.raises(InputError, match=f'{name} .*{line}'): as_images(folder/name)
    for i in range(2): Image.new('RGB', (40,40)).save(folder/f'{i}.png')
    got, words = said(lambda: load_photos(folder, **HOW))
    assert len(got) == 2 and len(words) == 1 and name.split('.')[-1] in words[0] and 'import' in words[0]

def test_the_lines_make_photos(folder, monkeypatch):
    monkeypatch.chdir(folder)
    np.save('a.npy', RAMP); np.save('signed.npy', SIGNED.astype(np.int16))
    (folder/'pages.tif').write_bytes(odd_files()['pages.tif'][0])
    lines = [decoding._convert_line('an array of NumPy', f) for f in ('a.npy', 'signed.npy')]
    with pytest.raises(InputError) as e: as_images('pages.tif')
    for text in (*lines, str(e.value).split('make photos of it: ')[1]):
        line, imports = text.split('  # ')
        exec(imports+'\n'+line)
    os.remove('pages.tif')
    got, words = said(lambda: load_photos('.', **{**HOW, 'size': 64, 'cuts': dict(i_r=1.)}))
    assert got.names == ['a.tif', 'pages-0.png', 'pages-1.png', 'pages-2.png', 'signed.tif']
    assert (got.cuts['i_r'][0] == scaled(RAMP, 0, 4095)).all() and (got.cuts['i_r'][4] == scaled(SIGNED, -1024, 3071)).all()

def test_a_thumbnail_is_no_page():
    "A smaller copy of the page may lie behind it, as the tag 254 says."
    one = tiff(RAMP)
    size = struct.unpack_from('<H', one, 8)[0]
    link = 10+12*size
    second = bytearray(one); at = len(one)
    rows = [(254,4,1,1), (256,4,1,8), (257,4,1,8), (258,3,1,8), (262,3,1,1), (273,4,1,8), (277,3,1,1), (278,4,1,8), (279,4,1,64)]
    for kind,read_it in ((1, True), (0, False)):
        b = bytearray(one); struct.pack_into('<I', b, link, at)
        b += struct.pack('<H', len(rows))+b''.join(struct.pack('<HHII', t, k, n, kind if t == 254 else v) for t,k,n,v in rows)+bytes(4)
        if read_it: assert (read(bytes(b)) == scaled(RAMP, 0, 4095)).all()
        else: pytest.raises(OSError, open_rgb, io.BytesIO(bytes(b))).match('2 pages')
    assert second == one


# --- large files

def test_too_many_pixels(folder, monkeypatch):
    im = Image.fromarray(draw_shapes(1, size=400, seed=1)[0][0])
    im.save(folder/'a.jpg', quality=95); im.save(folder/'b.png'); im.resize((40,40)).save(folder/'c.png')
    whole = np.asarray(open_rgb(folder/'a.jpg')).astype(int)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 30_000)                                           # Pillow refuses twice that
    got, words = said(lambda: load_photos(folder, **HOW))
    assert got.names == ['a.jpg', 'c.png'] and len(words) == 1
    assert 'b.png (0.16 million pixels, and 0.06 million are the most that is read: RECON_NB_MAX_PIXELS=1e6' in words[0]
    with pytest.raises(InputError, match='RECON_NB_MAX_PIXELS') as e: as_images(folder/'b.png')
    assert 'attack' not in str(e.value)+words[0]
    small = open_rgb(folder/'a.jpg')
    assert small.size == (200,200) and np.abs(np.asarray(small.resize((20,20)))-np.asarray(Image.fromarray(whole.astype(np.uint8)).resize((20,20))).astype(int)).max() < 20
    monkeypatch.setenv('RECON_NB_MAX_PIXELS', '1e6')
    assert as_images(folder/'b.png')[0].size == (400,400)
    monkeypatch.setenv('RECON_NB_MAX_PIXELS', 'many')
    with pytest.raises(InputError, match="'many' is not a number"): as_images(folder/'b.png')

def drawn(w, h, quality=90, **kw):
    "A scene as photos are: soft, with a little noise."
    a = np.asarray(Image.fromarray(draw_shapes(1, size=64, seed=5)[0][0]).resize((w,h), Image.Resampling.BICUBIC)).astype(float)
    a = (a+np.random.default_rng(0).normal(0, 3, a.shape)).clip(0, 255).astype(np.uint8)
    return stored(Image.fromarray(a), 'JPEG', quality=quality, **kw)

@pytest.mark.parametrize('size', [(1200,900), (1013,777), (769,1001)])
@pytest.mark.parametrize('orientation', [1, 3, 6, 7])
def test_reduced_jpegs_are_the_same_photo(size, orientation):
    exif = Image.Exif(); exif[ExifTags.Base.Orientation] = orientation
    f = io.BytesIO(drawn(*size, exif=exif))
    how = dict(size=20, cuts=dict(i_r=1., i_in=1/3, small=.2), ranges=Ranges())
    a, b = _cut_one(f, **how, whole=True), _cut_one(f, **how)
    assert min(open_rgb(f, side=240).size) < min(size)                                               # it was reduced
    for x,y in zip(a, b): assert np.abs(x.astype(int)-y).max() <= 2

def test_reduced_pixels_hang_on_size_and_share_alone(folder):
    (folder/'a.jpg').write_bytes(drawn(1600, 1200))
    alone = {s: load_photos(folder, **{**HOW, 'cuts': dict(x=s)}).cuts['x'] for s in (1., 1/3, .2)}
    whole = load_photos(folder, **{**HOW, 'whole': True})
    both = load_photos(folder, **{**HOW, 'cuts': dict(a=1., b=1/3, c=.2)}).cuts
    for k,s in dict(a=1., b=1/3, c=.2).items():
        assert (both[k] == alone[s]).all() and (cut_photos(folder/'a.jpg', size=32, share=s) == alone[s]).all()
    assert (whole.cuts['i_in'] != alone[1/3]).any()                                                  # another entry of the cache
    with open_picture(folder/'a.jpg', side=384) as im: assert im.size == (800,600)

def test_old_entries_stay(folder):
    "Photos that are read as they always were keep their key."
    Image.fromarray(draw_shapes(1, size=40)[0][0]).save(folder/'a.webp', lossless=True)
    files = [reading._stat_photo(folder.resolve(), 'a.webp')]
    load_photos(folder, **HOW)
    assert (_cache_dir()/'photos'/reading._key(str(folder.resolve()), files, size=32, cuts=HOW['cuts'])).is_dir()


# --- what is said

def test_the_skip_list_says_where_it_goes_on(folder):
    for i in range(9): Image.new('RGB', (40,40)).save(folder/f'{i}.png')
    for i in range(7): (folder/f'bad{i}.png').write_text('no')
    got, words = said(lambda: load_photos(folder, **HOW))
    assert len(words) == 1 and 'bad0.png (not a jpg, png' in words[0] and 'and 3 more' in words[0]
    assert 'photos.skipped' in words[0] and 'skipped.jsonl' in words[0] and not words[0].rstrip('.').endswith('..') and len(got.skipped) == 7

def test_remarks_on_readable_photos_are_kept_back(folder):
    im = Image.fromarray(draw_shapes(1, size=40)[0][0])
    broken = stored(im, 'JPEG', exif=b'Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\0\x03\0\0\0\x01')
    (folder/'a.jpg').write_bytes(broken)
    got, words = said(lambda: (load_photos(folder, **HOW), as_images(folder/'a.jpg'), cut_photos(folder/'a.jpg', size=8)))
    assert not words and len(got[0]) == 1

def test_probes_show_what_the_run_saw(trained, tmp_path):
    from recon_nb.contenders import as_contender
    from recon_nb.experiments import _as_sets, _shared_window
    root, run = trained
    c = as_contender(run)
    assert c.window == {'TIFF uint16': (0, 4095)} and {k: tuple(v) for k,v in as_contender(load_pretrained(run)).window.items()} == c.window
    for part in ('train', 'test'):
        for k in 'ab':
            (tmp_path/f'set/{part}/{k}').mkdir(parents=True)
            for i in range(3): (tmp_path/f'set/{part}/{k}/{i}.tif').write_bytes(tiff(camera(6*(part == 'test')+2*i+(k == 'b'), .1)))
    (s,), words = said(lambda: _as_sets(tmp_path/'set', 32, None, _shared_window(dict(mine=[c], scratch=[]))))
    assert not words and s.train_x.max() < 60                                                        # dark, as they are
