"""Do two versions train alike? `python .ci/same_numbers.py [--base COMMIT] [--updates N]`: for each preset at toy size
the weights after N updates by the code of COMMIT and by the code here, compared bit for bit.

A version before the learning rates were taken at the middle of an update is given today's rates (`--base` 0.1.0)."""
import argparse, os, subprocess, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

CHILD = '''
import sys, json, math
import numpy as np, torch
torch.set_num_threads(1)
from safetensors.torch import save_file
from recon_nb.config import PRESETS, get_preset
from recon_nb.photos import Photos
from recon_nb.shapes import draw_shapes
out, updates, names = sys.argv[1], int(sys.argv[2]), sys.argv[3].split()
try:
    from recon_nb.batches import batch_index, fetch, teach
    from recon_nb.state import make_state
    from recon_nb.steps import set_lr, train_step
    from recon_nb.task import make_task
except ImportError:                                # before training was split into pages
    from recon_nb import trainer
    from recon_nb.trainer import batch_index, fetch, lr_factor, make_state, make_task, teach, train_step
    def set_lr(st):
        f = lr_factor(st.cfg.schedule, (st.step+.5)/st.total_steps, warmup=st.cfg.warmup)
        for opt,lr in ((st.opt_g, st.cfg.lr_g), (st.opt_d, st.cfg.lr_d)):
            for group in opt.param_groups: group['lr'] = lr*f
from recon_nb.teacher import Teacher, fit_codebook
from recon_nb.pixels import to_model
for name in names:
    if name not in PRESETS: continue
    small = dict(size=32, width=4, bs=8, epochs=9)
    if PRESETS[name].width_dec: small['width_dec'] = 4
    if PRESETS[name].target == 'codes': small['teacher'] = 'an/earlier/run'
    cfg = get_preset(name, **small)
    cuts = {k: draw_shapes(48, size=32, share=v)[0] for k,v in make_task(cfg).cuts.items()}
    photos = Photos(cuts=cuts, labels=None, classes=None, names=[str(i) for i in range(48)], skipped=[], held_out=None, source='toy')
    st = make_state(cfg, photos, np.arange(40), np.arange(40, 48))
    gen = st.acc.unwrap_model(st.gen)
    if cfg.teacher:
        torch.manual_seed(0)
        teach(st, fit_codebook(Teacher(gen.enc), [to_model(draw_shapes(200, size=32)[0])]))
    for _ in range(updates):
        set_lr(st)
        train_step(st, fetch(st, batch_index(st), epoch=st.epoch, augment=True))
        st.step += 1
    nets = [('gen', gen)] + ([('disc', st.acc.unwrap_model(st.disc))] if cfg.lambda_adv else [])
    save_file({f'{n}.{k}': v.contiguous() for n,net in nets for k,v in net.state_dict().items()}, f'{out}/{name}.safetensors')
'''


def run(tree, out, updates, names):
    env = {**os.environ, 'PYTHONPATH': str(tree), 'OMP_NUM_THREADS': '1', 'ACCELERATE_USE_CPU': '1'}
    subprocess.run([sys.executable, '-c', CHILD, str(out), str(updates), ' '.join(names)], env=env, cwd=out, check=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--base', default='134e158', help='a commit: 134e158 is version 0.1.0')
    p.add_argument('--updates', type=int, default=20)
    args = p.parse_args()
    from safetensors.torch import load_file
    from recon_nb.config import PRESETS
    with tempfile.TemporaryDirectory() as d:
        old, new, tree = (Path(d)/x for x in ('old', 'new', 'tree'))
        for folder in (old, new, tree): folder.mkdir()
        archive = subprocess.run(['git', 'archive', args.base, 'recon_nb'], cwd=ROOT, capture_output=True, check=True)
        subprocess.run(['tar', '-x', '-C', str(tree)], input=archive.stdout, check=True)
        for where,out in ((tree, old), (ROOT, new)): run(where, out, args.updates, PRESETS)
        differ = 0
        for name in PRESETS:
            if not (old/f'{name}.safetensors').exists():
                print(f'{name:16}not there at the base')
                continue
            a, b = (load_file(x/f'{name}.safetensors') for x in (old, new))
            shapes = [{k: v.shape for k,v in x.items()} for x in (a, b)]
            if shapes[0] != shapes[1]:
                differ += 1
                print(f'{name:16}other networks')
                continue
            gap = max((a[k].double()-b[k].double()).abs().max().item() for k in a)
            differ += gap > 0
            print(f"{name:16}{'bit for bit' if gap == 0 else f'largest difference of a weight {gap:.1e}'}")
    return int(differ > 0)


if __name__ == '__main__': sys.exit(main())
