"""Each sign of health on a tiny run that was spoilt on purpose, and on its neighbour that was not. What the signs are is on the page 47_health;
the rows judged here were written by real training."""
import json, re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from recon_nb import cli
from recon_nb.config import get_preset
from recon_nb.core import append_jsonl, read_jsonl, write_atomic
from recon_nb.data import load_photos
from recon_nb.evaluation import evaluate, score_predictors
from recon_nb.health import SIGNS, Trail, diagnose
from recon_nb.run import GANRun
from recon_nb.shapes import draw_shapes
from recon_nb.state import make_state
from recon_nb.task import make_task
from recon_nb.trainer import _seen, fit
from recon_nb.training import train_gan

PHOTOS = draw_shapes(248, size=32)[0]


def make(preset, epochs=15, **overrides):
    "A state that makes 15 updates an epoch on 240 photos."
    cfg = get_preset(preset, **{**dict(size=32, width=4, bs=16, epochs=epochs), **overrides})
    photos = load_photos(PHOTOS, size=32, cuts=make_task(cfg).cuts, progress=False)
    return make_state(cfg, photos, np.arange(240), np.arange(216, 248))


def trained(preset, **overrides):
    st = make(preset, **overrides)
    fit(st, progress=False)
    st.metrics = evaluate(st)
    return st


def after(st, n, **row):
    "The same as if it had made `n` updates: for what only has to be late enough."
    return _seen(st)._replace(step=n, total=n, scores=[{**evaluate(st), 'step': n, **row}], trivial=score_predictors(st))


def test_each_sign_leads_to_its_place_on_the_page():
    from recon_nb import health
    shorts = set(re.findall(r"Symptom\('\w+', '([^']+)'", Path(health.__file__).read_text(encoding='utf-8')))
    cells = json.loads((Path(__file__).parents[1]/'nbs/how_to/read_your_log.ipynb').read_text(encoding='utf-8'))['cells']
    headings = {l[3:] for c in cells if c['cell_type'] == 'markdown' for l in ''.join(c['source']).splitlines() if l.startswith('## ')}
    assert len(shorts) == 7 and {s.lower() for s in shorts} <= {h.lower() for h in headings}
    assert health.Symptom('won', 'D has won', '', '', {}).link.endswith('/how_to/read_your_log.html#d-has-won')


def found_in(seen): return {f.key: f for f in diagnose(seen).findings}


def keys(st): return {f.key: f for f in diagnose(_seen(st)._replace(trivial=score_predictors(st))).findings}


@pytest.mark.slow
def test_d_has_won():
    "D learns fast, G hardly: after some dozens of updates D is always right."
    found = keys(trained('paper-baseline', lr_d=5e-3, lr_g=1e-7, width_d=8))
    assert 0 < found['won'].numbers['step'] < 200 and 'lr_d down (it is 0.005)' in str(found['won'])


@pytest.mark.slow
def test_d_sleeps():
    found = keys(trained('paper-baseline', lr_d=1e-9))
    assert found['asleep'].numbers['share'] > .95 and 'lr_d up' in found['asleep'].turn


@pytest.mark.slow
def test_a_critic_sleeps(): assert 'asleep' in keys(trained('wgan', lr_d=1e-12, epochs=70, n_critic=1))


@pytest.mark.slow
def test_a_critic_runs_away():
    "No clip and no penalty: nothing holds its slope."
    found = keys(trained('wgan', clip_d=0., lr_d=5e-3, n_critic=1, on_purpose=True))
    assert 'lambda_gp=10' in found['won'].turn


def test_outputs_do_not_depend_on_inputs():
    "The encoder's last stage gives zeros: a picture is painted, the same for every photo."
    st = make('quick', epochs=2)
    [*st.gen_net.enc.children()][-1].register_forward_hook(lambda m, x, y: 0*y)
    fit(st, progress=False)
    found = found_in(after(st, 400))
    assert found['alike'].numbers['diversity'] < .01 and 'trivial' in found


def test_codes_that_are_all_alike():
    from recon_nb.health import measure_outputs
    goals, out = torch.randint(9, (8,2,2)), torch.zeros(8,9,2,2)
    assert measure_outputs((out,), (goals,), (torch.ones(8,1,2,2, dtype=torch.bool),), picture=False) == dict(diversity=0.)


def test_checkerboard():
    "The last layer that doubles the side writes the four pixels of a place out of step."
    st = make('quick', epochs=2)
    fit(st, progress=False)
    assert 'striped' not in found_in(after(st, 400))
    last = [*st.gen_net.dec.children()][-1]
    last.register_forward_hook(lambda m, x, y: (y + .4*torch.tensor([[1.,-1.],[-1.,1.]]).repeat(16,16)).clamp(-1,1))
    assert found_in(after(st, 400))['striped'].numbers['checkerboard'] > 3


@pytest.mark.slow
def test_still_falling_and_no_better_than_trivial():
    "A constant small rate: after 225 updates the loss falls on."
    st = trained('quick', lr_g=1e-4, schedule='constant', lambda_adv=0.)
    found = keys(st)
    assert {'falling', 'trivial'} <= found.keys() and 'epochs up (they are 15)' in found['falling'].turn


def test_few_updates(tmp_path, capsys):
    "Said before it begins and when it ends: twenty photos, the paper's batch, ten updates."
    run = train_gan(PHOTOS[:22], 'paper-sb', size=32, width=4, epochs=10, run_dir=tmp_path/'r')
    said = capsys.readouterr().out
    assert '10 updates are too few to learn from 20 photos' in said and '10 updates are few' in said and said.count('epochs=300 makes 300') == 2
    assert [f.key for f in run.health().findings] == ['few'] and '! 10 updates' in said.splitlines()[-2]
    assert cli.health([str(run.dir)]) == 0 and '! 10 updates' in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize('preset', ['quick', 'improved', 'improved-gan', 'paper-sb', 'paper-l1', 'wgan'])
def test_silent_in_a_healthy_run(preset):
    "Fifteen epochs of the preset's own rates; that the loss still falls after so few is no alarm but the truth."
    light = dict(width_dec=4) if get_preset(preset).width_dec else {}
    found = keys(trained(preset, **light))
    assert not found.keys() - {'falling', 'trivial', 'few'}, [str(f) for f in found.values()]


def test_a_run_of_an_older_version(tmp_path, capsys):
    "Rows without the new numbers: what can't be judged is said, and the rest is judged."
    train_gan(PHOTOS[:60], run_dir=tmp_path, size=32, width=4, bs=10, epochs=2, progress=False)
    old = [{k: v for k,v in r.items() if k not in ('diversity', 'checkerboard')} for r in read_jsonl(tmp_path/'metrics.jsonl')]
    write_atomic(tmp_path/'metrics.jsonl', '')
    append_jsonl(tmp_path/'metrics.jsonl', *old)
    h = GANRun.load(tmp_path).health()
    assert set(h.unjudged) == {'alike', 'striped'} and 'did not measure' in str(h) and {f.key for f in h.findings} <= {'few', 'trivial', 'falling'}


def test_one_held_out_photo_and_a_beginning_are_called_what_they_are(tmp_path):
    "Of one photo nobody can say that outputs are alike, and after one update nobody can say anything."
    stop = lambda st: setattr(st, 'stop', st.step == 1)
    for n, bs, hooks in ((8, 4, ()), (60, 10, stop)):
        run = train_gan(PHOTOS[:n], run_dir=tmp_path/str(n), size=32, width=4, bs=bs, epochs=200 if hooks else 2, hooks=hooks, progress=False)
        said = str(run.health())
        assert 'did not measure' not in said
        if n == 8: assert run.metrics[-1]['n'] == 1 and 'alike is not judged: one held-out photo' in said
        else: assert 'too early to say, at step 1 of 1,000' in said and 'nothing found' not in said and '(trivial is not judged: it was not evaluated yet)' in said


def test_resumed_runs_judge_the_same(tmp_path):
    "What is judged on the way and what is read from the files is one thing."
    st = make('quick', epochs=4)
    st.run_dir = tmp_path
    fit(st, progress=False)
    assert st.trail.blocks == Trail(read_jsonl(tmp_path/'history.jsonl')).blocks and set(SIGNS) >= {'won', 'asleep'}


@pytest.mark.slow
def test_the_bar_says_it(monkeypatch):
    "While the run goes on."
    said = []
    from recon_nb import trainer
    monkeypatch.setattr(trainer, '_note_signs', lambda st, note=trainer._note_signs: said.append(note(st)) or said[-1])
    trained('paper-baseline', lr_d=5e-3, lr_g=1e-7, width_d=8)
    assert said[-1].startswith('D has won') and said[0] == ''


def test_losses_from_a_file_that_is_not_there():
    st = make('quick', epochs=1)
    seen = _seen(st)
    cfg = replace(seen.cfg); object.__setattr__(cfg, 'adv', 'mine')
    assert 'from a file' in diagnose(seen._replace(cfg=cfg)).unjudged['won']
