"""No choice is accepted that changes nothing, and no name of a registry is asked for.

A preset with one field changed is either refused, or something comes out differently: weights after three updates, or what the run says
of itself. And a preset whose parts stand in the registries under other names trains to the same bits and says the same."""
import ast, re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import recon_nb
from recon_nb.batches import batch_index, fetch, teach
from recon_nb.config import PRESETS, GANConfig, get_preset
from recon_nb.core import InputError
from recon_nb.discriminator import D_NORMS
from recon_nb.encoder import ENCODERS, Encoder, make_encoder
from recon_nb.losses import ADV
from recon_nb.masks import MASKS, VIEWS
from recon_nb.plugins import REGISTRIES
from recon_nb.state import toy_state
from recon_nb.steps import set_lr, train_step
from recon_nb.targets import TARGETS, Target
from recon_nb.task import make_task
from recon_nb.teacher import Teacher
from recon_nb.training import train_gan

# ---- (a) what is accepted has an effect -----------------------------------------------------------------------------------------------

TOY = dict(size=32, width=4, bs=8, epochs=2)
names = lambda registry: lambda value: [n for n in registry if n != value]
flipped = lambda value: [not value]

OTHERS = {                                                     # field -> what a preset's value is changed to
    'size': lambda v: [48], 'visible': lambda v: [0.6], 'visible_from': lambda v: [0.7], 'visible_mixed': flipped, 'view': names(VIEWS), 'mask': names(MASKS), 'target': names(TARGETS),
    'scale_bias': flipped, 'encoder': lambda v: ['slim'], 'width': lambda v: [6], 'width_d': lambda v: [6], 'between': flipped,
    'decoder': names(('plain', 'reading')), 'width_dec': lambda v: [6], 'dropout': lambda v: [0.3], 'std_last': lambda v: [0.05],
    'adv': names(ADV), 'norm_d': names(D_NORMS), 'lambda_gp': lambda v: [0., 3.], 'lambda_r1': lambda v: [3.], 'clip_d': lambda v: [0., 0.02],
    'n_critic': lambda v: [2], 'lambda_adv': lambda v: [0., 0.5], 'lambda_idt': lambda v: [0., 0.5], 'idt_norm': names(('l1', 'l2')),
    'idt_region': names(('all', 'hidden')), 'lr_g': lambda v: [3e-4], 'lr_d': lambda v: [3e-4], 'schedule': names(('constant', 'cosine')),
    'warmup': lambda v: [0.5], 'optimizer': names(('adam', 'adamw')), 'beta1': lambda v: [0.7], 'beta2': lambda v: [0.97],
    'wd': lambda v: [0.2], 'flip': flipped, 'crop': lambda v: [0.7], 'scale': lambda v: [0.7], 'ratio': lambda v: [4/3], 'store': lambda v: [64], 'light': lambda v: [0.4], 'negative': lambda v: [0.5],
    'teacher': lambda v: ['an/earlier/run'], 'init': lambda v: ['an/earlier/run'], 'stem': lambda v: ['cifar'], 'bs': lambda v: [12], 'accumulate': lambda v: [2], 'seed': lambda v: [1], 'on_purpose': flipped}
SAID = {'preset', 'data', 'valid', 'window', 'epochs', 'max_steps', 'keep_every', 'schema'}         # what they change is what the run writes and announces of itself
MACHINE = {'precision', 'compile', 'fused'}                    # how it is computed, not what


class SlimEncoder(Encoder):
    "Another encoder: without the paper's last stage."
    reductions = 2, 4, 8

    def __init__(self, width:int=64, dropout:float=0.5, between:bool=False):
        super().__init__(width, dropout=dropout, between=between)
        del self.conv4
        self.channels = self.channels[:3]


def test_every_field_is_tried():
    "A new field must say here what its other values are."
    assert {f.name for f in fields(GANConfig)} == {*OTHERS} | SAID | MACHINE


def toy(preset, **overrides):
    "A small state; where a teacher is needed it has one, with codes drawn at random."
    st = toy_state(preset, n=40, **overrides)
    if st.task.target.needs_teacher:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            cfg = st.cfg
            teacher = Teacher(make_encoder(cfg.encoder, width=cfg.width, dropout=cfg.dropout, between=cfg.between))
            teacher.centres.normal_()
        teach(st, teacher)
    return st


def train(st, steps=3):
    "Weights after some updates, and D's loss: hinge and wgan have equal slopes near 0, and another number in the history."
    with torch.random.fork_rng():
        for net in st.nets: net.train()
        for _ in range(steps):
            set_lr(st)
            losses = train_step(st, fetch(st, batch_index(st), epoch=st.epoch, augment=True))
            st.step += 1
    found = {f'{i}.{k}': v for i,net in enumerate(st.nets) for k,v in net.state_dict().items()}
    return {**found, 'loss_d': losses.get('loss_d', torch.zeros(()))}


def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def slim(monkeypatch): monkeypatch.setitem(ENCODERS, 'slim', SlimEncoder)


@pytest.mark.parametrize('preset', PRESETS)
def test_what_is_accepted_has_an_effect(preset, slim):
    base, idle, refused, accepted = train(toy(preset)), [], 0, 0
    assert same(base, train(toy(preset)))                      # else every difference below would mean nothing
    own = replace(PRESETS[preset], **TOY)
    for field,others in OTHERS.items():
        for value in others(getattr(own, field)):
            if value == getattr(own, field): continue
            try: st = toy(preset, **{field: value})
            except InputError: refused += 1; continue
            accepted += 1
            # a teacher is given to whom needs one, and `teach` has shown above what it does; first weights are opened by `train_gan` (test_backbone)
            if field not in ('teacher', 'init') and same(base, train(st)): idle.append(f'{field}={value!r}')
    assert not idle and refused and accepted > 20


def test_the_check_sees_a_choice_without_effect(monkeypatch):
    "Without the rules the same comparison finds what is idle."
    monkeypatch.setattr('recon_nb.state.check_choices', lambda cfg, **_: cfg)
    base = train(toy('improved'))
    assert same(base, train(toy('improved', lr_d=9., n_critic=5))) and not same(base, train(toy('improved', lr_g=9e-3)))


class Whole(Target):
    "The whole photo, what is visible of it, too: there is nothing to put in place of the picture's own pixels."
    everywhere = True


@pytest.mark.parametrize('field, value', [('scale_bias', False), ('idt_region', 'hidden')])
def test_a_picture_asked_everywhere_has_nothing_to_put_in_place(field, value, monkeypatch):
    monkeypatch.setitem(TARGETS, 'whole', Whole)
    how = dict(target='whole', lambda_idt=1.)
    with pytest.raises(InputError, match=f'{field}={value!r} has no effect'): toy('paper-sb', **how, **{field: value})
    monkeypatch.setattr('recon_nb.state.check_choices', lambda cfg, **_: cfg)
    assert same(train(toy('paper-sb', **how)), train(toy('paper-sb', **how, **{field: value})))


@pytest.mark.parametrize('field, value', [('data', 'elsewhere'), ('valid', 0.3), ('epochs', 9)])
def test_what_a_run_says_of_itself(field, value):
    "Data, split and length need not change a weight of three updates; the config that is written says them."
    assert get_preset('quick', **{field: value}).to_json() != get_preset('quick').to_json()

# ---- (b) nobody asks for names ---------------------------------------------------------------------------------------------------------

def photos(n, size=48):
    "Smooth coloured waves, as bytes."
    at, k = np.linspace(0, 1, size), np.arange(n)[:,None,None,None]
    wave = np.sin(at[None,:,None,None]*(3+k%5) + at[None,None,:,None]*(2+k%7) + np.arange(3)*(1+k%3))
    return ((wave+1)*127.5).astype(np.uint8)


def without_measures(text):
    "What a run says, without the times and the memory that it measured."
    return re.sub(r'about .*? on cpu|done in [^:]*', '', text)


def whole_run(preset, folder, capsys, teacher=None):
    "An epoch of three updates: weights, scores, what was said, what was written about it."
    n, given = 40, {}
    if make_task(PRESETS[preset]).target.needs_teacher: n, given = 150, dict(teacher=teacher/'improved')          # so many for its codes
    capsys.readouterr()
    run = train_gan(photos(n), preset, run_dir=folder/preset, size=32, width=4, bs=3*n//10, epochs=1, **given)
    said = without_measures(capsys.readouterr().out.replace(str(folder), ''))
    weights = {f'{i}.{k}': v for i,net in enumerate((run.generator, run.disc)) if net is not None for k,v in net.state_dict().items()}
    return weights, run.metrics, said, run.info['trivial']


def rename(monkeypatch):
    "Every built-in part under another name, and under that one alone; the presets follow."
    for registry in REGISTRIES.values():
        for name,part in [*registry.items()]:
            monkeypatch.delitem(registry, name)
            monkeypatch.setitem(registry, f'x-{name}', part)
    for name,cfg in [*PRESETS.items()]:
        monkeypatch.setitem(PRESETS, name, replace(cfg, **{field: f'x-{getattr(cfg, field)}' for field in REGISTRIES}))


def test_nobody_asks_for_names(tmp_path, capsys, monkeypatch):
    as_built = {p: whole_run(p, tmp_path/'as built', capsys, tmp_path/'as built') for p in PRESETS}
    rename(monkeypatch)
    for preset,(weights,rows,said,trivial) in as_built.items():
        other = whole_run(preset, tmp_path/'renamed', capsys, tmp_path/'renamed')
        assert same(weights, other[0]), preset
        assert (rows, trivial) == (other[1], other[3]) and len(rows) == 1, preset
        assert said == other[2].replace('x-', '') and f'{preset} on ' in said, preset

# ---- (c) and no line compares with one -------------------------------------------------------------------------------------------------

NAMES = {name for registry in (*REGISTRIES.values(), PRESETS) for name in registry}
IN_PLACE = "what may stand in place of an encoder: 'pixels' for none at all; no target is meant"
EXCEPTIONS = {(module, 'pixels'): IN_PLACE for module in ('answer', 'card', 'cli', 'contenders', 'experiments', 'figures')}     # (module, name) -> why it is asked for


def constants(node):
    "Text constants of an expression, those inside a tuple, list or set too."
    if isinstance(node, ast.Constant): return [node.value] if isinstance(node.value, str) else []
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)): return [c for e in node.elts for c in constants(e)]
    return []


def asked_for(source):
    "(line, name) of each name of a registry that stands in a comparison, a membership test or a `case`."
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare): sides = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue): sides = [node.value]
        elif isinstance(node, ast.Call) and getattr(node.func, 'attr', '') in ('startswith', 'endswith', '__eq__', '__contains__'): sides = node.args
        else: continue
        found += [(sides[0].lineno, c) for side in sides for c in constants(side) if c in NAMES]
    return found


@pytest.mark.parametrize('line', ["cfg.target == 'codes'", "'improved' != name", "cfg.view in ('canvas', 'own')", "cfg.adv not in {'wgan'}",
                                  "name.startswith('wgan')", "x = 1 if a == 'zoom' else 2"])
def test_the_check_of_names_sees(line): assert len(asked_for(line)) == 1


@pytest.mark.parametrize('line', ["PRESETS['quick']", "ADV = {'bce': 1}", "f(target='codes')", "cfg.decoder == 'reading'"])
def test_the_check_of_names_lets_pass(line): assert not asked_for(line)


def test_no_line_compares_with_a_name():
    found = {}
    for path in sorted(Path(recon_nb.__file__).parent.glob('*.py')):
        for line,name in asked_for(path.read_text(encoding='utf-8')): found.setdefault((path.stem, name), []).append(line)
    assert found.keys() == EXCEPTIONS.keys(), found
