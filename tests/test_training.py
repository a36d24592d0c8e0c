"What training promises beside its pages: a live run is not disturbed by others, and small things stay small."
from dataclasses import replace

import numpy as np
import pytest
import recon_nb.run as run_page
import torch
from recon_nb.checkpoint import load_tensors, save_tensors
from recon_nb.config import get_preset
from recon_nb.core import InputError
from recon_nb.data import load_photos
from recon_nb.contenders import as_contender
from recon_nb.labelled import LabelledSet
from recon_nb.masks import make_task, window_slice
from recon_nb.metrics import TrivialPredictors, score_trivial
from recon_nb.online import OnlineProbe
from recon_nb.classification import probe
from recon_nb.protocols import _noisy_state, _seconds_per_photo, count_flops
from recon_nb.run import GANRun, estimate_cost, train_gan
from recon_nb.shapes import SHAPES, draw_shapes
from recon_nb.trainer import batch_index, disc_step, fetch, make_networks, make_state, score_predictors, train_step

TINY = dict(width=4, width_d=4, bs=8, dropout=0.)


def state(preset='quick', n=40, **how):
    cfg = get_preset(preset, size=32, **{**TINY, **how})
    photos = load_photos(draw_shapes(n, size=64)[0], size=32, cuts=make_task(cfg).cuts, progress=False)
    return make_state(cfg, photos, np.arange(n-8), np.arange(n-8, n))


def test_a_live_run_keeps_its_precision():
    "A hook may count another network's operations, in 32 bits, while a run computes in bf16."
    losses = []
    for disturbed in (False, True):
        st = state(precision='bf16')
        train_step(st, fetch(st, batch_index(st)))
        if disturbed: count_flops(replace(st.cfg, precision='no')); state(precision='no')
        assert st.acc.mixed_precision == 'bf16'
        losses.append(train_step(st, fetch(st, batch_index(st))))
    assert all(torch.equal(v, losses[1][k]) for k,v in losses[0].items())
    estimate_cost(st)                                              # its trial networks are prepared in the run's precision
    full = state(precision='no')
    assert (st.acc.mixed_precision, full.acc.mixed_precision) == ('bf16', 'no')


@pytest.mark.parametrize('preset, n', [('wgan', 5), ('quick', 1), ('improved', 1)])
def test_the_estimate_steps_as_the_run_does(monkeypatch, preset, n):
    "Of five moves of a critic, one has a move of G beside it; so it is in the trial."
    st, moves = state(preset), []
    monkeypatch.setattr(run_page, 'train_step', lambda trial, s: moves.append(('loss_g' in (d := train_step(trial, s)), len(s.i_in))) or d)
    torch.manual_seed(3)
    seconds, memory = estimate_cost(st)
    assert st.cfg.n_critic == n and seconds > 0 and memory > 0
    assert [g for g,_ in moves[1:]] == [i % n == 0 for i in range(3*n)] and st.step == 0
    assert torch.initial_seed() == 3


def test_the_time_of_a_protocol_is_taken_with_its_own_batch(monkeypatch):
    import recon_nb.protocols as page
    seen = []
    monkeypatch.setattr(page, 'estimate_cost', lambda st: (seen.append((st.bs, len(st.train), st.total_steps)), (st.bs*6., 0))[1])
    assert _seconds_per_photo(get_preset('quick', **{**TINY, 'bs': 128})) == 6. and seen == [(128, 128, 1)]
    assert _noisy_state(get_preset('quick', **TINY), bs=8).bs == 8


def test_the_trivial_predictors_never_hold_all_photos(monkeypatch):
    st, shares = state(n=608), []
    take = st.photos.take
    monkeypatch.setattr(type(st.photos), 'take', lambda self, i: shares.append(len(i)) or take(i))
    found = score_predictors(st)
    assert sum(shares) == 608 and max(shares) <= 256
    monkeypatch.undo()
    t = fetch(st, st.train)
    whole = TrivialPredictors([(t.i_in, t.i_r)])
    s = fetch(st, st.valid)
    for k,v in score_trivial(whole, s.i_in, s.i_r, s.hidden, window_slice(32, st.cfg.visible)).items(): assert found[k] == pytest.approx(v, rel=1e-5)


def test_only_the_first_process_scores_them(monkeypatch, tmp_path):
    st = state()
    st.run_dir = tmp_path
    monkeypatch.setattr(run_page, 'score_predictors', lambda st: pytest.fail('scored in another process'))
    monkeypatch.setattr(type(st.acc), 'is_main_process', False)
    run_page._open(st, root=None, progress=False)
    assert not [*tmp_path.iterdir()]


def test_an_opinion_is_a_probability_where_the_game_has_one():
    for adv, least, most in (('bce', 0, 1), ('hinge', -9, 9), ('ls', -9, 9), ('wgan', -9, 9)):
        st = state(adv=adv)
        s = fetch(st, batch_index(st))
        st.disc.eval()
        with torch.no_grad(): raw = st.disc(s.i_r).mean().item(), st.disc(s.i_r).sigmoid().mean().item()
        assert disc_step(st, s.i_r, torch.zeros_like(s.i_r))['d_real'].item() == pytest.approx(raw[adv == 'bce'], abs=1e-6)


def test_a_discriminator_that_never_played_is_no_encoder(tmp_path):
    x,y = draw_shapes(60, size=32)
    run = train_gan(x, 'improved', run_dir=tmp_path/'a', progress=False, epochs=1, **TINY)
    tensors, about = load_tensors(run.dir/'weights.safetensors')
    assert run.disc is None and not [k for k in tensors if k.startswith('disc.')]
    for given in (run, run.dir):
        with pytest.raises(InputError, match='was never trained'): as_contender(given, part='disc')
    assert as_contender(run).pretrained
    train_gan(x, run_dir=run.dir, resume=True, progress=False, epochs=2)
    hook = OnlineProbe(LabelledSet('toy', x[:50], y[:50], x[50:], y[50:], SHAPES), part='disc')
    with pytest.raises(InputError, match='never trained'): train_gan(x, 'improved', run_dir=tmp_path/'b', progress=False, epochs=1, hooks=hook, **TINY)
    # a folder from before has the weights of both
    old = make_networks(run.cfg)[1].state_dict()
    (tmp_path/'old').mkdir()
    save_tensors(tmp_path/'old/weights.safetensors', {**tensors, **{f'disc.{k}': v for k,v in old.items()}}, about)
    assert GANRun.load(tmp_path/'old').disc is None
    assert train_gan(x, 'quick', run_dir=tmp_path/'c', progress=False, epochs=1, **TINY).disc is not None


def test_whoever_seeds_puts_the_gpu_back(monkeypatch):
    "A stand-in for a machine whose first GPU is in use: the generators that are put back are the CPU's and that one's."
    forked, fork = [], torch.random.fork_rng
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.cuda, 'current_device', lambda: 0)
    monkeypatch.setattr(torch.random, 'fork_rng', lambda devices=None: forked.append(devices) or fork(devices=[]))
    x,y = draw_shapes(60, size=32)
    def used(f, *args, **kwargs): forked.clear(); f(*args, **kwargs); return forked
    assert used(as_contender, None, width=4, size=32) == [[0], [0]]                       # made, and made anew
    assert [0] in used(probe, None, LabelledSet('toy', x[:50], y[:50], x[50:], y[50:], SHAPES), mode='knn', width=4, size=32, seeds=1, progress=False)
    assert [d for d in forked if d != [0]] == []
    assert used(estimate_cost, state()) == [[0]]
