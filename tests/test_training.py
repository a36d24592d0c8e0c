"What training promises beside its pages: a live run is not disturbed by others, and small things stay small."
import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import recon_nb.cost as cost_page
import recon_nb.training as training_page
import torch
from recon_nb.checkpoint import load_checkpoint, load_tensors, save_checkpoint, save_tensors
from recon_nb.config import PRESETS, get_preset
from recon_nb.core import InputError, read_jsonl, write_atomic
from recon_nb.data import load_photos
from recon_nb.contenders import as_contender
from recon_nb.labelled import LabelledSet
from recon_nb.task import make_task
from recon_nb.online import OnlineProbe
from recon_nb.classification import probe
from recon_nb.run import GANRun
from recon_nb.cost import _noisy_state, count_flops, estimate_cost, _seconds_per_photo
from recon_nb.trainer import fit, restore, save
from recon_nb.training import train_gan
from recon_nb.shapes import SHAPES, draw_shapes
from recon_nb.batches import batch_index, fetch
from recon_nb.steps import disc_step, set_lr, train_step
from recon_nb.state import make_networks, make_state, toy_state
from recon_nb.evaluation import score_predictors

TINY = dict(width=4, width_d=4, bs=8, dropout=0.)


def tiny(preset='quick', **how):
    "A small config; without an adversary its discriminator's width has no effect, and is not accepted."
    small = dict(TINY) if PRESETS[preset].lambda_adv else {k: v for k,v in TINY.items() if k != 'width_d'}
    return get_preset(preset, size=32, **{**small, **how})


def state(preset='quick', n=40, **how):
    cfg = tiny(preset, **how)
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
    monkeypatch.setattr(cost_page, 'train_step', lambda trial, s: moves.append(('loss_g' in (d := train_step(trial, s)), len(s.i_in))) or d)
    torch.manual_seed(3)
    seconds, memory = estimate_cost(st)
    assert st.cfg.n_critic == n and seconds > 0 and memory > 0
    assert [g for g,_ in moves[1:]] == [i % n == 0 for i in range(3*n)] and st.step == 0
    assert torch.initial_seed() == 3


def test_the_time_of_a_protocol_is_taken_with_its_own_batch(monkeypatch):
    import recon_nb.cost as page
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
    whole = st.task.target.score_trivial([t], fetch(st, st.valid), st.task.mask.window)
    assert whole.keys() == found.keys() and len(whole) > 3
    for k,v in whole.items(): assert found[k] == pytest.approx(v, rel=1e-5)


def test_only_the_first_process_scores_them(monkeypatch, tmp_path):
    st = state()
    st.run_dir = tmp_path
    monkeypatch.setattr(training_page, 'score_predictors', lambda st: pytest.fail('scored in another process'))
    monkeypatch.setattr(type(st.acc), 'is_main_process', False)
    training_page._open(st, root=None, plugins=[], progress=False)
    assert not [*tmp_path.iterdir()]


def test_an_opinion_is_a_probability_where_the_game_has_one():
    for adv, least, most in (('bce', 0, 1), ('hinge', -9, 9), ('ls', -9, 9), ('wgan', -9, 9)):
        st = state(adv=adv, on_purpose=adv == 'wgan')                              # an unbounded critic beside batch norm: for its opinion alone
        s = fetch(st, batch_index(st))
        st.disc.eval()
        with torch.no_grad(): raw = st.disc(s.i_r).mean().item(), st.disc(s.i_r).sigmoid().mean().item()
        assert disc_step(st, s.i_r, torch.zeros_like(s.i_r))['d_real'].item() == pytest.approx(raw[adv == 'bce'], abs=1e-6)


def test_a_discriminator_that_never_played_is_no_encoder(tmp_path):
    x,y = draw_shapes(60, size=32)
    small = {k: v for k,v in TINY.items() if k != 'width_d'}
    run = train_gan(x, 'improved', run_dir=tmp_path/'a', progress=False, epochs=1, **small)
    tensors, about = load_tensors(run.dir/'weights.safetensors')
    assert run.disc is None and not [k for k in tensors if k.startswith('disc.')]
    for given in (run, run.dir):
        with pytest.raises(InputError, match='was never trained'): as_contender(given, part='disc')
    assert as_contender(run).pretrained
    train_gan(x, run_dir=run.dir, resume=True, progress=False, epochs=2)
    hook = OnlineProbe(LabelledSet('toy', x[:50], y[:50], x[50:], y[50:], SHAPES), part='disc')
    with pytest.raises(InputError, match='never trained'): train_gan(x, 'improved', run_dir=tmp_path/'b', progress=False, epochs=1, hooks=hook, **small)
    # a folder from before has the weights of both
    old = make_networks(replace(run.cfg, lambda_adv=1.))[1].state_dict()
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
    assert used(state).count([0]) > 1 and [d for d in forked if d != [0]] == []           # where an encoder is tried, and where the networks are made
    assert used(fit, state(), progress=False) == [[0]]
    assert used(estimate_cost, state()).count([0]) > 2 and [d for d in forked if d != [0]] == []


def test_no_update_has_the_rate_0():
    "The schedule is asked in the middle of an update: neither its beginning, where a warm-up is 0, nor its end, where a cosine is."
    for name in PRESETS:
        st = toy_state(name, n=48, epochs=2)
        seen = []
        for step in range(st.total_steps):
            st.step = step
            set_lr(st)
            seen.append([g['lr'] for opt in st.opts for g in opt.param_groups])
        t = (np.arange(st.total_steps)+.5)/st.total_steps
        factor = (1+np.cos(np.pi*t))/2 if st.cfg.schedule == 'cosine' else np.ones_like(t)
        if st.cfg.warmup: factor = factor*np.minimum(1, t/st.cfg.warmup)
        assert (np.array(seen) > 0).all(), name
        np.testing.assert_allclose(seen, np.outer(factor, [st.cfg.lr_g, st.cfg.lr_d][:len(st.opts)]), err_msg=name)
    assert {get_preset(p).schedule for p in PRESETS} == {'constant', 'cosine'}


@pytest.mark.parametrize('preset', ['quick', 'improved'])
def test_nobody_touches_the_callers_random_numbers(preset, tmp_path):
    x = draw_shapes(40, size=32)[0]
    how = dict(width=4, bs=9, epochs=1, size=32)
    st, run = toy_state(preset), train_gan(x, preset, run_dir=tmp_path/'there', progress=False, **how)
    torch.manual_seed(3); np.random.seed(3)
    expected = torch.rand(4), np.random.rand(4)
    for call in (lambda: train_gan(x, preset, run_dir=tmp_path/'a', **how), lambda: train_gan(x, run_dir=tmp_path/'a', resume=True, epochs=2),
                 lambda: toy_state(preset), lambda: fit(st, progress=False), lambda: estimate_cost(toy_state(preset)), lambda: GANRun.load(run.dir)):
        torch.manual_seed(3); np.random.seed(3)
        call()
        assert torch.equal(torch.rand(4), expected[0]) and (np.random.rand(4) == expected[1]).all()


def test_a_hook_that_raises_leaves_the_modes_as_they_were():
    class Fault(Exception): pass
    def wrong(st):
        assert not any(m.training for net in st.nets for m in net.modules())
        st.gen.train()
        if st.step == 3: raise Fault
    for preset in ('quick', 'improved'):
        st = toy_state(preset)
        with pytest.raises(Fault): fit(st, [wrong], progress=False)
        assert st.step == 3 and all(m.training for net in st.nets for m in net.modules())


def test_a_hook_is_given_the_row_of_the_evaluation(tmp_path):
    rows, before = [], []
    def listen(st): (rows if st.event == 'evaluate' else before if st.event == 'begin' else []).append(st.metrics)
    fit(toy_state(run_dir=tmp_path), [listen], progress=False)
    assert rows == read_jsonl(tmp_path/'metrics.jsonl') and [r['epoch'] for r in rows] == [1, 2]
    again = toy_state(run_dir=tmp_path, epochs=3)
    restore(again)
    fit(again, [listen], progress=False)
    assert before == [{}, rows[1]] and rows == read_jsonl(tmp_path/'metrics.jsonl')


def test_epochs_are_counted_one_way_and_old_records_stay(tmp_path):
    st = fit(toy_state(run_dir=tmp_path), progress=False)
    history, looks = read_jsonl(tmp_path/'history.jsonl'), read_jsonl(tmp_path/'metrics.jsonl')
    assert [r['epoch'] for r in history] == [1]*5 + [2]*5
    assert all(history[m['step']-1]['epoch'] == m['epoch'] for m in looks) and st.epoch == looks[-1]['epoch'] == 2
    old = [dict(r, epoch=r['epoch']-1) for r in history]                        # as 0.1.0 counted them
    write_atomic(tmp_path/'history.jsonl', ''.join(json.dumps(r)+'\n' for r in old))
    again = toy_state(run_dir=tmp_path, epochs=3)
    restore(again)
    fit(again, progress=False)
    history = read_jsonl(tmp_path/'history.jsonl')
    assert history[:10] == old and [r['epoch'] for r in history[10:]] == [3]*5


def test_without_an_adversary_there_is_no_discriminator(tmp_path):
    def keys(folder): return {*load_checkpoint(folder)[0]}
    def half(st): st.stop = st.stop or st.step == 7
    st = fit(toy_state('improved', run_dir=tmp_path), [half], progress=False)
    assert st.disc is None and st.opt_d is None and not [k for k in keys(tmp_path) if k.startswith(('disc', 'opt_d'))]
    # 0.1.0 built one, saved it and never asked it; such a checkpoint still resumes, and goes on as it would have
    tensors, state = load_checkpoint(tmp_path)
    useless = {f'disc.{k}': v for k,v in make_networks(replace(st.cfg, lambda_adv=1.))[1].state_dict().items()}
    save_checkpoint(tmp_path, {**tensors, **useless}, {**state, 'opt_d': dict(groups=[], rest={})})
    again, straight = toy_state('improved', run_dir=tmp_path), fit(toy_state('improved'), progress=False)
    restore(again)
    assert again.step == 7 and again.disc is None
    fit(again, progress=False)
    assert keys(tmp_path) == {*tensors}
    a, b = again.gen.state_dict(), straight.gen.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in b)


def test_signal_handlers_are_put_back(monkeypatch):
    "A handler that was not set from Python can't be: such a signal is left alone."
    find, set_to = signal.getsignal, []
    before = {s: find(s) for s in (signal.SIGINT, signal.SIGTERM)}
    def interrupt(st):
        if st.event == 'step' and st.step == 2: signal.raise_signal(signal.SIGINT)
    st = fit(toy_state(), [interrupt], progress=False)
    assert (st.step, st.why) == (2, 'signal') and {s: find(s) for s in before} == before
    put = signal.signal
    monkeypatch.setattr(signal, 'getsignal', lambda s: None if s == signal.SIGTERM else find(s))
    monkeypatch.setattr(signal, 'signal', lambda s, h: set_to.append(s) or put(s, h))
    fit(toy_state(), progress=False)
    assert {*set_to} == {signal.SIGINT} and {s: find(s) for s in before} == before


def test_an_interrupt_is_answered_at_once_and_says_what_a_second_one_loses(tmp_path, capsys):
    "An update may take minutes: the line is there before it ends."
    heard = []
    def interrupt(st):
        if st.event == 'step' and st.step == 3:
            signal.raise_signal(signal.SIGINT)
            heard.append(capsys.readouterr().err)
    st = fit(toy_state(run_dir=tmp_path/'a'), [interrupt], progress=False)
    assert heard == ['stopping after this update (Ctrl-C again stops at once, without saving: the last checkpoint is 3 steps back)\n'] and st.saved == st.step == 3
    heard.clear()
    fit(toy_state(), [interrupt], progress=False)
    assert heard == ['stopping after this update (Ctrl-C again stops at once)\n']           # nothing is kept anyway
    def end(st):
        if st.event == 'step' and st.step == 1:
            signal.raise_signal(signal.SIGTERM)
            heard.append(capsys.readouterr().err)
    heard.clear()
    fit(toy_state(run_dir=tmp_path/'b'), [end], progress=False)
    assert heard == ['stopping after this update\n']


def test_a_stopped_run_says_how_to_go_on_and_when_it_was_measured(tmp_path, capsys):
    from recon_nb.core import _shell_command
    x = draw_shapes(60, size=32)[0]
    def stop_at(n): return lambda st: setattr(st, 'stop', st.stop or st.step == n)
    run = train_gan(x, run_dir=tmp_path/'my run', size=32, width=4, bs=16, epochs=50, hooks=stop_at(5))
    out = capsys.readouterr().out
    assert f"(train_gan(photos, run_dir={str(tmp_path/'my run')!r}, resume=True) goes on)" in out
    assert run.say_score().endswith(' (at step 3)') and '(at step 3)' in repr(run) and '(at step 3)' in out      # three steps are an epoch
    for prog, line in (('recon-train', f"(recon-train PHOTOS --run-dir '{tmp_path}/my run' --resume goes on)"), ('recon-table', '(the same command goes on)')):
        token = _shell_command.set(prog)
        train_gan(x, run_dir=tmp_path/'my run', resume=True, hooks=stop_at(run.step+1))
        _shell_command.reset(token)
        assert line in capsys.readouterr().out
        run = GANRun.load(run.dir)
    done = train_gan(x, run_dir=tmp_path/'done', size=32, width=4, bs=16, epochs=1, progress=False)
    assert 'at step' not in done.say_score()


def test_a_long_trial_of_the_cost_is_said(tmp_path, capsys, monkeypatch):
    import time
    from recon_nb import training
    real, heard = training.estimate_cost, []
    def slow(st):
        time.sleep(3)
        heard.append(capsys.readouterr())
        return real(st)
    monkeypatch.setattr(training, 'estimate_cost', slow)
    train_gan(draw_shapes(60, size=32)[0], run_dir=tmp_path/'a', size=32, width=4, bs=16, epochs=1)
    assert 'trying a few steps' in heard[0].err and heard[0].out == ''      # before the announcement, and no part of what a script reads
    out = capsys.readouterr().out
    assert '1 epoch = 3 updates' in out and 'each is seen 1 time;' in out


def test_an_announcement_says_who_sits_out_and_what_is_seen(tmp_path, capsys):
    x = draw_shapes(60, size=32)[0]                                              # 54 to train
    for preset, bs, says in (('quick', 16, '6 of 54 photos sit out of each epoch, others each time; 10% of a picture is seen'),
                             ('improved', 18, 'each photo once an epoch; 41% of a picture is seen')):
        train_gan(x, preset, run_dir=tmp_path/preset, size=32, width=4, bs=bs, epochs=1)
        assert says in capsys.readouterr().out


def test_a_run_without_pictures_says_so_before_it_opens_a_photo(tmp_path, monkeypatch):
    save(toy_state('improved', run_dir=tmp_path))
    (tmp_path/'a.png').touch()
    monkeypatch.setattr('recon_nb.photos.open_rgb', lambda src: pytest.fail('a photo was opened'))
    with pytest.raises(InputError, match='not pictures'): GANRun.load(tmp_path).reconstruct(tmp_path/'a.png')


def test_a_folder_that_filled_meanwhile_is_not_called_busy(tmp_path):
    "The run came while the photos were read; whoever arrives has the lock, and says what is there."
    from recon_nb.devices import make_accelerator
    from recon_nb.folder import _own_folder
    (tmp_path/'config.json').write_text('{}')
    for _ in range(2):                                                           # and gives the lock back
        with pytest.raises(InputError, match='already holds a run'):
            with _own_folder(make_accelerator(), tmp_path, get_preset('quick'), resume=False): pass
    with _own_folder(make_accelerator(), tmp_path, get_preset('quick'), resume=True): pass


def test_a_batch_in_parts_is_the_batch_in_bf16_too():
    "Without batch norm and dropout: as near as bf16's eight bits allow, and far nearer than to another batch."
    def gradient(seed=0, **how):
        st = toy_state('paper-l1', dropout=0., precision='bf16', lambda_adv=0.1, **how)
        for net in st.nets:
            for m in [*net.modules()]:
                for name, child in m.named_children():
                    if isinstance(child, torch.nn.BatchNorm2d): setattr(m, name, torch.nn.Identity())
        train_step(st, fetch(st, st.train[seed*8:seed*8+8]))
        return torch.cat([p.grad.flatten() for net in st.nets for p in net.parameters() if p.grad is not None])
    one, parts, other = gradient(), gradient(accumulate=4), gradient(seed=1)
    assert (one-parts).norm() < .02*one.norm() < .2*(one-other).norm()


def test_a_misspelt_run_gets_its_neighbours_name(tmp_path, monkeypatch):
    save(toy_state(run_dir=tmp_path/'runs'/'quick-001'))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"there is no folder runs/quick001; give the folder of a run. Did you mean 'runs/quick-001'\?"): GANRun.load('runs/quick001')
    with pytest.raises(InputError, match=r'give the folder of a run\.$'): GANRun.load('nowhere/at-all')
