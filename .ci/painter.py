"""What the page `start/paint_your_photo` paints with: `python .ci/painter.py runs/painter` trains it and writes `nbs/start/paint/`.

A small generator learns on the drawn scenes, a few minutes on one CPU core; stopped, the same line goes on. Its weights after some epochs
become `epoch-*.js`, in half precision, with batch norm multiplied into the convolutions; `pictures.js` holds scenes that it has not seen.
They are scripts, because a page that is opened from a folder may load no other kind of file. `network.js` there computes with them."""
import argparse, base64, io, json, sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT/'nbs/start/paint'
SETTINGS = dict(size=48, visible=.5, width=8, width_dec=16, lambda_adv=0., lr_g=1e-3, bs=32, epochs=6, keep_every=1)
EPOCHS = 1, 2, 6                     # those that the page offers
PICTURES = dict(n=96, seed=2)        # seeds 0 and 1 are the scenes of the set `shapes`
COLUMNS = 12
THEN = {nn.LeakyReLU: 'leaky', nn.ReLU: 'relu', nn.Tanh: 'tanh'}

def train(run_dir):
    "The run, from where it was stopped."
    from recon_nb.training import train_gan
    return train_gan(None, 'quick', run_dir=run_dir, resume=(Path(run_dir)/'config.json').exists(), device='cpu', **SETTINGS)

def fold(conv, norm):
    "Weight and bias of a convolution followed by batch norm, in evaluation mode."
    scale = norm.weight/torch.sqrt(norm.running_var + norm.eps)
    across = (1,-1,1,1) if isinstance(conv, nn.ConvTranspose2d) else (-1,1,1,1)
    bias = conv.bias if conv.bias is not None else 0.
    return conv.weight*scale.view(across), norm.bias + scale*(bias - norm.running_mean)

def describe(conv, stage):
    "A convolution as `network.js` reads it."
    if conv.groups != 1 or conv.dilation != (1,1) or len({*conv.kernel_size}) > 1 or any(getattr(conv, 'output_padding', (0,0))):
        raise ValueError(f'{stage} has {conv}, which nbs/start/paint/network.js does not know')
    return dict(stage=stage, ni=conv.in_channels, nf=conv.out_channels, side=conv.kernel_size[0], stride=conv.stride[0],
                pad=conv.padding[0], transposed=isinstance(conv, nn.ConvTranspose2d), then='none')

def layers_of(gen):
    "The convolutions of a generator, and the weight and bias of each: batch norm and dropout are gone."
    layers, tensors = [], []
    stages = [*gen.enc.named_children(), *gen.dec.named_children()]
    for stage,block in stages:
        for m in block:
            if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
                layers.append(describe(m, stage))
                tensors.append((m.weight, m.bias if m.bias is not None else torch.zeros(m.out_channels)))
                conv = m
            elif isinstance(m, nn.BatchNorm2d): tensors[-1] = fold(conv, m)
            elif type(m) in THEN: layers[-1]['then'] = THEN[type(m)]
            elif not isinstance(m, nn.Dropout): raise ValueError(f'{stage} has {m}, which nbs/start/paint/network.js does not know')
    return layers, tensors

def halves(x):
    "Numbers in half precision, as text."
    if not (np.abs(x) < 65_504).all(): raise ValueError('a weight is too large for half precision')
    return base64.b64encode(np.asarray(x, '<f2').tobytes()).decode()

@torch.no_grad()
def weights_file(run, vectors):
    "One epoch, as a script. `vectors`: the encoder's, of the bundled pictures."
    from recon_nb.masks import window_size
    layers, tensors = layers_of(run.generator.eval())
    numbers = torch.cat([t.flatten() for pair in tensors for t in pair]).numpy()
    changed = {k: v for k,v in SETTINGS.items() if k not in ('bs', 'epochs', 'keep_every')}
    scores = [r for r in run.metrics if r['step'] <= run.step][-1]
    said = dict(epoch=run.epoch, step=run.step, preset=run.cfg.preset, settings=changed, photos=run.info.get('photos', run.cfg.data),
                l1=round(scores['l1'], 4), psnr=round(scores['psnr'], 2), size=run.cfg.size,
                window=window_size(run.cfg.size, run.cfg.visible))
    body = json.dumps({**said, 'layers': layers, 'channels': vectors.shape[1], 'vectors': halves(vectors), 'numbers': halves(numbers)})
    return f'painter.files[{run.epoch}] = {body};\n'

def draw_pictures():
    "The bundled scenes as one JPEG, and as they come out of it."
    from recon_nb.shapes import draw_shapes
    size = SETTINGS['size']
    x, kinds = draw_shapes(PICTURES['n'], size=size, seed=PICTURES['seed'])
    sheet = x.reshape(-1, COLUMNS, size, size, 3).swapaxes(1, 2).reshape(-1, COLUMNS*size, 3)
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, 'jpeg', quality=90, subsampling=0)
    back = np.asarray(Image.open(file).convert('RGB')).reshape(-1, size, COLUMNS, size, 3)
    return file.getvalue(), back.swapaxes(1, 2).reshape(-1, size, size, 3).copy(), kinds

def pictures_file(jpeg, kinds):
    "The bundled scenes, as a script."
    from recon_nb.shapes import SHAPES
    said = dict(size=SETTINGS['size'], columns=COLUMNS, kinds=[SHAPES[k] for k in kinds],
                sheet=f'data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}')
    return f'painter.pictures = {json.dumps(said)};\n'

def export(run_dir, out=OUT, epochs=EPOCHS):
    "Write the scripts. Returns their paths."
    from recon_nb.run import GANRun
    jpeg, pictures, kinds = draw_pictures()
    texts = {'pictures.js': pictures_file(jpeg, kinds)}
    for e in epochs:
        run = GANRun.load(run_dir, epoch=e, device='cpu')
        texts[f'epoch-{e}.js'] = weights_file(run, run.transform(pictures))
    for name,text in texts.items(): (Path(out)/name).write_text(text, encoding='utf-8')
    return [Path(out)/name for name in texts]

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('run_dir', help='the folder of the run; it goes on if there is one')
    run = train(p.parse_args().run_dir)
    for f in export(run.dir): print(f'{f.relative_to(ROOT)}: {f.stat().st_size/1e3:.0f} kB')

if __name__ == '__main__': sys.exit(main())
