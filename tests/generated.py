"""Generated cases: the functions that take data or settings of a user, given what people give by mistake. Each answers with what its documentation says,
or with an `InputError` in one sentence that names what was given. Run without the types' checks, as people run it, and without bars:

    TQDM_DISABLE=1 RECON_NB_TYPES=0 pytest tests/generated.py                   # about 1,000 cases, the same each time
    TQDM_DISABLE=1 RECON_NB_TYPES=0 RECON_NB_SLOW=1 pytest tests/generated.py   # about 20,000, others each time

`test_generated.py` does that, and holds the pure functions of tensors, whose wrong calls are refused by their types. A failure becomes an `@example`."""
import contextlib, io, os, warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings, strategies as st
from PIL import Image

from recon_nb import GANRun, cli, export_encoder, load_photos, load_pretrained, probe, train_gan
from recon_nb.advice import advise
from recon_nb.answer import does_it_help
from recon_nb.average_precision import average_precisions, found_shares
from recon_nb.boxed import DetectionSet
from recon_nb.choices import check_choices
from recon_nb.config import PRESETS, GANConfig, config_from_dict, field_docs, get_preset
from recon_nb.contenders import as_contender
from recon_nb.core import InputError, append_jsonl, check_name, epoch_order, read_jsonl, sample_uniform, write_atomic
from recon_nb.data import split_photos
from recon_nb.decoding import Ranges
from recon_nb.download import download
from recon_nb.export import Preprocess
from recon_nb.heads import nearest_neighbours
from recon_nb.labelled import LabelledSet, development_images, label_subset, load_labelled
from recon_nb.masks import MASKS, window_size, window_slice
from recon_nb.photos import Photos, as_images, cut_photos
from recon_nb.segmented import SegmentationSet
from recon_nb.settings import _choose_config
from recon_nb.shapes import draw_shapes
from recon_nb.show import image_grid
from recon_nb.state import make_networks
from recon_nb.task import make_task

SLOW = bool(os.environ.get('RECON_NB_SLOW'))
settings.register_profile('quick', derandomize=True, database=None)
settings.register_profile('slow', database=None, print_blob=True)
settings.load_profile('slow' if SLOW else 'quick')
TESTS = 60                                                       # below: so many cases each make 1,000 and 20,000
PLAIN = dict(deadline=None, suppress_health_check=[*HealthCheck])


def cases(share=1.):
    "As many cases as its share of all; a function that computes for long gets fewer."
    return settings(max_examples=max(5, round(share*(20_400 if SLOW else 1_020)/TESTS)), **PLAIN)


REFUSED = object()


def ask(call, *names):
    "What a call gives, or REFUSED: with an `InputError` of one sentence that has one of the names in it."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try: return call()
        except InputError as e:
            said = str(e)
            assert said and len(said) < 1500, f'no sentence: {said[:400]!r}'
            assert not names or any(n in said for n in names), f'none of {names} in {said[:400]!r}'
            return REFUSED


# --- what people give

numbers = st.one_of(st.sampled_from([0, 1, 2, 3, 16, 31, 32, 33, 64, 199, 200, -1, -7, 2**31, 2**63, 10**30, -10**30, 0., -0., .5, 1/3, 1., 1.0000001, -1e-9, 1e-300, 1e308,
                                     float('nan'), float('inf'), -float('inf')]), st.integers(-5, 200), st.floats(-2, 2))
words = st.one_of(st.sampled_from(['', ' ', 'photos of mine', 'Fotos/Größe ✓', 'a\nb', '-h', '--size', '~', '~/none', '.', '..', 'a*b', '[', '?', 'shapes ', 'Quick', 'none', '0', 'nan', 'a'*400, '/dev/null',
                                   'C:\\photos', 'x,y', "it's", '"', '%s', '{0}', '\t', 'shapes\0', 'someone/birds', 'http://x.org/a', 'é'*200]), st.text(max_size=8))
junk = st.one_of(numbers, words, st.sampled_from([None, True, False, [], (), {}, [1], {'a': 1}, b'bytes', object, np.float32(3), np.int64(5), np.array([1, 2])]))
sides = st.one_of(st.integers(1, 200), st.sampled_from([1, 2, 3, 5, 16, 31, 32, 33]))
DTYPES = 'uint8 uint16 int64 int8 float32 float64 bool uint8 uint8 >u2 complex64'.split()


@st.composite
def arrays(draw, few=True):
    "Photos in an array, or something that is nearly that."
    n, h, w, c = draw(st.integers(0, 3)), draw(st.integers(0, 40)), draw(st.integers(1, 200 if few else 40)), draw(st.integers(0, 5))
    shape = draw(st.sampled_from([(n, h, w, 3), (n, h, w, c), (n, 3, h, w), (n, h, w), (h, w), (h, w, 3), (3, h, w), (h, w, c), (), (n,), (1, n, h, w, 3)]))
    kind, fill = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(['noise', 'zeros', 'nan', 'inf', 'huge', 'negative', 'unit', '12 bit']))
    a = np.random.default_rng(draw(st.integers(0, 9))).random(shape)
    scale = dict(noise=255, zeros=0, huge=1e30, negative=-300, unit=1)
    a = a*scale.get(fill, 4095)
    if fill in ('nan', 'inf') and a.size: a.flat[0] = dict(nan=np.nan, inf=np.inf)[fill]
    with np.errstate(all='ignore'), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        a = np.asarray(a).astype(kind)
    return torch.from_numpy(a) if draw(st.booleans()) and kind not in ('>u2',) else a


@st.composite
def pictures(draw):
    mode = draw(st.sampled_from(['1', 'L', 'P', 'LA', 'PA', 'RGBA', 'CMYK', 'YCbCr', 'HSV', 'LAB', 'I', 'F', 'I;16', 'RGB']))
    return Image.new(mode, (draw(sides), draw(sides)))


@st.composite
def some_photos(draw):
    "Whatever photos are given as: arrays, pictures, lists of these, names, nonsense."
    one = st.one_of(arrays(), pictures(), words, junk, st.binary(max_size=20), st.builds(io.BytesIO, st.binary(max_size=20)))
    return draw(st.one_of(one, st.lists(one, max_size=3), st.lists(pictures(), min_size=1, max_size=3), st.tuples(arrays(), arrays())))


@st.composite
def tables(draw):
    columns = draw(st.lists(st.sampled_from(['path', 'image', 'label', 'class', 'split', 'x', 'Path ', 'label']), min_size=0, max_size=3))
    n = draw(st.integers(0, 3))
    cell = st.one_of(words, numbers, st.none(), pictures(), st.binary(max_size=5))
    return pd.DataFrame([[draw(cell) for _ in columns] for _ in range(n)], columns=columns)


@pytest.fixture(autouse=True, scope='module')
def here(tmp_path_factory):
    "An empty folder to stand in, and a cache."
    old, d = os.getcwd(), tmp_path_factory.mktemp('generated')
    os.environ['RECON_NB_CACHE'] = str(tmp_path_factory.mktemp('cache'))
    os.chdir(d)
    yield d
    os.chdir(old)


@pytest.fixture(scope='module')
def run(tmp_path_factory): return train_gan(draw_shapes(20, size=40)[0], run_dir=tmp_path_factory.mktemp('run')/'run', width=2, bs=8, epochs=1, progress=False)


# --- settings of a run

FIELDS = [*field_docs()]


@cases(3)
@given(st.sampled_from([*PRESETS]), st.sampled_from(FIELDS), junk)
def test_a_field(preset, field, value):
    got = ask(lambda: get_preset(preset, **{field: value}), field, 'lambda_adv')
    assert got is REFUSED or isinstance(got, GANConfig) and (value is None or getattr(got, field) in (value, float(value) if isinstance(value, int) else value))


@cases(3)
@given(st.sampled_from([*PRESETS]), st.dictionaries(st.sampled_from(FIELDS), junk, max_size=3), st.booleans())
@example('quick', {'size': 2**31}, True)
def test_choices_of_any_kind(preset, fields, train):
    fields = {k: v for k, v in fields.items() if k not in ('preset', 'schema')}
    cfg = ask(lambda: get_preset(preset, **fields))
    if cfg is REFUSED or cfg.size > 200 or cfg.width > 200 or cfg.width_d > 200 or cfg.width_dec > 200: return
    assert ask(lambda: check_choices(cfg, train=train)) in (REFUSED, cfg)


@cases(2)
@given(st.sampled_from([p for p in PRESETS if p != 'second-round']), st.integers(2, 12).map(lambda k: 16*k), st.floats(.02, .98), st.sampled_from([*MASKS]), st.booleans(), st.integers(1, 5))
def test_what_is_accepted_has_networks(preset, size, visible, mask, scale_bias, width):
    cfg = get_preset(preset, size=min(size, 96), visible=visible, mask=mask, scale_bias=scale_bias, width=width, width_dec=width, width_d=width)
    if ask(lambda: check_choices(cfg, changed=()), 'size', 'visible', 'mask', 'view') is REFUSED: return
    gen, disc = make_networks(cfg)
    with torch.no_grad(): outs = gen.eval()(torch.zeros(2, 3, cfg.size, cfg.size))
    for x, o in zip(outs if isinstance(outs, tuple) else (outs,), make_task(cfg).target.outputs): assert x.shape == (2, o.channels, cfg.size//o.stride, cfg.size//o.stride)


@cases(2)
@given(st.one_of(st.dictionaries(st.one_of(st.sampled_from([*FIELDS, 'batch_size']), words), junk, max_size=3), junk, words))
@example(0)
@example(b'bytes')
def test_a_config_of_ones_own(config): assert ask(lambda: _choose_config({}, config=config)) is REFUSED or not isinstance(config, (int, float))


@cases()
@given(st.one_of(st.dictionaries(st.sampled_from(FIELDS), junk, max_size=4).map(lambda d: {'schema': 2, **d}), st.dictionaries(words, junk), junk))
def test_a_config_from_a_file(d): assert ask(lambda: config_from_dict(d)) is REFUSED or isinstance(d, dict)


@cases()
@given(like=st.one_of(words, junk), run_dir=st.one_of(words, st.none()), resume=st.booleans(), preset=st.one_of(st.none(), words))
@example(like=0, run_dir=None, resume=False, preset=None)
def test_where_a_config_comes_from(like, run_dir, resume, preset): ask(lambda: _choose_config({}, like=like, run_dir=run_dir, resume=resume, preset=preset))


@cases()
@given(st.sampled_from(['max_minutes', 'device', 'hooks', 'plugins', 'root', 'config', 'like', 'preset', 'batch_size', 'epochs', 'valid']), junk)
@example('plugins', [1])
@example('plugins', 0)
@example('hooks', 0)
@example('max_minutes', '')
@example('config', b'bytes')
@example('device', 2**63)
@example('device', np.array([1, 2]))
@example('root', np.array([1, 2]))
def test_an_argument_of_training(here, name, value):
    "The photos are none, so that nothing is trained."
    assert ask(lambda: train_gan(here/'no such folder', **{name: value}, progress=False)) is REFUSED


# --- photos

def check_photos(got, size, names=('i_r',)):
    if got is REFUSED: return
    assert isinstance(got, Photos) and len(got) >= 1
    for k in names: assert got.cuts[k].shape == (len(got), size, size, 3) and got.cuts[k].dtype == np.uint8
    assert len(got.names) == len(got.content_ids()) == len(got)
    assert got.labels is None or got.labels.shape == (len(got),)


HOW = dict(workers=1, progress=False)


@cases(4)
@given(arrays(), sides)
def test_photos_in_an_array(a, size): check_photos(ask(lambda: load_photos(a, size=size, cuts={'i_r': 1.}, **HOW), 'array', 'photo'), size)


@cases(2)
@given(some_photos())
@example([np.zeros((3, 4, 3), np.uint8), None])
@example((np.zeros((0, 0, 1, 3), np.uint8), np.array([], np.uint8)))
def test_photos_of_any_kind(data): check_photos(ask(lambda: load_photos(data, size=8, cuts={'i_r': 1.}, **HOW)), 8)


@cases(2)
@given(tables())
def test_photos_in_a_table(table): check_photos(ask(lambda: load_photos(table, size=8, cuts={'i_r': 1.}, **HOW)), 8)


@cases(2)
@given(words, st.sampled_from(['load_photos', 'load_labelled', 'cut_photos']))
@example('~0', 'load_photos')
@example('é'*200, 'load_photos')
@example('é'*200, 'load_labelled')
def test_photos_by_a_name(name, how):
    if name in ('shapes', '.', '..', '~'): return
    calls = dict(load_photos=lambda: load_photos(name, size=8, cuts={'i_r': 1.}, **HOW), load_labelled=lambda: load_labelled(name, size=8, **HOW), cut_photos=lambda: cut_photos(name, size=8))
    assert ask(calls[how]) is REFUSED


@cases(2)
@given(size=st.one_of(sides, junk), cuts=st.one_of(st.dictionaries(st.sampled_from(['i_r', 'i_in', 'a b', '']), numbers, max_size=2), junk), workers=st.one_of(st.just(1), junk))
def test_the_geometry_of_photos(size, cuts, workers):
    got = ask(lambda: load_photos(draw_shapes(2, size=9)[0], size=size, cuts=cuts, workers=workers, progress=False), 'size=', 'cuts=', 'workers=')
    if got is not REFUSED: check_photos(got, size, [*cuts])


@cases(2)
@given(some_photos(), st.one_of(sides, st.integers(1, 40)), st.floats(.01, 1))
def test_cuts(data, size, share):
    got = ask(lambda: cut_photos(data, size=size, share=share))
    assert got is REFUSED or got.shape[1:] == (size, size, 3) and got.dtype == np.uint8


@cases()
@given(st.one_of(numbers, junk), st.one_of(numbers, junk))
@example(1e308, 1)
@example(0., 1)
@example(0, 1)
@example(-10**30, 1)
@example(8, '')
@example(8, float('nan'))
@example(8, 0)
def test_size_and_share_of_a_cut(size, share):
    if isinstance(size, int) and size > 300: size = 300
    got = ask(lambda: cut_photos(draw_shapes(1, size=9)[0], size=size, share=share), 'size', 'share')
    assert got is REFUSED or got.shape == (1, size, size, 3)


@cases(2)
@given(sides, sides, sides, st.floats(.02, 1), st.integers(0, 9))
def test_a_cut_is_what_pillow_makes_of_the_box(w, h, size, share, seed):
    a = np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)
    side = share*min(w, h)
    box = (w-side)/2, (h-side)/2, (w-side)/2+side, (h-side)/2+side
    want = np.asarray(Image.fromarray(a).resize((size, size), Image.Resampling.BICUBIC, box=box))
    assert (cut_photos([Image.fromarray(a)], size=size, share=share)[0] == want).all()


@cases()
@given(some_photos(), st.one_of(st.none(), junk, st.tuples(numbers, numbers)))
def test_as_images(data, window):
    got = ask(lambda: as_images(data, window))
    assert got is REFUSED or all(im.mode == 'RGB' for im in got)


@cases()
@given(st.one_of(junk, words, st.tuples(numbers, numbers), st.dictionaries(words, junk, max_size=2)))
def test_a_window(window):
    got = ask(lambda: Ranges(window), 'window')
    if got is not REFUSED and got.given: assert Ranges(got.text).given == got.given and all(low < high for low, high in got.given.values())


@cases()
@given(st.integers(0, 200), numbers, st.one_of(st.integers(-10**30, 10**30), st.integers(0, 9)), st.one_of(st.none(), st.lists(st.integers(0, 199), unique=True)))
def test_a_split(n, valid, seed, held):
    held = None if held is None else np.array(sorted(i for i in held if i < n), dtype=np.int64)
    photos = Photos({'i_r': np.zeros((n, 1, 1, 3), np.uint8)}, None, None, [str(i) for i in range(n)], [], held, 'array')
    got = ask(lambda: split_photos(photos, valid=valid, seed=seed), 'valid=', f'{n} photo')
    if got is not REFUSED: assert sorted(np.concatenate(got)) == [*range(n)] and len(got[0])


# --- labels, masks and boxes

labels = st.one_of(st.lists(st.one_of(st.integers(-2, 3), st.sampled_from(['cat', 'dog', '', ' ', 'Größe', None, True, 1.5, float('nan'), 10**30])), max_size=14), st.lists(st.sampled_from([0, 1]), min_size=8, max_size=14),
                   st.lists(st.sampled_from(['cat', 'dog']), min_size=8, max_size=14), junk)


@cases(3)
@given(labels, st.integers(0, 14), st.one_of(st.none(), numbers), st.booleans())
def test_photos_and_labels(y, n, split, as_array):
    if as_array:
        with contextlib.suppress(Exception): y = np.array(y)
    got = ask(lambda: load_labelled((draw_shapes(max(n, 1), size=9)[0][:n], y), size=8, split=split, **HOW))
    if got is not REFUSED: assert isinstance(got, LabelledSet) and {*got.train_y} == {*got.test_y} == {*range(len(got.classes))} and len(got.classes) > 1


@cases(2)
@given(some_photos())
def test_labelled_data_of_any_kind(data):
    if isinstance(data, str) and data in ('.', '..', '~'): return
    got = ask(lambda: load_labelled(data, size=8, **HOW))
    assert got is REFUSED or isinstance(got, LabelledSet)


@cases(2)
@given(arrays(), junk, arrays(), junk, st.one_of(st.just(('a', 'b')), junk))
@example(np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 1]), np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 1]), 0)
def test_a_labelled_set_of_ones_own(x, y, u, v, classes): ask(lambda: LabelledSet('mine', x, y, u, v, classes), 'mine')


@cases(2)
@given(arrays(), arrays(), arrays(), arrays(), st.one_of(st.just(('ground', 'thing')), junk))
def test_a_segmented_set_of_ones_own(x, y, u, v, classes): ask(lambda: SegmentationSet('mine', x, y, u, v, classes), 'mine')


@cases(2)
@given(arrays(), st.one_of(st.lists(arrays(), max_size=2), junk), arrays(), st.one_of(st.lists(arrays(), max_size=2), junk), st.one_of(st.just(('thing',)), junk))
def test_a_boxed_set_of_ones_own(x, y, u, v, classes): ask(lambda: DetectionSet('mine', x, y, u, v, classes), 'mine')


@cases()
@given(st.lists(st.integers(0, 3), max_size=200), st.one_of(st.none(), st.integers(-1, 60), junk), st.integers(-10**30, 10**30))
@example([], 1, 0)
def test_a_subset_of_labels(y, k, seed):
    y = np.array(y, dtype=np.int64)
    got = ask(lambda: label_subset(y, k, seed=seed), 'label')
    if got is REFUSED: return
    assert (np.diff(got) > 0).all() and (k is None or not len(y) or (np.bincount(y[got]) == k).all())
    if len(y) and np.bincount(y).min() > 1: assert {*y[development_images(y)]} == {*y}


# --- masks

@cases(2)
@given(st.one_of(sides, st.integers(-3, 3), junk), st.one_of(numbers, junk))
@example(1, .5)
@example(2, .5)
def test_a_window_of_the_picture(size, visible):
    got = ask(lambda: (window_size(size, visible), window_slice(size, visible)), 'visible=', 'size=')
    if got is REFUSED: return
    side, s = got
    assert 1 <= side <= size-2 and side % 2 == size % 2 and s.stop-s.start == side and s.start == size-s.stop


@cases(2)
@given(st.sampled_from([*MASKS]), sides, st.one_of(st.floats(.001, .999), numbers), st.lists(st.integers(0, 2**40), max_size=3), st.integers(0, 10**6), st.integers(-2**63, 2**63))
def test_a_mask(name, size, visible, index, epoch, seed):
    m = ask(lambda: MASKS[name](size, visible), 'visible=', 'size=')
    if m is REFUSED: return
    hidden = m(index, epoch=epoch, seed=seed)
    assert hidden.shape == (len(index), 1, size, size) and hidden.dtype == torch.bool and torch.equal(hidden, m(index, epoch=epoch, seed=seed)) and 0 < m.area < 1
    if size >= 8: assert not len(index) or (hidden.flatten(1).any(1) & ~hidden.flatten(1).all(1)).all()


# --- scenes, numbers, files

@cases()
@given(st.one_of(st.integers(-1, 5), junk), st.one_of(st.integers(-1, 80), junk), st.one_of(numbers, st.floats(0, 1)), st.one_of(st.integers(-3, 10**30), junk))
def test_drawn_scenes(n, size, share, seed):
    if isinstance(size, int) and size > 200 or isinstance(n, int) and n > 200: return
    got = ask(lambda: draw_shapes(n, size=size, share=share, seed=seed), 'n=', 'size=', 'share=', 'seed=')
    if got is not REFUSED: assert got[0].shape == (n, size, size, 3) and got[0].dtype == np.uint8 and got[1].shape == (n,)


@cases()
@given(st.integers(-10**30, 10**30), st.integers(0, 2**63), st.lists(st.integers(0, 2**62), max_size=5), words, st.integers(0, 4))
def test_random_numbers(seed, epoch, index, stream, k):
    u = sample_uniform(seed, epoch, index, stream=stream, k=k)
    assert u.shape == (len(index), k) and (u >= 0).all() and (u < 1).all() and (u == sample_uniform(seed, epoch, index, stream=stream, k=k)).all()
    assert sorted(epoch_order(len(index), seed=seed, epoch=epoch)) == [*range(len(index))]


@cases()
@given(st.one_of(words, junk), st.lists(words, max_size=5))
def test_a_name(name, allowed):
    got = ask(lambda: check_name(name, allowed, 'thing'), 'unknown thing')
    assert (got is REFUSED) == (name not in allowed)


@cases()
@given(st.lists(st.dictionaries(words, st.one_of(st.integers(), st.floats(allow_nan=False), words, st.none(), st.booleans()), max_size=3), max_size=4), st.binary(max_size=30))
def test_records_come_back(rows, torn):
    path = Path('records.jsonl')
    path.unlink(missing_ok=True)
    append_jsonl(path, *rows)
    assert read_jsonl(path) == rows
    with open(path, 'ab') as f: f.write(torn)
    got = ask(lambda: read_jsonl(path), 'records.jsonl')
    assert got is REFUSED or got[:len(rows)] == rows


@cases()
@given(st.text(st.characters(exclude_characters='/\0', exclude_categories=['Cs']), min_size=1, max_size=30), st.one_of(st.binary(max_size=9), st.text(st.characters(exclude_categories=['Cs']), max_size=9)))
def test_a_file_of_any_name(name, data):
    if name in ('.', '..'): return
    path = write_atomic(Path('files')/name, data)
    assert path.read_bytes() == (data.encode() if isinstance(data, str) else data) and len([*Path('files').iterdir()]) == 1
    path.unlink()


@cases()
@given(st.one_of(words, st.just('https://x.invalid/a')), st.one_of(words, st.just('sha256:'+'0'*64)))
def test_what_can_not_be_downloaded(url, checksum):
    if url.startswith('http') and checksum.startswith('sha256:0'): return
    assert ask(lambda: download(url, 'a.zip', checksum=checksum, progress=False), 'checksum=', "can't be downloaded") is REFUSED


@cases()
@given(st.one_of(arrays(), st.lists(arrays(), max_size=2)), st.one_of(st.none(), st.integers(-1, 4)), st.integers(0, 3))
@example(np.zeros((3, 0, 1), np.uint8), None, 0)
@example(np.zeros((0, 0, 1, 3), np.uint8), None, 0)
@example(np.zeros((2, 4, 4, 3), np.uint8), 0, 2)
def test_a_grid(rows, cols, pad):
    got = ask(lambda: image_grid(rows, cols=cols, pad=pad), 'image_grid', 'cols=')
    assert got is REFUSED or got.dtype == np.uint8 and got.ndim == 3


# --- measures

def boxes(n, seed, last):
    rng = np.random.default_rng(seed)
    at = rng.integers(0, 20, (n, 2))
    return np.concatenate([at, at+rng.integers(1, 12, (n, 2)), rng.integers(0, 2, (n, 1)), last(rng, n)[:, None]], 1).astype(float)


def by_a_loop(answers, truth, c, threshold):
    "COCO's average precision of one class at one threshold, step by step."
    def iou(a, b):
        w, h = min(a[2], b[2])-max(a[0], b[0]), min(a[3], b[3])-max(a[1], b[1])
        both = max(w, 0)*max(h, 0)
        return both/((a[2]-a[0])*(a[3]-a[1])+(b[2]-b[0])*(b[3]-b[1])-both)
    hits, n = [], 0
    for ans, tru in zip(answers, truth):
        tru = [t for t in tru if t[4] == c]
        n, used = n+len(tru), set()
        for a in sorted((a for a in ans if a[4] == c), key=lambda a: -a[5]):
            found = [(iou(a, t), -i) for i, t in enumerate(tru) if i not in used]
            best = max(found, default=(0, 0))
            if best[0] >= threshold-1e-10: used.add(-best[1])
            hits.append((a[5], bool(found) and best[0] >= threshold-1e-10))
    if not n: return float('nan')
    hits = [h for _, h in sorted(hits, key=lambda x: -x[0])]
    at = [(sum(hits[:k])/n, sum(hits[:k])/k) for k in range(1, len(hits)+1)]
    return sum(max((p for r, p in at if r >= recall-1e-12), default=0.) for recall in np.linspace(0, 1, 101))/101


@cases(2)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), min_size=1, max_size=3), st.integers(0, 10**6))
def test_average_precision_is_that_of_a_loop(sizes, seed):
    answers = [boxes(k, seed+i, lambda rng, n: rng.permutation(1000)[:n]/1000+i*1e-5) for i, (k, _) in enumerate(sizes)]
    truth = [boxes(k, seed+i+50, lambda rng, n: np.ones(n)) for i, (_, k) in enumerate(sizes)]
    got = average_precisions(answers, truth, 2)
    want = [[by_a_loop(answers, truth, c, t) for c in range(2)] for t in np.linspace(.5, .95, 10)]
    np.testing.assert_allclose(got, want, atol=1e-9)
    shares = found_shares(answers, truth)
    assert ((shares >= 0) & (shares <= 1) | np.isnan(shares)).all()


@cases()
@given(st.integers(1, 40), st.integers(1, 8), st.one_of(st.none(), st.lists(st.integers(-45, 45), max_size=4)), st.one_of(st.integers(-2, 45), junk), st.booleans())
@example(2, 1, [], 1, False)
@example(2, 1, None, 1., False)
@example(5, 1, None, np.array([1, 2]), False)
def test_neighbours(n, d, queries, k, centred):
    f = np.random.default_rng(n).normal(size=(n, d)).astype(np.float32)
    got = ask(lambda: nearest_neighbours(f, queries, k=k, centred=centred), 'queries=', 'k=')
    if got is REFUSED: return
    own = np.arange(n) if queries is None else np.array(queries, dtype=int) % n
    assert got[0].shape == got[1].shape == (len(own), k) and (got[0] != own[:, None]).all() and (np.diff(got[1], axis=1) <= 1e-6).all()


# --- a trained run, and what is asked of it

@cases(2)
@given(data=some_photos())
@example(data=[])
@example(data=np.zeros((0, 9, 9, 3), np.uint8))
def test_what_a_run_makes_of_photos(run, data):
    for call in (run.transform, run.reconstruct, run.score):
        if isinstance(data, io.BytesIO): data.seek(0)
        got = ask(lambda: call(data))
        if got is not REFUSED and call == run.transform: assert got.ndim == 2 and np.isfinite(got).all()


@cases()
@given(stage=st.one_of(st.integers(-6, 6), junk), bs=st.one_of(st.integers(-2, 4), junk), pool=st.booleans())
@example(stage=-1, bs=0, pool=True)
@example(stage=1, bs=1.5, pool=True)
@example(stage=np.array([1, 2]), bs=1, pool=True)
def test_how_features_are_asked_for(run, stage, bs, pool):
    got = ask(lambda: run.transform(draw_shapes(3, size=20)[0], stage=stage, bs=bs, pool=pool), 'stage', 'bs=')
    assert got is REFUSED or len(got) == 3


@cases()
@given(st.one_of(sides, junk), st.one_of(numbers, junk))
@example(8, '')
def test_preprocessing_of_ones_own(size, share):
    got = ask(lambda: Preprocess(size)(draw_shapes(1, size=9)[0], share=share), 'share=', 'size=')
    assert got is REFUSED or got.shape == (1, 3, size, size)


@cases(2)
@given(source=st.one_of(words, junk), epoch=st.one_of(st.none(), junk), revision=st.one_of(st.none(), words), device=st.one_of(st.just('cpu'), words))
@example(source='', epoch=[], revision=None, device='cpu')
@example(source=0, epoch=None, revision=None, device='cpu')
def test_what_is_no_encoder(source, epoch, revision, device):
    os.environ['HF_HUB_OFFLINE'] = '1'
    for call in (lambda: load_pretrained(source, epoch=epoch, revision=revision, device=device), lambda: GANRun.load(source, epoch=epoch, device=device), lambda: as_contender(source)):
        got = ask(call)
        assert got is REFUSED or call is not GANRun.load


@cases()
@given(name=st.text(st.characters(exclude_characters='/\0', exclude_categories=['Cs']), min_size=1, max_size=20), end=st.sampled_from(['.safetensors', '', '.onnx2', '.pt']))
@example(name='-h', end='.safetensors')
@example(name='a\nb', end='.safetensors')
def test_an_export_of_any_name(run, name, end):
    if name in ('.', '..'): return
    got = ask(lambda: export_encoder(run, Path('out')/(name+end)))
    if got is REFUSED: return
    assert load_pretrained(got, device='cpu').config['architecture']['width'] == 2
    got.unlink()


@cases()
@given(st.sampled_from(['mode', 'labels_per_class', 'seeds', 'part', 'size', 'recipe', 'device', 'out', 'data', 'width', 'like']), junk)
def test_an_argument_of_a_probe(name, value):
    "With no encoder to ask: nothing is trained."
    data, call = value if name == 'data' else 'no such set', {} if name == 'data' else {name: value}
    assert ask(lambda: probe('no such run', data, progress=False, **call)) is REFUSED


ANSWER = ['minutes', 'labels', 'seeds', 'recipe', 'part', 'size', 'out', 'device', 'data', 'progress']


def no_time(value): return isinstance(value, (bool, str, bytes)) or not np.isscalar(value) or not value > 0


@cases(.3)
@given(st.sampled_from(ANSWER), junk)
@example('seeds', 10**30)
@example('minutes', 'x')
@example('recipe', 0)
@example('recipe', dict(epochs='x'))
@example('recipe', dict(lr=[1]))
def test_an_argument_of_an_answer(run, tmp_path_factory, name, value):
    "In no time nothing is begun: a whole answer, or a refusal."
    if name == 'minutes' and (value is None or not no_time(value)): return          # it would take them
    if name == 'device' and value is None: return
    x, y = draw_shapes(20, size=32, seed=1)
    toy = LabelledSet('mine', x, y % 2, x[::-1], y[::-1] % 2, ('a', 'b'))
    how = dict(data=toy, minutes=1e-9, device='cpu', progress=False, out=tmp_path_factory.mktemp('answer')/'a.jsonl') | {name: value}
    got = ask(lambda: does_it_help(run, how.pop('data'), **how), *(('minutes',) if name == 'minutes' else ()))
    assert got is REFUSED or name != 'minutes' and not (name == 'recipe' and not isinstance(value, (dict, type(None))))


@cases(.5)
@given(st.sampled_from(['labels', 'targets', 'minutes', 'updates', 'size', 'width', 'seed', 'out', 'device', 'valid']), junk)
@example('updates', 'x')
@example('targets', 7)
@example('minutes', 'x')
def test_an_argument_of_advice(name, value):
    "On photos that are too few: refused; for its own sake, where it has none."
    how = dict(photos=draw_shapes(3, size=32)[0], device='cpu', progress=False) | {name: value}
    own = name == 'minutes' and (value is None or no_time(value))
    assert ask(lambda: advise(how.pop('photos'), **how), *((name,) if own else ())) is REFUSED


# --- the shell

COMMANDS = ['train', 'reconstruct', 'compare', 'embed', 'export', 'release', 'health', 'advise', 'probe', 'segment', 'detect', 'table']


@cases(3)
@given(st.sampled_from(COMMANDS), st.lists(st.one_of(words, st.sampled_from(['--size', '--bs', '--out', '-o', '--preset', '--seed', '--run-dir', '--mode', '--labels', '--plugin', '--config', '--device', '7', '-3', 'x'])), max_size=4))
@example('train', ['a\nb', '--x\ny'])
def test_words_of_a_shell(command, argv):
    "Where nothing of that name lies: refused in a line with status 2, or helped."
    if any(a in ('.', '..', '~', 'shapes') for a in argv) or not argv or argv[0] in ('', '-o'): return
    if command == 'train' and not any(not a.startswith('-') for a in argv): argv = [*argv, 'no such folder']
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try: status = getattr(cli, command)(['no such folder', *argv])
        except SystemExit as e: status = e.code
    helped = '-h' in argv
    assert status in (1, 2) or helped and status == 0, (status, out.getvalue()[:200])
    said = err.getvalue()
    if status: assert said.startswith(f'recon-{command}: ') and len(said.splitlines()) == 1, said[:500]
