"Networks that live on another device (here torch's `meta`: weights without numbers), and more photos than fit into memory."
import ast, gc, io, json, weakref
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch import nn

import recon_nb.photos as photos_page
from recon_nb import GANRun, load_pretrained
from recon_nb.config import get_preset
from recon_nb.core import InputError
from recon_nb.export import Preprocess
from recon_nb.figures import draw_architecture
from recon_nb.finetune import _Classifier
from recon_nb.encoder import Encoder
from recon_nb.shapes import draw_shapes
from recon_nb.state import make_networks

CFG = get_preset('quick', size=32, width=4)


def make_run(device='cpu'):
    torch.manual_seed(0)
    return GANRun('nowhere', CFG, *(net.to(device) for net in make_networks(CFG)))


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path/f'{i}.png' for i in range(7)]
    for p,photo in zip(paths, draw_shapes(7, size=60)[0]): Image.fromarray(photo).save(p)
    return paths


@pytest.fixture
def opened(monkeypatch):
    "Of every photo that was opened: a weak reference."
    seen, open_rgb = [], photos_page.open_rgb
    def watched(src, **how): im = open_rgb(src, **how); seen.append(weakref.ref(im)); return im
    monkeypatch.setattr(photos_page, 'open_rgb', watched)
    return seen


def alive(refs): gc.collect(); return sum(r() is not None for r in refs)


# --- more photos than fit

def test_transform_holds_one_batch(files, opened):
    run, at, maps = make_run(), [], []
    def seen(module, args, out): at.append((len(opened), alive(opened), alive(maps))); maps.append(weakref.ref(out))
    run.encoder.conv4.register_forward_hook(seen)
    f = run.transform(files, bs=2)
    assert [n for n,_,_ in at] == [2, 4, 6, 7]                                    # each photo is opened when its batch comes
    assert {n for _,n,_ in at} == {0} and max(n for _,_,n in at) <= 1             # no photo is kept, and no map but the last
    run = make_run()
    np.testing.assert_allclose(f, run.transform(files), atol=1e-5)


def test_preprocess_holds_one_photo(files, opened, monkeypatch):
    most, cut = [], photos_page.cut_square
    def watched(im, **how): most.append(alive(opened)); return cut(im, **how)
    monkeypatch.setattr(photos_page, 'cut_square', watched)
    assert Preprocess(16)(files).shape == (7,3,16,16) and len(opened) == 7 and max(most) == 1


def test_a_bad_photo_is_named(files, opened, tmp_path):
    run = make_run()
    (tmp_path/'text.jpg').write_text('no photo')
    for call in (lambda photos: run.transform(photos, bs=2), Preprocess(16)):
        with pytest.raises(InputError, match='text.jpg is not a photo that can be read'): call([*files, tmp_path/'text.jpg'])
        assert len(opened) == 7; opened.clear()
        for bad,said in ((tmp_path/'lost.jpg', 'lost.jpg is not a photo'), (7, 'a int is not a photo'), (np.zeros((9,9,3)), 'array of float64')):
            with pytest.raises(InputError, match=said): call([*files, bad])
            assert not opened                                                     # said before any photo is opened


def test_a_turned_photo_is_turned_once():
    scene, exif, buf = draw_shapes(1, size=60)[0][0], Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(scene).save(buf, 'PNG', exif=exif)
    run = make_run()
    once, = photos_page.as_images(buf)
    assert (np.asarray(once) == np.rot90(scene, -1)).all() and (np.asarray(photos_page.as_images(once)[0]) == np.asarray(once)).all()
    assert (run.reconstruct(buf).i_r == run.reconstruct(np.asarray(once)).i_r).all() and (run.reconstruct(once).i_r == run.reconstruct(np.asarray(once)).i_r).all()


# --- the recipe of the page, without this package

ROOT = Path(__file__).parents[1]

@pytest.fixture(scope='module')
def prepare():
    "The function `prepare` of how_to/encoder_elsewhere, and its imports."
    cells = [''.join(c['source']) for c in json.loads((ROOT/'nbs/how_to/encoder_elsewhere.ipynb').read_text(encoding='utf-8'))['cells']]
    source, = (c for c in cells if 'def prepare(' in c)
    made, = (n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == 'prepare')
    scope = {}
    exec('import numpy as np\nimport torch\nfrom PIL import Image,ImageOps\n'+ast.unparse(made), scope)
    return scope['prepare']

def as_people_have_them():
    "Name -> an image, how it is stored, and for more than 8 bits the window of its kind."
    scene = Image.fromarray(draw_shapes(1, size=90, seed=4)[0][0]).resize((96,72))
    grey, disc = scene.convert('L'), np.hypot(*np.mgrid[-36:36,-48:48]) < 30
    deep = np.asarray(grey).astype(np.uint16)
    clear = scene.copy(); clear.putalpha(Image.fromarray(disc.astype(np.uint8)*255))
    half = grey.copy(); half.putalpha(Image.fromarray(np.full((72,96), 99, np.uint8)))
    marked = scene.quantize(64); marked.info['transparency'] = 3
    kinds = {'bits16': (Image.fromarray(deep*257), 'TIFF', 'TIFF uint16', (0, 65535)), 'bits12': (Image.fromarray(deep*16), 'TIFF', 'TIFF uint16', (0, 4095)),
             'png12': (Image.fromarray(deep*16), 'PNG', 'PNG uint16', (0, 4095)), 'signed': (Image.fromarray(deep.astype(np.int32)*9-900), 'TIFF', 'TIFF int32', (-900, 1395)),
             'floats': (Image.fromarray((deep/300).astype(np.float32)), 'TIFF', 'TIFF float32', (0, 1))}
    plain = {'clear': (clear, 'PNG'), 'half clear': (half, 'PNG'), 'clear webp': (clear, 'WEBP'), 'palette': (scene.quantize(64), 'PNG'), 'marked palette': (marked, 'PNG'),
             'grey': (grey, 'PNG'), 'ink': (scene.convert('CMYK'), 'TIFF'), 'ink jpg': (scene.convert('CMYK'), 'JPEG'), 'jpg': (scene, 'JPEG'), 'line': (grey.convert('1'), 'PNG')}
    turned = {}
    for o in range(1, 9):
        exif = Image.Exif(); exif[ExifTags.Base.Orientation] = o
        turned |= {f'turned {o} {f}': (scene, f, dict(exif=exif)) for f in ('JPEG','PNG','WEBP','TIFF')}
        turned[f'turned {o} of 12 bits'] = Image.fromarray(deep*16), 'TIFF', dict(exif=exif), {'TIFF uint16': (0, 4095)}
    out = {k: (im, f, {}, {kind: pair}) for k,(im,f,kind,pair) in kinds.items()} | {k: (im, f, {}, {}) for k,(im,f) in plain.items()}
    return out | {k: (*v, {})[:4] for k,v in turned.items()}

@pytest.mark.parametrize('name', as_people_have_them())
def test_the_recipe_is_the_preprocessing(name, prepare):
    im, fmt, how, window = as_people_have_them()[name]
    buf = io.BytesIO()
    im.save(buf, fmt, **how)
    want = Preprocess(32, window)(buf)[0]
    got = prepare(Image.open(buf), dict(size=32, window={k: list(v) for k,v in window.items()}), *window)
    assert torch.equal(got, want) and want.std() > .1

def test_the_recipe_and_reduced_jpegs(prepare):
    "A JPEG far larger than needed is decoded in reduced form: a grey level or two."
    buf = io.BytesIO()
    Image.fromarray(draw_shapes(1, size=64, seed=4)[0][0]).resize((1100,1000), Image.Resampling.BICUBIC).save(buf, 'JPEG', quality=92)
    far = 127.5*(prepare(Image.open(buf), dict(size=32, window={}))-Preprocess(32)(buf)[0]).abs()
    assert 0 < far.max() < 2.1


# --- networks on another device

@pytest.fixture
def no_numbers(monkeypatch):
    "Weights without numbers can't be compared; `frozen` wants to."
    equal = torch.equal
    monkeypatch.setattr(torch, 'equal', lambda a, b: a.is_meta and b.is_meta or equal(a, b))


def places(net): return {p.device.type for p in net.parameters()}


@pytest.mark.parametrize('mode', ['finetune', 'paper-finetune'])
def test_a_classifier_tries_its_encoder_where_that_is(mode, no_numbers):
    enc = Encoder(4).to('meta')
    assert _Classifier(enc, 10, mode=mode, size=32).enc is enc and places(enc) == {'meta'}
    assert _Classifier(Encoder(4), 10, mode=mode, size=32).head[-1].out_features == 10


def test_an_architecture_is_drawn_where_the_network_is(no_numbers):
    run, seen = make_run('meta'), []
    run.generator.register_forward_pre_hook(lambda module, args: seen.append(args[0].device.type))
    run.generator.register_forward_hook(lambda module, args, out: tuple(torch.full(o.shape, .2) for o in out))       # numbers to look at
    fig = draw_architecture(run, photo=draw_shapes(1, size=60)[0][0])
    assert seen[0] == 'meta' and places(run.generator) == {'meta'}
    assert any((im.get_array() == 153).all() for im in fig.axes[0].get_images())                   # 127.5*1.2


def test_pretrained_networks_come_to_the_cpu():
    def fetch(net, device): return net.to_empty(device=device)                             # there are no numbers to copy
    run = make_run('meta')
    with mock.patch.object(nn.Module, 'to', fetch): p = load_pretrained(run, device='cpu')
    assert places(p.encoder) == places(p.decoder) == {'cpu'} and places(run.generator) == {'meta'}
    assert p.encoder(p.preprocess(draw_shapes(2, size=60)[0])).shape == (2,32,2,2)


def test_pretrained_networks_are_copies():
    run = make_run()
    p, before = load_pretrained(run), run.encoder.conv1[0].weight.clone()
    with torch.no_grad(): p.encoder.conv1[0].weight.zero_()
    assert torch.equal(run.encoder.conv1[0].weight, before)
