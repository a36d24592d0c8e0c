"""A set on which pretraining can't help: drawn scenes in grey, each class with a tint of its own.

    python benchmarks/tints.py FOLDER

FOLDER/tints/{train,test}/<class>/     PNG of 32 px, all of the same mean brightness

Nothing but the tint tells the classes apart, so raw pixels are enough."""
import argparse
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from recon_nb.shapes import draw_shapes

TINTS = dict(rose=(1, .7, .7), leaf=(.7, 1, .7), sky=(.7, .7, 1), straw=(1, 1, .7))
PARTS = dict(train=4000, test=1000)
BRIGHTNESS = 90                        # mean of the grey scene, of 255


def tint(scenes):
    "Grey scenes of one brightness, the tints in turn: bytes `n h w 3`."
    grey = scenes.mean(3, keepdims=True)
    colours = np.array(list(TINTS.values()))[np.arange(len(scenes)) % len(TINTS)]
    even = BRIGHTNESS*grey/grey.mean((1, 2, 3), keepdims=True)
    return (even*colours[:, None, None]).clip(0, 255).astype('uint8')


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('out', type=Path)
    out = p.parse_args(argv).out/'tints'
    if out.exists(): shutil.rmtree(out)
    pictures = tint(draw_shapes(sum(PARTS.values()), size=32)[0])
    parts = [part for part, n in PARTS.items() for _ in range(n)]
    for i, (part, x) in enumerate(zip(parts, pictures, strict=True)):
        folder = out/part/[*TINTS][i % len(TINTS)]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x).save(folder/f'{i:04d}.png')
    print(f"{out}: {', '.join(f'{n} in {part}' for part, n in PARTS.items())}")
    return 0


if __name__ == '__main__': raise SystemExit(main())
