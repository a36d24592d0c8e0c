"""Everything in a figure lies where it lay: one figure of each kind is held to a list of its photos, lines and words, with their places in inches.
No fault of a place can hide, whichever number of a drawing it is in. Made anew, after a change on purpose:

    python tests/test_drawn_figures.py"""
import json, re, tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from torch import nn

from recon_nb.boxed import _show_boxes
from recon_nb.compare import compare_runs
from recon_nb.figures import (draw_architecture, draw_crop, draw_curves, draw_feature_maps, draw_filters, draw_neighbours, draw_reconstructions,
                              draw_scale_bias)
from recon_nb.shapes import draw_shapes
from recon_nb.tables import _label_axes
from recon_nb.training import train_gan


FILE = Path(__file__).parent/'fixtures/drawn_figures.json'


def corners(artist, fig, points): return [round(float(v), 2) for v in artist.get_transform().transform(points).ravel()/fig.dpi]


def geometry(fig):
    "One entry for each thing: its kind, its numbers in inches, and what else a fault could change. Numbers in words are left out: they depend on weights."
    fig = getattr(fig, 'figure', fig)
    fig.draw_without_rendering()
    found = [['figure', *map(float, np.round(fig.get_size_inches(), 2))]]
    for ax in fig.axes:
        box, grids = ax.get_window_extent(), [any(l.get_visible() for l in a.get_gridlines()) for a in (ax.xaxis, ax.yaxis)]
        found.append(['axes', *(round(float(v)/fig.dpi, 1) for v in box.bounds), *grids])
        for im in ax.get_images():
            left, right, bottom, top = im.get_extent()
            moved = im.get_transform().contains_branch(ax.transData) and im.get_transform() != ax.transData        # hung on a slab
            found.append(['image', *corners(im, fig, [(left, bottom), (right, top)]), *im.get_array().shape[:2], moved])
        for l in ax.lines:                                                     # where training leads to, no place is kept
            ends = np.c_[l.get_xdata(), l.get_ydata()][[0,-1]]
            found.append(['line', l.get_linewidth(), *([] if ax.get_xlabel() or ax.get_title(loc='left') else corners(l, fig, ends))])
        for p in ax.patches: found.append(['patch', *(round(float(v), 2) for v in (p.get_transform().transform(p.get_path().vertices)[:5]/fig.dpi).ravel())])
        for t in ax.texts: found.append(['text', *corners(t, fig, [t.get_unitless_position()]), t.get_size(), t.get_ha(), re.sub(r'[-+]?\d[\d.,]*', '#', t.get_text())])
    return found


class Stem(nn.Module):
    "Forty first filters, and two stages."
    channels = 40, 8
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 40, 4, 2, 1), nn.Conv2d(40, 8, 4, 2, 1)
    def features(self, x):
        a = self.one(x)
        return [a, self.two(a.relu())]
    def forward(self, x): return self.features(x)[-1]


def figures(folder):
    "Name -> figure: one of each kind, of photos, boxes and weights that a seed gives."
    torch.manual_seed(0)
    photos, net = draw_shapes(12, size=48, seed=9)[0], Stem()
    run = train_gan(draw_shapes(40, size=48)[0], 'paper-sb', run_dir=folder/'r', epochs=1, width=4, width_d=4, bs=8, size=32, progress=False)
    box = np.array([[4., 6., 20., 30., 1., 1.]])
    yield 'crop', draw_crop(photos[0][:, :40])
    yield 'scale and bias', draw_scale_bias(run, photos[:2])
    yield 'architecture', draw_architecture(net, size=32, photo=photos[0])
    yield 'reconstructions', draw_reconstructions({'r': run}, photos[:3])
    yield 'curves', draw_curves({'r': run})
    yield 'neighbours', draw_neighbours({'a': net}, photos, 2, k=4, labels=np.arange(12) % 3)
    yield 'filters', draw_filters(net, joined=False)
    yield 'feature maps', draw_feature_maps(net, photos[0], size=32, k=3)
    yield 'boxes', _show_boxes([(photos[:2], [box, box+1]), (photos[2:4], [box, box], [box+2, box])], ('a', 'b', 'c', 'd'))
    yield 'compared', compare_runs(run, run.dir).figure()
    ax = plt.Figure(figsize=(4, 3)).subplots()
    _label_axes(ax, pd.DataFrame(dict(labels=[25, 'all'], per_class=[25., 300.])), 'a table')
    yield 'accuracy', ax.figure
    plt.close('all')


def measured():
    with tempfile.TemporaryDirectory() as d: return {name: geometry(fig) for name,fig in figures(Path(d))}


@pytest.fixture(scope='module')
def now(): return json.loads(json.dumps(measured()))


@pytest.mark.parametrize('name', KEPT := json.loads(FILE.read_text(encoding='utf-8')))
def test_everything_lies_where_it_lay(name, now):
    "Numbers within a tenth of an inch around axes, whose place depends on a font, and within a pixel and a half of a screen elsewhere."
    was, there = KEPT[name], now[name]
    assert [x[0] for x in there] == [x[0] for x in was]
    for a,b in zip(there, was):
        near = .11 if name in ('curves', 'compared', 'accuracy') or b[0] == 'axes' else .016
        assert all(x == y if isinstance(y, (str, bool)) else abs(x-y) < near for x,y in zip(a, b, strict=True)), f'{a}, not {b}'


if __name__ == '__main__':
    lines = (f' "{name}": [\n' + ',\n'.join('  '+json.dumps(x, ensure_ascii=False) for x in rows) + '\n ]' for name,rows in measured().items())
    FILE.write_text('{\n' + ',\n'.join(lines) + '\n}\n', encoding='utf-8')
