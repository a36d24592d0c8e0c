"Photos and labels as people have them: each kind gives the right pixels, each wrong one a sentence with the line that would do it."
import io, re, warnings

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, Subset

from recon_nb import cli
from recon_nb.core import InputError
from recon_nb.data import load_photos, split_photos
from recon_nb.labelled import LabelledSet, load_labelled
from recon_nb.overlap import overlap
from recon_nb.photos import cut_photos, list_photos
from recon_nb.shapes import draw_shapes
from recon_nb.training import train_gan

HOW = dict(size=24, cuts=dict(i_r=1., i_in=1/3), workers=1, progress=False)
SCENES, Y = draw_shapes(12, size=24, seed=4)
Y = Y % 2
GREY = SCENES[..., 0]
PILS = [Image.fromarray(x) for x in SCENES]


class Scenes(torch.utils.data.Dataset):
    "Map-style, in any form of item."
    def __init__(self, item, n=12): self.item, self.n, self.asked = item, n, []
    def __len__(self): return self.n
    def __getitem__(self, i):
        self.asked.append(i)
        return self.item(i)

class Forwards(IterableDataset):
    def __iter__(self): return iter(SCENES)

class ClassLabel: names = ['even', 'odd']
class Image_: pass
Image_.__name__ = 'Image'

class Hub:
    "What a table of Hugging Face's `datasets` can do, without it."
    def __init__(self, rows, **features): self.rows, self.features, self.column_names = rows, features, list(rows)
    def __len__(self): return len(next(iter(self.rows.values())))
    def __getitem__(self, i): return self.rows[i] if isinstance(i, str) else {k: v[i] for k,v in self.rows.items()}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch): monkeypatch.setenv('RECON_NB_CACHE', str(tmp_path/'cache'))

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp('photos')
    for i,im in enumerate(PILS):
        p = root/('even', 'odd')[Y[i]]/f'{i:02}.png'
        p.parent.mkdir(exist_ok=True)
        im.save(p)
    names = [f"{('even', 'odd')[Y[i]]}/{i:02}.png" for i in range(12)]
    frame = pd.DataFrame(dict(path=names, label=[('even', 'odd')[y] for y in Y]))
    frame.to_csv(root/'list.csv', index=False)
    frame.to_csv(root/'list.tsv', sep='\t', index=False)
    frame.rename(columns=dict(path='where', label='class')).to_csv(root/'odd names.csv', index=False)
    frame.assign(split=['train', 'test', 'train']*4).to_csv(root/'split.csv', index=False)
    (root/'even/notes.txt').write_text('no photo')
    return root

def by_number(home): return sorted(home.rglob('*.png'), key=lambda p: p.name)
def frame_of(home): return pd.DataFrame(dict(image=[str(p) for p in by_number(home)], target=Y))
def encoded(im):
    buf = io.BytesIO()
    im.save(buf, 'PNG')
    return buf.getvalue()
def hub(**more): return Hub(dict(image=PILS, label=Y.tolist(), **more), image=Image_(), label=ClassLabel())
def floats(i): return torch.from_numpy(SCENES[i]).permute(2,0,1)/255


# --- to train on, to reconstruct, to transform ---

KINDS = {
    'a folder': lambda d: d,
    'its name as text': lambda d: str(d),
    'a pattern': lambda d: f'{d}/*/*.png',
    'a deep pattern': lambda d: f'{d}/**/*.png',
    'a Path with stars': lambda d: d/'*/*.png',
    'Path.glob': lambda d: d.glob('*/*.png'),
    'paths': by_number,
    'paths as text': lambda d: [str(p) for p in by_number(d)],
    'a tuple of folders': lambda d: (d/'even', d/'odd'),
    'a set of paths': lambda d: {*by_number(d)},
    'a column of paths': lambda d: frame_of(d)['image'],
    'an array of paths': lambda d: np.array([str(p) for p in by_number(d)]),
    'a CSV': lambda d: d/'list.csv',
    'a CSV as text': lambda d: str(d/'list.csv'),
    'a TSV': lambda d: d/'list.tsv',
    'a CSV with other names': lambda d: d/'odd names.csv',
    'a DataFrame': frame_of,
    'a DataFrame of bytes': lambda d: pd.DataFrame(dict(image=[encoded(im) for im in PILS])),
    'a DataFrame of dicts': lambda d: pd.DataFrame(dict(image=[dict(bytes=encoded(im), path=None) for im in PILS])),
    'PIL images': lambda d: PILS,
    'open files': lambda d: [open(p, 'rb') for p in by_number(d)],
    'paths and images': lambda d: [*by_number(d)[:6], *PILS[6:]],
    'images and arrays': lambda d: [*PILS[:6], *SCENES[6:]],
    'bytes (n, h, w, 3)': lambda d: SCENES,
    'bytes (n, 3, h, w)': lambda d: SCENES.transpose(0, 3, 1, 2),
    'a tensor': lambda d: torch.from_numpy(SCENES).permute(0, 3, 1, 2),
    'a list of tensors': lambda d: [torch.from_numpy(x).permute(2, 0, 1) for x in SCENES],
    'a Dataset of images': lambda d: Scenes(lambda i: PILS[i]),
    'a Dataset of pairs': lambda d: Scenes(lambda i: (PILS[i], int(Y[i]))),
    'a Dataset of bytes': lambda d: Scenes(lambda i: (SCENES[i], Y[i])),
    'a Dataset of tensors': lambda d: Scenes(lambda i: (torch.from_numpy(SCENES[i]).permute(2, 0, 1), Y[i])),
    'a Dataset of dicts': lambda d: Scenes(lambda i: dict(image=PILS[i], label=Y[i])),
    'a Subset': lambda d: Subset(Scenes(lambda i: (PILS[i%12], 0), 20), range(12)),
    'a hub table': lambda d: hub(),
    'a hub table of paths': lambda d: Hub(dict(path=[str(p) for p in by_number(d)])),
    'a hub table of dicts': lambda d: Hub(dict(image=[dict(bytes=encoded(im), path=None) for im in PILS]), image=Image_()),
    'a DatasetDict': lambda d: dict(train=hub()),
}

@pytest.mark.parametrize('kind', KINDS, ids=lambda k: k.replace(' ', '-'))
def test_each_kind_gives_the_right_pixels(home, kind):
    "The same twelve photos; a folder's order is that of its names, so they are compared by what is in them."
    photos = load_photos(KINDS[kind](home), **HOW)
    assert {x.tobytes() for x in photos.cuts['i_r']} == {x.tobytes() for x in SCENES} and len(photos) == 12 and not photos.skipped
    cut = cut_photos(KINDS[kind](home), size=24)                                              # reconstruct and transform come through here
    assert {x.tobytes() for x in cut} == {x.tobytes() for x in SCENES} and len(cut) == 12
    assert {*photos.content_ids()[:,1]} == {*load_photos(SCENES, **HOW).content_ids()[:,1]}    # and all are known to be the same

@pytest.mark.parametrize('kind', ['paths', 'a CSV', 'a DataFrame', 'PIL images', 'bytes (n, h, w, 3)', 'a Dataset of pairs', 'a hub table'])
def test_a_given_order_is_kept(home, kind):
    assert (load_photos(KINDS[kind](home), **HOW).cuts['i_r'] == SCENES).all()

GREYS = {'(n, h, w)': GREY, '(n, h, w, 1)': GREY[..., None], '(n, 1, h, w)': GREY[:, None], 'a tensor': torch.from_numpy(GREY), 'a list': [*GREY],
         'a Dataset': Scenes(lambda i: Image.fromarray(GREY[i])), 'tensors in a Dataset': Scenes(lambda i: torch.from_numpy(GREY[i])[None])}

@pytest.mark.parametrize('kind', GREYS, ids=lambda k: k.replace(' ', '-'))
def test_grey_photos_have_three_equal_colours(kind):
    assert (load_photos(GREYS[kind], **HOW).cuts['i_r'] == GREY[..., None]).all()

@pytest.mark.parametrize('one', [SCENES[0], SCENES[0].transpose(2, 0, 1), torch.from_numpy(SCENES[0]), PILS[0], [SCENES[0]], SCENES[:1]], ids=range(6))
def test_one_photo_by_itself(one): assert (cut_photos(one, size=24) == SCENES[0]).all()

def test_one_grey_photo_and_several(): assert len(list_photos(GREY[0])) == 1 and len(list_photos(GREY)) == 12

def test_floats_of_a_dataset_are_said():
    with pytest.warns(UserWarning, match='taken as white = 1'): got = load_photos(Scenes(lambda i: (floats(i), 0)), **HOW)
    assert (got.cuts['i_r'] == SCENES).all()

def test_floats_of_a_table_are_said_and_a_normalised_one_is_refused():
    table = lambda photos: pd.DataFrame(dict(image=photos, label=Y.tolist()))
    with pytest.warns(UserWarning, match='the table gives floats from 0 to 1: taken as white = 1. For bytes as they are give uint8'): got = load_photos(table([*SCENES/255]), **HOW)
    assert (got.cuts['i_r'] == SCENES).all()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert (load_photos(table([*SCENES]), **HOW).cuts['i_r'] == SCENES).all()
    with pytest.raises(InputError, match=re.escape('x*std+mean')): list_photos(table([*(SCENES/255-.5)/.5]))

def test_a_dataset_is_gone_through_once():
    "Once for its photos and labels, and once more for the first item, which says what it is."
    data = Scenes(lambda i: (PILS[i], int(Y[i])))
    photos = load_photos(data, **HOW)
    assert sorted(data.asked) == [0, *range(12)] and (photos.labels == Y).all() and photos.classes == ('0', '1')
    list_photos(data)
    assert len(data.asked) == 14                                                              # nothing is opened in advance

def test_a_table_knows_labels_and_what_is_held_out(home):
    photos = load_photos(home/'split.csv', **HOW)
    assert [photos.classes[y] for y in photos.labels] == [('even', 'odd')[y] for y in Y] and photos.name == 'split'
    assert split_photos(photos)[1].tolist() == [1, 4, 7, 10]

def test_where_a_table_looks_for_its_photos(home, tmp_path):
    pd.read_csv(home/'list.csv').to_csv(tmp_path/'far.csv', index=False)
    with pytest.raises(InputError, match='root='): load_photos(tmp_path/'far.csv', **HOW)
    for data in (tmp_path/'far.csv', pd.read_csv(home/'list.csv')): assert (load_photos(data, root=home, **HOW).cuts['i_r'] == SCENES).all()

def test_files_named_one_by_one_go_through_the_cache(home, monkeypatch):
    load_photos(by_number(home), **HOW)
    monkeypatch.setattr('recon_nb.photos.open_rgb', lambda *a, **k: pytest.fail('a photo was opened again'))
    assert (load_photos([str(p) for p in by_number(home)], **HOW).cuts['i_r'] == SCENES).all()

def test_nothing_is_dropped_in_silence(home, tmp_path):
    (tmp_path/'torn.png').write_bytes(encoded(PILS[0])[:100])
    with pytest.warns(UserWarning, match='skipped 2 of 14.*torn.png'): got = load_photos([*by_number(home), tmp_path/'torn.png', tmp_path/'gone.png'], **HOW)
    assert len(got) == 12
    with pytest.warns(UserWarning, match='skipped 1 of 13'): got = load_photos([*PILS, io.BytesIO(b'no photo')], **HOW)
    assert got.names == [str(i) for i in range(12)]
    with pytest.warns(UserWarning, match='3 of 15 photos are given twice'): assert len(load_photos([*by_number(home), *by_number(home)[:3]], **HOW)) == 12
    with pytest.raises(InputError, match='2 of 3 photos'): load_photos([PILS[0], io.BytesIO(b'no'), io.BytesIO(b'no')], **HOW)

def listing(home, path): path.write_text(''.join(f'{p}\n' for p in by_number(home))); return path
def touched(path):
    path.touch()
    return path

WRONG = {   # what is given -> (the line that would do it, how it is made)
    'nothing': ("'photos'", lambda d, t: None),
    'an empty text': ("'photos'", lambda d, t: ''),
    'no such set': ("Did you mean 'voc2012'", lambda d, t: 'voc2021'),
    'a name on the hub': ("datasets.load_dataset('someone/birds', split='train')", lambda d, t: 'someone/birds'),
    'an address': ('curl -LO https://x.org/a.zip', lambda d, t: 'https://x.org/a.zip'),
    'a pattern without a match': ("/**/*.jpg'", lambda d, t: f'{d}/even/*.jpg'),
    'an archive': ("shutil.unpack_archive(", lambda d, t: touched(t/'a.zip')),
    'a packed tar': ("shutil.unpack_archive(", lambda d, t: touched(t/'a.tar.gz')),
    'a video': ('ffmpeg -i', lambda d, t: touched(t/'a.mp4')),
    'a file of numpy': ('np.load(', lambda d, t: touched(t/'a.npy')),
    'several arrays': ("['arr_0']", lambda d, t: touched(t/'a.npz')),
    'a list in a text': ('.read_text().splitlines()', lambda d, t: listing(d, t/'a.txt')),
    'a diary': ('Notizen.txt is no photo by its name', lambda d, t: touched(t/'Notizen.txt')),
    'a text that names none': ('It is a text, and its first line names no photo.', lambda d, t: touched(t/'a.txt')),
    'a sheet': ('pd.read_excel(', lambda d, t: touched(t/'a.xlsx')),
    'JSON': ('pd.read_json(', lambda d, t: touched(t/'a.jsonl')),
    'HDF5': ('h5py.File(', lambda d, t: touched(t/'a.h5')),
    'a folder without photos': ('Photos end in', lambda d, t: t),
    'floats': ('(255*x).round().astype(np.uint8); if', lambda d, t: SCENES/255),
    'sixteen bits of a Dataset': ('(x*(255/4095)).round().astype(np.uint8)', lambda d, t: Scenes(lambda i: SCENES[i].astype(np.uint16))),
    'an empty axis of sixteen bits': ('without an empty axis', lambda d, t: SCENES[:0].astype(np.uint16)),
    'ones and zeros': ('255*x.astype(np.uint8)', lambda d, t: SCENES > 127),
    'whole numbers': ('.clip(0, 255).astype(np.uint8)', lambda d, t: SCENES.astype(int)),
    'four layers': ('x[..., :3]', lambda d, t: np.zeros((12,24,24,4), np.uint8)),
    'one photo, or grey ones': ('[x]', lambda d, t: SCENES[0]),
    'a list of floats': ('(255*x).round()', lambda d, t: [*SCENES/255]),
    'normalised floats': ('x*std+mean', lambda d, t: Scenes(lambda i: (floats(i)-.5)/.5)),
    'an iterable Dataset': ('itertools.islice(data, 10_000)', lambda d, t: Forwards()),
    'a loader': ('loader.dataset', lambda d, t: DataLoader(Scenes(lambda i: SCENES[i]))),
    'a generator of pictures': ('list(data)', lambda d, t: (im for im in PILS)),
    'an empty list': ('the list is empty', lambda d, t: []),
    'an empty Dataset': ('is empty', lambda d, t: Scenes(None, 0)),
    'a dict': ("data['x']", lambda d, t: dict(x=SCENES, y=Y)),
    'parts without train': ("data['test']", lambda d, t: dict(test=hub())),
    'pairs': ('[photo for photo, label in data]', lambda d, t: [*zip(SCENES, Y)]),
    'photos and labels': ('data[0]', lambda d, t: (SCENES, Y)),
    'a number': ("'photos/*.jpg'", lambda d, t: 3),
    'numbers': ('Image.open(file)', lambda d, t: [1, 2]),
    'a table without photos': ("table.rename(columns={'height': 'path'})", lambda d, t: pd.DataFrame(dict(height=[3], width=[4]))),
    'two columns of photos': ("table.drop(columns=['image'])", lambda d, t: pd.DataFrame(dict(path=['a'], image=['b']))),
    'a table without rows': ('no rows', lambda d, t: pd.DataFrame(dict(path=[]))),
    'items that are other dicts': ("item['image']", lambda d, t: Scenes(lambda i: dict(x=1))),
    'a split of other words': ("table['split'].replace(", lambda d, t: frame_of(d).assign(split='dev1')),
}

@pytest.mark.parametrize('what', WRONG, ids=lambda k: k.replace(' ', '-'))
def test_wrong_ones_get_the_line_that_would_do_it(home, tmp_path, what):
    line, make = WRONG[what]
    with pytest.raises(InputError) as e: load_photos(make(home, tmp_path), **HOW)
    assert line in str(e.value), str(e.value)

@pytest.mark.parametrize('kind', ['grey', 'colors', 'first', 'list', 'big-endian'])
def test_arrays_of_sixteen_bits_are_read_like_files_of_them(kind):
    "One range for all: 12 bits are found and said; a window of one's own is kept."
    deep = SCENES.astype(np.uint16)*16
    if kind == 'grey': deep = deep[..., 1]
    given = dict(first=deep.transpose(0, 3, 1, 2) if deep.ndim == 4 else None, list=[*deep]).get(kind, deep)
    if kind == 'big-endian': given = deep.astype('>u2')
    with pytest.warns(UserWarning, match='12 bit: 0 to 4095 -> 0 to 255.*window='): photos = load_photos(given, **HOW)
    right = np.rint(deep.astype(float)*(255/4095)).astype(np.uint8)
    if kind == 'grey': right = np.repeat(right[..., None], 3, -1)
    assert (photos.cuts['i_r'] == right).all() and set(photos.window.values()) == {(0, 4095)}
    own = load_photos(given, **HOW, window=(0, 4080))
    assert (own.cuts['i_r'] == (SCENES if kind != 'grey' else np.repeat(SCENES[..., 1:2], 3, -1))).all()
    assert (cut_photos(given, size=24, window=(0, 4080)) == own.cuts['i_r']).all()
    assert (cut_photos(deep[0], size=24, window=(0, 4080)) == own.cuts['i_r'][:1]).all()

def test_a_csv_without_a_header(home):
    (home/'bare.csv').write_text('even/00.png,even\nodd/01.png,odd\n' if (home/'even/00.png').exists() else 'odd/00.png,odd\n')
    with pytest.raises(InputError, match='Write path,label above it'): load_photos(home/'bare.csv', **HOW)

def test_a_csv_that_is_no_utf8(tmp_path):
    (tmp_path/'a.csv').write_bytes('path,label\n\xe9.png,\xe9\n'.encode('latin-1'))
    with pytest.raises(InputError, match="encoding='latin-1'"): load_photos(tmp_path/'a.csv', **HOW)

def test_parquet(home, tmp_path):
    pytest.importorskip('pyarrow')
    frame_of(home).to_parquet(tmp_path/'a.parquet')
    pd.DataFrame(dict(image=[dict(bytes=encoded(im), path='x.png') for im in PILS], label=Y)).to_parquet(tmp_path/'b.parquet')
    for name in 'ab':
        photos = load_photos(tmp_path/f'{name}.parquet', **HOW)
        assert (photos.cuts['i_r'] == SCENES).all() and (photos.labels == Y).all()

def test_real_datasets(home, tmp_path):
    datasets = pytest.importorskip('datasets')
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=['even', 'odd']))
    table = datasets.Dataset.from_dict(dict(image=PILS, label=Y.tolist()), features=features)
    photos = load_photos(table, **HOW)
    assert (photos.cuts['i_r'] == SCENES).all() and photos.classes == ('even', 'odd') and (photos.labels == Y).all()
    assert (cut_photos(table, size=24) == SCENES).all()
    paths = datasets.Dataset.from_dict(dict(path=[str(p) for p in by_number(home)]))
    assert (load_photos(paths, **HOW).cuts['i_r'] == SCENES).all()
    parts = datasets.DatasetDict(train=table, test=table.select(range(4)))
    with pytest.warns(UserWarning, match="the part 'train' is taken; for another one give data\\['test'\\]"): assert len(load_photos(parts, **HOW)) == 12
    with pytest.warns(UserWarning, match='4 of 4 test photos'): s = load_labelled(parts, size=24, progress=False)
    assert (s.test_x == SCENES[:4]).all() and s.classes == ('even', 'odd')
    for data,line in ((table.to_iterable_dataset(), 'Dataset.from_list\\(list\\(data.take'), (datasets.DatasetDict(test=table), "data\\['test'\\]"), (table.remove_columns('image'), 'rename')):
        with pytest.raises(InputError, match=line): load_photos(data, **HOW)


# --- to probe with ---

def tree(home, root, parts=('train', 'test')):
    for i,im in enumerate(PILS):
        p = root/parts[i % 3 == 1]/('even', 'odd')[Y[i]]/f'{i:02}.png'
        p.parent.mkdir(parents=True, exist_ok=True)
        im.save(p)
    return root

def halves(make): return make(slice(0, 8)), make(slice(8, 12))

OWN = {   # with a test part of its own
    'train and test': lambda d, t: tree(d, t/'s'),
    'train and val': lambda d, t: tree(d, t/'s', ('train', 'val')),
    'Train and Validation': lambda d, t: tree(d, t/'s', ('Train', 'Validation')),
    'a CSV with a split': lambda d, t: d/'split.csv',
    'a DataFrame with a split': lambda d, t: frame_of(d).assign(split=['train', 'train', 'valid']*4),
    'two pairs': lambda d, t: halves(lambda s: (SCENES[s], Y[s])),
    'a dict of pairs': lambda d, t: dict(zip(('train', 'test'), halves(lambda s: (SCENES[s], Y[s])))),
    'two Datasets': lambda d, t: halves(lambda s: Scenes(lambda i: (PILS[s][i], int(Y[s][i])), len(Y[s]))),
    'two DataFrames': lambda d, t: halves(lambda s: frame_of(d)[s]),
    'two hub tables': lambda d, t: halves(lambda s: Hub(dict(image=PILS[s], label=Y[s].tolist()), image=Image_(), label=ClassLabel())),
}
MADE = {   # without
    'class folders': lambda d, t: tree(d, t/'s')/'train',
    'a CSV': lambda d, t: d/'list.csv',
    'a DataFrame': lambda d, t: frame_of(d),
    'photos and labels': lambda d, t: (SCENES, Y),
    'lists of these': lambda d, t: ([*SCENES], Y.tolist()),
    'paths and names': lambda d, t: (by_number(d), [('even', 'odd')[y] for y in Y]),
    'images and a tensor': lambda d, t: (PILS, torch.from_numpy(Y)),
    'a Dataset': lambda d, t: Scenes(lambda i: (PILS[i], int(Y[i]))),
    'a hub table': lambda d, t: hub(),
    'a dict of train alone': lambda d, t: dict(train=(SCENES, Y)),
}

@pytest.mark.parametrize('kind', {**OWN, **MADE}, ids=lambda k: k.replace(' ', '-'))
def test_labels_stay_with_their_photos(home, tmp_path, kind):
    s = load_labelled({**OWN, **MADE}[kind](home, tmp_path), size=24, progress=False)
    truth = {x.tobytes(): y for x,y in zip(SCENES, Y)}
    for x,y in ((s.train_x, s.train_y), (s.test_x, s.test_y)):
        assert [truth[a.tobytes()] for a in x] == y.tolist() and len({*y.tolist()}) == 2
    assert s.split == ('own' if kind in OWN else 'made: 20 % of each class, seed 0') and not overlap(s)
    assert len(s.paths['test']) == len(s.test_x) and s.classes in (('even', 'odd'), ('0', '1')) and s.pixels

def test_a_made_part_hangs_on_content_and_seed_alone(home, tmp_path):
    "Not on the place, the order, the name, the size that an encoder wants, or on doubles."
    x, y = draw_shapes(60, size=32, seed=8)
    def ids(s): return {x.tobytes() for x in s.test_x}
    s = load_labelled((x, y % 2), size=32, progress=False)
    order = np.random.default_rng(1).permutation(60)
    assert ids(load_labelled((x[order], y[order] % 2), size=32, progress=False)) == ids(s)
    assert ids(load_labelled((x, y % 2), size=32, seed=1, progress=False)) != ids(s)
    assert len(load_labelled((x, y % 2), size=32, split=.5, progress=False).test_y) == 30
    small, large = (load_labelled(home/'list.csv', size=n, progress=False) for n in (16, 40))
    assert small.paths == large.paths
    doubled = load_labelled((np.concatenate([x, x]), np.concatenate([y, y]) % 2), size=32, progress=False)
    assert not {*doubled.train_ids} & {*doubled.test_ids}

def test_what_was_decided_is_said(home, capsys):
    s = load_labelled(home/'list.csv', size=24)
    assert 'list has no test part: 20 % of each class' in capsys.readouterr().out.replace('%', ' %').replace('  ', ' ')
    assert 'split made: 20 % of each class, seed 0' in repr(s)

def test_labels_of_all_sorts():
    for labels,classes in ((['007', '10']*6, ('007', '10')), ([10, 9]*6, ('9', '10')), (['NA', 'b']*6, ('NA', 'b')), ([True, False]*6, ('False', 'True'))):
        assert load_labelled((SCENES, labels), size=24, progress=False).classes == classes
    with pytest.warns(UserWarning, match='2 of 12 photos of .* have no label'): s = load_labelled((SCENES, [*Y[:10], None, -1]), size=24, progress=False)
    assert len(s.train_y) + len(s.test_y) == 10

def test_a_class_with_one_photo_is_named():
    with pytest.warns(UserWarning, match='1 of 3 classes has one photo only \\(2\\): left out'): s = load_labelled((SCENES, [2, *Y[1:]]), size=24, progress=False)
    assert s.classes == ('0', '1') and len(s.train_y)+len(s.test_y) == 11

def test_doubles_and_two_labels_are_named():
    train, test = (SCENES[:9], Y[:9]), (SCENES[6:], Y[6:])
    with pytest.warns(UserWarning, match='3 of 6 test photos are among those to learn from, such as test: 0 = train: 6.*drop_doubles'): s = load_labelled((train, test), size=24, progress=False)
    clean = s.drop_doubles()
    assert len(clean.train_y) == 6 == len(clean.paths['train']) == len(clean.contents['train']) and not overlap(clean) and 'trained' not in repr(overlap(s))
    with pytest.warns(UserWarning, match='have a copy under another label'): load_labelled((train, (SCENES[6:], 1-Y[6:])), size=24, progress=False)

WRONG_LABELS = {
    'an array alone': ('(photos, labels)', lambda d, t: SCENES),
    'loose photos': ('pd.DataFrame(', lambda d, t: d/'even'),
    'train alone': ("/train'", lambda d, t: (tree(d, t/'s', ('train', 'train')))),
    'a table without labels': ("table.rename(columns={'kind': 'label'})", lambda d, t: frame_of(d).rename(columns=dict(target='kind'))),
    'a table of photos alone': ('add a column label', lambda d, t: frame_of(d)[['image']]),
    'columns of other names': ("Its columns are datei, blume: the photos are in datei, and none is called label, class or target. If blume has them, table.rename(columns={'blume': 'label'}), and for datei better write path.",
                               lambda d, t: frame_of(d).rename(columns=dict(image='datei', target='blume'))),
    'a Dataset without labels': ('(photo, label)', lambda d, t: Scenes(lambda i: PILS[i])),
    'fewer labels': ('12 photos and 11 labels', lambda d, t: (SCENES, Y[:11])),
    'a column for each class': ('y.argmax(1)', lambda d, t: (SCENES, np.eye(2)[Y])),
    'halves': ('whole number', lambda d, t: (SCENES, Y+.5)),
    'three things': ('((x, y), (test_x, test_y))', lambda d, t: (SCENES, Y, SCENES)),
    'a dict without train': ("data['a']", lambda d, t: dict(a=(SCENES, Y))),
    'classes spelt in two ways': ('has no image of', lambda d, t: ((SCENES, [*'ab']*6), (SCENES, [*'Ab']*6))),
    'one class': ('2 or more', lambda d, t: (SCENES, Y*0)),
    'every class once': ('no test part can be made', lambda d, t: (SCENES, [*range(12)])),
    'test rows only': ("table.drop(columns=['split'])", lambda d, t: frame_of(d).assign(split='test')),
    'no such folder': ('none', lambda d, t: str(d/'nowhere')),
}

@pytest.mark.parametrize('what', WRONG_LABELS, ids=lambda k: k.replace(' ', '-'))
def test_wrong_labels_get_the_line_that_would_do_it(home, tmp_path, what):
    line, make = WRONG_LABELS[what]
    with pytest.raises(InputError) as e: load_labelled(make(home, tmp_path), size=24, progress=False)
    assert line in str(e.value), str(e.value)

def in_a_shell(prog, call):
    "What the caller of a command is told."
    from recon_nb.core import _shell_command
    token = _shell_command.set(prog)
    try: return call()
    finally: _shell_command.reset(token)

def test_a_shell_is_answered_in_its_own_words(home, tmp_path, capsys):
    frame_of(home).rename(columns=dict(image='datei', target='blume')).to_csv(tmp_path/'wrong.csv', index=False)
    pd.DataFrame(dict(hoch=[3], breit=[4])).to_csv(tmp_path/'none.csv', index=False)
    listing(home, tmp_path/'list of.txt')
    for data, says in ((tmp_path/'wrong.csv', 'If blume has them, in the first line of the file write label for blume, and for datei better write path'),
                       (tmp_path/'none.csv', 'Name it: in the first line of the file write path for hoch'),
                       (tmp_path/'list of.txt', f"$(cat '{tmp_path}/list of.txt')"),
                       (touched(tmp_path/'Notizen.txt'), 'It is a text, and its first line names no photo'),
                       (touched(tmp_path/'a.npy'), 'In Python give: np.load('),
                       (touched(tmp_path/'a.mp4'), 'Give instead: ffmpeg -i')):
        with pytest.raises(InputError) as e: in_a_shell('recon-probe', lambda: load_labelled(str(data), size=24, progress=False))
        assert says in str(e.value) and 'table.rename' not in str(e.value) and 'read_text' not in str(e.value), str(e.value)
    assert cli.train([str(tmp_path/'wrong.csv'), '--preset', 'quik', '--quiet']) == 2 and 'quick' in capsys.readouterr().err

def test_a_misspelt_folder_gets_its_neighbours_name(home, tmp_path, monkeypatch):
    tree(home, tmp_path/'Meine Fotos')
    monkeypatch.chdir(tmp_path)
    for call in (load_photos, load_labelled):
        with pytest.raises(InputError, match="Did you mean 'Meine Fotos'\\?"): call('Meine Foto', size=24, **({} if call is load_labelled else dict(cuts={'i_r': 1.})))
    with pytest.raises(InputError, match="Did you mean '.*Meine Fotos'"): list_photos(tmp_path/'Meine_Fotos')
    with pytest.raises(InputError) as e: load_photos('qwertz', **HOW)
    assert 'Did you mean' not in str(e.value) and 'Accepted: ' in str(e.value)
    with pytest.raises(InputError, match="Did you mean 'shapes'"): load_photos('shape', **HOW)

def test_missing_photos_of_a_table_are_named_and_counted(home, tmp_path):
    frame = frame_of(home)
    frame.loc[0, 'image'] = 'gibtsnicht.jpg'
    for prog, more in (('', '`photos.skipped`'), ('recon-train', "skipped.jsonl in a run's folder"), ('recon-probe', '')):
        with pytest.warns(UserWarning, match='skipped 1 of 12 photos: .*gibtsnicht.jpg .*11 photos go on') as w: in_a_shell(prog, lambda: load_photos(frame, **HOW))
        said, = (str(x.message) for x in w if 'skipped 1' in str(x.message))
        assert more in said and ('The whole list' in said) == bool(more)

def test_a_split_without_effect_is_refused(home, tmp_path):
    with pytest.raises(InputError, match='has no effect'): load_labelled(home/'split.csv', size=24, split=.3, progress=False)
    with pytest.raises(InputError, match='split=0.2'): load_labelled(home/'list.csv', size=24, split=3., progress=False)


# --- a run knows its photos ---

TINY = dict(width=4, width_d=4, size=32, bs=4, epochs=1, progress=False)

def test_a_run_trains_on_any_kind_and_resumes(home, tmp_path, monkeypatch):
    "What the config remembers is enough for files; what was in memory is asked for."
    for i,(kind,kept) in enumerate({'a folder': str(home), 'a pattern': f'{home}/*/*.png', 'a CSV': str(home/'list.csv'), 'PIL images': 'pictures', 'a Dataset of pairs': 'Dataset',
                                    'paths': 'files', 'a hub table': 'table', '(n, h, w)': 'array'}.items()):
        data = {**KINDS, **{'(n, h, w)': lambda d: GREY}}[kind]
        run = train_gan(data(home), run_dir=tmp_path/str(i), **TINY)
        assert run.cfg.data == kept and len(run.reconstruct(data(home)).painted) == 12 == len(run.transform(data(home)))
        again = dict(resume=True, run_dir=run.dir, epochs=2, progress=False)
        if kept in ('pictures', 'Dataset', 'files', 'table', 'array'):
            with pytest.raises(InputError, match='pass the same'): train_gan(**again)
            again['data'] = data(home)
        assert train_gan(**again).step > run.step

def test_the_pretraining_has_seen_them(home, tmp_path):
    "The same files at another size, under other names, as arrays: all are known again."
    run = train_gan(home, run_dir=tmp_path/'run', valid=.25, **TINY)
    moved = tmp_path/'moved'
    for p in by_number(home): (moved/p.parent.name).mkdir(parents=True, exist_ok=True); (moved/p.parent.name/f'x{p.name}').write_bytes(p.read_bytes())
    for data in (load_labelled(moved, size=20, progress=False), load_labelled((SCENES, Y), size=48, progress=False), LabelledSet('by hand', SCENES[:6], Y[:6], SCENES[6:], Y[6:], ('a', 'b'))):
        for seen in (run, run.dir, str(run.dir)):
            found = overlap(seen, data)
            assert found.count('test') == len(data.test_y) and found.count('train') == len(data.train_y) and 'were trained on' in repr(found)
    assert not overlap(run, load_labelled((255-SCENES, Y), size=24, progress=False))
    (run.dir/'photos.npz').unlink()
    with pytest.raises(InputError, match='load_photos\\('): overlap(run, moved)

def test_old_runs_are_known_by_their_checksum(home, tmp_path):
    "What 0.1.0 wrote: a number over names, split and pixels; it stays as it is."
    import json, zlib
    run = train_gan(home, run_dir=tmp_path/'run', **TINY)
    info = json.loads((run.dir/'run.json').read_text())
    photos = load_photos(home, **{**HOW, 'size': 32})
    train, valid = split_photos(photos)
    info['fingerprint'] = zlib.crc32('\n'.join(photos.names).encode()+train.tobytes()+valid.tobytes()+photos.cuts['i_r'].tobytes())
    (run.dir/'run.json').write_text(json.dumps(info))
    train_gan(resume=True, run_dir=run.dir, epochs=2, progress=False)
    assert json.loads((run.dir/'run.json').read_text())['fingerprint'] == info['fingerprint']

def test_too_little_is_said(home, tmp_path, capsys):
    train_gan(SCENES, run_dir=tmp_path/'run', **{**TINY, 'progress': True})
    said = capsys.readouterr().out
    assert '2 updates are few' in said and 'epochs=150' in said and '11 photos are soon known by heart' in said

    assert 'the middle 33% of photos of 24 px is 8 px, shown at 32' in said and "view='canvas'" in said


# --- the shell ---

def test_the_shell_takes_what_it_is_given(home, tmp_path, capsys):
    run, files = str(tmp_path/'run'), [str(p) for p in by_number(home)]
    small = ['--size', '32', '--width', '4', '--width-d', '4', '--bs', '4', '--epochs', '1', '--quiet']
    for i,data in enumerate(([str(home)], files, [f'{home}/*/*.png'], [str(home/'list.csv')])):
        assert cli.train([*data, '--run-dir', run+str(i), *small]) == 0
    for data in ([files[0]], files[:3], [str(home)], [f'{home}/even/*.png'], [str(home/'list.csv')]):
        assert cli.embed([run+'0', *data, '-o', str(tmp_path/'f.npy')]) == 0
        assert len(np.load(tmp_path/'f.npy')) == len(list_photos(data if len(data) > 1 else data[0]))
        assert cli.reconstruct([run+'0', *data, '-o', str(tmp_path/'out.png')]) == 0
    for data in (home/'list.csv', home):
        assert cli.probe([run+'0', str(data), '--mode', 'knn', '--seeds', '1']) == 0
    assert 'no test part' in capsys.readouterr().out
