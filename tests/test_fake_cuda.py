"""A dry run of the device paths without a GPU: the library's own functions on PyTorch's fake CUDA tensors.
Those have a device, a type and a shape, and no numbers.

It finds a tensor that was left on the CPU and meets one on the device, a type that does not fit, an operation that the device lacks.
It can't run PyTorch's autograd engine, which asks for a real device. `Answers` stands in for it: `backward` walks the graph of a loss,
checks that every weight in it lies on the device, and gives each an empty gradient, so that the optimisers run, too; `autograd.grad`
gives zeros. So the backward operations themselves are not tried. Numbers that the host reads from the device are made up. What is decided
by such numbers is not covered: heads fitted by L-BFGS, the teacher's codebook."""
from contextlib import contextmanager
from functools import wraps
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import convert_outputs_to_fp32
from recon_nb import choices, machine
from recon_nb.config import PRESETS, get_preset
from recon_nb.data import load_photos
from recon_nb.segmentation import dense_recipe, fit_segmenter, segment
from recon_nb.features import encode
from recon_nb.finetune import Recipe, classify, finetune, fit_paper_head, paper_recipe
from recon_nb.heads import Linear, knn_predict
from recon_nb.task import make_task
from recon_nb.run import GANRun
from recon_nb.shapes import draw_shapes
from recon_nb.teacher import Teacher
from recon_nb.evaluation import evaluate
from recon_nb.batches import fetch, teach
from recon_nb.state import make_state
from recon_nb.trainer import fit, save
from recon_nb.steps import set_lr, train_step
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from versions import NO_FAKE_CUDA, OLD_TORCH

pytestmark = pytest.mark.skipif(OLD_TORCH, reason=NO_FAKE_CUDA)

PICTURES = [p for p in PRESETS if make_task(get_preset(p)).has_picture]
PHOTOS = draw_shapes(40, size=32)[0]


class Answers(TorchFunctionMode):
    "Answers in place of a device: what the host reads from it, and what autograd's engine would leave behind."
    def __init__(self):
        super().__init__()
        self.backwards = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.item, torch.Tensor.__float__): return 1.
        if func is torch.Tensor.__int__: return 9
        if func in (torch.equal, torch.Tensor.equal, torch.Tensor.__bool__): return True
        if func is torch.Tensor.tolist: return np.ones(args[0].shape).tolist()
        if func is torch.Tensor.numpy: return self.numpy(args[0])
        if func is torch.Tensor.__deepcopy__: return args[0].detach().clone()          # there is no memory to copy
        if func is torch.Tensor.backward: return self.backward(args[0])
        if func is torch.autograd.grad: return [torch.zeros_like(x) for x in (args[1] if isinstance(args[1], tuple) else args[1:2])]
        return func(*args, **(kwargs or {}))

    def numpy(self, x):
        assert x.device.type == 'cpu', f'an array is made of a tensor on {x.device}'
        return np.zeros(x.shape, str(x.dtype).removeprefix('torch.'))

    def backward(self, loss):
        assert loss.device.type == 'cuda' and loss.ndim == 0, f'a loss of shape {tuple(loss.shape)} on {loss.device}'
        self.backwards += 1
        todo, seen = [loss.grad_fn], {None}
        while todo:
            node = todo.pop()
            if node in seen: continue
            seen.add(node)
            todo += [n for n,_ in node.next_functions]
            weight = getattr(node, 'variable', None)
            if weight is not None:
                assert weight.device.type == 'cuda', f'a weight on {weight.device}'
                weight.grad = torch.zeros_like(weight)


@contextmanager
def autocast(kind, dtype):
    "What torch.autocast does; that one declines where there is no GPU."
    assert kind == 'cuda'
    was = torch.is_autocast_enabled('cuda'), torch.get_autocast_dtype('cuda')
    torch.set_autocast_enabled('cuda', True); torch.set_autocast_dtype('cuda', dtype)
    try: yield
    finally: torch.set_autocast_enabled('cuda', was[0]); torch.set_autocast_dtype('cuda', was[1]); torch.clear_autocast_cache()


class FakeAccelerator(Accelerator):
    "One process on a CUDA device that is not there. Networks are wrapped as Accelerate does it."
    def __init__(self, precision='no'):
        self.state = SimpleNamespace(device=torch.device('cuda'), mixed_precision=precision, num_processes=1,
                                     process_index=0, is_main_process=True)
        self.scaler = None

    def prepare(self, *objects):
        for net in objects:
            if isinstance(net, nn.Module) and self.mixed_precision == 'bf16': net.forward = self.in_bf16(net.forward)
        return objects

    def in_bf16(self, forward):
        @wraps(forward)
        def call(*args):
            with autocast('cuda', torch.bfloat16): return forward(*args)
        return convert_outputs_to_fp32(call)

    def unwrap_model(self, net, **_): return net
    def backward(self, loss, **_): loss.backward()


def move(net, device=None, memory_format=None):
    "nn.Module.to for fake tensors, whose weights can't be exchanged in place. The memory's layout stays."
    if device is None: return net
    for m in net.modules():
        for k,p in m._parameters.items():
            if p is not None and p.device.type != torch.device(device).type:
                m._parameters[k] = nn.Parameter(p.detach().to(device), requires_grad=p.requires_grad)
        for k,b in m._buffers.items():
            if b is not None: m._buffers[k] = b.to(device)
    return net


def pin(x):
    "Pinned memory that is none: a tensor that was put there says so."
    x = x.clone()
    x.there = True
    return x


class AtOnce:
    "In place of a thread, for which fake tensors are not made."
    def __init__(self, *_): pass
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def shutdown(self, **_): pass
    def submit(self, f, *args):
        made = f(*args)
        return SimpleNamespace(result=lambda: made)


@pytest.fixture
def device(monkeypatch):
    "Everything inside happens on fake tensors; gives the `Answers`."
    fork_rng = torch.random.fork_rng
    monkeypatch.setattr(AcceleratorState, '_shared_state', {})                              # the stand-in's state ends with the test
    monkeypatch.setattr(torch.random, 'fork_rng', lambda devices: fork_rng(devices=[]))      # the device has no random numbers
    monkeypatch.setattr(nn.Module, 'to', move)
    monkeypatch.setattr(torch, 'autocast', autocast)
    monkeypatch.setattr(machine, 'ThreadPoolExecutor', AtOnce)
    monkeypatch.setattr(torch.Tensor, 'pin_memory', pin)
    monkeypatch.setattr(torch.Tensor, 'is_pinned', lambda x: getattr(x, 'there', False))
    monkeypatch.setattr(choices, 'check_mask', lambda mask, *_, **__: mask)                  # it counts what is hidden
    with FakeTensorMode(allow_non_fake_inputs=True), Answers() as answers: yield answers


def make(preset, precision='no', **overrides):
    "The state of a small run on the fake device, with a teacher if it needs one."
    teacher = dict(teacher='earlier') if preset == 'second-round' else {}
    cfg = get_preset(preset, size=32, width=8, precision=precision, **teacher, **overrides)
    photos = load_photos(PHOTOS, size=32, cuts=make_task(cfg).cuts, progress=False)
    st = make_state(cfg, photos, np.arange(32), np.arange(32, 40), acc=FakeAccelerator(precision))
    if teacher: teach(st, Teacher(st.nets[0].enc))
    return st


def devices(tensors): return {t.device.type for t in tensors}


def an_encoder(): return make('paper-sb').nets[0].enc


@pytest.mark.parametrize('precision', ['no', 'bf16'])
@pytest.mark.parametrize('preset', PRESETS)
def test_training_step(device, preset, precision):
    st, types = make(preset, precision), set()
    st.nets[0].enc.conv1.register_forward_hook(lambda m, x, y: types.add(y.dtype))
    assert devices(p for net in st.nets for p in net.parameters()) == {'cuda'}
    s = fetch(st, np.arange(8), augment=True)
    assert devices([s.i_in, s.i_r, s.hidden, *s.goals, *s.asked]) == {'cuda'}
    set_lr(st)
    losses = train_step(st, s)
    assert devices(losses.values()) == {'cuda'}
    assert ('loss_d' in losses) == ('d_real' in losses) == bool(st.cfg.lambda_adv) and 'loss_g' in losses
    assert device.backwards == len([k for k in losses if k.startswith('loss')])
    assert types == {torch.bfloat16 if precision == 'bf16' else torch.float32}
    states = [v for opt in st.opts for s in opt.state.values() for v in s.values()]
    assert states and devices(states) == {'cuda'}                                     # the optimisers have moved
    st.step, st.pending = 1, [(1, losses)]
    save(st)                                    # reads the losses; without a folder nothing is written
    assert st.losses['loss_g'] == 1.


@pytest.mark.parametrize('field', ['i_in', 'goals', 'asked'])
def test_a_part_of_a_batch_left_on_the_cpu_is_found(device, field):
    "Proof that the dry run can fail: scale & bias together with L1 uses each of these."
    st = make('paper-sb', lambda_idt=1., idt_region='hidden')
    s = fetch(st, np.arange(8))
    train_step(st, s)
    part = getattr(s, field)
    left = part.cpu() if torch.is_tensor(part) else tuple(x.cpu() for x in part)
    with pytest.raises(RuntimeError, match='same device'): train_step(st, s._replace(**{field: left}))


def test_a_weight_left_on_the_cpu_is_found(device):
    st = make('paper-sb')
    st.disc.cpu_too = nn.Parameter(torch.zeros(()))          # a single number may meet any device: only the walk through the graph sees it
    forward = st.disc.forward
    st.disc.forward = lambda x: forward(x) + st.disc.cpu_too
    with pytest.raises(AssertionError, match='a weight on cpu'): train_step(st, fetch(st, np.arange(8)))


def test_an_array_made_on_the_device_is_found(device):
    with pytest.raises(AssertionError, match='an array is made of a tensor on cuda'): torch.zeros(2, device='cuda').numpy()


@pytest.mark.parametrize('preset', PRESETS)
def test_evaluation(device, preset, tmp_path):
    "Scores, the grid and the snapshot, in the run folder."
    st = make(preset, 'bf16')
    st.run_dir = tmp_path
    row = evaluate(st)
    scores = {k for k in row if k not in ('step','epoch','n')}
    assert row['n'] == 8 and scores and all(np.isfinite(row[k]) for k in scores)
    pictures = {'epoch-0000.png', 'epoch-0000.webp', 'held-out.webp'} if preset in PICTURES else set()
    assert {p.name for p in (tmp_path/'samples').glob('*')} == pictures


@pytest.mark.parametrize('preset', PICTURES)
def test_painting(device, preset, tmp_path):
    st = make(preset)
    run = GANRun(tmp_path, st.cfg, st.gen_net, st.disc_net)
    assert run.device.type == 'cuda'
    assert all(x.shape == (4,32,32,3) and x.dtype == np.uint8 for x in run.reconstruct(PHOTOS[:4]))


def test_features_of_photos(device, tmp_path):
    st = make('improved')
    run = GANRun(tmp_path, st.cfg, st.nets[0], None)
    assert run.transform(PHOTOS[:5], bs=2).shape == (5,64) and run.transform(PHOTOS[:5], stage=2, pool=False).shape == (5,16,8,8)


def test_the_teacher(device):
    st = make('second-round')
    teacher = st.task.target.teacher
    assert devices([*teacher.parameters(), *teacher.buffers()]) == {'cuda'}
    s = fetch(st, np.arange(8), augment=True)
    for codes in (teacher(s.i_r), *s.goals): assert (codes.device.type, codes.dtype, codes.shape) == ('cuda', torch.int64, (8,2,2))
    st.task.target.teacher = move(teacher, 'cpu')
    with pytest.raises(RuntimeError, match='same device'): fetch(st, np.arange(8))


def test_encoding_for_probes(device):
    "Features come back to the CPU; heads compute on the device."
    f = encode(an_encoder(), PHOTOS, stages=(-3,-2,-1), side=2, bs=16, device='cuda', remember=False)
    assert (f.device.type, f.shape) == ('cpu', (40, 4*(16+32+64)))
    head = Linear(*(x.to('cuda') for x in (f.mean(0), f.std(0), torch.zeros(10, f.shape[1]+1))), l2=1.)
    assert head.predict(f.to('cuda')).device.type == 'cuda'
    with pytest.raises(RuntimeError, match='same device'): head.predict(f)


@pytest.mark.parametrize('recipe', [
    Recipe(steps=2, epochs=1, bs=16), Recipe(steps=2, epochs=1, bs=16, precision='bf16', head_first=True, layer_decay=.5),
    paper_recipe(steps=2, epochs=1)])
def test_fine_tuning(device, recipe):
    enc, y, types = an_encoder(), np.arange(40) % 10, set()
    enc.conv1.register_forward_hook(lambda m, x, out: types.add(out.dtype) if m.training else None)
    model = finetune(enc, PHOTOS, y, recipe, classes=10, seed=0, device='cuda')
    assert types == {torch.bfloat16 if recipe.precision == 'bf16' else torch.float32}
    assert device.backwards == recipe.updates(40) and devices([*model.parameters(), *model.buffers()]) == {'cuda'}
    assert classify(model, PHOTOS, bs=16, device='cuda').shape == (40,)


def test_the_papers_head(device):
    x, y = torch.zeros(40, 64, device='cuda'), torch.zeros(40, dtype=torch.int64, device='cuda')
    head = fit_paper_head(x, y, classes=10, lr=1e-3, seed=0, steps=2)
    assert device.backwards == 2 and head(x).device.type == 'cuda'


@pytest.mark.parametrize('mode', ['linear', 'finetune'])
def test_segmentation(device, mode):
    masks, r = np.zeros((40,32,32), np.uint8), dense_recipe(steps=2, epochs=1, bs=16)
    model = fit_segmenter(an_encoder(), PHOTOS, masks, r, mode=mode, classes=3, seed=0, device='cuda', remember=False)
    assert device.backwards == 2 and devices([*model.parameters(), *model.buffers()]) == {'cuda'}
    assert segment(model, PHOTOS, bs=16, device='cuda').shape == (40,32,32)


def test_neighbours(device):
    f, y = torch.zeros(40, 64, device='cuda'), torch.zeros(40, dtype=torch.int64, device='cuda')
    with pytest.raises(RuntimeError, match='same device'): knn_predict(f, y, f.cpu())
    assert knn_predict(f, y, f, k=5).device.type == 'cuda'


class Waits:
    """Inside, everything for which a host waits for its device is written down: a number or an array read from it, a copy from it,
    a copy to it from memory that is not pinned, a shape that depends on what the device finds."""
    READS = {torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__bool__, torch.Tensor.__float__, torch.Tensor.__int__,
             torch.Tensor.__index__, torch.Tensor.__array__, torch.Tensor.equal, torch.equal}
    SHAPES = {'_local_scalar_dense', 'nonzero', 'masked_select', 'unique_dim', '_unique2', 'is_nonzero', 'equal', 'repeat_interleave'}

    def __init__(self): self.seen = []

    def __enter__(self):
        waits = self

        class Calls(TorchFunctionMode):
            def __torch_function__(self, func, types, args=(), kwargs=None):
                made = func in (torch.tensor, torch.as_tensor) and 'cuda' in str((kwargs or {}).get('device'))
                if made or func in waits.READS and on_device(args[0]): waits.seen.append(func.__name__)
                return func(*args, **(kwargs or {}))

        class Operations(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                name, kwargs = func.overloadpacket.__name__, kwargs or {}
                if name == '_to_copy' and kwargs.get('device') and not kwargs.get('non_blocking'):
                    if on_device(args[0]) != (torch.device(kwargs['device']).type == 'cuda'): waits.seen.append(f'to {kwargs["device"]}')
                if name == 'copy_' and on_device(args[0]) != on_device(args[1]) and args[1].ndim and not (len(args) > 2 and args[2]):
                    waits.seen.append(name)
                if name in waits.SHAPES and on_device(args[0]): waits.seen.append(name)
                if name in ('index', 'index_put', 'index_put_', '_index_put_impl_') and on_device(args[0]):
                    if any(i is not None and (i.dtype == torch.bool or not on_device(i)) for i in args[1]): waits.seen.append(name)
                return func(*args, **kwargs)

        self.modes = Operations(), Calls()
        for m in self.modes: m.__enter__()
        return self

    def __exit__(self, *e):
        for m in self.modes[::-1]: m.__exit__(*e)

    def take(self):
        seen, self.seen[:] = [*self.seen], []
        return seen


def on_device(x): return isinstance(x, torch.Tensor) and x.device.type == 'cuda'


@pytest.mark.parametrize('preset', PRESETS)
def test_the_loop_waits_for_the_device_where_it_reads_the_losses(device, preset):
    st, steps = make(preset, bs=4, epochs=1, max_steps=7), []
    with Waits() as waits:
        fit(st, [lambda st: steps.append(waits.take()) if st.event in ('begin', 'step') else None], read_every=3, progress=False)
    begin, first, *rest = steps
    assert first in ([], ['to cuda:0'])                                                 # what a mask needs in every step is sent in the first
    assert [{*s} for s in rest] == [set(), {'item'}, set(), set(), {'item'}, {'item'}]     # the third, the sixth, the last


def waits_for(f):
    with Waits() as waits: f()
    return waits.take()


def test_what_makes_a_host_wait_is_seen(device):
    "Proof that the count can fail."
    x, i = torch.zeros(4, 3, device='cuda'), torch.zeros(2, dtype=torch.int64)
    seen = dict(item=lambda: x[0,0].item(), number=lambda: float(x[0,0]), condition=lambda: bool(x[0,0]), list=lambda: x.tolist(), cpu=lambda: x.cpu(),
                pageable=lambda: torch.zeros(4).to('cuda'), made=lambda: torch.tensor([1.], device='cuda'), by_mask=lambda: x.__setitem__(x > 0, x[0,0]),
                by_index=lambda: x[i], into=lambda: x.copy_(torch.zeros(4, 3)))
    assert all(waits_for(f) for f in seen.values()), {k: waits_for(f) for k,f in seen.items()}
    unseen = dict(pinned=lambda: torch.zeros(4).pin_memory().to('cuda', non_blocking=True), sum=lambda: x.sum(), zeros=lambda: torch.zeros(4, device='cuda'),
                  by_index_there=lambda: x[i.to('cuda', non_blocking=True)], of_the_host=lambda: torch.zeros(1).item())
    assert not any(waits_for(f) for f in unseen.values()), {k: waits_for(f) for k,f in unseen.items()}


@pytest.mark.parametrize('recipe', [Recipe(steps=4, epochs=1, bs=16), Recipe(steps=4, epochs=1, bs=16, precision='bf16'), paper_recipe(steps=4, epochs=1)])
def test_fine_tuning_waits_for_nothing(device, recipe):
    steps, y = [], np.arange(40) % 10
    with Waits() as waits: finetune(an_encoder(), PHOTOS, y, recipe, classes=10, seed=0, device='cuda', tick=lambda _: steps.append(waits.take()))
    assert steps[1:] == [[]]*(recipe.updates(40)-1)


@pytest.mark.parametrize('mode', ['linear', 'finetune'])
def test_fine_tuning_for_masks_waits_for_nothing(device, mode):
    steps, masks, r = [], np.zeros((40,32,32), np.uint8), dense_recipe(steps=4, epochs=1, bs=16)
    with Waits() as waits:
        fit_segmenter(an_encoder(), PHOTOS, masks, r, mode=mode, classes=3, seed=0, device='cuda', remember=False, tick=lambda _: steps.append(waits.take()))
    assert steps[1:] == [[]]*3


def test_classes_are_read_once(device):
    model = finetune(an_encoder(), PHOTOS, np.arange(40) % 10, Recipe(steps=1, epochs=1, bs=16), classes=10, seed=0, device='cuda')
    assert waits_for(lambda: classify(model, PHOTOS, bs=8, device='cuda')) == ['to cpu']


def test_the_papers_head_waits_once_an_epoch(device):
    x, y = torch.zeros(40, 64, device='cuda'), torch.zeros(40, dtype=torch.int64, device='cuda')
    waits = waits_for(lambda: fit_paper_head(x, y, classes=10, lr=1e-3, seed=0, steps=6, bs=10))
    assert waits == ['to cuda:0']*(4 + 2)                                               # its weights, and the order of two epochs
