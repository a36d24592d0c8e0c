"""Files from somebody else: what can be given, how it is changed, and all that is done with it then. Run without the types' checks, as people run it:

    python tests/strangers.py 0 7            # the mutations 0 to 6 of every subject
    python tests/strangers.py 0 300 tar zip  # of two of them

prints a line of JSON: cases, seconds of CPU, and what is wrong, by subject and number. Whoever changes a mutation changes what a number means."""
import json, os, shutil, sys, tarfile, tempfile, time, traceback, warnings, zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from PIL import Image
from safetensors.torch import save_file

import mutations
from recon_nb import GANRun, compare_runs, export_encoder, load_photos, load_pretrained, train_gan
from recon_nb.boxed import _read_note
from recon_nb.card import model_card, write_release
from recon_nb.config import get_preset
from recon_nb.contenders import as_contender
from recon_nb.core import InputError, read_jsonl
from recon_nb.download import _unpack
from recon_nb.overlap import overlap
from recon_nb.photos import _seal
from recon_nb.run import _first_weights, load_encoder
from recon_nb.settings import _choose_config
from recon_nb.shapes import draw_shapes
from recon_nb.state import toy_state
from recon_nb.tables import summarize, table, to_markdown
from recon_nb.trainer import restore
from mutations import memory, mutate_archive, mutate_bytes, mutate_json, mutate_lines, mutate_tensors, watching

PHOTOS = draw_shapes(24, size=40, seed=5)[0]
HOW = dict(size=16, cuts={'i_r': 1.}, workers=1, progress=False)
RECORDS = os.path.join(os.path.dirname(__file__), 'fixtures', '0.1.0', 'records.jsonl')


# --- what a stranger may give, and all that is done with it

def use_run(d):
    run = GANRun.load(d/'run', device='cpu')
    repr(run), run.kept, run.finished, run.say_score(), repr(run.health()), len(run.history)
    run.transform(PHOTOS[:1]), run.reconstruct(PHOTOS[:1])


def use_weights(d):
    for open_it in (GANRun.load, load_pretrained):
        try: open_it(d/'run', device='cpu')
        except InputError: pass
    load_encoder(d/'run')
    as_contender(d/'run')


def use_history(d):
    run = GANRun.load(d/'run', device='cpu')
    list(run.history), run.metrics, repr(run.health()), repr(run), model_card(run)
    both = compare_runs(d/'run', d/'other')
    repr(both), plt.close(both.figure())


def use_samples(d):
    run = GANRun.load(d/'run', device='cpu')
    for look in (run.snapshots, run.held_out, run.show):
        try: look()
        except InputError: pass
    plt.close('all')


def use_cache(d):
    os.environ['RECON_NB_CACHE'] = str(d/'cache')
    got = load_photos(d/'photos', **HOW)
    assert len(got) == len(got.names) == len(got.cuts['i_r']) == len(got.content_ids())
    repr(got)


def use_records(d):
    records = read_jsonl(d/'records.jsonl')
    summarize(records), to_markdown(table(records, 'knn'))


def begin_with(d, name): _first_weights(get_preset('quick', width=2, init=str(d/name)))


def use_config(d):
    for name in ('mine.json', 'mine.toml', 'mine.yaml'): _choose_config({}, config=d/name)


def use_plain_config(d):
    _choose_config({}, like=d/'run')
    _choose_config({}, run_dir=d/'run', resume=True)


def go_on(d):
    st = toy_state('quick', width=2, run_dir=d/'run')
    restore(st)


def use_note(d):
    try: _read_note(d/'note.xml')
    except ValueError as e: raise InputError(str(e)) from None          # which is how `load_detection` counts it


def sealed(rng, b):
    "An entry of the cache whose checksum fits whatever it says."
    try: meta = {**json.loads(mutate_json(rng, b)), 'seal': 0}
    except (ValueError, TypeError, RecursionError): return b
    return json.dumps({**meta, 'seal': _seal(meta)}).encode()


def mutate_pth(rng, b): return mutate_bytes(rng, b) if rng.random() < .7 else mutations.pickled(mutations.MARKER)


# name -> (the files of which one is changed, how, what is done with them)
SUBJECTS = {
    'weights': (['run/weights.safetensors'], mutate_tensors, use_weights),
    'run.json': (['run/run.json'], mutate_json, use_run),
    'history': (['run/history.jsonl'], mutate_lines, use_history),
    'metrics': (['run/metrics.jsonl'], mutate_lines, use_history),
    'config.json': (['run/config.json'], mutate_json, use_plain_config),
    'checkpoint': (['run/checkpoint.safetensors'], mutate_tensors, go_on),
    'photos.npz': (['run/photos.npz'], mutate_bytes, lambda d: overlap(d/'run', PHOTOS)),
    'samples': (['run/samples/held-out.webp', 'run/samples/epoch-0001.webp', 'run/samples/epoch-0001.png'], mutate_bytes, use_samples),
    'export': (['encoder.safetensors'], mutate_tensors, lambda d: load_pretrained(d/'encoder.safetensors', device='cpu').encoder(torch.zeros(1, 3, 32, 32))),
    'release': (['release/encoder.safetensors', 'release/generator.safetensors'], mutate_tensors, lambda d: load_pretrained(d/'release', device='cpu').preprocess(PHOTOS[:1])),
    'card': (['release/README.md'], mutate_bytes, lambda d: load_pretrained(d/'release', device='cpu')),
    'init': (['encoder.safetensors', 'foreign.safetensors'], mutate_tensors, lambda d: [begin_with(d, n) for n in ('encoder.safetensors', 'foreign.safetensors')]),
    'pth': (['foreign.pth'], mutate_pth, lambda d: begin_with(d, 'foreign.pth')),
    'records': (['records.jsonl'], mutate_lines, use_records),
    'cache': (['cache/photos/ENTRY/meta.json', 'cache/photos/ENTRY/i_r.npy'], mutate_bytes, use_cache),
    'sealed cache': (['cache/photos/ENTRY/meta.json'], sealed, use_cache),
    'tar': (['a.tar'], mutate_archive, lambda d: _unpack(d/'a.tar', d/'out', most=10**6, progress=False)),
    'tar.gz': (['a.tar.gz'], mutate_bytes, lambda d: _unpack(d/'a.tar.gz', d/'out', most=10**6, progress=False)),
    'zip': (['a.zip'], mutate_archive, lambda d: _unpack(d/'a.zip', d/'out', most=10**6, progress=False)),
    'json config': (['mine.json'], mutate_json, use_config),
    'other configs': (['mine.toml', 'mine.yaml'], mutate_bytes, use_config),
    'table': (['table.csv'], mutate_bytes, lambda d: load_photos(d/'table.csv', root=d/'photos', **HOW)),
    'annotation': (['note.xml'], mutate_bytes, use_note)}


def make_home(d):
    "One of each, whole."
    run = train_gan(PHOTOS, run_dir=d/'run', width=2, bs=8, epochs=2, progress=False)
    shutil.copytree(run.dir, d/'other')
    export_encoder(run, d/'encoder.safetensors')
    write_release(run, d/'release', licence='mit')
    own = {k: v for k, v in run.encoder.state_dict().items()}
    save_file(own, d/'foreign.safetensors')
    torch.save(own, d/'foreign.pth')
    probes = [r for r in read_jsonl(RECORDS) if r.get('kind', 'probe') == 'probe' and r.get('task', 'classification') == 'classification']
    (d/'records.jsonl').write_text(''.join(json.dumps(r)+'\n' for r in probes))
    (d/'photos').mkdir()
    for i in range(4): Image.fromarray(PHOTOS[i]).save(d/'photos'/f'{i}.png')
    (d/'table.csv').write_text('path,label\n'+''.join(f'{i}.png,{"ab"[i%2]}\n' for i in range(4)))
    cfg = dict(preset='quick', bs=16, lr_g=1e-3, seed=3, flip=True, mask='centre')
    (d/'mine.json').write_text(json.dumps(cfg))
    (d/'mine.toml').write_text(''.join(f'{k} = {json.dumps(v)}\n' for k, v in cfg.items()))
    (d/'mine.yaml').write_text(''.join(f'{k}: {json.dumps(v)}\n' for k, v in cfg.items()))
    (d/'note.xml').write_text('<annotation><size><width>40</width><height>40</height></size><object><name>dog</name><difficult>0</difficult>'
                              '<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>20</xmax><ymax>30</ymax></bndbox></object></annotation>')
    for mode, name in (('w', 'a.tar'), ('w:gz', 'a.tar.gz')):
        with tarfile.open(d/name, mode) as tar: tar.add(d/'table.csv', 'a/table.csv')
    with zipfile.ZipFile(d/'a.zip', 'w') as z: z.write(d/'table.csv', 'a/table.csv')
    return d


def make_place(d):
    "Where the cases run: everything once, whole, and a copy that is mended between them."
    os.environ['RECON_NB_CACHE'] = str(d/'given'/'cache')
    mutations.MARKER = d/'marker'
    (d/'given').mkdir()
    make_home(d/'given')
    load_photos(d/'given'/'photos', **HOW)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for _, _, use in SUBJECTS.values(): use(d/'given')      # what is imported late is imported now, and whole files open
    shutil.rmtree(d/'given'/'out')
    shutil.copytree(d/'given', d/'whole')
    return d


def file_of(d, name):
    if 'ENTRY' not in name: return d/name
    return next((d/'cache/photos').iterdir())/name.rpartition('/')[2]


def mended(place):
    shutil.rmtree(place/'given')
    shutil.copytree(place/'whole', place/'given')


def try_one(place, subject, number):
    "One mutation: None, or what is wrong with the answer to it."
    names, mutate, use = SUBJECTS[subject]
    rng = np.random.default_rng([number, *subject.encode()])
    mended(place)
    path = file_of(place/'given', names[rng.integers(len(names))])
    whole = path.read_bytes()
    path.write_bytes(b := mutate(rng, whole))
    found, answer = None, 'opened'
    with warnings.catch_warnings(), memory() as took, watching() as seen:
        warnings.simplefilter('ignore')
        try: use(place/'given')
        except InputError as e:
            answer = str(e)
            if not answer or len(answer) > 2000 or '\n' in answer: found = f'refused in more than a sentence: {answer[:300]!r}'
        except Exception as e:
            tb = traceback.extract_tb(e.__traceback__)
            ours = [f'{f.name}:{f.lineno}' for f in tb if '/recon_nb/' in f.filename]
            found = f'{type(e).__name__}: {str(e)[:200]} in {ours[-1:]}'
    plt.close('all')
    ran = [s for s in seen if s[0] in mutations.RUNS and not torch_unpickles(s)]
    wrote = [s for s in seen if s[0] not in mutations.RUNS and not inside(s[1], place/'given')]
    if mutations.MARKER.exists(): found = 'a pickle ran'
    if ran: found = f'it ran {ran[0]}'
    if wrote: found = f'it wrote {wrote[0]}'
    if {p.name for p in place.iterdir()} - {'given', 'whole'}: found = 'it wrote outside'
    allowed = 10*max(len(b), len(whole))+64*2**20
    if took[0] > allowed: found = f'it took {took[0]/2**20:.0f} MB for a file of {len(b)} bytes ({answer[:80]})'
    return found


def torch_unpickles(event): return event[0] == 'pickle.find_class' and event[1] in ('collections', 'torch._utils', 'torch')


def inside(path, folder):
    return os.path.realpath(path).startswith(str(folder)) or '__pycache__' in path or path == os.devnull


def main(first, last, *subjects):
    with tempfile.TemporaryDirectory() as d:
        place, found, start = make_place(Path(d)), defaultdict(dict), time.process_time()
        subjects = subjects or [*SUBJECTS]
        for s in subjects:
            for n in range(int(first), int(last)):
                if fault := try_one(place, s, n): found[s][n] = fault
    print(json.dumps(dict(cases=len(subjects)*(int(last)-int(first)), seconds=round(time.process_time()-start, 1), faults=found)))


if __name__ == '__main__': main(*sys.argv[1:])
