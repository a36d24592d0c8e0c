"""The gates around the library. `python .ci/gates.py` runs them all, `python .ci/gates.py NAME ...` some of them.

Each gate is a function that returns its faults as sentences: none means passed. It may raise `Skip`. `.ci/run` also hands over
what README's test command left behind (`--log`, `--junit`, `--rc`); notebooks and tests are then counted along with the gates."""
import argparse, ast, base64, csv, io, json, os, re, subprocess, sys, tempfile, zipfile
import xml.etree.ElementTree as ET
from configparser import ConfigParser
from email import message_from_string
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import docs, pages, readme
from pages import copy_of_tree, files

ROOT = Path(__file__).resolve().parents[1]
GATES = {}
LIMITS = dict(import_s=0.3, open_s=1.2, help_s=1.0, file_bytes=1_000_000, png_bytes=200_000,
              checkout_bytes=40_000_000, history_kib=48*1024)

class Skip(Exception): "The gate does not apply yet; the message says why."

def gate(f):
    GATES[f.__name__.replace('_', '-')] = f
    return f

def sh(*cmd, cwd=ROOT, env=None):
    "Run a command without input; its exit status and its output."
    r = subprocess.run([str(c) for c in cmd], cwd=cwd, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL,
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return r.returncode, r.stdout

def tail(text, n=15): return '\n'.join(text.strip().splitlines()[-n:])

def settings():
    ini = ConfigParser(delimiters=['='])
    ini.read(ROOT/'settings.ini', encoding='utf-8')
    return ini['DEFAULT']

def lib(): return sorted((ROOT/'recon_nb').glob('*.py'))

def snapshot(d): return {str(p.relative_to(d)): p.read_bytes() for p in d.rglob('*') if p.is_file() and '__pycache__' not in p.parts}

def changes(before, after, cmd):
    "How a command changed a folder, file by file."
    def what(f):
        if f not in before: return 'adds'
        return 'changes' if f in after else 'removes'
    return [f'{cmd} {what(f)} {f}' for f in sorted(before.keys() | after.keys()) if before.get(f) != after.get(f)]

@gate
def export_is_clean():
    "nbdev-clean and nbdev-export change nothing: notebooks are clean, and the library is what they say."
    faults = []
    with copy_of_tree() as d:
        before = snapshot(d)
        for cmd in ('nbdev-clean', 'nbdev-export'):
            rc, out = sh(cmd, cwd=d, env={'PYTHONPATH': str(d)})
            if rc: faults.append(f'{cmd} failed:\n{tail(out)}')
            after = snapshot(d)
            faults += changes(before, after, cmd)
            before = after
    return faults

@gate
def readme_in_sync():
    "README.md and CONTRIBUTING.md, with their pictures, are what their notebooks say."
    return readme.check(ROOT)

def all_lines(path):
    "The lines on which a module lists its public names: nbdev writes them, with up to 120 columns and more."
    for n in ast.parse(path.read_text(encoding='utf-8')).body:
        if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == '__all__': return range(n.lineno, n.end_lineno+1)
    return range(0)

def ruff_faults(root, folders):
    "What ruff finds in some folders, but for the length of the lines that nbdev writes."
    with tempfile.TemporaryDirectory() as d:
        report = Path(d)/'ruff.json'
        rc, out = sh(sys.executable, '-m', 'ruff', 'check', '--no-cache', '--output-format=json', '-o', report, *folders, cwd=root)
        if rc not in (0, 1): return [f'ruff failed:\n{tail(out)}']
        found = json.loads(report.read_text(encoding='utf-8'))
    faults = []
    for f in found:
        path, row = Path(f['filename']), f['location']['row']
        if f['code'] == 'E501' and path.suffix == '.py' and row in all_lines(path): continue
        cell = f":cell {f['cell']}" if f.get('cell') else ''
        faults.append(f"{path.relative_to(root)}{cell}:{row}: {f['code']} {f['message']}")
    return faults

@gate
def lint():
    "ruff finds nothing (syntax newer than Python 3.10 and lines over 100 columns included), and no module imports a star."
    stars = [f'{p.name}:{n.lineno} imports a star' for p in lib() for n in ast.walk(ast.parse(p.read_text(encoding='utf-8')))
             if isinstance(n, ast.ImportFrom) and n.names[0].name == '*']
    folders = [d for d in ('recon_nb', 'nbs', 'tests', '.ci', 'benchmarks') if (ROOT/d).is_dir()]
    return stars + ruff_faults(ROOT, folders)

def cpu_seconds(*cmd, n=5):
    "The least user + system time of a command: on a shared machine the clock on the wall measures the neighbours."
    code = ('import resource,subprocess,sys; r=subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, '
            'stderr=subprocess.PIPE, text=True); u=resource.getrusage(resource.RUSAGE_CHILDREN); '
            'print(u.ru_utime+u.ru_stime) if not r.returncode else sys.exit(r.stderr)')
    return least(n, '-c', code, *cmd)

def least(n, *args):
    "Python with these arguments `n` times, each time anew: the least of the numbers it prints. A first time, not counted, compiles."
    def once():
        rc, out = sh(sys.executable, *args, cwd=tempfile.gettempdir(), env={'PYTHONPATH': str(ROOT)})
        if rc: raise RuntimeError(f"{' '.join(map(str, args))} failed:\n{tail(out)}")
        return float(out)
    once()
    return min(once() for _ in range(n))

def seconds_after_torch(code, n=5):
    """CPU seconds of `code` in a process that has torch already: the least of `n`.

    `import torch` takes seconds of its own, and on a busy machine now half a second more, now less: it is not in the difference."""
    return least(n, '-c', f'import time, torch; t = time.process_time(); {code}; print(time.process_time()-t)')

@gate
def site():
    "The site builds without Quarto and holds: links, sizes, words for pictures, no other hosts, names, the sidebar, the first path."
    if sys.version_info < (3, 11):                          # smalldocs needs it; the pages must go through nbdev's half all the same
        with tempfile.TemporaryDirectory() as d: docs.process(ROOT, Path(d))
        raise Skip('the pages are processed, but their layout needs Python 3.11')
    warnings = [w for w in docs.build(ROOT) if 'broken link' not in w]           # the check names those with their pages
    sizes = [p.stat().st_size/1e6 for p in (ROOT/'_docs').rglob('*.html')]
    print(f'     {len(sizes)} pages, {sum(sizes):.0f} MB; the largest has {max(sizes):.1f}')
    return [*warnings, *docs.check(ROOT/'_docs', ROOT), *docs.stale_sidebar(ROOT), *docs.no_colab(ROOT),
            *docs.what_is_next(ROOT, ROOT/'_docs'), *docs.called_by_file(ROOT), *docs.first_path(ROOT)]

# A run of one checkpoint is written to the folder that is given.
MAKE_RUN = """
import sys
from recon_nb.state import toy_state
from recon_nb.trainer import save
save(toy_state(run_dir=sys.argv[1]))
"""

def opening_seconds():
    "CPU seconds beyond `import torch` in which a run is opened and a photo transformed."
    with tempfile.TemporaryDirectory() as d:
        rc, out = sh(sys.executable, '-c', MAKE_RUN, d, cwd=d, env={'PYTHONPATH': str(ROOT)})
        if rc: raise RuntimeError(f'no run to open:\n{tail(out)}')
        return seconds_after_torch(
            f"import numpy, recon_nb; recon_nb.GANRun.load({d!r}).transform(numpy.zeros((1,32,32,3), 'uint8'))")

@gate
def import_time():
    "`import recon_nb` costs next to nothing beside `import torch`, opening a run little, and `--help` answers at once."
    costs = [('import recon_nb after import torch', seconds_after_torch('import recon_nb'), LIMITS['import_s']),
             ('opening a run after import torch', opening_seconds(), LIMITS['open_s']),
             *((f'{name} --help', cpu_seconds(Path(sys.executable).parent/name, '--help'), LIMITS['help_s'])
               for name in ('recon', 'recon-train'))]
    print('     CPU seconds:', ', '.join(f'{what} {t:.2f}' for what,t,_ in costs))
    return [f'{what} takes {t:.2f} s CPU; allowed {most} s' for what,t,most in costs if t > most]

# What only developers install must not be needed by whoever installs the wheel.
WHEEL_CHECK = """
import importlib, sys
where, blocked, mods = sys.argv[1], sys.argv[2].split(), sys.argv[3:]
sys.path.insert(0, where)
for m in blocked: sys.modules[m] = None
for m in mods:
    try: mod = importlib.import_module(m)
    except Exception as e: print(f'{m} does not import from the wheel: {type(e).__name__}: {e}'); continue
    if not mod.__file__.startswith(where): print(f'{m} was imported from outside the wheel')
"""

# What only developers install.
DEV = ('nbdev execnb beartype pytest nbconvert build ruff hypothesis onnx onnxscript onnxruntime tensorboard '
       'wandb timm pillow_heif pycocotools')

def wheel_files(record):
    "What the wheel lacks, and what it has too many. `record`: the files it lists."
    want = {f'recon_nb/{p.name}' for p in lib()} | {'recon_nb/py.typed'}
    more = {f for f in record-want if '.dist-info/' not in f}
    return [f'the wheel lacks {f}' for f in sorted(want-record)] + [f'the wheel has {f} too many' for f in sorted(more)]

def wheel_metadata(meta, commands):
    "Where the wheel's metadata differ from settings.ini."
    cfg = settings()
    extras = sorted(k.removesuffix('_requirements') for k in cfg if k.endswith('_requirements'))
    pairs = [('version', meta['Version'], cfg['version']),
             ('license', meta['License-Expression'], cfg['license']),
             ('python', meta['Requires-Python'], f">={cfg['min_python']}"),
             ('extras', sorted(meta.get_all('Provides-Extra')), extras),
             ('commands', commands, dict(s.split('=') for s in cfg['console_scripts'].split())),
             ('long description', meta['Description-Content-Type'], 'text/markdown')]
    return [f'the wheel says {what} {got!r}, not {expected!r}' for what,got,expected in pairs if got != expected]

def dead_links(text):
    "Links of the long description that lead nowhere outside the repository."
    text = re.sub(r'^```.*?^```|`[^`\n]*`', '', text, flags=re.M|re.S)
    links = re.findall(r'(?:\]\(|src="|href=")(?!https?:|#|mailto:|data:)([^)"\s]+)', text)
    return [f'the long description links {l}, which a package index cannot follow' for l in links]

@gate
def wheel():
    "The source archive and the wheel build, hold every module and py.typed, and carry extras and commands; the modules import from it."
    with copy_of_tree() as d:
        rc, out = sh(sys.executable, '-m', 'build', '--outdir', d/'_dist', d, cwd=d)
        if rc: return [f'python -m build failed:\n{tail(out)}']
        if not list((d/'_dist').glob('*.tar.gz')): return ['no source archive was built']
        whl, = (d/'_dist').glob('*.whl')
        with zipfile.ZipFile(whl) as z: z.extractall(d/'_wheel')
        info, = (d/'_wheel').glob('*.dist-info')
        record = {r[0] for r in csv.reader(io.StringIO((info/'RECORD').read_text())) if r}
        meta, points = message_from_string((info/'METADATA').read_text()), ConfigParser(delimiters=['='])
        points.read(info/'entry_points.txt')
        commands = dict(points['console_scripts']) if 'console_scripts' in points else {}
        faults = wheel_files(record) + wheel_metadata(meta, commands) + dead_links(meta.get_payload())
        mods = [f'recon_nb.{p.stem}' for p in lib() if p.stem != '__init__']
        rc, out = sh(sys.executable, '-c', WHEEL_CHECK, d/'_wheel', DEV, *mods, cwd=d/'_dist')
        faults += out.splitlines()[-20:]
        if rc and not out: faults.append(f'the modules do not import from the wheel: status {rc}')
        return faults

# Written so that no pattern matches itself.
MACHINE = re.compile(r'(?<![\w.:/-])/(?:home|root|tmp|Users|private|work|mnt|workspace)/[\w.]|[A-Z]:\\+Users\\')

def text_of(output):
    "All text of one saved output, what a reader does not see included; pictures apart."
    data = [v for k,v in sorted(output.get('data', {}).items()) if not k.startswith('image/')]
    texts = [readme.as_text(v) if isinstance(v, (str, list)) else json.dumps(v) for v in data]
    return '\n'.join([readme.as_text(output.get('text', '')), *output.get('traceback', []), *texts])

def visible_text(f):
    "A file's text without pictures; a notebook as its cells, so that saved outputs are judged too."
    try: text = (ROOT/f).read_text(encoding='utf-8')
    except UnicodeDecodeError: return ''
    if f.endswith('.ipynb'):
        cells = json.loads(text)['cells']
        text = '\n'.join([*(''.join(c['source']) for c in cells), *(text_of(o) for c in cells for o in c.get('outputs', []))])
    return re.sub(r'base64,[A-Za-z0-9+/=\s]+', 'base64,', text)

CUT = re.compile(r'(?:>|^\w+ +)([^<>\n]{35,}\.\.\.)(?:</td>|$)', re.M)

def cut_texts(output):
    "Texts of a table that pandas has cut. Whether it does depends on the pages that ran before in the same process."
    data = output.get('data', {})
    return CUT.findall(readme.as_text(data.get('text/html') or data.get('text/plain', '')))

def output_faults(f):
    "Saved errors, large pictures and cut texts of a notebook."
    faults = []
    for c in json.loads((ROOT/f).read_text(encoding='utf-8'))['cells']:
        for o in c.get('outputs', []):
            if o['output_type'] == 'error': faults.append(f"{f}, cell {c['id']}: a saved error, {o['ename']}")
            faults += [f"{f}, cell {c['id']}: {t[-40:]!r} is cut: pd.set_option('display.max_colwidth', None)" for t in cut_texts(o)]
            png = len(base64.b64decode(readme.as_text(o.get('data', {}).get('image/png', ''))))
            if png > LIMITS['png_bytes']: faults.append(f"{f}, cell {c['id']}: a picture of {png//1000} kB; allowed 200 kB")
    return faults

def history_kib():
    "What a clone of this branch fetches from a host that packs well. What lies about in this checkout is nobody else's."
    with tempfile.TemporaryDirectory() as d:
        clone = 'clone', '-q', '--bare', '--no-local', '--single-branch', ROOT, d
        for cmd in (clone, ('-C', d, 'repack', '-adfq', '--window=50', '--depth=50')):
            rc, out = sh('git', *cmd)
            if rc: raise RuntimeError(f"git {' '.join(map(str, cmd))}: {tail(out)}")
        return sum(p.stat().st_size for p in Path(d).rglob('*.pack')) / 1024

@gate
def repository():
    "The repository stays small, its notebooks hold no error and no large picture, and nothing names a path of somebody's machine."
    faults, tracked = [], files()
    for f in tracked:
        size = (ROOT/f).stat().st_size
        if size > LIMITS['file_bytes']: faults.append(f'{f} has {size/1e6:.1f} MB; allowed 1 MB')
        faults += [f'{f} names a path of a machine: {m[0]}...' for m in MACHINE.finditer(visible_text(f))]
        if f.endswith('.ipynb'): faults += output_faults(f)
    kib, size = history_kib(), sum((ROOT/f).stat().st_size for f in tracked)
    print(f'     {len(tracked)} files, {size/1e6:.1f} MB; history {kib/1024:.1f} MiB')
    faults += [f'the files have {size/1e6:.0f} MB; allowed 40'] * (size > LIMITS['checkout_bytes'])
    return faults + [f'the history has {kib/1024:.0f} MiB; allowed 48'] * (kib > LIMITS['history_kib'])

@gate
def workflows():
    "Each action is pinned by a full commit hash, with its version as a comment."
    paths = sorted((ROOT/'.github/workflows').glob('*.y*ml'))
    uses = [(p.name, l.strip()) for p in paths for l in p.read_text().splitlines() if re.match(r'\s*(-\s+)?uses:', l)]
    return [f'{f}: not pinned: {l}' for f,l in uses if not re.search(r'@[0-9a-f]{40} # v\d', l)] + ['there is no workflow'] * (not paths)

@gate
def release_notes():
    "CHANGELOG.md and CITATION.cff speak of this version; LICENSE is the licence that the metadata names."
    import yaml
    v, faults = settings()['version'], []
    cff = yaml.safe_load((ROOT/'CITATION.cff').read_text(encoding='utf-8'))
    faults += [f'CITATION.cff lacks {k}' for k in ('cff-version', 'message', 'title', 'authors', 'license', 'references') if k not in cff]
    if str(cff.get('version')) != v: faults.append(f"CITATION.cff says version {cff.get('version')}, settings.ini {v}")
    log = (ROOT/'CHANGELOG.md').read_text(encoding='utf-8')
    if not re.search(rf'^## \[?{re.escape(v)}\b', log, re.M): faults.append(f'CHANGELOG.md has no section for {v}')
    if 'Apache License' not in (ROOT/'LICENSE').read_text(encoding='utf-8'): faults.append('LICENSE is not the Apache License')
    return faults

def run_gate(name):
    "Run one gate, print what it found; 'passed', 'failed' or 'skipped'."
    try: faults = GATES[name]()
    except Skip as e:
        print(f'skip {name}: {e}')
        return 'skipped'
    except Exception as e: faults = [f'{type(e).__name__}: {e}']   # the other gates still have to run
    print(f"{'FAIL' if faults else 'ok  '} {name}", *(f'     - {f}' for f in faults), sep='\n', flush=True)
    return 'failed' if faults else 'passed'

def stale_pages(log): return re.findall(f'^{re.escape(pages.DIFFERS)}(.+)', log, re.M)

def count_notebooks(log):
    "Passed, failed and skipped notebooks, from what .ci/pages.py printed. One that says something else than what is saved has failed."
    nbs, off = pages.notebooks(ROOT)
    run, failed = len(nbs) - len(off), pages.failed_in(log)
    n = run if failed is None else min(len(failed) + len(stale_pages(log)), run)
    return dict(passed=run-n, failed=n, skipped=len(off))

def end_of_test(case):
    "How a test ended, from its entry in pytest's record."
    if {'failure', 'error'} & {x.tag for x in case}: return 'failed'
    return 'passed' if case.find('skipped') is None else 'skipped'

def count_tests(junit):
    "Passed, failed and skipped tests, from pytest's own record. No record is one failure."
    try: ends = [end_of_test(c) for c in ET.parse(junit).iter('testcase')]
    except (OSError, ET.ParseError): return dict(passed=0, failed=1, skipped=0)
    return {k: ends.count(k) for k in ('passed', 'failed', 'skipped')}

def counted(counts): return ', '.join(f'{n} {k}' for k,n in counts.items())

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('names', nargs='*', metavar='NAME', help=f"gates to run: {', '.join(GATES)}")
    p.add_argument('--log', type=Path, help='what the test command printed')
    p.add_argument('--junit', type=Path, help="pytest's record")
    p.add_argument('--rc', type=int, default=0, help='the exit status of the test command')
    a = p.parse_args()
    unknown = [n for n in a.names if n not in GATES]
    if unknown: p.error(f"unknown gate {', '.join(unknown)}; there are {', '.join(GATES)}")
    results = [run_gate(n) for n in a.names or GATES]
    counts = dict(gates={k: results.count(k) for k in ('passed', 'failed', 'skipped')})
    if a.log:
        log = a.log.read_text(errors='replace')
        counts = dict(notebooks=count_notebooks(log), tests=count_tests(a.junit), **counts)
        failed = pages.failed_in(log)
        if failed is None: print('nbdev-test did not come to its end: every page counts as failed')
        for name in failed or []: print(f'page failed: {name}')
        for name in stale_pages(log): print(f'{pages.DIFFERS}{name}')
        print('; '.join(f'{what}: {counted(c)}' for what,c in counts.items()))
        if a.rc and not (counts['notebooks']['failed'] or counts['tests']['failed']):
            print(f"FAIL README's test command ended with status {a.rc}")
            counts['command'] = dict(passed=0, failed=1, skipped=0)
    total = {k: sum(c[k] for c in counts.values()) for k in ('passed', 'failed', 'skipped')}
    print(counted(total))
    return bool(total['failed'])

if __name__ == '__main__': sys.exit(main())
