"""Parts of one's own: a target, a mask, a loss and an encoder, each in a file of at most 25 lines, from Python and from
the shell, opened again in another process. And wrong ones, each refused before the first update in one sentence."""
import subprocess, sys

import numpy as np
import pytest
from PIL import Image

from recon_nb import export_encoder, load_pretrained, probe, train_gan
from recon_nb.core import InputError
from recon_nb.plugins import REGISTRIES
from recon_nb.shapes import draw_shapes

PHOTOS = draw_shapes(60, size=48, seed=4)[0]
TINY = dict(size=32, width=4, bs=16, epochs=2)

GREY = """
from recon_nb.generator import Output
from recon_nb.targets import TARGETS, Target

class GreyTarget(Target):
    "The photo without its colours."
    outputs = Output(1, picture=True),
    def make(self, i_r): return i_r.mean(1, keepdim=True)

TARGETS['grey'] = GreyTarget
"""

LEFT = """
import torch
from recon_nb.masks import MASKS, Mask

class LeftMask(Mask):
    "The left three quarters are hidden."
    area = .25
    def __call__(self, index, *, epoch, seed):
        hidden = torch.arange(self.size) < self.size*3//4
        return hidden.expand(len(index), 1, self.size, -1)

MASKS['left'] = LeftMask
"""

COMPARE = """
from torch.nn.functional import softplus
from recon_nb.losses import ADV, AdvLoss

def disc(real, fake): return softplus(fake-real).mean()
def gen(real, fake): return softplus(real-fake).mean()

ADV['compare'] = AdvLoss(disc, gen, relativistic=True)
"""

RESIDUAL = """
from torch import nn
from recon_nb.encoder import ENCODERS

class Block(nn.Module):
    def __init__(self, ni, nf):
        super().__init__()
        self.way = nn.Sequential(nn.Conv2d(ni, nf, 3, 2, 1), nn.BatchNorm2d(nf), nn.ReLU(), nn.Conv2d(nf, nf, 3, 1, 1))
        self.short = nn.Conv2d(ni, nf, 1)
    def forward(self, x): return (self.way(x) + self.short(x[..., ::2, ::2])).relu()

class SmallResNet(nn.Module):
    "Three stages, of 4, 8 and 16 pixels a place."
    reductions = 4, 8, 16
    def __init__(self, width=16):
        super().__init__()
        self.channels = width, 2*width, 4*width
        self.stem = nn.Conv2d(3, width, 4, 2, 1)
        self.stages = nn.ModuleList(Block(a, b) for a,b in zip((width, *self.channels), self.channels))
    def features(self, x):
        out = [self.stem(x)]
        for stage in self.stages: out.append(stage(out[-1]))
        return out[1:]

ENCODERS['small-resnet'] = SmallResNet
"""

FILES = dict(grey=GREY, left=LEFT, compare=COMPARE, residual=RESIDUAL)
CHOICES = dict(grey=dict(target='grey'), left=dict(mask='left', view='canvas'), compare=dict(adv='compare'),
               residual=dict(encoder='small-resnet'))


@pytest.fixture(autouse=True)
def registries():
    "Each test registers its parts itself."
    before = {field: dict(names) for field,names in REGISTRIES.items()}
    yield
    for field,names in before.items():
        REGISTRIES[field].clear()
        REGISTRIES[field].update(names)


@pytest.fixture
def write(tmp_path):
    def write(name, text=None):
        path = tmp_path/f'{name}.py'
        path.write_text(FILES[name] if text is None else text)
        return path
    return write


def shell(*words, cwd):
    "A command of the shell in a process of its own: status, output, complaints."
    command, *rest = map(str, words)
    code = f'import sys; from recon_nb.cli import {command} as f; sys.exit(f(sys.argv[1:]))'
    done = subprocess.run([sys.executable, '-c', code, *rest], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert 'Traceback' not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def photos_in(folder, n=24):
    folder.mkdir()
    for i,photo in enumerate(PHOTOS[:n]): Image.fromarray(photo).save(folder/f'{i:02d}.png')
    return folder


@pytest.mark.parametrize('name', FILES)
def test_a_part_is_short(name): assert len(FILES[name].strip().splitlines()) <= 25


@pytest.mark.parametrize('name', FILES)
def test_trained_stopped_resumed_and_opened(name, write, tmp_path):
    file = write(name)
    whole = train_gan(PHOTOS, run_dir=tmp_path/'whole', plugins=file, progress=False, **TINY, **CHOICES[name])
    part = train_gan(PHOTOS, run_dir=tmp_path/'part', plugins=[file], progress=False, hooks=lambda st: setattr(st, 'stop', st.step == 3),
                     **TINY, **CHOICES[name])
    assert part.stopped == 'hook' and part.step == 3
    again = train_gan(PHOTOS, run_dir=tmp_path/'part', resume=True, plugins=file, progress=False)
    assert again.step == whole.step and np.array_equal(again.transform(PHOTOS[:5]), whole.transform(PHOTOS[:5]))
    assert again.info['plugins'] == [dict(file=f'{name}.py', gives={field: [n] for field,n in CHOICES[name].items() if n in str(FILES[name])})]
    r = again.reconstruct(PHOTOS[:5])
    assert r.painted.shape == (5,32,32,3) and again.show(PHOTOS[:2]) is not None
    if name == 'grey': assert (r.painted == r.painted[..., :1]).all() and (r.goal == r.goal[..., :1]).all()


@pytest.mark.parametrize('name', FILES)
def test_in_the_shell_from_another_process(name, write, tmp_path):
    file, photos = write(name), photos_in(tmp_path/'photos')
    options = [w for k,v in {**TINY, **CHOICES[name]}.items() for w in (f"--{k.replace('_','-')}", str(v))]
    status, out, err = shell('train', 'photos', '--quiet', '--run-dir', 'run', '--plugin', file, *options, cwd=tmp_path)
    assert (status, out) == (0, 'run\n'), err
    bare = shell('reconstruct', 'run', photos/'00.png', cwd=tmp_path)
    assert bare[0] == 2 and f'--plugin {name}.py' in bare[2], 'it says which file is missing, and how to give it'
    assert shell('reconstruct', 'run', photos/'00.png', '-o', 'out.png', '--plugin', file, cwd=tmp_path)[0] == 0
    needs = ['--plugin', file] if name == 'residual' else []              # features need the encoder, and nothing else
    for command in (('embed', 'run', 'photos', '-o', 'f.npy'), ('export', 'run', '-o', 'encoder.safetensors')):
        assert shell(*command, *needs, cwd=tmp_path)[0] == 0
    assert np.load(tmp_path/'f.npy').shape == (24, 16 if name == 'residual' else 32)


def test_an_encoder_of_ones_own_goes_everywhere(write, tmp_path):
    "Pretrained, shown, embedded, exported, used as a teacher and probed, without a line changed in the package."
    file = write('residual')
    tiny = dict(size=32, width=4, bs=16, epochs=1)
    many = draw_shapes(200, size=32, seed=1)[0]
    run = train_gan(many, 'improved', run_dir=tmp_path/'first', encoder='small-resnet', width_dec=4, plugins=file, progress=False, **tiny)
    assert [run.transform(many[:2], stage=s).shape[1] for s in (1, 2, 3, -1)] == [4, 8, 16, 16]
    for stage in (0, 4, -4):
        with pytest.raises(InputError, match='1 to 3'): run.transform(many[:2], stage=stage)
    exported = export_encoder(run, tmp_path/'encoder.safetensors')
    p = load_pretrained(exported)
    assert p.config['channels'] == [4,8,16] and p.config['reductions'] == [4,8,16]
    assert np.allclose(p.encoder.features(p.preprocess(many[:3]))[-1].mean((2,3)).detach(), run.transform(many[:3]), atol=1e-6)
    session = pytest.importorskip('onnxruntime').InferenceSession(export_encoder(run, tmp_path/'encoder.onnx'))
    got = session.run(None, {'images': p.preprocess(many[:3]).numpy()})
    assert [g.shape for g in got] == [(3,4,8,8), (3,8,4,4), (3,16,2,2)]
    second = train_gan(many, 'second-round', run_dir=tmp_path/'second', teacher=run.dir, encoder='small-resnet', plugins=file, progress=False, **tiny)
    assert 0 <= second.metrics[-1]['named'] <= 1
    for encoder,like in ((run, None), (None, run)):
        assert 0 < probe(encoder, 'shapes', like=like, mode='linear', labels_per_class=5, seeds=1).mean < 1
    gan = train_gan(many, 'improved-gan', run_dir=tmp_path/'gan', encoder='small-resnet', width_dec=4, width_d=4, plugins=file, progress=False, **tiny)
    assert gan.reconstruct(many[:2]).painted.shape == (2,32,32,3)


def target(body, outputs): return GREY.replace("outputs = Output(1, picture=True),", f'outputs = {outputs},').replace('return i_r.mean(1, keepdim=True)', f'return {body}')
def mask(expression, area='.25'): return LEFT.replace("hidden.expand(len(index), 1, self.size, -1)", expression).replace('.25', area)


WRONG = {
    'a mask inside out': (mask('(~hidden).expand(len(index), 1, self.size, -1)'), 'left', 'turned inside out'),
    'a mask that hides everything': (mask('torch.ones(len(index), 1, self.size, self.size, dtype=torch.bool)'), 'left', 'hides everything'),
    'a mask of three channels': (mask('hidden.expand(len(index), 3, self.size, -1)'), 'left', 'torch.bool of shape'),
    'a mask of floats': (mask('hidden.float().expand(len(index), 1, self.size, -1)'), 'left', 'torch.bool of shape'),
    'a mask without an area': (LEFT.replace('    area = .25\n', ''), 'left', 'does not say how much it leaves visible'),
    'a mask that draws anew': (mask('torch.rand(len(index), 1, self.size, self.size) < .75'), 'left', 'called again'),
    'other channels than declared': (target('i_r.mean(1, keepdim=True)', 'Output(3, picture=True)'), 'grey', 'must give numbers of shape'),
    'a forgotten keepdim': (target('i_r.mean(1)', 'Output(1, picture=True)'), 'grey', 'must give numbers of shape'),
    'values to 255': (target('127.5*(i_r.mean(1, keepdim=True)+1)', 'Output(1, picture=True)'), 'grey', r'a picture lies in \[-1, 1\]'),
    'an encoder with other channels': (RESIDUAL.replace('    def features', '        self.channels = width, 2*width, 8*width\n    def features'), 'residual', 'they should be'),
    'an encoder without reductions': (RESIDUAL.replace('    reductions = 4, 8, 16\n', ''), 'residual', 'no reductions'),
    'a shortcut that a CPU gets wrong': (RESIDUAL.replace('nn.Conv2d(ni, nf, 1)', 'nn.Conv2d(ni, nf, 1, 2)').replace('x[..., ::2, ::2]', 'x'),
                                         'residual', 'the layer .*short'),
    'a loss that is no number': (COMPARE.replace('softplus(real-fake).mean()', 'softplus(real-fake)'), 'compare', 'one finite number'),
    'a loss without an end': (COMPARE.replace('softplus(fake-real).mean()', '(fake/0).mean()'), 'compare', 'one finite number'),
    'a name that is taken': (LEFT.replace("MASKS['left']", "MASKS['centre']"), 'left', 'exists already'),
    'a file that fails': ('import nonsense', 'left', 'ModuleNotFoundError')}


@pytest.mark.parametrize('what', WRONG)
def test_refused_before_the_first_update(what, write, tmp_path, monkeypatch):
    monkeypatch.setattr('torch.backends.cpu.get_cpu_capability', lambda: 'AVX2')
    text, name, says = WRONG[what]
    steps = []
    with pytest.raises(InputError, match=says) as e:
        train_gan(PHOTOS, run_dir=tmp_path/'run', plugins=write(name, text), progress=False, hooks=lambda st: steps.append(st.step),
                  **TINY, **CHOICES[name])
    assert not steps and '\n' not in str(e.value), 'in one sentence, before anything is computed'
    assert not (tmp_path/'run').exists(), 'no folder is left behind'
