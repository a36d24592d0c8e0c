"Weights & Biases by its own package, offline: what leaves the run, and what a resumed run goes on with. The numbers are on the page."
import json

import pytest

wandb = pytest.importorskip('wandb')
from recon_nb import train_gan
from recon_nb.shapes import draw_shapes
from recon_nb.wandb import WandbHook

TINY = dict(width=4, width_d=4, bs=8, size=32, progress=False)
QUIET = dict(mode='offline', settings=dict(silent=True, console='off'))


def test_a_resumed_run_keeps_its_id_and_repeats_nothing(tmp_path, monkeypatch):
    photos = draw_shapes(20, size=40)[0]
    hooks, rows = [WandbHook('p', samples=False, group='g', **QUIET) for _ in range(2)], []
    log = wandb.Run.log
    monkeypatch.setattr(wandb.Run, 'log', lambda self, row, **kw: (rows.append((self.id, row)), log(self, row, **kw))[1])
    train_gan(photos, run_dir=tmp_path/'run', epochs=1, hooks=hooks[0], **TINY)
    note = json.loads((tmp_path/'run'/'wandb.json').read_text())
    train_gan(photos, run_dir=tmp_path/'run', resume=True, epochs=2, hooks=hooks[1], progress=False)
    assert {i for i, _ in rows} == {note['id']} and hooks[1].run.group == 'g'
    seen = [(kind, row['step']) for _, row in rows for kind in {k.split('/')[0] for k in row} - {'step'}]
    assert len(seen) == len({*seen}) == 4 and 'samples' not in {k for _, row in rows for k in row}       # an epoch: losses and scores
    assert str(tmp_path) not in json.dumps(dict(hooks[1].run.config))


def test_an_id_of_ones_own(tmp_path):
    hook = WandbHook('p', id='mine', dir=str(tmp_path/'logs'), name='n', **QUIET)
    (tmp_path/'logs').mkdir()
    train_gan(draw_shapes(20, size=40)[0], run_dir=tmp_path/'run', epochs=1, hooks=hook, **TINY)
    assert hook.run.id == 'mine' == json.loads((tmp_path/'run'/'wandb.json').read_text())['id'] and hook.run.name == 'n'
    assert [*(tmp_path/'logs'/'wandb').glob('offline-run-*mine')] and not (tmp_path/'run'/'wandb').exists()
