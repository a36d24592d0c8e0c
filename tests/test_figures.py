"Figures of things the paper has not: encoders of any number of stages, deep networks, targets that are no colour photo; and what is given is drawn, all of it."
import numpy as np
import pytest
from matplotlib import pyplot as plt
from recon_nb.compare import _Records, RunComparison, _caption_of, compare_runs, _plot_quantity
from recon_nb.core import InputError
from recon_nb.figures import Picture, draw_architecture, draw_crop, draw_curves, draw_feature_maps, draw_filters, draw_neighbours, draw_reconstructions, draw_scale_bias, _read_outputs
from recon_nb.flipbook import draw_chart
from recon_nb.run import GANRun, Reconstruction
from recon_nb.training import train_gan
from recon_nb.shapes import draw_shapes
from recon_nb.show import COLORS, line_style
from recon_nb.widgets import ReconBrowser
from torch import nn

TINY = dict(width=4, width_d=4, bs=16, size=32)


class Block(nn.Module):
    def __init__(self, ni, nf):
        super().__init__()
        self.conv1, self.conv2, self.skip = nn.Conv2d(ni, nf, 3, 2, 1), nn.Conv2d(nf, nf, 3, 1, 1), nn.Conv2d(ni, nf, 1, 2)
        self.norm1, self.norm2, self.act = nn.BatchNorm2d(nf), nn.BatchNorm2d(nf), nn.ReLU()
    def forward(self, x): return self.act(self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))+self.skip(x))


class Residual(nn.Module):
    "Three stages, the first with stride 4."
    channels, reductions = (8, 12, 20), (4, 8, 16)
    def __init__(self):
        super().__init__()
        self.stem, self.low, self.mid, self.high = nn.Conv2d(3, 8, 2, 2), Block(8, 8), Block(8, 12), Block(12, 20)
    def features(self, x):
        low = self.low(self.stem(x))
        mid = self.mid(low)
        return [low, mid, self.high(mid)]
    def forward(self, x): return self.features(x)[-1]


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    d, scenes = tmp_path_factory.mktemp('runs'), draw_shapes(100, size=48)[0]
    return {name: train_gan(scenes, preset, run_dir=d/name, epochs=2, **TINY) for name,preset in (('one', 'quick'), ('two', 'paper-baseline'))}


def texts(fig): return [t.get_text() for t in fig.axes[0].texts]
def images(fig): return [im.get_array() for im in fig.axes[0].get_images()]


# --- networks of other shapes

def test_an_encoder_of_three_stages():
    net, photo = Residual(), draw_shapes(1, size=64)[0][0]
    fig = draw_feature_maps(net, photo, size=32, k=3)
    assert isinstance(fig, Picture) and {'stage 1', 'stage 2', 'stage 3'} <= {*texts(fig)} and 'stage 4' not in texts(fig)
    assert {f'{c}×{32//r}×{32//r}' for c,r in zip(net.channels, net.reductions)} <= {*texts(fig)}
    assert len(images(fig)) == 1+3*(1+3)
    assert len(images(draw_filters(net))) == 8 and len(images(draw_neighbours(net, draw_shapes(9, size=32)[0], 2, k=4))) == 1+4


def test_a_deep_network_is_drawn_in_larger_parts():
    net = Residual()
    fine = texts(draw_architecture(net, size=32))                                         # 22 layers, of which no more than fit are told apart
    assert 'stem' in fine and 'high' in fine and any('Block with 3 convolutions' in t for t in fine)
    assert '20×2×2' in fine
    assert f'{sum(p.numel() for p in net.parameters()):,} parameters' in fine             # nothing is left out
    with pytest.raises(InputError, match='does not take a picture of 3 px'): draw_architecture(nn.Sequential(nn.Conv2d(3, 8, 5)), size=3)


def drawn_outside(fig):
    "Photos that reach beyond a figure of one set of axes, and words that begin there."
    ax, = fig.axes
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    def away(x, y): return not (left-.01 <= x <= right+.01 and top-.01 <= y <= bottom+.01)
    far = [im.get_extent() for im in ax.get_images() if any(away(x, y) for x,y in zip(im.get_extent()[:2], im.get_extent()[2:]))]
    return far + [t.get_text() for t in ax.texts if t.get_text() and t.get_transform() == ax.transData and away(*t.get_position())]


@pytest.mark.parametrize('h, w', [(90, 30), (30, 90), (40, 40), (300, 10)])
def test_a_photo_of_any_form_lies_within_its_figure(h, w):
    fig = draw_crop(np.random.default_rng(0).integers(0, 256, (h, w, 3), dtype=np.uint8))
    assert images(fig) and not drawn_outside(fig)


@pytest.mark.parametrize('net', [nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, 1, 1)), Residual()], ids=['short', 'deep'])
def test_the_words_of_an_architecture_lie_within_its_figure_and_above_its_blocks(net):
    fig = draw_architecture(net, size=32)
    assert texts(fig) and not drawn_outside(fig)
    slabs = [p.get_path().get_extents(p.get_patch_transform()).ymin for p in fig.axes[0].patches]
    counts = [t.get_position()[1] for t in fig.axes[0].texts if t.get_text().endswith('parameters')]
    assert slabs and counts and max(counts) < min(slabs)                                   # y goes downwards


def test_a_generator_with_several_outputs_shows_the_first():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.enc, self.dec = nn.Conv2d(3, 8, 4, 2, 1), nn.ConvTranspose2d(8, 1, 4, 2, 1)
        def forward(self, x):
            maps = self.enc(x)
            return self.dec(maps).tanh(), maps
    fig = draw_architecture(Two(), size=32, photo=draw_shapes(1, size=64)[0][0])
    hung = images(fig)
    assert [h.shape for h in hung] == [(32,32,3)]*2 and (hung[1][...,0] == hung[1][...,2]).all()       # one channel: grey


# --- what is given is drawn

@pytest.mark.parametrize('n', [1, 7, 8, 16])
def test_all_photos_are_drawn(runs, n):
    photos = draw_shapes(n, size=40, seed=9)[0]
    fig = draw_reconstructions(runs, photos)
    assert len(images(fig)) == n*4
    for name,run in runs.items():
        r, i = run.reconstruct(photos), [*runs].index(name)
        said = [t for t in texts(fig) if t.startswith(name)]
        want = r.composed if run.cfg.scale_bias else r.painted
        assert len(said) == 1 and ('composed' in said[0].replace('\n', ' ')) == run.cfg.scale_bias and ('raw output' in said[0].replace('\n', ' ')) != run.cfg.scale_bias
        assert all((images(fig)[4*k+1+i] == want[k]).all() for k in range(n))
    assert len(images(draw_scale_bias(runs['one'], photos))) == 5*n


def test_more_photos_than_fit_are_refused_or_asked_for(runs):
    photos = draw_shapes(17, size=40, seed=9)[0]
    for draw in (draw_reconstructions, draw_scale_bias):
        with pytest.raises(InputError, match='17 photos; up to 16 fit'): draw(runs['one'], photos)
        with pytest.raises(InputError, match='rows=0'): draw(runs['one'], photos, rows=0)
    assert len(images(draw_reconstructions(runs['one'], photos, rows=16))) == 16*3


def test_a_grey_target_is_shown_like_any_other(runs, monkeypatch):
    "A run whose picture has one channel gives grey bytes (n, h, w, 3); nobody asks for its target's name."
    run, photos = runs['one'], draw_shapes(3, size=40, seed=9)[0]
    r = run.reconstruct(photos)
    made = np.repeat(r.painted.mean(-1, keepdims=True).astype(np.uint8), 3, -1)
    monkeypatch.setattr(GANRun, 'reconstruct', lambda self, images: Reconstruction(r.i_in, made, made, r.i_r, r.goal))
    monkeypatch.setattr(run, 'task', type('Task', (), dict(mask=run.task.mask, seed=run.task.seed))())             # no target to ask
    out = _read_outputs(run, photos).outputs[0]
    assert (out == made).all()
    assert (images(draw_reconstructions(run, photos, what='output'))[1] == out[0]).all() and (images(draw_scale_bias(run, photos))[3] == out[0]).all()
    w = ReconBrowser(run, photos=photos)
    assert w.faults == [] and any((w.pictures['one']['output'] == o).all() for o in out)


def test_a_crop_of_any_photo(): assert draw_crop(draw_shapes(1, size=70)[0][0][:, :50]).alt.startswith('A photo of 50 x 70 pixels')


# --- curves

def test_a_run_has_one_colour_and_one_caption_everywhere(runs):
    fig, both = draw_curves(runs), compare_runs(*runs.values())
    assert isinstance(both, RunComparison)
    ours = {ax.get_title(loc='left'): ax for ax in fig.axes if ax.lines}
    theirs = {ax.get_title(): ax for part in both.figure().subfigs[:2] for ax in part.axes}
    assert ours.keys() == theirs.keys() and _caption_of('psnr') in ours
    for title,ax in ours.items():
        a, b = ([(l.get_color(), [*l.get_ydata()]) for l in x.lines] for x in (ax, theirs[title]))
        assert a == b, title
    svg = draw_chart('t', {n: ([1, 2], [1, 2]) for n in runs})
    assert all(line_style(i)['color'] in svg for i in range(2)) and COLORS[2] not in svg


def test_dotted_lines_belong_to_their_runs():
    trivial = lambda v: dict(train=8, bs=4, trivial={'ridge': dict(psnr=v, ssim=None), 'mean image': dict(psnr=v-1, ssim=None)})
    rows = [dict(step=2, psnr=10., ssim=.1), dict(step=4, psnr=14., ssim=.2)]
    draw = lambda values, key='psnr': _plot_quantity(plt.Figure().subplots(), {f'r{v}{i}': _Records([], rows, trivial(v)) for i,v in enumerate(values)}, key)
    assert [(n, y, c) for n,_,y,c in draw([12., 13.])[2:]] == [('ridge (trivial)', 12., COLORS[0]), ('ridge (trivial)', 13., COLORS[1])]
    assert [(n, y, c) for n,_,y,c in draw([12., 12.])[2:]] == [('ridge (trivial)', 12., '#777777')]
    assert len(draw([12., 13.], 'ssim')) == 2                                             # no predictor has it


def test_fewer_photos_than_a_batch(tmp_path):
    run = train_gan(draw_shapes(10, size=48)[0], run_dir=tmp_path/'few', epochs=2, **TINY)
    ax = draw_curves({'few': run}, 'idt').axes[0]
    assert [*ax.lines[0].get_xdata()] == [1., 2.]
    assert np.isfinite(ax.lines[0].get_ydata()).all()
