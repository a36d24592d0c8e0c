"""What a further reading found: skips that were kept with their reason gone, alpha in the range of colors, two classes of one name, advice that did not fit."""
import io
import struct
import tarfile
import warnings
import zlib
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from recon_nb import photos, train_gan
from recon_nb.config import get_preset
from recon_nb.core import InputError
from recon_nb.data import load_photos
from recon_nb.decoding import open_picture
from recon_nb.download import _unpack
from recon_nb.health import Trail, _led_by_adversary, _trivial
from recon_nb.identity import _difference_hashes, _near_pairs
from recon_nb.labelled import development_images, load_labelled
from recon_nb.masks import MASKS
from recon_nb.overlap import overlap
from recon_nb.photos import open_rgb
from recon_nb.pixels import to_model
from recon_nb.plugins import _loaded, load_plugins
from recon_nb.probing import _draw_search
from recon_nb.records import _check_numbers, _of_dicts
from recon_nb.segmented import _upright_size
from recon_nb.settings import _choose_config
from recon_nb.shapes import draw_shapes
from recon_nb.sources import _help_with
from recon_nb.targets import SCORES

HOW = dict(size=16, cuts=dict(i_r=1.), progress=False)
SCENES = draw_shapes(12, size=16)[0]


def png16(a):
    "A PNG of 16 bits from an array (h, w, 1 to 4), which Pillow can't write."
    h, w, bands = a.shape
    lines = np.zeros((h, 1+2*bands*w), np.uint8)
    lines[:, 1:] = np.ascontiguousarray(a.astype('>u2')).view(np.uint8).reshape(h, -1)
    chunk = lambda name, data: struct.pack('>I', len(data))+name+data+struct.pack('>I', zlib.crc32(name+data))
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 16, {1: 0, 2: 4, 3: 2, 4: 6}[bands], 0, 0, 0))
            + chunk(b'IDAT', zlib.compress(lines.tobytes())) + chunk(b'IEND', b''))


def twelve_bits(bands, alpha=False):
    a = np.full((20, 20, bands), 2000, np.uint16)
    a[0, 0] = 4095
    if alpha: a[..., -1] = 65535
    return a


class Items:
    "A Dataset of whatever is given for each photo."
    def __init__(self, item, n=12, **known): self.item, self.n, self.seen = item, n, 0; vars(self).update(known)
    def __len__(self): return self.n
    def __getitem__(self, i): self.seen += 1; return self.item(i)


def refusal(call):
    with pytest.raises(InputError) as e: call()
    return str(e.value)


# --- photos

def test_what_the_environment_lets_through_is_read_again(tmp_path, monkeypatch):
    for i, side in enumerate((16, 16, 16, 40)): Image.new('RGB', (side, side), (60*i, 9, 9)).save(tmp_path/f'{i}.png')
    reads, read = [], photos._cut_one
    monkeypatch.setattr(photos, '_cut_one', lambda src, **how: reads.append(src) or read(src, **how))
    monkeypatch.setenv('RECON_NB_MAX_PIXELS', '1000')
    for _ in range(2):
        with pytest.warns(UserWarning, match='skipped 1 of 4 photos: 3.png .*RECON_NB_MAX_PIXELS=1e6'): assert len(load_photos(tmp_path, **HOW)) == 3
    assert len(reads) == 4, 'under the same limit nothing is read again'
    monkeypatch.setenv('RECON_NB_MAX_PIXELS', '1e6')
    assert len(load_photos(tmp_path, **HOW)) == 4 and len(reads) == 8
    monkeypatch.setenv('RECON_NB_MAX_PIXELS', '2e6')
    assert len(load_photos(tmp_path, **HOW)) == 4 and len(reads) == 8, 'where nothing was skipped, every limit will do'


@pytest.mark.parametrize('bands', [2, 4])
def test_alpha_has_no_part_in_the_range_of_colors(bands):
    "Neither where it is looked for nor where it is said that most of a picture lies above it."
    a = twelve_bits(bands, alpha=True)
    plain, clear = (open_rgb(io.BytesIO(png16(x))) for x in (a[..., :-1], a))
    assert np.array_equal(plain, clear) and np.mean(clear) > 120
    a[0, 0, :-1] = 5000
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        photos.as_images([io.BytesIO(png16(a))], window=(0, 4095))


@pytest.mark.parametrize('bands', [1, 2, 3, 4])
def test_deep_pictures_that_are_open_and_not_decoded(bands, tmp_path):
    a = twelve_bits(bands, alpha=bands in (2, 4))
    for i in range(3): (tmp_path/f'{i}.png').write_bytes(png16(a))
    right = np.asarray(open_rgb(tmp_path/'0.png'))
    opened = lambda: [Image.open(p) for p in sorted(tmp_path.iterdir())]
    assert np.array_equal(open_rgb(opened()[0]), right) and np.array_equal(open_rgb(opened()[0], window=(0, 4095)), right)
    for im in photos.as_images(opened()): assert np.array_equal(im, right)
    found = load_photos([*opened(), Image.fromarray(SCENES[0])], **HOW, workers=3)
    assert not found.skipped and [*found.window.values()] == [(0, 4095)] and 120 < found.cuts['i_r'][0].mean() < 140
    pages = [Image.fromarray(np.full((20, 20), v, np.uint16)) for v in (60000, 2000)]
    pages[0].save(tmp_path/'a.tif', save_all=True, append_images=pages[1:])
    second = Image.open(tmp_path/'a.tif')
    second.seek(1)
    assert np.asarray(open_rgb(second)).mean() == 125, 'a page is asked itself, not the file behind it'


def test_photos_read_whole_have_the_range_that_is_asked_for(tmp_path):
    for i in range(2): (tmp_path/f'{i}.png').write_bytes(png16(twelve_bits(1)))
    found, full = load_photos(tmp_path, **HOW, whole=True), load_photos(tmp_path, **HOW, whole=True, window=(0, 65535))
    assert {**found.window, **full.window} == {'PNG uint16': (0, 65535)} and found.window == {'PNG uint16': (0, 4095)}
    assert full.cuts['i_r'].mean() < 10 < 120 < found.cuts['i_r'].mean()


@pytest.mark.parametrize('limit', ['0', '-5', 'nan', '1'])
def test_a_limit_that_lets_nothing_through(limit, monkeypatch):
    buf = io.BytesIO()
    Image.new('RGB', (64, 48)).save(buf, 'JPEG')
    monkeypatch.setenv('RECON_NB_MAX_PIXELS', limit)
    with pytest.raises(OSError, match='million are the most' if limit == '1' else f"'{limit}' is not a number above 0"), open_picture(buf): pass


def test_a_photo_read_reduced_has_its_size(tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[274] = 6
    Image.new('RGB', (64, 48)).save(tmp_path/'a.jpg', exif=exif)
    monkeypatch.setenv('RECON_NB_MAX_PIXELS', '1000')
    assert open_rgb(tmp_path/'a.jpg').size == (24, 32) and _upright_size(tmp_path/'a.jpg') == (48, 64)


# --- what is given

def test_two_classes_of_one_name():
    data = Items(lambda i: (SCENES[i], i % 3), classes=['crane', 'ox', 'crane'])
    with pytest.warns(UserWarning, match="two classes are called 'crane'; here they are crane 0 and crane 2"): found = load_photos(data, **HOW)
    assert found.classes == ('crane 0', 'ox', 'crane 2') and found.labels.tolist() == [i % 3 for i in range(len(data))]
    with pytest.warns(UserWarning, match='crane 2'): assert load_labelled(data, size=16, progress=False).classes == found.classes
    named = Items(lambda i: (SCENES[i], ['crane', 'ox'][i % 2]), classes=['crane', 'ox', 'crane'])
    with pytest.warns(UserWarning): assert "a label is 'crane', and the classes are crane 0, ox, crane 2" in refusal(lambda: load_photos(named, **HOW))


@pytest.mark.parametrize('second', [dict(boxes=[]), Image.new('L', (16, 16)), np.zeros((16, 16), np.uint8), torch.zeros(3), 'boxes'.split(), .5], ids=lambda v: type(v).__name__)
def test_items_whose_second_part_is_no_class(second):
    data = Items(lambda i: (SCENES[i], second))
    found = load_photos(data, **HOW)
    assert len(found) == 12 and found.labels is None
    data.seen = 0
    assert 'a name or a whole number' in refusal(lambda: load_labelled(data, size=16, progress=False)) and data.seen == 1


@pytest.mark.parametrize('photo', ['image', 'pixel_values', 'photo', 'img'])
@pytest.mark.parametrize('label', ['label', 'labels', 'class', 'target', 'Category'])
def test_a_dict_has_its_parts_under_the_names_that_a_table_has(photo, label):
    assert load_photos(Items(lambda i: {photo: SCENES[i], label: i % 2, 'area': 3}), **HOW).labels.tolist() == [0, 1]*6


def test_a_dict_keeps_what_it_was_taken_for():
    "A picture is taken before a path, and `label` before a word for it."
    assert load_photos(Items(lambda i: dict(path='?', category='bird', label=i % 3, image=SCENES[i])), **HOW).classes == ('0', '1', '2')


def test_labels_are_what_they_are_wherever_one_stands(tmp_path, monkeypatch):
    for name in ('cat', 'dog'): (tmp_path/name).mkdir()
    monkeypatch.chdir(tmp_path)
    for names in (['cat', 'dog'], ['x'*300, 'y'*300]): assert load_labelled((SCENES, names*6), size=8, progress=False).classes == tuple(names)
    assert 'data is a list' in refusal(lambda: load_labelled(([*SCENES], ['cat/0.jpg', 'dog/0.jpg']), size=8))


def test_a_column_of_labels():
    assert 'have 1 column: one label a photo is wanted, such as y[:, 0].' in refusal(lambda: load_labelled((SCENES, np.arange(12)[:, None] % 2), size=8))
    assert 'have 2 columns: one label a photo is wanted, such as y.argmax(1)' in refusal(lambda: load_labelled((SCENES, np.eye(2)[np.arange(12) % 2]), size=8))


def test_a_range_without_effect_is_refused_beside_labels_too():
    for data in ((SCENES, [0, 1]*6), ((SCENES, [0, 1]*6), (SCENES, [0, 1]*6))):
        assert 'has no effect: none of the 12 photos' in refusal(lambda: load_labelled(data, size=8, progress=False, window=(0, 4095)))
    deep = [io.BytesIO(png16(twelve_bits(1)+i)) for i in range(12)]
    assert len(load_labelled((deep, [0, 1]*6), size=8, progress=False, window=(0, 5000)).train_y)


def test_classes_of_one_image_keep_it():
    assert development_images(np.arange(4)).tolist() == [] and development_images(np.array([0, 1, 1])).tolist() in ([1], [2])
    task, setup = SimpleNamespace(kinds=lambda d: np.arange(4)), SimpleNamespace(data=SimpleNamespace(name='toy'))
    assert 'toy: every class has one image only' in refusal(lambda: _draw_search(task, setup))


def other(module, **columns):
    "A table of pandas under another module's name."
    cls = type('DataFrame', (pd.DataFrame,), dict(__module__=module))
    return cls(columns)


class Hub:
    def __init__(self, **rows): self.rows, self.features, self.column_names = rows, {}, list(rows)
    def __len__(self): return len(next(iter(self.rows.values())))
    def __getitem__(self, i): return self.rows[i] if isinstance(i, str) else {k: v[i] for k, v in self.rows.items()}


LINES = { # of each library: leave out a column, name the photos, name the labels
    'pandas': ("table.drop(columns=[{!r}])", "table.rename(columns={{{!r}: {!r}}})"), 'polars': ("table.drop([{!r}])", "table.rename({{{!r}: {!r}}})"),
    'datasets': ("table.remove_columns([{!r}])", "table.rename_column({!r}, {!r})")}


@pytest.mark.parametrize('library', LINES)
def test_advice_in_the_words_of_whose_table_it_is(library, tmp_path):
    def table(**columns): return Hub(**columns) if library == 'datasets' else other(dict(pandas='pandas', polars='polars.dataframe.frame')[library], **columns)
    files = [str(tmp_path/f'{i}.png') for i in range(4)]
    for f, x in zip(files, SCENES): Image.fromarray(x).save(f)
    drop, rename = LINES[library]
    for says, columns in ((drop.format('image'), dict(path=files, image=files)), (rename.format('height', 'path'), dict(height=[3], width=[4])),
                          (drop.format('part'), dict(path=files, label=[0, 1]*2, part=['dev1']*4))):
        assert says in refusal(lambda: load_photos(table(**columns), **HOW))
    for says, columns in ((rename.format('kind', 'label'), dict(path=files, kind=[0, 1]*2)), (drop.format('subset'), dict(path=files, label=[0, 1]*2, subset=['test']*4))):
        assert says in refusal(lambda: load_labelled(table(**columns), size=8, progress=False))


def test_lines_of_json_and_json(): assert [_help_with(f'a.{end}') for end in ('json', 'jsonl')] == ["pd.read_json('a.json')", "pd.read_json('a.jsonl', lines=True)"]


def test_photos_turned_back_to_front(): assert torch.equal(to_model(SCENES[:, :, ::-1]), to_model(SCENES).flip(3)) and torch.equal(to_model(SCENES[::-2]), to_model(SCENES)[[11, 9, 7, 5, 3, 1]])


# --- two sets

def test_alike_is_not_asked_of_a_run(tmp_path):
    run = train_gan(SCENES, size=32, width=4, bs=4, max_steps=1, progress=False, device='cpu', run_dir=tmp_path/'run')
    for a, b in ((run, SCENES), (SCENES, run)): assert 'near=True compares how photos appear' in refusal(lambda: overlap(a, b, near=True))


def test_a_photo_that_darkens_is_not_of_one_tone():
    ramp = np.add.outer(np.arange(32), np.arange(32))[None, ..., None]*np.ones(3)
    dark, light, tone = (_difference_hashes(x.astype(np.uint8)) for x in (250-3*ramp, 3*ramp, 0*ramp+90))
    assert len(_near_pairs(dark, dark)) == 1 and not len(_near_pairs(dark, light)) and not len(_near_pairs(dark, tone)) and not len(_near_pairs(tone, tone, most=144))


# --- runs

def judged(key, last):
    return _trivial(SimpleNamespace(headline=SCORES[key], last={key: last, 'step': 900}, done=True, trivial={'ridge': dict(psnr=15.)}, cfg=get_preset('improved'), train=99))


def test_a_score_without_a_bar_is_not_judged():
    for key, value in (('l1', .001), ('l1', 2.), ('ssim', -.5)): assert judged(key, value) == f'no trivial predictor is known for the {SCORES[key].name}'
    assert judged('explained', .01).numbers == dict(score=.01, bar=.02) and judged('named', .5) is None


def test_the_last_tenth_is_a_tenth():
    rows = [dict(step=i, adv=float(i < 12)*9+.1, idt=1.) for i in range(1, 14)]
    assert not _led_by_adversary(SimpleNamespace(cfg=SimpleNamespace(lambda_adv=1., lambda_idt=1.), trail=Trail(rows)))


def test_one_plugin_does_not_take_anothers_name(tmp_path):
    code = 'from recon_nb.masks import MASKS, CentreMask\nclass Mine(CentreMask): pass\nMASKS["twice"] = Mine\n'
    for name in 'ab': (tmp_path/f'{name}.py').write_text(code+f'# {name}')
    try:
        assert 'b.py registers mask' in (said := refusal(lambda: load_plugins([tmp_path/'a.py', tmp_path/'b.py']))) and said.endswith('exists already: choose another name.')
        (tmp_path/'a.py').write_text(code+'# changed')
        assert load_plugins(tmp_path/'a.py')[0]['gives'] == {'mask': ['twice']}, 'a file may be run again'
    finally:
        MASKS.pop('twice', None)
        for key in [k for k in _loaded if k[0].parent == tmp_path.resolve()]: del _loaded[key]


def test_one_image_that_stands_there_twice_is_read_by_one_at_a_time():
    def opened(a):
        file = io.BytesIO()
        Image.fromarray(a).resize((512, 512)).save(file, 'png')
        return Image.open(file)
    once = [opened(a) for a in SCENES[:4]]
    found = load_photos([im for im in once for _ in range(8)], workers=8, **HOW)
    assert not found.skipped and len(found) == 32
    first = load_photos([opened(a) for a in SCENES[:4]], **HOW)
    assert np.array_equal(found.cuts['i_r'], np.repeat(first.cuts['i_r'], 8, axis=0))


def test_what_is_seen_where_a_share_is_hidden():
    said = refusal(lambda: get_preset('quick', mask_ratio=.75))
    assert "with mask='patches' 1 - mask_ratio, here 0.25" in said and 'of the side, its square root, here 0.5' in said
    assert 'here' not in refusal(lambda: get_preset('quick', mask_ratio=7)) and 'here' not in refusal(lambda: get_preset('quick', mask_ratio='x'))


def test_a_word_for_run_dir_is_answered_where_there_is_one():
    assert 'Did you mean' not in refusal(lambda: get_preset('quick', output_dir='x'))
    assert "unknown override 'output_dir'. Did you mean 'run_dir'?" in refusal(lambda: train_gan('shapes', output_dir='x'))


def test_earlier_weights_in_a_config_are_named_wherever_one_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    choose = lambda **how: _choose_config({}, **dict(dict(preset=None, config=None, like=None, run_dir=None, resume=False, seed=None), **how))[0]
    (tmp_path/'c.toml').write_text('init = "w.pt"')
    for config in (dict(init='w.pt'), tmp_path/'c.toml', get_preset('quick', init='w.pt')): assert choose(config=config).init == str(tmp_path.resolve()/'w.pt')
    assert choose(config=dict(teacher='r', target='codes')).teacher == str(tmp_path.resolve()/'r') and not choose(config=dict(bs=8)).init


def test_the_record_that_is_damaged_is_named():
    check = lambda *rows: refusal(lambda: _check_numbers(_of_dicts([dict(loss=.5, **row) for row in rows]), 'h.jsonl'))
    one, two = dict(step=1), dict(step=2)
    assert "record 3: 'step' is -3" in check(one, two, dict(step=-3)) and "record 2: 'step' is 2.5" in check(one, dict(step=2.5), two)
    assert "record 3: 'step' is nan" in check(one, two, {}) and "record 1: 'step' is nan" in check({}, {})


def test_links_take_room_too(tmp_path):
    with tarfile.open(tmp_path/'a.tar', 'w') as t:
        one = tarfile.TarInfo('one')
        one.size = 1000
        t.addfile(one, io.BytesIO(bytes(1000)))
        for i in range(5):
            link = tarfile.TarInfo(f'link-{i}')
            link.type, link.linkname = tarfile.LNKTYPE, 'one'
            t.addfile(link)
    assert len([*_unpack(tmp_path/'a.tar', tmp_path/'enough', most=6000, progress=False).iterdir()]) == 6
    assert 'it holds more than' in refusal(lambda: _unpack(tmp_path/'a.tar', tmp_path/'out', most=5999, progress=False))
