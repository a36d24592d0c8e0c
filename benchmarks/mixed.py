"""Photos of one kind, with a few of the target's own among them.

    python benchmarks/mixed.py FOLDER/scenes FOLDER/cifar10/train FOLDER

FOLDER/mixed-1/      the photos of the first folder, and 1 % of the second's
FOLDER/mixed-10/     the same with 10 %

Copies of files, in subfolders others/ and own/; no label comes along. Which ones are chosen depends
on their names alone, so that the 1 % are among the 10 %."""
import argparse
import shutil
import sys
import zlib
from pathlib import Path

from recon_nb.data import _list_photos

SHARES = 1, 10                         # per cent


def mix(others, own, out, share):
    "Copy both kinds of photos into a new folder; returns how many of each."
    if out.exists(): shutil.rmtree(out)
    names = [[row[0] for row in _list_photos(root)] for root in (others, own)]
    by_hash = sorted(names[1], key=lambda n: (zlib.crc32(n.encode()), n))
    chosen = names[0], by_hash[:round(len(by_hash)*share/100)]
    for root, kind, some in zip((others, own), ('others', 'own'), chosen, strict=True):
        (out/kind).mkdir(parents=True)
        for n in some: shutil.copyfile(root/n, out/kind/n.replace('/', '-'))
    return [*map(len, chosen)]


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('others', type=Path, help='photos of another kind')
    p.add_argument('own', type=Path, help="the target's training images, in any subfolders")
    p.add_argument('out', type=Path)
    a = p.parse_args(argv)
    for folder in (a.others, a.own):
        if not folder.is_dir(): p.error(f'{folder} is no folder.')
    for share in SHARES:
        others, own = mix(a.others, a.own, a.out/f'mixed-{share}', share)
        print(f'mixed-{share}: {others} others, {own} own')
    return 0


if __name__ == '__main__': sys.exit(main())
