"The probe under checked types: wrong calls end before any training, equal calls give equal numbers, frozen encoders stay as they are."
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from recon_nb.checkpoint import load_tensors
from recon_nb.config import get_preset
from recon_nb.core import InputError, read_jsonl
from recon_nb.contenders import Pixels, as_contender
from recon_nb.features import encode, frozen
from recon_nb.finetune import Recipe, paper_recipe
from recon_nb.encoder import Encoder
from recon_nb.labelled import DEV_SEED, LabelledSet, development_images, label_subset, load_labelled
from recon_nb.online import OnlineProbe
from recon_nb.identity import _fingerprint_photos
from recon_nb.probing import _pack_bits, _pack_shares, search_recipe, unpack_bits, unpack_shares
from recon_nb.classification import MODES, Classification, probe
from recon_nb.run import GANRun
from recon_nb.training import train_gan
from recon_nb.shapes import SHAPES, draw_shapes

QUICK = dict(steps=4, epochs=1, bs=16)
recipes = {'finetune': Recipe(**QUICK), 'paper-finetune': paper_recipe(**QUICK)}


@pytest.fixture(scope='module')
def data():
    (x, y), (test_x, test_y) = draw_shapes(200, size=32), draw_shapes(50, size=32, seed=1)
    return LabelledSet('toy', x, y, test_x, test_y, SHAPES)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    return train_gan(draw_shapes(40, size=32)[0], 'quick', run_dir=tmp_path_factory.mktemp('run')/'a', width=4, width_d=4, bs=16, epochs=1)


def ask(encoder, data, mode, **kwargs):
    return probe(encoder, data, **{**dict(mode=mode, labels_per_class=4, seeds=2, recipe=recipes.get(mode), progress=False), **kwargs})


def untimed(result): return [{k: v for k,v in r.items() if k != 'seconds'} for r in result.records()]


def tree(root, classes=('a', 'b'), parts=('train', 'test'), n=4):
    "A set as class folders."
    from PIL import Image
    for part in parts:
        for k,c in enumerate(classes):
            (root/part/c).mkdir(parents=True)
            for i in range(n): Image.fromarray(np.full((32, 32, 3), 60*k + i, np.uint8)).save(root/part/c/f'{i}.png')
    return root


@pytest.mark.parametrize('mode', [m for m in MODES if m != 'paper-frozen'])
def test_equal_calls_give_equal_numbers(data, mode):
    before = torch.get_rng_state()
    a, b = (ask(None, data, mode, width=4, size=32) for _ in range(2))
    assert untimed(a) == untimed(b) and a.n == 2 and json.loads(json.dumps(a.records()))
    assert torch.equal(before, torch.get_rng_state())
    assert [r['histogram'] for r in ask(None, data, mode, width=4, size=32, seeds=[1]).rows] == [a.rows[1]['histogram']]
    for r in a.rows:
        assert r['n_train'] == 40 and np.sum(r['confusion']) == sum(r['histogram']) == r['n_test'] == 50
        assert r['test_accuracy'] == pytest.approx(np.trace(r['confusion'])/50) and len(r['per_class']) == 10


@pytest.mark.parametrize('part', ['encoder', 'disc'])
def test_both_players_can_be_probed_and_stay_as_they_are(run, data, part):
    before = {k: v.clone() for net in (run.generator, run.disc) for k,v in net.state_dict().items()}
    for mode in ('knn', 'linear', 'finetune'):
        r = ask(run, data, mode, part=part).rows[0]
        assert r['arm'] == part and r['source'] == dict(run='a', preset='quick', data='array', width=4, changed=dict(bs=16, epochs=1, width_d=4), seed=0, step=run.step, **({'part': 'disc'} if part == 'disc' else {}))
    after = {k: v for net in (run.generator, run.disc) for k,v in net.state_dict().items()}
    assert all(torch.equal(before[k], after[k]) for k in before) and all(p.requires_grad for p in run.encoder.parameters())
    scratch = as_contender(None, like=run, part=part).build(0)
    assert [p.shape for p in scratch.parameters()] == [p.shape for p in as_contender(run, part=part).net.parameters()]
    assert not torch.equal(next(scratch.parameters()), next(as_contender(run, part=part).net.parameters()))


def test_a_folder_of_a_run_is_the_run(run, data):
    assert untimed(ask(run.dir, data, 'knn')) == untimed(ask(GANRun.load(run.dir), data, 'knn'))


def test_drift_is_found():
    class Sly(nn.Module):
        channels = 3,
        def __init__(self): super().__init__(); self.register_buffer('calls', torch.zeros(1))
        def features(self, x): self.calls += 1; return [x]
    with pytest.raises(RuntimeError, match='calls'): encode(Sly(), draw_shapes(4, size=16)[0])
    enc = Encoder(4).train()
    with pytest.raises(RuntimeError, match='running_mean'):
        with frozen(enc): enc.train(); enc.features(torch.rand(4, 3, 32, 32))


def test_every_arm_of_a_seed_gets_the_same_labels(run, data, monkeypatch):
    import recon_nb.probing as p
    seen, original = [], p.label_subset
    monkeypatch.setattr(p, 'label_subset', lambda *a, **k: seen.append(out := original(*a, **k)) or out)
    for arm,how in ((run, {}), (None, dict(like=run)), ('pixels', dict(size=32))): ask(arm, data, 'knn', **how)
    assert len(seen) == 6 and all(np.array_equal(seen[i], seen[i % 2]) for i in range(6)) and not np.array_equal(seen[0], seen[1])
    dev = development_images(data.train_y)
    assert not np.isin(seen[0], dev).any() and not np.isin(label_subset(data.train_y, 4, seed=DEV_SEED, last=dev), dev).any()


def test_a_search_never_sees_a_test_image(data):
    blind = LabelledSet('toy', data.train_x, data.train_y, data.test_x*0, data.test_y, SHAPES)
    how = dict(mode='finetune', amount=4, width=4, size=32, recipe=Recipe(**QUICK), progress=False)
    a, b = (search_recipe(Classification(), None, d, **how) for d in (data, blind))
    assert a == b
    assert a.selected['n'] == len(development_images(data.train_y)) and len(a.selected['scores']) >= 6
    assert ask(None, data, 'finetune', width=4, size=32, recipe=a).rows[0]['selected'] == a.selected
    assert ask(None, data, 'finetune', width=4, size=32, seeds=1, search=True).rows[0]['selected'] == a.selected


def test_one_label_a_class(data):
    for mode in ('knn', 'linear', 'finetune'): assert 0 <= ask(None, data, mode, width=4, size=32, labels_per_class=1, seeds=1).mean <= 1


@pytest.mark.parametrize('says,call', {
    'no such mode': ("Did you mean 'linear'", lambda d, r, tmp: ask(r, d, 'lineal')),
    'more labels than there are': ('stripes has 20', lambda d, r, tmp: ask(r, d, 'knn', labels_per_class=21)),
    'no labels': ('1 or more', lambda d, r, tmp: ask(r, d, 'knn', labels_per_class=0)),
    'no seeds': ('seeds', lambda d, r, tmp: ask(r, d, 'knn', seeds=[])),
    'scratch of what': ('like=', lambda d, r, tmp: ask(None, d, 'knn')),
    'a module without a size': ('size=', lambda d, r, tmp: ask(Encoder(4), d, 'knn')),
    'another size': ('48 px', lambda d, r, tmp: ask(Encoder(4), d, 'knn', size=48)),
    'too small for it': ('Encoder at 8 px', lambda d, r, tmp: ask(Encoder(4), d, 'knn', size=8)),
    'no encoder': ('features', lambda d, r, tmp: ask(nn.Linear(2, 2), d, 'knn', size=32)),
    'no such folder': ('nowhere', lambda d, r, tmp: ask(tmp/'nowhere', d, 'knn')),
    'a run without weights': ('weights.safetensors', lambda d, r, tmp: ask(tmp, d, 'knn')),
    'no such part': ("'encoder'", lambda d, r, tmp: ask(r, d, 'knn', part='encode')),
    'pixels trained': ('raw pixels', lambda d, r, tmp: ask('pixels', d, 'finetune', size=32)),
    'a recipe for another mode': ('recipe', lambda d, r, tmp: ask(r, d, 'finetune', recipe=paper_recipe())),
    'a frozen mode with a recipe': ('recipe', lambda d, r, tmp: ask(r, d, 'knn', recipe=Recipe())),
    'a search where nothing is searched': ('chooses by itself', lambda d, r, tmp: ask(r, d, 'linear', search=True)),
    'search as it was spelled': ('search=True', lambda d, r, tmp: ask(r, d, 'finetune', recipe='search')),
    'no such set': ('cifar10', lambda d, r, tmp: ask(r, 'cifar11', 'knn')),
    'no set at all': ('(photos, labels)', lambda d, r, tmp: ask(r, d.train_x, 'knn')),
    'an empty folder': ('no folders', lambda d, r, tmp: ask(r, tmp, 'knn')),
    'no test part': ('test/<class>', lambda d, r, tmp: ask(r, tree(tmp/'x', parts=('train',)), 'knn')),
    'labels missing': ('labels are missing', lambda d, r, tmp: ask(r, flat(tree(tmp/'x')), 'knn')),
    'a class absent': ('has no folder b', lambda d, r, tmp: ask(r, without(tree(tmp/'x'), 'test/b'), 'knn')),
    'an empty class': ('holds no photo', lambda d, r, tmp: ask(r, emptied(tree(tmp/'x'), 'test/b'), 'knn')),
    'one class': ('2 or more', lambda d, r, tmp: ask(r, tree(tmp/'x', classes=('a',)), 'knn')),
}.values(), ids=lambda v: v.replace(' ', '-') if isinstance(v, str) else '')
def test_wrong_calls_end_before_any_training(data, run, tmp_path, says, call, monkeypatch):
    import recon_nb.classification as p
    for name in ('finetune', 'encode', '_choose_recipe'): monkeypatch.setattr(p, name, lambda *a, **k: pytest.fail('it was computed'))
    with pytest.raises(InputError) as e: call(data, run, tmp_path)
    assert says in str(e.value)


def flat(root): (root/'train/a/0.png').rename(root/'train/0.png'); return root
def without(root, folder): emptied(root, folder); (root/folder).rmdir(); return root
def emptied(root, folder):
    for f in (root/folder).iterdir(): f.unlink()
    return root


def test_folders_may_say_val(tmp_path):
    s = load_labelled(tree(tmp_path/'x', parts=('train', 'val')), size=16, progress=False)
    assert (s.name, s.classes, len(s.train_y), len(s.test_y)) == ('x', ('a', 'b'), 8, 8)


def test_arms_that_have_no_run():
    assert as_contender(None, like=get_preset('quick')).size == 32 and as_contender(None, like=get_preset('quick'), part='disc').net.channels[0] == 8
    assert as_contender('pixels', size=64).net.features(torch.zeros(1, 3, 64, 64))[0].shape[-1] == 32 and not [*Pixels().parameters()]


def test_the_online_probe_changes_nothing_and_resumes(tmp_path, data):
    x = draw_shapes(48, size=32)[0]
    how = dict(width=4, width_d=4, bs=16, epochs=3)
    hook = OnlineProbe(data, judged=20)
    plain, watched = (train_gan(x, 'quick', run_dir=tmp_path/str(i), hooks=h, **how) for i,h in enumerate(((), hook)))
    def stop(st): st.stop = st.step == 5
    train_gan(x, 'quick', run_dir=tmp_path/'c', hooks=[OnlineProbe(data, judged=20), stop], **how)
    broken = train_gan(x, run_dir=tmp_path/'c', resume=True, hooks=OnlineProbe(data, judged=20))
    a, b, c = (load_tensors(r.dir/'weights.safetensors')[0] for r in (plain, watched, broken))
    assert all(torch.equal(a[k], b[k]) and torch.equal(a[k], c[k]) for k in a)
    rows, again = ([{k: v for k,v in r.items() if k != 'seconds'} for r in read_jsonl(run.dir/'probe.jsonl')] for run in (watched, broken))
    assert rows == again and [r['epoch'] for r in rows] == [0, 1, 2, 3] and hook.rows[-1]['epoch'] == 3


def test_the_online_probe_refuses_before_the_first_step(tmp_path, data):
    with pytest.raises(InputError, match='every'): OnlineProbe(data, every=-1)
    x = draw_shapes(20, size=48)[0]
    with pytest.raises(InputError, match='48 px'): train_gan(x, 'quick', run_dir=tmp_path/'a', size=48, width=4, bs=8, epochs=1, hooks=OnlineProbe(data))
    assert not (tmp_path/'a/history.jsonl').exists()


def test_an_exported_encoder_is_the_runs(run, data, tmp_path):
    from recon_nb import export_encoder
    path = export_encoder(run, tmp_path/'enc.safetensors')
    a, b = (ask(e, data, 'knn').rows[0] for e in (path, run))
    assert a['histogram'] == b['histogram'] and a['source']['preset'] == 'quick'
    with pytest.raises(InputError, match='discriminator'): ask(path, data, 'knn', part='disc')


def test_probe_can_be_called_by_its_short_name(data):
    import recon_nb
    from recon_nb import probe as short
    assert short is probe and recon_nb.probe is probe
    assert short(None, data, mode='knn', labels_per_class=2, seeds=1, width=4, size=32, progress=False).n == 1


def test_a_training_that_diverges_is_no_result(data):
    from recon_nb.core import TrainingDiverged
    with pytest.raises(TrainingDiverged, match='lower lr'): ask(None, data, 'paper-finetune', width=4, size=32, recipe=paper_recipe(steps=30, epochs=1, lr=1e30))


def test_records_are_written_as_they_are_made_and_a_bad_file_is_refused_first(run, data, tmp_path, monkeypatch):
    made, knn = [], MODES['knn']

    def stop_after_one(*args):
        if made: raise KeyboardInterrupt
        made.append(1)
        return knn.ask(*args)
    monkeypatch.setitem(MODES, 'knn', knn._replace(ask=stop_after_one))
    with pytest.raises(InputError, match='records go into a file'): ask(run, data, 'knn', out=tmp_path)                       # a folder
    assert not made
    with pytest.raises(KeyboardInterrupt): ask(run, data, 'knn', seeds=3, out=tmp_path/'r.jsonl')
    row, = read_jsonl(tmp_path/'r.jsonl')
    assert row['seed'] == 0 and row['weights'] and row['device'] == 'cpu'


def test_seeds_that_cannot_differ_are_one_run(run, data, capsys):
    few = LabelledSet('few', data.train_x[:60], data.train_y[:60], data.test_x, data.test_y, SHAPES)
    left = int(np.bincount(np.delete(few.train_y, development_images(few.train_y))).min())
    for mode, labels, n in (('knn', None, 1), ('linear', None, 1), ('knn', left, 3), ('finetune', None, 3)):
        found = ask(run, few, mode, labels_per_class=labels, seeds=3)
        same = len({r['subset'] for r in found.rows}) == 1
        assert found.n == (1 if same and mode != 'finetune' else 3) and (labels or found.n == n)
    assert ask(None, few, 'knn', labels_per_class=None, seeds=3, like=run).n == 3          # random weights differ
    assert 'draw the same labels' not in capsys.readouterr().out
    ask(run, few, 'knn', labels_per_class=None, seeds=3, progress=True)
    assert 'draw the same labels' in capsys.readouterr().out


def test_records_say_which_test_photos_were_right(data):
    "The packed bits are the classes' hits, in the order of the test part; the fingerprint is of exactly these photos."
    r = ask(None, data, 'knn', width=4, size=32).rows[0]
    right, truth = unpack_bits(r['test_right'], r['n_test']), data.test_y
    assert r['schema'] == 2 and r['task'] == 'classification' and right.mean() == pytest.approx(r['test_accuracy'])
    assert [right[truth == c].sum() for c in range(10)] == np.diag(r['confusion']).tolist()
    assert ask('pixels', data, 'linear', size=32).rows[0]['test_pixels'] == r['test_pixels'] == _fingerprint_photos(data.test_x)
    changed = data.test_x.copy(); changed[7, 0, 0, 0] ^= 1
    other = LabelledSet('toy', data.train_x, data.train_y, changed, data.test_y, SHAPES)
    assert ask(None, other, 'knn', width=4, size=32).rows[0]['test_pixels'] != r['test_pixels']


@pytest.mark.parametrize('n', [0, 1, 7, 8, 9, 1003])
def test_bits_and_shares_come_back(n):
    rng = np.random.default_rng(n)
    right, shares = rng.random(n) < .5, rng.random(n)
    shares[::3] = np.nan
    assert np.array_equal(unpack_bits(_pack_bits(right), n), right) and len(_pack_bits(right)) == ((n+7)//8+2)//3*4
    back = unpack_shares(_pack_shares(shares))
    assert np.array_equal(np.isnan(back), np.isnan(shares)) and (n < 2 or np.nanmax(abs(back-shares)) <= .005+1e-9)


def test_all_is_none(data):
    a, b = (ask(None, data, 'knn', width=4, size=32, labels_per_class=k) for k in ('all', None))
    assert untimed(a) == untimed(b) and a.rows[0]['labels_per_class'] is None and a.rows[0]['n_train'] == 200


@pytest.mark.parametrize('mode', ['finetune', 'paper-finetune'])
def test_every_update_learns(data, monkeypatch, mode):
    "The first update's rate and the last one's are not 0; each is the rate of the update's middle."
    from recon_nb import finetune as page
    rates = []
    for name in ('Adam', 'AdamW'):
        real = getattr(torch.optim, name)
        class Spy(real):
            def step(self, *args, **kwargs): rates.append(self.param_groups[-1]['lr']); return super().step(*args, **kwargs)
        monkeypatch.setattr(page.torch.optim, name, Spy)
    ask(None, data, mode, width=4, size=32, seeds=1, recipe=replace(recipes[mode], lr=1., layer_decay=1.))
    assert np.allclose(rates, [page._rate((k+.5)/4) for k in range(4)]) and min(rates) > .03
    rates.clear()
    page.fit_paper_head(torch.randn(20, 5), torch.arange(20) % 4, classes=4, lr=1., seed=0, steps=10, bs=5)
    assert np.allclose(rates, [page._rate((k+.5)/10) for k in range(10)]) and min(rates) > 0


def test_training_leaves_the_callers_random_numbers(data):
    from recon_nb.finetune import finetune, fit_paper_head
    i = label_subset(data.train_y, 4, seed=0)
    calls = {'finetune': lambda: finetune(Encoder(4), data.train_x[i], data.train_y[i], Recipe(**QUICK), classes=10, seed=3),
             'head': lambda: fit_paper_head(torch.ones(20, 5), torch.arange(20) % 4, classes=4, lr=1e-3, seed=3, steps=3)}
    for call in calls.values():
        torch.manual_seed(1); Encoder(4); wanted = torch.rand(3)
        torch.manual_seed(1); call() if call is calls['finetune'] else (Encoder(4), call())
        assert torch.equal(torch.rand(3), wanted)


def test_encoding_in_blocks_is_encoding(data, monkeypatch):
    from recon_nb import features
    torch.manual_seed(0); enc = Encoder(4)
    whole = encode(enc, data.test_x, stages=(1, -1), side=None, remember=False)
    sizes, as_input = [], features._as_input
    monkeypatch.setattr(features, '_BLOCK', 4*(4*256+8*64+16*16+32*4)*7)
    monkeypatch.setattr(features, '_as_input', lambda x: sizes.append(len(x)) or as_input(x))
    assert torch.allclose(encode(enc, data.test_x, stages=(1, -1), side=None, remember=False), whole, atol=1e-6) and sizes == [7]*7+[1]


def test_neighbours_in_blocks_are_the_neighbours(monkeypatch):
    from recon_nb import heads
    f, y = torch.randn(500, 16), torch.arange(500) % 5
    near, said = heads.nearest_neighbours(f, k=9), heads.knn_predict(f, y, f, leave_out=True)
    monkeypatch.setattr(heads, '_BLOCK', 4*500*13)
    blocks = [len(c) for c,_ in heads._closest(f, f, k=3)]
    assert max(blocks) == 13 and sum(blocks) == 500
    assert np.array_equal(heads.nearest_neighbours(f, k=9)[0], near[0]) and torch.equal(heads.knn_predict(f, y, f, leave_out=True), said)


def test_stages_are_counted_from_1(data):
    torch.manual_seed(0); enc = Encoder(4)
    for a,b in ((1, -4), (2, -3), (4, -1)): assert torch.equal(encode(enc, data.test_x, stages=(a,)), encode(enc, data.test_x, stages=(b,)))
    assert encode(enc, data.test_x, stages=(1,)).shape[1] == 4
    with pytest.raises(InputError, match='counted from 1'): encode(enc, data.test_x, stages=(0,))
    for wrong in (5, -5): pytest.raises(InputError, encode, enc, data.test_x, stages=(wrong,))


def test_a_start_of_ones_own():
    "Scratch asks a network for its start, whatever it is; without one, each layer's own."
    class Mine(nn.Module):
        channels = 2,
        def __init__(self): super().__init__(); self.conv = nn.Conv2d(3, 2, 4, 4); self.bare = nn.Parameter(torch.ones(2))
        def features(self, x): return [self.conv(x)*self.bare[:, None, None]]
        def start(self): nn.init.normal_(self.conv.weight, 5., .1); nn.init.constant_(self.bare, 3.)
    net = as_contender(None, like=Mine(), size=16).build(0)
    assert 4 < net.conv.weight.mean() < 6 and net.bare.eq(3).all()
    del Mine.start
    with pytest.raises(InputError, match='nothing resets bare'): as_contender(None, like=Mine(), size=16)


def test_a_probe_of_a_module_loads_no_gan():
    code = """if True:
        import sys
        from torch import nn
        from recon_nb import probe, probe_dense
        from recon_nb.labelled import LabelledSet
        from recon_nb.shapes import SHAPES, draw_shapes
        class Mine(nn.Module):
            channels = 8,
            def __init__(self): super().__init__(); self.conv = nn.Conv2d(3, 8, 4, 4)
            def features(self, x): return [self.conv(x)]
        data = LabelledSet('toy', *draw_shapes(100, size=16), *draw_shapes(50, size=16, seed=1), SHAPES)
        from recon_nb.finetune import Recipe
        for mode in ('knn', 'linear', 'finetune'):
            probe(Mine(), data, mode=mode, labels_per_class=3, seeds=1, size=16, progress=False, recipe=Recipe(steps=2, epochs=1) if mode == 'finetune' else None)
        from recon_nb.segmentation import dense_recipe
        probe_dense(Mine(), 'collages', size=16, seeds=1, search=False, photos=9, recipe=dense_recipe(steps=2, epochs=1), progress=False)
        loaded = {m for m in sys.modules if m.split('.')[0] == 'accelerate' or m.startswith('recon_nb.')}
        print(*sorted(loaded & {'accelerate', 'recon_nb.devices', 'recon_nb.trainer', 'recon_nb.steps', 'recon_nb.run', 'recon_nb.export', 'recon_nb.checkpoint', 'recon_nb.losses', 'recon_nb.masks'}))"""
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ''


def test_neighbours_of_raw_pixels_see_where_a_colour_is():
    "Not its mean alone: here two classes have the same colours in other places."
    left = np.zeros((80, 32, 32, 3), np.uint8)
    left[:, :, :16, 0] = left[:, :, 16:, 2] = np.random.default_rng(0).integers(90, 250, (80, 1, 1))
    x, y = np.concatenate([left, left[:, :, ::-1]]), np.repeat([0, 1], 80)
    data = LabelledSet('halves', x[::2], y[::2], x[1::2], y[1::2], ('red left', 'red right'))
    assert probe('pixels', data, mode='knn', labels_per_class=20, seeds=1, size=32, progress=False).mean == 1.


def test_a_task_that_could_not_answer_is_refused_before_anything_is_read():
    from recon_nb.core import InputError
    from recon_nb.finetune import Recipe
    from recon_nb.probing import ProbeTask, run_probe, search_recipe
    class Half(ProbeTask):
        name, modes = 'half', ('linear',)
        def load(self, data, **how): raise AssertionError('nothing may be read')
    with pytest.raises(InputError, match="the task 'half' has no run: see `ProbeTask`"): run_probe(Half(), 'pixels', 'nowhere', mode='linear')
    class More(Half):
        def run(self, setup, seed, i, tick): raise AssertionError
        def recipe(self, mode): return Recipe()
    with pytest.raises(InputError, match="has no fit, rate, choose"): search_recipe(More(), 'pixels', 'nowhere', mode='linear')
