"""Generated cases. What takes data or settings of a user is in generated.py, which runs here as people run it, without the types' checks. Pure functions of
tensors are here: their result, or the refusal of their types. Where somebody else's function gives the same number, it is compared.

Elsewhere already: cuts of boxes against Pillow (18_augmentation), average precision against COCO's own (test_detect), rows of records (test_records)."""
import os, subprocess, sys, warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch.autograd import gradcheck

from recon_nb.augmentation import cut_boxes, random_boxes, random_crop, mirror, random_light, random_negative
from recon_nb.core import InputError
from recon_nb.heads import fit_linear, knn_predict
from recon_nb.intervals import crossed_interval, interval
from recon_nb.losses import ADV, bce_disc, bce_gen, gradient_penalty, reconstruction_loss
from recon_nb.masks import at_stride, compose, scale_bias
from recon_nb.metrics import _hidden_ssim, explained, hidden_l1, hidden_psnr, score
from recon_nb.pixels import to_model, to_pixels
from recon_nb.segmentation import mean_iou
from recon_nb.targets import TARGETS, _oriented_gradients, _soft_hues

SLOW = bool(os.environ.get('RECON_NB_SLOW'))
settings.register_profile('here', derandomize=not SLOW, database=None, deadline=None, max_examples=200 if SLOW else 12, suppress_health_check=[*HealthCheck])
HOW = settings.get_profile('here')


def run_cases(**env):
    done = subprocess.run([sys.executable, '-m', 'pytest', '-q', '--tb=short', '-p', 'no:cacheprovider', Path(__file__).with_name('generated.py')], capture_output=True, text=True,
                          env={**os.environ, 'PYTEST_ADDOPTS': '', 'RECON_NB_TYPES': '0', 'OMP_NUM_THREADS': '1', 'TQDM_DISABLE': '1', **env})
    assert done.returncode == 0, done.stdout[-6000:]                    # no test at all would be 5


def test_a_thousand_cases(): run_cases(RECON_NB_SLOW='')


@pytest.mark.slow
def test_twenty_thousand_cases(): run_cases(RECON_NB_SLOW='1')


# --- pure functions of tensors: a result, or a refusal by their types

@st.composite
def tensors(draw, channels=(1, 3, 4)):
    "Pictures, or nearly: any number of axes, sizes odd and even, types, numbers that are none."
    shape = draw(st.one_of(st.tuples(st.integers(0, 3), st.sampled_from(channels), st.integers(1, 24), st.integers(1, 24)), st.lists(st.integers(0, 5), max_size=5)))
    kind = draw(st.sampled_from([torch.float32, torch.float32, torch.float64, torch.float16, torch.int64, torch.bool, torch.uint8]))
    x = torch.from_numpy(np.random.default_rng(draw(st.integers(0, 99))).normal(size=tuple(shape)))
    odd = draw(st.sampled_from([None, None, float('nan'), float('inf'), 1e30, -1e30]))
    if odd is not None and x.numel(): x.view(-1)[0] = odd
    return x.to(kind)


def result_or_refusal(call, *args, **kwargs):
    "None, if the types refuse the call."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try: return call(*args, **kwargs)
        except (TypeError, InputError): return None


UNARY = dict(to_pixels=to_pixels, to_model=to_model, gradients=_oriented_gradients, hues=_soft_hues, bce_gen=bce_gen, **{f'target {k}': T().make for k, T in TARGETS.items() if not T.needs_teacher and k != 'normalised-patches'})


def fits(name, x):
    "What the documentation asks for and a type does not say: three channels, cells that fill the picture."
    if x.ndim == 1: return True
    if name == 'to_pixels': return x.ndim == 4 and x.shape[1] in (1, 3)
    return x.ndim == 4 and x.shape[1] == 3 and x.shape[2] % 4 == x.shape[3] % 4 == 0 and x.dtype != torch.float16


@settings(HOW)
@given(st.sampled_from([*UNARY]), tensors())
def test_functions_of_one_tensor(name, x):
    if x.is_floating_point() and not fits(name, x): return
    got = result_or_refusal(UNARY[name], x)
    if got is None or not x.numel(): return
    for y in got if isinstance(got, tuple) else (got,): assert len(np.shape(y)) == 0 or len(y) == len(x)


PAIRS = dict(bce_disc=bce_disc, l1=reconstruction_loss, l2=lambda a, b: reconstruction_loss(a, b, norm='l2'), **{f'adv {k}': v.disc for k, v in ADV.items()})


@settings(HOW)
@given(st.sampled_from([*PAIRS]), tensors(), tensors(), st.booleans())
def test_losses_of_two_tensors(name, a, b, alike):
    if alike: b = torch.rand_like(a) if a.is_floating_point() else a.clone()
    got = result_or_refusal(PAIRS[name], a, b)
    if got is not None: assert got.shape == () and (not a.numel() or not (a.isfinite().all() and b.isfinite().all()) or got.isfinite() or max(a.abs().max(), b.abs().max()) > 1e18)


@settings(HOW)
@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 99))
def test_masks_and_measures_of_any_size(n, h, w, share, seed):
    rng = np.random.default_rng(seed)
    a, b = (torch.from_numpy(rng.uniform(-1, 1, (n, 3, h, w)).astype(np.float32)) for _ in range(2))
    hidden = torch.from_numpy(rng.random((n, 1, h, w)) < share)
    assert torch.equal(compose(a, b, hidden), torch.where(hidden, a, b))
    alpha, beta = scale_bias(b, hidden)
    assert torch.equal(alpha*a+beta, torch.where(hidden, a, b)) or torch.allclose(alpha*a+beta, torch.where(hidden, a, b))
    for x in range(n):
        m = hidden[x].expand(3, -1, -1)
        if not m.any(): continue
        torch.testing.assert_close(hidden_l1(a, b, hidden)[x], (a-b)[x][m].abs().mean())
        torch.testing.assert_close(hidden_psnr(a, b, hidden)[x], 10*torch.log10(4/(a-b)[x][m].square().mean()))
    for s in (1, 2, 4):
        if h % s or w % s: continue
        assert torch.equal(at_stride(hidden, s)[:, 0], hidden.view(n, h//s, s, w//s, s).all(4).all(2))
    if min(h, w) >= 12: assert {*score(a, b, hidden)} == {'l1', 'psnr', 'ssim'}
    assert explained(b, b, hidden) == 1 or not hidden.any() or (b.masked_select(hidden).std() == 0)or h*w*n*share < 4


@settings(HOW)
@given(st.integers(1, 3), st.integers(12, 64), st.integers(0, 99))
def test_ssim_and_psnr_are_those_of_torchmetrics(n, side, seed):
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
    rng = np.random.default_rng(seed)
    a = torch.from_numpy(rng.uniform(-1, 1, (n, 3, side, side)).astype(np.float32))
    b = (a+.2*torch.from_numpy(rng.normal(size=a.shape).astype(np.float32))).clamp(-1, 1)
    all_of_it, kernel = torch.ones(n, 1, side, side, dtype=torch.bool), 5 if side <= 48 else 11
    torch.testing.assert_close(hidden_psnr(b, a, all_of_it), torch.stack([peak_signal_noise_ratio(x, y, data_range=2.) for x, y in zip(b, a)]))
    inside = slice(kernel//2, side-kernel//2)                            # where whole patches lie
    want = structural_similarity_index_measure(b, a, data_range=2., sigma=1.5*kernel/11, reduction='none', return_full_image=True)[1][..., inside, inside].clamp(-1, 1).mean((1, 2, 3))
    torch.testing.assert_close(_hidden_ssim(b, a, all_of_it), want, atol=1e-5, rtol=1e-5)


@settings(HOW)
@given(st.integers(2, 60), st.integers(1, 12), st.integers(2, 4), st.integers(1, 9), st.integers(0, 99))
def test_neighbours_vote_as_in_scikit_learn(n, d, classes, k, seed):
    from sklearn.neighbors import KNeighborsClassifier
    rng, k = np.random.default_rng(seed), min(k, n)
    f, g, y = rng.normal(size=(n, d)).astype(np.float32), rng.normal(size=(20, d)).astype(np.float32), rng.integers(0, classes, n)
    if d == 1: f, g = np.abs(f)+.1, np.abs(g)+.1; return               # of one number all cosines are equal
    ours = knn_predict(torch.from_numpy(f), torch.from_numpy(y), torch.from_numpy(g), k=k).numpy()
    theirs = KNeighborsClassifier(k, metric='cosine', algorithm='brute').fit(f, y).predict(g)
    close = np.sort(1-(f/np.linalg.norm(f, axis=1, keepdims=True))@(g/np.linalg.norm(g, axis=1, keepdims=True)).T, axis=0)
    clear = np.ones(20, bool) if k == n else close[k]-close[k-1] > 1e-5          # rounding may change who comes last
    assert (ours == theirs)[clear].all()


@settings(HOW, max_examples=60 if SLOW else 5)
@given(st.integers(8, 60), st.integers(1, 6), st.integers(2, 4), st.sampled_from([.1, 1., 10.]), st.integers(0, 99))
def test_a_linear_classifier_is_scikit_learns(n, d, classes, l2, seed):
    from sklearn.linear_model import LogisticRegression
    rng = np.random.default_rng(seed)
    f, y = rng.normal(size=(n, d)).astype(np.float32), np.r_[np.arange(classes), rng.integers(0, classes, n-classes)]
    f += y[:, None]
    lin = fit_linear(torch.from_numpy(f), torch.from_numpy(y), l2=l2, n_classes=classes)
    x = ((torch.from_numpy(f)-lin.mean)*lin.scale).numpy()
    theirs = LogisticRegression(C=1/l2, max_iter=5000, tol=1e-8).fit(x, y)
    z, want = lin.logits(torch.from_numpy(f)), theirs.decision_function(x)
    if classes == 2: want = np.stack([-want/2, want/2], 1)              # of two classes scikit-learn fits the difference, whose penalty is half
    if classes > 2: np.testing.assert_allclose(z.softmax(1).numpy(), theirs.predict_proba(x), atol=2e-3)
    else: assert (z.argmax(1).numpy() == theirs.predict(x)).mean() > .9


@settings(HOW)
@given(st.integers(2, 5), st.integers(0, 99))
def test_mean_iou_is_that_of_a_loop(classes, seed):
    rng = np.random.default_rng(seed)
    truth, said = rng.integers(0, classes, 200), rng.integers(0, classes, 200)
    counts = np.zeros((classes, classes), dtype=int)
    for t, s in zip(truth, said): counts[t, s] += 1
    want = [((truth == c) & (said == c)).sum()/((truth == c) | (said == c)).sum() for c in range(classes) if ((truth == c) | (said == c)).any()]
    assert abs(mean_iou(counts)-np.mean(want)) < 1e-12


@settings(HOW)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8), st.floats(.01, .99))
def test_an_interval_holds_its_mean(values, level):
    m, low, high = interval(values, level=level)
    assert len(values) == 1 and np.isnan(low) or low <= m+1e-6 and m <= high+1e-6
    m, low, high = crossed_interval(np.array(values)[:, None, None], level=level)
    assert np.isnan(low) or low <= m+1e-6 and m <= high+1e-6


@settings(HOW)
@given(st.integers(1, 3), st.integers(4, 40), st.integers(4, 40), st.floats(.01, 1), st.floats(1, 10), st.integers(1, 40), st.integers(0, 99))
def test_boxes_and_light_stay_in_the_picture(n, h, w, scale, ratio, size, seed):
    g = torch.Generator().manual_seed(seed)
    x, u = torch.rand(n, 3, h, w, generator=g)*2-1, lambda k: torch.rand(n, k, generator=g)
    b = random_boxes(u(4), scale=scale, ratio=ratio)
    assert (b >= -1e-6).all() and (b[:, :2]+b[:, 2:] <= 1+1e-5).all()
    for y in (cut_boxes(x, b, size=size), random_crop(x, u(3), least=scale), random_light(x, u(6), strength=1.), mirror(x, u(1)), random_negative(x, u(1), share=.5)):
        assert y.abs().max() <= 1+1e-6 and y.shape[:2] == x.shape[:2]


# --- gradients, in double precision

def numbers(*shape, seed=0): return torch.from_numpy(np.random.default_rng(seed).uniform(-.9, .9, shape)).requires_grad_()


@pytest.mark.parametrize('name', ADV)
def test_gradients_of_adversarial_losses(name):
    adv, real, fake = ADV[name], numbers(6), numbers(6, seed=1)
    assert gradcheck(adv.disc, (real, fake)) and gradcheck(adv.gen, (real, fake) if adv.relativistic else (fake,))


@pytest.mark.parametrize('norm', ['l1', 'l2'])
@pytest.mark.parametrize('masked', [False, True])
def test_gradients_of_the_reconstruction_loss(norm, masked):
    where = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)) < .5 if masked else None
    assert gradcheck(lambda a: reconstruction_loss(a, numbers(2, 3, 4, 4, seed=1), where, norm=norm), (numbers(2, 3, 4, 4),))


def test_gradients_of_the_gradient_penalty():
    w = numbers(12)
    critic = lambda w: lambda x: (x.flatten(1)@w).tanh()
    real, fake, u = numbers(2, 3, 2, 2, seed=1).detach(), numbers(2, 3, 2, 2, seed=2).detach(), numbers(2, seed=3).detach().abs()
    assert gradcheck(lambda w: gradient_penalty(critic(w), real, fake, u), (w,))


@pytest.mark.parametrize('name', [k for k, T in TARGETS.items() if not T.needs_teacher])
def test_gradients_of_targets(name):
    "Of the answers by the photo, and of the loss by what was predicted."
    side = 16 if name == 'normalised-patches' else 8
    target, photo = TARGETS[name](), numbers(1, 3, side, side)
    goals = target(photo.detach())
    outs = tuple(numbers(*g.shape, seed=5+i) for i, g in enumerate(goals))
    for norm in target.norms: assert gradcheck(lambda *o: target.loss(o, goals, norm=norm), outs, fast_mode=True)
    if name != 'normalised-patches': assert gradcheck(lambda x: sum(g.sum() for g in target(x)), (photo,), fast_mode=True, atol=1e-4)


# --- a fault that was found on the way

@pytest.mark.parametrize('how', [dict(keep_every=2), dict(accumulate=3, bs=9)])
def test_what_a_run_costs_is_known_however_it_is_trained(how):
    "Noise is trained on for one epoch there, in batches of eight: what fits the run need not fit it."
    from recon_nb.config import get_preset
    from recon_nb.cost import count_flops
    assert count_flops(get_preset('quick', width=2, **how)) == count_flops(get_preset('quick', width=2))
