"""Three sets of small pictures from VOC2012's cats, dogs, horses, cows and sheep, by their boxes.

    python benchmarks/animals.py VOCdevkit/VOC2012 FOLDER

FOLDER/animals/{train,test}/<class>/    every animal cut out with a margin, labelled
FOLDER/instances/                       the largest animal of each training photo
FOLDER/scenes/                          the centre square of the very same photos

JPEGs of quality 92, short side 64 pixels: small enough to travel to a GPU. The parts are VOC's own,
train and val."""
import argparse
import sys
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image

CLASSES = 'cat', 'dog', 'horse', 'cow', 'sheep'
SIDE, MARGIN, LEAST = 64, .1, 24       # pixels; of the box's sides; pixels, of a box worth cutting


def read_boxes(path):
    "(class, box) of each animal: left, top, right, bottom."
    found = []
    for o in ElementTree.parse(path).iter('object'):
        box = [float(o.find(f'bndbox/{k}').text) for k in ('xmin', 'ymin', 'xmax', 'ymax')]
        if o.findtext('name') in CLASSES: found.append((o.findtext('name'), box))
    return found


def with_margin(box, size):
    "A box a little larger, inside the photo."
    left, top, right, bottom = box
    dx, dy = MARGIN*(right-left), MARGIN*(bottom-top)
    return (max(0, left-dx), max(0, top-dy), min(size[0], right+dx), min(size[1], bottom+dy))


def centre(size):
    "The centre square of a photo, as a box."
    side = min(size)
    left, top = (size[0]-side)/2, (size[1]-side)/2
    return left, top, left+side, top+side


def write(photo, box, path):
    "Cut, shrink to the short side, save."
    w, h = box[2]-box[0], box[3]-box[1]
    k = SIDE/min(w, h)
    small = photo.resize((round(w*k), round(h*k)), Image.Resampling.LANCZOS, box=box)
    path.parent.mkdir(parents=True, exist_ok=True)
    small.save(path, quality=92)


def cut_part(voc, out, part, name):
    "One of VOC's lists; returns how many animals and how many photos were written."
    animals = photos = 0
    for stem in (voc/'ImageSets'/'Main'/f'{name}.txt').read_text().split():
        note, source = voc/'Annotations'/f'{stem}.xml', next(voc.glob(f'JPEGImages/{stem}.*'), None)
        boxes = [(c, b) for c, b in read_boxes(note) if min(b[2]-b[0], b[3]-b[1]) >= LEAST]
        if not (source and boxes): continue
        with Image.open(source) as im: photo = im.convert('RGB')
        for i, (kind, box) in enumerate(boxes):
            write(photo, with_margin(box, photo.size), out/'animals'/part/kind/f'{stem}_{i}.jpg')
        animals, photos = animals+len(boxes), photos+1
        if part == 'test': continue
        largest = max((b for _, b in boxes), key=lambda b: (b[2]-b[0])*(b[3]-b[1]))
        write(photo, with_margin(largest, photo.size), out/'instances'/f'{stem}.jpg')
        write(photo, centre(photo.size), out/'scenes'/f'{stem}.jpg')
    return animals, photos


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('voc', type=Path, help='with JPEGImages, Annotations and ImageSets/Main')
    p.add_argument('out', type=Path)
    a = p.parse_args(argv)
    if not (a.voc/'ImageSets'/'Main'/'train.txt').exists():
        p.error(f'{a.voc} has no ImageSets/Main/train.txt: give the folder VOC2012 of a devkit.')
    for part, name in (('train', 'train'), ('test', 'val')):
        n, photos = cut_part(a.voc, a.out, part, name)
        print(f'{part}: {n} animals in {photos} photos')
    return 0


if __name__ == '__main__': sys.exit(main())
