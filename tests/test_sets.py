"Each named set, from tiny archives in its own format: read from a copy, downloaded from this machine, damaged, missing, mistaken for another."
import hashlib, os, pickle, shutil, socket, tarfile, threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import CIFAR10, STL10, SVHN

import rude
from recon_nb import download as dl, sets
from recon_nb.core import InputError
from recon_nb.data import SETS, load_photos, split_photos
from recon_nb.photos import _cache_dir, clear_cache
from recon_nb.sets import Source, _find_set, locate_set

HOW = dict(size=32, cuts=dict(i_r=1.), workers=2, progress=False)
CIFAR, STL = sets._cifar_classes, sets._stl_classes


def load(name, root=None, **kw): return load_photos(name, root=root, **{**HOW, **kw})
def pixels(seed, n, side=32): return np.random.default_rng(seed).integers(0, 256, (n,side,side,3), dtype=np.uint8)
def md5(path): return hashlib.md5(Path(path).read_bytes()).hexdigest()

@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv('RECON_NB_CACHE', str(tmp_path/'cache'))
    monkeypatch.delenv('RECON_NB_DATA', raising=False)
    monkeypatch.setattr(dl, '_pause', 0)

@pytest.fixture
def offline(monkeypatch):
    "Not a single connection is even tried."
    def refuse(*_, **__): raise AssertionError('the network was touched')
    for name in ('create_connection', 'getaddrinfo'): monkeypatch.setattr(socket, name, refuse)


# --- the sets, a few pictures each; what they hold is returned as (pixels, labels) a part ---

def make_cifar(root, monkeypatch, n=4):
    base, y = root/'cifar-10-batches-py', np.arange(6*n) % 10
    x = pixels(0, 6*n); base.mkdir(parents=True)
    for k,name in enumerate([*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch']):
        at = slice(k*n, (k+1)*n)
        (base/name).write_bytes(pickle.dumps({'data': x[at].transpose(0,3,1,2).reshape(n,-1), 'labels': y[at].tolist(), 'batch_label': name}))
    (base/'batches.meta').write_bytes(pickle.dumps({'label_names': list(CIFAR), 'num_vis': 3072}))
    (base/'readme.html').write_text('<html>')
    for table in ('train_list', 'test_list'): monkeypatch.setattr(CIFAR10, table, [[f, md5(base/f)] for f,_ in getattr(CIFAR10, table)])
    monkeypatch.setattr(CIFAR10, 'meta', {**CIFAR10.meta, 'md5': md5(base/'batches.meta')})
    return dict(train=(x[:5*n], y[:5*n]), test=(x[5*n:], y[5*n:]))

def make_svhn(root, monkeypatch):
    root.mkdir(parents=True, exist_ok=True)
    out, split = {}, {}
    for seed,(part,n) in enumerate(dict(train=12, test=5, extra=7).items()):
        x, y = pixels(seed, n), np.arange(n) % 10
        f = root/f'{part}_32x32.mat'
        savemat(f, dict(X=x.transpose(1,2,3,0), y=np.where(y == 0, 10, y).astype(np.uint8)[:,None]), do_compression=True)      # the files call the zero 10
        out[part] = x, y
        split[part] = [SVHN.split_list[part][0], f.name, md5(f)]
    monkeypatch.setattr(SVHN, 'split_list', split)
    return out

def make_stl(root, monkeypatch):
    base, out = root/'stl10_binary', {}
    base.mkdir(parents=True)
    for seed,(part,n) in enumerate(dict(train=11, test=10, unlabeled=6).items()):
        x, y = pixels(seed, n, 96), np.arange(n) % 10
        (base/f'{part}_X.bin').write_bytes(x.transpose(0,3,2,1).tobytes())         # channels first, columns before rows
        if part != 'unlabeled': (base/f'{part}_y.bin').write_bytes((y+1).astype(np.uint8).tobytes())
        out[part] = x, y if part != 'unlabeled' else np.full(n, -1)
    (base/'class_names.txt').write_text('\n'.join(STL)+'\n')
    (base/'fold_indices.txt').write_text('\n'.join([' '.join(map(str, range(5)))]*10)+'\n')
    for table in ('train_list', 'test_list'): monkeypatch.setattr(STL10, table, [[f, md5(base/f)] for f,_ in getattr(STL10, table)])
    return out

DOGS = 'n02085620-Chihuahua', 'n02099267-flat-coated_retriever', 'n02116738-African_hunting_dog'

def mat_list(path, names, labels):
    cells = np.empty((len(names), 1), dtype=object)
    for i,n in enumerate(names): cells[i,0] = n
    savemat(path, dict(file_list=cells, annotation_list=cells, labels=np.array(labels, dtype=np.float64)[:,None]))

def make_dogs(root, monkeypatch=None):
    lists = dict(train=[], test=[])
    for k,d in enumerate(DOGS):
        (root/'Images'/d).mkdir(parents=True)
        for i in range(5):
            name = f'{d}/{d.split("-")[0]}_{i}.jpg'
            Image.fromarray(np.full((40,50,3), 80*k+10*i, dtype=np.uint8)).save(root/'Images'/name)
            lists['test' if i > 2 else 'train'].append((name, k+1))
    for part,rows in lists.items(): mat_list(root/f'{part}_list.mat', *zip(*rows))
    mat_list(root/'file_list.mat', *zip(*lists['train'], *lists['test']))
    return lists

def make_voc(root, monkeypatch=None):
    voc = root/'VOCdevkit/VOC2012'
    for d in ('JPEGImages', 'ImageSets/Main', 'ImageSets/Segmentation', 'Annotations', 'SegmentationClass'): (voc/d).mkdir(parents=True)
    for i in range(10): Image.fromarray(np.full((30,40,3), 20*i, dtype=np.uint8)).save(voc/f'JPEGImages/2008_{i:06}.jpg')
    lists = dict(train=[8, 0, 3], val=[1, 5], trainval=[0, 1, 3, 5, 8])
    for part,ids in lists.items(): (voc/f'ImageSets/Main/{part}.txt').write_text(''.join(f'2008_{i:06}\n' for i in ids))
    for part in ('train', 'val'): (voc/f'ImageSets/Main/cat_{part}.txt').write_text('2008_000000 -1\n')
    return lists

MAKE = dict(cifar10=make_cifar, svhn=make_svhn, stl10=make_stl, stanford_dogs=make_dogs, voc2012=make_voc)

def same(photos, parts, size=32):
    "Are the pixels and labels those of `parts`, in this order?"
    assert (photos.labels == np.concatenate([y for _,y in parts])).all() and photos.labels.dtype == np.int64
    if size == photos.cuts['i_r'].shape[1]: assert (photos.cuts['i_r'] == np.concatenate([x for x,_ in parts])).all()
    return True


# --- from a copy ---

def test_cifar10(tmp_path, monkeypatch, offline):
    made = make_cifar(tmp_path/'x', monkeypatch)
    for root in (tmp_path/'x', tmp_path/'x/cifar-10-batches-py', str(tmp_path/'x')):
        got = load('cifar10', root)
        assert same(got, [made['train'], made['test']]) and got.held_out.tolist() == [20, 21, 22, 23] and got.classes == CIFAR
    assert got.names[0] == 'train/airplane/0' and got.names[-1] == 'test/cat/3' and isinstance(got.cuts['i_r'], np.memmap)
    train, valid = split_photos(got)
    assert valid.tolist() == got.held_out.tolist() and len(train) == 20

@pytest.mark.parametrize('name,parts', [('svhn', ['train', 'test']), ('svhn-extra', ['train', 'extra', 'test'])])
def test_svhn(tmp_path, monkeypatch, offline, name, parts):
    made = make_svhn(tmp_path/'x', monkeypatch)
    if name == 'svhn': (tmp_path/'x/extra_32x32.mat').unlink()                     # not needed
    got = load(name, tmp_path/'x')
    n = sum(len(made[p][0]) for p in parts)
    assert same(got, [made[p] for p in parts]) and got.held_out.tolist() == [*range(n-5, n)] and got.classes == tuple('0123456789')

@pytest.mark.parametrize('name,parts', [('stl10', ['train', 'test']), ('stl10-unlabeled', ['train', 'unlabeled', 'test'])])
def test_stl10(tmp_path, monkeypatch, offline, name, parts):
    made = make_stl(tmp_path/'x', monkeypatch)
    for root in (tmp_path/'x', tmp_path/'x/stl10_binary'):
        got = load(name, root, size=96)
        n = sum(len(made[p][0]) for p in parts)
        assert same(got, [made[p] for p in parts], 96) and got.held_out.tolist() == [*range(n-10, n)] and got.classes == STL
    assert (got.labels == -1).sum() == (6 if len(parts) == 3 else 0)

def test_stanford_dogs(tmp_path, offline):
    lists = make_dogs(tmp_path/'x')
    for root in (tmp_path/'x', tmp_path/'x/Images'):
        got = load('stanford_dogs', root)
        assert got.classes == ('Chihuahua', 'flat-coated_retriever', 'African_hunting_dog') and len(got) == 15
        assert got.names == [n for p in ('train', 'test') for n,_ in lists[p]] and got.labels.tolist() == [y-1 for p in ('train', 'test') for _,y in lists[p]]
        assert got.held_out.tolist() == [*range(9, 15)] and abs(got.cuts['i_r'].mean((1,2,3)) - [80*(y-1)+10*int(n[-5]) for p in lists for n,y in lists[p]]).max() < 2

def test_voc_in_three_parts(tmp_path, offline):
    make_voc(tmp_path/'x')
    ids = lambda p: [int(n[-5]) for n in p.names]
    for root in ('x', 'x/VOCdevkit', 'x/VOCdevkit/VOC2012'):
        a, b, c = (load(f'voc2012{part}', tmp_path/root) for part in ('', '-trainval', '-all'))
        assert ids(a) == [8, 0, 3, 1, 5] and a.held_out.tolist() == [3, 4]
        assert ids(b) == [0, 1, 3, 5, 8] and ids(c) == [*range(10)] and b.held_out is None and c.held_out is None
        assert len(split_photos(c)[1]) == 1 and a.labels is None and {a.source, b.source, c.source} == {'voc2012 Main/train+val', 'voc2012 Main/trainval', 'voc2012 JPEGImages'}

def test_voc_lists(tmp_path):
    make_voc(tmp_path)
    main = tmp_path/'VOCdevkit/VOC2012/ImageSets/Main'
    (main/'val.txt').write_text('2008_000003\n')
    with pytest.raises(InputError, match='in train.txt and in val.txt, such as JPEGImages/2008_000003.jpg'): load('voc2012', tmp_path)
    (main/'val.txt').write_text('\n')
    with pytest.raises(InputError, match='val.txt names no photo'): load('voc2012', tmp_path)
    (main/'val.txt').unlink()
    with pytest.raises(InputError, match='lacks ImageSets/Main/val.txt'): load('voc2012', tmp_path)
    assert len(load('voc2012-trainval', tmp_path)) == 5
    shutil.rmtree(tmp_path/'VOCdevkit/VOC2012/JPEGImages'); (tmp_path/'VOCdevkit/VOC2012/JPEGImages').mkdir()
    with pytest.raises(InputError, match='JPEGImages names no photo'): load('voc2012-all', tmp_path)

def test_the_second_time_the_cache_is_read(tmp_path, monkeypatch):
    for name,make in MAKE.items(): make(tmp_path/name, monkeypatch)
    want = {name: load(name, tmp_path/name) for name in MAKE}
    def refuse(*_): raise AssertionError('the set was read again')
    for f in ('_read_cifar', '_read_svhn', '_read_stl', '_check_files'): monkeypatch.setattr(sets, f, refuse)
    monkeypatch.setattr(Image, 'open', refuse)
    for name,p in want.items():
        got = load(name, tmp_path/name)
        assert (got.cuts['i_r'] == p.cuts['i_r']).all() and got.names == p.names and (got.labels is None) == (p.labels is None)
        if got.labels is not None: assert (got.labels == p.labels).all()

def test_loaders_by_themselves(tmp_path, monkeypatch):
    for name,f in dict(cifar10=sets.load_cifar10, stanford_dogs=sets.load_dogs, voc2012=sets.load_voc).items():
        MAKE[name](tmp_path/name, monkeypatch)
        assert len(f(root=tmp_path/name, size=16, cuts=dict(i_r=1.))) == len(load(name, tmp_path/name))

def test_parts_are_entries_of_their_own(tmp_path, monkeypatch):
    make_svhn(tmp_path, monkeypatch)
    assert len(load('svhn', tmp_path)) == 17 and len(load('svhn-extra', tmp_path)) == 24 and len(load('svhn', tmp_path)) == 17

@pytest.mark.parametrize('cuts', [dict(i_r=1.), dict(i_r=1., i_in=1/3)])
def test_cuts_and_sizes(tmp_path, monkeypatch, cuts):
    make_cifar(tmp_path, monkeypatch)
    for size in (16, 80): assert {k: v.shape for k,v in load('cifar10', tmp_path, size=size, cuts=cuts).cuts.items()} == {k: (24,size,size,3) for k in cuts}


# --- damaged, missing, mistaken ---

ALL = dict(cifar10=[f'cifar-10-batches-py/{f}' for f in ('data_batch_1', 'data_batch_5', 'test_batch', 'batches.meta')], svhn=['train_32x32.mat', 'test_32x32.mat'],
           stl10=[f'stl10_binary/{f}' for f in ('train_X.bin', 'train_y.bin', 'unlabeled_X.bin', 'test_X.bin', 'test_y.bin')])
FILES = [(name, f) for name,files in ALL.items() for f in files]

@pytest.mark.parametrize('name,file', FILES)
def test_a_flipped_bit(tmp_path, monkeypatch, name, file):
    MAKE[name](tmp_path/'x', monkeypatch)
    b = bytearray((tmp_path/'x'/file).read_bytes()); b[len(b)//2] ^= 1; (tmp_path/'x'/file).write_bytes(b)
    with pytest.raises(InputError, match=f"{file} is not {name}'s published file: md5:.*, expected md5:.*get it again"): load(name, tmp_path/'x')

@pytest.mark.parametrize('name,file', FILES + [('stanford_dogs', 'train_list.mat'), ('stanford_dogs', 'Images')])
def test_a_missing_file(tmp_path, monkeypatch, offline, name, file):
    MAKE[name](tmp_path/'x', monkeypatch)
    (tmp_path/'x'/file).rename(tmp_path/'away')
    with pytest.raises(InputError, match=f'lacks {file}.*Expected: '): load(name, tmp_path/'x')

def test_a_foreign_pickle_is_not_opened(tmp_path, monkeypatch):
    make_cifar(tmp_path/'x', monkeypatch)
    class Bomb:
        def __reduce__(self): return os.mkdir, (str(tmp_path/'harm'),)
    for f in ('data_batch_2', 'batches.meta'):
        (tmp_path/'x/cifar-10-batches-py'/f).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(InputError, match='published file'): load('cifar10', tmp_path/'x')
    assert not (tmp_path/'harm').exists()

@pytest.mark.parametrize('name', MAKE)
def test_folders_that_are_something_else(tmp_path, offline, name):
    def says(root, text):
        with pytest.raises(InputError, match=text) as e: load(name, root)
        assert 'Expected: ' in str(e.value) and str(root) in str(e.value)
    root = tmp_path/'x'
    says(root, 'There is no such folder')
    root.mkdir(); says(root, 'It holds nothing')
    (root/'notes.txt').write_text('x'); says(root, 'It holds notes.txt')
    im = Image.fromarray(pixels(0, 1)[0])
    im.save(root/'1.png'); says(root, f"plain photos: load them as a folder, data='{root}' without root=")
    for c in ('cat', 'dog'): (root/c).mkdir(); im.save(root/c/'1.png')
    says(root, f"looks like class folders .cat, dog, ....: load them as a folder, data='{root}' without")
    (tmp_path/'y/train').mkdir(parents=True)
    for c in ('cat', 'dog'): shutil.move(root/c, tmp_path/'y/train')
    says(tmp_path/'y', f"class folders .*data='{tmp_path}/y/train' without root=")
    assert len(load_photos(tmp_path/'y/train', **HOW)) == 2
    archive = SOURCES[name]()[0].name
    (root/archive).touch(); says(root, 'lacks' if name == 'svhn' else f'It holds {archive}, still packed: unpack it there')

SOURCES = dict(cifar10=lambda: sets._cifar_sources(), svhn=lambda: sets._svhn_sources(('train', 'test')), stl10=lambda: sets._stl_sources(),
               stanford_dogs=lambda: sets._dogs_sources(), voc2012=lambda: sets._voc_sources())

def test_dogs_with_faults(tmp_path):
    lists = make_dogs(tmp_path)
    (tmp_path/'Images'/lists['train'][0][0]).unlink()
    with pytest.warns(UserWarning, match='skipped 1 of 15'): got = load('stanford_dogs', tmp_path)
    assert len(got) == 14 and got.held_out.tolist() == [*range(8, 14)] and Counter(got.labels.tolist()) == {0: 4, 1: 5, 2: 5}
    names, labels = zip(*lists['test'])
    for text,args in {'in both lists': (lists['train'][1][:1], [1]), 'one label': (names, [1]*6), 'counted from 1': (names, [y+1 for y in labels]),
                      'no list of': (['../x/y.jpg'], [1]), 'train_list.mat and test_list.mat': ([n.replace('n02085620', 'n0') for n in names], labels)}.items():
        mat_list(tmp_path/'test_list.mat', *args)
        with pytest.raises(InputError, match=text): load('stanford_dogs', tmp_path)
    for b in (b'', b'nothing', (tmp_path/'train_list.mat').read_bytes()[:300]):
        (tmp_path/'test_list.mat').write_bytes(b)
        with pytest.raises(InputError, match="test_list.mat can't be read: .*Unpack lists.tar again"): load('stanford_dogs', tmp_path)


# --- RECON_NB_DATA ---

@pytest.mark.parametrize('folder', ['cifar10', 'CIFAR-10', 'cifar_10', '.'])
def test_recon_nb_data(tmp_path, monkeypatch, offline, folder):
    made = make_cifar(tmp_path/'own'/folder, monkeypatch)
    monkeypatch.setenv('RECON_NB_DATA', str(tmp_path/'own'))
    assert same(load('cifar10'), [made['train'], made['test']])

def test_the_order_of_places(tmp_path, monkeypatch, offline):
    for i,at in enumerate([_cache_dir()/'sets', tmp_path/'own', tmp_path/'given']):
        make_voc(at/'voc2012')
        for f in (at/'voc2012/VOCdevkit/VOC2012/ImageSets/Main').glob('train.txt'): f.write_text(f'2008_00000{i+6}\n')
    first = lambda *args: load('voc2012', *args).names[0][-5]
    assert first() == '6'
    monkeypatch.setenv('RECON_NB_DATA', str(tmp_path/'own'))
    assert first() == '7' and first(tmp_path/'given/voc2012') == '8'

def test_a_copy_in_another_layout_keeps_it_from_being_downloaded(tmp_path, monkeypatch, offline):
    monkeypatch.setenv('RECON_NB_DATA', str(tmp_path/'own'))
    for c in ('cat', 'dog'): (tmp_path/'own/cifar10/train'/c).mkdir(parents=True); Image.fromarray(pixels(0, 1)[0]).save(tmp_path/'own/cifar10/train'/c/'1.jpg')
    with pytest.raises(InputError, match="no cifar10 in .*class folders .*own/cifar10/train' without root=.*rename the folder: then cifar10 is downloaded"): load('cifar10')
    make_cifar(_cache_dir()/'sets/cifar10', monkeypatch)
    assert len(load('cifar10')) == 24                                              # an original in the cache will do
    monkeypatch.setenv('RECON_NB_DATA', str(tmp_path/'gone'))
    with pytest.raises(InputError, match='RECON_NB_DATA=.*gone is no folder'): load('cifar10')

def test_find_set(tmp_path):
    (tmp_path/'a/b').mkdir(parents=True); (tmp_path/'a/c').touch()
    assert _find_set(tmp_path/'a', ['b', 'c']) == tmp_path/'a' == _find_set(tmp_path/'a/b', ['b', 'c']) == _find_set(tmp_path, ['b', 'c'], inside=('.', 'a'))
    assert _find_set(tmp_path, ['b', 'c']) is None and _find_set(tmp_path/'a', ['b', 'd']) is None


# --- downloads, from this machine ---

def tarred(folder, path, mode='w', members=None):
    with tarfile.open(path, mode) as t:
        for f in sorted(members or os.listdir(folder)): t.add(folder/f, arcname=f)
    return path

@pytest.fixture
def server(monkeypatch):
    with rude.serving(monkeypatch) as s: yield s

@pytest.fixture
def offered(tmp_path, monkeypatch, server):
    "All sets on a server, as their hosts offer them; what each is made of."
    made, x = {}, tmp_path/'made'
    for name,make in MAKE.items(): made[name] = make(x/name, monkeypatch)
    def offer(path, body): server.routes['/'+path] = dict(body=body.read_bytes()); return server.url+path
    archives = {name: tarred(x/name, tmp_path/f'{name}.tar.gz', 'w:gz') for name in ('cifar10', 'stl10')}
    for name,cls in dict(cifar10=CIFAR10, stl10=STL10).items():
        monkeypatch.setattr(cls, 'url', offer(f'a/{name}.tar.gz', archives[name])); monkeypatch.setattr(cls, 'tgz_md5', md5(archives[name]))
    monkeypatch.setattr(SVHN, 'split_list', {p: [offer(f, x/'svhn'/f), f, m] for p,(_,f,m) in SVHN.split_list.items()})
    monkeypatch.setattr(sets, '_svhn_sizes', dict.fromkeys(SVHN.split_list))
    dogs = [tarred(x/'stanford_dogs', tmp_path/'images.tar', members=['Images']), tarred(x/'stanford_dogs', tmp_path/'lists.tar', members=['file_list.mat', 'test_list.mat', 'train_list.mat'])]
    monkeypatch.setattr(sets, '_dogs_files', [Source((offer(f.name, f),), dl.file_checksum(f), f.stat().st_size) for f in dogs])
    voc = tarred(x/'voc2012', tmp_path/sets._voc_file)
    mirrors = server.url+'gone/'+voc.name, offer(f'd2l/{voc.name}', voc)
    monkeypatch.setattr(sets, '_voc_sources', lambda: [Source(mirrors, dl.file_checksum(voc, 'sha1'), voc.stat().st_size)])
    for name in ('cifar10', 'stl10'):
        real = getattr(sets, '_cifar_sources' if name == 'cifar10' else '_stl_sources')
        monkeypatch.setattr(sets, real.__name__, lambda real=real: [s._replace(size=None) for s in real()])
    return made

def asked(server): return [p for p,_ in server.log]
def in_cache(): return sorted(p.name for p in (_cache_dir()/'sets').iterdir() if p.suffix != '.lock')

@pytest.mark.parametrize('name,n,held', [('cifar10', 24, 4), ('stl10', 21, 10), ('stl10-unlabeled', 27, 10), ('svhn', 17, 5), ('svhn-extra', 24, 5), ('stanford_dogs', 15, 6), ('voc2012', 5, 2)])
def test_downloaded_once(server, offered, name, n, held, capsys):
    got = load(name, progress=True)
    said = capsys.readouterr()
    assert (len(got), len(got.held_out)) == (n, held) and f"{name.split('-')[0]} is not on this machine" in said.out and str(_cache_dir()) in said.out
    base = name.split('-')[0]
    assert in_cache() == [base]                                                    # no archive is left
    asked_for = len(server.log)
    clear_cache()
    again = load(name)
    assert len(server.log) == asked_for and (again.cuts['i_r'] == got.cuts['i_r']).all()
    if name == 'voc2012': assert asked(server) == [f'/gone/{sets._voc_file}', f'/d2l/{sets._voc_file}'] and len(load('voc2012-all')) == 10 and len(server.log) == 2

def test_extra_is_fetched_when_it_is_asked_for(server, offered):
    load('svhn'); assert asked(server) == ['/train_32x32.mat', '/test_32x32.mat']
    load('svhn-extra'); assert asked(server)[2:] == ['/extra_32x32.mat']

def test_cut_off_and_continued(server, offered, monkeypatch):
    route = server.routes[f'/d2l/{sets._voc_file}']
    monkeypatch.setattr(dl, '_tries', 1)
    server.routes[f'/d2l/{sets._voc_file}'] = {**route, 'cut': 30_000}
    with pytest.raises(InputError, match='30.0 kB of it are kept'): load('voc2012')
    server.routes[f'/d2l/{sets._voc_file}'] = route
    assert len(load('voc2012')) == 5 and server.log[-1][1] == 'bytes=30000-'

def test_wrong_bytes_never_become_a_set(server, offered):
    server.routes['/a/cifar10.tar.gz'] = server.routes['/a/stl10.tar.gz']
    with pytest.raises(InputError, match='another file: md5 differs'): load('cifar10')
    assert not (_cache_dir()/'sets/cifar10').exists()

def test_a_set_that_is_damaged_later(server, offered):
    load('cifar10'); clear_cache()
    f = _cache_dir()/'sets/cifar10/cifar-10-batches-py/test_batch'
    f.write_bytes(f.read_bytes()[:-1]+b'x')
    with pytest.raises(InputError, match='remove .*sets/cifar10, and it is downloaded again'): load('cifar10')
    f.unlink()
    with pytest.raises(InputError, match='lacks cifar-10-batches-py/test_batch. Remove that folder'): load('cifar10')
    shutil.rmtree(_cache_dir()/'sets/cifar10')
    assert len(load('cifar10')) == 24

def test_two_threads_fetch_once(server, offered):
    for r in server.routes.values(): r.update(pace=.01, size=4096)
    got = []
    both = [threading.Thread(target=lambda: got.append(len(load('stanford_dogs')))) for _ in range(2)]
    for t in both: t.start()
    for t in both: t.join()
    assert got == [15, 15] and asked(server) == ['/images.tar', '/lists.tar']

@pytest.mark.parametrize('name', ['cifar10', 'svhn', 'stl10', 'stanford_dogs', 'voc2012', 'voc2012-all'])
def test_without_network(monkeypatch, name):
    def unreachable(*_, **__): raise socket.gaierror(-3, 'Temporary failure in name resolution')
    monkeypatch.setattr(socket, 'create_connection', unreachable)
    sources = SOURCES[name.split('-')[0]]()
    with pytest.raises(InputError) as e: load(name)
    text = str(e.value)
    assert e.value.__cause__ is None and text.count('host not found (Temporary failure') == len(sources[0].urls)
    for url in sources[0].urls: assert f'{url}: ' in text
    assert f'put it at {_cache_dir()}' in text and sources[0].checksum in text and 'or give root=, a folder that holds' in text and 'RECON_NB_DATA' in text

def test_a_file_brought_by_hand(server, offered, tmp_path, monkeypatch):
    "What the error advises works: the archive at the place it names."
    route = server.routes.pop('/a/cifar10.tar.gz')
    with pytest.raises(InputError) as e: load('cifar10')
    place = Path(str(e.value).split('put it at ')[1].split(' (md5:')[0])
    place.write_bytes(route['body'])
    assert len(load('cifar10')) == 24 and in_cache() == ['cifar10']

def test_the_tables_are_torchvisions(monkeypatch):
    "What is said about the real files: well-formed, and for the archives that torchvision knows, what torchvision says."
    for name,get in SOURCES.items():
        for s in get():
            dl._check_call(s.urls, s.checksum)
            assert s.size > 10**5 and s.name == s.urls[0].split('/')[-1]
    assert SOURCES['cifar10']()[0].checksum == 'md5:c58f30108f718f92721af3b95e74349a' and len(sets._voc_mirrors) > 2
    assert set(SETS) == {'shapes', 'voc2012', 'voc2012-trainval', 'voc2012-all', 'cifar10', 'svhn', 'svhn-extra', 'stl10', 'stl10-unlabeled', 'stanford_dogs'}


# --- the whole way ---

def test_a_set_of_ones_own(tmp_path, monkeypatch):
    (tmp_path/'own/leaves').mkdir(parents=True); Image.fromarray(pixels(0, 1)[0]).save(tmp_path/'own/leaves/1.png')
    with pytest.raises(InputError, match="leaves is not on this machine and can't be downloaded: give root=, a folder that holds leaves"): locate_set('leaves', ['leaves'], layout='leaves/*.png')
    with pytest.raises(InputError, match='It holds notes'):
        (tmp_path/'empty').mkdir(); (tmp_path/'empty/notes').touch(); locate_set('leaves', ['leaves'], layout='leaves/*.png', root=tmp_path/'empty')
    assert locate_set('leaves', ['leaves'], layout='leaves/*.png', root=tmp_path/'own') == tmp_path/'own'

def test_train_on_cifar10(tmp_path, monkeypatch, offline, capsys):
    from recon_nb.cli import train
    make_cifar(tmp_path/'x', monkeypatch, n=8)
    assert train(['cifar10', '--root', str(tmp_path/'x'), '--run-dir', str(tmp_path/'run'), *'--size 32 --width 4 --epochs 1 --bs 8'.split()]) == 0
    assert 'cifar10 train+test: 40 photos to train, 8 held out' in capsys.readouterr().out
    assert train(['svhn', '--root', str(tmp_path/'x'), '--run-dir', str(tmp_path/'run2')]) == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and 'no svhn in' in err and 'train_32x32.mat' in err
