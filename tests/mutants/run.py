"""Seeded faults: each is put into a copy of the library, and the tests and pages named for it must find it.

    python tests/mutants/run.py                  # all of them: who finds which, printed and in results.json
    python tests/mutants/run.py dropout epsilon  # those with such a word in their names

A fault is a file NN_name.toml: what goes wrong, the module, the old text, the new one, and the tests (`tests/x.py::name`) and
pages (`nbs/x.ipynb`) that find it, the quickest first. The old text stands in exactly one place of the module, and in one cell
of its page; `tests/test_mutants.py` holds that as the code moves. One that nothing finds survives, and the script fails."""
import argparse, json, os, re, shutil, subprocess, sys, tempfile
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

try: import tomllib
except ModuleNotFoundError: import tomli as tomllib # Python 3.10

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ALL = 100 # above every module's number


class Mutant(NamedTuple):
    name: str
    what: str # goes wrong, in a sentence
    file: str # the module, such as steps
    old: str
    new: str
    tests: list # of pytest's and of pages, the quickest first


def load(words=()):
    "The mutants, or those with one of some words in their names."
    found = [Mutant(f.stem, **tomllib.loads(f.read_text(encoding='utf-8'))) for f in sorted(HERE.glob('*.toml'))]
    return [m for m in found if not words or any(w in m.name for w in words)]


def page_of(m, root=ROOT):
    "The notebook that a mutant's module is written in."
    page, = (root/'nbs').glob(f'[0-9][0-9]_{m.file}.ipynb')
    return page


def code_cells(page): return [c for c in page['cells'] if c['cell_type'] == 'code']

def count(m, root=ROOT):
    "How often the old text stands in the module, and how many of its page's cells have it."
    page = json.loads(page_of(m, root).read_text(encoding='utf-8'))
    module = (root/'recon_nb'/f'{m.file}.py').read_text(encoding='utf-8')
    return module.count(m.old), sum(''.join(c['source']).count(m.old) for c in code_cells(page))


def put_in(m, root):
    "Change module and page in a copy; returns a function that puts them back."
    files = root/'recon_nb'/f'{m.file}.py', page_of(m, root)
    before = [f.read_bytes() for f in files]
    if count(m, root) != (1, 1): raise SystemExit(f'{m.name}: its old text is not in exactly one place')
    files[0].write_text(before[0].decode().replace(m.old, m.new), encoding='utf-8')
    page = json.loads(before[1])
    for c in code_cells(page): c['source'] = ''.join(c['source']).replace(m.old, m.new)
    files[1].write_text(json.dumps(page), encoding='utf-8')
    def put_back():
        for f,b in zip(files, before): f.write_bytes(b)
    return put_back


def number_of(module, root=ROOT):
    page, = (root/'nbs').glob(f'[0-9][0-9]_{module}.ipynb')
    return int(page.name[:2])


def preload(root):
    """Import the copy's library, once for all: each test starts in a fork of this process.
    Types are not checked here (`--noconftest`): a fault is to be found by a value, not by the shape it happens to have."""
    os.chdir(root)
    sys.path.insert(0, str(root))
    import torch
    torch.set_num_threads(1)
    for module in ('torch._dynamo', 'torchmetrics.functional.image', 'sklearn.cluster', 'pandas', 'hypothesis', '_pytest.assertion.rewrite'): import_module(module)
    for f in sorted((root/'recon_nb').glob('[a-z]*.py')): import_module(f'recon_nb.{f.stem}')
    assert Path(sys.modules['recon_nb'].__file__).parents[1] == root


def forget(root, number):
    "The modules from a number on: as each imports only from lower ones, the others can't know them."
    gone = {n for n in sys.modules if re.fullmatch(r'recon_nb\.[a-z]\w*', n) and number_of(n[9:], root) >= number}
    package = sys.modules['recon_nb']
    for n in gone: del sys.modules[n]
    for k,v in [*vars(package).items()]:
        if f'recon_nb.{k}' in gone or getattr(v, '__module__', None) in gone: delattr(package, k)


def fork_pytest(root, out, number, *args):
    "The exit status of pytest, in a process that imports the modules from a number on anew; what it prints goes into a file."
    import pytest
    if pid := os.fork(): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for k in (1, 2): os.dup2(fd, k)
    try:
        sys.dont_write_bytecode = number < ALL # two versions of a module within a second
        if number < ALL: forget(root, number)
        rc = int(pytest.main([*args]))
    except BaseException as e: rc = print(e) or 98
    sys.stdout.flush()
    os._exit(rc)


def ask(root, number, *tests):
    "Run a page, or some tests, in the copy. Returns what is said where one fails, or '' if they pass."
    page, out = tests[0].endswith('.ipynb'), root.parent/'out.txt'
    if page: rc = subprocess.run(['nbdev-test', '--n-workers', '0', *tests], cwd=root, stdin=subprocess.DEVNULL, stdout=out.open('w'), stderr=subprocess.STDOUT).returncode
    else: rc = fork_pytest(root, out, number, '-x', '--tb=short', '--noconftest', '-p', 'no:cacheprovider', *tests)
    if rc == 0: return ''
    said = out.read_text(encoding='utf-8', errors='replace')
    if not page and rc != 1: raise SystemExit(f'{tests} can not be run ({rc}):\n{said[-2000:]}')
    lines = [re.sub(r'\x1b\[[\d;]*m', '', x).removeprefix('E ').strip() for x in said.splitlines() if page or x.startswith('E ')]
    errors = [x for x in lines if re.match(r'(\w+\.)*\w*(Error|Exception|Diverged|Failed)\b', x)] if page else lines
    return ((errors or lines or ['?'])[-1 if page else 0])[:120]


def copy_of_tree(to):
    for part in ('recon_nb', 'nbs', 'tests', '.ci', 'benchmarks'): shutil.copytree(ROOT/part, to/part, ignore=shutil.ignore_patterns('__pycache__'))
    for f in ROOT.glob('*'):
        if f.is_file(): shutil.copy2(f, to/f.name)
    return to


def judge(m, root):
    "Who finds a mutant, as a row of results."
    put_back = put_in(m, root)
    try:
        says = ((t, ask(root, number_of(m.file, root), t)) for t in m.tests)
        by, said = next(((t, s) for t,s in says if s), (None, ''))
    finally: put_back()
    return dict(mutant=m.name, what=m.what, found_by=by, says=said)


def write(rows, file=HERE/'results.json'):
    "Put rows in the place of older ones; those of mutants that are gone go, too."
    old = json.loads(file.read_text(encoding='utf-8')) if file.exists() else []
    known = {r['mutant']: r for r in [*old, *rows]}
    lines = [json.dumps(known[m.name], ensure_ascii=False) for m in load() if m.name in known]
    file.write_text('[\n'+',\n'.join(lines)+'\n]\n', encoding='utf-8')


def main(words):
    mutants, rows = load(words), []
    with tempfile.TemporaryDirectory() as d:
        root = copy_of_tree(Path(d).resolve()/'copy')
        for k in ('RECON_NB_DATA', 'PYTEST_ADDOPTS'): os.environ.pop(k, None)
        os.environ |= dict(PYTHONPATH=str(root), OMP_NUM_THREADS='1', MPLBACKEND='Agg', RECON_NB_CACHE=f'{d}/cache', RECON_NB_SLOW='1')
        preload(root)
        named = [*dict.fromkeys(t for m in mutants for t in m.tests)]
        pages = [t for t in named if t.endswith('.ipynb')]
        for some in [[t for t in named if t not in pages], *([p] for p in pages)]: # without a fault everything passes
            if some and (says := ask(root, ALL, *some)): raise SystemExit(f'without any fault something fails: {says}\n' + (root.parent/'out.txt').read_text()[-3000:])
        for m in mutants:
            rows.append(r := judge(m, root))
            print(f"{r['mutant']}: {r['found_by'] or 'SURVIVES'} {r['says']}", flush=True)
            write(rows)
        os.chdir(ROOT)
    left = [r['mutant'] for r in rows if not r['found_by']]
    print(f'{len(rows)} faults, {len(left)} not found', *left)
    return len(left) > 0


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('words', nargs='*', help='parts of the names of those to try; all if none is given')
    sys.exit(main(p.parse_args().words))
