"""The gates around the library. `python .ci/gates.py` runs them all, `python .ci/gates.py NAME ...` some of them.

Each gate is a function that returns its faults as sentences: none means passed. It may raise `Skip`. `.ci/run` also hands over what README's
test command left behind (`--log`, `--junit`, `--rc`); notebooks and tests are then counted along with the gates."""
import argparse, ast, base64, csv, io, json, os, re, shutil, statistics, subprocess, sys, tempfile, zipfile
import xml.etree.ElementTree as ET
from configparser import ConfigParser
from contextlib import contextmanager
from email import message_from_string
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import docs, readme

ROOT = Path(__file__).resolve().parents[1]
GATES = {}
LIMITS = dict(import_s=0.3, help_s=1.0, file_bytes=1_000_000, png_bytes=200_000, repo_kib=40*1024)

class Skip(Exception): "The gate does not apply yet; the message says why."

def gate(f): GATES[f.__name__.replace('_', '-')] = f; return f

def sh(*cmd, cwd=ROOT, env=None):
    "Run a command without input; its exit status and its output."
    r = subprocess.run([str(c) for c in cmd], cwd=cwd, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL,
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return r.returncode, r.stdout

def tail(text, n=15): return '\n'.join(text.strip().splitlines()[-n:])
def settings(): ini = ConfigParser(delimiters=['=']); ini.read(ROOT/'settings.ini', encoding='utf-8'); return ini['DEFAULT']
def lib(): return sorted((ROOT/'recon_nb').glob('*.py'))

def files():
    "The files git tracks, and the new ones it does not ignore."
    rc, out = sh('git', 'ls-files', '-z', '-co', '--exclude-standard')
    if rc: raise RuntimeError(f'git ls-files: {out}')
    return sorted(f for f in out.split('\0') if f and (ROOT/f).is_file())

@contextmanager
def copy_of_tree():
    "A copy of `files()` in a temporary folder, so that no gate can change the checkout it judges."
    with tempfile.TemporaryDirectory() as d:
        for f in files():
            (Path(d)/f).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT/f, Path(d)/f)
        yield Path(d)

def snapshot(d): return {str(p.relative_to(d)): p.read_bytes() for p in d.rglob('*') if p.is_file() and '__pycache__' not in p.parts}

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
            for f in sorted(before.keys() | after.keys()):
                if before.get(f) != after.get(f):
                    faults.append(f"{cmd} {'changes' if f in before and f in after else 'adds' if f in after else 'removes'} {f}")
            before = after
    return faults

@gate
def readme_in_sync():
    "README.md and CONTRIBUTING.md, with their pictures, are what their notebooks say."
    return readme.check(ROOT)

@gate
def lint():
    "ruff finds nothing (syntax newer than Python 3.10 included), and no module imports a star."
    rc, out = sh(sys.executable, '-m', 'ruff', 'check', '--no-cache', '--output-format=concise', 'recon_nb', 'nbs', 'tests', '.ci', 'benchmarks')
    stars = [f'{p.name}:{n.lineno} imports a star' for p in lib() for n in ast.walk(ast.parse(p.read_text(encoding='utf-8')))
             if isinstance(n, ast.ImportFrom) and n.names[0].name == '*']
    return stars + ([tail(out, 40)] if rc else [])

def cpu_seconds(*cmd, n=3):
    "The median user + system time of a command: on a shared machine the clock on the wall measures the neighbours."
    code = ('import resource,subprocess,sys; r=subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, '
            'stderr=subprocess.PIPE, text=True); u=resource.getrusage(resource.RUSAGE_CHILDREN); '
            'print(u.ru_utime+u.ru_stime) if not r.returncode else sys.exit(r.stderr)')
    times = []
    for _ in range(n+1):                                    # the first one compiles
        rc, out = sh(sys.executable, '-c', code, *cmd, cwd=tempfile.gettempdir(), env={'PYTHONPATH': str(ROOT)})
        if rc: raise RuntimeError(f"{' '.join(map(str, cmd))} failed:\n{tail(out)}")
        times.append(float(out))
    return statistics.median(times[1:])

@gate
def site():
    "The site builds without Quarto, and holds: links, sizes, words for pictures, nothing from other hosts, an entry for each public name, the sidebar."
    if sys.version_info < (3, 11):                          # smalldocs needs it; the pages must go through nbdev's half all the same
        with tempfile.TemporaryDirectory() as d: docs.process(ROOT, Path(d))
        raise Skip('the pages are processed, but their layout needs Python 3.11')
    warnings = [w for w in docs.build(ROOT) if 'broken link' not in w]           # the check names those with their pages
    pages = sorted((ROOT/'_docs').rglob('*.html'))
    print(f'     {len(pages)} pages, {sum(p.stat().st_size for p in pages)/1e6:.0f} MB; the largest has {max(p.stat().st_size for p in pages)/1e6:.1f}')
    return warnings + docs.check(ROOT/'_docs', ROOT) + docs.stale_sidebar(ROOT) + docs.no_colab(ROOT)

@gate
def import_time():
    "`import recon_nb` costs next to nothing beside `import torch`, and `recon-train --help` answers at once."
    base, ours = (cpu_seconds(sys.executable, '-c', f'import torch{x}') for x in ('', ', recon_nb'))
    faults = [f"import recon_nb adds {ours-base:.2f} s CPU to import torch; allowed {LIMITS['import_s']} s"] * (ours-base > LIMITS['import_s'])
    print(f'     import torch {base:.2f} s CPU, and recon_nb {ours:.2f} s')
    if not (ROOT/'recon_nb/cli.py').exists(): return faults
    t = cpu_seconds(Path(sys.executable).parent/'recon-train', '--help')
    print(f'     recon-train --help {t:.2f} s CPU')
    return faults + [f"recon-train --help takes {t:.2f} s CPU; allowed {LIMITS['help_s']} s"] * (t > LIMITS['help_s'])

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

@gate
def wheel():
    "The source archive and the wheel build, hold every module and py.typed, and carry extras and commands; the modules import from it."
    cfg = settings()
    with copy_of_tree() as d:
        rc, out = sh(sys.executable, '-m', 'build', '--outdir', d/'_dist', d, cwd=d)
        if rc: return [f'python -m build failed:\n{tail(out)}']
        whl, = (d/'_dist').glob('*.whl')
        if not list((d/'_dist').glob('*.tar.gz')): return ['no source archive was built']
        with zipfile.ZipFile(whl) as z: z.extractall(d/'_wheel')
        info, = (d/'_wheel').glob('*.dist-info')
        record = {r[0] for r in csv.reader(io.StringIO((info/'RECORD').read_text())) if r}
        want = {f'recon_nb/{p.name}' for p in lib()} | {'recon_nb/py.typed'}
        faults = [f'the wheel lacks {f}' for f in sorted(want-record)]
        faults += [f'the wheel has {f} too many' for f in sorted(f for f in record-want if '.dist-info/' not in f)]
        meta, ep = message_from_string((info/'METADATA').read_text()), ConfigParser(delimiters=['='])
        ep.read(info/'entry_points.txt')
        scripts = dict(s.split('=') for s in cfg['console_scripts'].split())
        for what, got, expected in [
            ('version', meta['Version'], cfg['version']), ('license', meta['License-Expression'], cfg['license']),
            ('python', meta['Requires-Python'], f">={cfg['min_python']}"),
            ('extras', sorted(meta.get_all('Provides-Extra')), sorted(k.removesuffix('_requirements') for k in cfg if k.endswith('_requirements'))),
            ('commands', dict(ep['console_scripts']) if 'console_scripts' in ep else {}, scripts),
            ('long description', meta['Description-Content-Type'], 'text/markdown')]:
            if got != expected: faults.append(f'the wheel says {what} {got!r}, not {expected!r}')
        text = re.sub(r'^```.*?^```|`[^`\n]*`', '', meta.get_payload(), flags=re.M|re.S)
        links = re.findall(r'(?:\]\(|src="|href=")(?!https?:|#|mailto:|data:)([^)"\s]+)', text)
        faults += [f'the long description links {l}, which a package index cannot follow' for l in links]
        mods = [f'recon_nb.{p.stem}' for p in lib() if p.stem != '__init__']
        extra = 'nbdev execnb beartype pytest sklearn nbconvert build ruff onnx onnxscript onnxruntime tensorboard'
        rc, out = sh(sys.executable, '-c', WHEEL_CHECK, d/'_wheel', extra, *mods, cwd=d/'_dist')
        return faults + out.splitlines()[-20:] if rc or out else faults

# Written so that no pattern matches itself.
MACHINE = re.compile(r'(?<![\w.:/-])/(?:home|root|tmp|Users|private|work|mnt|workspace)/[\w.]|[A-Z]:\\+Users\\')

def visible_text(f):
    "A file's text without pictures; a notebook as its cells, so that saved outputs are judged too."
    try: text = (ROOT/f).read_text(encoding='utf-8')
    except UnicodeDecodeError: return ''
    if f.endswith('.ipynb'):
        parts = []
        for c in json.loads(text)['cells']:
            parts.append(''.join(c['source']))
            for o in c.get('outputs', []):
                parts += [''.join(o.get('text', '')), '\n'.join(o.get('traceback', []))]
                parts += [v if isinstance(v, str) else ''.join(v) if isinstance(v, list) else json.dumps(v)
                          for k,v in o.get('data', {}).items() if not k.startswith('image/')]
        text = '\n'.join(parts)
    return re.sub(r'base64,[A-Za-z0-9+/=\s]+', 'base64,', text)

@gate
def repository():
    "The repository stays small, its notebooks hold no error and no large picture, and nothing names a path of somebody's machine."
    faults = []
    for f in files():
        size = (ROOT/f).stat().st_size
        if size > LIMITS['file_bytes']: faults.append(f'{f} has {size/1e6:.1f} MB; allowed 1 MB')
        faults += [f'{f} names a path of a machine: {m[0]}...' for m in MACHINE.finditer(visible_text(f))]
        if not f.endswith('.ipynb'): continue
        for c in json.loads((ROOT/f).read_text(encoding='utf-8'))['cells']:
            for o in c.get('outputs', []):
                if o['output_type'] == 'error': faults.append(f"{f}, cell {c['id']}: a saved error, {o['ename']}")
                png = len(base64.b64decode(readme.as_text(o.get('data', {}).get('image/png', ''))))
                if png > LIMITS['png_bytes']: faults.append(f"{f}, cell {c['id']}: a picture of {png//1000} kB; allowed 200 kB")
    rc, out = sh('git', 'count-objects', '-v')
    kib = sum(int(n) for k,n in re.findall(r'^(size|size-pack): (\d+)$', out, re.M))
    print(f'     {len(files())} files, history {kib/1024:.1f} MiB')
    return faults + [f'the history has {kib/1024:.0f} MiB; allowed 40'] * (kib > LIMITS['repo_kib'])

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
    except Skip as e: print(f'skip {name}: {e}'); return 'skipped'
    except Exception as e: faults = [f'{type(e).__name__}: {e}']   # the other gates still have to run
    print(f"{'FAIL' if faults else 'ok  '} {name}", *(f'     - {f}' for f in faults), sep='\n', flush=True)
    return 'failed' if faults else 'passed'

def notebooks():
    "The notebooks that nbdev-test looks at, and those of them that ask not to be run."
    nbs = [p for p in sorted((ROOT/'nbs').rglob('*.ipynb')) if not re.search(r'(^|/)[_.]', str(p.relative_to(ROOT/'nbs')))]
    off = [p for p in nbs if re.search(r'^skip_exec: *true', ''.join(''.join(c['source'])+'\n' for c in json.loads(p.read_text())['cells'][:1]), re.M)]
    return nbs, off

def count_notebooks(log):
    "Passed, failed and skipped notebooks, from what nbdev-test printed. Silence is failure: it must have said Success."
    nbs, off = notebooks()
    m = re.search(r'Tests Failed On The Following Notebooks:\n=+\n((?:\t.*\n?)+)', log)
    if m: failed = len(m[1].strip().splitlines())
    else: failed = 0 if re.search(r'^Success\.$', log, re.M) else len(nbs)-len(off)
    return dict(passed=len(nbs)-len(off)-failed, failed=failed, skipped=len(off))

def count_tests(junit):
    "Passed, failed and skipped tests, from pytest's own record. No record is one failure."
    try: cases = list(ET.parse(junit).iter('testcase'))
    except (OSError, ET.ParseError): return dict(passed=0, failed=1, skipped=0)
    kinds = ['failed' if {'failure', 'error'} & {x.tag for x in c} else 'skipped' if c.find('skipped') is not None else 'passed' for c in cases]
    return {k: kinds.count(k) for k in ('passed', 'failed', 'skipped')}

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('names', nargs='*', metavar='NAME', help=f"gates to run: {', '.join(GATES)}")
    p.add_argument('--log', type=Path); p.add_argument('--junit', type=Path); p.add_argument('--rc', type=int, default=0)
    a = p.parse_args()
    if unknown := [n for n in a.names if n not in GATES]: p.error(f"unknown gate {', '.join(unknown)}; there are {', '.join(GATES)}")
    results = [run_gate(n) for n in a.names or GATES]
    counts = [{k: results.count(k) for k in ('passed', 'failed', 'skipped')}]
    if a.log:
        nb, py = count_notebooks(a.log.read_text(errors='replace')), count_tests(a.junit)
        for what, c in [('notebooks', nb), ('tests', py), ('gates', counts[0])]: print(f'{what}:', ', '.join(f'{n} {k}' for k,n in c.items()), end='; ')
        print()
        counts += [nb, py]
        if a.rc and not (nb['failed'] or py['failed']):
            print(f"FAIL README's test command ended with status {a.rc}"); counts.append(dict(passed=0, failed=1, skipped=0))
    total = {k: sum(c[k] for c in counts) for k in ('passed', 'failed', 'skipped')}
    print(', '.join(f'{n} {k}' for k,n in total.items()))
    return bool(total['failed'])

if __name__ == '__main__': sys.exit(main())
