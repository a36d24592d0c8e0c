"""What callers pass on: which argument, in which mode, over which places, from which photos; and options that presets use together.

Each test finds faults of `tests/mutants/`, which `tests/mutants/run.py` puts in one at a time."""
import hashlib
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from recon_nb import classification, detection, online, segmentation, steps, tables
from recon_nb.batches import batch_index, fetch, prefetch_batches, teach
from recon_nb.boxed import _enlarge_windows
from recon_nb.classification import Classification, probe
from recon_nb.config import PRESETS, get_preset
from recon_nb.contenders import as_contender
from recon_nb.detection import Detection, detect_recipe
from recon_nb.encoder import Encoder
from recon_nb.evaluation import evaluate, generate, held_out, score_predictors
from recon_nb.features import _as_input, encode
from recon_nb.finetune import Recipe, _Classifier, finetune, param_groups
from recon_nb.labelled import LabelledSet, development_images, label_subset
from recon_nb.losses import ADV, AdvLoss, bce_disc, gradient_penalty
from recon_nb.masks import MASKS, compose, window_slice
from recon_nb.metrics import score
from recon_nb.online import OnlineProbe
from recon_nb.photos import cut_photos
from recon_nb.pixels import to_model, to_pixels
from recon_nb.probing import ProbeResult, Setup, _pack_bits, _search
from recon_nb.segmentation import Segmentation, dense_recipe
from recon_nb.shapes import SHAPES, draw_shapes
from recon_nb.state import make_networks, toy_state
from recon_nb.steps import disc_step, gen_step, train_step
from recon_nb.targets import TARGETS, Target
from recon_nb.task import make_task
from recon_nb.teacher import Teacher
from recon_nb.trainer import fit, restore
from recon_nb.training import split_photos, train_gan


def first_batch(st): return fetch(st, batch_index(st))
def copies(net): return {k: v.clone() for k,v in net.state_dict().items()}
def same(a, b): return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k,v in a.items())


def listen(net):
    "Every (input, output) of a network."
    calls = []
    net.register_forward_hook(lambda m, given, out: calls.append((given[0], out)))
    return calls


# The players.

class Negative(Target):
    "A picture that is not the photo: whoever takes one for the other is found."
    def make(self, i_r): return -i_r


def test_d_is_shown_the_right_pictures_and_its_loss_the_right_opinions(monkeypatch):
    monkeypatch.setitem(TARGETS, 'negative', Negative)
    given = {}
    def disc(real, fake): given.update(disc=(real, fake)); return bce_disc(real, fake)
    def gen(real, fake): given.update(gen=(real, fake)); return (real-fake).mean()
    st = toy_state(target='negative')
    st.adv, calls, s = AdvLoss(disc, gen, relativistic=True), listen(st.disc), first_batch(st)
    train_step(st, s)
    (real, on_real), (fake, on_fake), (real_g, on_real_g), (fake_g, on_fake_g) = calls
    w = window_slice(32, 1/3)
    for x in (real, real_g): assert torch.equal(x, s.goals[0]) and torch.equal(x, -s.i_r)
    for x in (fake, fake_g): assert torch.equal(x[:,:,w,w], s.goals[0][:,:,w,w]) and not torch.equal(x, s.goals[0])     # eq. 1
    assert not fake.requires_grad and fake_g.requires_grad
    assert given['disc'][0] is on_real and given['disc'][1] is on_fake and given['gen'][0] is on_real_g and given['gen'][1] is on_fake_g


def test_without_scale_and_bias_d_is_shown_all_that_is_painted():
    st = toy_state('paper-baseline')
    painted, judged, s = listen(st.gen), listen(st.disc), first_batch(st)
    train_step(st, s)
    assert torch.equal(judged[1][0], painted[0][1][0]) and judged[2][0] is painted[0][1][0]


def test_ds_move_sends_no_gradient_into_g():
    st = toy_state()
    s = first_batch(st)
    painted, = st.gen(s.i_in)
    painted.retain_grad()
    disc_step(st, s.i_r, compose(painted, s.i_r, s.hidden))
    assert painted.grad is None and all(p.grad is None for p in st.gen.parameters())


def test_d_is_taught_to_call_photos_real():
    for name, (disc, *_) in ADV.items():
        sure, wrong = torch.tensor([3., 2.]), torch.tensor([-3., -2.])
        assert disc(sure, wrong) < disc(wrong, sure), name
    assert bce_disc(torch.tensor([2.]), torch.tensor([-1.])).item() == pytest.approx(np.log1p(np.exp(-1)) + np.log1p(np.exp(-2)))


def test_the_penalty_asks_between_each_photo_and_its_painting_at_a_place_of_its_own(monkeypatch):
    seen = []
    monkeypatch.setattr(steps, 'gradient_penalty', lambda *a: seen.append(a) or gradient_penalty(*a))
    for parts in (1, 2):
        st = toy_state('wgan-gp', accumulate=parts)
        s = first_batch(st)
        seen.clear()
        i_f = torch.rand_like(s.i_r)
        disc_step(st, s.i_r, i_f)
        assert len(seen) == parts and all(a[0] is st.disc for a in seen)
        for i,x in ((1, s.i_r), (2, i_f)): assert torch.equal(torch.cat([a[i] for a in seen]), x)
        u = torch.cat([a[3] for a in seen])
        assert u.shape == (8,) and len(u.unique()) == 8 and 0 <= u.min() and u.max() < 1


def test_the_penalty_is_a_mean_over_the_batch():
    x = torch.rand(2, 3, 4, 4)
    for n in (1, 5): assert gradient_penalty(lambda z: 3*z[:,0,0,0], x.repeat(n,1,1,1), -x.repeat(n,1,1,1), torch.rand(2*n)).item() == pytest.approx(4.)


def test_the_clip_holds_the_critic_after_its_move_and_nobody_else():
    st = toy_state('wgan')
    s, before = first_batch(st), copies(st.gen)
    disc_step(st, s.i_r, torch.zeros_like(s.i_r))
    assert max(p.abs().max() for p in st.disc.parameters()).item() <= st.cfg.clip_d*(1+1e-6)
    assert same(before, st.gen.state_dict()) and max(p.abs().max() for p in st.gen.parameters()) > st.cfg.clip_d


@pytest.mark.parametrize('parts', [1, 2])
def test_g_moves_at_the_first_of_n_steps_whole_or_in_parts(parts):
    st = toy_state('wgan', accumulate=parts, n_critic=3)
    moved = []
    for st.step in range(5): moved.append('loss_g' in train_step(st, first_batch(st)))
    assert moved == [True, False, False, True, False]


def test_a_batch_in_parts_has_the_gradient_of_the_whole():
    grads = []
    for parts in (1, 2):
        st = toy_state('paper-l1', lambda_adv=0., dropout=0., accumulate=parts)
        for m in [*st.gen.modules()]:
            for name,child in m.named_children():
                if isinstance(child, nn.BatchNorm2d): setattr(m, name, nn.Identity())      # each photo by itself
        train_step(st, first_batch(st))
        grads.append(torch.cat([p.grad.flatten() for p in st.gen.parameters() if p.grad is not None]))
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-6*grads[0].abs().max().item()+1e-9)


# Losses and measures, and where they are taken.

@pytest.mark.parametrize('norm', ['l1', 'l2'])
@pytest.mark.parametrize('region', ['hidden', 'all'])
def test_the_step_takes_the_loss_that_the_config_names_where_it_says(region, norm):
    st = toy_state('paper-l1', lambda_adv=0., idt_region=region, idt_norm=norm)
    s = first_batch(st)
    outs = st.gen(s.i_in)
    err = (outs[0]-s.i_r).abs() if norm == 'l1' else (outs[0]-s.i_r).square()
    expected = err.mean() if region == 'all' else err[s.hidden.expand_as(err)].mean()
    assert gen_step(st, s, outs, None)['idt'].item() == pytest.approx(expected.item(), rel=1e-5)


def test_of_two_outputs_each_counts_by_its_area():
    task = make_task(get_preset('improved-gan', size=32))
    goals = task.target(torch.zeros(2,3,32,32))
    a, b = 3*32*32, 16*16*16*4
    found = task.target.loss(tuple(g+e for g,e in zip(goals, (1., 3.))), goals)
    assert found.item() == pytest.approx((1*a + 3*b)/(a+b), rel=1e-5)


def test_every_measure_looks_at_hidden_places_only():
    "Errors that are not alike everywhere: of what was seen nothing counts."
    torch.manual_seed(0)
    i_r, hidden = torch.rand(3,3,64,64)-.5, MASKS['centre'](64, 1/3)(range(3), epoch=0, seed=0)
    found = score(torch.where(hidden, i_r+.1, i_r+.4), i_r, hidden)
    assert found['l1'] == pytest.approx(.1, rel=1e-4) and found['psnr'] == pytest.approx(10*np.log10(4/.01), rel=1e-4)
    perfect = score(torch.where(hidden, i_r, torch.rand_like(i_r)), i_r, hidden)
    assert (perfect['l1'], perfect['ssim']) == pytest.approx((0, 1), abs=1e-5) and perfect['psnr'] > 100
    only_window = score(torch.where(hidden, torch.rand_like(i_r), i_r), i_r, hidden)
    assert only_window['l1'] > .1 and only_window['ssim'] < .9


def test_a_run_is_scored_on_held_out_photos_where_they_were_hidden(monkeypatch):
    st = toy_state()
    assert np.array_equal(to_pixels(held_out(st, 8).i_r), st.photos.take(st.valid)['i_r'])
    s = held_out(st, 8)
    painted = torch.where(s.hidden, s.i_r, torch.rand_like(s.i_r)) # right where it counts, noise where it was seen
    monkeypatch.setattr('recon_nb.evaluation.generate', lambda *a, **k: (painted,))
    assert evaluate(st)['psnr'] > 100


def test_the_predictors_are_fitted_on_training_photos_and_asked_about_the_others(monkeypatch):
    st, taken = toy_state(), []
    take = type(st.photos).take
    monkeypatch.setattr(type(st.photos), 'take', lambda self, i: taken.append(np.asarray(i)) or take(self, i))
    score_predictors(st)
    asked, *fitted = sorted(taken, key=len)
    assert np.array_equal(asked, st.valid) and np.array_equal(np.sort(np.concatenate(fitted)), st.train)


def test_what_is_shown_is_painted_in_evaluation_mode():
    gen = make_networks(get_preset('paper-sb', size=32, width=4))[0].train()
    x, before = torch.rand(4,3,32,32), copies(gen)
    a, b = generate(gen, x)[0], generate(gen, x, bs=3)[0]
    torch.testing.assert_close(a, b)
    assert same(before, gen.state_dict()) and all(m.training for m in gen.modules())


# Masks and views.

@pytest.mark.parametrize('size', [32, 33, 80])
def test_the_window_lies_in_the_middle_and_is_what_is_left(size):
    hidden = MASKS['centre'](size, 1/3)([0], epoch=0, seed=0)
    assert torch.equal(hidden, hidden.flip(2)) and torch.equal(hidden, hidden.flip(3))
    painted, real = torch.full((1,3,size,size), -1.), torch.ones(1,3,size,size)
    w = window_slice(size, 1/3)
    i_f = compose(painted, real, hidden)
    assert (i_f[:,:,w,w] == 1).all() and (i_f == 1).sum() == 3*(w.stop-w.start)**2 and not hidden[:,:,w,w].any()


def test_a_window_anywhere_reaches_both_ends():
    mask = MASKS['window'](32, .5)
    at = mask.draw(range(2000), epoch=0, seed=0)
    for k in (0, 1): assert np.unique(at[:,k]).tolist() == [*range(32-mask.side+1)]


def test_a_coarse_place_is_asked_about_only_if_all_of_it_was_hidden():
    hidden = torch.zeros(1,1,8,8, dtype=torch.bool)
    hidden[:,:,:4,:3] = True
    asked, = make_task(get_preset('improved-edges', size=32)).target.asked(hidden)
    assert asked[0,0].tolist() == [[r < 2 and c < 1 for c in range(4)] for r in range(4)]


def test_masks_are_those_of_the_runs_seed():
    cuts = dict(i_r=torch.rand(8,3,32,32))
    found = [make_task(get_preset('improved', size=32, seed=s))(cuts, range(8), epoch=2).hidden for s in (0, 3)]
    assert torch.equal(found[1], MASKS['patches'](32, .4)(range(8), epoch=2, seed=3)) and not torch.equal(*found)


# Where the paper puts each layer (§2.4), and what a config builds.

def names(net): return [type(m).__name__ for m in net.modules() if not [*m.children()]]


def test_where_the_paper_puts_each_layer():
    gen, disc = make_networks(get_preset('paper-sb'))
    pair = ['Conv2d', 'Conv2d', 'BatchNorm2d']
    assert [names(b) for b in gen.enc.children()] == [[*pair, 'LeakyReLU']]*3 + [[*pair, 'Dropout', 'LeakyReLU']]
    assert [m.p for m in gen.enc.conv4.modules() if isinstance(m, nn.Dropout)] == [.5]
    assert [names(b) for b in gen.dec.children()] == [['ConvTranspose2d', 'Conv2d', 'BatchNorm2d', 'ReLU']]*3 + [['ConvTranspose2d', 'Conv2d', 'Tanh']]
    assert [names(b) for b in disc.children()] == [['Conv2d', 'LeakyReLU']] + [['Conv2d', 'BatchNorm2d', 'LeakyReLU']]*3 + [['Conv2d']]


@pytest.mark.parametrize('preset', [p for p in PRESETS if TARGETS[PRESETS[p].target]().picture])
def test_a_picture_is_bounded_whatever_the_weights(preset):
    gen = make_networks(get_preset(preset, size=32, width=4))[0].eval()
    for p in [*gen.dec.children()][-1].parameters(): p.data.mul_(1e4)
    assert gen(torch.rand(2,3,32,32))[0].abs().max() <= 1


def test_a_decoder_that_reads_teaches_the_encoder_nothing():
    gen = make_networks(get_preset('improved-gan', size=32, width=4))[0]
    picture, beside = gen(torch.rand(2,3,32,32))
    picture.sum().backward()
    assert all(p.grad is None for p in gen.enc.parameters()) and any(p.grad.abs().max() > 0 for p in gen.dec.parameters())
    beside.sum().backward()
    assert any(p.grad.abs().max() > 0 for p in gen.enc.parameters())


def test_each_network_has_its_own_width():
    gen, disc = make_networks(get_preset('paper-sb', size=32, width=4, width_d=8))
    assert (gen.enc.channels[0], disc.channels[0]) == (4, 8)
    assert make_networks(get_preset('paper-sb', size=32, width=4))[1].channels[0] == 4


# A run.

@pytest.mark.parametrize('preset', PRESETS)
def test_each_player_has_the_configs_optimiser(preset):
    st = toy_state(preset)
    for opt, net, lr in zip(st.opts, st.nets, (st.cfg.lr_g, st.cfg.lr_d)):
        assert {id(p) for g in opt.param_groups for p in g['params']} == {id(p) for p in net.parameters()}
        assert type(opt.optimizer) is dict(adam=torch.optim.Adam, adamw=torch.optim.AdamW)[st.cfg.optimizer]
        for g in opt.param_groups: assert (g['lr'], g['weight_decay'], g['betas']) == (lr, st.cfg.wd, (st.cfg.beta1, st.cfg.beta2))


def test_a_seed_is_the_weights():
    a, b, other = (toy_state(seed=s) for s in (1, 1, 2))
    for name in ('gen', 'disc'):
        assert same(getattr(a, name).state_dict(), getattr(b, name).state_dict())
        assert not same(getattr(a, name).state_dict(), getattr(other, name).state_dict())


def test_each_epoch_has_photos_masks_and_changes_of_its_own():
    st = toy_state('improved')
    n = st.steps_per_epoch
    with prefetch_batches(st) as coming: made = [*coming]
    assert len(made) == 2*n
    for step,s in enumerate(made):
        due = fetch(st, batch_index(st, step), epoch=step//n, augment=True)
        assert torch.equal(s.i_r, due.i_r) and torch.equal(s.hidden, due.hidden)
    order = [np.concatenate([batch_index(st, k*n+i) for i in range(n)]) for k in (0, 1)]
    assert np.array_equal(np.sort(order[0]), np.sort(order[1])) and not np.array_equal(*order)
    first, second = (fetch(st, st.train, epoch=k, augment=True) for k in (0, 1))
    assert not torch.equal(first.hidden, second.hidden) and not torch.equal(first.i_r, second.i_r)     # others are mirrored


def test_only_what_is_seen_is_in_another_light():
    plain, lit = (fetch(st := toy_state('improved', light=light, negative=light/2), st.train, augment=True) for light in (0., 1.))
    assert torch.equal(plain.i_r, lit.i_r) and torch.equal(plain.goals[0], lit.goals[0]) and not torch.equal(plain.i_in, lit.i_in)


def test_a_teacher_is_still_whatever_it_was_copied_from():
    enc = Encoder(4).train()
    teacher, x = Teacher(enc, codes=16), torch.rand(8,3,32,32)
    teacher.centres.normal_()
    before, a = copies(teacher), teacher(x)
    for again in (teacher(x), teacher.train()(x)): assert torch.equal(a, again)
    assert same(before, teacher.state_dict()) and not any(m.training for m in teacher.modules())
    assert enc.training and not any(p.requires_grad for p in teacher.parameters())


def test_a_pupil_begins_as_a_copy_of_its_teacher():
    st, enc = toy_state('second-round'), make_networks(get_preset('improved', size=32, width=4, seed=7))[0].enc
    teach(st, Teacher(enc))
    assert same(st.gen_net.enc.state_dict(), enc.state_dict()) and st.task.target.teacher is not None


def test_a_resumed_run_leaves_no_step_out(tmp_path):
    def stop(st): st.stop = st.step == 3
    fit(toy_state(run_dir=tmp_path), [stop], progress=False)
    again, seen = toy_state(run_dir=tmp_path), []
    restore(again)
    assert again.step == 3
    fit(again, [lambda st: seen.append(st.step) if st.event == 'step' else None], progress=False)
    assert seen == [*range(4, 11)]


def test_the_larger_part_is_trained_on(tmp_path):
    seen = []
    def look(st):
        if st.event == 'begin': seen.append((st.photos, st.train, st.valid))
    train_gan(draw_shapes(40, size=32)[0], 'quick', run_dir=tmp_path/'a', width=4, width_d=4, bs=16, epochs=1, hooks=look, progress=False)
    photos, train, valid = seen[0]
    assert len(train) > 3*len(valid)
    for a,b in zip((train, valid), split_photos(photos, valid=PRESETS['quick'].valid, seed=0)): assert np.array_equal(a, b)


# Photos, from the file to the network.

def test_photos_are_cut_with_the_filter_that_is_recorded():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    due = [np.asarray(noise.resize((32,32), f, box=(15,0,75,60))) for f in (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR)]
    found = cut_photos([noise], size=32)[0]
    assert np.array_equal(found, due[0]) and not np.array_equal(found, due[1])


def test_red_is_the_first_channel_on_every_way_into_a_network(tmp_path):
    Image.new('RGB', (40, 40), (255, 0, 51)).save(tmp_path/'red.png')
    photos = cut_photos([tmp_path/'red.png'], size=32)
    for x in (to_model(photos), _as_input(torch.from_numpy(photos))):
        assert [x[0,c].unique().tolist() for c in range(3)] == [[1.], [-1.], [pytest.approx(-.6)]]
        assert np.array_equal(to_pixels(x), photos)
    class First(nn.Module):
        channels = 3,
        def features(self, x): return [x]
    assert encode(First(), photos, device='cpu')[0].tolist() == pytest.approx([1., -1., -.6])


# Probes: which images, and in which mode.

@pytest.fixture(scope='module')
def data():
    (x, y), (test_x, test_y) = draw_shapes(200, size=32), draw_shapes(50, size=32, seed=1)
    return LabelledSet('toy', x, y, test_x, test_y, SHAPES)


def test_a_records_seed_drew_its_labels(data):
    dev = development_images(data.train_y)
    for r in probe('pixels', data, mode='knn', labels_per_class=4, seeds=[3, 5], size=32, progress=False).rows:
        i = label_subset(data.train_y, 4, seed=r['seed'], last=dev)
        assert not np.isin(i, dev).any() and r['subset'] == hashlib.blake2b(i.tobytes(), digest_size=6).hexdigest()


def setup_of(task, data, amount, mode):
    return Setup(as_contender(None, width=4, size=32), data, mode, amount, task.recipe(mode), torch.device('cpu'), progress=False)


boxed = SimpleNamespace(name='boxed', train_x=np.zeros((20,32,32,3), np.uint8), train_y=tuple(np.array([[4., 4., 9.+i, 20., i%2, 1.]]) for i in range(20)),
                        test_x=np.ones((9,32,32,3), np.uint8), test_y=tuple(np.array([[1., 1., 9., 9., 0., 1.]]) for _ in range(9)), classes=('a', 'b'))
masked = SimpleNamespace(name='masked', train_x=boxed.train_x, train_y=np.random.default_rng(0).integers(0, 3, (20,32,32), dtype=np.uint8),
                         test_x=boxed.test_x, test_y=np.zeros((9,32,32), np.uint8), classes=('a', 'b', 'c'))
tasks = {'classification': (Classification, 'finetune', None), 'segmentation': (Segmentation, 'linear', masked), 'detection': (Detection, 'frozen', boxed)}


@pytest.mark.parametrize('name', tasks)
@pytest.mark.parametrize('amount', [3, 1000, None])
def test_a_search_neither_learns_from_what_judges_nor_judges_on_test_photos(name, amount, data, monkeypatch):
    make, mode, own = tasks[name]
    task, d = make(), own or data
    dev, used, judged = development_images(task.kinds(d)), [], []
    monkeypatch.setattr(make, 'fit', lambda self, setup, seed, i, tick: used.append(i) or nn.Linear(1, 1))
    monkeypatch.setattr(make, 'rate', lambda self, setup, model, i: judged.append(i) or .5)
    found = _search(task, setup_of(task, d, amount, mode))
    assert used and all(np.array_equal(j, dev) for j in judged) and found.selected['n'] == len(dev)
    for i in used:
        assert not np.isin(i, dev).any()
        assert len(i) == (3*len(np.unique(task.kinds(d))) if amount == 3 else len(d.train_x)-len(dev))


@pytest.mark.parametrize('name', tasks)
def test_settings_are_rated_on_the_photos_that_are_put_aside(name, data, monkeypatch):
    "A model that knows these photos' answers, and no others, is perfect."
    make, mode, own = tasks[name]
    task, d, i = make(), own or data, np.array([1, 4, 8])
    answers = d.train_y[i] if name != 'detection' else [d.train_y[j] for j in i]
    def answer(model, photos, **how):
        assert np.array_equal(photos, d.train_x[i])
        return answers
    for module, f in ((classification, 'classify'), (segmentation, 'segment'), (detection, 'detect')): monkeypatch.setattr(module, f, answer)
    assert task.rate(setup_of(task, d, None, mode), None, i) == pytest.approx(1.)


def test_neighbours_do_not_vote_for_themselves(data):
    two = LabelledSet('two', data.train_x[:8], np.arange(8) % 2, data.test_x[:4], np.arange(4) % 2, ('a', 'b'))
    row, = probe('pixels', two, mode='knn', labels_per_class=1, seeds=1, size=32, progress=False).rows
    assert row['train_accuracy'] == 0                                          # the other one has the other class


def test_the_papers_head_is_chosen_on_labels_it_was_not_trained_on(data, monkeypatch):
    trained, asked = [], []
    def fit_head(x, y, **how):
        trained.append(x)
        def head(f): asked.append((x, f)); return torch.zeros(len(f), 10)
        return head
    monkeypatch.setattr(classification, 'fit_paper_head', fit_head)
    probe(None, data, mode='paper-frozen', labels_per_class=10, seeds=1, width=4, size=32, progress=False)
    rows = lambda f: {r.tobytes() for r in f.numpy()}
    *choices, on_train, on_test = asked
    assert len(choices) >= 3 and all(len(x) == 80 and not rows(x) & rows(f) for x,f in choices)
    assert len(trained[-1]) == 100 and rows(on_train[1]) == rows(trained[-1]) and len(on_test[1]) == 50


def test_while_the_head_is_trained_alone_the_encoder_is_as_it_was(data):
    enc, seen = Encoder(4).train(), []
    before = copies(enc)
    finetune(enc, data.train_x[:40], data.train_y[:40], Recipe(steps=20, epochs=1, bs=8, head_first=True), classes=10, seed=0, device='cpu',
             watch=lambda update, model: seen.append((update, same(before, model.enc.state_dict()))))
    assert seen[0] == (2, True) and not any(s for _,s in seen[1:])            # running statistics, too


def test_features_are_of_evaluation_mode_and_the_network_stays(data):
    enc = Encoder(4, dropout=.9).train()
    before, found = copies(enc), encode(enc, data.test_x, device='cpu', remember=False)
    assert same(before, enc.state_dict()) and all(m.training for m in enc.modules())
    with torch.no_grad(): due = enc.eval().features(to_model(data.test_x))[-1].mean((2,3))
    torch.testing.assert_close(found, due, rtol=1e-4, atol=1e-5)
    class Noisy(nn.Module): # no statistics that could tell
        channels = 3,
        def __init__(self): super().__init__(); self.drop = nn.Dropout(.5)
        def features(self, x): return [self.drop(x)]
    torch.testing.assert_close(encode(Noisy(), data.test_x, device='cpu', remember=False), to_model(data.test_x).mean((2,3)), rtol=1e-4, atol=1e-5)


def test_the_deeper_a_stage_the_smaller_its_rate():
    model = _Classifier(Encoder(4), 10, mode='finetune', size=32)
    rate = {id(p): (g['scale'], g['lr'], g['weight_decay']) for g in param_groups(model, Recipe(lr=.1, layer_decay=.5, wd=.05)) for p in g['params']}
    for k,scale in enumerate((.0625, .125, .25, .5), 1):
        for p in getattr(model.enc, f'conv{k}').parameters(): assert rate[id(p)] == pytest.approx((scale, .1*scale, .05*(p.dim() > 1)))
    for p in model.head.parameters(): assert rate[id(p)] == pytest.approx((1., .1, .05*(p.dim() > 1)))


def batches_of(monkeypatch, module, fit_it, *args, **how):
    "The function that gives a training its batches."
    got = []
    monkeypatch.setattr(module, 'train_model', lambda model, batch, r, **kw: got.append((batch, kw['ready'])) or model)
    fit_it(Encoder(4), *args, seed=0, device='cpu', **how)
    return got[0]


def test_masks_move_with_their_photos(monkeypatch):
    photos = (masked.train_y*80)[...,None].repeat(3, 3)
    batch, ready = batches_of(monkeypatch, segmentation, segmentation.fit_segmenter, photos, masked.train_y, dense_recipe(), mode='finetune', classes=3)
    for step in range(4):
        x, y = batch(step, np.arange(20))
        assert torch.equal(x[...,0], (80*y).byte()) and not np.array_equal(y.numpy(), masked.train_y)
    assert ready is _as_input


def test_boxes_move_with_their_photos(monkeypatch):
    photos = np.zeros((40,64,64,3), np.uint8)
    boxes = [np.array([[12.+i%5, 20., 34.+i%5, 40., 0., 1.]]) for i in range(40)]
    for x,((l,t,r,b,*_),) in zip(photos, boxes): x[int(t):int(b),int(l):int(r)] = 255
    batch, ready = batches_of(monkeypatch, detection, detection.fit_detector, photos, boxes, detect_recipe(), mode='finetune', classes=1)
    given, asked = batch(0, np.arange(40))
    x, scale = ready(given), 64/asked.heat.shape[-1]
    off = []
    for (k,row,col),(w,h,right,down) in zip(asked.at.tolist(), asked.box.tolist()):
        lit = (x[k,0] > 0).nonzero().float()
        (top, left), (bottom, right_end) = lit.min(0).values.tolist(), (lit.max(0).values+1).tolist()
        cx, cy = (col+right)*scale, (row+down)*scale
        off.append(np.abs(np.array([cx-w*scale/2, cy-h*scale/2, cx+w*scale/2, cy+h*scale/2]) - [left, top, right_end, bottom]).max())
    assert len(off) == 40 and max(off) < 1.5
    assert not torch.equal(_enlarge_windows(*given)[:,0] > 0, torch.from_numpy(photos[...,0] > 0))


@pytest.mark.parametrize('part', ['encoder', 'disc'])
def test_the_online_probe_asks_the_part_it_names_on_images_it_does_not_learn_from(part, data, monkeypatch):
    st, nets = toy_state(), []
    monkeypatch.setattr(online, 'encode', lambda net, *a, **k: nets.append(net) or encode(net, *a, **k))
    hook = OnlineProbe(data, part=part, labels_per_class=16)
    st.event = 'begin'
    hook(st)
    assert len(nets) == 2 and all(n is (st.gen_net.enc if part == 'encoder' else st.disc_net) for n in nets) and hook.rows[0]['part'] == part
    rows = lambda x: {p.tobytes() for p in x}
    assert not rows(hook.x) & rows(hook.x_dev) and rows(hook.x_dev) <= rows(data.train_x[development_images(data.train_y)])


# What is made of the scores.

def test_spreads_are_over_n_minus_1():
    assert ProbeResult([dict(test_accuracy=.1), dict(test_accuracy=.3)]).std == pytest.approx(.2/2**.5)
    right = {'ours': [[1,1,0,1], [1,0,0,1]], 'theirs': [[0,1,0,0], [1,1,0,0]]}
    arm, ref = (pd.DataFrame(dict(pretraining=[f'{name}{k}' for k in (0, 1)], pair='0', right=[_pack_bits(b) for b in bits], n_test=4,
                                  acc=[100*np.mean(b) for b in bits])) for name,bits in right.items())
    a, b = (x.pivot(index='pretraining', columns='pair', values='acc') for x in (arm, ref))
    d = 100*(np.mean(right['ours'], 0) - np.mean(right['theirs'], 0))
    assert tables._photos_part(arm, ref, a, b) == (pytest.approx(d.var(ddof=1)/4), True)
