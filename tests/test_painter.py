"""The network of the page `start/paint_your_photo`, in JavaScript, beside the same network in PyTorch. Needs Node (node on PATH); what needs it is skipped without."""
import json, re, shutil, subprocess, sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from recon_nb.config import get_preset
from recon_nb.pixels import to_model
from recon_nb.shapes import draw_shapes
from recon_nb.state import make_networks

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT/'.ci'))
import painter                                                          # noqa: E402
PAINT, SIZE = painter.OUT, painter.SETTINGS['size']


def node(body, **given):
    "What the JavaScript `body` returns; it sees network.js as `net`, and `given`."
    if not (where := shutil.which('node')): pytest.skip('there is no node, which runs JavaScript (apt-get install nodejs)')
    code = f"""const net = require({json.dumps(str(PAINT/'network.js'))});
      const given = JSON.parse(require('fs').readFileSync(0));
      const of = (a, c, h, w) => ({{c, h, w, data: Float32Array.from(a)}}), list = a => [...a];
      process.stdout.write(JSON.stringify((() => {{ {body} }})()));"""
    r = subprocess.run([where, '-e', code], input=json.dumps(given), capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    return json.loads(r.stdout)


def shipped(epoch):
    "What a weights file of the page says."
    return json.loads(re.fullmatch(r'painter\.files\[\d+\] = (.*);\n', (PAINT/f'epoch-{epoch}.js').read_text(encoding='utf-8'))[1])


def unpack(file):
    "The package's own generator with the numbers of a weights file: batch norm adds the bias and does nothing else."
    import base64
    numbers = torch.from_numpy(np.frombuffer(base64.b64decode(file['numbers']), '<f2').astype('float32'))
    gen, _ = make_networks(get_preset(file['preset'], **file['settings']))
    for m in gen.modules():
        if isinstance(m, nn.BatchNorm2d): m.eps = 0.
    with torch.no_grad():
        for block in [*gen.enc.children(), *gen.dec.children()]:
            for i,conv in enumerate(block):
                if not isinstance(conv, (nn.Conv2d, nn.ConvTranspose2d)): continue
                weight, bias, numbers = numbers[:conv.weight.numel()], numbers[conv.weight.numel():][:conv.out_channels], numbers[conv.weight.numel()+conv.out_channels:]
                conv.weight.copy_(weight.view_as(conv.weight))
                norm = block[i+1] if i+1 < len(block) else None
                if isinstance(norm, nn.BatchNorm2d): norm.bias.copy_(bias); norm.weight.fill_(1.)
                elif conv.bias is not None: conv.bias.copy_(bias)
                else: assert not bias.any()
    assert len(numbers) == 0
    return gen.eval()


@pytest.fixture(scope='module')
def toy():
    "A generator whose batch norms have seen something, and its weights file as text."
    cfg = get_preset('quick', **{k: v for k,v in painter.SETTINGS.items() if k != 'keep_every'})
    torch.manual_seed(3)
    gen, _ = make_networks(cfg)
    for m in gen.modules():
        if isinstance(m, nn.BatchNorm2d): m.momentum = None; nn.init.normal_(m.bias, 0., .2); nn.init.uniform_(m.weight, .5, 1.5)
    for _ in range(3): gen(torch.randn(8, 3, cfg.size, cfg.size))
    class Run: generator, metrics, step, epoch, info = gen.eval(), [dict(step=0, l1=0., psnr=0.)], 0, 1, {}
    Run.cfg = cfg
    return gen, painter.weights_file(Run, np.zeros((1, 64)))


def seen(n=2, seed=7): return to_model(draw_shapes(n, size=SIZE, seed=seed, share=.5)[0])


PAINTS = f"""const network = net.readNetwork(given.file), x = of(given.x, 3, {SIZE}, {SIZE});
  return {{painted: list(net.paint(network, x).data), first: list(net.firstStage(network, x).data), vector: net.embed(network, x)}};"""


@pytest.mark.parametrize('epoch', painter.EPOCHS)
def test_the_page_paints_as_pytorch_does(epoch):
    file = shipped(epoch)
    gen, x = unpack(file), seen(1)
    got = node(PAINTS, file=file, x=x.flatten().tolist())
    with torch.no_grad(): painted, stages = gen(x)[0], gen.enc.features(x)
    assert painted.std() > .1
    for name,want in [('painted', painted), ('first', stages[0]), ('vector', stages[-1].mean((2,3)))]:
        np.testing.assert_allclose(np.ravel(got[name]), want.numpy().ravel(), atol=1e-4, rtol=0, err_msg=name)


def test_batch_norm_multiplied_in_and_half_precision_change_little(toy):
    gen, text = toy
    file, x = json.loads(text[text.index('{'):].rstrip(';\n')), seen(1)
    got = node(PAINTS, file=file, x=x.flatten().tolist())
    with torch.no_grad(): want = gen(x)[0]
    off = np.abs(np.array(got['painted']) - want.numpy().ravel())
    assert off.mean() < 1e-3 and off.max() < 1e-2 and want.std() > .1


def test_a_network_that_the_page_does_not_know_is_refused(toy):
    class Other(nn.Module):
        def __init__(self, *layers):
            super().__init__()
            self.enc = nn.ModuleDict(dict(conv1=nn.Sequential(nn.Conv2d(3, 4, 3), *layers)))
            self.dec = nn.ModuleDict()
    assert painter.layers_of(Other(nn.ReLU()))[0][0]['then'] == 'relu'
    with pytest.raises(ValueError, match='GELU'): painter.layers_of(Other(nn.GELU()))
    with pytest.raises(ValueError, match='does not know'): painter.layers_of(Other(nn.Conv2d(4, 4, 3, groups=2)))
    with pytest.raises(ValueError, match='too large'): painter.halves([1e9])


def test_half_precision_is_read_as_numpy_writes_it():
    bits = [0, 1, 1023, 1024, 0x3c00, 0x3555, 0x7bff, 0x8001, 0xc000, 0xfbff]
    got = node('return given.bits.map(net.halfToNumber);', bits=bits)
    assert got == np.array(bits, '<u2').view('<f2').astype(float).tolist()


@pytest.mark.parametrize('w,h,box', [(64, 64, (0, 0, 64)), (200, 150, (25, 0, 150)), (150, 211, (10, 40, 120)), (64, 64, (16, 16, 32))])
def test_photos_are_cut_as_the_package_cuts_them(w, h, box):
    rng = np.random.default_rng(0)
    im = Image.fromarray(draw_shapes(1, size=256, seed=5)[0][0]).resize((w, h))
    im = Image.fromarray(np.clip(np.asarray(im).astype(int) + rng.integers(-20, 20, (h, w, 3)), 0, 255).astype('uint8'))
    left, top, side = box
    got = node('return list(net.cutSquare({rgba: given.rgba, width: given.w, height: given.h}, ...given.box, 64));',
               rgba=np.asarray(im.convert('RGBA')).ravel().tolist(), w=w, h=h, box=box)
    want = np.asarray(im.resize((64, 64), Image.Resampling.BICUBIC, box=(left, top, left+side, top+side)))
    assert np.abs(np.array(got).reshape(64, 64, 3) - want.astype(int)).max() <= 1


def test_the_window_is_the_packages_and_stays_as_it_is():
    from recon_nb.masks import CentreMask, compose
    rng = np.random.default_rng(1)
    photo, painted = (torch.from_numpy(rng.normal(size=(1,3,SIZE,SIZE)).astype('float32')) for _ in range(2))
    got = node('return list(net.composed(of(given.a, 3, given.n, given.n), of(given.b, 3, given.n, given.n), given.side).data);', a=painted.flatten().tolist(),
               b=photo.flatten().tolist(), n=SIZE, side=shipped(painter.EPOCHS[0])['window'])
    np.testing.assert_array_equal(np.float32(got), compose(painted, photo, CentreMask(SIZE, .5).hidden).numpy().ravel())


def test_filters_are_what_the_first_stage_is_made_of():
    "A filter of 8 x 8 pixels, laid on a photo at one place, gives what the two convolutions give there, but for the bias."
    file, x = shipped(painter.EPOCHS[-1]), seen(1)
    got = np.array(node('return net.firstFilters(net.readNetwork(given.file)).map(f => list(f.data));', file=file)).reshape(8, 3, 8, 8)
    conv = unpack(file).enc.conv1[:2]
    with torch.no_grad(): want = (conv(x) - conv(torch.zeros_like(x)))[0,:,10,12]
    patch = x[0,:,10*2-3:10*2+5,12*2-3:12*2+5].numpy()
    np.testing.assert_allclose((got*patch).sum((1,2,3)), want.numpy(), atol=1e-4)


def test_neighbours_are_the_largest_cosines():
    rng = np.random.default_rng(2)
    vectors, v = rng.normal(size=(9,5)), rng.normal(size=5)
    a, b = vectors-vectors.mean(0), v-vectors.mean(0)
    cos = a @ b/np.linalg.norm(a, axis=1)/np.linalg.norm(b)
    got = node('return net.nearest(given.v, given.vectors, 3);', v=v.tolist(), vectors=vectors.tolist())
    assert [g['index'] for g in got] == np.argsort(-cos)[:3].tolist()
    np.testing.assert_allclose([g['score'] for g in got], np.sort(cos)[::-1][:3])


def test_what_the_page_loads_is_small_and_its_own():
    "Under 2.5 MB in all; it asks nobody; the page offers the epochs that are there."
    files = sorted(p.name for p in PAINT.iterdir())
    assert files == sorted(['network.js', 'page.js', 'pictures.js', *(f'epoch-{e}.js' for e in painter.EPOCHS)])
    assert sum((PAINT/f).stat().st_size for f in files) < 2_500_000
    for f in ('network.js', 'page.js'): assert not re.search(r'https?://|fetch\(|XMLHttpRequest|WebSocket|sendBeacon', (PAINT/f).read_text(encoding='utf-8'))
    page = (ROOT/'nbs/start/paint_your_photo.ipynb').read_text(encoding='utf-8')
    assert f'data-epochs=\\"{" ".join(map(str, painter.EPOCHS))}\\"' in page
    assert [int(e) for e in re.findall(r'painter-epoch\\" value=\\"(\d+)', page)] == list(painter.EPOCHS)
    for e in painter.EPOCHS: assert (shipped(e)['epoch'], shipped(e)['settings']['width']) == (e, 8)
